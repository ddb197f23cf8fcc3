"""One question of a step: looked up among the kept answers, else asked of a model, a program, a function or a person.

An answer is kept before it is used. Nothing is asked once the run is stopped.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_composer.answers.form import OutputForm
from workflow_composer.answers.output_form import output_form
from workflow_composer.errors import BudgetExceeded, ProgramFault, RunBudgetReached
from workflow_composer.support.fast_dataclass import changed
from workflow_composer.types import ANY_TASK, LLMRequest, LLMResponse
from workflow_composer.workflows.definition.evaluation import kind_of
from workflow_composer.workflows.definition.model import AnswerCheck, CommandBody, HumanBody, PromptBody, PythonBody, Step
from workflow_composer.workflows.keeping.answers import EarlierTries, KeptAnswer, StepQuestion
from workflow_composer.workflows.programs.accepting import StepCheck
from workflow_composer.workflows.programs.command import run_command
from workflow_composer.workflows.programs.function import call_function
from workflow_composer.workflows.running.failing import StepFailure, facts_of, in_a_line, of_error, of_value, value_of
from workflow_composer.workflows.running.prompt_room import too_long_for
from workflow_composer.workflows.running.results import CHEAPER, Origin, Scope, StepResult, ValueFault
from workflow_composer.workflows.running.world import Purse, StopSign, World

if TYPE_CHECKING:
    from workflow_composer.execution.reservation import Reservation

ANY_TEXT = output_form("text")
_YES_OR_NO = output_form(["yes", "no"])
STOPPED = "not begun, because the run was stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """Where steps are done: of which row ("" for the run), with whose money, and until when.

    ``prefix`` stands before the names of the steps in their places; ``folder`` is where their programs are; ``ends`` is the
    event loop's time at which the row's time is up.
    """

    world: World
    row: str
    purse: Purse
    folder: Path
    prefix: str = ""
    ends: float = math.inf

    def left(self) -> float:
        """Return the seconds until the row's time is up."""
        return self.ends - asyncio.get_running_loop().time()


class _Stopped(Exception):
    """The run was stopped before the question could be asked; ``why`` in words."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class _Question:
    """What a step asks: ``asked`` makes its key, `answer` asks. Made of values alone; making it raises `ValueFault`."""

    asked: dict[str, Any]
    cheaper: str | None = None
    """The model that is asked alone, because the budget is low."""
    spent: float
    """The dollars of all requests so far."""

    def __init__(self, step: Step, names: Scope, spot: Spot) -> None:
        self.step, self.names, self.spot = step, names, spot
        self.form: OutputForm | None = step.form
        self._purse: Reservation | None = None
        self.spent, self._tokens = 0.0, 0
        self.progress: EarlierTries | None = None
        self.acceptance = None if step.accept is None else self.checked_by(step.accept)

    @property
    def stays(self) -> bool:
        """Whether a program of the step must not use the network."""
        return self.step.labels.private and not self.step.trusted

    def checked_by(self, check: AnswerCheck) -> StepCheck:
        """Return a check of the step's answers."""
        return StepCheck(
            check,
            step=self.step.name,
            names=self.names,
            folder=self.spot.folder,
            private=self.stays,
            ask=self.paid,
        )

    async def refusal_of(self, value: Any) -> str | None:
        """Return what the step's check says of an answer, or has said of it in an earlier try; None: it passes."""
        check = self.acceptance
        assert check is not None  # the caller has looked
        if self.progress is None:
            return await check(value)
        return await self.progress.checked(value, check, lambda: (check.calls, check.cost))

    def what_is_checked(self) -> dict[str, Any]:
        """Return what the readings of ``accept`` read, but for the answer itself."""
        return {} if self.step.accept is None else self.read_by_check(self.step.accept)

    def read_by_check(self, check: AnswerCheck) -> dict[str, Any]:
        """Return what the readings of a check read, but for the answer itself."""
        readings = [*check.files.values(), *check.given.values()]
        if isinstance(check.body, PromptBody):
            readings += [one for one in (check.body.prompt, check.body.system) if one is not None]
        names = sorted({name for reading in readings for name in reading.reads} - {self.step.name})
        return {"checked": {name: self.names.value(name) for name in names}} if readings else {}

    async def paid(self, request: LLMRequest) -> LLMResponse:
        """Answer a request within the time and the money that there is. Raises what the call raises.

        A judge's request is paid by the reservation of the request whose answer it judges, for which it must not wait.
        """
        limits = [limit for limit in (self.step.timeout, self.spot.left()) if limit is not None and limit < math.inf]
        if self._purse is None:
            self._purse = self.spot.purse.begin()
        private = request.private or self.step.labels.private
        if limits or self._purse is not None or private != request.private:
            seconds = max(0.0, min(limits)) if limits else None
            request = changed(request, timeout=seconds, purse=self._purse, private=private)
        try:
            response = await self.spot.world.ask(request)
        except Exception as error:
            attempts = getattr(error, "attempts", ())
            self.spent += sum(one.cost for one in attempts)
            self._tokens += sum(one.usage.total_tokens for one in attempts)
            raise
        self.spent += response.cost
        self._tokens += response.usage.total_tokens
        return response

    def settle(self) -> None:
        """Give back what was reserved and not spent."""
        if self._purse is not None:
            self._purse.settle(self.spent, self._tokens)
            self._purse = None

    async def answer(self) -> KeptAnswer:
        """Ask. Raises `StepFailure`, or what the call raises."""
        raise AssertionError  # every kind of question has its own

    async def accepted(self, value: Any, facts: dict[str, Any]) -> KeptAnswer:
        """Return an answer that is no model's, once it has its form and has passed its check."""
        private = self.step.labels.private
        if self.form is not None:
            value = of_form(self.form, value, private=private)
        if self.acceptance is not None and (problem := await self.refusal_of(value)) is not None:
            reason = "the check refused it" if private else in_a_line(f"it did not pass: {problem}")
            raise StepFailure(kind="invalid", reason=reason, facts={**facts, "said": problem})
        return KeptAnswer(value=value, facts=facts)


