"""Checks of single field values: each raises `HttpFailure` with the parameter's name and the accepted values.

A check takes the parameter's name and a non-null value. Its ``schema`` is the JSON Schema of the accepted values, so that
the OpenAPI document is generated from the checks themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar, cast

from workflow_composer.server.api import schemas
from workflow_composer.server.api.schemas import Schema
from workflow_composer.server.failures import HttpFailure

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

UNSUPPORTED = "unsupported_parameter"
NOTHING: tuple[Any, ...] = (None, False, 0, "", [], {})
"""Values of a field that request nothing."""


class FieldCheck(Protocol[T_co]):
    """A check of one field value."""

    schema: Schema

    def __call__(self, name: str, value: Any, /) -> T_co:
        """Return the normalized value. Raises `HttpFailure`."""
        ...


def described(schema: Schema) -> Callable[[Callable[[str, Any], T]], FieldCheck[T]]:
    """Attach the JSON Schema of the accepted values to a function, which makes it a check.

    The schema is the function's attribute: a wrapper object would cost a second call for every field of every request.
    """

    def mark(function: Callable[[str, Any], T]) -> FieldCheck[T]:
        check = cast("FieldCheck[T]", function)
        check.schema = schema
        return check

    return mark


def wrong(param: str, message: str, *, code: str | None = None) -> HttpFailure:
    """Return the 400 error for one parameter."""
    return HttpFailure(400, f"{param}: {message}", param=param, code=code)


@described(schemas.ANYTHING)
def anything(name: str, value: Any) -> Any:
    """Accept any value."""
    return value


@described(schemas.TEXT)
def text(name: str, value: Any) -> str:
    """Accept a string."""
    if not isinstance(value, str):
        raise wrong(name, "must be a string")
    return value


@described(schemas.BOOLEAN)
def flag(name: str, value: Any) -> bool:
    """Accept true or false."""
    if not isinstance(value, bool):
        raise wrong(name, "must be true or false")
    return value


@described(schemas.OBJECT)
def mapping(name: str, value: Any) -> dict[str, Any]:
    """Accept an object."""
    if not isinstance(value, dict):
        raise wrong(name, "must be an object")
    return value


@described({"type": "array"})
def items(name: str, value: Any) -> list[Any]:
    """Accept a list."""
    if not isinstance(value, list):
        raise wrong(name, "must be a list")
    return value


@described(schemas.either(schemas.TEXT, schemas.listed(schemas.TEXT)))
def stop(name: str, value: Any) -> str | tuple[str, ...] | None:
    """Accept a string or a list of strings."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise wrong(name, "must be a string or a list of strings")
    return texts(name, value)


@described(schemas.listed(schemas.TEXT))
def texts(name: str, value: Any) -> tuple[str, ...] | None:
    """Accept a list of strings; return None if it is empty."""
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise wrong(name, "must be a list of strings")
    return tuple(value) or None


def tokens(value: Any) -> list[int] | None:
    """Return a list of tokens, which are whole numbers, as a model's tokenizer makes them; None for anything else."""
    if not isinstance(value, list) or not value:
        return None
    found = [int(one) if type(one) is float and one.is_integer() else one for one in value]
    return found if all(type(one) is int and 0 <= one < 2**31 for one in found) else None


def whole(*, least: int | None = None, most: int = 2**31 - 1) -> FieldCheck[int]:
    """Return a check for an integer within limits; 5.0 counts as one."""
    lowest = -most if least is None else least
    limits = f"must be {'' if least is None else f'{least} or more, and '}at most {most}"

    @described({"type": "integer", "minimum": lowest, "maximum": most})
    def check(name: str, value: Any) -> int:
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int:  # excludes bool
            raise wrong(name, "must be an integer")
        if not lowest <= value <= most:
            raise wrong(name, limits)
        return value

    return check


def number(least: float, most: float) -> FieldCheck[float]:
    """Return a check for a number within limits."""

    @described({"type": "number", "minimum": least, "maximum": most})
    def check(name: str, value: Any) -> float:
        if type(value) is not float and type(value) is not int:  # excludes bool
            raise wrong(name, "must be a number")
        if not least <= value <= most:  # exact also for huge integers
            raise wrong(name, f"must be from {least:g} to {most:g}")
        return value

    return check


def filled(message: str) -> FieldCheck[str]:
    """Return a check for a non-empty string; ``message`` is the error."""

    @described({**schemas.TEXT, "minLength": 1})
    def check(name: str, value: Any) -> str:
        if not (found := text(name, value)):
            raise wrong(name, message)
        return found

    return check


def printable(message: str, *, least: int = 0, most: int) -> FieldCheck[str]:
    """Return a check for a string of ``least`` to ``most`` printable characters; ``message`` is the error."""

    @described({**schemas.TEXT, "pattern": f"^{schemas.PRINTABLE}*$", "minLength": least, "maxLength": most})
    def check(name: str, value: Any) -> str:
        found = text(name, value)
        if not least <= len(found) <= most or not found.isprintable():
            raise wrong(name, message)
        return found

    return check


def one_of(*values: str, message: str) -> FieldCheck[str]:
    """Return a check for one of these strings."""

    @described(schemas.constant(*values))
    def check(name: str, value: Any) -> str:
        found = text(name, value)
        if found not in values:
            raise wrong(name, message)
        return found

    return check


def nothing(reason: str) -> FieldCheck[None]:
    """Return a check that accepts only values requesting nothing; ``reason`` is the error for others."""

    @described(schemas.constant(*NOTHING))
    def check(name: str, value: Any) -> None:
        if value not in NOTHING:
            raise wrong(name, reason, code=UNSUPPORTED)

    return check


@described(schemas.NULL)
def foreign(name: str, value: Any) -> None:
    """Refuse a field of another API format, whatever its value."""
    raise wrong(name, "is not a field of this API", code=UNSUPPORTED)


def record(parts: Mapping[str, FieldCheck[Any]]) -> FieldCheck[dict[str, Any]]:
    """Return a check for an object with only these parts; the result omits nulls."""

    @described(schemas.record({name: schemas.nullable(part.schema) for name, part in parts.items()}, closed=True))
    def check(name: str, value: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for part, inner in mapping(name, value).items():
            if inner is None:
                continue
            if part not in parts:
                raise wrong(f"{name}.{part}", "is not supported", code=UNSUPPORTED)
            found[part] = parts[part](f"{name}.{part}", inner)
        return found

    return check
