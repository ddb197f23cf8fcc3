"""The audit log and the service's log: what stands in them, what never does, and a disk that is full."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from workflow_composer.server.admin.strategy_switcher import SwitchAudit
from workflow_composer.server.logs import ServiceLog

KEY = "wfc-0123456789ab-" + "c2VjcmV0LXNlY3JldA" * 2


def lines(path):
    """Lines of JSON."""
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def test_a_line_says_who_did_what_and_when_and_nothing_that_is_empty(tmp_path):
    audit = SwitchAudit(tmp_path / "new" / "audit.jsonl")
    audit.write("switch", who="ann", outcome="done", version=2, why="", before=None)
    (line,) = lines(audit.path)
    assert line.pop("at").endswith("+00:00")
    assert line == {"what": "switch", "who": "ann", "outcome": "done", "version": 2}
    assert audit.path.stat().st_mode & 0o077 == 0


def test_what_was_written_before_stays(tmp_path):
    for who in ("ann", "bob"):
        SwitchAudit(tmp_path / "a").write("switch", who=who, outcome="done")
    assert [line["who"] for line in lines(tmp_path / "a")] == ["ann", "bob"]


WRITES = """
import sys
from pathlib import Path
from workflow_composer.server.admin.strategy_switcher import SwitchAudit
audit = SwitchAudit(Path(sys.argv[1]))
for _ in range(200):
    audit.write("switch", who=sys.argv[2] * 50, outcome="done")
"""


def test_lines_of_several_processes_do_not_mix(tmp_path):
    running = [subprocess.Popen([sys.executable, "-c", WRITES, str(tmp_path / "a"), who]) for who in "ab"]
    assert [process.wait(60) for process in running] == [0, 0]
    found = [line["who"] for line in lines(tmp_path / "a")]
    assert sorted(found) == ["a" * 50] * 200 + ["b" * 50] * 200


def test_what_cannot_be_written_is_told_with_its_contents():
    told = []
    SwitchAudit(Path("/dev/full"), report=told.append).write("switch", who="ann", outcome="done")
    assert "switch by ann: done" in told[0]


FULL = """
import resource, sys
from pathlib import Path
from workflow_composer.server.admin.strategy_switcher import SwitchAudit
told = []
path = Path(sys.argv[1])
audit = SwitchAudit(path, report=told.append)
audit.write("switch", who="one", outcome="done")
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, hard))  # room for half a line
audit.write("switch", who="two", outcome="done")
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
audit.write("switch", who="three", outcome="done")
assert len(told) == 1 and "by two" in told[0], told
"""


def test_half_a_line_on_a_full_disk_spoils_no_other(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "a")], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    first, last = (tmp_path / "a").read_text().splitlines()
    assert [json.loads(first)["who"], json.loads(last)["who"]] == ["one", "three"]


# ----------------------------------------------------------------------------------------------------- the service's log


@pytest.fixture
def said(capsys):
    """What was written to standard error since it was last asked."""
    return lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_an_event_is_one_line_of_json_with_its_fields_and_its_worker(said):
    ServiceLog(worker=3).event("asked", request_id="req-1", prompt="two\nlines")
    ServiceLog().warning("odd", number=1)
    first, second = said()
    assert first.pop("timestamp").endswith("Z")
    assert first == {"event": "asked", "level": "info", "worker": 3, "request_id": "req-1", "prompt": "two\nlines"}
    assert (second["level"], "worker" in second) == ("warning", False)


@pytest.mark.parametrize("hidden", [KEY, [KEY], {"a": {"b": (KEY,)}}], ids=["text", "list", "nested"])
def test_keys_are_hidden_wherever_they_stand(said, hidden):
    ServiceLog().event(f"seen {KEY}", what=hidden)
    assert KEY not in json.dumps(said())


@pytest.mark.parametrize("value", ["\ud800", b"bytes", float("nan"), object()])
def test_any_value_can_be_logged(said, value):
    ServiceLog().event("odd", value=value)
    assert said()[0]["event"] == "odd"


def test_a_log_that_nobody_reads_keeps_no_request_from_its_answer(monkeypatch):
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    ServiceLog().event("x")
    full = Path("/dev/full").open("w")  # noqa: SIM115  # closing it fails, which is not what is tested
    monkeypatch.setattr(sys, "stderr", full)
    ServiceLog().event("x" * 100_000)
    with contextlib.suppress(OSError):
        full.close()