class _PromptQuestion(_Question):
    """A question to a model."""

    def __init__(self, step: Step, names: Scope, spot: Spot) -> None:
        super().__init__(step, names, spot)
        body = step.body
        assert isinstance(body, PromptBody)  # the caller has looked
        self.form = step.form or ANY_TEXT
        self.body = body
        self.prompt = body.prompt.evaluate(names)
        self.system = None if body.system is None else body.system.evaluate(names)
        if not self.prompt.strip():
            raise ValueFault("the prompt is empty")
        messages = [{"role": "user", "content": self.prompt}]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        self.asked = {"messages": messages, **self.what_is_checked()}

    def _request(self) -> LLMRequest:
        step = self.step
        return LLMRequest(
            messages=tuple(self.asked["messages"]),
            task_type=step.task or ANY_TASK,
            model=step.model if self.cheaper is None else self.cheaper,
            max_tokens=step.tokens,
            temperature=step.temperature,
            tools=self.body.tools,
            context=self.body.context,
            form=self.form,
            form_retries=step.retries,
            check=None if self.acceptance is None else self.refusal_of,
            replies=self.progress,
            metadata={"step": step.name},
        )

    async def answer(self) -> KeptAnswer:
        """Ask the model, and its stronger ones while the answer has not the form or does not pass the check."""
        assert self.form is not None  # a prompt always has one
        if (room := self.spot.world.room(self.step)) is not None:
            said = "\n".join(one for one in (self.system, self.prompt, self.form.instructions()) if one)
            if (told := too_long_for(said, room)) is not None:
                raise StepFailure(kind="too_long", reason=told)
        response = await self.paid(self._request())
        judged = 0 if self.acceptance is None else self.acceptance.calls
        more: dict[str, Any] = {"cost": self.spent, "judged": judged} if judged else {}
        try:
            value = value_of(response, self.form, private=self.step.labels.private)
        except StepFailure as failure:
            failure.facts = {**failure.facts, **more}
            raise
        if self.cheaper is not None:
            more[CHEAPER] = True
        return KeptAnswer(value=value, facts={**facts_of(response), **more})


