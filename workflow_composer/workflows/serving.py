"""Workflows that a service offers as models ``workflow:NAME``: a message in, a text out, one row, nothing kept.

Which input takes the message, and that nothing in the workflow waits for a person or for other rows, is checked when the
profile loads.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_composer.errors import ProfileError, ProfileNotFound, TooManyCalls
from workflow_composer.types import ANY_TASK, EMPTY
from workflow_composer.workflows.definition.loading import load_workflow
from workflow_composer.workflows.definition.model import HumanBody, NestedBody, PromptBody, Step, Workflow
from workflow_composer.workflows.keeping.answers import NothingKept, asked_anew
from workflow_composer.workflows.keeping.gate import Asker, CallGate, OneAtATime
from workflow_composer.workflows.keeping.money import MoneyAccount, RunPurse
from workflow_composer.workflows.keeping.rows import RunRow
from workflow_composer.workflows.programs.presence import refuse_missing
from workflow_composer.workflows.running.results import FailureKind, RowOutcome
from workflow_composer.workflows.running.row import run_row
from workflow_composer.workflows.running.world import StepWatch, StopSign, World

if TYPE_CHECKING:
    from workflow_composer.config.strategy import StrategyConfig
    from workflow_composer.plan import Plan
    from workflow_composer.types import LLMRequest, LLMResponse
    from workflow_composer.workflows.step_kinds import StepKind

MESSAGE_INPUTS = ("message", "prompt", "question")
"""Names of the input that takes the message, where there are several texts."""
SUFFIXES = (".yaml", ".yml")
_ROW = "0" * 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedWorkflow:
    """A workflow, the input that ``takes`` the message, and the step whose answer is passed on as it comes (``live``).

    ``live`` is empty where the step that the file names for streams can be shown only when it has ended, or none is named.
    """

    workflow: Workflow
    takes: str
    live: str = ""

    def text_of(self, outcome: RowOutcome) -> str:
        """Return the answer: of the step that ``stream`` names, else the only column, else all columns as JSON."""
        named = self.workflow.stream
        if named is not None and (step := outcome.steps.get(named)) is not None and step.value is not None:
            return _text(step.value)
        columns = list(outcome.output.values())
        return _text(columns[0] if len(columns) == 1 else dict(outcome.output))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)


# ------------------------------------------------------------------------------------------------------------- loading


def served_workflows(config: StrategyConfig, kinds: Mapping[str, StepKind] = EMPTY) -> dict[str, ServedWorkflow]:
    """Return the workflows of a profile's key ``workflows`` by their names. Raises `ProfileError` with all faults."""
    problems: list[str] = []
    found: dict[str, ServedWorkflow] = {}
    files: dict[str, Path] = {}
    for number, place in enumerate(config.workflows):
        where = config.where("workflows", number)
        for path in _files(Path(str(place)), where, problems):
            try:
                flow = refuse_missing(load_workflow(path, config=config, kinds=kinds))
            except ProfileNotFound as error:
                problems.append(f"{where}: {error.message}")
                continue
            except ProfileError as error:
                problems += error.problems
                continue
            wrong = [*_unfit(flow, str(path))]
            if flow.name in files and files[flow.name] != path:
                wrong.append(f"{path}: workflow: {flow.name!r} is also the name of {files[flow.name]}; rename one of them")
            problems += wrong
            if not wrong:
                files[flow.name] = path
                found[flow.name] = ServedWorkflow(workflow=flow, takes=_takes(flow)[0], live=_live(flow))
    if problems:
        raise ProfileError(problems)
    return found


def _files(place: Path, where: str, problems: list[str]) -> list[Path]:
    if not place.is_dir():
        return [place]
    found = sorted(path for path in place.iterdir() if path.suffix in SUFFIXES)
    if not found:
        problems.append(f"{where}: the folder {place} has no workflow; allowed: a file, or a folder with .yaml files")
    return found


def _takes(flow: Workflow) -> list[str]:
    """Return the inputs that could take the message; just one is clear."""
    texts = [name for name, kind in flow.inputs.items() if kind in ("text", "private")]
    named = [name for name in texts if name in MESSAGE_INPUTS]
    return texts if len(texts) == 1 else named


def _unfit(flow: Workflow, file: str) -> Iterator[str]:
    """Yield why a workflow cannot answer a message, each with its remedy."""
    found = _takes(flow)
    if len(found) != 1:
        listed = ", ".join(f"{name}: {kind}" for name, kind in flow.inputs.items()) or "none"
        remedy = f"have a single text, or name one of them {', '.join(MESSAGE_INPUTS[:-1])} or {MESSAGE_INPUTS[-1]}"
        yield f"{file}: inputs: it is not clear which one takes a client's message ({listed}); {remedy}"
    else:
        needed = frozenset().union(
            *(step.needs for _, step in flow.every_step()), *(one.needs for one in flow.output.values())
        )
        for name in sorted((needed & flow.inputs.keys()) - set(found)):
            remedy = f"give it a default where it is read ({name} | default(...)), or leave the file out of workflows"
            yield f"{file}: inputs.{name}: a message fills only {found[0]}, and this input is needed; {remedy}"
    yield from _unanswerable(flow, file, "")


def _unanswerable(flow: Workflow, file: str, outer: str) -> Iterator[str]:
    """Yield the steps that no single request can answer, also in nested workflows."""
    for path, step in flow.every_step():
        where = f"{flow.path or file}:{step.line}: {outer}{path}"
        if isinstance(step.body, HumanBody) or (step.release is not None and step.release.how == "human"):
            yield f"{where}: a request cannot wait for a person; leave the step out, or the file out of workflows"
        if step.level == "run":
            yield f"{where}: a request has one row, and this step is over all rows; leave the file out of workflows"
        if isinstance(step.body, NestedBody):
            yield from _unanswerable(step.body.workflow, file, f"{outer}{path}/")


