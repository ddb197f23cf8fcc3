"""History of checks: one JSON line per check, in an append-only file whose oldest lines are pruned.

Several monitors may write at once, on one machine or on several that share the folder: each write is atomic, under the
lock beside the file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from workflow_composer.storage.appending import append_lines
from workflow_composer.storage.lines import encoded, lines_after
from workflow_composer.storage.locks import WAIT, locked
from workflow_composer.storage.replacing import replacing
from workflow_composer.storage.saved import read_saved

Outcome = Literal["up", "overloaded", "down", "waiting"]

DAY = 86400.0
MOST = 8 * 2**20
"""Bytes of the end of the file that `fleet status` reads at most: a day of 200 servers, each checked every five minutes."""
_DISORDER = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRecord:
    """One check of one server. ``time``: Unix time; ``tokens``: generated since its process started, at ``started``."""

    time: float
    server: str
    outcome: Outcome
    reason: str = ""
    running: int | None = None
    waiting: int | None = None
    cache: float | None = None
    tokens: float | None = None
    started: float | None = None


@dataclass(frozen=True, slots=True)
class Uptime:
    """The share of the checked time that a server was up, 0 to 1 (None: no checks), and the seconds checked."""

    share: float | None
    checked: float


class History:
    """The history file."""

    def __init__(self, path: Path, days: float, *, wait: float = WAIT) -> None:
        self.path = path
        self._days = days
        self._wait = wait

    def add(self, records: Iterable[CheckRecord]) -> None:
        """Append the records. If it raises OSError, none was added."""
        lines = b"".join(encoded(asdict(record)) for record in records)
        if lines:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            append_lines(self.path, lines, wait=self._wait, mode=0o600)

    def prune(self, now: float) -> None:
        """Drop records older than the days to keep, once the oldest is a day older than that. Raises OSError."""
        oldest = next(self.records(), None)
        if oldest is None or now - oldest.time < (self._days + 1) * DAY:
            return
        with locked(self.path, wait=self._wait), replacing(self.path) as file:
            for line in self._lines():
                if (record := _record(line)) is not None and now - record.time < self._days * DAY:
                    file.write(line.rstrip(b"\n") + b"\n")

    def recent(self, since: float) -> Iterator[CheckRecord]:
        """Yield the records from ``since`` on, of at most the last `MOST` bytes; reads little else of the file.

        Times are in order within a minute, as monitors that take turns append them. Raises OSError, `InputError`.
        """

        def is_before(line: bytes) -> bool | None:
            record = _record(line)
            return None if record is None else record.time < since - _DISORDER

        if self.path.is_file():
            for line in lines_after(self.path, is_before, most=MOST):
                if (record := _record(line)) is not None and record.time >= since:
                    yield record

    def records(self, since: float = 0.0) -> Iterator[CheckRecord]:
        """Yield the records from ``since`` on, in file order; damaged lines are skipped."""
        for line in self._lines():
            if (record := _record(line)) is not None and record.time >= since:
                yield record

    def _lines(self) -> Iterator[bytes]:
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            yield from file  # in binary mode only a line feed ends a line


def uptime(records: Iterable[CheckRecord], now: float, *, reach: float) -> Uptime:
    """How much of the last `DAY` one server was up, by its records in order of time.

    Each check holds until the next one, for at most ``reach`` seconds; the rest of a longer gap is unknown and not counted.
    Overloaded counts as up; waiting (starting, or its job is queued) counts as down.

    >>> found = [CheckRecord(time=0, server="a", outcome="up"), CheckRecord(time=30, server="a", outcome="down")]
    >>> uptime(found, 40.0, reach=60)
    Uptime(share=0.75, checked=40.0)
    """
    begin = now - DAY
    up = checked = 0.0
    ordered = sorted((record for record in records if record.time <= now), key=lambda record: record.time)
    ends = [record.time for record in ordered[1:]] + [now]
    for record, end in zip(ordered, ends, strict=bool(ordered)):
        spent = min(end, record.time + reach) - max(record.time, begin)
        if spent > 0:
            checked += spent
            up += spent if record.outcome in ("up", "overloaded") else 0.0
    return Uptime(up / checked if checked else None, checked)


def tokens_per_second(records: Iterable[CheckRecord]) -> float | None:
    """Return the tokens per second that one server generated between its last two checks; None if unknown."""
    known = [record for record in records if record.tokens is not None][-2:]
    if len(known) < 2 or known[0].started != known[1].started:
        return None
    seconds = known[1].time - known[0].time
    made = (known[1].tokens or 0.0) - (known[0].tokens or 0.0)
    return made / seconds if seconds > 0 and made >= 0 else None


def _record(line: bytes) -> CheckRecord | None:
    with contextlib.suppress(ValueError):
        return read_saved(CheckRecord, line)
    return None
