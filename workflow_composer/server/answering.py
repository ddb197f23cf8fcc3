"""Answering requests: one handler for every way in which clients ask.

A dialect reads the request and writes the answer; between the two stands the orchestrator. Where the client speaks the API
of the model's server, the answer's own bytes are handed on instead (`workflow_composer.relay`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from workflow_composer.errors import StreamInterrupted
from workflow_composer.relay import Relay
from workflow_composer.server import telling
from workflow_composer.server.addressing import predict_task
from workflow_composer.server.exchange import Exchange, Fields, Handler, Reply
from workflow_composer.server.failures import failure_of
from workflow_composer.server.limits import Admission
from workflow_composer.server.wire import Asked, Dialect, decode
from workflow_composer.types import ANY_TASK, LLMRequest, texts

if TYPE_CHECKING:
    from workflow_composer.metrics.record import RoutingMetric
    from workflow_composer.orchestrator import ModelOrchestrator
    from workflow_composer.server.keys import Key, KeyRing
    from workflow_composer.server.ledger import Ledger
    from workflow_composer.server.logs import ServiceLog


@dataclass(slots=True)
class Accounts:
    """Who may ask, and what it costs them; without a key ring everybody may. A sink of metrics, too.

    Keys are charged by the metrics: what is written down about a request is what is paid for, cancelled ones included.
    ``under_way`` are the keys of the requests that have been allowed, by the requests' IDs.
    """

    keys: KeyRing | None = None
    ledger: Ledger | None = None
    under_way: dict[str, Key] = field(default_factory=dict)

    def enter(self, exchange: Exchange, *, count: bool = True) -> tuple[Key | None, float | None]:
        """The key that a request shows, within its limits, and the dollars that it may still spend, if they are limited.

        ``count``: the request may ask a model. Raises `HttpFailure`.
        """
        if self.keys is None:
            return None, None
        key = self.keys.identify(presented(exchange.headers))
        return key, self.ledger.admit(key, time.time()) if count and self.ledger is not None else None

    def left(self, key: Key) -> float | None:
        """Dollars that a key may still spend; None: as many as it wants."""
        return None if self.ledger is None else self.ledger.left(key, time.time())

    def write(self, metric: RoutingMetric) -> None:
        """Charge what a request has cost, however it ended."""
        key = self.under_way.get(metric.request_id)
        if key is not None and self.ledger is not None:
            self.ledger.charge(key, cost=metric.cost, tokens=metric.prompt_tokens + metric.completion_tokens)

    def close(self) -> None:
        """The ledger is closed by whoever opened it."""


def presented(headers: Mapping[str, str]) -> str | None:
    """The key that a request shows: a bearer token, or ``x-api-key``."""
    given = headers.get("authorization")
    if given is not None and given[:7].lower() == "bearer ":
        return given[7:].strip()
    return headers.get("x-api-key")


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
        accounts, admission, orchestrator, debug = self._accounts, self._admission, self._orchestrator, self._debug

        async def handle(exchange: Exchange) -> Reply | None:
            key, left = accounts.enter(exchange)
            if not admission.try_enter():
                await admission.enter()
                left = None if key is None else accounts.left(key)
            try:
                asked = dialect.read(decode(exchange.body), exchange.headers)
                relay = Relay(usage=asked.include_usage) if relays else None
                said = self._complete(asked, exchange, key, left, relay)
                if asked.stream:
                    await self._stream(dialect, exchange, asked, said)
                    return None
                response = await orchestrator.agenerate(asked.request)
                if relay is None or (body := relay.body) is None:
                    body = dialect.whole(asked, response)
                return Reply(200, body, headers=telling.of_answer(exchange, response, said, debug=debug))
            finally:
                accounts.under_way.pop(exchange.request_id, None)
                admission.leave()

        return handle

    def _complete(
        self, asked: Asked, exchange: Exchange, key: Key | None, left: float | None, relay: Relay | None
    ) -> list[tuple[str, str]]:
        """Make the request, with a task and within what its key may do; what its answer is to tell of it, as headers.

        From now on its cost is charged to the key. Raises `HttpFailure`.
        """
        orchestrator, fields = self._orchestrator, asked.fields
        model, task = fields.get("model"), fields.get("task_type")
        if key is not None:
            if key.strategies or key.models:
                key.check(strategy=orchestrator.strategy, model=model)
            self._accounts.under_way[exchange.request_id] = key
        if model is None and (task is None or task == ANY_TASK):
            task = fields["task_type"] = predict_task(fields["messages"], orchestrator.config.task_routing)
            said = [(telling.TASK, f"{task}; predicted")]
        else:
            said = [(telling.TASK, task or ANY_TASK)]
        if left is not None:
            fields["budget"] = min(left, fields.get("budget", left))
        asked.request = request = LLMRequest(request_id=exchange.request_id, relay=relay, **fields)
        if self._log is not None:
            prompt = [text for message in request.messages for text in texts(message)]
            self._log.event("asked", request_id=exchange.request_id, prompt="\n".join(prompt))
        if asked.warnings:
            said += [(telling.WARNING, warning) for warning in asked.warnings]
        return said

    async def _stream(self, dialect: Dialect, exchange: Exchange, asked: Asked, said: Fields) -> None:
        request = asked.request
        relay = exchange.relay = request.relay
        stream = self._orchestrator.astream(request)

        def write(data: bytes) -> None:
            if not exchange.opened:
                assert stream.under_way is not None  # whoever writes has been asked
                headers = telling.of_stream(exchange, request, stream.under_way, said, debug=self._debug)
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
