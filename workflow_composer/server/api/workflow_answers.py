"""Answers of workflows: ``model: "workflow:NAME"`` in chat completions, completions, messages and responses.

The last user message is one row of the workflow. Each call of a step is a request of its own, with the key's limits and
charged to the key; ``most_calls`` holds for all of them together. When the client goes away, the handler's task is
cancelled, and with it whatever the workflow has not done yet.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from workflow_composer.errors import ModelNotAllowed, TooManyCalls, WorkflowComposerError
from workflow_composer.execution.reservation import Reservation
from workflow_composer.execution.streaming import pieces_of
from workflow_composer.server.api.completion_handler import (
    ATTEMPTS,
    COST,
    MODEL,
    PREFIX,
    REQUEST_ID,
    STRATEGY,
    TRAILERS,
    UNBUFFERED,
    WARNING,
    Accounts,
    Visit,
    in_a_header,
    of_answer,
    of_end,
)
from workflow_composer.server.api.field_checks import UNSUPPORTED
from workflow_composer.server.api.forms import WORKFLOW, carried_of
from workflow_composer.server.api.json_wire import Asked, Dialect
from workflow_composer.server.auth.callers import marked
from workflow_composer.server.exchange import Exchange, Fields, Reply
from workflow_composer.server.failures import INVALID, SERVER, HttpFailure, interruption_of, without_places
from workflow_composer.server.silence import SILENT
from workflow_composer.support.fast_dataclass import changed
from workflow_composer.types import (
    NO_USAGE,
    Attempt,
    Chunk,
    LLMRequest,
    LLMResponse,
    RoutingDecision,
    Sample,
    Usage,
)
from workflow_composer.workflows.live_runs import LiveRun, RunBoard

if TYPE_CHECKING:
    from workflow_composer.orchestrator import ModelOrchestrator
    from workflow_composer.workflows.definition.model import Step
    from workflow_composer.workflows.keeping.gate import CallGate
    from workflow_composer.workflows.running.results import RowOutcome
    from workflow_composer.workflows.running.world import StepWatch
    from workflow_composer.workflows.serving import ServedWorkflow

STEPS = PREFIX + "steps"
"""Header (of a stream: trailer) with the state of each step, as a list of RFC 8941."""
_ROUTER = "workflow"
_REFUSED = frozenset({"tools", "tool_choice", "response_format", "form", "logprobs", "top_logprobs"})
"""Fields that change what an answer is, which a workflow's steps say themselves."""
_USED = frozenset({"model", "messages", "task_type", "metadata", "extra", "timeout", "budget", "allowed", "purse"})
_NOT_WARNED = _USED | _REFUSED | {"n", "user", "kind"}
_STATUS: Mapping[str | None, tuple[int, str]] = {
    "timeout": (504, "timeout"),
    "budget": (402, "budget_exceeded"),
    "too_long": (400, "context_length_exceeded"),
    "server": (503, "model_unavailable"),
}
_REPEATABLE = frozenset({"server", "timeout", "stopped", None})
"""Kinds of failures after which a client library may try again by itself: of others it would pay for the same once more."""
_NOT_AGAIN = ("x-should-retry", "false")
"""The header by which the libraries of OpenAI and Anthropic know that."""
_ALIVE = b": the steps are under way\n\n"
_LONGEST = 1000
_LONGEST_STEPS = 4000

_paying: ContextVar[Reservation | None] = ContextVar("paying", default=None)
"""The reservation of the call within which another one is made: a judge's is paid by that of the answer it judges."""
_asking: ContextVar[bool] = ContextVar("asking", default=False)


