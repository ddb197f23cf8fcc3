"""Scripted answers: a workflow run without any model, for the tests that a person writes for their file.

Everything else is real: routing, forms, checks, retries, escalation, conditions, programs and functions. Only what the
models say comes from the script.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_composer.backends.fake import FakeBackend
from workflow_composer.backends.pricing import GpuMeter, Price
from workflow_composer.errors import InputError, InvalidAnswer, nearest
from workflow_composer.execution.breaker import CircuitBreaker
from workflow_composer.execution.call import Endpoint, Trace
from workflow_composer.execution.executor import PlanExecutor
from workflow_composer.runtime.streams import response_of
from workflow_composer.types import ModelCall, texts
from workflow_composer.workflows.definition.source import as_plain, read_source

if TYPE_CHECKING:
    from workflow_composer.config.strategy import StrategyConfig
    from workflow_composer.plan import Plan
    from workflow_composer.types import LLMRequest, LLMResponse
    from workflow_composer.workflows.definition.model import Workflow

_KEYS = ("rows", "answers", "expect")
JUDGE = ".judge"
"""After a step's name: the answers of its judge."""


@dataclass(frozen=True, slots=True)
class FlowTest:
    """What a test's file says: ``rows`` (None: a table is given), ``answers`` by step, and columns that are expected.

    The answers of a step are one text for every call, a list of them, one for each call in turn, or a mapping: the first
    text that the prompt contains chooses the answer, or the list of them. What else is no text is written as JSON.
    """

    rows: Sequence[Mapping[str, Any]] | None = None
    answers: Mapping[str, Any] = field(default_factory=dict)
    expect: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def read(cls, path: Path) -> FlowTest:
        """Read a test's file, in YAML. Raises `InputError`."""
        tree, _, _ = read_source(path)
        found = as_plain(tree)
        for key in found:
            if key not in _KEYS:
                raise InputError(f"{path}: unknown key {key!r}", hint=nearest(key, _KEYS) or f"allowed: {', '.join(_KEYS)}")
        answers, rows, expect = found.get("answers") or {}, found.get("rows"), found.get("expect") or []
        if not isinstance(answers, Mapping):
            raise InputError(f"{path}: answers is no mapping", hint="write answers: {STEP: TEXT}")
        for key, value in (("rows", rows or []), ("expect", expect)):
            if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
                raise InputError(f"{path}: {key} is no list of rows", hint=f"write {key}: [{{COLUMN: VALUE}}]")
        return cls(rows, answers, expect)

    def check(self, workflow: Workflow) -> None:
        """Raise `InputError` for answers of a step, or for an expected column, that the workflow does not have."""
        steps = {path.rpartition(".")[2] for path, _ in workflow.every_step()}
        for name in self.answers:
            if name.removesuffix(JUDGE) not in steps:
                raise InputError(f"answers: there is no step {name!r}", hint=nearest(name, steps))
        columns = (*workflow.output, "_state", "_errors")
        for number, row in enumerate(self.expect, 1):
            for name in row:
                if name not in columns:
                    raise InputError(f"expect, row {number}: there is no column {name!r}", hint=nearest(name, columns))

    def differences(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """Return what is not as expected, one line for each value."""
        found = [
            f"row {number}: {name} is {shown_value(row.get(name))}, expected {shown_value(value)}"
            for number, (row, wanted) in enumerate(zip(rows, self.expect, strict=False), 1)
            for name, value in wanted.items()
            if row.get(name) != value or isinstance(row.get(name), bool) != isinstance(value, bool)
        ]
        if self.expect and len(self.expect) != len(rows):
            found.append(f"{len(rows)} rows, expected {len(self.expect)}")
        return found


def shown_value(value: Any) -> str:
    """Return a value as JSON."""
    return json.dumps(value, ensure_ascii=False)


class ScriptedModels:
    """Answers the requests of a workflow from a script, by the plans of a profile; sends nothing.

    A request's ``metadata`` names its step.
    """

    def __init__(self, config: StrategyConfig, plan: Callable[..., Plan], answers: Mapping[str, Any]) -> None:
        self.config, self.plan = config, plan
        self._used: dict[str, int] = {}
        self._answers = answers
        self._endpoints: dict[str, Endpoint] = {}

    async def agenerate(self, request: LLMRequest) -> LLMResponse:
        """Return the response to a request. Raises as `ModelOrchestrator.agenerate`."""
        began, trace, plan = time.perf_counter(), Trace(request.timeout, request.most_calls), self.plan_of(request)
        for tier in plan.tiers:
            for candidate in tier.candidates:
                if candidate.name not in self._endpoints:
                    backend = FakeBackend(self._reply, name=candidate.name, local=candidate.local, record=False)
                    breaker = CircuitBreaker(candidate.name, failures=1_000_000, cooldown=0.0)
                    self._endpoints[candidate.name] = Endpoint(candidate, backend, Price(), breaker, GpuMeter())
        outcome = await PlanExecutor(self._endpoints).run(plan, request, trace)
        return response_of(self.config, request, plan, outcome, trace, time.perf_counter() - began)

    def plan_of(self, request: LLMRequest) -> Plan:
        """Return the plan of a request."""
        return self.plan(request)

    def _reply(self, call: ModelCall) -> str:
        step = str(call.request.metadata.get("step", ""))
        if step not in self._answers:
            raise InvalidAnswer(f"the test has no answer of {step}", hint=f"add answers: {{{step}: TEXT}}")
        script, place = self._answers[step], step
        if isinstance(script, Mapping):
            said = "\n".join(text for message in call.request.messages for text in texts(message))
            chosen = next((part for part in script if part in said), None)
            if chosen is None:
                raise InvalidAnswer(f"the test has no answer of {step} for this prompt")
            script, place = script[chosen], f"{step}: {chosen}"
        number = self._used.get(place, 0)
        self._used[place] = number + 1
        if isinstance(script, list):
            if number >= len(script):
                raise InvalidAnswer(f"the test's {len(script)} answers of {place} are used up")
            script = script[number]
        return script if isinstance(script, str) else shown_value(script)
