"""Attempts: one metered call, and the way through a tier's candidates."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import replace
from types import TracebackType
from typing import Any, Protocol, Self

from workflow_composer.cascade.endpoint import Endpoint
from workflow_composer.cascade.retry import RetryPolicy
from workflow_composer.cascade.trace import Trace
from workflow_composer.errors import (
    AllCandidatesFailed,
    CallTimeout,
    CircuitOpen,
    ContextOverflow,
    ModelError,
)
from workflow_composer.types import Attempt, Candidate, LLMRequest, ModelCall, Plan, Tier, Timeouts, Usage, Verdict


class Observer(Protocol):
    """Told when a request takes another way than planned. Must be quick and must not raise."""

    def on_fallback(self, request: LLMRequest, failed: Attempt, candidate: Candidate) -> None:
        """``failed`` was the last attempt at the candidate given up; ``candidate`` is next."""

    def on_escalation(self, request: LLMRequest, plan: Plan, tier: int, verdict: Verdict) -> None:
        """Tier ``tier`` is not accepted and the next one is asked."""


class MeteredCall:
    """One call to one endpoint: admitted by its breaker, timed, priced, and recorded in the trace however it ends.

    ``usage``, ``cost`` and ``failovers`` are filled in by who makes the call; without a cost the usage is priced. Each
    failover is an attempt of its own; the GPU time that it took is charged with the call that it was part of.
    """

    __slots__ = ("_endpoint", "_gpu", "_probe", "_samples", "_started", "_walk", "cost", "failovers", "usage")

    def __init__(self, endpoint: Endpoint, walk: Walk, samples: int = 1) -> None:
        self._endpoint = endpoint
        self._walk = walk
        self._samples = samples
        self.usage = Usage()
        self.cost: float | None = None
        self.failovers: tuple[Attempt, ...] = ()

    def __enter__(self) -> Self:
        self._started = time.perf_counter()
        try:
            self._probe = self._endpoint.breaker.admit()
        except CircuitOpen as error:
            self._record(0.0, 0.0, error)
            raise
        self._gpu = self._endpoint.start()
        self._walk.trace.wait(self._started)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        gpu_seconds = self._endpoint.stop(self._gpu)
        now = time.perf_counter()
        seconds = now - self._started
        self._walk.trace.go_on(now)
        self._check()
        breaker = self._endpoint.breaker
        if error is None:
            breaker.succeed()
            self._endpoint.forecast.learn(self._walk.request, self.usage, self._samples, gpu_seconds)
        elif isinstance(error, ModelError):
            self.failovers = error.failovers or self.failovers
            self._blame(error)
        else:
            breaker.release(probe=self._probe)
        if self.failovers:
            self._record_failovers()
        self._record(seconds, gpu_seconds, error)

    def _check(self) -> None:
        """Take usage and cost for what they are, claims of a server or a plugin: those that cannot be are unknown."""
        if not self.usage.can_be:
            self.usage = Usage()
        if self.cost is not None and not 0.0 <= self.cost < math.inf:
            self.cost = None

    def _blame(self, error: ModelError) -> None:
        """Tell the breaker; a call that ended at its request's own limit was nobody's failure."""
        breaker = self._endpoint.breaker
        if isinstance(error, CallTimeout) and (error.by_request or self._walk.trace.deadline.nearly_over):
            breaker.release(probe=self._probe)
        else:
            breaker.fail(error, probe=self._probe)

    def _record_failovers(self) -> None:
        walk, candidate = self._walk, self._endpoint.candidate
        place: dict[str, Any] = {"tier": walk.tier_index, "candidate": walk.position, "name": candidate.name}
        walk.trace.attempts.extend(replace(failed, **place) for failed in self.failovers)

    def _record(self, seconds: float, gpu_seconds: float, error: BaseException | None) -> None:
        walk, candidate = self._walk, self._endpoint.candidate
        walk.trace.attempts.append(
            Attempt(
                walk.tier_index,
                walk.position,
                candidate.name,
                candidate.local,
                seconds * 1000.0,
                self.usage,
                self._endpoint.cost(self.usage, gpu_seconds) if self.cost is None else self.cost,
                None if error is None else str(error) or "cancelled",
                None if error is None else type(error).__name__,
            )
        )


class Walk:
    """The way through one tier's candidates.

    `next` gives the candidate to call; after a failed call `failed` decides what `next` will give: the same one again
    (after a pause), the one behind it, or nothing.
    """

    def __init__(
        self,
        tier_index: int,
        tier: Tier,
        request: LLMRequest,
        trace: Trace,
        retry: RetryPolicy,
        patience: float,
        observer: Observer | None = None,
        position: int = 0,
    ) -> None:
        self.tier_index = tier_index
        self.request = request
        self.trace = trace
        self.position = position
        self._candidates = tier.candidates
        self._retry = retry
        self._patience = patience
        self._observer = observer
        self._tried = 0
        self._too_short = -1
        self._first_attempt = len(trace.attempts)

    def next(self) -> Candidate | None:
        """The candidate to call now; None when there is no other or no time."""
        if self.position >= len(self._candidates) or self.trace.deadline.over:
            return None
        self._tried += 1
        return self._candidates[self.position]

    async def failed(self, error: ModelError) -> None:
        """Take note that the call failed; returns when the next may be made. Raises ``error`` where none may be."""
        if not error.fallback:
            raise error
        if isinstance(error, ContextOverflow):
            self._too_short = max(self._too_short, self._candidates[self.position].context_length or 0)
        following = self._following()
        pause = self._retry.pause(
            error,
            self._tried,
            others_left=following < len(self._candidates),
            time_left=min(self.trace.deadline.left, self._patience),
        )
        if pause is not None:
            await self._wait(pause)
            return
        self.position, self._tried = following, 0
        if self._observer is not None and following < len(self._candidates) and not self.trace.deadline.over:
            self._observer.on_fallback(self.request, self.trace.attempts[-1], self._candidates[following])

    def _following(self) -> int:
        """The next position whose model is not known to be too short for the prompt."""
        for position in range(self.position + 1, len(self._candidates)):
            length = self._candidates[position].context_length
            if length is None or length > self._too_short:
                return position
        return len(self._candidates)

    async def _wait(self, seconds: float) -> None:
        self.trace.wait(time.perf_counter())
        try:
            await asyncio.sleep(seconds)
        finally:
            self.trace.go_on(time.perf_counter())

    def exhausted(self, why: str = "") -> AllCandidatesFailed:
        """The error for a tier in which nothing could answer."""
        attempts = self.trace.attempts[self._first_attempt :]
        plural = "" if len(attempts) == 1 else "s"
        what = f"no model could answer after {len(attempts)} attempt{plural}"
        return AllCandidatesFailed(f"{what}: {why}" if why else what, attempts=attempts)


def within(call: ModelCall, limit: float) -> ModelCall:
    """The same call, its times cut to ``limit`` seconds."""
    times = call.timeouts
    if limit >= times.total:
        return call
    cut = Timeouts(min(times.connect, limit), min(times.first_token, limit), limit)
    return replace(call, timeouts=cut)
