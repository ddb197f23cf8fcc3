"""``workflow test --run``: an earlier run's answers instead of models, and its table as what is expected.

Questions that are the same have their kept answers, as in any run. Where a question has changed, the run's answer at the
same place stands for the model's, goes through form and check as a model's would, and is counted, with what has changed.
"""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_composer.batch.asking.table_output import JOURNAL, journal_beside
from workflow_composer.batch.datasets.table import read_table
from workflow_composer.cli.state import State
from workflow_composer.cli.workflow.running import RunSession
from workflow_composer.cli.workflow.scripted_models import JUDGE, ScriptedModels, shown_value
from workflow_composer.cli.workflow.try_out import hidden_value, private_columns
from workflow_composer.errors import InputError, InvalidAnswer
from workflow_composer.workflows.keeping.earlier_run import EarlierRun
from workflow_composer.workflows.keeping.journal import ANSWER, FAILED, SHARED, JournalEntry
from workflow_composer.workflows.keeping.keys import path_of
from workflow_composer.workflows.keeping.people import answers_beside
from workflow_composer.workflows.keeping.written import ERRORS
from workflow_composer.workflows.run import RunOptions, WorkflowRun

if TYPE_CHECKING:
    from workflow_composer.config.strategy import StrategyConfig
    from workflow_composer.plan import Plan
    from workflow_composer.types import LLMRequest, ModelCall
    from workflow_composer.workflows.definition.model import Step
    from workflow_composer.workflows.keeping.answers import StepQuestion

_asked: ContextVar[StepQuestion | None] = ContextVar("asked", default=None)
"""The question that is asked in this task."""


class RecordedModels(ScriptedModels):
    """Answers the requests of a run as an earlier run was answered at the same place; sends nothing.

    ``missing`` counts, by path, the questions of which the earlier run has no answer.
    """

    def __init__(self, config: StrategyConfig, plan: Callable[..., Plan], run: EarlierRun) -> None:
        super().__init__(config, plan, {})
        self.missing: Counter[str] = Counter()
        self._kept: dict[tuple[str, str], JournalEntry] = {}
        for entry in run.entries():
            if entry.fields["kind"] in (ANSWER, SHARED, FAILED):
                self._kept[str(entry.fields["row"]), entry.place] = entry

    def watch(self, run: WorkflowRun) -> None:
        """Know from now on which question each request of a run is about."""
        question = run.world.question

        def asked(step: Step, **about: Any) -> StepQuestion:
            found = question(step, **about)
            _asked.set(found)
            return found

        run.world = replace(run.world, question=asked)

    def plan_of(self, request: LLMRequest) -> Plan:
        """Return the plan from the tier on whose model answered the earlier run."""
        plan = self.plan(request)
        entry = self._entry(_asked.get())
        model = "" if entry is None else (entry.fields.get("facts") or {}).get("candidate")
        answering = [at for at, tier in enumerate(plan.tiers) if any(one.name == model for one in tier.candidates)]
        return replace(plan, tiers=plan.tiers[answering[0] :]) if answering else plan

    def _entry(self, question: StepQuestion | None) -> JournalEntry | None:
        return None if question is None else self._kept.get((question.row or _RUN_ROW, question.place))

    def _reply(self, call: ModelCall) -> str:
        step, question = str(call.request.metadata.get("step", "")), _asked.get()
        entry = self._entry(question)
        if question is None or entry is None:
            self.missing[step if question is None else path_of(question.place)] += 1
            raise InvalidAnswer(f"the run has no answer of {step} for this row")
        if entry.fields["kind"] == FAILED:
            raise InvalidAnswer(f"in the run, it failed ({entry.fields['fault']})")
        if step.endswith(JUDGE):
            if (entry.fields.get("parts") or {}).get("accept") == question.parts.get("accept"):
                return "yes"  # it has passed
            self.missing[path_of(question.place)] += 1
            raise InvalidAnswer(f"the run has no verdict of {step}: its check changed")
        value = entry.answer.value
        return value if isinstance(value, str) else shown_value(value)


_RUN_ROW = "0" * 16


@dataclass(frozen=True, slots=True)
class RehearsedRun:
    """What came of it: lines that tell what differs from the run's table, rows, and by path what was asked otherwise."""

    differences: list[str]
    rows: int
    again: Mapping[str, Mapping[str, int]]
    missing: Mapping[str, int]

    @property
    def data(self) -> dict[str, Any]:
        """The same as JSON data."""
        told = {"passed": not self.differences, "differences": self.differences, "rows": self.rows}
        return told | {"asked_again": self.again, "missing": self.missing}


class RecordedRehearsal(RunSession):
    """A run with the answers of an earlier one; nothing is sent. ``show``: private values are told, too."""

    def __init__(self, state: State, options: Mapping[str, Any], recorded: Path, *, show: bool) -> None:
        super().__init__(state, options)
        self._recorded, self._show = recorded, show

    def replay(self) -> RehearsedRun:
        """Run; return what differs. Raises `InputError` if there is no such run."""
        earlier = EarlierRun.of(self._recorded)
        output = Path(str(earlier.journal).removesuffix(JOURNAL))
        if not output.exists():
            raise InputError(f"the run has no table: {output} does not exist", hint="name the output of a `workflow run`")
        workflow, table, orchestrator = self._opened()
        target = self._target.with_suffix(output.suffix)
        shutil.copyfile(earlier.journal, journal_beside(target))
        if earlier.answers.exists():
            shutil.copyfile(earlier.answers, answers_beside(journal_beside(target)))
        with orchestrator:
            models = RecordedModels(orchestrator.config, orchestrator.plan, earlier)
            with WorkflowRun(workflow, table, target, models, RunOptions(concurrency=1)) as run:
                models.watch(run)
                asyncio.run(run.run())
                again = {path: dict(counts.why) for path, counts in run.counts.items() if counts.why}
        hidden = set() if self._show else private_columns(workflow)
        columns = [*workflow.output, "_state"]
        found = list(_differences(_rows(output), _rows(target), columns, hidden))
        return RehearsedRun(found, table.count(), again, dict(models.missing))


def _rows(path: Path) -> list[Mapping[str, Any]]:
    return [row.values for row in read_table(path, asks=False).rows()]


def _differences(
    expected: list[Mapping[str, Any]], rows: list[Mapping[str, Any]], columns: list[str], hidden: set[str]
) -> list[str]:
    """Return what is not as in the earlier table, a line for each value; columns that it does not have are passed over."""
    known = {name for row in expected for name in row} - {ERRORS}
    found = [f"there is no column {name} any more" for name in sorted(known - {*columns, "_state"})]
    for number, (row, wanted) in enumerate(zip(rows, expected, strict=False), 1):
        for name in (one for one in columns if one in known):
            one, other = (value.get(name) for value in (row, wanted))
            if one != other or isinstance(one, bool) != isinstance(other, bool):
                told = [hidden_value(value) if name in hidden else value for value in (one, other)]
                found.append(f"row {number}: {name} is {shown_value(told[0])}, in the run {shown_value(told[1])}")
    if len(expected) != len(rows):
        found.append(f"{len(rows)} rows, in the run {len(expected)}")
    return found
