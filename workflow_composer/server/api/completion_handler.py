"""The handler that answers generation requests, for all API formats.

A dialect parses the request and writes the response; the orchestrator does the work in between. If client and model server
use the same API format, the response's bytes are relayed unchanged (`workflow_composer.types`).
"""

from __future__ import annotations

import asyncio
import functools
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from workflow_composer.backends.openai.adapting import OPTIONAL
from workflow_composer.execution.reservation import Reservation
from workflow_composer.runtime.streams import UnderWay
from workflow_composer.server.api.forms import WORKFLOW, carried_of
from workflow_composer.server.api.json_wire import Asked, Dialect
from workflow_composer.server.auth.allowance import rate_headers
from workflow_composer.server.auth.callers import MARK_BYTES, USER_HEADERS, reachable, user_of
from workflow_composer.server.auth.keys import presented
from workflow_composer.server.exchange import Exchange, Fields, Handler, Reply
from workflow_composer.server.failures import HttpFailure, interruption_of
from workflow_composer.server.silence import Silence
from workflow_composer.support.large_json import LARGE, apart
from workflow_composer.types import ANY_TASK, Embeddings, LLMRequest, LLMResponse, Message, Relay, texts

if TYPE_CHECKING:
    from workflow_composer.metrics.record import RoutingMetric
    from workflow_composer.orchestrator import ModelOrchestrator
    from workflow_composer.server.auth.history import UsageHistory
    from workflow_composer.server.auth.keys import Key, KeyRing
    from workflow_composer.server.auth.ledger import KeyBudget, Ledger
    from workflow_composer.server.logs import ServiceLog


# -------------------------------------------------------------------------------------------------------------- addressing
#
# Predict the task of a request that names neither a task nor a model from its words.


_ENOUGH = 4000
"""Characters of the last message that the prediction reads."""

# Patterns by task; the first match wins. The shipped profiles define the task names.
_SIGNS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (task, re.compile(pattern, re.IGNORECASE))
    for task, pattern in (
        (
            "code_validation",
            r"\b(review|lint|debug|fix|what is wrong with|find the bug)\b.{0,60}\b(code|script|function|pipeline)\b",
        ),
        (
            "code_generation",
            r"```|\b(write|implement|generate|create)\b.{0,60}\b(code|script|function|class|parser|program|regex)\b",
        ),
        (
            "code_generation",
            r"\b(python|bash|snakemake|nextflow|sql|rust|java|javascript)\b.{0,40}\b(code|script|function)\b",
        ),
        (
            "math_statistics",
            r"\b(solve|prove|integral|derivative|equation|probability|p-value|standard deviation|regression)\b",
        ),
        ("math_statistics", r"\bhow many\b|\d\s*[-+*/^=]\s*\d"),
        ("data_analysis", r"\b(csv|tsv|dataframe|pandas|plot|histogram|correlation|cluster(ing)?|outliers?)\b"),
        (
            "biomedical",
            r"\b(gene|protein|genome|variant|mutation|patient|clinical|disease|drug|rna|dna|fastq|bam|vcf|cell line)s?\b",
        ),
        ("documentation", r"\b(document|docstring|readme|summari[sz]e|explain)\b"),
    )
)


def predict_task(messages: Sequence[Message], known: Collection[str]) -> str:
    """Return the ``known`` task that the user's last message matches; ``*`` if none.

    Matches a few patterns, in microseconds. The prediction only selects the route; a caller overrides it by naming the task.
    """
    if not known:
        return ANY_TASK
    for message in reversed(messages):
        if message.get("role") == "user":
            text = " ".join(texts(message))[:_ENOUGH]
            for task, sign in _SIGNS:
                if task in known and sign.search(text):
                    return task
            break
    return ANY_TASK


