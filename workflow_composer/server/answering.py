"""Answering requests: one handler for every way in which clients ask.

A dialect reads the request and writes the answer; between the two stands the orchestrator. Where the client speaks the API
of the model's server, the answer's own bytes are handed on instead (`workflow_composer.relay`).
"""

from __future__ import annotations

import time
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from workflow_composer.errors import StreamInterrupted
from workflow_composer.relay import Relay
from workflow_composer.server import telling
from workflow_composer.server.addressing import predict_task
from workflow_composer.server.exchange import Exchange, Handler, Reply
from workflow_composer.server.failures import failure_of
from workflow_composer.server.limits import Admission
from workflow_composer.server.telling import Told
from workflow_composer.server.wire import Asked, Dialect, decode
from workflow_composer.types import ANY_TASK, LLMRequest, texts
from workflow_composer.values import changed

if TYPE_CHECKING:
    from workflow_composer.metrics.record import RoutingMetric
    from workflow_composer.metrics.sink import MetricsSink
    from workflow_composer.orchestrator import ModelOrchestrator
    from workflow_composer.server.keys import Key, KeyRing
    from workflow_composer.server.ledger import Ledger
    from workflow_composer.server.logs import ServiceLog


@dataclass(slots=True)
class Accounts:
    """Who may ask, and what it costs them. Without a key ring everybody may."""

    keys: KeyRing | None = None
    ledger: Ledger | None = None
    _under_way: dict[str, Key] = field(default_factory=dict)

    def enter(self, exchange: Exchange, *, count: bool = True) -> Key | None:
        """The key that a request shows, within its limits. Raises `HttpFailure`. ``count``: it may ask a model."""
        if self.keys is None:
            return None
        key = self.keys.identify(presented(exchange))
        if self.ledger is not None and count:
            self.ledger.admit(key, time.time())
        return key

    def allow(self, key: Key | None, request_id: str, *, strategy: str, model: str | None) -> None:
        """Let a key's request begin; its cost is charged to the key from its metric. Raises `HttpFailure`."""
        if key is not None and self.keys is not None:
            self.keys.may_use(key, strategy=strategy, model=model)
            self._under_way[request_id] = key

    def left(self, key: Key) -> float | None:
        """Dollars that a key may still spend; None: as many as it wants."""
        return None if self.ledger is None else self.ledger.left(key, time.time())

    def leave(self, request_id: str) -> None:
        """The request is over."""
        self._under_way.pop(request_id, None)

    def charge(self, metric: RoutingMetric) -> None:
        """Charge what a request has cost, however it ended."""
        key = self._under_way.get(metric.request_id)
        if key is not None and self.ledger is not None:
            tokens = metric.prompt_tokens + metric.completion_tokens
            self.ledger.charge(key, cost=metric.cost, tokens=tokens)


class ChargingSink:
    """Charges keys from the metrics: what is written down about a request is what is paid for, cancelled ones included."""

    def __init__(self, accounts: Accounts, behind: MetricsSink) -> None:
        self._accounts = accounts
        self._behind = behind

    def write(self, metric: RoutingMetric) -> None:
        """Charge, and pass the metric on."""
        try:
            self._accounts.charge(metric)
        finally:
            self._behind.write(metric)

    def close(self) -> None:
        """Close what stands behind."""
        self._behind.close()


def presented(exchange: Exchange) -> str | None:
    """The key that a request shows: a bearer token, or ``x-api-key``."""
    given = exchange.headers.get("authorization")
    if given is not None and given[:7].lower() == "bearer ":
        return given[7:].strip()
    return exchange.headers.get("x-api-key")


class Answering:
    """Handlers that answer by the orchestrator. ``debug``: tell decisions in full, and prompts to the log."""

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
        """The handler of one dialect. ``relays``: it is the one that models' servers speak, too."""

        async def handle(exchange: Exchange) -> Reply | None:
            accounts, admission = self._accounts, self._admission
            key = accounts.enter(exchange)
            if not admission.try_enter():
                await admission.enter()
            try:
                asked = dialect.read(decode(exchange.body), exchange.headers)
                request, told = self._understood(asked, exchange, key, Relay(usage=asked.include_usage) if relays else None)
                if asked.stream:
                    await self._stream(dialect, exchange, asked, request, told)
                    return None
                return await self._whole(dialect, exchange, asked, request, told)
            finally:
                accounts.leave(exchange.request_id)
                admission.leave()

        return handle

    def _understood(self, asked: Asked, exchange: Exchange, key: Key | None, relay: Relay | None) -> tuple[LLMRequest, Told]:
        """The request as it is to run: with a task, within what its key may do. Raises `HttpFailure`."""
        request, orchestrator = asked.request, self._orchestrator
        model, task, budget = request.model, request.task_type, request.budget
        self._accounts.allow(key, exchange.request_id, strategy=orchestrator.strategy, model=model)
        said = task
        if task == ANY_TASK and model is None:
            task = predict_task(request.messages, orchestrator.config.task_routing)
            said = f"{task}; predicted"
        if key is not None and (left := self._accounts.left(key)) is not None:
            budget = left if budget is None else min(left, budget)
        if self._log is not None:
            prompt = [text for message in request.messages for text in texts(message)]
            self._log.event("asked", request_id=exchange.request_id, prompt="\n".join(prompt))
        request = changed(request, request_id=exchange.request_id, relay=relay, task_type=task, budget=budget)
        return request, Told(task=said, warnings=asked.warnings, debug=self._debug)

    async def _whole(self, dialect: Dialect, exchange: Exchange, asked: Asked, request: LLMRequest, told: Told) -> Reply:
        response = await self._orchestrator.agenerate(request)
        body = request.relay.body if request.relay is not None else None
        if body is None:
            body = dialect.whole(replace(asked, request=request), response)
        return Reply(200, body, headers=telling.of_answer(exchange, response, told))

    async def _stream(self, dialect: Dialect, exchange: Exchange, asked: Asked, request: LLMRequest, told: Told) -> None:
        relay = exchange.relay = request.relay
        stream = self._orchestrator.astream(request)

        def write(data: bytes) -> None:
            if not exchange.opened:
                assert stream.under_way is not None  # whoever writes has been asked
                exchange.open_stream(headers=telling.of_stream(exchange, request, stream.under_way, told))
            exchange.write(data)

        if relay is not None:
            relay.write = write
        events = dialect.events(replace(asked, request=request))
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
            exchange.close_stream(telling.of_end(response))
        except Exception as error:
            if not exchange.opened:
                raise
            # Status and headers are gone: the error is an event, and nothing follows it.
            interrupted = error if isinstance(error, StreamInterrupted) else StreamInterrupted(str(error))
            exchange.write(events.failed(failure_of(interrupted)))
            exchange.close_stream()
        finally:
            if relay is not None:
                relay.write = None
