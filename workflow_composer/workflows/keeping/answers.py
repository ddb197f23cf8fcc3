"""A question that a run asks and the answer that it keeps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from workflow_composer.support.fast_dataclass import quick
from workflow_composer.types import EMPTY
from workflow_composer.workflows.running.results import FailureKind

if TYPE_CHECKING:
    from workflow_composer.workflows.definition.model import Step


@quick
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


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class KeptAnswer:
    """An answer that is valid: ``value`` is JSON data, ``facts`` more about it (calls, cost in dollars, model, seconds)."""

    value: Any
    facts: Mapping[str, Any] = field(default_factory=lambda: EMPTY)
    shared: bool = False


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class KeptFailure:
    """Why a question is not asked (again) in this run: an earlier failure that asking would only repeat, or its place.

    ``state`` is what the step's is then: failed with ``kind`` and ``reason``, or not_run with ``reason`` (the question lies
    outside of what the run was told to ask). ``facts`` as in `KeptAnswer`.
    """

    state: Literal["failed", "not_run"] = "failed"
    kind: FailureKind | None = None
    reason: str = ""
    facts: Mapping[str, Any] = field(default_factory=lambda: EMPTY)


class EarlierTries(Protocol):
    """What a question has got while it has no answer: see `workflow_composer.workflows.keeping.progress`."""

    async def checked(
        self, value: Any, check: Callable[[Any], Awaitable[str | None]], used: Callable[[], tuple[int, float]]
    ) -> str | None:
        """Return what a check says of an answer, or has said of it before; None: it passes."""
        ...

    def whole(self, facts: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return facts with what earlier tries at the question have used."""
        ...


class Keeper(Protocol):
    """Answers of this run and of earlier ones. `find` and then, if there is none, `refused` come before every call."""

    def find(self, question: StepQuestion) -> KeptAnswer | None:
        """Return the answer to the same question of the same row, each at most once per run; None: it must be asked."""
        ...

    def refused(self, question: StepQuestion) -> KeptFailure | None:
        """Return why a question without an answer must not be asked now; None: it is to be asked."""
        ...

    def progress(self, question: StepQuestion) -> EarlierTries | None:
        """Return what a question, which is now asked, has got in an earlier try; None: nothing of that is kept."""
        ...

    def keep(self, question: StepQuestion, answer: KeptAnswer) -> None:
        """Write an answer before it is used."""
        ...

    def failed(self, question: StepQuestion, kind: FailureKind, facts: Mapping[str, Any]) -> None:
        """Write a failure: it is counted and reported, and never used as an answer.

        ``facts`` have ``reason`` (words without private values) beside what `KeptAnswer` has.
        """
        ...


class NothingKept:
    """The answers and the people of a single request, or of a row whose record is kept elsewhere: there are none."""

    def find(self, question: StepQuestion) -> KeptAnswer | None:
        """Return None: every question is asked."""
        return None

    def refused(self, question: StepQuestion) -> KeptFailure | None:
        """Return None: every question is asked."""
        return None

    def progress(self, question: StepQuestion) -> None:
        """Return None: nothing is kept."""

    def keep(self, question: StepQuestion, answer: KeptAnswer) -> None:
        """Do nothing."""

    def failed(self, question: StepQuestion, kind: FailureKind, facts: Mapping[str, Any]) -> None:
        """Do nothing."""

    def wait(self, question: StepQuestion, step: Step, text: str) -> float:
        """Raise: such a workflow asks no person."""
        raise AssertionError(step.name)


def asked_anew(step: Step, *, row: str, place: str, asked: Mapping[str, Any], release: bool = False) -> StepQuestion:
    """Return a question that is like no other: nothing is kept, and nothing is shared."""
    return StepQuestion(row=row, place=place, digest=place)