class WorkflowAnswers:
    """The handler of requests whose model is a workflow. ``report`` gets the error of a stream that has begun; ``board``
    shows who may see it what a request's steps are doing.
    """

    def __init__(
        self,
        orchestrator: ModelOrchestrator,
        accounts: Accounts,
        report: Callable[[str, BaseException], None],
        board: RunBoard,
    ) -> None:
        self._orchestrator, self._accounts, self._report, self._board = orchestrator, accounts, report, board
        self._gate: CallGate | None = None

    async def __call__(self, dialect: Dialect, exchange: Exchange, visit: Visit, asked: Asked) -> Reply | None:
        """Answer a request. Raises `HttpFailure`."""
        served = self._named(asked.fields["model"], visit)
        message = message_of(asked.fields)
        warnings = [*asked.warnings, *ignored(asked.fields)]
        visit.name_user(asked.fields)
        asked.request = LLMRequest(
            messages=asked.fields["messages"], model=asked.fields["model"], request_id=exchange.request_id
        )
        answer = _FlowAnswer(self._orchestrator, self._accounts, dialect, exchange, visit, asked, served)
        answer.said = [(WARNING, in_a_header(warning)) for warning in warnings]
        try:
            text = await self._shown(answer, message, exchange.request_id)
        except Exception as error:
            if not exchange.opened:
                raise
            self._report(exchange.request_id, error)
            exchange.write(answer.events.failed(interruption_of(error)))
            exchange.close_stream(answer.spent)
            return None
        return await answer.told(text)

    async def _shown(self, answer: _FlowAnswer, message: str, identity: str) -> str:
        """Run the workflow where others see its steps; return its text. Raises `HttpFailure` if the row has failed."""
        live = LiveRun(identity, answer.served.workflow, self._orchestrator.config)
        alive = asyncio.ensure_future(answer.stay_alive())
        async with self._board.showing(live):
            try:
                return await answer.run(message, self._shared_gate(), live)
            finally:
                alive.cancel()
                if answer.outcome is not None:
                    live.row(answer.outcome.state)
                    live.end(answer.outcome.state)

    def _named(self, name: str, visit: Visit) -> ServedWorkflow:
        """Return the workflow that a request names, if its key may use it."""
        key = visit.key
        if key is not None:
            if key.strategies:
                key.check(self._orchestrator.strategy)
            if key.models and name not in key.models:
                raise ModelNotAllowed(name)
        found = self._orchestrator.workflows.get(name.removeprefix(WORKFLOW))
        if found is None:
            known = ", ".join(f"{WORKFLOW}{one}" for one in self._orchestrator.workflows) if key is None else ""
            more = f"; there are: {known}" if known else ""
            raise HttpFailure(404, f"there is no workflow {name[:100]!r}{more}", code="model_not_found", param="model")
        return found

    def _shared_gate(self) -> CallGate:
        """Return what bounds the calls of all workflows in this worker."""
        if self._gate is None:
            from workflow_composer.workflows.keeping.gate import CallGate

            self._gate = CallGate()
        return self._gate


