"""What was saved as JSON, read back into dataclasses: every field is checked, since a file is a claim."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")


def saved(value: DataclassInstance) -> str:
    """A dataclass as JSON text that `read_saved` reads, with a line end."""
    return json.dumps(asdict(value), indent=1) + "\n"


def read_saved(kind: type[T], text: str | bytes) -> T:
    """The value of a dataclass in JSON text. Raises ValueError, which says what is wrong with which field.

    Values must have the fields' own types (lists stand for tuples, whole numbers for floats). Fields that are not known are
    passed over, so that an older version reads what a newer one wrote.
    """
    try:
        found: T = _ADAPTERS[kind].validate_json(_encodable(text), strict=True)
    except ValidationError as error:
        raise ValueError(fault_in(error)) from None
    return found


def value_of(kind: type[T], data: Any) -> T:
    """The same from what `json.loads` has read. Raises ValueError."""
    return read_saved(kind, json.dumps(data))


def _encodable(text: str | bytes) -> str | bytes:
    """The JSON without halves of surrogate pairs, which it can say and no text can hold: each becomes a question mark."""
    if not (b"\\ud" in text.lower() if isinstance(text, bytes) else "\\ud" in text.lower()):
        return text
    try:
        return json.dumps(json.loads(text), ensure_ascii=False).encode("utf-8", "replace")
    except (ValueError, RecursionError):
        return text


def fault_in(error: ValidationError) -> str:
    """The first fault that was found, with its place, and nothing of the data."""
    fault = error.errors(include_input=False, include_url=False, include_context=False)[0]
    place = ".".join(map(str, fault["loc"]))
    said = str(fault["msg"])
    return f"{place}: {said}" if place else said


class _Adapters(dict[type[Any], TypeAdapter[Any]]):
    """One for each type, made when it is first needed."""

    def __missing__(self, kind: type[Any]) -> TypeAdapter[Any]:
        made = self[kind] = TypeAdapter(kind)
        return made


_ADAPTERS = _Adapters()