PREFIX = "x-workflow-composer-"
REQUEST_ID = PREFIX + "request-id"
COST = PREFIX + "cost"
COST_KNOWN, COST_ESTIMATED = COST + "-known", COST + "-estimated"
ATTEMPTS = PREFIX + "attempts"
OVERHEAD = PREFIX + "overhead-ms"
WARNING = PREFIX + "warning"
CONFIDENCE = PREFIX + "confidence"
_LONGEST_WARNING = 300
TRAILERS = ("trailer", f"{COST}, {COST_KNOWN}, {COST_ESTIMATED}, {ATTEMPTS}")
LATE = ("trailer", f"{TRAILERS[1]}, {PREFIX}model, {PREFIX}tier, {WARNING}")
"""The same for a stream that was opened before it was known who answers."""
UNBUFFERED = (("cache-control", "no-cache"), ("x-accel-buffering", "no"))
"""Headers that keep proxies (nginx) from buffering a stream."""

STRATEGY, _ROUTER, MODEL = PREFIX + "strategy", PREFIX + "router", PREFIX + "model"
_TIER, _DEPTH, _ESCALATED = PREFIX + "tier", PREFIX + "fallback-depth", PREFIX + "escalated"
TASK, _REASON, _PATH = PREFIX + "task", PREFIX + "reason", PREFIX + "path"


@dataclass(slots=True)
class Accounts:
    """Authentication and charging by key; without a key ring every request is allowed. Also a metrics sink.

    Keys are charged from the metrics, so that the recorded cost is the charged cost, also for cancelled requests.
    ``under_way`` has the reservations of running requests and their users, by request ID. ``history`` counts who used what.
    ``most_calls`` limits the calls of one request to models, if its key has no limit of its own.
    """

    keys: KeyRing | None = None
    ledger: Ledger | None = None
    under_way: dict[str, tuple[Reservation, str]] = field(default_factory=dict)
    history: UsageHistory | None = None
    most_calls: int | None = None

    def enter(self, exchange: Exchange) -> Key | None:
        """Authenticate a request that costs nothing; return its key. Raises `HttpFailure`."""
        return None if self.keys is None else self.keys.identify(presented(exchange.headers))

    def write(self, metric: RoutingMetric) -> None:
        """Charge the cost of a request, however it ended."""
        if (found := self.under_way.get(metric.request_id)) is None:
            return
        reservation, user = found
        prompt, answer, cost = metric.prompt_tokens, metric.completion_tokens, metric.cost
        reservation.settle(cost, prompt + answer)
        if self.history is not None:
            budget: Any = reservation.budget
            row = self.history.rows.get((budget.key.id, user))
            if row is None:
                row = self.history.row(budget.key, user)
            row.requests += 1
            row.prompt_tokens += prompt
            row.completion_tokens += answer
            row.cost += cost

    def close(self) -> None:
        """Do nothing: the owner of the ledger closes it."""