class _CommandQuestion(_Question):
    """A run of a program."""

    def __init__(self, step: Step, names: Scope, spot: Spot) -> None:
        super().__init__(step, names, spot)
        given = {name: reading.evaluate(names) for name, reading in step.given.items()}
        files = {name: reading.evaluate(names) for name, reading in step.files.items()}
        self.asked = {"given": given, "files": files, **self.what_is_checked()}

    async def answer(self) -> KeptAnswer:
        """Run the program; its value is its standard output, as JSON if it is JSON."""
        body = self.step.body
        assert isinstance(body, CommandBody)  # the caller has looked
        outcome = await run_command(
            body,
            given=self.asked["given"],
            files=self.asked["files"],
            limits=self.step.limits,
            folder=self.spot.folder,
            private=self.stays,
        )
        if not outcome.passed:
            raise of_error(ProgramFault(outcome.end(), said=outcome.errors), private=self.step.labels.private)
        if outcome.shortened:
            raise StepFailure(kind="program", reason=f"its output of {outcome.written:,} bytes is too long")
        output = outcome.output.removesuffix("\n")
        value = output if self.form is not None else _json_or_text(output)
        return await self.accepted(value, {"runs": 1, "seconds": round(outcome.seconds, 3)})


class _FunctionQuestion(_Question):
    """A call of a function."""

    def __init__(self, step: Step, names: Scope, spot: Spot) -> None:
        super().__init__(step, names, spot)
        given = {name: reading.evaluate(names) for name, reading in step.given.items()}
        self.files = {name: reading.evaluate(names) for name, reading in step.files.items()}
        self.asked = {"given": given, **({"files": self.files} if self.files else {}), **self.what_is_checked()}

    async def answer(self) -> KeptAnswer:
        """Call the function."""
        body, step = self.step.body, self.step
        assert isinstance(body, PythonBody)  # the caller has looked
        value = await call_function(
            body,
            given=self.asked["given"],
            files=self.files,
            limits=step.limits,
            folder=self.spot.folder,
            private=self.stays,
        )
        return await self.accepted(value, {"runs": 1})


class _HumanQuestion(_Question):
    """A question to a person."""

    def __init__(self, step: Step, names: Scope, spot: Spot) -> None:
        super().__init__(step, names, spot)
        assert isinstance(step.body, HumanBody)  # the caller has looked
        self.asked = {"prompt": step.body.prompt.evaluate(names)}


_KINDS: Mapping[type, type[_Question]] = {
    PromptBody: _PromptQuestion,
    CommandBody: _CommandQuestion,
    PythonBody: _FunctionQuestion,
    HumanBody: _HumanQuestion,
}


async def ask(step: Step, names: Scope, spot: Spot, place: str) -> StepResult:
    """Return what becomes of one question of a step; failures are results."""
    try:
        made = _KINDS[type(step.body)](step, names, spot)
    except ValueFault as fault:
        return _failed(of_value(fault))
    question = spot.world.question(step, row=spot.row, place=place, asked=made.asked)
    if isinstance(made, _PromptQuestion) and (cheaper := spot.world.cheaper(step)) is not None:
        if (kept := spot.world.keeper.find(question)) is not None:  # the whole answer, of an earlier run
            return _done(kept, kept=True)
        made.cheaper = cheaper
        question = spot.world.question(step, row=spot.row, place=place, asked={**made.asked, CHEAPER: cheaper})
    if not question.share:
        return await _found_or_asked(made, question)
    async with spot.world.once(question.digest):
        return await _found_or_asked(made, question)


async def _found_or_asked(made: _Question, question: StepQuestion) -> StepResult:
    keeper = made.spot.world.keeper
    if (kept := keeper.find(question)) is not None:
        return _done(kept, kept=True)
    if (refusal := keeper.refused(question)) is not None:
        why = "stopped" if refusal.state == "not_run" else refusal.kind
        return _result(refusal.facts, state=refusal.state, reason=refusal.reason, kind=why)
    return _waiting(made, question) if isinstance(made, _HumanQuestion) else await _asked_now(made, question)


