"""What keys have used, shared by all workers and kept over restarts: one record of fixed size for each, in a mapped file.

A record is changed under a lock on its own bytes, which the kernel gives back when a process ends, however it ends. Rates
are held by the generic cell rate algorithm (ITU-T I.371): one time stamp per limit, exact, and it knows when to ask again.

A call's tokens and cost are known at its end. So a key can overshoot by what was under way when its limit was reached: at
the most its concurrent requests, each of which is itself stopped from starting a model that the rest of the budget would
not pay. Under load, what ended within the same few milliseconds is written together, since two locks for every request cost
more than everything else that is done for its key; a process that is killed loses what it had not written yet.
"""

from __future__ import annotations

import calendar
import functools
import math
import mmap
import os
import struct
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from workflow_composer.server.auth.keys import Key, Period
from workflow_composer.server.failures import RETRY_SOON, SERVER, HttpFailure
from workflow_composer.storage.locks import RangeLocks

_MAGIC = b"wfc-ledger-1\n".ljust(64, b"\0")
_RECORD = struct.Struct("<32s d d d Q Q d d 24x")
"""ID; start of the period, spent in it, spent in all (dollars); requests, tokens; time stamps of the two rates."""
_NUMBERS = struct.Struct("<d d d Q Q d d")
"""The part of a record that changes."""
_NOT_NEGATIVE = ("period_began", "spent", "spent_in_all", "next_request", "next_token")
_DAY = 86_400.0
_MOST = 2**64 - 1
"""What a record has room to count to."""
_ROOM = 64
"""Records by which the file grows."""
PATIENCE = 0.2
"""Seconds to wait for a record that another process holds, where it must be looked at now. It is held for microseconds."""
TOGETHER = 0.02
"""Seconds; charges that come closer together than this are written at once."""


@dataclass(slots=True)
class Account:
    """What one key has used. Dollars, counts, epoch seconds."""

    period_began: float = 0.0
    spent: float = 0.0
    spent_in_all: float = 0.0
    requests: int = 0
    tokens: int = 0
    next_request: float = 0.0
    next_token: float = 0.0


@dataclass(slots=True)
class _Charges:
    """What a key's requests have cost since it was last written down; ``at``: the last of them."""

    key: Key
    at: float = 0.0
    cost: float = 0.0
    requests: int = 0
    tokens: int = 0


