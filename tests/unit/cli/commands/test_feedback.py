"""Grading accepted answers that were drawn for an audit, as a person does it."""

import subprocess
import sys

import pytest

from tests.paths import ROOT
from workflow_composer.calibration.monitoring.audits import AuditLog, audits_file


@pytest.fixture
def log(tmp_path):
    """The default file of the folder that commands run in, with six answers drawn."""
    log = AuditLog(audits_file({"HOME": str(tmp_path / "home")}))
    for at in range(6):
        log.sampled(f"req-{at}", certificate="0123abcd", alpha=0.1, tier="small", group="maths", score=0.9)
    return log


def test_a_grade_is_written_and_answered_with_what_all_grades_say(command, log):
    """Who grades sees at once where the test stands."""
    done = command("feedback", "--id", "req-0", "--wrong", "--by", "ann")
    assert done.code == 0
    assert "req-0 is wrong (maths/small); certificate 0123abcd" in done.out
    assert "1 of 1 audits wrong, e-value" in done.out
    assert "5 pending" in done.out
    assert [(audit.id, audit.correct, audit.by) for audit in log.refresh()] == [("req-0", False, "ann")]


def test_the_grade_that_raises_the_alarm_says_so(command, log):
    """In words, with the numbers."""
    outs = [command("feedback", "--id", f"req-{at}", "--wrong").out for at in range(4)]
    assert "ALARM" not in outs[0]
    assert "ALARM: 4 of 4 audited answers were wrong (maths/small: 4 of 4), too many for a risk of 0.1" in outs[3]


def test_grades_and_states_come_as_json_too(command, log):
    """For a form on a page, or a script."""
    graded = command("feedback", "--id", "req-0", "--correct", "--json").json
    assert (graded["id"], graded["correct"], graded["audits"], graded["pending"]) == ("req-0", True, 1, 5)
    assert [audit["id"] for audit in command("--json", "feedback", "--pending").json] == [f"req-{at}" for at in range(1, 6)]
    (state,) = command("feedback", "--status", "--json").json["certificates"]
    assert (state["certificate"], state["alpha"], state["audits"], state["wrong"]) == ("0123abcd", 0.1, 1, 0)
    assert (state["alarm"], state["alarm_from"]) == (False, 20.0)
    assert [part["stratum"] for part in state["strata"]] == ["maths/small"]


def test_the_status_names_certificate_evidence_and_every_tier(command, log):
    """And what was left out, and what was reported unasked."""
    for at in range(4):
        log.grade(f"req-{at}", correct=False, by="large")
    log.report("other", correct=False, by="user")
    with log.path.open("a") as file:
        file.write("half a li\n")
    out = command("feedback", "--status").out
    assert "certificate 0123abcd: at most 0.1 of accepted answers wrong" in out
    assert "ALARM: 4 of 4" in out
    assert "pending:  2" in out
    assert [line.split()[:4] for line in out.splitlines() if line.startswith(("maths/small", "all"))] == [
        ["maths/small", "4", "4", "100.0%"],
        ["all", "4", "4", "100.0%"],
    ]
    assert "reports of answers that were not sampled: 1" in out
    assert "damaged lines (skipped): 1" in out


def test_the_status_says_whose_grades_they_are(command, log):
    """A key that grades everything wrong is found, whatever name it gives; grades of an earlier test are left out."""
    log.grade("req-0", correct=False, by="ann", key="1f0c9a2b3d4e")
    log.grade("req-1", correct=False, by="ann", key="1f0c9a2b3d4e")
    log.grade("req-2", correct=True, by="ann")
    log.grade("req-3", correct=True, by="key 77aa", key="77aa")
    assert (
        "graders:  ann (key 1f0c9a2b3d4e) 2, 2 wrong; ann 1, 0 wrong; key 77aa 1, 0 wrong\n"
        in command("feedback", "--status").out
    )
    (state,) = command("feedback", "--status", "--json").json["certificates"]
    assert state["graders"][0] == {"by": "ann", "key": "1f0c9a2b3d4e", "audits": 2, "wrong": 2}
    command("feedback", "--reset", "0123abcd")
    assert command("feedback", "--status", "--json").json["certificates"][0]["graders"] == []


def test_what_waits_is_listed_in_the_order_in_which_it_was_drawn(command, log):
    """With what helps to find the answer."""
    log.grade("req-0", correct=True, by="user")
    lines = command("feedback", "--pending").out.splitlines()
    assert lines[0].split() == ["id", "sampled", "(UTC)", "group", "tier", "score", "certificate"]
    assert [line.split()[0] for line in lines[1:]] == [f"req-{at}" for at in range(1, 6)]


