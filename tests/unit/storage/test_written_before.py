"""Files that earlier versions wrote are read as they were meant; the set beside this file is never changed."""

from __future__ import annotations

import json
import shutil
from calendar import timegm
from pathlib import Path

import pytest

from workflow_composer.backends.recordings import open_recording
from workflow_composer.backends.replicas.registry import ServerRegistry
from workflow_composer.batch.planning.probe import Probe
from workflow_composer.batch.report.results import records
from workflow_composer.batch.run.journal import RowJournal
from workflow_composer.calibration.certify.certificate import Certificate
from workflow_composer.calibration.certify.route_certificate import RouteCertificate
from workflow_composer.calibration.monitoring.audits import AuditLog
from workflow_composer.errors import InputError
from workflow_composer.fleet.monitor.history import History
from workflow_composer.fleet.monitor.incident_store import MonitorFiles
from workflow_composer.fleet.state import StateStore
from workflow_composer.metrics.live import LiveMetrics, SharedMetrics
from workflow_composer.metrics.summary import summarize
from workflow_composer.server.auth.keys import read_keys
from workflow_composer.server.auth.ledger import Ledger

NOON = float(timegm((2026, 5, 31, 12, 0, 0)))


@pytest.fixture
def old(tmp_path):
    """A copy of the files, since some are opened to be written to."""
    return Path(shutil.copytree(Path(__file__).parent / "written_before", tmp_path / "old"))


def test_keys_and_what_they_have_used(old):
    """Names, limits and accounts."""
    ann, bob = read_keys(old / "keys.json").values()
    assert (ann.name, ann.budget, bob.tokens_per_minute, bob.models) == ("ann", 5.0, 1000, ("small",))
    ledger = Ledger(old / "ledger.bin")
    accounts = [ledger.account(key, NOON + 10.0) for key in (ann, bob)]
    assert [(a.spent, a.spent_in_all, a.requests, a.tokens) for a in accounts] == [(1.25, 1.25, 1, 300), (0.5, 0.5, 1, 70)]
    assert ledger.left(ann, NOON) == 3.75
    ledger.close()


def test_journals_of_batches(old):
    """All rows of `execute`, and those of `generate`."""
    found = list(records(old / "batch" / "journal.jsonl"))
    assert [record.row for record in found] == list(range(6))
    assert all(record.error is None and record.tiers[0].votes and record.correct for record in found)
    assert {tier.cut_off for record in found for tier in record.tiers} == {0}
    with pytest.raises(InputError, match="another version"):  # answers were read in another way then
        RowJournal.open(old / "batch" / "journal.jsonl", {}, rows=6)
    lines = [json.loads(line) for line in (old / "answers.jsonl").read_text().splitlines()]
    assert sorted(line["index"] for line in lines) == list(range(6))


def test_recorded_answers(old):
    """With their log-probabilities."""
    recording = open_recording(old / "recorded.jsonl")
    assert set(recording.models) == {"medium"}


def test_certificates_and_audits(old):
    """The digest, which other files name, is the same; so are the grades."""
    certificate = Certificate.load(old / "certificate.json")
    assert (certificate.alpha, certificate.delta) == (0.5, 0.3)
    log = AuditLog(old / "audits.jsonl")
    assert [audit.correct for audit in log.refresh()] == [True, False]
    assert log.certificates == (certificate.digest,)
    assert (log.skipped, log.reports, len(log.pending())) == (0, 1, 2)
    route = RouteCertificate.load(old / "var-certificate.json")
    assert (route.margin, route.selection.threshold is None, route.layers) == (0.15, False, (0,))


def test_a_probe(old):
    """A constant for one tier."""
    assert Probe.load(old / "probe.json").tiers["small"].constant == 0.7


def test_metrics_and_live_figures(old):
    """Every line counts; counters go on from where an earlier worker stopped."""
    assert summarize(old / "metrics.jsonl").total.requests == 12
    shared = SharedMetrics(LiveMetrics(), old, 0)
    assert sum(series["requests"] for series in shared.all()["series"]) == 1


def test_what_the_fleet_keeps(old):
    """State, registry, the monitor's memory and its history."""
    state = StateStore(old / "fleet" / "state").get("coder")
    assert state is not None
    assert (state.pid, state.options, state.restarts) == (4711, ("--x", "1"), (NOON,))
    (entry,) = ServerRegistry(old / "fleet" / "registry").all()
    assert (entry.url, entry.state) == ("http://127.0.0.1:8002/v1", "ready")
    remembered = MonitorFiles(old / "fleet" / "monitor").load("coder")
    assert (remembered.memory.told, remembered.memory.incidents) == (("down",), (NOON,))
    assert [(unsent.channel, unsent.alert.reason, unsent.failed) for unsent in remembered.unsent] == [
        ("webhook", "gone", True)
    ]
    assert [record.outcome for record in History(old / "fleet" / "history.jsonl", 7).records()] == ["up", "down"]
