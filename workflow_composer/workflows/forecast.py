"""What a run will probably ask, cost and take: by the profile's prices before anything is called, or by rows tried.

Before: a step over the rows is asked once a row, unless its condition is false; how many items a list will have, and which
branch is taken, only the answers say. Afterwards: the mean of the tried rows, with the spread that so few of them leave.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from workflow_composer.answers.output_form import output_form
from workflow_composer.batch.asking.forecast import forecast
from workflow_composer.types import ANY_TASK
from workflow_composer.workflows.definition.model import NestedBody, PromptBody, Reading, Step, Workflow
from workflow_composer.workflows.keeping.journal import JournalEntry
from workflow_composer.workflows.running.results import Scope, ValueFault

if TYPE_CHECKING:
    from workflow_composer.batch.datasets.table import Table, TableRow
    from workflow_composer.config.strategy import StrategyConfig
    from workflow_composer.plan import Plan

MOST_SAMPLED = 200
"""Rows of which the lengths are looked at for a forecast."""
UNSEEN = 400
"""Characters that an answer of unknown length is taken to have, where a prompt reads it."""
_ANY_TEXT = output_form("text")
_OF_ONE = re.compile(r"\[\d+\]|[#~]\d+|![a-z]+")
_DEVIATIONS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPrice:
    """A model step before it is asked: how often (``items``: for each item of a list, so often for one), and its dollars.

    ``least`` if every first tier's answer is taken and ``most`` if every tier is asked; a step over all rows counts as one
    call. ``unpriced`` are models without a price.
    """

    path: str
    calls: int
    items: bool
    conditional: bool
    prompt_tokens: int
    least: float
    most: float
    unpriced: tuple[str, ...]

    @property
    def data(self) -> dict[str, Any]:
        """The forecast as JSON data."""
        found = {"calls": self.calls, "per_item": self.items, "conditional": self.conditional}
        return found | {
            "prompt_tokens": self.prompt_tokens,
            "least": self.least,
            "most": self.most,
            "unpriced": list(self.unpriced),
        }


class PriceList:
    """The prices of a workflow's model steps over a table, before anything is called.

    ``plan_of`` returns the plan for a request of these fields, and sends nothing.
    """

    def __init__(self, workflow: Workflow, table: Table, config: StrategyConfig, plan_of: Callable[..., Plan]) -> None:
        self._config, self._plan_of = config, plan_of
        self.rows = table.count()
        step = max(1, self.rows // MOST_SAMPLED)
        wanted = table.rows(wanted=lambda number: number % step == 0)
        self._sample = [{name: row.values.get(name) for name in workflow.inputs} for row in wanted]
        self.steps = list(self._prices(workflow, ""))

    def _prices(self, workflow: Workflow, outer: str, *, items: bool = False, maybe: bool = False) -> Iterator[StepPrice]:
        for path, step in workflow.every_step():
            loops = items or any(_outer(workflow, path))
            if isinstance(step.body, NestedBody):
                inner = f"{outer}{path}/"
                loop = loops or step.for_each is not None
                yield from self._prices(step.body.workflow, inner, items=loop, maybe=maybe or step.when is not None)
            elif isinstance(step.body, PromptBody):
                repeated = loops or step.for_each is not None or step.until is not None
                yield self._price(step, step.body, outer + path, repeated, maybe or step.when is not None)

    def _price(self, step: Step, body: PromptBody, path: str, items: bool, conditional: bool) -> StepPrice:
        given = {"task_type": step.task or ANY_TASK, "model": step.model, "temperature": step.temperature}
        known = {name: value for name, value in given.items() if value is not None}
        plan = self._plan_of("?", **known, private=step.labels.private)
        rows = self.rows if step.level == "row" else 1
        lengths = [self._length(body, one) for one in self._sample] if step.level == "row" else []
        characters = round((fmean(lengths) if lengths else len(body.prompt.text) + UNSEEN) * rows)
        found = forecast(
            plan, self._config, step.form or _ANY_TEXT, rows=rows, characters=characters, most_tokens=step.tokens
        )
        return StepPrice(
            path=path,
            calls=rows,
            items=items,
            conditional=conditional,
            prompt_tokens=found.prompt_tokens,
            least=found.least,
            most=found.most,
            unpriced=found.unpriced,
        )

    def _length(self, body: PromptBody, inputs: Mapping[str, Any]) -> int:
        """Return the characters of a row's prompt: as filled in, if it reads nothing but the row, else by its parts."""
        return sum(self._of_reading(one, inputs) for one in (body.system, body.prompt) if one is not None)

    @staticmethod
    def _of_reading(reading: Reading, inputs: Mapping[str, Any]) -> int:
        if reading.reads <= inputs.keys():
            try:
                return len(reading.evaluate(Scope(inputs)))
            except ValueFault:
                pass
        return len(reading.text) + sum(len(str(inputs[name])) if name in inputs else UNSEEN for name in reading.reads)

    @property
    def least(self) -> float:
        """Dollars of all steps if every first answer is taken."""
        return math.fsum(one.least for one in self.steps)

    @property
    def most(self) -> float:
        """Dollars of all steps if every tier is asked."""
        return math.fsum(one.most for one in self.steps)


