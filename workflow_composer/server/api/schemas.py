"""Short constructors of JSON Schema, for field checks and the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Schema = dict[str, Any]

ANYTHING: Schema = {}
TEXT: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
BOOLEAN: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}
TOKEN_LIST: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}, "minItems": 1}
NULL: Schema = {"type": "null"}
PRINTABLE = r"[\p{L}\p{M}\p{N}\p{P}\p{S} ]"
"""Regular expression of one character for which `str.isprintable` holds."""


def record(properties: Mapping[str, Schema], *required: str, closed: bool = False) -> Schema:
    """Return the schema of an object. ``closed``: other properties may only be null."""
    more: Schema = {"additionalProperties": NULL} if closed else {}
    return {**OBJECT, "properties": dict(properties), "required": list(required), **more}


def listed(items: Schema, *, least: int = 0, most: int | None = None) -> Schema:
    """Return the schema of a list of ``least`` to ``most`` items."""
    limits = {**({"minItems": least} if least else {}), **({} if most is None else {"maxItems": most})}
    return {"type": "array", "items": items, **limits}


def either(*schemas: Schema) -> Schema:
    """Return the schema of a union."""
    return {"anyOf": list(schemas)}


def constant(*values: Any) -> Schema:
    """Return the schema of an enumeration."""
    return {"enum": list(values)}


def nullable(schema: Schema) -> Schema:
    """Return a nullable schema."""
    if None in schema.get("enum", ()) or schema.get("type") == "null":
        return schema
    if "enum" in schema:
        return {**schema, "enum": [*schema["enum"], None]}
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], NULL]}
    return {**schema, "type": [schema["type"], "null"]} if "type" in schema else schema
