"""Checks of single values from the network; each raises `HttpFailure` with the parameter's name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from workflow_composer.server.failures import HttpFailure


def wrong(param: str, message: str, *, code: str | None = None) -> HttpFailure:
    """The refusal of one parameter."""
    return HttpFailure(400, f"{param}: {message}", param=param, code=code)


def text(name: str, value: Any) -> str:
    """A text."""
    if not isinstance(value, str):
        raise wrong(name, "must be a text")
    return value


def flag(name: str, value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise wrong(name, "must be true or false")
    return value


def mapping(name: str, value: Any) -> dict[str, Any]:
    """An object."""
    if not isinstance(value, dict):
        raise wrong(name, "must be an object")
    return value


def items(name: str, value: Any) -> list[Any]:
    """A list."""
    if not isinstance(value, list):
        raise wrong(name, "must be a list")
    return value


def stop(name: str, value: Any) -> str | tuple[str, ...] | None:
    """A text or a list of texts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise wrong(name, "must be a text or a list of texts")
    return texts(name, value)


def texts(name: str, value: Any) -> tuple[str, ...] | None:
    """A list of texts; None where it is empty."""
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise wrong(name, "must be a list of texts")
    return tuple(value) or None


def whole(*, least: int | None = None, most: int = 2**31 - 1) -> Callable[[str, Any], int]:
    """A whole number within limits; 5.0 counts as one."""

    def check(name: str, value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise wrong(name, "must be a whole number")
        if (least is not None and value < least) or abs(value) > most:
            raise wrong(name, f"must be {'' if least is None else f'{least} or more, and '}at most {most}")
        return value

    return check


def number(least: float, most: float) -> Callable[[str, Any], float]:
    """A number within limits."""

    def check(name: str, value: Any) -> float:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise wrong(name, "must be a number")
        if not least <= value <= most:  # compares exactly, however many digits it has
            raise wrong(name, f"must be from {least:g} to {most:g}")
        return value

    return check