async def _asked_now(made: _Question, question: StepQuestion) -> StepResult:
    keeper = made.spot.world.keeper
    progress = made.progress = keeper.progress(question)
    try:
        answer = await _answered(made)
    except _Stopped as stop:
        return StepResult(state="not_run", kind="stopped", reason=stop.why)
    except StepFailure as failure:
        if failure.kind != "budget" or made.spent:
            facts = {**failure.facts, "cost": made.spent} if made.spent else failure.facts
            failure.facts = facts if progress is None else progress.whole(facts)
            keeper.failed(question, failure.kind, {"reason": failure.reason, **failure.facts})
        return _failed(failure)
    if progress is not None:
        answer = replace(answer, facts=progress.whole(answer.facts))
    keeper.keep(question, answer)
    return _done(answer)


async def _answered(made: _Question) -> KeptAnswer:
    """Ask within the run's gate and the limits of time. Raises `StepFailure`, `_Stopped`."""
    spot, step = made.spot, made.step
    stopped = spot.world.stopped
    _refuse_if_stopped(stopped)
    try:
        if math.isinf(spot.ends):
            return await _at_the_gate(made)
        async with asyncio.timeout_at(spot.ends):
            return await _at_the_gate(made)
    except (_Stopped, StepFailure):
        raise
    except ValueFault as fault:
        raise of_value(fault) from None
    except TimeoutError:
        of_more = spot.left() <= 0 or step.timeout is None
        told = "the time limit of the row, or of what the step belongs to, passed" if of_more else ""
        raise StepFailure(kind="timeout", reason=told or f"its time limit of {step.timeout:g} s passed") from None
    except RunBudgetReached as error:
        stopped.stop(error.message)
        raise _Stopped(stopped.why) from None
    except Exception as error:
        if isinstance(error, BudgetExceeded) and stopped.is_set() and not error.attempts:
            raise _Stopped(stopped.why) from None
        raise of_error(error, private=step.labels.private) from error  # an error of one question must not end the others
    finally:
        made.settle()


async def _at_the_gate(made: _Question) -> KeptAnswer:
    world = made.spot.world
    model = world.first_model(made.step) if isinstance(made, _PromptQuestion) else None
    async with world.gate() if model is None else world.gate(model):
        _refuse_if_stopped(world.stopped)
        if made.step.timeout is None or isinstance(made, _PromptQuestion):  # whose request has the limit
            return await made.answer()
        async with asyncio.timeout(made.step.timeout):
            return await made.answer()


def _refuse_if_stopped(stopped: StopSign) -> None:
    """Raise `_Stopped` if nothing new may be asked."""
    if stopped.is_set():
        raise _Stopped(stopped.why or STOPPED)


def _waiting(made: _HumanQuestion, question: StepQuestion) -> StepResult:
    """Write the question down; once it has waited for too long, do what the step says."""
    step, world = made.step, made.spot.world
    since = world.people.wait(question, step, made.asked["prompt"])
    if step.waits is None or world.now() - since < step.waits.at_most:
        return StepResult(state="waiting", reason="waits for a person")
    told = f"no person has answered within {step.waits.at_most:g} s"
    if step.waits.fails:
        return StepResult(state="failed", kind="timeout", reason=told)
    return StepResult(state="done", value=step.waits.then, reason=told, origin="default")


# ------------------------------------------------------------------------------------------------------------ releases


async def released(step: Step, result: StepResult, names: Scope, spot: Spot, place: str) -> StepResult:
    """Return the result of a step once its value may be read by others, else withheld: no, unless something says yes."""
    release = step.release
    if release is None or result.state != "done" or release.how in ("choices", "declared"):
        return result
    if release.check is None:
        return await _released_by_person(step, result, spot, place)
    made = _ReleaseCheck(step, names, spot, result.value, release.check)
    question = spot.world.question(step, row=spot.row, place=f"{place}!release", asked=made.asked, release=True)
    return await _released_by_check(made, question, result)


