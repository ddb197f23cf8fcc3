"""JSON Schema in few words, for checks that say what they take and for the description of the API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Schema = dict[str, Any]

ANYTHING: Schema = {}
TEXT: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}
NULL: Schema = {"type": "null"}
PRINTABLE = r"[\p{L}\p{M}\p{N}\p{P}\p{S} ]"
"""A pattern: one character of those for which `str.isprintable` holds."""


def record(properties: Mapping[str, Schema], *required: str, closed: bool = False) -> Schema:
    """An object. ``closed``: no other property is known, and only a null is let pass."""
    more: Schema = {"additionalProperties": NULL} if closed else {}
    return {**OBJECT, "properties": dict(properties), "required": list(required), **more}


def listed(items: Schema, *, least: int = 0, most: int | None = None) -> Schema:
    """A list of so many items."""
    limits = {**({"minItems": least} if least else {}), **({} if most is None else {"maxItems": most})}
    return {"type": "array", "items": items, **limits}


def either(*schemas: Schema) -> Schema:
    """What fits one of them."""
    return {"anyOf": list(schemas)}


def constant(*values: Any) -> Schema:
    """One of these values."""
    return {"enum": list(values)}


def nullable(schema: Schema) -> Schema:
    """The same, or null."""
    if None in schema.get("enum", ()) or schema.get("type") == "null":
        return schema
    if "enum" in schema:
        return {**schema, "enum": [*schema["enum"], None]}
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], NULL]}
    return {**schema, "type": [schema["type"], "null"]} if "type" in schema else schema
