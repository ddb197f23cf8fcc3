"""One call to one model: admitted by a circuit breaker, limited in time, metered, priced, and always recorded.

`Call` wraps the await of a complete answer, a stream or embeddings. It reads the model's `Endpoint`, and reports its result
to the request's `Trace`, the circuit breaker, and the cost forecast.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType, TracebackType
from typing import Any, Self

from workflow_composer.backends.base import Backend
from workflow_composer.backends.pricing import Forecast, GpuMeter, ModelNames, Price
from workflow_composer.errors import (
    CallTimeout,
    CircuitOpen,
    EgressDenied,
    ModelError,
    OutOfResources,
    ServerFailed,
    TooManyCalls,
    WorkflowComposerError,
)
from workflow_composer.execution.breaker import CircuitBreaker
from workflow_composer.execution.fault import counts, fault_of
from workflow_composer.execution.metering import is_owed, of_answer, of_failure
from workflow_composer.plan import Candidate, Tier
from workflow_composer.support.scarcity import lacking
from workflow_composer.types import TIMER_EARLY, Attempt, ModelCall, Sample, TierResult, Timeouts, Usage, Verdict
from workflow_composer.usage import MOST_TOKENS, NO_USAGE, Delivered, WorkClock

REST = "end of the stream"
"""What a stream awaits after its first token."""
CUT_OFF = "the answer was cut off by its length"
SCARCE = "raise this process's limits (ulimit -n), or lower the number of concurrent requests"


@dataclass(frozen=True, slots=True, eq=False)
class Endpoint:
    """A model's backend, price, circuit breaker, meter (for a price per GPU-hour), forecast, and names that it answers by.

    Models served by one process share a circuit breaker and a meter.
    """

    candidate: Candidate
    backend: Backend
    price: Price
    breaker: CircuitBreaker
    meter: GpuMeter
    forecast: Forecast = field(default_factory=Forecast)
    names: ModelNames = field(default_factory=ModelNames)


# ---------------------------------------------------------------------------------------------- the record of a request

NO_SAMPLES: tuple[Sample, ...] = ()


@dataclass(slots=True)  # not frozen, which would be slower: one is created for every request
class Outcome:
    """A tier's answer, the candidate that gave it, and the verdict. ``whole``: the call was not abandoned. ``usage`` is that
    of a single call, for those who may ask again.
    """

    samples: tuple[Sample, ...]
    model: str
    candidate: Candidate
    tier: int
    fallback_depth: int
    verdict: Verdict
    whole: bool = True
    usage: Usage = NO_USAGE

    @property
    def answer(self) -> Sample:
        """The sample chosen as the answer."""
        return self.samples[self.verdict.choice]

    @property
    def answer_first(self) -> tuple[Sample, ...]:
        """All samples, the answer first."""
        choice = self.verdict.choice
        return (self.samples[choice], *self.samples[:choice], *self.samples[choice + 1 :])

    @property
    def is_readable(self) -> bool:
        """Whether the tier has an answer; a vote in which no sample could be read has none."""
        return bool(self.verdict.votes) or not self.verdict.unreadable


_NONE_SKIPPED: Mapping[int, str] = MappingProxyType({})


class Trace:
    """The record of one request so far. The caller keeps it, so that it survives a run that fails.

    The request must end within ``timeout`` seconds (None: no limit), that is, when the clock (`time.perf_counter`) reaches
    ``ends``. ``waited`` is the time in seconds spent in model calls and in pauses between them, which is all time that is
    not the orchestrator's overhead. ``calls_left`` is the number of samples that its calls may still ask for. ``retry_at``
    is when the first server that asked for a pause may be asked again, and ``refusal`` the last error about a field of the
    request. ``tiers`` holds the finished tiers of a plan with several tiers or with a vote; ``skipped`` says of each tier
    that was not run, by its number, why.
    """

    __slots__ = (
        "_began",
        "_clock",
        "_first",
        "_since",
        "_waiting",
        "attempts",
        "blamed",
        "calls_left",
        "ends",
        "refusal",
        "retry_at",
        "skipped",
        "tiers",
        "waited",
    )

    def __init__(
        self,
        timeout: float | None = None,
        most_calls: int | None = None,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._clock = clock
        self.calls_left = math.inf if most_calls is None else most_calls
        self.blamed: tuple[CircuitBreaker, ...] = ()
        self.ends = math.inf if timeout is None else clock() + timeout
        self.retry_at: float | None = None
        self.refusal: ModelError | None = None
        self.attempts: list[Attempt] = []
        self.tiers: list[TierResult] = []
        self.skipped: Mapping[int, str] = _NONE_SKIPPED
        self.waited = 0.0
        self._waiting = 0
        self._since = 0.0
        self._began = 0.0
        self._first = 0

    @property
    def left(self) -> float:
        """Seconds left; infinite without a limit, never below zero."""
        return max(0.0, self.ends - self._clock())

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return self._clock() >= self.ends

    def end(self) -> None:
        """End the request's time now: a timer that fires a little early must not start another call."""
        self.ends = min(self.ends, self._clock())

    def out_of_calls(self) -> TooManyCalls:
        """Return the error for a call beyond the request's limit."""
        made = len(self.attempts)
        reason = f"the request may make no further call to a model after {made}: it has reached its limit (most_calls)"
        return TooManyCalls(reason, attempts=self.attempts, hint="raise the limit, or ask for fewer samples and retries")

    @property
    def nearly_over(self) -> bool:
        """Whether the time is up within a timer's resolution: a timer may fire early by up to ``TIMER_EARLY``."""
        return self._clock() >= self.ends - TIMER_EARLY

    def wait(self, now: float) -> None:
        """Start a call or a pause; overlapping ones count once."""
        if not self._waiting:
            self._since = now
        self._waiting += 1

    def go_on(self, now: float) -> None:
        """End a call or a pause."""
        self._waiting -= 1
        if not self._waiting:
            self.waited += now - self._since

    def skip_tier(self, index: int, why: str) -> None:
        """Record that a tier is not run."""
        self.skipped = {**self.skipped, index: why}

    @property
    def tried(self) -> list[Attempt]:
        """The attempts of the current tier."""
        return self.attempts[self._first :]

    def begin_tier(self) -> None:
        """Start a new tier: later attempts belong to it."""
        self._began = time.perf_counter()
        self._first = len(self.attempts)

    def reopen_tier(self, index: int) -> None:
        """Start the tier again: drop its earlier result, but keep its attempts."""
        self.tiers = [tier for tier in self.tiers if tier.tier != index]
        self.begin_tier()

    def close_tier(self, tier: Tier, verdict: Verdict, outcome: Outcome | None, index: int) -> None:
        """Record the result of a tier; ``outcome`` is None if no candidate answered."""
        usage, cost = total_of(self.tried)
        milliseconds = (time.perf_counter() - self._began) * 1000.0
        candidate, model, samples = "", "", NO_SAMPLES
        if outcome is not None:
            candidate, model, samples = outcome.candidate.name, outcome.model, outcome.samples
        self.tiers.append(
            TierResult(
                index,
                tier.name or candidate,
                candidate,
                model,
                samples,
                verdict,
                usage,
                cost,
                milliseconds,
                fixed=tier.draws_fixed and len(samples) == tier.samples,
            )
        )

    @property
    def total(self) -> tuple[Usage, float]:
        """Tokens and dollars of all attempts, including failed and rejected ones."""
        attempts = self.attempts
        return (attempts[0].usage, attempts[0].cost) if len(attempts) == 1 else total_of(attempts)

    @property
    def usage(self) -> Usage:
        """Tokens of all attempts."""
        return self.total[0]

    @property
    def cost(self) -> float:
        """Dollars of all attempts."""
        return self.total[1]