class _FlowAnswer:
    """One message on its way through a workflow."""

    def __init__(
        self,
        orchestrator: ModelOrchestrator,
        accounts: Accounts,
        dialect: Dialect,
        exchange: Exchange,
        visit: Visit,
        asked: Asked,
        served: ServedWorkflow,
    ) -> None:
        from workflow_composer.workflows.serving import CallAllowance

        self._orchestrator, self._accounts = orchestrator, accounts
        self._dialect, self._exchange, self._visit, self._asked = dialect, exchange, visit, asked
        self.served = served
        key = visit.key
        own = None if key is None else key.most_calls
        self._allowance = CallAllowance(accounts.most_calls if own is None else own)
        self._numbers = itertools.count(1)
        self._identity = exchange.request_id
        if key is not None:
            self._identity = self._identity.rpartition("-")[0]  # without the key's mark, which each call gets anew
        self._carried = carried_of(exchange.headers, orchestrator.forwarded)
        self._attempts: list[Attempt] = []
        self._refusal: HttpFailure | None = None
        self._has_text = False
        self._written_at = 0.0
        self._beyond = False
        self._began = time.perf_counter()
        self.outcome: RowOutcome | None = None
        self.events = dialect.events(asked)
        self.said: list[tuple[str, str]] = []

    @property
    def name(self) -> str:
        """The model that the client asked for."""
        return str(self._asked.fields["model"])

    async def run(self, message: str, gate: CallGate, watch: StepWatch) -> str:
        """Run the workflow; return its text. Raises `HttpFailure` if the row has failed."""
        from workflow_composer.workflows.serving import MessageLimits, answered

        fields = self._asked.fields
        limits = MessageLimits(
            dollars=fields.get("budget"),
            seconds=fields.get("timeout"),
            calls_left=lambda: self._allowance.left,
            calls_of=self._calls_of,
        )
        self.outcome = outcome = await answered(self.served, message, self._ask, gate, limits, watch)
        cut = self._has_text and outcome.steps[self.served.live].state != "done"  # what was streamed has no end
        if cut or outcome.state not in ("done", "partial"):
            raise self._failure(outcome)
        if outcome.state == "partial":
            self.said.append((WARNING, in_a_header(without_places("; ".join(outcome.errors)))))
        return self.served.text_of(outcome)

    def _failure(self, outcome: RowOutcome) -> HttpFailure:
        from workflow_composer.workflows.serving import worst_kind

        kind = worst_kind(outcome)
        status, code = _STATUS.get(kind, (502, "workflow_failed"))
        told = without_places("; ".join(outcome.errors))[:_LONGEST] or "it was stopped"
        if (own := self._refusal) is not None:  # of the key, not of a model
            told = f"{self.name} failed: {own.message}"
            wait = own.retry_after
            return HttpFailure(own.status, told, type=own.type, code=own.code, retry_after=wait, headers=self.spent)
        if self._beyond or "(most_calls)" in told:
            status, code = 400, "too_many_calls"
        headers = [*self.spent, *(() if kind in _REPEATABLE else (_NOT_AGAIN,))]
        blame = SERVER if status >= 500 else INVALID
        return HttpFailure(status, f"{self.name} failed: {told}", type=blame, code=code, headers=headers)

    @property
    def spent(self) -> list[tuple[str, str]]:
        """The headers of a failure: what became of the steps, how many calls they made, and what these cost."""
        cost = sum(attempt.cost for attempt in self._attempts)
        told = [(COST, f"{cost:.9g}"), (ATTEMPTS, str(len(self._attempts)))]
        return told if self.outcome is None else [*told, self._steps]

    # -------------------------------------------------------------------------------------------------------- its calls

    async def _ask(self, request: LLMRequest) -> LLMResponse:
        """Answer a step's request: one call of the key, within the calls that all steps may make."""
        step = str(request.metadata.get("step", ""))
        given = await self._given(request, step)
        used = 0 if given is None else given
        within = _asking.set(True)
        try:
            with self._paid(request, given) as sent:
                response = await (self._live(sent) if step == self.served.live else self._orchestrator.agenerate(sent))
        except Exception as error:
            made = getattr(error, "attempts", ())
            self._attempts += made
            used = len(made)
            if isinstance(error, HttpFailure):
                self._refusal = error
            self._beyond |= isinstance(error, TooManyCalls)
            raise
        else:
            self._attempts += response.attempts
            used = max(len(response.attempts), sum(len(tier.samples) for tier in response.tiers))
            return response
        finally:
            _asking.reset(within)
            if given is not None:
                self._allowance.give_back(given, used)

    async def _given(self, request: LLMRequest, step: str) -> int | None:
        """Return how many calls the request may make; None: any number. Raises `TooManyCalls`."""
        if self._allowance.most is None:
            return None
        plan = self._orchestrator.plan(request)
        least = sum(request.n if tier.is_plain else tier.samples for tier in plan.tiers)
        more = len(plan.tiers) * (request.form_retries + self._orchestrator.config.retries.attempts)
        try:
            return await self._allowance.take(least, more, what=f"step {step!r}", waits=not _asking.get())
        except TooManyCalls:
            self._beyond = True
            raise

    def _calls_of(self, step: Step) -> int:
        """Return how many calls a question of a step takes at least: the votes of its first tier, where these are known."""
        from workflow_composer.workflows.serving import sure_calls

        with suppress(WorkflowComposerError):
            return sure_calls(step, self._orchestrator.plan)
        return 1

    @contextmanager
    def _paid(self, request: LLMRequest, most_calls: int | None) -> Iterator[LLMRequest]:
        """Yield the request as one of the key, which is charged for it by its metric, however it ends."""
        identity = f"{self._identity}-{next(self._numbers)}"
        key, visit = self._visit.key, self._visit
        if key is not None:
            identity = marked(key, identity)
        fields: dict[str, Any] = {"request_id": identity, "most_calls": most_calls, "headers": self._carried}
        if visit.reservation is None:
            yield changed(request, **fields)
            return
        outer = _paying.get()
        reservation = Reservation(visit.reservation.budget) if outer is None else outer
        if visit.purse is not None:
            room = getattr(getattr(request.purse, "budget", None), "room", math.inf)
            fields["purse"] = reservation
            if room < math.inf:
                fields["budget"] = room if request.budget is None else min(room, request.budget)
        user = self._accounts.under_way.get(self._exchange.request_id, (reservation, ""))[1]
        self._accounts.under_way[identity] = (reservation, user)
        token = _paying.set(reservation)
        try:
            yield changed(request, **fields)
        finally:
            _paying.reset(token)
            self._accounts.under_way.pop(identity, None)
            if outer is None and reservation.holds:
                reservation.settle(0.0)

    # ------------------------------------------------------------------------------------------------------ its answer

    async def _live(self, request: LLMRequest) -> LLMResponse:
        """Answer the request of the step that is streamed; its text goes to the client as it comes."""
        if not self._asked.stream:
            return await self._orchestrator.agenerate(request)
        stream = self._orchestrator.astream(changed(request, form=None))  # free text: there is nothing to read in it first
        async with aclosing(stream) as pieces:
            async for piece in pieces:
                if piece.text or piece.reasoning:
                    await self._write(Chunk(piece.text, reasoning=piece.reasoning, model=self.name))
        assert stream.response is not None  # a stream that ends without an error has one
        return stream.response

    async def _write(self, chunk: Chunk) -> None:
        self._open()
        self._has_text = True
        if data := self.events.piece(chunk):
            self._written_at = time.monotonic()
            self._exchange.write(data)
            await self._exchange.drain()

    async def stay_alive(self) -> None:
        """Show in a stream that has been silent for long that the steps are under way; for clients and proxies that wait."""
        self._written_at = time.monotonic()
        while self._asked.stream:
            await asyncio.sleep(max(0.0, self._written_at + SILENT - time.monotonic()))
            if time.monotonic() - self._written_at >= SILENT:
                self._open()
                self._written_at = time.monotonic()
                self._exchange.write(_ALIVE)
                await self._exchange.drain()

    def _open(self) -> None:
        exchange = self._exchange
        if not exchange.opened:
            headers: Fields = [
                (REQUEST_ID, exchange.request_id),
                (STRATEGY, self._orchestrator.strategy),
                (MODEL, self.name),
                (TRAILERS[0], f"{TRAILERS[1]}, {STEPS}"),
                *UNBUFFERED,
                *self.said,
                *exchange.shared,
            ]
            exchange.open_stream(headers=headers)

    async def told(self, text: str) -> Reply | None:
        """Write the answer, or what is left of it."""
        response = self._response(text)
        steps = self._steps
        if not self._asked.stream:
            headers = of_answer(self._exchange, response, [*self.said, steps], debug=False)
            return Reply(200, self._dialect.whole(self._asked, response), headers=headers)
        exchange = self._exchange
        if not self._has_text:
            for part, _ in pieces_of(response.samples[0]):
                await self._write(Chunk(part, model=self.name))
        await self._write(Chunk("", "stop", usage=response.usage, model=self.name))
        exchange.write(self.events.end(response))
        exchange.close_stream([*of_end(response), steps])
        return None

    @property
    def _steps(self) -> tuple[str, str]:
        from workflow_composer.workflows.serving import steps_told

        assert self.outcome is not None  # it has run
        return STEPS, steps_told(self.outcome)[:_LONGEST_STEPS]

    def _response(self, text: str) -> LLMResponse:
        """Return the answer as one response, with the calls of all steps."""
        usage: Usage = sum((attempt.usage for attempt in self._attempts), NO_USAGE)
        local = all(attempt.local for attempt in self._attempts)
        task = str(self._asked.fields.get("task_type") or "*")
        strategy, name = self._orchestrator.strategy, self.name
        decision = RoutingDecision(strategy, _ROUTER, name, name, local, 0, 0, task, "the steps of a workflow")
        return LLMResponse(
            text=text,
            decision=decision,
            samples=(Sample(text, "stop"),),
            usage=usage,
            cost=sum(attempt.cost for attempt in self._attempts),
            attempts=tuple(self._attempts),
            request_id=self._exchange.request_id,
            latency_ms=(time.perf_counter() - self._began) * 1000.0,
            overhead_ms=0.0,
        )


