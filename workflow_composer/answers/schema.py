"""A JSON Schema: what a value violates, and which writings of a value can be mended without loss."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from workflow_composer.answers.choices import CASE, NUMBER, Choices, number_of
from workflow_composer.answers.json_text import Real, Whole, plain
from workflow_composer.errors import ConfigError

TRUTH, TEXT, LISTED, NAMES, EXTRA, ABSENT = (
    "truth value as text",
    "number for a text",
    "bare list",
    "names of fields",
    "extra fields",
    "missing field that may be none",
)
DROP = "x-drop-extra"
"""Marks an object of a form, whose further fields are dropped; a schema of the user's own is taken as it is."""
NONE_WORDS = frozenset({"none", "null", "n/a", ""})
_TRUE, _FALSE = frozenset({"true", "yes"}), frozenset({"false", "no"})
_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
    "integer": int,
    "number": (int, float),
}
_LONGEST_PROBLEM = 500
_PLACES = 4


class JsonSchema:
    """Checks and mends values. Raises `ConfigError` for an invalid schema, or one that refers to another document."""

    def __init__(self, schema: Mapping[str, Any] | bool) -> None:
        self.schema = schema
        for reference in _references(schema):
            if not reference.startswith("#"):
                raise ConfigError(
                    f"the JSON Schema refers to {reference!r}, outside itself", hint="write that part under $defs"
                )
            if reference.startswith("#/") and self.resolved({"$ref": reference}) == {"$ref": reference}:
                raise ConfigError(f"the JSON Schema refers to {reference!r}, which it does not have")
        _ = self._validator

    @cached_property
    def _validator(self) -> Any:
        # Late: the library takes a seventh of a second to import, and only requests with a form need it.
        from jsonschema import Draft202012Validator, SchemaError
        from jsonschema.validators import validator_for
        from referencing import Registry

        kind = validator_for(self.schema, default=Draft202012Validator)
        try:
            kind.check_schema(self.schema)  # type: ignore[arg-type]  # a schema may be true or false
        except SchemaError as error:
            place = "/".join(map(str, error.absolute_path)) or "its top"
            raise ConfigError(f"the JSON Schema is invalid at {place}: {error.message[:_LONGEST_PROBLEM]}") from None
        # An empty registry: nothing is ever fetched.
        return kind(self.schema, registry=Registry())

    def problem(self, value: Any) -> str | None:
        """Return what the value violates, with places such as ``variants[0].gene``; None if nothing."""
        try:
            if _fits(value, self.schema):
                return None
            errors = sorted(self._validator.iter_errors(value), key=lambda error: len(error.absolute_path))
        except RecursionError:
            return "the value is nested too deeply"
        except Exception as error:  # the library raises its own error for a reference that leads nowhere
            raise ConfigError(f"the JSON Schema cannot be applied: {error}") from error
        if not errors:
            return None
        said = dict.fromkeys(_said(_telling(error)) for error in errors[:_PLACES])
        more = f"; and {len(errors) - _PLACES} more" if len(errors) > _PLACES else ""
        return "; ".join(said) + more

    def mended(self, value: Any) -> tuple[Any, tuple[str, ...]]:
        """Return the value with what can be mended without loss, and what was mended."""
        notes: dict[str, None] = {}
        try:
            return self._mend(value, self.schema, notes), tuple(notes)
        except RecursionError:
            return value, ()

    def _mend(self, value: Any, schema: Any, notes: dict[str, None]) -> Any:
        schema = self.resolved(schema)
        if not isinstance(schema, Mapping):
            return value
        for part in schema.get("allOf") or ():
            value = self._mend(value, part, notes)
        options = schema.get("anyOf") or schema.get("oneOf")
        if options:
            return self._mend_option(value, [self.resolved(option) for option in options], notes)
        if "enum" in schema or "const" in schema:
            return _chosen(value, schema.get("enum") or [schema["const"]], notes)
        kinds = _kinds(schema)
        if kinds and not _is_a(value, kinds):
            value = _converted(value, kinds, schema, notes)
        if isinstance(value, dict) and (not kinds or "object" in kinds):
            return self._mend_object(value, schema, notes)
        if isinstance(value, list) and (not kinds or "array" in kinds):
            return self._mend_array(value, schema, notes)
        return value

    def _mend_option(self, value: Any, options: list[Any], notes: dict[str, None]) -> Any:
        """Mend to the first option whose type the value has, else to the first that a mended value has."""
        for option in options:
            if not isinstance(option, Mapping):
                continue
            fits = value in option["enum"] if "enum" in option else _is_a(value, _kinds(option))
            if fits and not (_is_nothing(value) and any(_kinds(one) == ("null",) for one in options)):
                return self._mend(value, option, notes)
        for option in sorted(options, key=lambda one: _kinds(one) != ("null",)):
            own: dict[str, None] = {}
            new = self._mend(value, option, own)
            if own and (new in option["enum"] if "enum" in option else _is_a(new, _kinds(option))):
                notes.update(own)
                return new
        return value

    def _mend_object(self, value: dict[str, Any], schema: Mapping[str, Any], notes: dict[str, None]) -> dict[str, Any]:
        parts = schema.get("properties") or {}
        made = _renamed(value, parts, notes)
        if schema.get(DROP):
            if made.keys() - parts.keys():
                notes[EXTRA] = None
            made = {name: made[name] for name in parts if name in made}
            for name, part in parts.items():
                if name not in made and _may_be_none(part):
                    made[name], notes[ABSENT] = None, None
        rest = schema.get("additionalProperties")
        return {name: self._mend(item, parts.get(name, rest), notes) for name, item in made.items()}

    def _mend_array(self, value: list[Any], schema: Mapping[str, Any], notes: dict[str, None]) -> list[Any]:
        first, rest = schema.get("prefixItems") or [], schema.get("items")
        return [self._mend(item, first[at] if at < len(first) else rest, notes) for at, item in enumerate(value)]

    def resolved(self, schema: Any) -> Any:
        """Follow the schema's references to its own parts."""
        seen: set[str] = set()
        while isinstance(schema, Mapping) and isinstance(schema.get("$ref"), str) and schema["$ref"] not in seen:
            seen.add(schema["$ref"])
            found: Any = self.schema
            for step in schema["$ref"].lstrip("#").strip("/").split("/"):
                name = step.replace("~1", "/").replace("~0", "~")
                found = found.get(name) if isinstance(found, Mapping) and name else found
            if found is None:
                return schema
            schema = found
        return schema


