"""Runs batches: each line goes through the handler that answers single requests, and the runner of rows does the rest.

A batch belongs to one worker at a time, which holds the lock of its journal. Where that worker ends, another one (or the
next start of the service) goes on with the lines that have no answer yet; those in flight are asked again.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from workflow_composer.batch.run import runner
from workflow_composer.batch.run.limiter import Limiter
from workflow_composer.batch.run.records import Head
from workflow_composer.batch.run.tally import Tally
from workflow_composer.errors import InputError, WorkflowComposerError
from workflow_composer.server.api.completion_handler import COST, COST_KNOWN, Accounts
from workflow_composer.server.api.json_wire import Dialect
from workflow_composer.server.auth.keys import Key, KeyRing
from workflow_composer.server.batches import lines
from workflow_composer.server.batches.lines import BatchLine
from workflow_composer.server.batches.shelf import Shelf, StoredBatch, owners, unfinished
from workflow_composer.server.exchange import EVENTS, Exchange, Fields, Handler, Reply
from workflow_composer.server.failures import HttpFailure, failure_of
from workflow_composer.storage.appending import OwnFile
from workflow_composer.storage.lines import lines as lines_of
from workflow_composer.storage.replacing import replacing
from workflow_composer.types import new_request_id

LOOK_EVERY = 1.0
"""Seconds between two looks at what else is to be run, and at whether a batch was cancelled."""
_TIDY_EVERY = 3600.0
_MOST_RUNNING = 4
"""Batches that a worker runs at a time, those of one owner only if nobody else waits."""
_START, _SHARE, _MOST = 8, 4, 64
"""Lines in flight: at first, and at most one part in so many of what the service takes, or so many."""
_RETRIES = 5
"""Further tries of a line that failed because no server was available."""
_LONGEST_WAIT = 60.0
_AFTER_A_FAILURE = 15.0
"""Seconds before a batch that could not be run (a full disk) is tried again."""
_PASSING = frozenset({"overloaded", "ledger_unavailable", "restarting"})
"""Codes of failures of the service's own that pass."""

HandlersOf = Callable[[Accounts], Mapping[str, Handler]]
"""Makes the handlers by path that answer lines, for requests of these accounts."""


class OwnersRing(KeyRing):
    """The one key that a batch belongs to, as its record is now: the service does not know the key itself."""

    def __init__(self, ring: KeyRing, owner: str) -> None:
        self._ring, self._owner = ring, owner

    def identify(self, presented: str | None) -> Key:
        """Return the owner's record. Raises `HttpFailure` 401 if it was revoked, has expired or is gone."""
        return self._ring.known(self._owner)


class LineExchange(Exchange):
    """The request of a line, which is answered whole."""

    def open_stream(self, *, content_type: str = EVENTS, headers: Fields = ()) -> None:
        """Raise: lines that ask for streams are refused before."""
        raise HttpFailure(400, "stream is not supported in a batch", param="stream")

    def write(self, data: bytes) -> None:
        """Do nothing: no stream is opened."""

    async def drain(self) -> None:
        """Return at once."""

    def close_stream(self, trailers: Fields = ()) -> None:
        """Do nothing."""

    @property
    def opened(self) -> bool:
        """No stream is opened."""
        return False


class _KeptRow(msgspec.Struct):
    """A line of the journal; ``passes``: it failed in a way that may pass, so a later run tries it again."""

    n: int
    ok: bool
    row: msgspec.Raw
    passes: bool = False


_kept = msgspec.json.Decoder(_KeptRow).decode


class Answered(NamedTuple):
    """The record of a line: what the journal keeps, and what is counted."""

    head: Head
    written: bytes


