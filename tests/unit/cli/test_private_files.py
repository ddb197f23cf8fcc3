"""Files with prompts, answers or grades belong to their owner alone, whatever the umask is."""

from __future__ import annotations

import json
import os

import pytest

from workflow_composer.calibration.monitoring.audits import AuditLog, audits_file
from workflow_composer.cli.main import run
from workflow_composer.cli.state import State
from workflow_composer.runtime.decision_log import DEBUG_VARIABLE

MARK = "Zebrafinch"
"""A word of every prompt, which the fake model repeats."""
TIERS = "tiers: {a: {model: m}, b: {model: n}}\nrouters: [cascade, provider]\n"
PROFILE = (
    "profile_name: p\nallow_cloud: false\nmodels: {m: {backend: fake}, n: {backend: fake}}\ntask_routing: {'*': m}\n" + TIERS
)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a profile and rows, under an umask that gives everything to everybody."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.yaml").write_text(PROFILE)
    rows = [{"id": str(n), "question": f"{MARK} {n} #### {n}", "answer": str(n)} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = os.umask(0)
    yield tmp_path
    os.umask(before)


def told(place):
    """The files that were written and that hold the word or a grade, with their permissions for others."""
    given = {"p.yaml", "rows.jsonl"}
    files = [path for path in place.rglob("*") if path.is_file() and path.name not in given]
    words = MARK.encode(), b'"correct"', b"routed"
    telling = [path for path in files if any(word in path.read_bytes() for word in words)]
    return {str(path.relative_to(place)): path.stat().st_mode & 0o077 for path in telling}


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        (["generate", MARK], "state/workflow-composer/routing_metrics.jsonl"),
        (["generate", "--input", "rows.jsonl", "--output", "out.jsonl"], "out.jsonl"),
        (["ask", "rows.jsonl", "--prompt", "Say {{ question }}", "-o", "out.csv", "--column", "said"], "out.csv"),
        (["ask", "rows.jsonl", "--prompt", "Say {{ question }}", "-o", "out.parquet", "--column", "said"], "out.parquet"),
        (["execute", "--datasets", "rows.jsonl", "--policies", "plain", "--output", "results"], "results"),
        (["record", "--no-logprobs", "--datasets", "rows.jsonl", "--output", "record.jsonl"], "record.jsonl"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_a_command_writes_is_its_owners(place, arguments, written):
    """With debugging, the metrics and the decisions have the prompts, too."""
    code = run(
        [*arguments[:1], "-s", "./p.yaml", *arguments[1:]],
        State(environ={DEBUG_VARIABLE: "1", "XDG_STATE_HOME": str(place / "state")}),
    )
    assert code == 0
    found = told(place)
    assert [path for path in found if path.startswith(written)]
    assert set(found.values()) == {0}, found


def test_the_grades_of_an_audit_are_its_owners(place):
    """In the default file."""
    log = AuditLog(audits_file({"XDG_STATE_HOME": str(place)}))
    log.sampled("req-0", certificate="0123abcd", alpha=0.1, tier="small", group="maths", score=0.9)
    log.grade("req-0", correct=False, by="ann")
    assert told(place) == {"workflow-composer/audits.jsonl": 0}
