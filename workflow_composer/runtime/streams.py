"""Streams of an answer, asynchronous and synchronous, and the response of a finished run."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from types import TracebackType
from typing import Any, Self

from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.errors import StreamInterrupted, WorkflowComposerError
from workflow_composer.execution.call import Outcome, Trace
from workflow_composer.execution.streaming import StreamRun
from workflow_composer.plan import Candidate, Plan
from workflow_composer.support.loop_thread import LoopThread
from workflow_composer.types import Chunk, LLMRequest, LLMResponse, RoutingDecision, Verdict


class UnderWay:
    """The state of a stream before its end, under the profile named ``strategy``."""

    __slots__ = ("_run", "_trace", "plan", "strategy")

    def __init__(self, strategy: str, plan: Plan, run: StreamRun, trace: Trace) -> None:
        self.strategy = strategy
        self.plan = plan
        self._run = run
        self._trace = trace

    @property
    def at(self) -> tuple[int, Candidate, int]:
        """The current tier's number, the candidate, and how many of the tier's candidates failed before it."""
        return self._run.at

    @property
    def verdict(self) -> Verdict | None:
        """The verdict on an answer that was judged before its first chunk; None for one that is delivered as it comes."""
        return None if self._run.outcome is None else self._run.outcome.verdict

    @property
    def attempts(self) -> int:
        """Calls made so far, including the current one."""
        return len(self._trace.attempts) + 1

    @property
    def waited(self) -> float:
        """Seconds spent waiting for models and in pauses so far, without the current call."""
        return self._trace.waited

    @property
    def asked_at(self) -> float:
        """Start of the current call (`time.perf_counter`)."""
        return self._run.asked_at


class ResponseStream:
    """Chunks of one answer, to be iterated once. ``response`` is set after the last one."""

    def __init__(self, start: Callable[[ResponseStream], AsyncGenerator[Chunk, None]]) -> None:
        self.response: LLMResponse | None = None
        self._under_way: UnderWay | None = None
        self._chunks = start(self)

    def __repr__(self) -> str:
        return f"<ResponseStream {'under way' if self.response is None else self.response!r}>"

    def follow(self, under_way: UnderWay) -> None:
        """Set the run that produces the chunks."""
        self._under_way = under_way

    @property
    def under_way(self) -> UnderWay | None:
        """The current run; None until a router has a plan."""
        return self._under_way

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        return await anext(self._chunks)

    async def aclose(self) -> None:
        """Stop the work at the server; does nothing after the end."""
        await self._chunks.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class SyncResponseStream:
    """The synchronous form of `ResponseStream`, usable with or without an event loop."""

    def __init__(self, thread: LoopThread, stream: ResponseStream) -> None:
        self._thread = thread
        self._stream = stream
        self._reading: asyncio.Task[Any] | None = None
        self._process = os.getpid()
        self._closed = False

    def __repr__(self) -> str:
        return repr(self._stream).replace("<Response", "<SyncResponse", 1)

    @property
    def response(self) -> LLMResponse | None:
        """The whole answer; set after the last chunk."""
        return self._stream.response

    @property
    def plan(self) -> Plan | None:
        """The plan that it follows; None until a router has one."""
        under_way = self._stream.under_way
        return None if under_way is None else under_way.plan

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Chunk:
        if self._process != os.getpid():
            raise WorkflowComposerError("the stream began before this process was forked", hint="begin a new one here")
        chunk = self._thread.call(self._following)
        if chunk is None:
            if self._stream.response is None and not self._closed:
                raise StreamInterrupted("the orchestrator was closed before the stream ended")
            raise StopIteration
        return chunk

    async def _following(self) -> Chunk | None:
        self._reading = asyncio.current_task()
        return await anext(self._stream, None)

    def close(self) -> None:
        """Stop the work at the server; does nothing after the end, or in a forked child."""
        self._closed = True
        if self._process == os.getpid():
            self._thread.run(self._closing())

    async def _closing(self) -> None:
        # After an interrupt the awaited chunk may still be in progress, and a running generator cannot be closed.
        if self._reading is not None and not self._reading.done():
            self._reading.cancel()
            await asyncio.wait({self._reading})
        await self._stream.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def response_of(
    config: StrategyConfig, request: LLMRequest, plan: Plan, outcome: Outcome, trace: Trace, seconds: float
) -> LLMResponse:
    """Return the response of a finished run that took ``seconds``."""
    candidate, verdict = outcome.candidate, outcome.verdict
    samples = outcome.samples if verdict.choice == 0 else outcome.answer_first
    usage, cost = trace.total
    decision = RoutingDecision(
        config.profile_name,  # strategy
        plan.router,
        candidate.name,
        outcome.model,
        candidate.local,
        outcome.tier,
        outcome.fallback_depth,
        request.task_type,
        plan.reason,
    )
    return LLMResponse(
        text=samples[0].text,
        decision=decision,
        samples=samples,
        usage=usage,
        cost=cost,
        attempts=tuple(trace.attempts),
        request_id=request.request_id,
        latency_ms=seconds * 1000.0,
        overhead_ms=max(0.0, seconds - trace.waited) * 1000.0,
        confidence=verdict.confidence,
        accepted=verdict.accepted,
        climbed=tuple(trace.tiers),
        value=verdict.value,
        warning=verdict.warning,
    )
