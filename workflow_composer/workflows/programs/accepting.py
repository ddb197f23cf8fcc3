"""Checks of answers: by a program, a function, or a judge; for ``accept:`` and for ``release: {check: …}``.

A check that says no has words for the model that gave the answer: the end of the test's output. A check that could not run
is no verdict: it raises, and nothing is accepted or released.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from workflow_composer.answers.output_form import output_form
from workflow_composer.errors import ProgramFault
from workflow_composer.execution.forming import MOST_BYTES, tail_of
from workflow_composer.types import EMPTY, LLMRequest, LLMResponse
from workflow_composer.workflows.definition.model import AnswerCheck, CommandBody, PromptBody, PythonBody
from workflow_composer.workflows.programs.command import run_command
from workflow_composer.workflows.programs.function import call_function
from workflow_composer.workflows.programs.outcome import ProgramOutcome
from workflow_composer.workflows.running.results import Scope

Ask = Callable[[LLMRequest], Awaitable[LLMResponse]]
"""Answers a request: `ModelOrchestrator.agenerate`, or what stands before it."""

_VERDICT = output_form(["yes", "no"])


class StepCheck:
    """The check of one answer of a step, for `LLMRequest.check`: call it with a value, and it says what is wrong with it.

    ``names`` are those of the row; the step's own name means the value that is checked. ``private`` as in `run_command`.
    ``ask`` asks the judge; it adds whose money that is, and that the request is private. ``runs`` counts the checks,
    ``calls`` the judge's calls and ``cost`` their dollars. Raises `ProgramFault` if the check cannot run, and what ``ask``
    raises.
    """

    def __init__(
        self,
        check: AnswerCheck,
        *,
        step: str,
        names: Scope,
        folder: Path,
        private: bool,
        ask: Ask,
    ) -> None:
        self._check = check
        self._step = step
        self._names = names
        self._folder = folder
        self._private = private
        self._ask = ask
        self.runs = 0
        self.calls = 0
        self.cost = 0.0

    async def __call__(self, value: Any) -> str | None:
        """Return what is wrong with a value (JSON data), at most 4 KB; None: it passes."""
        self.runs += 1
        results = {name: result for name, result in self._names.results.items() if name != self._step}
        names = Scope({**self._names.plain, self._step: value}, results)
        body = self._check.body
        if isinstance(body, CommandBody):
            return await self._by_program(body, value, names)
        if isinstance(body, PythonBody):
            return await self._by_function(body, value, names)
        return await self._by_judge(body, value, names)

    def _given(self, names: Scope) -> dict[str, Any] | None:
        return {name: reading.evaluate(names) for name, reading in self._check.given.items()} if self._check.given else None

    def _files(self, names: Scope) -> dict[str, str]:
        return {name: reading.evaluate(names) for name, reading in self._check.files.items()}

    async def _by_program(self, body: CommandBody, value: Any, names: Scope) -> str | None:
        given = self._given(names)
        outcome = await run_command(
            body,
            given=value if given is None else given,
            files=self._files(names),
            limits=self._check.limits,
            folder=self._folder,
            private=self._private,
        )
        return None if outcome.passed else _words(outcome)

    async def _by_function(self, body: PythonBody, value: Any, names: Scope) -> str | None:
        given = self._given(names)
        try:
            found = await call_function(
                body,
                given=given or EMPTY,
                args=(value,) if given is None else (),
                files=self._files(names),
                limits=self._check.limits,
                folder=self._folder,
                private=self._private,
            )
        except ProgramFault as fault:
            if not fault.started:
                raise
            return tail_of(fault.said or fault.message, MOST_BYTES)
        if found is None or found is True:
            return None
        if found is False:
            return f"{body.target} says no"
        if isinstance(found, str):
            return tail_of(found, MOST_BYTES)
        raise ProgramFault(
            f"{body.target} must return True, None, False or a text that says what is wrong, not {type(found).__name__}",
            started=False,
        )

    async def _by_judge(self, body: PromptBody, value: Any, names: Scope) -> str | None:
        prompt = body.prompt.evaluate(names)
        if self._step not in body.prompt.reads:
            shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            prompt = f"{prompt}\n\n{shown}"
        system = None if body.system is None else body.system.evaluate(names)
        own = {"step": f"{self._step}.judge"}
        request = LLMRequest.of(prompt, system=system, model=self._check.model, form=_VERDICT, temperature=0.0, metadata=own)
        response = await self._ask(request)
        self.calls += len(response.attempts)
        self.cost += response.cost
        if response.value not in ("yes", "no"):
            raise ProgramFault("the judge answered neither yes nor no")
        return None if response.value == "yes" else f"a judge said no to: {tail_of(body.prompt.text, MOST_BYTES // 4)}"


def _words(outcome: ProgramOutcome) -> str:
    """Say how a program ended, and the end of what it wrote."""
    written = outcome.output.rstrip()
    if outcome.errors.strip():
        written = f"{written}\n{outcome.errors.rstrip()}" if written else outcome.errors.rstrip()
    end = outcome.end()
    return f"{end}\n{tail_of(written, MOST_BYTES - len(end) - 1)}" if written else end
