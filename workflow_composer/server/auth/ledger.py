"""The usage of API keys, shared by all workers and persistent: one fixed-size record per key in a memory-mapped file.

A record is changed under a lock on its bytes, which the kernel releases when the process ends. Rates are limited by the
generic cell rate algorithm (ITU-T I.371): exact with one time stamp per limit, and it gives the retry time.

Tokens and cost of a request are known only at its end. A key can therefore exceed its limit by its running requests, each of
which cannot start a model that exceeds the remaining budget. Under load, charges within a few milliseconds are written
together, because two locks per request would cost more than all other work for its key; a killed process loses unwritten
charges.
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
"""ID; start of the period, dollars spent in it, dollars spent in total; requests, tokens; time stamps of the two rates."""
_NUMBERS = struct.Struct("<d d d Q Q d d")
"""The variable part of a record."""
_NOT_NEGATIVE = ("period_began", "spent", "spent_in_all", "next_request", "next_token")
_DAY = 86_400.0
_MOST = 2**64 - 1
"""Largest count that a record can hold."""
_ROOM = 64
"""Number of records by which the file grows."""
PATIENCE = 0.2
"""Seconds to wait for another process's lock on a record if it must be read now. Locks last microseconds."""
TOGETHER = 0.02
"""Seconds between writes; charges in between are written together."""


@dataclass(slots=True)
class Account:
    """The usage of one key. Dollars, counts, epoch seconds."""

    period_began: float = 0.0
    spent: float = 0.0
    spent_in_all: float = 0.0
    requests: int = 0
    tokens: int = 0
    next_request: float = 0.0
    next_token: float = 0.0


@dataclass(slots=True)
class _Charges:
    """A key's charges since the last write; ``at``: time of the last one."""

    key: Key
    at: float = 0.0
    cost: float = 0.0
    requests: int = 0
    tokens: int = 0


class Ledger:
    """Accounts by key. Not thread-safe: use it from one thread per process.

    If the file cannot hold a new key (a full disk), ``report`` is called once and the key's charges stay in memory until it
    can; a key whose limits cannot be checked is refused.
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
            raise ValueError(f"{path} is not a ledger")

    def admit(self, key: Key, now: float) -> float | None:
        """Admit and count a request, unless a limit is reached; return the dollars left in the key's budget.

        None: the key has no budget. Raises `HttpFailure` 429; 503 if the usage is unavailable.
        """
        if not (key.budget or key.requests_per_minute or key.tokens_per_minute):
            return None  # no limits: the charge counts it
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
            message = "the usage of this API key is temporarily unavailable"
            raise HttpFailure(503, message, type=SERVER, code="ledger_unavailable", retry_after=RETRY_SOON) from None
        return None if key.budget is None else key.budget - account.spent

    def _count(self, key: Key, limit: int, now: float) -> None:
        """Count a request towards the limit per minute."""
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
        """Charge a finished request. An impossible charge (negative or not finite) is reported and ignored."""
        now = time.time() if now is None else now
        if not (0.0 <= cost < math.inf and 0 <= tokens <= _MOST):
            self._report(f"invalid charge for key {key.id}: ${cost:g}, {tokens} tokens; the request is not charged")
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
        """Write all charges to the file; those of a locked record follow with the next write."""
        self._written_at = now
        for identity, charges in list(self._unwritten.items()):
            try:
                self._write_one(identity, charges, wait)
            except TimeoutError:
                continue
            except Exception as error:  # noqa: BLE001  # one record's error must not block the others
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
            self._report(f"cannot write the ledger {self._path}, charges stay in memory: {why}")
        self._full = True

    def account(self, key: Key, now: float) -> Account:
        """Return a key's usage in the period that contains ``now``."""
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
        """Return the dollars left in a key's budget; None if it has none."""
        return None if key.budget is None else max(0.0, key.budget - self.account(key, now).spent)

    def close(self) -> None:
        """Write pending charges and close the file."""
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
        """Reset impossible numbers in a record to 0, so that its key is neither unlimited nor locked out."""
        with self._locks.hold(place, _RECORD.size, wait=PATIENCE):
            account = self._read(place)
            wrong = [name for name in _NOT_NEGATIVE if not 0.0 <= getattr(account, name) < math.inf]
            for name in wrong:
                setattr(account, name, 0.0)
            if wrong:
                self._write(place, account)

    def _find(self, identity: str) -> int:
        """Return the record's offset; append a record for a new key."""
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
        """Append all of the data or none: mapped bytes must exist on disk. Raises OSError."""
        before, written = os.fstat(self._file).st_size, 0
        try:
            while written < len(data):
                written += os.pwrite(self._file, data[written:], place + written)
        except OSError:
            os.ftruncate(self._file, before)
            raise

    def _remap(self) -> None:
        """Map the file again after growth by another process."""
        if os.fstat(self._file).st_size > len(self._map):
            self._map.close()
            self._map = mmap.mmap(self._file, 0)

    def _read(self, place: int) -> Account:
        return Account(*_NUMBERS.unpack_from(self._map, place + 32))

    def _write(self, place: int, account: Account) -> None:
        # Keep the ID and copy the numbers at once: packing a struct into the map clears it briefly, and readers without the
        # lock, or after a killed process, must not see an empty record.
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
        """Return the lock on the whole file, to find or append a record."""
        return self._locks.hold(0, len(_MAGIC), wait=PATIENCE)


@functools.lru_cache(maxsize=16)
def _period(period: Period, day: float) -> tuple[float, float]:
    """Return start and end of the period that contains a day, UTC; days are counted from the epoch."""
    if period == "total":
        return 0.0, math.inf
    if period == "day":
        return day * _DAY, (day + 1.0) * _DAY
    year, month, *_ = time.gmtime(day * _DAY)
    following = (year + month // 12, month % 12 + 1)
    return float(calendar.timegm((year, month, 1, 0, 0, 0))), float(calendar.timegm((*following, 1, 0, 0, 0)))


def _turn_over(account: Account, key: Key, now: float) -> None:
    """Start a new period if the old one has ended."""
    if key.budget is None:
        return
    began, _ = _period(key.period, now // _DAY)
    if account.period_began != began:
        account.period_began, account.spent = began, account.spent_in_all if key.period == "total" else 0.0


def _exhausted(key: Key, now: float) -> HttpFailure:
    _, ends = _period(key.period, now // _DAY)
    message = f"the budget of this API key (${key.budget:g} per {key.period}) is exhausted"
    if key.period == "total":
        message = f"the budget of this API key (${key.budget:g}) is exhausted"
    code = "insufficient_quota"
    return HttpFailure(429, message, type=code, code=code, retry_after=ends - now)


def _too_fast(what: str, limit: int, wait: float) -> HttpFailure:
    message = f"this API key is limited to {limit} {what} per minute; retry in {wait:.1f} s"
    return HttpFailure(429, message, type="rate_limit_error", code="rate_limit_exceeded", retry_after=wait)