class Admission:
    """A limit on concurrent requests with a bounded queue. Belongs to one event loop.

    A free slot goes to the owner (a key) that has the fewest, and among the requests of one owner to the first. A full queue
    takes in a request of an owner with few in it in place of the last one of the owner with the most.
    ``queue_seconds`` is the longest time a request may wait in the queue. ``running`` has the slots of each owner.
    """

    def __init__(self, concurrency: int, queue: int, queue_seconds: float) -> None:
        self.in_flight = 0
        self.places = concurrency
        self.seconds = queue_seconds
        self.running: dict[str, int] = {}
        self._longest = queue
        self._queues: dict[str, deque[asyncio.Future[None]]] = {}

    @property
    def queued(self) -> int:
        """Number of waiting requests."""
        return sum(not waiting.done() for queue in self._queues.values() for waiting in queue)

    async def enter(self, owner: str = "") -> None:
        """Take a slot, or wait for one. Raises `HttpFailure` 429 if the queue is full or the wait takes too long."""
        if self.in_flight < self.places:  # the queue is empty
            self.in_flight += 1
            self.running[owner] = self.running.get(owner, 0) + 1
            return
        if self.queued >= self._longest:
            self._make_room(owner)
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(owner, deque()).append(waiting)
        try:
            async with asyncio.timeout(self.seconds):
                await waiting
        except BaseException as error:
            self._give_up(owner, waiting)
            if isinstance(error, TimeoutError):
                raise _busy(f"the request was queued for {self.seconds:g} s without a free slot") from None
            raise

    def leave(self, owner: str = "") -> None:
        """Pass the slot to a waiting request, or free it."""
        count = self.running[owner] - 1
        if count:
            self.running[owner] = count
        else:
            del self.running[owner]
        while self._queues:
            following = min(self._queues, key=self._slots)
            queue = self._queues.pop(following)
            waiting = queue.popleft()
            if queue:
                self._queues[following] = queue  # behind those of owners with as many slots
            if not waiting.done():
                self.running[following] = self.running.get(following, 0) + 1
                waiting.set_result(None)
                return
        self.in_flight -= 1

    def _slots(self, owner: str) -> int:
        return self.running.get(owner, 0)

    def _make_room(self, owner: str) -> None:
        """Refuse the last request of the owner with the most in the queue, unless that is this one. Raises `HttpFailure`."""
        most = max(self._queues, key=self._waiting, default=owner)
        if self._waiting(most) <= self._waiting(owner) + 1:
            raise _busy("too many requests are queued")
        for waiting in reversed(self._queues[most]):
            if not waiting.done():
                waiting.set_exception(_busy("too many requests of this API key are queued"))
                return

    def _waiting(self, owner: str) -> int:
        return sum(not waiting.done() for waiting in self._queues.get(owner, ()))

    def _give_up(self, owner: str, waiting: asyncio.Future[None]) -> None:
        """Leave the queue; pass on a slot that was granted at the same moment."""
        queue = self._queues.get(owner)
        if queue is not None and waiting in queue:
            queue.remove(waiting)
            if not queue:
                del self._queues[owner]
        elif waiting.done() and not waiting.cancelled() and waiting.exception() is None:
            self.leave(owner)


@dataclass(slots=True)
class Slot:
    """A slot of a request, which it gives up while it waits for money."""

    admission: Admission
    owner: str

    def leave(self) -> None:
        """Give it up."""
        self.admission.leave(self.owner)

    async def enter(self) -> None:
        """Take one again. Raises `HttpFailure` 429."""
        await self.admission.enter(self.owner)


@dataclass(slots=True)
class Visit:
    """A request of a key: identified, admitted within the key's limits, and with a slot; an async context manager.

    The request's ID shows from then on whose it is (`is_own`), and its key pays for it. ``reservation`` is None if nobody
    keeps accounts, ``purse`` also if the key has no budget.
    """

    accounts: Accounts
    admission: Admission
    exchange: Exchange
    key: Key | None = None
    owner: str = ""
    reservation: Reservation | None = None
    purse: Reservation | None = None
    counted: KeyBudget | None = None

    async def __aenter__(self) -> Visit:
        """Raises `HttpFailure`."""
        admission = self.admission
        accounts, key, budget = self.accounts, None, None
        if accounts.keys is not None:
            self.key = key = accounts.keys.identify(presented(self.exchange.headers))
            # As `marked` does it: every request comes here, and a call more would be one of ninety.
            mark = blake2b(self.exchange.request_id.encode(), key=key.salt.encode()[:64], digest_size=MARK_BYTES)
            self.exchange.request_id += f"-{mark.hexdigest()}"
            if (ledger := accounts.ledger) is not None:
                try:
                    budget = ledger.admit(key, time.time())
                finally:  # who is refused is told, too
                    if key.requests_per_minute or key.tokens_per_minute or key.tokens_per_day:
                        self.exchange.shared = [*self.exchange.shared, *rate_headers(ledger, key)]
        if key is not None:
            self.owner = key.id
            if budget is not None and key.concurrent is not None:
                await budget.begin(admission.seconds)
                self.counted = budget
        if admission.in_flight < admission.places:
            admission.in_flight += 1
            admission.running[self.owner] = admission.running.get(self.owner, 0) + 1
        else:
            try:
                await admission.enter(self.owner)
            except BaseException:
                if self.counted is not None:
                    self.counted.end()
                raise
        if budget is not None:
            self.reservation = reservation = Reservation(budget, place=Slot(admission, self.owner))
            self.purse = reservation if budget.is_limited else None
            self.accounts.under_way[self.exchange.request_id] = (reservation, "")
        return self

    def name_user(self, fields: Mapping[str, Any]) -> None:
        """Count the request for the person whom a front end names in the headers or in these fields of the body."""
        if self.reservation is not None:
            user = user_of(self.exchange.headers, fields)
            self.accounts.under_way[self.exchange.request_id] = (self.reservation, user)

    async def __aexit__(self, *_: object) -> None:
        self.accounts.under_way.pop(self.exchange.request_id, None)
        reservation = self.reservation
        if reservation is not None and reservation.holds:  # it ended before it was metered
            reservation.settle(0.0)
        admission = self.admission
        if reservation is not None and reservation.aside:
            pass
        elif admission.in_flight >= admission.places:
            admission.leave(self.owner)
        else:  # as `leave`, in place: every request comes here
            admission.in_flight -= 1
            if count := admission.running[self.owner] - 1:
                admission.running[self.owner] = count
            else:
                del admission.running[self.owner]
        if self.counted is not None:
            self.counted.end()