class Ledger:
    """Accounts by key. Used by one thread of each process.

    ``report`` is told, once, where the file has no room for a new key: its charges wait in this process until it has, and
    where limits cannot be checked, the key is not let in.
    """

    def __init__(self, path: Path, *, report: Callable[[str], None] = lambda text: None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._locks = RangeLocks(path)
        self._report = report
        self._full = False
        self._file = self._locks.descriptor
        self._places: dict[str, int] = {}
        self._unwritten: dict[str, _Charges] = {}
        self._written_at = float("-inf")
        with self._whole():
            begun = os.pread(self._file, len(_MAGIC) + _RECORD.size, 0)
            if len(begun) < len(_MAGIC) + _RECORD.size and _MAGIC.startswith(begun[: len(_MAGIC)]):
                self._append(_MAGIC + bytes(_ROOM * _RECORD.size), 0)
        self._map = mmap.mmap(self._file, 0)
        if self._map[: len(_MAGIC)] != _MAGIC:
            self.close()
            raise ValueError(f"{path} is no ledger")

    def admit(self, key: Key, now: float) -> float | None:
        """Let a request in and count it, unless a limit is reached; returns the dollars that are left of the key's budget.

        None: the key has no budget. Raises `HttpFailure` 429; 503 where nobody can tell.
        """
        if not (key.budget or key.requests_per_minute or key.tokens_per_minute):
            return None  # nothing to check; it is counted when it is charged
        try:
            account = self.account(key, now)
            if key.budget is not None and account.spent >= key.budget:
                raise _exhausted(key, now)
            if key.tokens_per_minute and account.next_token - now > 60.0:
                raise _too_fast("tokens", key.tokens_per_minute, account.next_token - now - 60.0)
            if key.requests_per_minute:
                self._count(key, key.requests_per_minute, now)
        except OSError as error:
            self._tell(error)
            message = "what this API key has used cannot be looked up"
            raise HttpFailure(503, message, type=SERVER, code="ledger_unavailable", retry_after=RETRY_SOON) from None
        return None if key.budget is None else key.budget - account.spent

    def _count(self, key: Key, limit: int, now: float) -> None:
        """Count a request towards so many a minute."""
        place = self._place(key.id)
        with self._locks.hold(place, _RECORD.size, wait=PATIENCE):
            account = self._read(place)
            _turn_over(account, key, now)
            step = 60.0 / limit
            early = account.next_request - now - (60.0 - step)
            if early > 1e-9:
                raise _too_fast("requests", limit, early)
            account.next_request = max(account.next_request, now) + step
            self._write(place, account)

    def charge(self, key: Key, *, cost: float, tokens: int, now: float | None = None) -> None:
        """Count a request that has ended, and what it has cost. A charge that cannot be is reported, and counts nothing."""
        now = time.time() if now is None else now
        if not (0.0 <= cost < math.inf and 0 <= tokens <= _MOST):
            self._report(f"a request of key {key.id} cannot have cost ${cost:g} or used {tokens} tokens; it is not charged")
            cost, tokens = 0.0, 0
        charges = self._unwritten.get(key.id)
        if charges is None:
            charges = self._unwritten[key.id] = _Charges(key)
        charges.at = now
        charges.cost += cost
        charges.tokens += tokens
        charges.requests += 1
        if not 0.0 <= now - self._written_at < TOGETHER:
            self.write(now)

    def write(self, now: float, *, wait: float = 0.0) -> None:
        """Let the other workers, and the file, know of all charges; those of a record that another holds, the next time."""
        self._written_at = now
        for identity, charges in list(self._unwritten.items()):
            try:
                self._write_one(identity, charges, wait)
            except TimeoutError:
                continue
            except Exception as error:  # noqa: BLE001  # one record's trouble must not keep the others from being written
                self._tell(error)
            else:
                del self._unwritten[identity]

    def _write_one(self, identity: str, charges: _Charges, wait: float) -> None:
        place = self._place(identity)
        with self._locks.hold(place, _RECORD.size, wait=wait):
            self._write(place, self.account(charges.key, charges.at))

    def _tell(self, error: Exception) -> None:
        if not self._full:
            why = error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
            self._report(f"the ledger {self._path} cannot be written, charges wait: {why}")
        self._full = True

    def account(self, key: Key, now: float) -> Account:
        """What a key has used, in the period that ``now`` is in."""
        place = self._places.get(key.id) or self._place(key.id)
        account = Account(*_NUMBERS.unpack_from(self._map, place + 32))
        charges = self._unwritten.get(key.id)
        if charges is not None:
            if account.period_began != _period(key.period, charges.at // _DAY)[0]:
                _turn_over(account, key, charges.at)
            account.spent += charges.cost
            account.spent_in_all += charges.cost
            account.requests = min(account.requests + charges.requests, _MOST)
            account.tokens = min(account.tokens + charges.tokens, _MOST)
            if key.tokens_per_minute:
                ready = max(account.next_token, charges.at)
                account.next_token = ready + charges.tokens * 60.0 / key.tokens_per_minute
        if account.period_began != _period(key.period, now // _DAY)[0]:
            _turn_over(account, key, now)
        return account

    def left(self, key: Key, now: float) -> float | None:
        """Dollars that are left of a key's budget; None where it has none."""
        return None if key.budget is None else max(0.0, key.budget - self.account(key, now).spent)

    def close(self) -> None:
        """Write what is not written, and give the file back."""
        self.write(time.time(), wait=PATIENCE)
        self._map.close()
        self._locks.close()

    # -------------------------------------------------------------------------------------------------------- records

    def _place(self, identity: str) -> int:
        place = self._places.get(identity)
        if place is None:
            place = self._find(identity)
            self._mend(place)
            self._places[identity] = place
        return place

    def _mend(self, place: int) -> None:
        """Take numbers that cannot be in a record for nothing, so that its key is neither free for ever nor locked out."""
        with self._locks.hold(place, _RECORD.size, wait=PATIENCE):
            account = self._read(place)
            wrong = [name for name in _NOT_NEGATIVE if not 0.0 <= getattr(account, name) < math.inf]
            for name in wrong:
                setattr(account, name, 0.0)
            if wrong:
                self._write(place, account)

    def _find(self, identity: str) -> int:
        """The record's offset; a new one where there is none yet."""
        name = identity.encode()[:32].ljust(32, b"\0")
        with self._whole():
            self._remap()
            for place in range(len(_MAGIC), len(self._map) - _RECORD.size + 1, _RECORD.size):
                found = self._map[place : place + 32]
                if found == name:
                    return place
                if not any(found):
                    self._map[place : place + 32] = name
                    return place
            place = len(_MAGIC) + (len(self._map) - len(_MAGIC)) // _RECORD.size * _RECORD.size
            self._append(bytes(_ROOM * _RECORD.size), place)
            self._full = False
            self._remap()
            self._map[place : place + 32] = name
            return place

    def _append(self, data: bytes, place: int) -> None:
        """Let the file grow by all of the data or by nothing: what is mapped must be on the disk. Raises OSError."""
        before, written = os.fstat(self._file).st_size, 0
        try:
            while written < len(data):
                written += os.pwrite(self._file, data[written:], place + written)
        except OSError:
            os.ftruncate(self._file, before)
            raise

    def _remap(self) -> None:
        """Another process may have let the file grow."""
        if os.fstat(self._file).st_size > len(self._map):
            self._map.close()
            self._map = mmap.mmap(self._file, 0)

    def _read(self, place: int) -> Account:
        return Account(*_NUMBERS.unpack_from(self._map, place + 32))

    def _write(self, place: int, account: Account) -> None:
        # The ID stays as it is and the numbers are copied in one go: who reads without the lock, or finds the record of a
        # process that was killed, must not see it empty, as it is for a moment while a struct is packed into the map.
        numbers = _NUMBERS.pack(
            account.period_began,
            account.spent,
            account.spent_in_all,
            account.requests,
            account.tokens,
            account.next_request,
            account.next_token,
        )
        self._map[place + 32 : place + 32 + len(numbers)] = numbers

    def _whole(self) -> AbstractContextManager[None]:
        """Alone with the file, to make or find a record."""
        return self._locks.hold(0, len(_MAGIC), wait=PATIENCE)


@functools.lru_cache(maxsize=16)
def _period(period: Period, day: float) -> tuple[float, float]:
    """Start and end of the period that a day is in, UTC; days are counted from the epoch."""
    if period == "total":
        return 0.0, math.inf
    if period == "day":
        return day * _DAY, (day + 1.0) * _DAY
    year, month, *_ = time.gmtime(day * _DAY)
    following = (year + month // 12, month % 12 + 1)
    return float(calendar.timegm((year, month, 1, 0, 0, 0))), float(calendar.timegm((*following, 1, 0, 0, 0)))


def _turn_over(account: Account, key: Key, now: float) -> None:
    """Begin a new period where the old one is over."""
    if key.budget is None:
        return
    began, _ = _period(key.period, now // _DAY)
    if account.period_began != began:
        account.period_began, account.spent = began, account.spent_in_all if key.period == "total" else 0.0


def _exhausted(key: Key, now: float) -> HttpFailure:
    _, ends = _period(key.period, now // _DAY)
    message = f"the budget of this API key (${key.budget:g} per {key.period}) is used up"
    if key.period == "total":
        message = f"the budget of this API key (${key.budget:g}) is used up"
    code = "insufficient_quota"
    return HttpFailure(429, message, type=code, code=code, retry_after=ends - now)


def _too_fast(what: str, limit: int, wait: float) -> HttpFailure:
    message = f"this API key has {limit} {what} per minute; ask again in {wait:.1f} s"
    return HttpFailure(429, message, type="rate_limit_error", code="rate_limit_exceeded", retry_after=wait)
