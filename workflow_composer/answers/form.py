"""How a final answer is extracted and compared (`AnswerForm`), and what an answer must be (`OutputForm`)."""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

from workflow_composer.support.fast_dataclass import quick

Check = Callable[[Any], Awaitable["str | None"]]
"""Judges an answer that has the wanted form, as JSON data: returns what is wrong with it, None if nothing is. It raises a
`WorkflowComposerError` if it cannot judge, which ends the request.
"""
Comparison = Literal["auto", "number", "text", "math"]


@quick
@dataclass(frozen=True, slots=True)
class AnswerForm:
    r"""How answers are extracted and compared.

    ``extract`` lists extraction methods, tried in order until one finds an answer: ``hashes`` (``#### 18``), ``boxed``
    (``\boxed{18}``), ``phrase`` ("the answer is 18"), ``json:FIELD`` (a field of a JSON object), ``line`` (the last line),
    ``whole`` (the whole text), ``python:MODULE:FUNCTION`` (your own function from text to answer or None), or ``auto``:
    hashes, boxed, phrase, and if it is the last method, also the last number or all of a short text. ``compare`` is
    ``number``, ``text``, ``math`` (mathematical equality, by math-verify) or ``auto``: the cheapest that can decide. A
    comparison takes at most ``limit`` seconds of CPU time.
    """

    extract: tuple[str, ...] = ("auto",)
    compare: Comparison = "auto"
    limit: float = 2.0


ANY_FORM = AnswerForm()


class Patience:
    """The CPU time in seconds that the comparisons of one question may take together, and what they have taken.

    ``ends`` is when the question itself must end (`time.perf_counter`): a comparison under way then is given up.

    For answers that strangers may have chosen: they cannot keep those of others waiting. What is not compared in time counts
    as different.
    """

    __slots__ = ("ends", "seconds", "used")

    def __init__(self, seconds: float, ends: float = math.inf) -> None:
        self.seconds = seconds
        self.ends = ends
        self.used = 0.0

    @classmethod
    def of(cls, form: AnswerForm, ends: float = math.inf) -> Self:
        """Return the time for one vote: that of a few comparisons at their limit."""
        return cls(_AT_THE_LIMIT * form.limit, ends)

    @property
    def left(self) -> float:
        """Seconds until the question must end."""
        return self.ends - time.perf_counter()


_AT_THE_LIMIT = 5

EMPTY_REPLY = "the reply is empty"


class Formed(NamedTuple):
    """A reply as read by a form. ``mended`` names what was mended; with a ``problem`` there is no value."""

    value: Any = None
    mended: tuple[str, ...] = ()
    problem: str | None = None


class OutputForm(ABC):
    """What an answer must be. Made by `output_form`; usable from any thread."""

    spec: Any = None
    """The form as it was written, in plain data."""
    _latest: tuple[str, Formed] | None = None

    def read(self, text: str) -> Formed:
        """Read a reply; reasoning is removed first. Never raises for any text."""
        latest = self._latest
        if latest is not None and latest[0] is text:
            return latest[1]  # the executor has read it, and now the caller of the request does
        from workflow_composer.answers.reasoning import without_reasoning  # late: plans and requests import this module

        said = without_reasoning(text).strip()
        found = self._read(said) if said else Formed(problem=EMPTY_REPLY)
        self._latest = text, found
        return found

    @abstractmethod
    def _read(self, text: str) -> Formed: ...

    def read_whole(self, text: str) -> Formed | None:
        """Read a reply that was cut off by its length, if what it lost is no part of the answer; None: it may be."""
        return None

    @abstractmethod
    def instructions(self) -> str:
        """Return what to tell the model; empty if nothing needs to be said."""

    @abstractmethod
    def json_schema(self) -> dict[str, Any]:
        """Return the form as a JSON Schema."""

    def plain(self, value: Any) -> Any:
        """Return a value of this form as JSON data."""
        return value

    def key(self, value: Any) -> str:
        """Return one text for all writings of a value, by which votes are counted."""
        from workflow_composer.answers.json_text import canonical

        return canonical(self.plain(value))

    @property
    def is_text(self) -> bool:
        """Whether a value is free text, which may turn out long."""
        return False

    def __repr__(self) -> str:
        return json.dumps(self.spec, ensure_ascii=False, default=str)


def as_data(value: Any) -> Any:
    """Return a form as it was written, and a mapping as a dict: the ``default`` of `json.dumps` for fields of a request."""
    if isinstance(value, OutputForm):
        return value.spec
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not JSON-serializable")
