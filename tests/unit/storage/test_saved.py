"""Dataclasses read back from JSON: checked field by field."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Literal

import pytest

from workflow_composer.storage.saved import read_saved, saved, value_of


@dataclass(frozen=True, slots=True)
class Part:
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    name: str
    state: Literal["up", "down"] = "up"
    count: int = 0
    share: float | None = None
    parts: tuple[Part, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)


def test_what_is_saved_is_read_again_and_newer_fields_are_passed_over():
    """Nested, with tuples and infinities."""
    one = Whole(name="a", share=math.inf, parts=(Part(("x", "y")), Part()), counts={"n": 1})
    assert read_saved(Whole, saved(one)) == one
    assert value_of(Whole, {"name": "a", "share": 1, "of a later version": [1]}) == Whole(name="a", share=1.0)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", "JSON"),
        ("[]", "object"),
        ('{"name": 5}', "name"),
        ('{"name": "a", "count": "5"}', "count"),
        ('{"name": "a", "count": true}', "count"),
        ('{"name": "a", "state": "sideways"}', "state"),
        ('{"name": "a", "parts": [{"names": ["x", 1]}]}', "parts.0.names.1"),
        ('{"name": "a", "parts": ' + "[" * 10_000, "JSON"),
        (json.dumps({"name": "a", "counts": {"n": 1.5}}), "counts.n"),
    ],
)
def test_a_wrong_value_is_named_by_its_place_and_not_shown(text, place):
    """What is in a file may be private."""
    with pytest.raises(ValueError, match=place) as failure:
        read_saved(Whole, text)
    assert "sideways" not in str(failure.value)


@pytest.mark.parametrize("kind", [str, bytes])
def test_half_a_surrogate_pair_is_read_as_a_question_mark(kind):
    """`json.dumps` writes it, for a path that is not UTF-8, say; whole pairs and everything else stay as they are."""
    text = saved(Whole(name="caf\udce9 \N{GRINNING FACE} \\ud800", share=math.inf))
    assert read_saved(Whole, kind(text, "ascii") if kind is bytes else text) == Whole(
        name="caf? \N{GRINNING FACE} \\ud800", share=math.inf
    )