FlowHandler = Callable[[Dialect, Exchange, Visit, Asked], Awaitable[Reply | None]]
"""Answers a request whose model is ``workflow:NAME``."""


def _busy(reason: str) -> HttpFailure:
    return HttpFailure(429, f"the service is busy: {reason}", type="rate_limit_error", code="overloaded", retry_after=1.0)


class CompletionHandler:
    """Makes handlers that call the orchestrator. ``debug``: report decisions in full, and log prompts.

    ``report`` gets the error of a stream that has begun, with the request's ID: the client is told only its kind.
    ``flows`` answers requests whose model is a workflow.
    """

    def __init__(
        self,
        orchestrator: ModelOrchestrator,
        accounts: Accounts,
        admission: Admission,
        *,
        debug: bool = False,
        log: ServiceLog | None = None,
        report: Callable[[str, BaseException], None] = lambda request_id, error: None,
        flows: FlowHandler | None = None,
    ) -> None:
        self._report = report
        self._flows = flows
        self._orchestrator = orchestrator
        self._accounts = accounts
        self._admission = admission
        self._debug = debug
        self._log = log

    def handler(self, dialect: Dialect, *, relays: bool = False) -> Handler:
        """Return the handler of one dialect. ``relays``: model servers use this format too."""
        accounts, admission, orchestrator, debug = self._accounts, self._admission, self._orchestrator, self._debug
        flows = self._flows

        async def handle(exchange: Exchange) -> Reply | None:
            async with Visit(accounts, admission, exchange) as visit:
                if len(exchange.body) <= LARGE:
                    asked = dialect.read(exchange.body, exchange.headers)
                else:
                    asked = await apart(dialect.read, exchange.body, exchange.headers)
                if asked.resume is not None:
                    asked.resume(visit.key)
                if flows is not None and (name := asked.fields.get("model")) is not None and name.startswith(WORKFLOW):
                    return await flows(dialect, exchange, visit, asked)
                relay = Relay(usage=asked.include_usage, continuous=asked.continuous) if relays else None
                said = self._complete(asked, exchange, visit, relay)
                if asked.stream:
                    await self._stream(dialect, exchange, asked, said)
                    return None
                response = await orchestrator.agenerate(asked.request)
                if asked.request.left_out:
                    said += left_out_of(asked.request)
                if relay is None or (body := relay.body) is None:
                    body = dialect.whole(asked, response)
                return Reply(200, body, headers=of_answer(exchange, response, said, debug=debug))

        return handle

    def _complete(self, asked: Asked, exchange: Exchange, visit: Visit, relay: Relay | None) -> list[tuple[str, str]]:
        """Complete the request with its task and check its key's permissions; return response headers about the request.

        From then on the key is charged for it. Raises `HttpFailure`.
        """
        orchestrator, fields = self._orchestrator, asked.fields
        model, task = fields.get("model"), fields.get("task_type")
        if (key := visit.key) is not None:
            if key.strategies:
                key.check(orchestrator.strategy)
            if key.models:
                fields["allowed"] = reachable(key, orchestrator.config, model, task)
            fields["purse"] = visit.purse
            if fields.get("extra") or fields.get("metadata") or not USER_HEADERS.isdisjoint(exchange.headers):
                visit.name_user(fields)
        if model is None and (task is None or task == ANY_TASK):
            task = fields["task_type"] = predict_task(fields["messages"], orchestrator.config.task_routing)
            said = [(TASK, f"{task}; predicted")]
        else:
            said = [(TASK, task or ANY_TASK)]
        if (extra := fields.get("extra")) and not OPTIONAL.isdisjoint(extra):
            fields["left_out"] = []
        sent = exchange.headers
        if "x-request-id" in sent or "traceparent" in sent or not orchestrator.forwarded.isdisjoint(sent):
            fields["headers"] = carried_of(sent, orchestrator.forwarded)
        own = None if key is None else key.most_calls
        fields["most_calls"] = self._accounts.most_calls if own is None else own
        asked.request = request = LLMRequest(request_id=exchange.request_id, relay=relay, **fields)
        if self._log is not None:
            prompt = [text for message in request.messages for text in texts(message)]
            self._log.event("asked", request_id=exchange.request_id, prompt="\n".join(prompt))
        if asked.warnings:
            said += [(WARNING, warning) for warning in asked.warnings]
        return said

    async def _stream(self, dialect: Dialect, exchange: Exchange, asked: Asked, said: Fields) -> None:
        request = asked.request
        relay = exchange.relay = request.relay
        stream = self._orchestrator.astream(request)

        def write(data: bytes) -> None:
            silence.end()
            if not exchange.opened:
                assert stream.under_way is not None  # set before the first piece
                headers = of_stream(exchange, request, stream.under_way, said, debug=self._debug)
                exchange.open_stream(headers=[*headers, *exchange.shared])
            exchange.write(data)

        if relay is not None:
            relay.write = write
        events = dialect.events(asked)
        silence = Silence(exchange, lambda: self._early(exchange, said), events.waiting)
        try:
            async with aclosing(stream) as pieces:
                async for piece in pieces:
                    if data := events.piece(piece):
                        write(data)
                        await exchange.drain()
            response = stream.response
            assert response is not None  # a stream that ends without an error has one
            if relay is None or not relay.begun:
                write(events.end(response))
            exchange.close_stream((*of_end(response), *(late_of(response) if silence.broken else ())))
        except Exception as error:
            if not exchange.opened:
                raise
            self._report(exchange.request_id, error)
            exchange.write(events.failed(interruption_of(error)))
            exchange.close_stream()
        finally:
            silence.end()
            if relay is not None:
                relay.write = None

    def _early(self, exchange: Exchange, said: Fields) -> Fields:
        """Return the headers of a stream of which nothing is known yet."""
        own = ((REQUEST_ID, exchange.request_id), (STRATEGY, self._orchestrator.strategy))
        return [*own, LATE, *UNBUFFERED, *said, *exchange.shared]


