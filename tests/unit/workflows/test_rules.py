"""The rules of workflows, each held against whatever values, tables and graphs a generator makes."""

import json

import pytest
from hypothesis import given, strategies

from workflow_composer.workflows.definition.readings import read_expression, read_template, read_value
from workflow_composer.workflows.running.results import Scope, ValueFault

SCALARS = (
    strategies.none()
    | strategies.booleans()
    | strategies.integers()
    | strategies.floats(allow_nan=False, allow_infinity=False)
)
TEXTS = strategies.text() | strategies.sampled_from(
    ["{{ t }}", "{% if %}", "{# #}", "</s>", "\\n", "\r\n", "é", "p < 0.05 & n"]
)
KEYS = TEXTS | strategies.sampled_from(["items", "keys", "values", "get", "__class__", "_state"])
VALUES = strategies.recursive(
    SCALARS | TEXTS,
    lambda inner: strategies.lists(inner, max_size=4) | strategies.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
WHOLE = read_value("{{ t }}")


def has_gaps(value):
    """Whether a list in it has places without a value, as those of items that are not done: these must not be printed."""
    if isinstance(value, dict):
        return any(map(has_gaps, value.values()))
    return isinstance(value, list) and (None in value or any(map(has_gaps, value)))


PRINTED = VALUES.filter(lambda value: value is not None and not has_gaps(value))


def template(text, value):
    return read_template(text).evaluate(Scope({"t": value}))


class TestInsertedOnce:
    """R1 and R2."""

    @given(TEXTS)
    def test_a_text_stands_as_it_is(self, text):
        assert template("<{{ t }}|{{ t }}>", text) == f"<{text}|{text}>"

    @given(PRINTED.filter(lambda value: not isinstance(value, str)))
    def test_anything_else_stands_as_json_in_utf8(self, value):
        found = template("<{{ t }}>", value)[1:-1]
        assert json.loads(found) == value
        assert found == json.dumps(value, ensure_ascii=False)

    def test_nothing_is_not_inserted(self):
        with pytest.raises(ValueFault, match="t is empty"):
            template("<{{ t }}>", None)
        assert template("<{{ t | default('none') }}>", None) == "<none>"

    @given(
        strategies.dictionaries(KEYS.filter(str.isidentifier).filter(lambda key: key not in ("_state",)), TEXTS, max_size=4),
        KEYS,
    )
    def test_a_field_is_a_field_or_is_missing(self, value, key):
        """Never a method, nor anything else of the language beneath."""
        names = Scope({"t": value, "key": key})
        reading = read_value("{{ t[key] }}")
        if key in value:
            assert reading.evaluate(names) == value[key]
        else:
            with pytest.raises(ValueFault):
                reading.evaluate(names)


class TestTypes:
    """R3."""

    @given(VALUES)
    def test_one_expression_keeps_the_type(self, value):
        found = WHOLE.evaluate(Scope({"t": value}))
        assert type(found) is type(value)
        assert found == value

    @given(PRINTED)
    def test_anything_more_makes_a_text(self, value):
        assert isinstance(read_value("n={{ t }}").evaluate(Scope({"t": value})), str)


class TestConditions:
    """R7."""

    @given(VALUES)
    def test_only_true_and_false_are_conditions(self, value):
        names = Scope({"t": value})
        for text, expected in (("t", value), ("not t", value is not True), ("t and true", value), ("false or t", value)):
            reading = read_expression(text)
            if isinstance(value, bool):
                assert reading.holds(names) is expected
            else:
                with pytest.raises(ValueFault):
                    reading.holds(names)

    @given(VALUES, VALUES)
    def test_values_of_different_types_have_no_order(self, one, other):
        """Numbers are compared with numbers and texts with texts."""
        names = Scope({"a": one, "b": other})
        for sign in ("<", "<=", ">", ">="):
            reading = read_expression(f"a {sign} b")
            numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (one, other))
            texts = isinstance(one, str) and isinstance(other, str)
            if numbers or texts:
                assert isinstance(reading.holds(names), bool)
            else:
                with pytest.raises(ValueFault):
                    reading.holds(names)

    @given(VALUES)
    def test_given_and_default_take_what_is_missing(self, value):
        names = Scope({"t": value})
        assert read_expression("t is given").holds(names) is (value is not None)
        assert read_expression("t | default('d')").evaluate(names) == ("d" if value is None else value)
