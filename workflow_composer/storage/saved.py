"""Converts dataclasses to JSON and back; every field is validated when read."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")


def saved(value: DataclassInstance) -> str:
    """Return a dataclass as JSON text with a final line end, for `read_saved`."""
    return json.dumps(asdict(value), indent=1) + "\n"


def read_saved(kind: type[T], text: str | bytes) -> T:
    """Parse a dataclass from JSON text. Raises ValueError with the faulty field and the reason.

    Values must have the types of the fields (lists for tuples and integers for floats are accepted). Unknown fields are
    ignored, so that an older version can read files of a newer one.
    """
    try:
        found: T = _ADAPTERS[kind].validate_json(_encodable(text), strict=True)
    except ValidationError as error:
        raise ValueError(fault_in(error)) from None
    return found


def value_of(kind: type[T], data: Any) -> T:
    """Like `read_saved`, from the result of `json.loads`. Raises ValueError."""
    return read_saved(kind, json.dumps(data))


def _encodable(text: str | bytes) -> str | bytes:
    """Replace each escaped lone surrogate, which UTF-8 cannot encode, by a question mark."""
    if not (b"\\ud" in text.lower() if isinstance(text, bytes) else "\\ud" in text.lower()):
        return text
    try:
        return json.dumps(json.loads(text), ensure_ascii=False).encode("utf-8", "replace")
    except (ValueError, RecursionError):
        return text


def fault_in(error: ValidationError) -> str:
    """Return the first error and its field, without any of the data."""
    fault = error.errors(include_input=False, include_url=False, include_context=False)[0]
    place = ".".join(map(str, fault["loc"]))
    said = str(fault["msg"])
    return f"{place}: {said}" if place else said


class _Adapters(dict[type[Any], TypeAdapter[Any]]):
    """One adapter per type, made on first use."""

    def __missing__(self, kind: type[Any]) -> TypeAdapter[Any]:
        made = self[kind] = TypeAdapter(kind)
        return made


_ADAPTERS = _Adapters()