# ------------------------------------------------------------------ response headers that report the routing decision


def of_answer(exchange: Exchange, response: LLMResponse, said: Fields, *, debug: bool) -> Fields:
    """Return the headers of a complete response: ``said`` and the decision.

    The overhead is all time except waiting for models, including the time to read the request.
    """
    waited = response.latency_ms - response.overhead_ms
    overhead = (time.perf_counter() - exchange.started) * 1000.0 - waited
    made, attempts = response.decision, response.attempts
    is_plain = len(attempts) == 1 and attempts[0].priced and not attempts[0].estimated  # by far the most frequent
    fields = [
        (REQUEST_ID, response.request_id),
        *_decided(made.strategy, made.router, made.candidate, made.tier, made.fallback_depth, len(response.attempts)),
        (OVERHEAD, f"{overhead if overhead > 0.0 else 0.0:.3f}"),
        *(((COST, f"{response.cost:.9g}"),) if is_plain else cost_of(response)),
        *said,
    ]
    if response.confidence is not None:
        fields.append((CONFIDENCE, f"{response.confidence:.6g}"))
    if response.warning:
        fields.append((WARNING, in_a_header(response.warning)))
    if debug:
        path = "; ".join(f"{one.name}: {one.error_type or 'ok'} {one.latency_ms:.0f} ms" for one in response.attempts)
        fields += ((_REASON, made.reason), (_PATH, path))
    return fields


