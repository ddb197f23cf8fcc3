"""How many calls may be under way: one limit for all steps, raised while throughput grows, and one for each server."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

from workflow_composer.batch.run.limiter import OVERLOAD, Limiter
from workflow_composer.errors import AllCandidatesFailed, BudgetExceeded, RateLimited, WorkflowComposerError
from workflow_composer.types import Attempt, LLMRequest, LLMResponse
from workflow_composer.workflows.keeping.money import CallReservation, MoneyAccount, budget_reached
from workflow_composer.workflows.running.servers import RefusalCap, ServerLoad, load_of

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 8.0
PATIENCE = 60.0
"""Seconds for which a call that an overloaded or unreachable server refuses is tried again, if it has answered before."""
SHORT_PATIENCE = 2.0
"""The same for a server that has never answered in this run."""

_REFUSED = frozenset({"RateLimited", "ServerUnreachable", "CircuitOpen"})
"""Errors of calls that were not served; trying again asks nothing twice."""


class CallGate:
    """Bounds the calls, and runs of programs, that are under way in a run, whichever row or item they belong to.

    ``concurrency`` is the most at a time; None: adaptive. Besides, a server gets no more calls, of all runs of the process,
    than it bears; ``address`` returns that behind a model's name. They pass in the order of their coming, but for those
    whose server is busy. Once ``stop`` says so, everybody passes, because nobody starts anything then.
    """

    def __init__(
        self,
        concurrency: int | None = None,
        *,
        stop: Callable[[], bool] = lambda: False,
        address: Callable[[str], str] = lambda name: "",
    ) -> None:
        self._limiter = Limiter.of(concurrency)
        self._stop, self._address = stop, address
        self._loads: dict[str, ServerLoad] = {}
        self._cap = RefusalCap()  # of servers that no call asks first, such as those of later tiers
        self._waiting: deque[tuple[asyncio.Future[None], ServerLoad | None]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def limit(self) -> int:
        """How many may be under way now."""
        servers = sum(load.limit for load in self._loads.values()) if self._loads else math.inf
        return int(min(self._most, servers))

    @property
    def _most(self) -> float:
        return min(self._limiter.limit, self._cap.limit)

    @property
    def in_flight(self) -> int:
        """How many are."""
        return self._limiter.in_flight

    def __call__(self, model: str | None = None) -> PlaceOfCall:
        """Return a context for one more that is under way; entering it waits until it may be.

        ``model`` is the one, by its name in the profile, that a call asks first; None: it is no call.
        """
        return PlaceOfCall(self, None if model is None else self._load(model))

    def _load(self, model: str) -> ServerLoad:
        server = self._address(model)
        found = self._loads.get(server)
        if found is None:
            found = self._loads[server] = load_of(server)
        return found

    async def enter(self, load: ServerLoad | None = None) -> None:
        """Wait until one more may be under way."""
        if self._waiting and not self._stop():
            self._pass_on()
        if self._waiting or not self._begun(load):
            await self._turn(load)

    def _begun(self, load: ServerLoad | None) -> bool:
        """Begin, if there is room; return whether it has begun."""
        stop = self._stop()
        if not stop and self.in_flight >= self._most:
            return False
        if load is not None and not load.begin(anyway=stop):
            return False
        self._limiter.begin()
        return True

    def leave(self, load: ServerLoad | None = None, *, well: bool) -> None:
        """End one that was under way; ``well``: without an error."""
        self._limiter.end(well=well)
        self._cap.ended(well=well)
        if load is not None:
            load.end(well=well)
        if self._waiting:
            self._pass_on()

    async def _turn(self, load: ServerLoad | None) -> None:
        """Wait for a place, which is then taken."""
        self._loop = asyncio.get_running_loop()
        turn = self._loop.create_future()
        self._waiting.append((turn, load))
        if load is not None:
            load.wait(self)
        self._pass_on()
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self.leave(load, well=False)
            self._pass_on()
            raise

    def _pass_on(self) -> None:
        """Let those begin for whom there is room, in their order."""
        kept: deque[tuple[asyncio.Future[None], ServerLoad | None]] = deque()
        busy: set[ServerLoad | None] = set()
        while self._waiting and (self.in_flight < self._most or self._stop()):
            turn, load = self._waiting.popleft()
            if turn.done():
                continue
            if load not in busy and self._begun(load):
                turn.set_result(None)
            else:
                busy.add(load)
                kept.append((turn, load))
        kept.extend(self._waiting)
        self._waiting = kept

    def nudge(self) -> None:
        """Look again whether one may begin, because a server has ended a call of this run or another one."""
        if self._waiting and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._pass_on)

    def open(self) -> None:
        """Let everybody pass; called when nothing may start any more."""
        self._pass_on()

    def hear(self, attempts: Iterable[Attempt]) -> None:
        """Take the errors that a call has met."""
        found = [one for one in attempts if one.error_type in OVERLOAD]
        refused = {one.name for one in found if one.error_type == RateLimited.__name__}
        for server in {self._address(name) for name in refused}:
            load = self._loads.get(server)
            if load is not None and load.in_flight:
                load.refused()
            else:
                self._cap.refused(self.in_flight)
        if found and not refused:
            self._limiter.overloaded(str(found[0].error_type))


class PlaceOfCall(AbstractAsyncContextManager[None]):
    """One that is under way."""

    __slots__ = ("_gate", "_load")

    def __init__(self, gate: CallGate, load: ServerLoad | None) -> None:
        self._gate, self._load = gate, load

    async def __aenter__(self) -> None:
        await self._gate.enter(self._load)

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._gate.leave(self._load, well=kind is None)


class OneAtATime:
    """Lets one at a time through for each name; the others find what it has left."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, list[None]]] = {}

    @asynccontextmanager
    async def __call__(self, name: str) -> AsyncIterator[None]:
        """Wait until nobody else is within this name."""
        lock, inside = self._locks.setdefault(name, (asyncio.Lock(), []))
        inside.append(None)
        try:
            async with lock:
                yield
        finally:
            inside.pop()
            if not inside:
                self._locks.pop(name, None)


