"""A question that a run asks and the answer that it keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from workflow_composer.types import EMPTY


@dataclass(frozen=True, slots=True, kw_only=True)
class StepQuestion:
    """What is really asked, once, for a row.

    ``row`` is the row's id ("" for a step of the run), ``place`` says where it is asked (``verdict[2]``, ``teams[0].m[1]``;
    votes and the tries of ``until`` have a place of their own), ``digest`` (hex) is that of everything that the answer
    depends on, ``parts`` the digests of which it is made (``prompt``, ``model``, ``form``, ``temperature``, ...), by which a
    report says why something is asked again.
    """

    row: str
    place: str
    digest: str
    parts: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    share: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptAnswer:
    """An answer that is valid: ``value`` is JSON data, ``facts`` more about it (calls, cost in dollars, model, seconds)."""

    value: Any
    facts: Mapping[str, Any] = field(default_factory=lambda: EMPTY)
    shared: bool = False


class Keeper(Protocol):
    """Answers of this run and of earlier ones."""

    def find(self, question: StepQuestion) -> KeptAnswer | None:
        """Return the answer to the same question of the same row, each at most once per run; None: it must be asked."""
        ...

    def keep(self, question: StepQuestion, answer: KeptAnswer) -> None:
        """Write an answer before it is used."""
        ...

    def failed(self, question: StepQuestion, kind: str, facts: Mapping[str, Any]) -> None:
        """Write a failure: it is counted and reported, and never used as an answer."""
        ...