def of_stream(exchange: Exchange, request: LLMRequest, under_way: UnderWay, said: Fields, *, debug: bool) -> Fields:
    """Return the headers of a stream at its first piece. Cost and attempts follow as trailers."""
    overhead = (under_way.asked_at - exchange.started - under_way.waited) * 1000.0
    plan, (tier, candidate, depth) = under_way.plan, under_way.at
    fields = [
        (REQUEST_ID, request.request_id),
        *_decided(under_way.strategy, plan.router, candidate.name, tier, depth, under_way.attempts),
        (OVERHEAD, f"{overhead if overhead > 0.0 else 0.0:.3f}"),
        TRAILERS,
        *UNBUFFERED,
        *said,
    ]
    if request.left_out:
        fields += left_out_of(request)
    if (verdict := under_way.verdict) is not None:
        if verdict.confidence is not None:
            fields.append((CONFIDENCE, f"{verdict.confidence:.6g}"))
        if verdict.warning:
            fields.append((WARNING, in_a_header(verdict.warning)))
    if debug:
        fields.append((_REASON, plan.reason))
    return fields


def left_out_of(request: LLMRequest) -> list[tuple[str, str]]:
    """Return the warnings about what servers were not sent of the request; of several calls, each once."""
    return [(WARNING, in_a_header(text)) for text in dict.fromkeys(request.left_out or ())]


def in_a_header(text: str) -> str:
    """Return the start of a text in characters that a header may have; a warning may repeat what a model wrote."""
    return "".join(character if " " <= character <= "~" else "?" for character in text[:_LONGEST_WARNING])


def of_end(response: LLMResponse) -> Fields:
    """Return the trailers of a stream."""
    return (*cost_of(response), (ATTEMPTS, str(len(response.attempts))))


def late_of(response: LLMResponse) -> Fields:
    """Return the trailers that are headers of a stream which is opened by its first piece."""
    fields = [(MODEL, response.decision.candidate), (_TIER, str(response.decision.tier + 1))]
    return [*fields, *([(WARNING, in_a_header(response.warning))] if response.warning else [])]


def cost_of(found: LLMResponse | Embeddings) -> Fields:
    """Return the headers of a cost in dollars, "unknown" if nothing of it is known; two more say if it is a lower bound or
    estimated.
    """
    fields = [(COST, f"{found.cost:.9g}" if found.cost_known or found.cost else "unknown")]
    if not found.cost_known:
        fields.append((COST_KNOWN, "false"))
    if found.cost_estimated:
        fields.append((COST_ESTIMATED, "true"))
    return tuple(fields)


@functools.lru_cache(maxsize=1024)
def _decided(strategy: str, router: str, candidate: str, tier: int, depth: int, attempts: int) -> Fields:
    """Return the headers that report a decision, cached: nearly all requests for a model share them."""
    return (
        (STRATEGY, strategy),
        (_ROUTER, router),
        (MODEL, candidate),
        (_TIER, str(tier + 1)),
        (_DEPTH, str(depth)),
        (ATTEMPTS, str(attempts)),
        (_ESCALATED, "true" if tier else "false"),
    )
