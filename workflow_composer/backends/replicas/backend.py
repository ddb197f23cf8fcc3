"""A model on several servers: each call goes to one of them, and to another one if it fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from workflow_composer.backends.base import Backend, BackendContext, Passed, Upload
from workflow_composer.backends.http.connection import Broken
from workflow_composer.backends.openai.backend import OpenAICompatibleBackend
from workflow_composer.backends.replicas.discovery import Finder
from workflow_composer.backends.replicas.replica import Replica, ReplicaPlace, Standing, another_may_answer
from workflow_composer.backends.replicas.replica_set import ReplicaSet, prefix_key
from workflow_composer.errors import (
    AuthenticationFailed,
    CallTimeout,
    ContextOverflow,
    EgressDenied,
    ModelError,
    RateLimited,
    ServerFailed,
    ServerUnreachable,
)
from workflow_composer.support.per_loop import PerLoop
from workflow_composer.types import (
    TIMER_EARLY,
    Attempt,
    Chunk,
    Completion,
    Embeddings,
    EndpointStatus,
    LLMRequest,
    ModelCall,
    Relay,
    Timeouts,
)
from workflow_composer.usage import Sending

if TYPE_CHECKING:
    from workflow_composer.config.strategy import ModelSpec


# -------------------------------------------------------------------------------------------------------------------- vllm
#
# The backend of models on local vLLM servers: one server or several.


def vllm_backend(spec: ModelSpec, context: BackendContext) -> Backend:
    """Return a backend for one URL, or one that chooses a server per call if the role has several or uses the registry."""
    if spec.base_url is not None:
        return OpenAICompatibleBackend(spec, context)

    return ReplicatedBackend(spec, context)


ASK_EVERY = 1.0
"""Seconds between two queries for the servers' metrics, while there are calls."""
ANSWER_WITHIN = 1.0
"""Time limit of such a query in seconds."""


MADE_KEY = "the server's registry entry"
"""The name under which a server's client finds the key that the fleet has made for it, as messages say it: no variable."""


A = TypeVar("A", Completion, Embeddings, Passed)


