"""What became of a step, and what names stand for in the expressions of a row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from workflow_composer.support.fast_dataclass import changed, quick
from workflow_composer.types import EMPTY

State = Literal["done", "skipped", "failed", "waiting", "withheld", "not_run"]
FailureKind = Literal[
    "invalid", "empty", "refused", "cut_off", "timeout", "server", "too_long", "program", "budget", "value", "stopped"
]
"""Why a step failed; ``empty``, ``timeout``, ``server`` and ``budget`` are asked again by a later run. ``stopped`` is no
failure: the run ended before the step could begin, or was told to leave it out.
"""
Origin = Literal["asked", "kept", "shared", "default", "person"]
RowState = Literal["done", "partial", "failed", "waiting", "stopped"]


CHEAPER = "cheaper"
"""The fact of an answer that only the first models of its step were asked for, because the budget was low; and the part of
its question by which it is another question.
"""


class ValueFault(Exception):
    """A value does not allow what an expression does with it; the step fails for its row, kind ``value``."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What became of a step of a row, or of an item of it.

    ``value`` is JSON data, None unless the step is done. ``reason`` says in words why it is not; it never holds what a
    private value says. ``attempts`` counts calls and runs of programs, ``cost`` is in dollars, ``model`` the one that
    answered. ``origin``: asked now, kept from an earlier run, shared with an equal question, a default, or a person's.
    ``items`` are the results of a step over a list, or of the groups of a step over all rows; ``inner`` those of the steps
    of a nested workflow, or of one item. ``notes`` say what a done step has left out. ``counts`` are further numbers for the
    report: calls, tokens, refused replies by reason.
    """

    state: State
    value: Any = None
    reason: str = ""
    kind: FailureKind | None = None
    attempts: int = 0
    cost: float = 0.0
    model: str = ""
    seconds: float = 0.0
    origin: Origin = "asked"
    items: tuple[StepResult, ...] = ()
    inner: Mapping[str, StepResult] = field(default_factory=lambda: EMPTY)
    notes: tuple[str, ...] = ()
    counts: Mapping[str, Any] = field(default_factory=lambda: EMPTY)

    def having_used(self, parts: Iterable[StepResult]) -> StepResult:
        """Return it with the calls, the money and the time of these parts together."""
        parts = tuple(parts)
        return changed(
            self,
            attempts=sum(one.attempts for one in parts),
            cost=sum(one.cost for one in parts),
            seconds=sum(one.seconds for one in parts),
        )

    def fact(self, name: str) -> Any:
        """Return ``_state``, ``_attempts``, ``_error``, ``_model`` or ``_cost``."""
        return {
            "_state": self.state,
            "_attempts": self.attempts,
            "_error": self.reason or None,
            "_model": self.model or None,
            "_cost": self.cost,
        }[name]


_NOT_YET = StepResult(state="not_run")


@quick
@dataclass(frozen=True, slots=True)
class Scope:
    """Names and what they stand for: inputs, items of loops, and results of steps. `inner` adds names for an item."""

    plain: Mapping[str, Any]
    results: Mapping[str, StepResult] = field(default_factory=lambda: EMPTY)

    def value(self, name: str) -> Any:
        """Return the value of a name; None for a step that has none."""
        found = self.results.get(name)
        return self.plain.get(name) if found is None else found.value

    def fact(self, name: str, fact: str) -> Any:
        """Return a fact of a step; of one that has not been tried yet, that it was not run."""
        found = self.results.get(name)
        return (_NOT_YET if found is None else found).fact(fact)

    def inner(self, plain: Mapping[str, Any], results: Mapping[str, StepResult] = EMPTY) -> Scope:
        """Return these names and more; new ones hide old ones."""
        return Scope({**self.plain, **plain}, {**self.results, **results})


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class RowOutcome:
    """What became of a row.

    ``state`` is the worst of the steps that the output reads, through others too; ``stopped``: the run ended before the row
    did. ``errors`` are texts for people. ``output`` has the value of every output column, None where there is none.
    ``steps`` are the results of the row's own steps by name; ``scope`` has them too, with the inputs and the run's steps.
    ``pending`` are the steps that wait for a step of the run.
    """

    row: str
    state: RowState
    steps: Mapping[str, StepResult]
    scope: Scope
    errors: tuple[str, ...] = ()
    output: Mapping[str, Any] = field(default_factory=lambda: EMPTY)
    pending: frozenset[str] = frozenset()

    @property
    def cost(self) -> float:
        """Dollars that the row's steps have cost."""
        return sum(result.cost for result in self.steps.values())
