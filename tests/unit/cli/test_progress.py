"""How far a batch has come, for log files and for eyes."""

from __future__ import annotations

import asyncio
import io
import os
import sys

import pytest

from workflow_composer.batch.run.records import Head
from workflow_composer.batch.run.runner import RunBudget
from workflow_composer.batch.run.tally import Tally
from workflow_composer.cli.progress import Bar, Lines, describe, describe_tiers, doubting, progress_for, tell_unlimited


def answered(tally, correct=None, error=None):
    """One more row."""
    tally.add(Head(0, error, "", correct, 0.5))
    return tally


def test_a_line_comes_no_more_often_than_every_few_seconds():
    """A million rows do not fill the log."""
    now, shown = [0.0], []
    lines = Lines(interval=5.0, clock=lambda: now[0], show=shown.append)
    tally = Tally(total=10)
    with lines:
        for second in (1, 4.9, 5, 6, 9.9, 10):
            now[0] = second
            lines(answered(tally, correct=second < 5))

    assert [line.split(", ")[:3] for line in shown] == [
        ["3/10 rows", "accuracy 66.7%", "cost $1.50"],
        ["6/10 rows", "accuracy 33.3%", "cost $3.00"],
    ]
    assert all(line.endswith(" s left") for line in shown)


def test_errors_and_earlier_rows_are_counted():
    """Errors cost, too; earlier rows count for the accuracy and not for the pace or the cost."""
    tally = Tally(total=4)
    tally.add_earlier(Head(0, None, "", True, 9.0))
    assert (tally.seconds_left, tally.done, tally.accuracy) == (None, 1, 1.0)

    answered(tally, error=("CallTimeout", "late"))
    assert describe(tally) == "accuracy 100.0%, errors 1, cost $0.50"
    assert (tally.done, tally.answered, tally.errors, tally.earlier) == (2, 1, 1, 1)
    assert tally.seconds_left is not None


def test_accuracy_is_shown_only_where_rows_have_labels():
    """Unknown is not zero."""
    assert describe(answered(Tally(total=1))) == "cost $0.50"


def test_a_bar_moves_on_a_terminal():
    """Rows, accuracy and cost beside it."""
    screen = io.StringIO()
    tally = Tally(total=2)
    with Bar(tally, file=screen, force_terminal=True, width=120, color_system=None, stderr=False) as bar:
        bar(answered(tally, correct=True))
        bar(answered(tally, correct=False))

    assert "2/2" in screen.getvalue()
    assert "accuracy 50.0%, cost $1.00" in screen.getvalue()


def test_the_terminal_decides(monkeypatch):
    """Lines for a log file, a bar for a person."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert isinstance(progress_for(Tally(total=1)), Lines)
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert isinstance(progress_for(Tally(total=1)), Bar)


def test_a_batch_shows_which_tiers_decide_and_what_is_in_flight():
    """Beside the same figures as every run, and behind its own label."""
    now, shown = [0.0], []
    tally = Tally(total=4, clock=lambda: now[0])
    assert describe_tiers(tally) == "cost $0.00, 0 in flight"

    tally.tiers.update({"small": 3, "large": 1})
    tally.answered, tally.graded, tally.correct, tally.cost, tally.in_flight = 4, 4, 3, 0.5, 2
    with Lines(describe_tiers, label="sums", clock=lambda: now[0], show=shown.append) as lines:
        now[0] = 6.0
        lines(tally)
    assert shown[0].startswith("sums: 4/4 rows, small 75% large 25%, accuracy 75.0%, cost $0.50, 2 in flight")

    screen = io.StringIO()
    with Bar(tally, describe_tiers, label="sums", file=screen, force_terminal=True, width=150, stderr=False) as bar:
        bar(tally)
    assert "sums" in screen.getvalue()
    assert "small 75% large 25%" in screen.getvalue()


def test_costs_that_are_not_known_are_not_shown_as_nothing():
    """A sum with unknown parts is a lower bound; one without a known part is unknown."""
    tally = Tally(total=3)
    tally.add(Head(0, None, "", None, 0.0, priced=False))
    assert describe(tally) == "cost unknown"
    tally.add(Head(1, None, "", None, 0.5))
    assert describe(tally) == "cost at least $0.50 (1 row unknown)"


def test_a_budget_that_could_not_limit_anything_says_so(capsys):
    """Rows of unknown cost spend nothing of it."""
    tally = Tally(total=3)
    tell_unlimited(RunBudget(run=1.0), tally)
    assert capsys.readouterr().err == ""
    tally.add(Head(0, None, "", None, 0.0, priced=False))
    tell_unlimited(RunBudget(), tally)
    assert capsys.readouterr().err == ""
    tell_unlimited(RunBudget(run=1.0), tally)
    assert "1 row " in capsys.readouterr().err


class Terminal(io.StringIO):
    """Standard input or error that claims to be a terminal."""

    descriptor = -1

    def isatty(self):
        return True

    def fileno(self):
        return self.descriptor


def unreadable(count, *, cut_off=False):
    """A run of which no answer could be read."""
    tally = Tally(total=100)
    for row in range(count):
        tally.add(Head(row, None, "", False, 0.0, unreadable=True, cut_off=cut_off))
    return tally


@pytest.mark.parametrize(
    ("typed", "goes_on"), [(b"y\n", True), (b"yes\n", True), (b"n\n", False), (b"\n", False), (b"", False)]
)
def test_on_a_terminal_a_run_of_unreadable_answers_asks(monkeypatch, typed, goes_on):
    """And goes on only if it is told to; the end of the input is a no."""
    shown, ours = Terminal(), Terminal()
    ours.descriptor, theirs = os.pipe()
    os.write(theirs, typed)
    os.close(theirs)
    monkeypatch.setattr(sys, "stdin", ours)
    monkeypatch.setattr(sys, "stderr", shown)
    try:
        assert asyncio.run(doubting(Lines(), "mark the answer")(unreadable(20))) is goes_on
    finally:
        os.close(ours.descriptor)
    assert "mark the answer" in shown.getvalue()


def test_without_a_terminal_it_warns_and_goes_on(monkeypatch, capsys):
    """Nobody is there to answer."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    assert asyncio.run(doubting(Lines(), "mark the answer", label="sums, small")(unreadable(20))) is True
    said = capsys.readouterr().err
    assert "sums, small: " in said
    assert "20" in said
    assert "mark the answer" in said


def test_answers_that_were_cut_off_have_their_own_remedy(capsys):
    """No other way of reading would help."""
    asyncio.run(doubting(Lines(), "mark the answer")(unreadable(20, cut_off=True)))
    said = capsys.readouterr().err
    assert "--max-tokens" in said
    assert "mark the answer" not in said
