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
from collections.abc import Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from workflow_composer.errors import StreamInterrupted
from workflow_composer.runtime.streams import UnderWay
from workflow_composer.server.api.json_wire import Asked, Dialect
from workflow_composer.server.exchange import Exchange, Fields, Handler, Reply
from workflow_composer.server.failures import HttpFailure, failure_of
from workflow_composer.types import ANY_TASK, Embeddings, LLMRequest, LLMResponse, Message, Relay, texts

if TYPE_CHECKING:
    from workflow_composer.metrics.record import RoutingMetric
    from workflow_composer.orchestrator import ModelOrchestrator
    from workflow_composer.server.auth.keys import Key, KeyRing
    from workflow_composer.server.auth.ledger import Ledger
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
UNBUFFERED = (("cache-control", "no-cache"), ("x-accel-buffering", "no"))
"""Headers that keep proxies (nginx) from buffering a stream."""

_STRATEGY, _ROUTER, _MODEL = PREFIX + "strategy", PREFIX + "router", PREFIX + "model"
_TIER, _DEPTH, _ESCALATED = PREFIX + "tier", PREFIX + "fallback-depth", PREFIX + "escalated"
TASK, _REASON, _PATH = PREFIX + "task", PREFIX + "reason", PREFIX + "path"


@dataclass(slots=True)
class Accounts:
    """Authentication and charging by key; without a key ring every request is allowed. Also a metrics sink.

    Keys are charged from the metrics, so that the recorded cost is the charged cost, also for cancelled requests.
    ``under_way`` has the keys of running requests, by request ID. ``most_calls`` limits the calls of one request to models,
    if its key has no limit of its own.
    """

    keys: KeyRing | None = None
    ledger: Ledger | None = None
    under_way: dict[str, Key] = field(default_factory=dict)
    most_calls: int | None = None

    def enter(self, exchange: Exchange, *, count: bool = True) -> tuple[Key | None, float | None]:
        """Authenticate a request; return its key and the dollars left in the key's budget (None: unlimited).

        ``count``: count the request towards the key's limits. Raises `HttpFailure`.
        """
        if self.keys is None:
            return None, None
        key = self.keys.identify(presented(exchange.headers))
        return key, self.ledger.admit(key, time.time()) if count and self.ledger is not None else None

    def left(self, key: Key) -> float | None:
        """Return the dollars left in a key's budget; None: unlimited."""
        return None if self.ledger is None else self.ledger.left(key, time.time())

    def write(self, metric: RoutingMetric) -> None:
        """Charge the cost of a request, however it ended."""
        key = self.under_way.get(metric.request_id)
        if key is not None and self.ledger is not None:
            self.ledger.charge(key, cost=metric.cost, tokens=metric.prompt_tokens + metric.completion_tokens)

    def close(self) -> None:
        """Do nothing: the owner of the ledger closes it."""


class Admission:
    """A limit on concurrent requests with a bounded first-come-first-served queue. Belongs to one event loop.

    ``queue_seconds`` is the longest time a request may wait in the queue.
    """

    def __init__(self, concurrency: int, queue: int, queue_seconds: float) -> None:
        self.in_flight = 0
        self.places = concurrency
        self._longest = queue
        self._seconds = queue_seconds
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def queued(self) -> int:
        """Number of waiting requests."""
        return sum(not waiting.done() for waiting in self._queue)

    async def enter(self) -> None:
        """Take a slot, or wait for one. Raises `HttpFailure` 429 if the queue is full or the wait takes too long."""
        if self.in_flight < self.places:  # the queue is empty
            self.in_flight += 1
            return
        if self.queued >= self._longest:
            raise _busy("too many requests are queued")
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(waiting)
        try:
            async with asyncio.timeout(self._seconds):
                await waiting
        except BaseException as error:
            self._give_up(waiting)
            if isinstance(error, TimeoutError):
                raise _busy(f"the request was queued for {self._seconds:g} s without a free slot") from None
            raise

    def leave(self) -> None:
        """Pass the slot to the longest-waiting request, or free it."""
        while self._queue:
            waiting = self._queue.popleft()
            if not waiting.done():
                waiting.set_result(None)
                return
        self.in_flight -= 1

    def _give_up(self, waiting: asyncio.Future[None]) -> None:
        """Leave the queue; pass on a slot that was granted at the same moment."""
        if waiting.done() and not waiting.cancelled():
            self.leave()
        elif waiting in self._queue:
            self._queue.remove(waiting)


def _busy(reason: str) -> HttpFailure:
    return HttpFailure(429, f"the service is busy: {reason}", type="rate_limit_error", code="overloaded", retry_after=1.0)