def test_without_any_audit_there_is_an_answer_and_no_file(command, tmp_path):
    """Looking makes nothing."""
    file = tmp_path / "home" / ".local" / "state" / "workflow-composer" / "audits.jsonl"
    assert command("feedback", "--status").out == f"no audits in {file} yet\n"
    assert command("feedback", "--pending").out == f"no pending answers in {file}\n"
    assert command("feedback", "--id", "req-0", "--wrong").code == 2
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_id_is_told_with_the_way_to_the_known_ones(command, log):
    """A typing error must not become a grade of nothing."""
    done = command("feedback", "--id", "req-9", "--wrong")
    assert done.code == 2
    assert "no audit 'req-9'" in done.err
    assert "--pending" in done.err


def test_a_second_grade_of_another_kind_is_refused(command, log):
    """And the same one again does no harm."""
    command("feedback", "--id", "req-0", "--wrong")
    assert command("feedback", "--id", "req-0", "--wrong").code == 0
    done = command("feedback", "--id", "req-0", "--correct")
    assert done.code == 2
    assert "was graded wrong by user" in done.err


def test_a_report_is_noted_and_no_part_of_the_test(command, log):
    """An answer that nobody drew."""
    done = command("feedback", "--id", "elsewhere", "--wrong", "--report")
    assert (done.code, "the test ignores it" in done.out) == (0, True)
    (state,) = command("feedback", "--status", "--json").json["certificates"]
    assert state["audits"] == 0
    assert command("feedback", "--id", "req-0", "--wrong", "--report").code == 2


def test_a_reset_takes_the_beginning_of_a_digest(command, log):
    """If only one certificate begins so; a wrong one is told with those that there are."""
    for at in range(4):
        log.grade(f"req-{at}", correct=False, by="user")
    assert command("feedback", "--reset", "012").out == "restarted the test of certificate 0123abcd\n"
    assert command("feedback", "--status", "--json").json["certificates"][0]["alarm"] is False
    log.sampled("x", certificate="0124", alpha=0.1, tier="small", group="maths")
    for wrong in ("012", "9", ""):
        done = command("feedback", "--reset", wrong)
        assert done.code == 2
        assert "certificates with audits: 0123abcd, 0124" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "specify one"),
        (("--pending", "--status"), "specify one"),
        (("--id", "req-0"), "either --correct or --wrong"),
        (("--id", "req-0", "--correct", "--wrong"), "either --correct or --wrong"),
        (("--pending", "--wrong"), "need --id ID"),
        (("--status", "--report"), "need --id ID"),
    ],
)
def test_what_makes_no_sense_together_is_refused(command, log, arguments, message):
    """With what to write instead."""
    done = command("feedback", *arguments)
    assert done.code == 2
    assert message in done.err


def test_a_file_that_cannot_be_written_is_an_error_with_a_name(command, tmp_path):
    """Where a folder should be is a file."""
    (tmp_path / "file").touch()
    done = command("feedback", "--id", "x", "--wrong", "--report", "--file", "file/audits.jsonl")
    assert done.code == 1
    assert "file/audits.jsonl" in done.err
    assert "hint:" in done.err


def test_the_environment_names_the_file(command, log, tmp_path):
    """As for the router."""
    log.path.rename(tmp_path / "elsewhere.jsonl")
    command.environ["WORKFLOW_COMPOSER_AUDITS"] = "elsewhere.jsonl"
    assert len(command("feedback", "--pending", "--json").json) == 6


def test_two_people_may_grade_at_the_same_time(log, tmp_path):
    """Each in a process of their own; of an answer that both grade, the first counts."""
    run = [sys.executable, "-m", "workflow_composer", "feedback", "--json", "--file", str(log.path), "--id"]
    graders = [(f"req-{at}", word) for at in (0, 1) for word in ("--correct", "--wrong")]
    children = [subprocess.Popen([*run, *one], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for one in graders]
    for child in children:
        child.communicate()
    assert sorted(child.returncode for child in children) == [0, 0, 2, 2]
    graded = {audit.id: audit.correct for audit in log.refresh()}
    assert graded == {
        one: word == "--correct" for (one, word), child in zip(graders, children, strict=True) if child.returncode == 0
    }
    assert log.skipped == 0