class ReplicatedBackend:
    """One model on all current servers of the profile's role.

    A call goes to the server that `balance.choose` selects: the one that has probably cached the prompt's prefix, unless it
    is overloaded. If a server is unreachable, fails or serves another model, the next one takes over at once; for a stream,
    only before its first piece. Servers that drain, start or were removed get no new calls.
    """

    def __init__(self, spec: ModelSpec, context: BackendContext) -> None:
        self.name: str = spec.name
        self.local: bool = spec.local
        self.relays = True
        self.tells_sending = self.keeps_private = True
        self._spec = spec
        self._context = context
        self._role = spec.endpoint or spec.name
        self._finder = Finder(context.config, spec.endpoint, context.environ)
        self._set = ReplicaSet(self._make, context.report, role=self._role)
        self.meter = self._set.meter
        self._work: PerLoop[_Background] = PerLoop(_Background, _Background.close)
        self._asked_at = float("-inf")

    async def complete(self, call: ModelCall) -> Completion:
        """Return ``call.samples`` answers, all by one server."""
        request = call.request
        key, tour = prefix_key(request.messages), self._tour(call.timeouts, request.request_id, request.relay, call.sending)
        return await self._answered(key, tour, lambda backend, left: backend.complete(_within(call, left)))

    async def embed(
        self,
        texts: Sequence[str | Sequence[int]],
        *,
        timeout: float,
        dimensions: int | None = None,
        sending: Sending | None = None,
        request: LLMRequest | None = None,
        private: bool = False,
    ) -> Embeddings:
        """Return one vector per text."""
        tour = self._tour(
            Timeouts(total=timeout), asyncio.current_task(), None, sending
        )  # a request embeds its texts within one task
        return await self._answered(
            None,
            tour,
            lambda backend, left: backend.embed(
                texts, timeout=left.total, dimensions=dimensions, sending=sending, request=request, private=private
            ),
        )

    async def passed(
        self,
        path: str,
        body: Mapping[str, Any] | Upload,
        request: LLMRequest,
        *,
        timeout: float,
        sending: Sending | None = None,
    ) -> Passed:
        """Send a request of a server's own API to one of the servers; return what it answers."""
        tour = self._tour(Timeouts(total=timeout), asyncio.current_task(), None, sending)
        return await self._answered(
            None,
            tour,
            lambda backend, left: backend.passed(path, body, request, timeout=left.total, sending=sending),
        )

    async def stream(self, call: ModelCall) -> AsyncGenerator[Chunk, None]:
        """Yield one answer piece by piece, all by one server."""
        key, tour = prefix_key(call.request.messages), self._tour(call.timeouts, call.request.request_id, None, call.sending)
        await self._look_around()
        while True:
            begun = False
            try:
                with self._set.lent(key, tour.tried, tour.request) as replica:
                    if replica is None:
                        raise self._nobody(tour)
                    with tour.begin(replica):
                        async with aclosing(replica.backend.stream(_within(call, tour.left))) as chunks:
                            async for chunk in chunks:
                                begun = begun or chunk.carries_content
                                yield tour.marked(chunk)
                                tour.heard = time.perf_counter()
                    return
            except (ModelError, EgressDenied) as error:
                if begun:
                    raise
                tour.failed(error)
            except asyncio.CancelledError:
                tour.ended(call.timeouts.total if begun else tour.patience, self._set.late)
                raise

    async def health(self, *, timeout: float) -> EndpointStatus:
        """Return healthy if one server is. Never raises."""
        await self._look_around()
        found = await asyncio.gather(*(r.backend.health(timeout=timeout) for r in self._set.replicas))
        return self._finder.summary(self.name, found)

    async def close(self) -> None:
        """Close every server's connections."""
        await self._work.close()
        for replica in self._set.everyone():
            await replica.backend.close()

    # ---------------------------------------------------------------------------------------------------------- calls

    async def _answered(
        self,
        key: bytes | None,
        tour: _Tour,
        ask: Callable[[OpenAICompatibleBackend, Timeouts], Awaitable[A]],
    ) -> A:
        await self._look_around()
        while True:
            try:
                with self._set.lent(key, tour.tried, tour.request) as replica:
                    if replica is None:
                        raise self._nobody(tour)
                    with tour.begin(replica):
                        found = await ask(replica.backend, tour.left)
            except (ModelError, EgressDenied) as error:
                if tour.relay is not None and tour.relay.begun:
                    raise
                tour.failed(error)
            except asyncio.CancelledError:
                tour.ended(tour.total, self._set.late)
                raise
            else:
                return replace(found, failovers=tuple(tour.failovers)) if tour.failovers else found

    def _tour(
        self, timeouts: Timeouts, request: object, relay: Relay | None = None, sending: Sending | None = None
    ) -> _Tour:
        by_request = timeouts.total < self._context.config.timeouts.total
        return _Tour(timeouts, request, relay, sending, by_request=by_request, servers=self._set)

    def _nobody(self, tour: _Tour) -> ModelError | EgressDenied:
        """Return the error if no server is left to try."""
        if tour.last is not None:
            return tour.last
        hint = "; ".join([*self._set.remedies, self._finder.hint])
        return ServerUnreachable(self._finder.nobody(self._set.refused), hint=hint)

    # -------------------------------------------------------------------------------------------------------- servers

    def _make(self, place: ReplicaPlace) -> Replica:
        """Make a replica whose egress policy admits its server and what the profile names."""
        egress = self._context.egress
        if place.refused is not None:
            raise EgressDenied(place.refused[0], hint=place.refused[1])
        if place.registered:
            egress = egress.admitting(place.url)
        egress.check(place.url)
        spec = self._spec.model_copy(update={"base_url": place.url, "model": self._spec.model or place.model})
        environ = self._context.environ
        if place.key:  # the fleet has made it; nothing else is sent to this server
            spec = spec.model_copy(update={"api_key_env": MADE_KEY})
            environ = {**environ, MADE_KEY: place.key}
        breaker = self._context.config.circuit_breaker
        backend = OpenAICompatibleBackend(spec, replace(self._context, egress=egress, environ=environ))
        return Replica(place, backend, failures=breaker.failures, longest_pause=breaker.cooldown)

    async def _look_around(self) -> None:
        """Update the servers; query their load and close removed ones in the background."""
        places = await self._finder.places()
        if places is not None:
            self._set.adopt(places)
        now = time.monotonic()
        if now - self._asked_at < ASK_EVERY:
            return
        self._asked_at = now
        work = await self._work.here()
        for replica in self._set.ended():
            work.finish(replica.backend.close())
        replicas = self._set.replicas
        if len(replicas) > 1 or any(replica.standing(now) is not Standing.GOOD for replica in replicas):
            for replica in replicas:
                work.begin(_ask(replica))


async def _ask(replica: Replica) -> None:
    """Query a server's load. Its failures do not affect requests."""
    calls, began = replica.calls, time.monotonic()
    try:
        readings = await replica.backend.readings(ANSWER_WITHIN)
    except (TimeoutError, Broken, EgressDenied, AuthenticationFailed):
        if time.monotonic() - began < 2.0 * ANSWER_WITHIN:  # otherwise this process was too busy
            replica.said_nothing(refused=False, now=time.monotonic())
    except OSError:
        replica.said_nothing(refused=True, now=time.monotonic())
    else:
        replica.told(readings, calls, time.monotonic())


