"""The report of a run: states of rows, and for each step what was done, why not, and what it cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from workflow_composer.workflows.definition.model import NestedBody, Step
from workflow_composer.workflows.keeping.row_keeper import RunCounts
from workflow_composer.workflows.running.results import CHEAPER, RowState, StepResult

STATES = ("done", "skipped", "failed", "waiting", "withheld", "not_run")
_MOST_REASONS = 20
_ITEM = "item "


@dataclass(slots=True)
class StepSummary:
    """What became of one step in all rows. ``reasons`` and ``asked_again`` count by words."""

    states: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    asked_again: Counter[str] = field(default_factory=Counter)
    defaults: int = 0
    mended: int = 0
    cheaper: int = 0
    notes: list[str] = field(default_factory=list)

    def add(self, result: StepResult) -> None:
        """Count a result."""
        self.states[result.state] += 1
        self.defaults += result.origin == "default"
        if result.reason and len(self.reasons) < _MOST_REASONS:
            self.reasons[result.reason] += 1
        elif result.reason:
            self.reasons["other reasons" if result.reason not in self.reasons else result.reason] += 1
        self.notes += result.notes
        for each in (result, *result.items):
            self._count(each.counts)

    def _count(self, counts: Mapping[str, Any]) -> None:
        refused = counts.get("refused")
        if isinstance(refused, Mapping):
            self.asked_again.update({str(why): int(number) for why, number in refused.items()})
        elif refused:
            self.asked_again["the answer was refused"] += int(refused) if isinstance(refused, (int, float)) else len(refused)
        mended = counts.get("mended")
        self.mended += bool(mended)
        self.cheaper += bool(counts.get(CHEAPER))


class StepSummaries(dict[str, StepSummary]):
    """`StepSummary` by path."""

    def add_row(self, results: Mapping[str, StepResult], steps: Mapping[str, Step], prefix: str = "") -> None:
        """Count the results of a row's steps, and of the steps within them: ``LOOP.STEP``, ``NESTED/STEP``."""
        for name, result in results.items():
            path, step = prefix + name, steps[name]
            self.setdefault(path, StepSummary()).add(result)
            body, loop = step.body, step.for_each
            inner = body.workflow.steps if isinstance(body, NestedBody) else {} if loop is None else loop.steps
            between = "/" if isinstance(body, NestedBody) else "."
            for item in (result, *result.items):
                if item.inner:
                    self.add_row(item.inner, inner, path + between)


@dataclass(slots=True)
class RunReport:
    """What a run has done. Money in dollars: ``cost`` of this run and earlier ones, ``cost_now`` of this one.

    ``state`` is done, failed, waiting, cancelled, or "stopped: WHY". ``served`` are the models that servers reported, by the
    profile's names; ``accuracy`` is what `RunGrades` tells, of a run with labels.
    """

    state: str
    rows: int
    by_state: Counter[RowState]
    steps: StepSummaries
    counts: RunCounts
    cost: float
    cost_now: float
    seconds: float
    journal: str
    output: str
    unreadable: int = 0
    tables: Mapping[str, str] = field(default_factory=dict)
    served: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    accuracy: Mapping[str, Any] | None = None

    @property
    def calls(self) -> int:
        """Calls of this run."""
        return sum(one.calls for one in self.counts.values())

    @property
    def kept(self) -> int:
        """Answers of earlier runs that were used."""
        return sum(one.kept for one in self.counts.values())

    @property
    def shared(self) -> int:
        """Answers of other rows that were used."""
        return sum(one.shared for one in self.counts.values())

    @property
    def data(self) -> dict[str, Any]:
        """The report as JSON data."""
        found: dict[str, Any] = {"state": self.state, "rows": self.rows}
        found |= {name: self.by_state[name] for name in ("done", "partial", "failed", "waiting", "stopped")}
        found |= {"calls": self.calls, "kept": self.kept, "shared": self.shared, "unreadable": self.unreadable}
        found |= {"cost": _money(self.cost), "cost_now": _money(self.cost_now), "seconds": round(self.seconds, 3)}
        found |= {"output": self.output, "journal": self.journal, "tables": dict(self.tables)}
        found["models"] = {name: dict(models) for name, models in self.served.items()}
        found["steps"] = {path: self._step(path) for path in dict.fromkeys([*self.steps, *self.counts])}
        return found if self.accuracy is None else found | {"accuracy": self.accuracy}

    def _step(self, path: str) -> dict[str, Any]:
        summary = self.steps.get(path) or StepSummary()
        found: dict[str, Any] = {state: summary.states[state] for state in STATES}
        if (counts := self.counts.get(path)) is not None:
            found |= {"calls": counts.calls, "kept": counts.kept, "shared": counts.shared}
            found |= {"cost": _money(counts.cost + counts.kept_cost), "seconds": round(counts.seconds, 3)}
            why = counts.why
        else:
            inner = [one for name, one in self.counts.items() if name.startswith((f"{path}.", f"{path}/"))]
            found |= {"calls": sum(one.calls for one in inner), "kept": sum(one.kept for one in inner), "shared": 0}
            found |= {"cost": _money(sum(one.cost + one.kept_cost for one in inner))}
            found["seconds"] = round(sum(one.seconds for one in inner), 3)
            why = Counter()
        found |= {"defaults": summary.defaults, "mended": summary.mended, "cheaper": summary.cheaper}
        found["reasons"] = dict(summary.reasons.most_common())
        found["asked_again"] = dict((why + summary.asked_again).most_common())
        return found | {"notes": summary.notes}


def _money(dollars: float) -> float:
    return round(dollars, 9)
