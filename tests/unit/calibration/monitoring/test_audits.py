"""The file of audits: shared by processes, rebuilt from the file alone, and honest about what may count."""

import json
import math
import os
import stat
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.paths import ROOT
from workflow_composer.calibration.monitoring import audits
from workflow_composer.calibration.monitoring.audits import AuditLog, audits_file
from workflow_composer.errors import InputError, WorkflowComposerError
from workflow_composer.storage import appending
from workflow_composer.storage.locks import locked


@pytest.fixture
def path(tmp_path):
    return tmp_path / "logs" / "audits.jsonl"


def draw(log, *ids, certificate="abc", alpha=0.1, tier="small", group="maths", score=0.9):
    for one in ids:
        log.sampled(one, certificate=certificate, alpha=alpha, tier=tier, group=group, score=score)


def lines(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_a_drawn_answer_is_pending_until_it_is_graded(path):
    """And a grade comes back from refresh once."""
    log = AuditLog(path)
    draw(log, "r1", "r2")
    assert [audit.id for audit in log.pending()] == ["r1", "r2"]
    log.grade("r1", correct=False, by="user")
    assert [audit.id for audit in log.pending()] == ["r2"]
    assert [(audit.id, audit.correct, audit.by) for audit in log.refresh()] == [("r1", False, "user")]
    assert log.refresh() == []


def test_the_file_says_what_when_and_by_whom_and_nothing_of_the_texts(path):
    """These fields and no others."""
    log = AuditLog(path)
    draw(log, "r1", score=math.nan)
    log.grade("r1", correct=True, by="large", allowance=0.05)
    accepted, graded = lines(path)
    assert accepted.pop("at").endswith("+00:00")
    assert accepted == {
        "event": "accepted",
        "id": "r1",
        "certificate": "abc",
        "alpha": 0.1,
        "level": 0.05,
        "tier": "small",
        "group": "maths",
        "score": None,
    }
    graded.pop("at")
    assert graded == {"event": "graded", "id": "r1", "correct": True, "by": "large", "allowance": 0.05}


def test_a_log_opened_later_knows_what_one_opened_before_knows(path):
    """The state of the test comes from the file alone."""
    old = AuditLog(path)
    draw(old, *map(str, range(30)))
    draw(old, "x", certificate="other", alpha=0.3)
    for at in range(30):
        old.grade(str(at), correct=at % 3 > 0, by="user")
    old.grade("x", correct=True, by="user")
    new = AuditLog(path)
    new.refresh()
    assert new.certificates == ("abc", "other")
    for log in (old, new):
        monitor = log.watched("abc").monitor
        assert (monitor.audits, monitor.wrong, monitor.alarmed) == (30, 10, True)
        assert monitor.e_value == old.watched("abc").monitor.e_value
        assert (log.watched("other").monitor.alpha, log.watched("other").alarmed) == (0.3, False)
    assert "10 of 30 audited answers were wrong (maths/small: 10 of 30)" in new.watched("abc").reason
    assert new.watched("other").reason == ""
    assert new.watched("none") is None


class Counting(AuditLog):
    """Counts the lines that it takes in."""

    taken = 0

    def _take(self, line):
        self.taken += 1
        return super()._take(line)


def test_only_what_was_appended_is_read_again(path):
    """A refresh behind a million audits costs as much as behind none."""
    log = Counting(path)
    draw(log, *map(str, range(100)))
    log.refresh()
    log.refresh()
    assert log.taken == 100
    AuditLog(path).grade("7", correct=True, by="user")
    assert [audit.id for audit in log.refresh()] == ["7"]
    assert log.taken == 101


def test_an_answer_that_was_never_drawn_cannot_be_graded(path):
    """The error says what can be done, and nothing is written."""
    log = AuditLog(path)
    draw(log, "r1")
    with pytest.raises(InputError, match="no audit 'r2'") as caught:
        log.grade("r2", correct=True, by="user")
    assert "--pending" in caught.value.hint
    assert len(lines(path)) == 1
    with pytest.raises(InputError, match="no audit 'r1'"):
        AuditLog(path.with_name("other.jsonl")).grade("r1", correct=True, by="user")
    assert not path.with_name("other.jsonl").exists()


def test_the_same_grade_again_changes_nothing_and_another_is_refused(path):
    """Who presses the button twice counts once; who changes their mind after an alarm does not undo it."""
    log = AuditLog(path)
    draw(log, "r1")
    first = log.grade("r1", correct=False, by="user")
    assert log.grade("r1", correct=False, by="somebody else") == first
    with pytest.raises(InputError, match="'r1' was graded wrong by user"):
        log.grade("r1", correct=True, by="user")
    assert len(lines(path)) == 2
    assert log.watched("abc").monitor.audits == 1


def test_all_readers_see_the_test_with_the_level_that_it_began_with(path):
    """So that a status command, which knows no profile, agrees with the router."""
    log = AuditLog(path, level=1e-6)
    draw(log, *map(str, range(4)))
    for at in range(4):
        log.grade(str(at), correct=False, by="user")
    reader = AuditLog(path)
    reader.refresh()
    assert not reader.watched("abc").alarmed
    assert reader.watched("abc").monitor.level == 1e-6


def test_the_same_report_again_is_not_written_again(path):
    """Whoever may report cannot fill the disk; another finding on the same answer is news."""
    log, other = AuditLog(path), AuditLog(path)
    for _ in range(3):
        log.report("r", correct=False, by="user", key="k")
        other.report("r", correct=False, by="user")
    assert len(path.read_text().splitlines()) == 1
    log.report("r", correct=True, by="user")
    assert len(path.read_text().splitlines()) == 2


def test_an_unsolicited_report_is_kept_and_is_no_part_of_the_test(path):
    """People report what is wrong: a test fed with that would raise an alarm on a tier that keeps its promise."""
    log = AuditLog(path)
    draw(log, "r1")
    for at in range(50):
        log.report(f"other-{at}", correct=False, by="user")
    log.refresh()
    assert log.reports == 50
    assert (log.watched("abc").monitor.audits, log.watched("abc").alarmed) == (0, False)
    with pytest.raises(InputError, match="was drawn"):
        log.report("r1", correct=False, by="user")


def test_an_alarm_is_written_by_one_of_many(path):
    """And holds for all that read the file, with its reason."""
    logs = [AuditLog(path) for _ in range(3)]
    draw(logs[0], "r1")
    assert [log.alarm("abc", "too many") for log in logs] == [True, False, False]
    assert all((log.watched("abc").alarmed, log.watched("abc").reason) == (True, "too many") for log in logs)
    assert [line["event"] for line in lines(path)] == ["accepted", "alarm"]


def test_a_reset_starts_the_test_afresh_and_leaves_out_what_was_drawn_before(path):
    """Answers of the time of trouble, graded later, say nothing about the time after it."""
    log = AuditLog(path)
    draw(log, *map(str, range(20)), "late")
    for at in range(20):
        log.grade(str(at), correct=False, by="user")
    log.alarm("abc", log.watched("abc").reason)
    log.reset("abc", by="operator")
    assert log.pending() == []
    log.grade("late", correct=False, by="user")
    draw(log, "new")
    log.grade("new", correct=True, by="user")
    watched = log.watched("abc")
    assert (watched.alarmed, watched.reason, watched.resets) == (False, "", 1)
    assert (watched.monitor.audits, watched.monitor.wrong) == (1, 0)
    assert len(log.refresh()) == 22


@pytest.mark.parametrize("act", [lambda log: log.alarm("abc", "too many"), lambda log: log.reset("abc", "operator")])
def test_a_certificate_that_nothing_was_drawn_of_has_no_test(path, act):
    """A typing error is told, with what there is."""
    log = AuditLog(path)
    with pytest.raises(InputError, match="'abc'") as caught:
        act(log)
    assert caught.value.hint == "no answer was drawn yet"
    draw(log, "r1", certificate="xyz")
    with pytest.raises(InputError, match="'abc'") as caught:
        act(log)
    assert caught.value.hint == "certificates with audits: xyz"


def test_a_grader_that_errs_is_allowed_for(path):
    """What a stronger model calls wrong may be its own fault; what a person calls wrong is not."""
    log = AuditLog(path)
    for certificate, allowance in (("strict", 0.0), ("lenient", 0.15)):
        for at in range(150):
            draw(log, f"{certificate}-{at}", certificate=certificate)
            log.grade(f"{certificate}-{at}", correct=at % 4 > 0, by="large", allowance=allowance)
    assert log.watched("strict").alarmed
    assert not log.watched("lenient").alarmed


def test_serving_needs_no_numpy():
    """Audits are noted where requests are answered, on machines that never calibrate."""
    code = "import sys, workflow_composer.calibration.monitoring.audits\n"
    code += "print({'numpy', 'scipy', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_each_tier_of_each_group_is_watched_by_itself(path):
    """The certificate promises it of each."""
    log = AuditLog(path)
    draw(log, "a", "b")
    draw(log, "c", tier="large")
    for one in "abc":
        log.grade(one, correct=True, by="user")
    assert {name: part.audits for name, part in log.watched("abc").monitor.strata.items()} == {
        "maths/small": 2,
        "maths/large": 1,
    }


# ------------------------------------------------------------------------------------------------------- foreign lines

TEXTS = {"id": "a", "certificate": "c", "tier": "t", "group": "g", "at": ""}
ACCEPTED = {"event": "accepted", **TEXTS, "alpha": 0.1, "level": 0.05, "score": 1}
GRADED = {"event": "graded", "id": "r1", "correct": True, "by": "user", "allowance": 0.0, "at": ""}


@pytest.mark.parametrize(
    "line",
    [
        b"half a li",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"[" * 100_000,
        b'{"event": ["accepted"]}',
        *(
            json.dumps(event).encode()
            for event in (
                {"event": "unheard of"},
                {**ACCEPTED, "id": "r1"},
                {**ACCEPTED, "id": 5},
                {**ACCEPTED, "alpha": 0},
                {**ACCEPTED, "alpha": "0.1"},
                {**ACCEPTED, "level": 1},
                {**ACCEPTED, "score": "high"},
                {**ACCEPTED, "score": 10**400},
                {key: value for key, value in ACCEPTED.items() if key != "tier"},
                {**GRADED, "id": "unknown"},
                {**GRADED, "correct": "yes"},
                {**GRADED, "allowance": -0.1},
                {**GRADED, "allowance": None},
                {"event": "reported", "id": "x", "correct": None, "by": "user"},
                {"event": "alarm", "certificate": "unknown", "reason": "none"},
                {"event": "reset", "certificate": "unknown", "by": "user"},
            )
        ),
    ],
)
def test_a_damaged_or_foreign_line_is_skipped_and_counted(path, line):
    """All around it is read."""
    log = AuditLog(path)
    draw(log, "r1")
    with path.open("ab") as file:
        file.write(line + b"\n")
    draw(log, "r2")
    assert [audit.id for audit in log.pending()] == ["r1", "r2"]
    assert log.skipped == 1


def test_half_a_line_costs_no_other_line(path):
    """A machine that lost power leaves one; the next event starts on a line of its own."""
    log = AuditLog(path)
    draw(log, "r1")
    with path.open("ab") as file:
        file.write(b'{"event": "accep')
    assert [audit.id for audit in log.pending()] == ["r1"]
    assert log.skipped == 0
    draw(log, "r2")
    assert [audit.id for audit in log.pending()] == ["r1", "r2"]
    assert log.skipped == 1


def test_a_file_that_was_cut_or_replaced_is_read_from_its_start(path):
    """What is known is what the file says."""
    log = AuditLog(path)
    draw(log, "r1", "r2")
    log.refresh()
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[1])
    assert [audit.id for audit in log.pending()] == ["r2"]
    path.unlink()
    assert log.pending() == []
    draw(log, "r3")
    assert [audit.id for audit in log.pending()] == ["r3"]


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), max_size=30))
def test_whatever_is_graded_in_whatever_order_each_answer_counts_once(tmp_path_factory, grades):
    """The first grade stands; the monitor has seen just those."""
    log = AuditLog(tmp_path_factory.mktemp("audits") / "audits.jsonl")
    draw(log, *"abcd")
    first = {}
    for one, correct in grades:
        stands = one in "abcd" and first.setdefault(one, correct) == correct
        try:
            log.grade(one, correct, by="user")
        except InputError:
            assert not stands
        else:
            assert stands
    reread = AuditLog(log.path)
    assert {audit.id: audit.correct for audit in reread.refresh()} == first
    monitor = reread.watched("abc").monitor
    assert (monitor.audits, monitor.wrong) == (len(first), list(first.values()).count(False))


