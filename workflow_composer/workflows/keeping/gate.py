"""How many calls may be under way: one limit for all steps, raised while throughput grows, lowered by what servers refuse.

A server that answers 429 above n calls has told its limit: from then on fewer than n are made, and only after many answers
one more is tried again, each time after twice as many.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

from workflow_composer.batch.run.limiter import OVERLOAD, Limiter
from workflow_composer.errors import AllCandidatesFailed, BudgetExceeded, RateLimited, WorkflowComposerError
from workflow_composer.types import LLMRequest, LLMResponse
from workflow_composer.workflows.keeping.money import CallReservation, MoneyAccount, budget_reached

_FIRST_PROBE = 64
"""Answers after which one call more than a server once refused is tried."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 8.0
PATIENCE = 60.0
"""Seconds for which a call that an overloaded or unreachable server refuses is tried again, if it has answered before."""
SHORT_PATIENCE = 2.0
"""The same for a server that has never answered in this run."""

_REFUSED = frozenset({"RateLimited", "ServerUnreachable", "CircuitOpen"})
"""Errors of calls that were not served; trying again asks nothing twice."""


class RefusalCap:
    """The most calls under way that servers have borne: below what they last refused, and one more from time to time."""

    def __init__(self) -> None:
        self.limit: float = float("inf")
        self._wait = _FIRST_PROBE
        self._answered = 0
        self._deaf = 0

    def refused(self, under_way: int) -> None:
        """Note that a call was refused while so many were under way. Those that were under way then teach nothing more."""
        if self._deaf:
            return
        known = self.limit < float("inf")
        fewer = under_way - 1 if known else under_way // 2
        self.limit = max(1, min(self.limit, fewer))
        self._wait = 2 * self._wait if known else self._wait
        self._answered, self._deaf = 0, under_way

    def ended(self, *, well: bool) -> None:
        """Note that a call has ended."""
        self._deaf = max(0, self._deaf - 1)
        if not well or self.limit == float("inf"):
            return
        self._answered += 1
        if self._answered >= self._wait:
            self._answered = 0
            self.limit += 1


class CallGate:
    """Bounds the calls, and runs of programs, that are under way in a run, whichever row or item they belong to.

    ``concurrency`` is the most at a time; None: adaptive. They pass in the order of their coming. Once ``stop`` says so,
    everybody passes, because nobody starts anything then.
    """

    def __init__(self, concurrency: int | None = None, *, stop: Callable[[], bool] = lambda: False) -> None:
        self._limiter = Limiter.of(concurrency)
        self._cap = RefusalCap()
        self._stop = stop
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.well: set[str] = set()
        """Candidates that have answered in this run."""

    @property
    def limit(self) -> int:
        """How many may be under way now."""
        return int(min(self._limiter.limit, self._cap.limit))

    @property
    def in_flight(self) -> int:
        """How many are."""
        return self._limiter.in_flight

    def __call__(self) -> PlaceOfCall:
        """Return a context for one more that is under way; entering it waits until it may be."""
        return PlaceOfCall(self)

    async def enter(self) -> None:
        """Wait until one more may be under way."""
        if (self._waiting or not self._has_room) and not self._stop():
            await self._turn()
        else:
            self._limiter.begin()

    def leave(self, *, well: bool) -> None:
        """End one that was under way; ``well``: without an error."""
        self._limiter.end(well=well)
        self._cap.ended(well=well)
        self._pass_on()

    async def _turn(self) -> None:
        """Wait for a place, which is then taken."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self._limiter.end(well=False)
            self._pass_on()
            raise

    @property
    def _has_room(self) -> bool:
        return self.in_flight < self.limit

    def _pass_on(self) -> None:
        while self._waiting and (self._has_room or self._stop()):
            turn = self._waiting.popleft()
            if not turn.done():
                self._limiter.begin()
                turn.set_result(None)

    def open(self) -> None:
        """Let everybody pass; called when nothing may start any more."""
        self._pass_on()

    def hear(self, errors: Iterable[str]) -> None:
        """Take the types of the errors that a call has met."""
        found = [error for error in errors if error in OVERLOAD]
        if RateLimited.__name__ in found:
            self._cap.refused(self.in_flight)
        elif found:
            self._limiter.overloaded(found[0])


class PlaceOfCall(AbstractAsyncContextManager[None]):
    """One that is under way."""

    __slots__ = ("_gate",)

    def __init__(self, gate: CallGate) -> None:
        self._gate = gate

    async def __aenter__(self) -> None:
        await self._gate.enter()

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._gate.leave(well=kind is None)


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
                self._gate.hear(attempt.error_type or "" for attempt in error.attempts)
                if isinstance(error, BudgetExceeded) and (told := _of_run(request)) is not None:
                    raise told from error
                patience = PATIENCE if what in self._seen else SHORT_PATIENCE
                if not _was_refused(error) or self._stopped.is_set() or loop.time() - began + pause > patience:
                    raise
            else:
                self._seen.add(what)
                self._gate.hear(attempt.error_type or "" for attempt in response.attempts)
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