class Asker:
    """Answers requests through an orchestrator, with patience for servers that are overloaded or start anew."""

    def __init__(
        self, generate: Callable[[LLMRequest], Awaitable[LLMResponse]], gate: CallGate, stopped: asyncio.Event
    ) -> None:
        self._generate, self._gate, self._stopped = generate, gate, stopped
        self._seen: set[tuple[str | None, str]] = set()

    async def __call__(self, request: LLMRequest) -> LLMResponse:
        """Return the response. Raises as `ModelOrchestrator.agenerate`, and `RunBudgetReached`."""
        loop = asyncio.get_running_loop()
        began, pause, what = loop.time(), _FIRST_PAUSE, (request.model, request.task_type)
        if isinstance(request.purse, CallReservation):
            request.purse.is_unseen = lambda: what not in self._seen
        while True:
            try:
                response = await self._generate(request)
            except AllCandidatesFailed as error:
                self._gate.hear(error.attempts)
                if isinstance(error, BudgetExceeded) and (told := _of_run(request)) is not None:
                    raise told from error
                patience = PATIENCE if what in self._seen else SHORT_PATIENCE
                if not _was_refused(error) or self._stopped.is_set() or loop.time() - began + pause > patience:
                    raise
            else:
                self._seen.add(what)
                self._gate.hear(response.attempts)
                return response
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopped.wait()
            pause = min(2 * pause, _LONGEST_PAUSE)


def _was_refused(error: AllCandidatesFailed) -> bool:
    """Whether no candidate has worked on the question, so that it may be asked again."""
    return bool(error.attempts) and all(attempt.error_type in _REFUSED for attempt in error.attempts)


def _of_run(request: LLMRequest) -> WorkflowComposerError | None:
    """Return the error if it is the run's budget, not the row's, that does not pay for a request."""
    account: Any = getattr(request.purse, "budget", None)
    if isinstance(account, MoneyAccount) and account.narrowest.outer is None:
        return budget_reached(account)
    return None