def _live(flow: Workflow) -> str:
    """Return the step whose text is final as it comes: one plain question without a check, of a name of its own."""
    step = None if flow.stream is None else flow.steps.get(flow.stream)
    if step is None or not isinstance(step.body, PromptBody) or list(_names(flow)).count(step.name) > 1:
        return ""
    plain = step.form is None or (step.form.is_text and not step.form.instructions())
    later = (step.accept, step.for_each, step.until, step.release)
    return step.name if plain and not any(later) and step.on_error.action != "default" else ""


def _names(flow: Workflow) -> Iterator[str]:
    for _, step in flow.every_step():
        yield step.name
        if isinstance(step.body, NestedBody):
            yield from _names(step.body.workflow)


# ------------------------------------------------------------------------------------------------------------- running


class CallAllowance:
    """The calls that all steps of one request may make together; ``most`` None: any number. Belongs to one event loop."""

    def __init__(self, most: int | None) -> None:
        self.most = most
        self.left: float = math.inf if most is None else most
        self._holders = 0
        self._changed = asyncio.Event()

    async def take(self, least: int, more: int, *, what: str, waits: bool = True) -> int:
        """Return how many calls a request may make: at least ``least``, and up to ``more`` for its retries.

        Waits (if it ``waits``) while others may give back what they hold. Raises `TooManyCalls`, which names ``what``.
        """
        while self.left < least:
            if not self._holders or not waits:
                most = f"a request may make {self.most} over all steps"
                told = f"{what} needs up to {least} calls; {most}, and {self.left:g} are left (most_calls)"
                raise TooManyCalls(told, hint="raise the limit (most_calls)")
            self._changed.clear()
            await self._changed.wait()
        given = int(min(self.left, least + more))
        self.left -= given
        self._holders += 1
        return given

    def give_back(self, given: int, used: int) -> None:
        """End a request that has used so many of the calls that it was given."""
        self.left += max(0, given - used)
        self._holders -= 1
        self._changed.set()


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageLimits:
    """What one message may take: ``dollars`` and ``seconds`` (None: what the workflow says), and calls of all steps.

    ``calls_left`` and ``calls_of`` as in a `World`.
    """

    dollars: float | None = None
    seconds: float | None = None
    calls_left: Callable[[], float] = field(default=lambda: math.inf)
    calls_of: Callable[[Step], int] = field(default=lambda step: 1)


async def answered(
    served: ServedWorkflow,
    message: str,
    ask: Callable[[LLMRequest], Awaitable[LLMResponse]],
    gate: CallGate,
    limits: MessageLimits,
    watch: StepWatch | None = None,
) -> RowOutcome:
    """Run a workflow for one message; ``gate`` bounds the calls at a time of all that share it. Failures are outcomes."""
    flow = served.workflow
    flow = replace(
        flow,
        row_budget=_least(flow.row_budget, flow.run_budget, limits.dollars),
        row_deadline=_least(flow.row_deadline, flow.run_deadline, limits.seconds),
    )
    nothing, stopped = NothingKept(), StopSign()
    world = World(
        ask=Asker(ask, gate, stopped),
        question=asked_anew,
        keeper=nothing,
        people=nothing,
        purse=RunPurse(MoneyAccount()),
        gate=gate,
        once=OneAtATime(),
        run_results=EMPTY,
        folder=flow.folder,
        stopped=stopped,
        calls_left=limits.calls_left,
        calls_of=limits.calls_of,
        watch=watch,
    )
    inputs = {**dict.fromkeys(flow.inputs), served.takes: message}
    return await run_row(flow, RunRow(0, "the message", _ROW, inputs), world)


_KNOWN_ROUTERS = frozenset({"cascade", "cascading_provider"})
"""Routers whose plan does not depend on what is asked."""


def sure_calls(step: Step, plan: Callable[..., Plan]) -> int:
    """Return how many calls one question of a step takes at least, however its answers turn out.

    Raises `WorkflowComposerError` where no plan can be made.
    """
    fields = {"task_type": step.task or ANY_TASK, "model": step.model}
    found = plan("?", **{name: value for name, value in fields.items() if value is not None})
    tier = found.tiers[0]
    if found.router not in _KNOWN_ROUTERS or tier.when_unknown is not None:
        return 1
    if tier.voting is None or tier.voting.stopping == "fixed":
        return tier.samples
    return tier.samples // 2 + 1 if tier.voting.stopping == "decided" else 1


def _least(*limits: float | None) -> float | None:
    return min((limit for limit in limits if limit is not None), default=None)


def steps_told(outcome: RowOutcome) -> str:
    """Return the states of the steps as a header's list (RFC 8941), such as ``a;state=done;calls=1, b;state=skipped``.

    >>> from workflow_composer.workflows.running.results import Scope, StepResult
    >>> steps = {"a": StepResult(state="done", attempts=1), "b": StepResult(state="skipped")}
    >>> steps_told(RowOutcome(row="", state="done", steps=steps, scope=Scope({})))
    'a;state=done;calls=1, b;state=skipped'
    """
    told = []
    for name, result in list(outcome.steps.items())[:_MOST_TOLD]:
        calls = f";calls={result.attempts}" if result.attempts else ""
        told.append(f"{name};state={result.state}{calls}")
    return ", ".join(told)


_MOST_TOLD = 50


def worst_kind(outcome: RowOutcome) -> FailureKind | None:
    """Return the kind of the first failure of a row that failed."""
    kinds: Sequence[FailureKind | None] = [one.kind for one in outcome.steps.values() if one.state == "failed"]
    return kinds[0] if kinds else None