def _outer(workflow: Workflow, path: str) -> Iterator[bool]:
    """Yield, for each step around an inner one, whether it goes over a list."""
    steps: Mapping[str, Step] = workflow.steps
    for name in path.split(".")[:-1]:
        loop = steps[name].for_each
        yield loop is not None
        steps = {} if loop is None else loop.steps


# ----------------------------------------------------------------------------------------------------------- after a try


class SampleTable:
    """Some rows of a table, spread evenly over it, as a table of their own."""

    def __init__(self, table: Table, rows: int) -> None:
        self._table = table
        total = table.count()
        self.numbers = sorted({at * total // min(rows, total) for at in range(min(rows, total))}) if total else []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)

    def count(self) -> int:
        """Return the number of rows."""
        return len(self.numbers)

    def rows(self, *_: Any, **__: Any) -> Iterator[TableRow]:
        """Yield the rows, numbered anew."""
        wanted = set(self.numbers)
        for at, row in enumerate(self._table.rows(wanted=wanted.__contains__)):
            yield row._replace(number=at)


@dataclass(frozen=True, slots=True)
class RowsExpected:
    """What is expected of many rows: the mean of the tried ones for each, and what so few of them leave open.

    ``least`` and ``most`` are two standard errors of the mean away (None: a single row says nothing of the spread).
    """

    mean: float
    least: float | None
    most: float | None

    @classmethod
    def of(cls, values: list[float], rows: int) -> RowsExpected:
        """Return what is expected of ``rows`` rows, by the values of some."""
        mean = fmean(values) * rows if values else 0.0
        if len(values) <= 1:
            return cls(mean, None, None)
        error = _DEVIATIONS * stdev(values) / math.sqrt(len(values)) * rows
        return cls(mean, max(0.0, mean - error), mean + error)

    @property
    def data(self) -> dict[str, float | None]:
        """The values as JSON data."""
        return {"mean": self.mean, "least": self.least, "most": self.most}


MEASURES = ("calls", "tokens", "dollars", "seconds")


def expected(entries: Iterable[list[JournalEntry]], rows: int) -> dict[str, dict[str, RowsExpected]]:
    """Return for each step, and for ``(all)``, what is expected of ``rows`` rows by the journal's entries of some.

    ``seconds`` sum those of all calls, as if one were made after the other.
    """
    found: list[dict[str, dict[str, float]]] = []
    for of_row in entries:
        steps: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(MEASURES, 0.0))
        for entry in of_row:
            facts = entry.fields.get("facts") or {}
            for path in (_OF_ONE.sub("", entry.place).replace("/", "."), "(all)"):
                counted = steps[path]
                counted["calls"] += facts.get("calls", 0)
                counted["tokens"] += sum(facts.get("tokens") or ())
                counted["dollars"] += facts.get("cost", 0.0) or 0.0
                counted["seconds"] += facts.get("seconds", 0.0)
        found.append(steps)
    paths = dict.fromkeys(path for steps in found for path in steps if path != "(all)")
    return {
        path: {
            name: RowsExpected.of([steps[path][name] if path in steps else 0.0 for steps in found], rows)
            for name in MEASURES
        }
        for path in (*paths, *(["(all)"] if found else []))
    }
