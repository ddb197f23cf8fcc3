"""The routing address of a request, and checks of single values."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflow_composer.server.api import field_checks, forms
from workflow_composer.server.api.completion_handler import predict_task
from workflow_composer.server.api.forms import ADDRESS_HEADERS, BUDGET_HEADER, TASK_HEADER, TIMEOUT_HEADER
from workflow_composer.server.failures import HttpFailure
from workflow_composer.types import ANY_TASK

TASKS = {"code_validation", "code_generation", "math_statistics", "data_analysis", "biomedical", "documentation"}
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def asked(text):
    """A conversation whose last question this is."""
    return [{"role": "user", "content": text}]


def address(model, headers, metadata):
    """The routing address of a request."""
    return forms.address_of(model, metadata.get("task_type"), *map(headers.get, ADDRESS_HEADERS))


def attempt(work):
    """What it gives, or the failure that it raises; anything else comes through."""
    try:
        return work(), None
    except HttpFailure as failure:
        return None, failure


@pytest.mark.parametrize(
    ("text", "task"),
    [
        ("Write a Python function that reverses a list", "code_generation"),
        ("Please review this code for me", "code_validation"),
        ("What is 12 + 7?", "math_statistics"),
        ("How many apples are left?", "math_statistics"),
        ("Plot a histogram of column b in data.csv", "data_analysis"),
        ("Which gene causes it?", "biomedical"),
        ("Summarise the text", "documentation"),
        ("Good morning", ANY_TASK),
        ("", ANY_TASK),
    ],
)
def test_the_words_of_the_last_question_speak_for_a_task(text, task):
    assert predict_task(asked(text), TASKS) == task


def test_only_a_task_that_the_profile_knows_is_predicted():
    assert predict_task(asked("Plot a histogram of the gene"), {"biomedical"}) == "biomedical"
    assert predict_task(asked("Plot a histogram of the gene"), set()) == ANY_TASK


def test_the_last_question_counts_and_not_what_the_system_or_the_model_has_said():
    talk = [*asked("Plot a histogram"), {"role": "assistant", "content": "a gene"}, *asked("Thanks!")]
    assert predict_task([{"role": "system", "content": "You write Python code"}, *talk], TASKS) == ANY_TASK


@given(st.lists(st.dictionaries(st.sampled_from(["role", "content"]), st.just("user") | values), max_size=4))
def test_any_conversation_has_a_task(messages):
    assert predict_task(messages, TASKS) in TASKS | {ANY_TASK}


@given(
    model=st.none() | st.text(max_size=20) | st.text(max_size=9).map(lambda text: f"task:{text}"),
    headers=st.dictionaries(st.sampled_from([TASK_HEADER, BUDGET_HEADER, TIMEOUT_HEADER]), st.text(max_size=9)),
    metadata=st.dictionaries(st.sampled_from(["task_type", "x"]), values),
)
def test_any_address_is_understood_or_refused_by_name(model, headers, metadata):
    def work():
        name = None if model is None else forms.model_name("model", model)
        return address(name, headers, forms.metadata("metadata", metadata))

    found, failure = attempt(work)
    if failure is not None:
        assert (failure.status, bool(failure.param)) == (400, True)
        return
    assert set(found) <= {"model", "task_type", "budget", "timeout"}
    assert all(value for value in found.values())
    assert all(math.isfinite(found[name]) for name in ("budget", "timeout") if name in found)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1e400", "much", ""])
@pytest.mark.parametrize("header", [BUDGET_HEADER, TIMEOUT_HEADER])
def test_a_budget_or_time_that_is_no_positive_number_is_refused(header, text):
    with pytest.raises(HttpFailure) as caught:
        address(None, {header: text}, {})
    assert caught.value.param == header


def test_a_task_in_the_address_stands_above_the_header_and_that_above_the_metadata():
    headers, metadata = {TASK_HEADER: "b"}, {"task_type": "c"}
    assert address("task:a", headers, metadata)["task_type"] == "a"
    assert address("auto", headers, metadata)["task_type"] == "b"
    assert address("auto", {}, metadata)["task_type"] == "c"


# ---------------------------------------------------------------------------------------------------------------- checks

ALL = {
    "text": field_checks.text,
    "flag": field_checks.flag,
    "mapping": field_checks.mapping,
    "items": field_checks.items,
    "stop": field_checks.stop,
    "whole": field_checks.whole(least=0, most=9),
    "number": field_checks.number(0.0, 2.0),
}


@pytest.mark.parametrize("name", ALL)
@given(value=values)
def test_a_check_gives_the_value_or_names_the_parameter(name, value):
    found, failure = attempt(lambda: ALL[name]("p", value))
    if failure is not None:
        assert (failure.status, failure.param) == (400, "p")
        assert failure.message.startswith("p: must be")
        return
    assert found == value or found == tuple(value) or (found is None and value == [])


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("text", ["", "a"], [1, None, b"a", []]),
        ("flag", [True, False], [0, 1, "true"]),
        ("mapping", [{}, {"a": 1}], [[], "a"]),
        ("items", [[], [1]], [{}, "ab", ()]),
        ("stop", ["a", ["a", "b"]], [1, [1], {"a": 1}]),
        ("whole", [0, 9, 5.0], [-1, 10, 1.5, True, "1", float("inf"), float("nan"), 10**400]),
        ("number", [0, 2, 0.5], [-0.1, 2.1, True, "1", float("inf"), float("nan"), 10**400]),
    ],
)
def test_limits_belong_to_what_is_allowed_and_kinds_are_not_guessed(name, good, bad):
    for value in good:
        ALL[name]("p", value)
    for value in bad:
        with pytest.raises(HttpFailure):
            ALL[name]("p", value)


def test_a_whole_number_stays_one():
    """A model's server may not take 5.0 for 5."""
    assert repr(ALL["whole"]("p", 5.0)) == "5"