class _Tour:
    """One call's attempts at several servers, within its time limit; ``by_request``: the limit is the request's own.

    ``request`` identifies the request. ``heard`` is when the last piece of a stream was taken (`time.perf_counter`).
    """

    def __init__(
        self,
        timeouts: Timeouts,
        request: object,
        relay: Relay | None,
        sending: Sending | None = None,
        *,
        by_request: bool,
        servers: ReplicaSet,
    ) -> None:
        self._servers = servers
        self._longer = False
        self._sending = sending
        self.request = request
        self.relay = relay
        self.total = timeouts.total
        self.patience = min(timeouts.first_token, timeouts.total)
        self.heard = float("-inf")
        self.tried: set[ReplicaPlace] = set()
        self.failovers: list[Attempt] = []
        self.last: ModelError | EgressDenied | None = None
        self._timeouts = timeouts
        self._ends = time.monotonic() + timeouts.total
        self._own = self._ends if by_request else float("inf")
        self._began = 0.0
        self._answers = 0
        self._server = ""
        self._replica: Replica | None = None

    @contextmanager
    def begin(self, replica: Replica) -> Iterator[None]:
        """Start an attempt at a server. A timeout at the request's own limit is the caller's fault."""
        self.tried.add(replica.place)
        self._replica = replica
        self._server = replica.place.url
        self._began = time.monotonic()
        try:
            yield
        except CallTimeout as error:
            if self._own_time_is_over or self._answer_is_coming:
                error.fault = "caller"
            raise

    @property
    def _own_time_is_over(self) -> bool:
        return time.monotonic() >= self._own - TIMER_EARLY

    @property
    def _answer_is_coming(self) -> bool:
        """Whether a stream is alive: its answer is too long for the limit, or its reader too slow."""
        heard = self.relay.heard if self.relay is not None and self.relay.begun else self.heard
        return time.perf_counter() - heard < self.patience

    @property
    def left(self) -> Timeouts:
        """The remaining time; all of it for the first server."""
        if not self.failovers:
            return self._timeouts
        return replace(self._timeouts, total=max(0.001, self._ends - time.monotonic()))

    def failed(self, error: ModelError | EgressDenied) -> None:
        """Record the failure of the current server; raise the error if no other should be tried."""
        if error is self.last or not self._server:
            raise self._told(error)
        elsewhere = isinstance(error, EgressDenied) or another_may_answer(error) or self._too_long(error)
        # If two servers fail to answer, the request itself may be the problem.
        self._answers += isinstance(error, (ServerFailed, RateLimited))
        if not elsewhere or self._answers > 1 or time.monotonic() >= self._ends:
            raise self._told(error)
        self.last = error
        latency = (time.monotonic() - self._began) * 1000.0
        failed = Attempt(0, 0, self._server, True, latency, error=str(error), error_type=type(error).__name__)
        self.failovers.append(replace(failed, fault=error.fault, estimated=self._had_it()))
        self._server = ""

    def _too_long(self, error: ModelError) -> bool:
        """Whether to try a server with a longer context, once: the others are then out of question."""
        if self._longer or self._replica is None or not isinstance(error, ContextOverflow):
            return False
        self._longer = True
        self.tried |= self._servers.no_longer_than(self._replica.place)
        return True

    def _had_it(self) -> bool:
        """Whether the server that failed had the request; its work is counted with its attempt, not with the call."""
        sending = self._sending
        had = sending is not None and sending.sent > 0
        if had and sending is not None:
            sending.sent = 0
        return had

    def ended(self, limit: float, late: Callable[[Replica, object], None]) -> None:
        """Record a cancelled call. If its time ran out, the server is at fault; if the caller cancelled it, not."""
        if self._own_time_is_over or self._answer_is_coming:
            return
        if self._replica is not None and time.monotonic() - self._began >= 0.98 * limit:
            late(self._replica, self.request)

    def _told(self, error: ModelError | EgressDenied) -> ModelError | EgressDenied:
        """Return the error with the servers that failed before the last one."""
        again = error is self.last
        if again and self._sending is not None and self.failovers and self.failovers[-1].estimated:
            self._sending.sent = 1  # the last failure is that of the call itself
        if isinstance(error, ModelError):
            error.failovers = tuple(self.failovers[:-1] if again else self.failovers)
        return error

    def marked(self, chunk: Chunk) -> Chunk:
        """Return a stream's first piece with the servers that failed before it."""
        if not self.failovers:
            return chunk
        failovers, self.failovers = tuple(self.failovers), []
        return replace(chunk, failovers=failovers)


class _Background:
    """Background tasks of one event loop."""

    def __init__(self) -> None:
        self._begun: set[asyncio.Task[None]] = set()
        self._to_finish: set[asyncio.Task[None]] = set()

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Start a task that `close` may cancel."""
        self._start(work, self._begun)

    def finish(self, work: Coroutine[Any, Any, None]) -> None:
        """Start a task that `close` waits for, because its work must be completed."""
        self._start(work, self._to_finish)

    def _start(self, work: Coroutine[Any, Any, None], among: set[asyncio.Task[None]]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        among.add(task)
        task.add_done_callback(among.discard)

    async def close(self) -> None:
        """Cancel tasks started with `begin`, and wait for those started with `finish`."""
        for task in self._begun:
            task.cancel()
        await asyncio.gather(*self._begun, *self._to_finish, return_exceptions=True)


def _within(call: ModelCall, timeouts: Timeouts) -> ModelCall:
    return call if timeouts is call.timeouts else replace(call, timeouts=timeouts)
