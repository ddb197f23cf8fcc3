"""JSON Schema for tests: whether a value fits, values that do, and values that differ from such in one part.

It knows the keywords that the service's forms use, and fails at any other.
"""

from __future__ import annotations

import functools
import math
import re
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

ANNOTATIONS = {"description", "examples"}
TYPES = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "integer": lambda value: TYPES["number"](value) and value == value // 1,
}
KEYWORDS = {
    "type": lambda wanted, value, _: any(TYPES[one](value) for one in ([wanted] if isinstance(wanted, str) else wanted)),
    "enum": lambda wanted, value, _: any(same(one, value) for one in wanted),
    "const": lambda wanted, value, _: same(wanted, value),
    "anyOf": lambda wanted, value, _: any(fits(one, value) for one in wanted),
    "not": lambda wanted, value, _: not fits(wanted, value),
    "minimum": lambda wanted, value, _: not TYPES["number"](value) or value >= wanted,
    "maximum": lambda wanted, value, _: not TYPES["number"](value) or value <= wanted,
    "minLength": lambda wanted, value, _: not isinstance(value, str) or len(value) >= wanted,
    "maxLength": lambda wanted, value, _: not isinstance(value, str) or len(value) <= wanted,
    "pattern": lambda wanted, value, _: not isinstance(value, str) or pattern(wanted).search(value) is not None,
    "minItems": lambda wanted, value, _: not isinstance(value, list) or len(value) >= wanted,
    "maxItems": lambda wanted, value, _: not isinstance(value, list) or len(value) <= wanted,
    "items": lambda wanted, value, _: not isinstance(value, list) or all(fits(wanted, one) for one in value),
    "required": lambda wanted, value, _: not isinstance(value, dict) or all(name in value for name in wanted),
    "properties": lambda wanted, value, _: (
        not isinstance(value, dict) or all(fits(inner, value[name]) for name, inner in wanted.items() if name in value)
    ),
    "additionalProperties": lambda wanted, value, schema: (
        not isinstance(value, dict)
        or all(wanted is not False and fits(wanted, value[name]) for name in value.keys() - schema["properties"].keys())
    ),
}


def fits(schema: dict[str, Any], value: Any) -> bool:
    """Whether a value fits a schema."""
    return all(KEYWORDS[name](wanted, value, schema) for name, wanted in schema.items() if name not in ANNOTATIONS)


def same(one: Any, other: Any) -> bool:
    """Equality of JSON: 1 is 1.0, and not true."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and one == other


@functools.cache
def pattern(text: str) -> re.Pattern[str]:
    """A pattern of ECMAScript's as Python's, which lacks classes of characters, and whose ``$`` allows a line feed."""
    found = re.sub(r"\\p\{(\w)\}", lambda match: characters(match[1]), text)
    return re.compile(found.removesuffix("$") + (r"\Z" if found.endswith("$") else ""))


@functools.cache
def characters(category: str) -> str:
    """All characters of a category, as ranges within brackets."""
    ranges: list[list[int]] = []
    for code in range(sys.maxunicode + 1):
        if unicodedata.category(chr(code))[0] == category:
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in ranges)


# -------------------------------------------------------------------------------------------------------------- values

ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 5.0, 1.5, -0.1, 1.01, 2.5, 101, 129, 10**6 + 1, 2**31, 2**63, -(2**63), 10**400),
    *("", "a", "a\nb", "a\n", "é", "\u2028", "x" * 201, "x" * 513, "task:", " task: ", "text", "function", "tool"),
    *([], {}, [1], ["a"], ["a", "b"], {"type": "text"}, {"type": []}, {"task_type": 1}),
]
MANY = ["a"] * 2049


def odd() -> st.SearchStrategy[Any]:
    """One of them, by its place: Hypothesis would print them all."""
    return st.sampled_from(range(len(ODD))).map(ODD.__getitem__)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
ANY = st.recursive(
    LEAVES | odd(),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["type", "text"]) | st.text(), inner, max_size=2)
    ),
    max_leaves=4,
)
SHOWN = st.text(st.characters(categories=["L", "M", "N", "P", "S"]) | st.just(" "), max_size=8)


def values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that fit a schema."""
    if "enum" in schema:
        found = st.sampled_from(schema["enum"])
    elif "type" in schema:
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        found = st.one_of(*(MAKERS[kind](schema) for kind in kinds))
    elif "anyOf" in schema:
        return st.one_of(*map(values, schema["anyOf"]))
    else:
        return ANY
    return found.filter(lambda value: fits(schema, value))


def _integers(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    whole = st.integers(schema["minimum"], schema["maximum"])
    return whole | whole.filter(lambda value: abs(value) < 2**53).map(float)


def _objects(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    known = {name: values(inner) for name, inner in schema.get("properties", {}).items()}
    needed = {name: known.pop(name) for name in schema.get("required", ())}
    more = schema.get("additionalProperties", {})
    return st.fixed_dictionaries(needed, optional=known | ({} if more is False else {"x_new": values(more)}))


MAKERS = {
    "null": lambda schema: st.none(),
    "boolean": lambda schema: st.booleans(),
    "string": lambda schema: SHOWN if "pattern" in schema else st.text(max_size=8),
    "array": lambda schema: st.lists(
        values(schema.get("items", {})), min_size=schema.get("minItems", 0), max_size=min(schema.get("maxItems", 3), 3)
    ),
    "object": _objects,
    "integer": _integers,
    "number": lambda schema: (
        st.floats(schema["minimum"], schema["maximum"])
        | st.integers(math.ceil(schema["minimum"]), math.floor(schema["maximum"]))
    ),
}


def samples(schema: dict[str, Any]) -> list[Any]:
    """A few values that fit a schema: its limits, each alternative, each property."""
    if "enum" in schema:
        return list(schema["enum"])
    if "anyOf" in schema and "type" not in schema:
        return [value for one in schema["anyOf"] for value in samples(one)]
    kinds = schema.get("type", ["null", "number", "object"])
    found = [value for kind in ([kinds] if isinstance(kinds, str) else kinds) for value in SAMPLES[kind](schema)]
    return [value for value in found if fits(schema, value)]


def _sample_objects(schema: dict[str, Any]) -> list[dict[str, Any]]:
    known = {name: samples(inner) for name, inner in schema.get("properties", {}).items()}
    least = {name: known[name][0] for name in schema.get("required", ())}
    return [least, *({**least, name: value} for name, found in known.items() for value in found)]


SAMPLES = {
    "null": lambda schema: [None],
    "boolean": lambda schema: [True, False],
    "string": lambda schema: ["", "a", "é", "x" * schema.get("maxLength", 9)],
    "array": lambda schema: [[], *([one] for one in samples(schema.get("items", {})))],
    "object": _sample_objects,
    "integer": lambda schema: [schema["minimum"], schema["maximum"], float(max(schema["minimum"], 1))],
    "number": lambda schema: [schema.get("minimum", 0), schema.get("maximum", 0.5)],
}


def variants(value: Any) -> Iterator[Any]:
    """The value with one part of it changed, for each part: something odd in its place, one more, or one less."""
    yield from ODD
    if isinstance(value, dict):
        yield {**value, "surprise": 1}
        yield {**value, "surprise": None}
        for name, inner in value.items():
            yield {one: rest for one, rest in value.items() if one != name}
            yield from ({**value, name: other} for other in variants(inner))
    elif isinstance(value, list):
        yield from ([*value, one] for one in ODD)
        for place, inner in enumerate(value):
            yield from ([*value[:place], other, *value[place + 1 :]] for other in variants(inner))