class _Answers:
    """Turns lines into records."""

    def __init__(self, batch: StoredBatch, handler: Handler, dialect: Dialect, limiter: Limiter) -> None:
        self._batch = batch
        self._handler = handler
        self._dialect = dialect
        self._limiter = limiter

    async def __call__(self, line: BatchLine, budget: float | None) -> Answered:
        """Answer a line, after those of its key's limits that pass. Raises its error."""
        while True:
            exchange = LineExchange(
                "POST",
                self._batch.shown["endpoint"],
                headers=self._batch.headers,
                body=line.body,
                request_id=new_request_id(),
                started=time.perf_counter(),
            )
            try:
                reply = await self._handler(exchange)
            except (HttpFailure, WorkflowComposerError) as error:
                failure = failure_of(error)
                if not _passes(failure):
                    raise
                wait = failure.retry_after or 1.0
            else:
                assert reply is not None  # nothing is streamed
                return _record(line, reply, exchange.request_id)
            runner.tell_overload(self._limiter, ["RateLimited"])
            await asyncio.sleep(min(wait, _LONGEST_WAIT))

    def failed(self, line: BatchLine, error: BaseException, seconds: float) -> Answered:
        """Return the record of a line without an answer."""
        failure = failure_of(error)
        reply = Reply(failure.status, self._dialect.failure(failure))
        return _record(line, reply, new_request_id(), error=(type(error).__name__, failure.message))


def _passes(failure: HttpFailure) -> bool:
    return (failure.status == 429 and failure.code != "insufficient_quota") or failure.code in _PASSING


def _record(line: BatchLine, reply: Reply, request_id: str, *, error: tuple[str, str] | None = None) -> Answered:
    told = dict(reply.headers)
    cost = told.get(COST, "0")
    known = cost != "unknown" and COST_KNOWN not in told
    head = Head(line.number, error, "", None, float(cost) if cost != "unknown" else 0.0, priced=known)
    body = msgspec.json.format(reply.body, indent=-1) if b"\n" in reply.body else bytes(reply.body)
    start = {"id": f"batch_req_{secrets.token_hex(12)}", "custom_id": line.custom_id}
    response = {"status_code": reply.status, "request_id": request_id, "body": msgspec.Raw(body)}
    row = msgspec.Raw(msgspec.json.encode({**start, "response": response, "error": None}))
    kept = _KeptRow(line.number, error is None, row, passes=reply.status == 429 or reply.status >= 500)
    return Answered(head, msgspec.json.encode(kept) + b"\n")


class _Journal:
    """Where records are written."""

    def __init__(self, file: OwnFile, told: Callable[[], None]) -> None:
        self._file = file
        self._told = told

    def append(self, record: Answered) -> None:
        """Write a record."""
        self._file.append(record.written)

    def sync(self) -> None:
        """Flush records to disk, and the counts for other workers."""
        self._file.sync()
        self._told()