def total_of(attempts: list[Attempt]) -> tuple[Usage, float]:
    """Return the tokens and dollars of these attempts."""
    return sum((attempt.usage for attempt in attempts), Usage()), sum(attempt.cost for attempt in attempts)


# ---------------------------------------------------------------------------------------------------------- the call


class Call:
    """A context manager around the await of one call to one endpoint::

        with Call(endpoint, asked, trace, tier, position) as call:
            done = await endpoint.backend.complete(call.asked)
            call.usage, call.cost, call.model, call.samples = done.usage, done.cost, done.model, done.samples

    The call ends at the timeouts of ``asked`` or at the end of the request's time, whichever is first; ``call.asked`` has
    the resulting limits. It then raises `CallTimeout`, which names the missing result (``awaited``). ``patience`` (seconds)
    is a shorter limit on the first await. A stream has several awaits: the reader's time between `pause` and `resume` is
    counted but not limited. Cancellation is distinguished from a timeout as in `asyncio.timeout`. A foreign exception from
    the await becomes a `ServerFailed`, so that a bug in a backend does not prevent fallback to another candidate.

    The caller sets what came back: ``usage``, ``cost``, ``model``, ``samples`` and ``failovers``, or the ``delivery`` of a
    stream. This is the one place that decides what the call used and what it costs: usage that the server reported within
    its bounds is *known*; what is missing, or was broken off, is *estimated* (`execution.metering`); without a price in the
    profile, the cost is *unknown*. Each failover is recorded as an attempt; its GPU time is charged to the call with it.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        asked: ModelCall,
        trace: Trace,
        tier: int = 0,
        position: int = 0,
        *,
        awaited: str = "complete answer",
        patience: float = math.inf,
    ) -> None:
        times, left = asked.timeouts, trace.ends - time.perf_counter()
        if left < times.total:
            left = max(left, 0.0)
            asked = replace(asked, timeouts=Timeouts(min(times.connect, left), min(times.first_token, left), left))
        self.asked = asked
        self.seconds = asked.timeouts.total
        self.usage = NO_USAGE
        self.cost: float | None = None
        self.model: str | None = None
        self.samples = NO_SAMPLES
        self.delivery: Delivered | None = None
        self.failovers: tuple[Attempt, ...] = ()
        self._endpoint = endpoint
        self._trace = trace
        self._place = (tier, position)
        self._awaited = awaited
        self._patience = patience
        self.expired = False
        self._watch: _Watch | None = None
        self._price = endpoint.price
        self._estimated, self._covered = False, True
        if asked.request.relay is not None:
            asked.request.relay.delivery = None

    def __enter__(self) -> Self:
        endpoint = self._endpoint
        if self._trace.calls_left < self.asked.samples:
            raise self._trace.out_of_calls()
        if self.asked.request.private and not endpoint.candidate.local:
            raise not_own(endpoint.candidate.name)
        self._started = now = time.perf_counter()
        self._ends = now + self.seconds
        try:
            self._probe = endpoint.breaker.admit() if endpoint.breaker.failed else False
        except CircuitOpen as error:
            self._record(0.0, 0.0, error)
            raise
        self._trace.calls_left -= self.asked.samples
        self._gpu = self._start_meter() if endpoint.price.gpu_hour else None
        self._trace.wait(now)
        self.resume(self._awaited, self._patience)
        return self

    def resume(self, awaited: str, patience: float = math.inf) -> None:
        """Start the next await, for ``awaited``; it is limited to ``patience`` seconds and to the end of the call."""
        task = asyncio.current_task()
        assert task is not None  # an await runs in a task
        loop = task.get_loop()
        watch = _here.watch
        if watch is None or watch.loop is not loop:
            watch = _here.watch = _Watch(loop)
        self._awaited = awaited
        self._limit = min(patience, self._ends - time.perf_counter())
        self._task = task  # different tasks may fetch the chunks of a stream
        self._cancelling = task.cancelling()
        self._watch = watch
        self.deadline = deadline = loop.time() + self._limit
        watch.calls[self] = None
        if deadline < watch.due:
            watch.set(deadline)

    def pause(self) -> None:
        """End the await: its result goes to the reader."""
        self._settle(None)

    def expire(self) -> None:
        """Cancel the await, because its time is up."""
        self.expired = True
        self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        failure = error
        if self._watch is not None and (error is not None or self.expired):
            failure = self._settle(error)
        elif self._watch is not None:
            del self._watch.calls[self]
        endpoint, usage = self._endpoint, self.usage
        gpu_seconds = 0.0 if self._gpu is None else self._stop_meter(self._gpu)
        now = time.perf_counter()
        self._trace.go_on(now)
        prompt, answer = usage.prompt_tokens, usage.completion_tokens
        relay = self.asked.request.relay
        if (
            failure is not None
            or self.cost is not None
            or (relay is not None and relay.delivery is not None)
            or self.model not in endpoint.names.known
            or not type(prompt) is type(answer) is int
            or not (0 < prompt <= MOST_TOKENS and 0 < answer <= MOST_TOKENS)
        ):
            self._account(failure)
            usage = self.usage
        if failure is None:
            if endpoint.breaker.failed:
                endpoint.breaker.succeed()
            if not usage.estimated:
                endpoint.forecast.learn(self.asked.request, usage, self.asked.samples, gpu_seconds)
        else:
            self._blame(failure)
            if self.asked.request.private:
                self.failovers = tuple(replace(one, error=one.error_type) for one in self.failovers)
                without_words(failure)
        if self.failovers:
            self._record_failovers()
        self._record(now - self._started, gpu_seconds, failure)
        if failure is not error and failure is not None:
            raise failure

    def _settle(self, error: BaseException | None) -> BaseException | None:
        """End the await and return its error, converted to one of the package's errors if it came from the backend."""
        assert self._watch is not None  # the caller has checked
        del self._watch.calls[self]
        self._watch = None
        late = self.expired and self._task.uncancel() <= self._cancelling and isinstance(error, asyncio.CancelledError)
        if not late and (isinstance(error, WorkflowComposerError) or not isinstance(error, Exception)):
            return error
        if late or isinstance(error, TimeoutError):
            failure: ModelError = CallTimeout(f"no {self._awaited} within {self._limit:.1f} s")
        else:
            failure = self._own_failure(error)
        failure.__cause__ = None if late else error
        return failure

    def _own_failure(self, error: BaseException | None) -> ModelError:
        """Return the error for a foreign exception, which is never the server's fault."""
        if error is not None and (what := lacking(error)):
            return OutOfResources(f"{self._endpoint.candidate.name}: {what}", hint=SCARCE)
        failure = ServerFailed(
            f"{type(self._endpoint.backend).__name__} raised {type(error).__name__}: {error}",
            hint="this is a bug in the backend; report it to its author",
        )
        failure.fault = "ours"
        return failure

    def _blame(self, failure: BaseException) -> None:
        """Report to the breaker: once per request, however many calls failed, and only what is the server's own fault."""
        breaker, trace = self._endpoint.breaker, self._trace
        if isinstance(failure, ModelError):
            self.failovers = failure.failovers or self.failovers
        if isinstance(failure, CallTimeout):
            if trace.nearly_over:
                failure.fault = "caller"
            if failure.fault == "caller":
                trace.end()
            elif self._answer_was_coming:
                failure.fault = "caller"
        is_counted = counts(failure)
        if is_counted and breaker in trace.blamed and not self._probe:
            return
        breaker.fail(failure, probe=self._probe)
        if is_counted:
            trace.blamed = (*trace.blamed, breaker)

    @property
    def _answer_was_coming(self) -> bool:
        """Whether a stream that ran out of time was alive: its answer was too long for the limit, or its reader too slow."""
        silence = self.asked.timeouts.first_token
        relay = self.asked.request.relay
        if relay is not None and relay.begun:
            return time.perf_counter() - relay.heard < silence
        return self._awaited == REST and self._task.get_loop().time() - (self.deadline - self._limit) < silence

    # ------------------------------------------------------------------------------------------------------ the account

    def _start_meter(self) -> float:
        """Let the backend meter its GPU, if it tells when its server works; else meter the whole call."""
        sending, endpoint = self.asked.sending, self._endpoint
        if sending is not None and getattr(endpoint.backend, "tells_sending", False):
            sending.clock = WorkClock(endpoint.meter)
            return -1.0
        return endpoint.meter.start()

    def _stop_meter(self, token: float) -> float:
        """Return the call's share of the GPU time in seconds."""
        sending = self.asked.sending
        if token >= 0.0 or sending is None or sending.clock is None:
            return self._endpoint.meter.stop(token)
        return sending.clock.stop()

    def _account(self, failure: BaseException | None) -> None:
        """Decide what the call used, where it is not simply what the server reported.

        Usage and cost come from a server or a plugin; impossible values are treated as unknown.
        """
        endpoint, call, relay = self._endpoint, self.asked, self.asked.request.relay
        delivery = self.delivery or (None if relay is None else relay.delivery)
        usage = self.usage if self.usage.can_be else NO_USAGE
        if self.cost is not None and 0.0 <= self.cost < math.inf:
            self.usage = usage
            return
        self.cost = None
        if getattr(endpoint.backend, "replays", False):  # a recording says what it says
            self.usage, self._covered = usage, failure is not None or endpoint.price.covers(usage)
            return
        if failure is None:
            self.usage = of_answer(usage, call, delivery, self.samples, endpoint.forecast)
            if self.usage.estimated:
                endpoint.names.warn_once("no count", f"{endpoint.candidate.name} {NO_COUNT}")
            elif delivery is not None:
                endpoint.forecast.learn_pieces(delivery, self.usage)
        elif is_owed(failure, call, delivery, tells=getattr(endpoint.backend, "tells_sending", False)):
            self.usage = of_failure(usage, call, delivery, endpoint.forecast)
        else:
            self.usage = usage if usage.total_tokens else NO_USAGE
        if self.model not in endpoint.names.known:
            self._price, self._estimated = endpoint.names.price(self.model, endpoint.price)

    def _record_failovers(self) -> None:
        endpoint = self._endpoint
        self._trace.calls_left -= len(self.failovers) * self.asked.samples
        place: dict[str, Any] = {"tier": self._place[0], "candidate": self._place[1], "name": endpoint.candidate.name}
        for failed in self.failovers:
            used: dict[str, Any] = {}
            if failed.estimated:  # the server that failed had the prompt
                usage = endpoint.forecast.of_prompt(self.asked.request)
                used = {"usage": usage, "cost": endpoint.price.cost(usage), "priced": endpoint.price.known}
            self._trace.attempts.append(replace(failed, **place, **used))

    def _record(self, seconds: float, gpu_seconds: float, failure: BaseException | None) -> None:
        candidate, price, usage = self._endpoint.candidate, self._price, self.usage
        self._trace.attempts.append(
            Attempt(
                *self._place,
                candidate.name,
                candidate.local,
                seconds * 1000.0,
                usage,
                price.cost(usage, gpu_seconds) if self.cost is None else self.cost,
                None if failure is None else str(failure) or "cancelled",
                None if failure is None else type(failure).__name__,
                # A failed call that used nothing costs nothing.
                (price.known and self._covered) or self.cost is not None or (failure is not None and not usage.total_tokens),
                None if failure is None else fault_of(failure),
                usage.estimated or self._estimated,
            )
        )


