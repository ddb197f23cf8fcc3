"""The budget of a run: when a row may begin, what it may cost, and when the run is over."""

from __future__ import annotations

import math

import pytest

from workflow_composer.batch.run.runner import Budget
from workflow_composer.errors import InputError


def test_without_a_budget_rows_begin_for_ever():
    """And may cost what they like."""
    budget = Budget()
    for _ in range(100):
        assert budget.room
        assert budget.begin() is None
    budget.end(1e9, well=True)
    assert budget.room
    assert not budget.is_over


def test_it_is_over_when_all_is_spent_and_not_before():
    """The last cent is there to be spent."""
    budget = Budget(run=1.0)
    for _ in range(3):
        budget.begin()
        budget.end(0.25, well=True)
    assert budget.room
    assert not budget.is_over
    budget.begin()
    budget.end(0.25, well=True)
    assert budget.is_over
    assert not budget.room


def test_what_earlier_runs_have_spent_is_gone():
    """Also where that is all of it, or more."""
    budget = Budget(run=1.0)
    budget.earlier(0.75)
    assert budget.left == 0.25
    budget.earlier(0.5)
    assert budget.is_over


def test_rows_under_way_hold_the_money_of_a_row_each():
    """So that all of them can be paid."""
    budget = Budget(row=0.25, run=1.0)
    granted = []
    while budget.room:
        granted.append(budget.begin())
    assert granted == [0.25] * 4
    budget.end(0.125, well=True)
    assert not budget.room  # 3 under way, and 0.875 left
    budget.end(0.125, well=True)
    assert budget.room  # 2 under way, and 0.75 left


def test_the_last_row_gets_what_is_left_and_ends_the_run_where_that_pays_for_nothing():
    """Otherwise all rows behind it would fail one after the other, for want of money that others had."""
    budget = Budget(row=1.0, run=1.5)
    budget.begin()
    budget.end(1.0, well=True)
    assert budget.begin() == 0.5
    budget.end(0.0, unpaid=True)
    assert budget.is_over


def test_a_row_that_its_own_budget_does_not_pay_for_ends_nothing():
    """The next may be cheaper."""
    budget = Budget(row=0.25, run=1.0)
    budget.begin()
    budget.end(0.0, unpaid=True)
    assert not budget.is_over


def test_without_a_budget_for_rows_the_dearest_says_what_to_expect():
    """The first row goes alone; one that failed for nothing has told nothing."""
    budget = Budget(run=1.0)
    assert budget.begin() is None
    assert not budget.room
    budget.end()
    budget.begin()
    assert not budget.room
    budget.end(0.25, well=True)
    begun = 0
    while budget.room:
        budget.begin()
        begun += 1
    assert begun == 3


def test_rows_that_cost_nothing_are_not_held_back():
    """A model of one's own."""
    budget = Budget(run=1.0)
    budget.begin()
    budget.end(0.0, well=True)
    for _ in range(100):
        assert budget.room
        budget.begin()


@pytest.mark.parametrize("wrong", [0, -1, math.nan, math.inf, "5", True])
@pytest.mark.parametrize("name", ["row", "run"])
def test_a_budget_that_is_none_is_an_error_that_names_it(name, wrong):
    with pytest.raises(InputError, match=f"invalid {name} budget: {wrong!r}"):
        Budget.of({name: wrong})


@pytest.mark.parametrize("wrong", [5.0, {"total": 5}, [1, 2]])
def test_a_budget_in_another_form_is_an_error(wrong):
    with pytest.raises(InputError, match="invalid budget") as caught:
        Budget.of(wrong)
    assert '{"row": 0.01, "run": 5.0}' in caught.value.hint


def test_either_part_may_be_left_out():
    assert (Budget.of(None).row, Budget.of(None).run) == (None, None)
    assert (Budget.of({"run": 5}).row, Budget.of({"run": 5}).run) == (None, 5)