async def _released_by_check(made: _ReleaseCheck, question: StepQuestion, result: StepResult) -> StepResult:
    """Return the result if the check passes, or has passed for the same value in an earlier run.

    What a program refused, it is asked again: that may have been its own fault. What a judge said is an answer.
    """
    keeper = made.spot.world.keeper
    answer = keeper.find(question)
    if answer is None:
        if (refusal := keeper.refused(question)) is not None:
            return replace(result, state="not_run", kind="stopped", value=None, reason=refusal.reason)
        try:
            answer = await _answered(made)
        except _Stopped as stop:
            return replace(result, state="not_run", kind="stopped", value=None, reason=stop.why)
        except StepFailure as failure:
            told = f"the check of its release could not be done: {failure.reason}"
            return replace(result, state="withheld", value=None, reason=told)
        if answer.value is True or made.release.calls:
            keeper.keep(question, answer)
    cost = result.cost + answer.facts["cost"]
    if answer.value is True:
        return replace(result, cost=cost)
    return replace(result, state="withheld", value=None, cost=cost, reason="the check of its release did not pass")


class _ReleaseCheck(_Question):
    """The check of a value's release: its answer is true if the value may be read by others."""

    def __init__(self, step: Step, names: Scope, spot: Spot, value: Any, check: AnswerCheck) -> None:
        super().__init__(step, names, spot)
        self.value, self.release = value, self.checked_by(check)
        self.asked = {"released": value, **self.read_by_check(check)}

    async def answer(self) -> KeptAnswer:
        """Check the value."""
        passed = await self.release(self.value) is None
        used = {"calls": self.release.calls} if self.release.calls else {"runs": 1}
        return KeptAnswer(value=passed, facts={**used, "cost": self.release.cost})


async def _released_by_person(step: Step, result: StepResult, spot: Spot, place: str) -> StepResult:
    """Ask a person whether a value may be read by others."""
    shown = result.value if isinstance(result.value, str) else json.dumps(result.value, ensure_ascii=False)
    asking = replace(step, form=_YES_OR_NO, waits=None)
    question = spot.world.question(step, row=spot.row, place=f"{place}!release", asked={"release": result.value})
    kept = spot.world.keeper.find(question)
    if kept is None:
        spot.world.people.wait(question, asking, f"May this be read by others, also in a cloud? {shown}")
        return replace(result, state="waiting", value=None, reason="waits for a person to release it")
    if kept.value == "yes":
        return result
    return replace(result, state="withheld", value=None, reason="a person did not release it")


# ------------------------------------------------------------------------------------------------------------- results


def _failed(failure: StepFailure) -> StepResult:
    return _result(failure.facts, state="failed", kind=failure.kind, reason=failure.reason)


def _done(answer: KeptAnswer, *, kept: bool = False) -> StepResult:
    facts = answer.facts
    origin: Origin = "person" if facts.get("person") else "shared" if answer.shared else "kept" if kept else "asked"
    return _result(facts, state="done", value=answer.value, origin=origin)


def _result(facts: Mapping[str, Any], **fields: Any) -> StepResult:
    """Return a result with what its facts say of calls, cost, model and time."""
    return StepResult(
        **fields,
        attempts=int(facts.get("calls") or 0) + int(facts.get("runs") or 0),
        cost=float(facts.get("cost") or 0.0),
        model=str(facts.get("model") or ""),
        seconds=float(facts.get("seconds") or 0.0),
        counts={name: facts[name] for name in ("refused", "mended", "tier", "judged", CHEAPER) if name in facts},
    )


def _json_or_text(output: str) -> Any:
    try:
        return json.loads(output)
    except (ValueError, RecursionError):
        return output


def of_form(form: OutputForm, value: Any, *, private: bool = False) -> Any:
    """Return a program's value as the form reads it. Raises `StepFailure` if it does not have the form."""
    if form.is_text:
        if isinstance(value, str):
            return value
        raise StepFailure(kind="invalid", reason=f"a text is needed, found {kind_of(value)}")
    formed = form.read(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    if formed.problem is not None:
        told = "" if private else f": {formed.problem}"
        raise StepFailure(kind="invalid", reason=f"its value does not have the wanted form{told}")
    return form.plain(formed.value)