# ------------------------------------------------------------------------------------------------- many at the same time


def test_threads_share_one_log(path):
    """Every event of theirs is there once."""
    log = AuditLog(path)

    def work(name):
        for at in range(25):
            draw(log, f"{name}-{at}")
            log.grade(f"{name}-{at}", correct=True, by=name)

    threads = [threading.Thread(target=work, args=(str(n),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log.skipped == 0
    assert log.watched("abc").monitor.audits == 100


GRADER = """
import sys
from workflow_composer.calibration.monitoring.audits import AuditLog
from workflow_composer.errors import InputError
log, correct, won = AuditLog(sys.argv[1]), sys.argv[2] == "correct", 0
for at in range(60):
    log.sampled(f"{sys.argv[2]}-{at}", certificate="abc", alpha=0.1, tier="small", group="maths")
    try:
        log.grade(f"shared-{at}", correct, by=sys.argv[2])
        won += 1
    except InputError:
        pass
print(won)
"""


def test_of_two_processes_that_grade_the_same_answers_one_wins_each(path):
    """No grade is lost, none counts twice, and no line is torn."""
    log = AuditLog(path)
    draw(log, *(f"shared-{at}" for at in range(60)))
    words = ("correct", "wrong")
    run = [sys.executable, "-c", GRADER, str(path)]
    children = [subprocess.Popen([*run, word], cwd=ROOT, stdout=subprocess.PIPE, text=True) for word in words]
    won = [int(child.communicate()[0]) for child in children]
    graded = log.refresh()
    assert sum(won) == 60 == len(graded)
    assert won == [sum(audit.by == word for audit in graded) for word in words]
    assert (len(log.pending()), log.skipped) == (120, 0)


# -------------------------------------------------------------------------------------------------------------- trouble


def test_where_the_file_cannot_be_written_the_error_names_it_and_a_way_out(tmp_path):
    """A folder that is a file."""
    (tmp_path / "logs").touch()
    with pytest.raises(WorkflowComposerError, match="cannot") as caught:
        draw(AuditLog(tmp_path / "logs" / "audits.jsonl"), "r1")
    assert "logs/audits.jsonl" in str(caught.value)
    assert caught.value.hint
    assert caught.value.exit_code == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_file_without_the_right_to_write_is_named(path):
    """Reading it still works."""
    draw(AuditLog(path), "r1")
    path.chmod(stat.S_IRUSR)
    log = AuditLog(path)
    with pytest.raises(WorkflowComposerError, match="cannot write audits to"):
        draw(log, "r2")
    assert [audit.id for audit in log.pending()] == ["r1"]


def test_a_full_disk_is_told(path, monkeypatch):
    """What was there before stays whole, and the drawing can be noted once there is room."""
    draw(AuditLog(path), "r1")
    with monkeypatch.context() as patch:
        patch.setattr(appending.os, "write", lambda descriptor, data: len(data) // 2)
        with pytest.raises(WorkflowComposerError, match="No space left"):
            draw(AuditLog(path), "r2")
    draw(AuditLog(path), "r3")
    assert [audit.id for audit in AuditLog(path).pending()] == ["r1", "r3"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_device_is_no_file_of_audits():
    """It could not be read again; nothing is made beside it."""
    before = sorted(Path("/dev").iterdir())
    with pytest.raises(WorkflowComposerError, match="not a regular file"):
        draw(AuditLog("/dev/full"), "r1")
    assert sorted(Path("/dev").iterdir()) == before


def test_a_lock_that_somebody_keeps_is_told_with_what_to_do(path, monkeypatch):
    """Within a bounded time."""
    draw(AuditLog(path), "r0")
    monkeypatch.setattr(audits, "locked", partial(locked, wait=0.01))
    with locked(path), pytest.raises(WorkflowComposerError, match="holds the lock"):
        draw(AuditLog(path), "r1")


def test_the_environment_chooses_the_file(tmp_path, monkeypatch):
    """Or the user's; what an earlier version began in the working directory goes on, with its alarms."""
    monkeypatch.chdir(tmp_path)
    assert str(audits_file({"XDG_STATE_HOME": "/state"})) == "/state/workflow-composer/audits.jsonl"
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "audits.jsonl").touch()
    assert str(audits_file({"XDG_STATE_HOME": "/state"})) == "logs/audits.jsonl"
    assert str(audits_file({"WORKFLOW_COMPOSER_AUDITS": " elsewhere.jsonl "})) == "elsewhere.jsonl"
