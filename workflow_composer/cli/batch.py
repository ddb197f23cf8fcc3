"""Answering the rows of a file, so many at a time; each is written as soon as it is answered."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from workflow_composer.answers import reader
from workflow_composer.cli.interrupt import INTERRUPTED, TERMINATED, Stopped, leave_soon
from workflow_composer.cli.rows import Row

if TYPE_CHECKING:
    from workflow_composer.orchestrator import ModelOrchestrator
    from workflow_composer.types import LLMResponse, Sample

_BLOCK = 64
Record = Mapping[str, Any]


@dataclass(slots=True)
class Tally:
    """How far a run has come. ``cost`` (dollars) is this run's own; the other numbers include ``earlier`` runs' rows.

    ``unreadable`` of the ``graded`` answers count as wrong because none could be read; ``cut_off`` of them were ended by
    their length.
    """

    total: int
    answered: int = 0
    earlier: int = 0
    errors: int = 0
    graded: int = 0
    correct: int = 0
    unreadable: int = 0
    cut_off: int = 0
    cost: float = 0.0
    started: float = field(default_factory=time.monotonic)

    @property
    def accuracy(self) -> float | None:
        """The share of correct answers among the rows that have a label; None where there are none."""
        return self.correct / self.graded if self.graded else None

    @property
    def done(self) -> int:
        """Rows that are over with, one way or the other."""
        return self.answered + self.errors

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self.started

    @property
    def seconds_left(self) -> float | None:
        """At the pace so far; None before the first row."""
        now = self.done - self.earlier
        return self.seconds / now * (self.total - self.done) if now else None

    def add(self, record: Record) -> None:
        """Count a row of this run."""
        self.cost += record["cost"]
        if "error" in record:
            self.errors += 1
        else:
            self._grade(record)

    def add_earlier(self, record: Record) -> None:
        """Count a row that an earlier run has answered."""
        if record["index"] >= self.total:
            return  # an earlier run had a higher limit
        self.earlier += 1
        self._grade(record)

    def _grade(self, record: Record) -> None:
        self.answered += 1
        if isinstance(record.get("correct"), bool):
            self.graded += 1
            self.correct += record["correct"]
            self.unreadable += record.get("answer", "") is None
            self.cut_off += record.get("answer", "") is None and record.get("finish_reason") == "length"


class Batch:
    """Answers rows with an orchestrator. ``write`` takes each record, ``progress`` is told the tally after each.

    ``fields`` are those of `LLMRequest` for all rows; a row's own task type, model and context go before them.
    """

    def __init__(
        self,
        orchestrator: ModelOrchestrator,
        tally: Tally,
        write: Callable[[Record], None],
        progress: Callable[[Tally], None],
        **fields: Any,
    ) -> None:
        self._orchestrator = orchestrator
        self._tally = tally
        self._write = write
        self._progress = progress
        self._fields = fields

    def run(self, rows: Iterator[Row], concurrency: int) -> None:
        """Answer all rows, ``concurrency`` at a time. A row that fails becomes a record with the error.

        Raises `KeyboardInterrupt` or `Stopped` where the process is asked to end: calls in flight are cancelled, what was
        written stays. Raises what ``write`` and ``rows`` raise.
        """
        asyncio.run(self._run(rows, concurrency))

    async def _run(self, rows: Iterator[Row], concurrency: int) -> None:
        whole, asked = asyncio.current_task(), []

        def stop(number: signal.Signals) -> None:
            asked.append(number)
            leave_soon(TERMINATED if number == signal.SIGTERM else INTERRUPTED)
            if whole is not None:
                whole.cancel()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop, number)
        try:
            async with self._orchestrator:
                await self._answer_all(_feed(rows), concurrency)
        except asyncio.CancelledError:
            if not asked:
                raise
            raise (Stopped if asked[0] == signal.SIGTERM else KeyboardInterrupt) from None
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    async def _answer_all(self, feed: AsyncIterator[Row], concurrency: int) -> None:
        turn = asyncio.Lock()

        async def work() -> None:
            while True:
                async with turn:
                    row = await anext(feed, None)
                if row is None:
                    return
                record = await self._answer(row)
                self._write(record)
                self._tally.add(record)
                self._progress(self._tally)

        workers = [asyncio.create_task(work()) for _ in range(concurrency)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _answer(self, row: Row) -> Record:
        fields = dict(self._fields)
        if row.task_type is not None:
            fields["task_type"] = row.task_type
        if row.model is not None:
            fields["model"] = row.model
        if row.context is not None:
            fields["context"] = row.context
        started = time.perf_counter()
        head = {"index": row.index, "key": row.key, "id": row.id}
        try:
            response = await self._orchestrator.agenerate(row.prompt, **fields)
        except Exception as error:  # noqa: BLE001  # whatever is wrong with one row must not end the others
            return head | {
                "error": {"type": type(error).__name__, "message": str(error)},
                "cost": sum(attempt.cost for attempt in getattr(error, "attempts", ())),
                "latency_ms": round((time.perf_counter() - started) * 1000.0, 3),
            }
        return {**head, **await self._made(row, response)}

    async def _made(self, row: Row, response: LLMResponse) -> Record:
        """What is kept of an answer."""
        return await _record(response, row.label, logprobs=bool(self._fields.get("logprobs")))


async def _record(response: LLMResponse, label: str | None, *, logprobs: bool) -> dict[str, Any]:
    decision, usage = response.decision, response.usage
    record = {
        "text": response.text,
        "model": decision.model,
        "candidate": decision.candidate,
        "tier": decision.tier,
        "fallback_depth": decision.fallback_depth,
        "cost": response.cost,
        "tokens": {"prompt": usage.prompt_tokens, "completion": usage.completion_tokens},
        "latency_ms": round(response.latency_ms, 3),
        "confidence": response.confidence,
    }
    if label is not None:
        record |= await graded(response.samples[0], label)
    if logprobs:
        record["logprobs"] = logprobs_of(response)
    return record


async def graded(sample: Sample, label: str) -> dict[str, Any]:
    """What was read in an answer, why it ended, and whether it is right."""
    answer = reader().read_said(sample, label)
    right = await reader().grade(answer, label)
    return {"answer": answer, "finish_reason": sample.finish_reason, "correct": right}


def logprobs_of(response: LLMResponse) -> list[list[Any]] | None:
    """[token, log-probability] of the answer; None where the model gave none."""
    found = response.samples[0].logprobs if response.samples else None
    return None if found is None else [[token.token, token.logprob] for token in found]


async def _feed(rows: Iterator[Row]) -> AsyncIterator[Row]:
    """Rows, read in a thread by blocks: a slow disk must not hold up the calls in flight."""
    while block := await asyncio.to_thread(lambda: list(islice(rows, _BLOCK))):
        for row in block:
            yield row