class Run:
    """One batch under way in this worker."""

    def __init__(self, shelf: Shelf, batch: StoredBatch, limiter: Limiter) -> None:
        self.shelf = shelf
        self.batch = batch
        self.limiter = limiter
        self._stop = asyncio.Event()
        self._done: dict[int, bool] = {}
        self._tally = Tally(None)

    @property
    def counts(self) -> dict[str, int]:
        """How many lines there are, have an answer, and have failed."""
        total = self.batch.shown["request_counts"]["total"]
        return {"total": total, "completed": self._tally.answered, "failed": self._tally.errors}

    async def work(self, handler: Handler, dialect: Dialect) -> None:
        """Check the file, answer the lines, and write the files of answers. Raises OSError."""
        shelf, batch = self.shelf, self.batch
        try:
            file = await asyncio.to_thread(OwnFile.open, shelf.journal(batch.id))
        except TimeoutError:
            return  # another worker has it
        try:
            batch.shown = (await asyncio.to_thread(shelf.batch, batch.id)).shown
            if not batch.finished and await self._is_right():
                watching = asyncio.get_running_loop().create_task(self._watch())
                try:
                    await self._answer(handler, dialect, file)
                finally:
                    watching.cancel()
                await asyncio.to_thread(self._finish)
            await asyncio.to_thread(shelf.end, batch.id)
        finally:
            file.close()

    async def _is_right(self) -> bool:
        shown = self.batch.shown
        if shown["in_progress_at"] is not None:
            return True
        source = self.shelf.content(shown["input_file_id"])
        faults = await asyncio.to_thread(lines.check, source, shown["endpoint"])
        shown["request_counts"] = {"total": faults.rows, "completed": 0, "failed": 0}
        if faults.told:
            shown.update(status="failed", failed_at=_now(), errors={"object": "list", "data": faults.told})
        else:
            shown.update(status="in_progress", in_progress_at=_now())
        await asyncio.to_thread(self.shelf.save, self.batch)
        return not faults.told

    async def _answer(self, handler: Handler, dialect: Dialect, file: OwnFile) -> None:
        await asyncio.to_thread(self._read_earlier, file)
        answers = _Answers(self.batch, handler, dialect, self.limiter)
        journal = _Journal(file, self._tell)
        if await asyncio.to_thread(self._is_over):
            return
        try:
            await runner.run(
                self._left(), answers, journal, tally=self._tally, limiter=self.limiter, retries=_RETRIES, stop=self._stop
            )
        except InputError:  # the file is gone or damaged; what is answered stays
            told = {"code": "input_file_lost", "message": "the input file cannot be read any more", "param": None}
            self.batch.shown["errors"] = {"object": "list", "data": [{**told, "line": None}]}

    def _read_earlier(self, file: OwnFile) -> None:
        """Learn which lines an earlier run has answered, or found impossible to answer."""
        if file.size:
            file.append(b"\n")  # half a line may be the last one
        self._done = {one.n: one.ok for one in _journal(file.path) if one.ok or not one.passes}
        for number, well in self._done.items():
            self._tally.add(Head(number, None if well else ("earlier", ""), "", None, 0.0))

    def _left(self) -> Iterator[BatchLine]:
        source = self.shelf.content(self.batch.shown["input_file_id"])
        return (line for line in lines.read(source) if line.number not in self._done)

    def _tell(self) -> None:
        self.batch.shown["request_counts"] = self.counts
        self.shelf.save(self.batch)

    async def _watch(self) -> None:
        """Stop once the batch is cancelled, or its time is over."""
        while not await asyncio.to_thread(self._is_over):  # noqa: ASYNC110  # another worker may have been told
            await asyncio.sleep(LOOK_EVERY)
        self._stop.set()

    def _is_over(self) -> bool:
        return self.batch.shown["expires_at"] <= _now() or self.shelf.is_cancelled(self.batch.id)

    def _finish(self) -> None:
        """Write the files of answers and errors, and the batch's end. Repeated as a whole if it was cut off."""
        shelf, shown, identity = self.shelf, self.batch.shown, self.batch.id
        cancelled = shelf.cancelled_at(identity)
        shown.update(finalizing_at=_now(), cancelling_at=cancelled)
        last = {one.n: at for at, one in enumerate(_journal(shelf.journal(identity)))}
        over = cancelled is None and shown["expires_at"] <= _now()
        name = f"file-{identity.removeprefix('batch_')}"
        counts = {"completed": 0, "failed": 0}
        with (
            replacing(shelf.content(name), mode=0o600) as good,
            replacing(shelf.content(f"{name}-errors"), mode=0o600) as bad,
        ):
            for at, one in enumerate(_journal(shelf.journal(identity))):
                if last[one.n] == at:
                    (good if one.ok else bad).write(bytes(one.row) + b"\n")
                    counts["completed" if one.ok else "failed"] += 1
            if over:
                counts["failed"] += self._write_missed(bad, last)
        for kind, made in (("output", name), ("error", f"{name}-errors")):
            if shelf.content(made).stat().st_size:
                shelf.register(made, f"{identity}_{kind}.jsonl", "batch_output")
                shown[f"{kind}_file_id"] = made
            else:
                shelf.content(made).unlink()
        status = "failed" if shown["errors"] else "completed"
        status = "cancelled" if cancelled is not None else "expired" if over else status
        shown.update({"status": status, f"{status}_at": _now(), "request_counts": {**shown["request_counts"], **counts}})
        shelf.save(self.batch)

    def _write_missed(self, bad: Any, known: Mapping[int, int]) -> int:
        """Write the lines that were not answered in time; return their number."""
        count = 0
        with suppress(InputError):
            for line in lines.read(self.shelf.content(self.batch.shown["input_file_id"])):
                if line.number not in known:
                    error = {"code": "batch_expired", "message": "the batch expired before this line was answered"}
                    start = {"id": f"batch_req_{secrets.token_hex(12)}", "custom_id": line.custom_id}
                    bad.write(msgspec.json.encode({**start, "response": None, "error": error}) + b"\n")
                    count += 1
        return count


