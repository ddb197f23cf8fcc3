"""The budget of a run: when a row may begin, what it may cost, and when the run is over."""

from __future__ import annotations

import math

import pytest

from workflow_composer.batch.run.runner import RunBudget
from workflow_composer.errors import InputError


def test_without_a_budget_rows_begin_for_ever():
    """And may cost what they like."""
    budget = RunBudget()
    for _ in range(100):
        assert budget.room
        reserved = budget.begin()
        assert budget.limit_of(reserved) is None
    budget.end(reserved, 1e9, well=True)
    assert budget.room
    assert not budget.is_over


def test_it_is_over_when_all_is_spent_and_not_before():
    """The last cent is there to be spent."""
    budget = RunBudget(run=1.0)
    for _ in range(3):
        budget.end(budget.begin(), 0.25, well=True)
    assert budget.room
    assert not budget.is_over
    budget.end(budget.begin(), 0.25, well=True)
    assert budget.is_over
    assert not budget.room


def test_what_earlier_runs_have_spent_is_gone():
    """Also where that is all of it, or more."""
    budget = RunBudget(run=1.0)
    budget.earlier(0.75)
    assert budget.left == 0.25
    budget.earlier(0.5)
    assert budget.is_over


def test_rows_under_way_hold_the_money_of_a_row_each():
    """So that all of them can be paid."""
    budget = RunBudget(row=0.25, run=1.0)
    granted = []
    while budget.room:
        granted.append(budget.begin())
    assert [budget.limit_of(reserved) for reserved in granted] == [0.25] * 4
    budget.end(granted[0], 0.125, well=True)
    assert not budget.room  # 3 under way, and 0.875 left
    budget.end(granted[1], 0.125, well=True)
    assert budget.room  # 2 under way, and 0.75 left


def test_the_last_row_gets_what_is_left_and_ends_the_run_where_that_pays_for_nothing():
    """Otherwise all rows behind it would fail one after the other, for want of money that others had."""
    budget = RunBudget(row=1.0, run=1.5)
    budget.end(budget.begin(), 1.0, well=True)
    last = budget.begin()
    assert budget.limit_of(last) == 0.5
    budget.end(last, unpaid=True)
    assert budget.is_over


def test_a_row_that_its_own_budget_does_not_pay_for_ends_nothing():
    """The next may be cheaper."""
    budget = RunBudget(row=0.25, run=1.0)
    budget.end(budget.begin(), unpaid=True)
    assert not budget.is_over


def test_without_a_budget_for_rows_the_dearest_says_what_to_expect():
    """The first row goes alone; one that failed for nothing has told nothing."""
    budget = RunBudget(run=1.0)
    first = budget.begin()
    assert budget.limit_of(first) is None
    assert not budget.room
    budget.end(first)
    second = budget.begin()
    assert not budget.room
    budget.end(second, 0.25, well=True)
    begun = 0
    while budget.room:
        budget.begin()
        begun += 1
    assert begun == 3


def test_rows_that_cost_nothing_are_not_held_back():
    """A model of one's own."""
    budget = RunBudget(run=1.0)
    budget.end(budget.begin(), 0.0, well=True)
    for _ in range(100):
        assert budget.room
        budget.begin()


@pytest.mark.parametrize("wrong", [0, -1, math.nan, math.inf, "5", True])
@pytest.mark.parametrize("name", ["row", "run"])
def test_a_budget_that_is_none_is_an_error_that_names_it(name, wrong):
    with pytest.raises(InputError, match=f"invalid {name} budget: {wrong!r}"):
        RunBudget.of({name: wrong})


@pytest.mark.parametrize("wrong", [5.0, {"total": 5}, [1, 2]])
def test_a_budget_in_another_form_is_an_error(wrong):
    with pytest.raises(InputError, match="invalid budget") as caught:
        RunBudget.of(wrong)
    assert '{"row": 0.01, "run": 5.0}' in caught.value.hint


def test_either_part_may_be_left_out():
    assert (RunBudget.of(None).row, RunBudget.of(None).run) == (None, None)
    assert (RunBudget.of({"run": 5}).row, RunBudget.of({"run": 5}).run) == (None, 5)