_USUAL = frozenset({"type", "properties", "required", "items", "additionalProperties", "enum", "title", "description", DROP})
_PLAINLY: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
    "integer": (int, Whole),
    "number": (int, float, Whole, Real),
}


def _fits(value: Any, schema: Any) -> bool:
    """Whether a value certainly conforms to a schema of the usual keywords alone: most do, and the library takes long."""
    if type(schema) is not dict or not schema.keys() <= _USUAL:
        return False
    kind = schema.get("type")
    if kind == "object":
        parts, rest = schema.get("properties") or {}, schema.get("additionalProperties", True)
        return (
            type(value) is dict
            and "enum" not in schema
            and all(name in value for name in schema.get("required") or ())
            and all(_fits(item, parts[name]) if name in parts else rest is True for name, item in value.items())
        )
    if kind == "array":
        items = schema.get("items", True)
        return type(value) is list and "enum" not in schema and (items is True or all(_fits(one, items) for one in value))
    if "enum" in schema:
        return type(value) is str and value in schema["enum"] and kind in (None, "string")
    return type(kind) is str and type(value) in _PLAINLY.get(kind, ())


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, Mapping):
        for name, part in schema.items():
            if name in ("$ref", "$dynamicRef") and isinstance(part, str):
                yield part
            elif name not in ("enum", "const", "default", "examples"):
                yield from _references(part)
    elif isinstance(schema, (list, tuple)):
        for part in schema:
            yield from _references(part)


def _telling(error: Any) -> Any:
    """Return the error of the option that was meant, for a value that fits no option: the deepest, and not null."""
    while error.context:
        error = max(error.context, key=lambda one: (len(one.absolute_path), one.schema.get("type") != "null"))
    return error


def _said(error: Any) -> str:
    place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.absolute_path).lstrip(".")
    message = error.message if len(error.message) <= _LONGEST_PROBLEM else f"{error.message[:_LONGEST_PROBLEM]} …"
    return f"{place}: {message}" if place else message


