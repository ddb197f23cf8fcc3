"""Who used what: requests, tokens and dollars by day, key and user, in a file beside the ledger.

A worker counts in memory and appends what has come since the last time as lines of JSON, about once a minute and at its end.
Lines of one day, key and user add up. The ledger holds the money: a killed process loses a minute of this history at most.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from workflow_composer.server.auth.keys import Key
from workflow_composer.storage.appending import append_lines
from workflow_composer.storage.lines import encoded
from workflow_composer.storage.locks import locked
from workflow_composer.storage.replacing import replace_file

FILE_NAME = "usage.jsonl"
SAVE_EVERY = 60.0
"""Seconds between two appends."""
OTHERS = "(others)"
"""The user under which those beyond `MOST_USERS` of a key are counted."""
MOST_USERS = 1000
"""Users of one key between two appends that are counted apart: front ends may send any names."""
_LONG = 16 * 2**20
"""Bytes beyond which lines that belong together are joined."""


@dataclass(slots=True)
class UsageRow:
    """What a user of a key has used on one day (UTC, ``YYYY-MM-DD``); ``cost`` in dollars."""

    day: str
    key: str
    name: str
    team: str
    user: str
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    def add(self, other: UsageRow) -> None:
        """Add another row's numbers."""
        self.requests += other.requests
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.cost += other.cost


class UsageHistory:
    """What has come since the last `save`: ``rows`` by key and user. Use it from one thread; `save` may run in another."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.rows: dict[tuple[str, str], UsageRow] = {}
        self._path = path
        self._clock = clock
        self._today = day_of(clock())
        self._users: dict[str, int] = {}
        self._saved_at = clock()

    def row(self, key: Key, user: str) -> UsageRow:
        """Return the row of a key and a user; the key's own label stands for a request that names nobody."""
        if self._users.get(key.id, 0) >= MOST_USERS:
            user = OTHERS
        row = self.rows.get((key.id, user))
        if row is None:
            self._users[key.id] = self._users.get(key.id, 0) + 1
            row = self.rows[key.id, user] = UsageRow(self._today, key.id, key.name, key.team, user or key.user)
        return row

    def take(self, *, at_once: bool = False) -> list[UsageRow]:
        """Return the rows to append if it is time for it, and begin new ones; every row belongs to one day."""
        now = self._clock()
        today = day_of(now)
        if not at_once and today == self._today and 0.0 <= now - self._saved_at < SAVE_EVERY:
            return []
        found, self.rows = list(self.rows.values()), {}
        self._users.clear()
        self._saved_at, self._today = now, today
        return found

    def save(self, rows: Iterable[UsageRow]) -> None:
        """Append rows. Raises OSError; then `take_back` them."""
        lines = b"".join(encoded(asdict(row)) for row in rows)
        if not lines:
            return
        append_lines(self._path, lines, mode=0o600)
        if self._path.stat().st_size > _LONG:
            self._join()

    def take_back(self, rows: Iterable[UsageRow]) -> None:
        """Keep rows that could not be appended for the next time."""
        for row in rows:
            known = self.rows.setdefault((row.key, row.user), row)
            if known is not row:
                known.add(row)

    def since(self, days: float, key: str | None = None) -> list[UsageRow]:
        """Return the sums of the last days by key and user, for all keys or one; also what is not yet appended."""
        rows = [*read_rows(self._path, day_of(self._clock() - days * 86_400.0)), *list(self.rows.values())]
        return joined((row for row in rows if key is None or row.key == key), lambda row: (row.key, row.user))

    def _join(self) -> None:
        with locked(self._path):
            rows = joined(read_rows(self._path), lambda row: (row.day, row.key, row.user))
            replace_file(self._path, b"".join(encoded(asdict(row)) for row in rows).decode(), mode=0o600)


def day_of(seconds: float) -> str:
    """Return the UTC day of an epoch time."""
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def read_rows(path: Path, since: str = "") -> list[UsageRow]:
    """Return the rows of the day ``since`` and later ones. Lines that are no rows are passed over. Raises OSError."""
    if not path.exists():
        return []
    names, found = {field.name for field in fields(UsageRow)}, []
    for line in path.read_bytes().split(b"\n"):
        try:
            data = json.loads(line)
            row = UsageRow(**{name: data[name] for name in names})
            right = isinstance(row.day, str) and row.day >= since and row.requests + row.cost >= 0
        except (ValueError, KeyError, TypeError):
            continue
        if right:
            found.append(row)
    return found


def joined(rows: Iterable[UsageRow], by: Callable[[UsageRow], tuple[str, ...]]) -> list[UsageRow]:
    """Return one row for each value of ``by``, in its order, with the sums."""
    found: dict[tuple[str, ...], UsageRow] = {}
    for row in rows:
        known = found.get(by(row))
        if known is None:
            found[by(row)] = UsageRow(**asdict(row))
        else:
            known.add(row)
    return [found[key] for key in sorted(found)]
