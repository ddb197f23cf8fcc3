"""What is known of a value before there is one: whether it is a text, a number, a list, which fields it has.

A shape is a JSON Schema as answer forms have it, and looks only as far as the form promises: a field that a form does not
name is a fault in the file, and one of a program without a form is not known before the program has run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from workflow_composer.answers.form import OutputForm
from workflow_composer.types import EMPTY

_KINDS = {"string": "text", "number": "number", "integer": "number", "boolean": "truth", "array": "list", "object": "object"}


@dataclass(frozen=True, slots=True)
class Shape:
    """A JSON Schema within ``root``, to which its references are.

    ``role``: the rows of a reduce, one of them, a list that a step with inner steps made, or nothing of these.
    """

    schema: Any = field(default_factory=lambda: EMPTY)
    root: Any = None
    role: Literal["rows", "row", "fan", ""] = ""

    @property
    def kind(self) -> str:
        """``text``, ``number``, ``truth``, ``list``, ``object``, or empty where it is not known."""
        schema = self._plain
        if "enum" in schema:
            return "text" if all(isinstance(one, str) for one in schema["enum"]) else ""
        kind = schema.get("type")
        if isinstance(kind, list):
            kinds = [one for one in kind if one != "null"]
            kind = kinds[0] if len(kinds) == 1 else None
        if kind is None and "properties" in schema:
            kind = "object"
        return _KINDS.get(kind, "") if isinstance(kind, str) else ""

    @property
    def choices(self) -> tuple[Any, ...]:
        """The only values that it may have; empty where they are not listed."""
        return tuple(self._plain.get("enum") or ())

    @property
    def may_be_null(self) -> bool:
        """Whether the form allows null."""
        schema = self._resolved(self.schema)
        options = schema.get("anyOf") or schema.get("oneOf") or ()
        kind = schema.get("type")
        return (
            kind == "null"
            or (isinstance(kind, list) and "null" in kind)
            or any(self._within(one).may_be_null for one in options)
        )

    @property
    def fields(self) -> Mapping[str, Shape]:
        """The fields that are known."""
        return {name: self._within(part) for name, part in (self._plain.get("properties") or {}).items()}

    @property
    def closed(self) -> bool:
        """Whether it has no other fields than these."""
        schema = self._plain
        if schema.get("patternProperties") or schema.get("allOf"):
            return False
        rest = schema.get("additionalProperties")
        return rest is False or (rest is None and bool(schema.get("properties")))

    @property
    def item(self) -> Shape:
        """What a list holds, or what an object without named fields holds under each name."""
        schema = self._plain
        part = schema.get("items") if self.kind == "list" else schema.get("additionalProperties")
        return self._within(part) if isinstance(part, Mapping) else UNKNOWN

    def _within(self, schema: Any) -> Shape:
        return replace(self, schema=schema, role="")

    @property
    def _plain(self) -> Mapping[str, Any]:
        """The schema without its references, and without the option of being null."""
        schema = self._resolved(self.schema)
        for name in ("anyOf", "oneOf"):
            options = [self._resolved(one) for one in schema.get(name) or ()]
            real = [one for one in options if one.get("type") != "null"]
            if options and len(real) == 1:
                return Shape(real[0], self.root)._plain
        return schema

    def _resolved(self, schema: Any) -> Mapping[str, Any]:
        for _ in range(16):
            if not isinstance(schema, Mapping):
                return EMPTY
            reference = schema.get("$ref")
            if not isinstance(reference, str) or not reference.startswith("#/"):
                return schema
            part: Any = self.root
            for name in reference[2:].split("/"):
                part = part.get(name) if isinstance(part, Mapping) else None
            schema = part
        return EMPTY


UNKNOWN = Shape()
TEXT = Shape({"type": "string"})
NUMBER = Shape({"type": "number"})
TRUTH = Shape({"type": "boolean"})


def shape_of_form(form: OutputForm) -> Shape:
    """Return the shape of a form's values."""
    schema = form.json_schema()
    return Shape(schema, schema)


def list_of(shape: Shape) -> Shape:
    """Return the shape of a list of such values."""
    return Shape({"type": "array", "items": shape.schema}, shape.root)


def object_of(fields: Mapping[str, Shape], role: Literal["rows", "row", "fan", ""] = "") -> Shape:
    """Return the shape of an object with these fields, and no others."""
    properties = {name: _inlined(shape) for name, shape in fields.items()}
    return Shape({"type": "object", "properties": properties, "additionalProperties": False}, None, role)


def _inlined(shape: Shape) -> Any:
    """Return a schema for use in another root; where it refers to its own parts, nothing is known of it."""
    return EMPTY if "$ref" in str(shape.schema) else shape.schema