def presented(headers: Mapping[str, str]) -> str | None:
    """Return the API key of a request: its bearer token or ``x-api-key``."""
    given = headers.get("authorization")
    if given is not None and given[:7].lower() == "bearer ":
        return given[7:].strip()
    return headers.get("x-api-key")


class CompletionHandler:
    """Makes handlers that call the orchestrator. ``debug``: report decisions in full, and log prompts."""

    def __init__(
        self,
        orchestrator: ModelOrchestrator,
        accounts: Accounts,
        admission: Admission,
        *,
        debug: bool = False,
        log: ServiceLog | None = None,
    ) -> None:
        self._orchestrator = orchestrator
        self._accounts = accounts
        self._admission = admission
        self._debug = debug
        self._log = log

    def handler(self, dialect: Dialect, *, relays: bool = False) -> Handler:
        """Return the handler of one dialect. ``relays``: model servers use this format too."""
        accounts, admission, orchestrator, debug = self._accounts, self._admission, self._orchestrator, self._debug

        async def handle(exchange: Exchange) -> Reply | None:
            key, left = accounts.enter(exchange)
            if admission.in_flight < admission.places:
                admission.in_flight += 1
            else:
                await admission.enter()
                left = None if key is None else accounts.left(key)
            try:
                asked = dialect.read(exchange.body, exchange.headers)
                relay = Relay(usage=asked.include_usage) if relays else None
                said = self._complete(asked, exchange, key, left, relay)
                if asked.stream:
                    await self._stream(dialect, exchange, asked, said)
                    return None
                response = await orchestrator.agenerate(asked.request)
                if relay is None or (body := relay.body) is None:
                    body = dialect.whole(asked, response)
                return Reply(200, body, headers=of_answer(exchange, response, said, debug=debug))
            finally:
                accounts.under_way.pop(exchange.request_id, None)
                admission.leave()

        return handle

    def _complete(
        self, asked: Asked, exchange: Exchange, key: Key | None, left: float | None, relay: Relay | None
    ) -> list[tuple[str, str]]:
        """Complete the request with its task and check its key's permissions; return response headers about the request.

        From then on the key is charged for it. Raises `HttpFailure`.
        """
        orchestrator, fields = self._orchestrator, asked.fields
        model, task = fields.get("model"), fields.get("task_type")
        if key is not None:
            if key.strategies or key.models:
                key.check(strategy=orchestrator.strategy, model=model)
            self._accounts.under_way[exchange.request_id] = key
        if model is None and (task is None or task == ANY_TASK):
            task = fields["task_type"] = predict_task(fields["messages"], orchestrator.config.task_routing)
            said = [(TASK, f"{task}; predicted")]
        else:
            said = [(TASK, task or ANY_TASK)]
        if left is not None:
            fields["budget"] = min(left, fields.get("budget", left))
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
            if not exchange.opened:
                assert stream.under_way is not None  # set before the first piece
                headers = of_stream(exchange, request, stream.under_way, said, debug=self._debug)
                exchange.open_stream(headers=headers)
            exchange.write(data)

        if relay is not None:
            relay.write = write
        events = dialect.events(asked)
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
            exchange.close_stream(of_end(response))
        except Exception as error:
            if not exchange.opened:
                raise
            # Status and headers are sent already: send the error as the last event.
            interrupted = error if isinstance(error, StreamInterrupted) else StreamInterrupted(str(error))
            exchange.write(events.failed(failure_of(interrupted)))
            exchange.close_stream()
        finally:
            if relay is not None:
                relay.write = None


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
        fields.append((WARNING, _in_a_header(response.warning)))
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
    if (verdict := under_way.verdict) is not None:
        if verdict.confidence is not None:
            fields.append((CONFIDENCE, f"{verdict.confidence:.6g}"))
        if verdict.warning:
            fields.append((WARNING, _in_a_header(verdict.warning)))
    if debug:
        fields.append((_REASON, plan.reason))
    return fields


def _in_a_header(text: str) -> str:
    """Return the start of a text in characters that a header may have; a warning may repeat what a model wrote."""
    return "".join(character if " " <= character <= "~" else "?" for character in text[:_LONGEST_WARNING])


def of_end(response: LLMResponse) -> Fields:
    """Return the trailers of a stream."""
    return (*cost_of(response), (ATTEMPTS, str(len(response.attempts))))


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
        (_STRATEGY, strategy),
        (_ROUTER, router),
        (_MODEL, candidate),
        (_TIER, str(tier + 1)),
        (_DEPTH, str(depth)),
        (ATTEMPTS, str(attempts)),
        (_ESCALATED, "true" if tier else "false"),
    )