def _kinds(schema: Any) -> tuple[str, ...]:
    found = schema.get("type") if isinstance(schema, Mapping) else None
    return (found,) if isinstance(found, str) else tuple(found or ())


def _is_a(value: Any, kinds: tuple[str, ...]) -> bool:
    if isinstance(value, bool):
        return "boolean" in kinds
    if isinstance(value, float) and value.is_integer() and "integer" in kinds:
        return True
    return any(isinstance(value, _TYPES.get(kind, object)) for kind in kinds)


def _is_nothing(value: Any) -> bool:
    return isinstance(value, str) and value.strip().lower() in NONE_WORDS


def _may_be_none(schema: Any) -> bool:
    return isinstance(schema, Mapping) and any(_kinds(one) == ("null",) for one in schema.get("anyOf") or ())


def _chosen(value: Any, allowed: list[Any], notes: dict[str, None]) -> Any:
    """Return the allowed value that this is, in another case or punctuation, or as a number or text."""
    if value in allowed and not isinstance(value, bool):
        return value
    written = value if isinstance(value, str) else getattr(value, "written", None) or json.dumps(plain(value))
    word = Choices({one if isinstance(one, str) else json.dumps(one): one for one in allowed}).same(written)
    if word is None:
        return value
    notes[CASE] = None
    return next(one for one in allowed if (one if isinstance(one, str) else json.dumps(one)) == word)


def _converted(value: Any, kinds: tuple[str, ...], schema: Mapping[str, Any], notes: dict[str, None]) -> Any:
    """Return the value in a wanted type, if that loses nothing."""
    if isinstance(value, str):
        return _from_text(value, kinds, notes)
    if "string" in kinds and isinstance(value, (Whole, Real)):
        notes[TEXT] = None
        return value.written
    if "array" in kinds and isinstance(value, dict) and len(value) == 1:
        (only,) = value.values()
        if isinstance(only, list):
            notes[LISTED] = None
            return only
    if "object" in kinds and isinstance(value, list):
        return _object_around(value, schema, notes)
    return value


def _from_text(value: str, kinds: tuple[str, ...], notes: dict[str, None]) -> Any:
    short = value.strip().lower()
    if "number" in kinds or "integer" in kinds:
        number = number_of(value)
        if number is not None and ("number" in kinds or float(number).is_integer()):
            notes[NUMBER] = None
            return int(number) if "number" not in kinds else number
    if "boolean" in kinds and short.rstrip(".!") in _TRUE | _FALSE:
        notes[TRUTH] = None
        return short.rstrip(".!") in _TRUE
    if "null" in kinds and short in NONE_WORDS:
        notes[CASE] = None
        return None
    if ("object" in kinds or "array" in kinds) and short[:1] in ("{", "["):
        try:
            inner = json.loads(value)
        except (ValueError, RecursionError):
            return value
        notes["JSON as text"] = None
        return inner
    return value


def _object_around(value: list[Any], schema: Mapping[str, Any], notes: dict[str, None]) -> Any:
    """Return the object that a bare list means: its only item, or the object whose only field is a list."""
    parts = schema.get("properties") or {}
    if len(value) == 1 and isinstance(value[0], dict):
        notes[LISTED] = None
        return value[0]
    lists = [name for name, part in parts.items() if "array" in _kinds(part)]
    if len(lists) == 1 and set(schema.get("required") or ()) <= set(lists):
        notes[LISTED] = None
        return {lists[0]: value}
    return value


def _renamed(value: Mapping[str, Any], parts: Mapping[str, Any], notes: dict[str, None]) -> dict[str, Any]:
    """Return the object with its fields' names as in the schema where only their writing differs ("Company Name")."""
    missing = [name for name in parts if name not in value]
    if not missing:
        return dict(value)
    writings: dict[str, list[str]] = {}
    for name in value:
        if name not in parts:
            writings.setdefault(_plain_name(name), []).append(name)
    names = {}
    for name in missing:
        found = writings.get(_plain_name(name), [])
        if len(found) == 1:
            names[found[0]] = name
            notes[NAMES] = None
    return {names.get(name, name): item for name, item in value.items()}


def _plain_name(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()
