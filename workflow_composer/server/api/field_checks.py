"""Checks of single values from the network: each raises `HttpFailure` with the parameter's name, and says what it takes.

A check is called with the parameter's name and a value that is not null. ``schema`` is the JSON Schema of the values that it
lets pass, so that the description of the API is made of what is really checked.
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
"""Values by which a field asks for nothing."""


class FieldCheck(Protocol[T_co]):
    """A check of one value."""

    schema: Schema

    def __call__(self, name: str, value: Any, /) -> T_co:
        """The value as it is meant. Raises `HttpFailure`."""
        ...


def described(schema: Schema) -> Callable[[Callable[[str, Any], T]], FieldCheck[T]]:
    """Make a check of a function: tell what it takes.

    The function itself bears the schema. An object around it would cost every field of every request a second call.
    """

    def mark(function: Callable[[str, Any], T]) -> FieldCheck[T]:
        check = cast("FieldCheck[T]", function)
        check.schema = schema
        return check

    return mark


def wrong(param: str, message: str, *, code: str | None = None) -> HttpFailure:
    """The refusal of one parameter."""
    return HttpFailure(400, f"{param}: {message}", param=param, code=code)


@described(schemas.ANYTHING)
def anything(name: str, value: Any) -> Any:
    """Any value."""
    return value


@described(schemas.TEXT)
def text(name: str, value: Any) -> str:
    """A text."""
    if not isinstance(value, str):
        raise wrong(name, "must be a text")
    return value


@described(schemas.BOOLEAN)
def flag(name: str, value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise wrong(name, "must be true or false")
    return value


@described(schemas.OBJECT)
def mapping(name: str, value: Any) -> dict[str, Any]:
    """An object."""
    if not isinstance(value, dict):
        raise wrong(name, "must be an object")
    return value


@described({"type": "array"})
def items(name: str, value: Any) -> list[Any]:
    """A list."""
    if not isinstance(value, list):
        raise wrong(name, "must be a list")
    return value


@described(schemas.either(schemas.TEXT, schemas.listed(schemas.TEXT)))
def stop(name: str, value: Any) -> str | tuple[str, ...] | None:
    """A text or a list of texts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise wrong(name, "must be a text or a list of texts")
    return texts(name, value)


@described(schemas.listed(schemas.TEXT))
def texts(name: str, value: Any) -> tuple[str, ...] | None:
    """A list of texts; None where it is empty."""
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise wrong(name, "must be a list of texts")
    return tuple(value) or None


def whole(*, least: int | None = None, most: int = 2**31 - 1) -> FieldCheck[int]:
    """A whole number within limits; 5.0 counts as one."""
    lowest = -most if least is None else least
    limits = f"must be {'' if least is None else f'{least} or more, and '}at most {most}"

    @described({"type": "integer", "minimum": lowest, "maximum": most})
    def check(name: str, value: Any) -> int:
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int:  # nor true or false
            raise wrong(name, "must be a whole number")
        if not lowest <= value <= most:
            raise wrong(name, limits)
        return value

    return check


def number(least: float, most: float) -> FieldCheck[float]:
    """A number within limits."""

    @described({"type": "number", "minimum": least, "maximum": most})
    def check(name: str, value: Any) -> float:
        if type(value) is not float and type(value) is not int:  # nor true or false
            raise wrong(name, "must be a number")
        if not least <= value <= most:  # compares exactly, however many digits it has
            raise wrong(name, f"must be from {least:g} to {most:g}")
        return value

    return check


def filled(message: str) -> FieldCheck[str]:
    """A text that is not empty; ``message`` says what it must be."""

    @described({**schemas.TEXT, "minLength": 1})
    def check(name: str, value: Any) -> str:
        if not (found := text(name, value)):
            raise wrong(name, message)
        return found

    return check


def printable(message: str, *, least: int = 0, most: int) -> FieldCheck[str]:
    """A text of so many characters that can all be shown; ``message`` says what it must be."""

    @described({**schemas.TEXT, "pattern": f"^{schemas.PRINTABLE}*$", "minLength": least, "maxLength": most})
    def check(name: str, value: Any) -> str:
        found = text(name, value)
        if not least <= len(found) <= most or not found.isprintable():
            raise wrong(name, message)
        return found

    return check


def one_of(*values: str, message: str) -> FieldCheck[str]:
    """One of these texts."""

    @described(schemas.constant(*values))
    def check(name: str, value: Any) -> str:
        found = text(name, value)
        if found not in values:
            raise wrong(name, message)
        return found

    return check


def nothing(reason: str) -> FieldCheck[None]:
    """Nothing that would be asked for: the field cannot be honoured, for this reason."""

    @described(schemas.constant(*NOTHING))
    def check(name: str, value: Any) -> None:
        if value not in NOTHING:
            raise wrong(name, reason, code=UNSUPPORTED)

    return check


@described(schemas.NULL)
def foreign(name: str, value: Any) -> None:
    """A field of another form of API, which this one says in other words. Not even False is let pass."""
    raise wrong(name, "is no field of this form of API", code=UNSUPPORTED)


def record(parts: Mapping[str, FieldCheck[Any]]) -> FieldCheck[dict[str, Any]]:
    """An object with these parts and no others; what it gives has no nulls."""

    @described(schemas.record({name: schemas.nullable(part.schema) for name, part in parts.items()}, closed=True))
    def check(name: str, value: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for part, inner in mapping(name, value).items():
            if inner is None:
                continue
            if part not in parts:
                raise wrong(f"{name}.{part}", "cannot be honoured here", code=UNSUPPORTED)
            found[part] = parts[part](f"{name}.{part}", inner)
        return found

    return check
