"""What steps need from the run around them: who answers, what is kept, who pays, and when to stop."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from workflow_composer.support.fast_dataclass import quick
from workflow_composer.types import EMPTY
from workflow_composer.workflows.keeping.answers import Keeper, StepQuestion

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from workflow_composer.execution.reservation import Reservation
    from workflow_composer.types import LLMRequest, LLMResponse
    from workflow_composer.workflows.definition.model import Step
    from workflow_composer.workflows.running.results import StepResult

AT_ONCE = 64
"""Items of one list that are begun at once; how many calls they make at once is for the run's gate."""


class StopSign(asyncio.Event):
    """Set when no new call may start; what is under way is finished. ``why`` is the reason in words, of the first call."""

    why = ""

    def stop(self, why: str) -> None:
        """Let no new call start."""
        if not self.is_set():
            self.why = why
            self.set()


class Purse(Protocol):
    """Money that calls share: of the run, of a row within it, or of a nested workflow within a row."""

    def part(self, limit: float | None) -> Purse:
        """Return a purse of its own limit in dollars (None: no further one), whose spending counts in this one too."""
        ...

    def begin(self) -> Reservation | None:
        """Return the ``purse`` of one request, which the caller settles with what the request has cost; None: no limit.

        It raises `BudgetExceeded` where the money of the row is used up, and `RunBudgetReached` where that of the run is.
        """
        ...


class People(Protocol):
    """Those who answer the questions of `human` steps."""

    def wait(self, question: StepQuestion, step: Step, text: str) -> float:
        """Write down a question that waits for a person, once; return when it was first asked (`World.now`, in seconds).

        The person's answer is what the keeper finds for the question later, with ``facts["person"]`` true.
        """
        ...


class AskedQuestion(Protocol):
    """Makes the question of a step: see `workflow_composer.workflows.keeping.keys.question_of`."""

    def __call__(self, step: Step, *, row: str, place: str, asked: Mapping[str, Any], release: bool = False) -> StepQuestion:
        """Return what a step, or the check of its release, really asks, once."""
        ...


class StepWatch(Protocol):
    """Sees the steps of the workflow itself, not those within them, as they begin and end in each row."""

    def begun(self, name: str) -> None:
        """A step begins."""
        ...

    def ended(self, name: str, result: StepResult | None) -> None:
        """A step that has begun has ended; None: from outside."""
        ...

    def item(self, name: str, result: StepResult) -> None:
        """An item of a step's list has ended."""
        ...


class RowInputs(Protocol):
    """A row: its id, its inputs as JSON data, and what is wrong with them (without their values; empty: nothing)."""

    @property
    def id(self) -> str:
        """The row's id, the same in every run."""
        ...

    @property
    def inputs(self) -> Mapping[str, Any]:
        """The values of the workflow's inputs."""
        ...

    @property
    def fault(self) -> str:
        """Why the row cannot be run."""
        ...


def any_number() -> float:
    """Return infinity: nothing bounds the calls of all steps together."""
    return math.inf


def one_call(step: Step) -> int:
    """Return 1: a question is a call."""
    return 1


def no_model_known(step: Step) -> str | None:
    """Return None: it is not known which model a step asks first."""
    return None


def no_room_known(step: Step) -> int | None:
    """Return None: nothing is known of how long a prompt may be."""
    return None


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What the steps of a run share.

    ``ask`` answers an `LLMRequest` (`ModelOrchestrator.agenerate`, or what stands before it: a limit per server, counters).
    ``question`` makes the key of what is asked; ``keeper`` has the answers, ``people`` the open questions. ``purse`` is the
    run's. ``gate`` returns a
    context in which one call, or one run of a program, is made: it bounds how many are under way, whichever row or item they
    belong to. ``once`` returns one in which a question that rows share is asked by one of them at a time, by its digest.
    ``run_results`` are the results of those steps of the run that have ended; a row's steps that read others are
    not begun. ``folder`` is where the workflow's programs are. ``stopped`` is the sign to start nothing new; ``room`` tells
    how many tokens a step's prompt may have (None: unknown), ``first_model`` the model that its calls ask first, which
    ``gate`` is told, ``cheaper`` the model that is asked alone because the budget is low (None: as usual). ``now``
    is the time of day in seconds,
    ``calls_left`` how many calls all steps together may still make, ``calls_of`` how many of these a question of a step
    takes at least. ``at_once`` items of a list are begun at once; with 1, steps of a row are, too, done one after another,
    in the file's order, which then depends on no answer. ``watch`` sees steps begin and end.
    """

    ask: Callable[[LLMRequest], Awaitable[LLMResponse]]
    question: AskedQuestion
    keeper: Keeper
    people: People
    purse: Purse
    gate: Callable[..., AbstractAsyncContextManager[Any]] = nullcontext
    once: Callable[[str], AbstractAsyncContextManager[Any]] = nullcontext
    run_results: Mapping[str, StepResult] = field(default_factory=lambda: EMPTY)
    folder: Path = Path()
    stopped: StopSign = field(default_factory=StopSign)
    room: Callable[[Step], int | None] = no_room_known
    first_model: Callable[[Step], str | None] = no_model_known
    cheaper: Callable[[Step], str | None] = no_model_known
    now: Callable[[], float] = time.time
    calls_left: Callable[[], float] = any_number
    calls_of: Callable[[Step], int] = one_call
    at_once: int = AT_ONCE
    watch: StepWatch | None = None