def _journal(path: Path) -> Iterator[_KeptRow]:
    """Yield the records of a journal; half a line, of a process that was killed, is none."""
    for text in lines_of(path):
        with suppress(msgspec.DecodeError):
            yield _kept(text)


def _now() -> int:
    return int(time.time())


class Batches:
    """The batches of this worker. ``days``: how long files are kept; ``places``: requests that it takes at a time."""

    def __init__(
        self,
        root: Path,
        accounts: Accounts,
        handlers: HandlersOf,
        dialects: Mapping[str, Dialect],
        usual: Dialect,
        report: Callable[..., None],
        *,
        days: float,
        places: int,
    ) -> None:
        self.root = root
        self.days = days
        self._accounts = accounts
        self._handlers = handlers
        self._dialects = dialects
        self._usual = usual
        self._report = report
        self._most = max(1, min(_MOST, places // _SHARE))
        self._runs: dict[str, Run] = {}
        self._later: dict[str, float] = {}
        self._look = asyncio.Event()

    def shelf(self, owner: str) -> Shelf:
        """Return what an owner has."""
        return Shelf(self.root, owner, days=self.days)

    def told(self) -> None:
        """Look at once at what is to be run."""
        self._look.set()

    def counts(self, identity: str) -> dict[str, int] | None:
        """Return how far a batch is that runs in this worker."""
        run = self._runs.get(identity)
        return None if run is None else run.counts

    async def work(self) -> None:
        """Run batches, until cancelled."""
        tidied = float("-inf")
        async with asyncio.TaskGroup() as group:
            while True:
                self._look.clear()
                if time.monotonic() >= tidied + _TIDY_EVERY:
                    tidied = time.monotonic()
                    await self._quietly(asyncio.to_thread(self._tidy))
                for owner, identity in await self._unfinished():
                    if self._may_run(owner, identity):
                        await self._quietly(self._begin(owner, identity, group))
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY):
                        await self._look.wait()

    async def _unfinished(self) -> list[tuple[str, str]]:
        try:
            return await asyncio.to_thread(unfinished, self.root)
        except OSError as error:
            self._report("batches failed", error=f"{type(error).__name__}: {error}"[:500])
            return []

    def _may_run(self, owner: str, identity: str) -> bool:
        if identity in self._runs or len(self._runs) >= _MOST_RUNNING or self._later.get(identity, 0.0) > time.monotonic():
            return False
        own = sum(run.shelf.owner == owner for run in self._runs.values())
        return not own or len(self._runs) < _MOST_RUNNING // 2

    async def _begin(self, owner: str, identity: str, group: asyncio.TaskGroup) -> None:
        shelf = self.shelf(owner)
        try:
            batch = await asyncio.to_thread(shelf.batch, identity)
        except HttpFailure:
            return await asyncio.to_thread(shelf.end, identity)
        limiter = Limiter(most=self._most, start=min(_START, self._most))
        run = self._runs[identity] = Run(shelf, batch, limiter)
        group.create_task(self._run(run)).add_done_callback(lambda _: self._runs.pop(identity, None))
        return None

    async def _run(self, run: Run) -> None:
        endpoint = run.batch.shown["endpoint"]
        accounts = self._accounts
        if accounts.keys is not None:
            accounts = replace(accounts, keys=OwnersRing(accounts.keys, run.shelf.owner))
        handler = self._handlers(accounts)[endpoint]
        self._later[run.batch.id] = time.monotonic() + _AFTER_A_FAILURE
        await self._quietly(run.work(handler, self._dialects.get(endpoint, self._usual)))
        if run.batch.finished:
            del self._later[run.batch.id]

    async def _quietly(self, work: Any) -> None:
        """Await; an error (a full disk) is for the log, and the next look tries again."""
        try:
            await work
        except Exception as error:  # noqa: BLE001  # one batch must not end the others
            self._report("batches failed", error=f"{type(error).__name__}: {error}"[:500])

    def _tidy(self) -> None:
        for owner in owners(self.root):
            self.shelf(owner).tidy()