def message_of(fields: Mapping[str, Any]) -> str:
    """Return the text of the last user message. Raises `HttpFailure`."""
    if "prompt" in (fields.get("extra") or {}):
        raise HttpFailure(400, "a workflow takes one text as prompt", code=UNSUPPORTED, param="prompt")
    message = next((one for one in reversed(fields["messages"]) if one.get("role") == "user"), None)
    if message is None:
        raise HttpFailure(400, "a workflow answers a user message, and there is none", param="messages")
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if any(part.get("type") not in ("text", "input_text") for part in parts):
        told = "a workflow takes text, and the last user message has other parts"
        raise HttpFailure(400, told, code=UNSUPPORTED, param="messages")
    text = "\n".join(part["text"] for part in parts)
    if not text.strip():
        raise HttpFailure(400, "the last user message is empty", param="messages")
    return text


def ignored(fields: Mapping[str, Any]) -> list[str]:
    """Return warnings about fields that the steps of a workflow say themselves.

    Raises `HttpFailure` for those that ask for another kind of answer.
    """
    for name in sorted(_REFUSED & fields.keys()):
        if fields[name]:
            raise HttpFailure(400, f"{name} is not supported with a workflow", code=UNSUPPORTED, param=name)
    if fields.get("n", 1) != 1:
        raise HttpFailure(400, "n must be 1 with a workflow", code=UNSUPPORTED, param="n")
    given = {**(fields.get("extra") or {}), **fields}
    names = sorted(name for name, value in given.items() if name not in _NOT_WARNED and value not in (None, (), [], {}))
    if any(message.get("role") in ("system", "developer") for message in fields["messages"]):
        names.append("the system message")
    return [f"{name} is ignored: a workflow's steps have their own" for name in names]