def not_own(name: str) -> EgressDenied:
    """Return the error for a private request that would reach a model elsewhere."""
    error = EgressDenied(f"{name} is not on your own machines, and the request is private", hint="name a model of your own")
    error.public = "the request is private, and the model is not on the service's own machines"
    return error


def without_words(failure: BaseException) -> None:
    """Take out of an error what a server said, which may repeat the request: its kind, status and length remain."""
    failure.__cause__ = failure.__context__ = None
    if not isinstance(failure, ModelError):
        return
    status = "" if failure.status is None else f", status {failure.status}"
    told = f"{type(failure).__name__}{status} ({len(failure.message):,} characters, not shown: the request is private)"
    failure.message, failure.hint, failure.args = told, "", (told,)


NO_COUNT = "reports no valid count of its tokens; they are estimated (`usage`, or `stream_options` of a stream, is missing)"

_TURNS = 10
"""Loop iterations before timeouts fire: received data takes four from the socket to the awaiting task."""


class _Watch:
    """The pending awaits of one event loop, with one timer for the earliest deadline.

    Nearly every call ends long before its limit, so one timer per call would be created and cancelled in vain (a fifth of
    the core's work per request, and two timers per token of a stream). A call that ends in time only leaves a dictionary.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.calls: dict[Call, None] = {}
        self.due = math.inf
        self._timer: asyncio.Handle | None = None

    def set(self, when: float) -> None:
        """Set the timer to fire at this loop time at the latest."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self.due = self.loop.call_at(when, self._settle, _TURNS), when

    def _settle(self, turns: int) -> None:
        """Let the loop run a few iterations before any call times out: data received while it was blocked is in time."""
        if turns:
            self._timer = self.loop.call_soon(self._settle, turns - 1)
        else:
            self._look()

    def _look(self) -> None:
        self._timer, self.due = None, math.inf
        now = self.loop.time()
        for call in [call for call in self.calls if call.deadline <= now and not call.expired]:
            call.expire()
        waiting = [call.deadline for call in self.calls if not call.expired]
        if waiting:
            self.set(min(waiting))


class _Here(threading.local):
    """Return the running loop's watch; a loop runs in one thread, and a thread runs one loop at a time."""

    watch: _Watch | None = None


_here = _Here()
