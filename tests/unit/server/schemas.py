"""JSON Schema for tests: whether a value fits, values that do, and values that almost do.

It knows the keywords that the service's forms use, and fails at any other.
"""

from __future__ import annotations

import copy
import functools
import math
import re
import sys
import unicodedata
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

ODD = [
    0,
    -1,
    5.0,
    1.5,
    2.5,
    101,
    129,
    10**6 + 1,
    2**31,
    2**63,
    10**400,
    "a\nb",
    "é",
    "\u2028",
    "x" * 201,
    "x" * 513,
    "task:",
]
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
ANY = st.recursive(
    LEAVES | st.sampled_from(ODD),
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


@st.composite
def bent(draw: st.DrawFn, schema: dict[str, Any]) -> Any:
    """A value that fits, but for one part of it, which is something else or missing."""
    value = copy.deepcopy(draw(values(schema)))  # an enum's own values are not to be changed
    where = value
    while isinstance(where, (dict, list)) and where:
        place = draw(st.sampled_from(sorted(where) if isinstance(where, dict) else range(len(where))))
        if not isinstance(where[place], (dict, list)) or not where[place] or draw(st.booleans()):
            if isinstance(where, dict) and draw(st.booleans()):
                where.pop(place)
                where |= draw(st.just({}) | st.dictionaries(st.just("surprise"), ANY))
            else:
                where[place] = draw(ANY)
            return value
        where = where[place]
    return draw(ANY)
