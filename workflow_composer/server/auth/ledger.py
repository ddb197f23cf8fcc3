"""The usage of API keys, shared by all workers and persistent: one fixed-size record per key in a file.

A record is changed under a lock on its bytes, which the kernel releases when the process ends. Rates are limited by the
generic cell rate algorithm (ITU-T I.371): exact with one time stamp per limit, and it gives the retry time.

Budgets are reserved (`KeyBudget`): a worker sets aside a part of what a key has left, hands it out without asking others,
and gives the rest back a moment later. Under load, charges within a few milliseconds are written together, because two locks
per request would cost more than all other work for its key; a killed process loses unwritten charges.

The file is read and written, never mapped: one that is truncated, removed or replaced while the service runs is reported and
made whole from what the workers know of it.
"""

from __future__ import annotations

import asyncio
import math
import os
import struct
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import astuple
from pathlib import Path

from workflow_composer.execution.reservation import MOST_WAITING, ROUNDING, Budget, Reservation
from workflow_composer.server.auth.account import DAY, Account, exhausted, too_fast, too_many, unavailable
from workflow_composer.server.auth.keys import Key, Period
from workflow_composer.server.auth.leases import Leases, is_replaced
from workflow_composer.storage.locks import RangeLocks

_MAGIC = b"wfc-ledger-1\n".ljust(64, b"\0")
_RECORD = struct.Struct("<32s d d d Q Q d d d Q d")
"""ID, and the fields of an `Account`. The last three are 0 in a record of an earlier version."""
_NUMBERS = struct.Struct("<d d d Q Q d d d Q d")
"""The variable part of a record."""
_NOT_NEGATIVE = ("began", "spent_this_month", "spent_in_all", "next_request", "next_token", "spent_today", "seen")
_LATEST = 32_503_680_000.0
"""The year 3000: a later time in a record is damage."""
_MOST = 2**64 - 1
"""Largest count that a record can hold."""
_ROOM = 64
"""Number of records by which the file grows."""
_NOTHING = (0.0, 0.0)
PATIENCE = 0.2
"""Seconds to wait for another process's lock on a record if it must be read now. Locks last microseconds."""
_BRIEFLY = 0.002
"""The same for a reservation, which otherwise waits without blocking the loop."""
TOGETHER = 0.05
"""Seconds between writes; charges in between are written together."""
_LOOK_EVERY = 1.0
"""Seconds between checks of whether the file is still the one that is open."""
ROUNDED = 1e-3
"""Seconds by which the time stamp of a rate may be off: the sum of many steps, each rounded."""
_SHARE = 8
"""A worker sets aside one part in so many of what a key has left, beyond what the request needs."""


class KeyBudget(Budget):
    """What one key may spend, in this worker: what the worker has set aside of it, and charges not yet written.

    ``room`` is what this worker can still reserve without asking the ledger. ``granted`` (dollars, tokens) is all that it
    has set aside, for its reservations and for ``room``, and ``leased`` what others see of it; ``elsewhere`` is what other
    workers have set aside.
    """

    pause = 0.05

    def __init__(self, ledger: Ledger, key: Key) -> None:
        super().__init__(0.0, tokens=0.0)
        self.ledger = ledger
        self.granted = self.leased = _NOTHING
        self.elsewhere = (0.0, 0.0)
        self.running = 0
        self.queueing = 0
        self.gate = asyncio.Lock()
        self.ended = asyncio.Event()
        self.at = 0.0
        self.cost = 0.0
        self.requests = 0
        self.tokens = 0
        self.use(key)

    def use(self, key: Key) -> None:
        """Take up the limits of a key's record, which may have changed."""
        self.key = key
        some, more = self.granted
        self.granted = (some - max(self.room, 0.0) if some else 0.0, more - max(self.token_room, 0.0) if more else 0.0)
        self.limits = key.limits
        self.room = min(self.room, 0.0) if self.limits and self.room < math.inf else 0.0 if self.limits else math.inf
        has_tokens = key.tokens_per_day is not None
        self.token_room = (
            min(self.token_room, 0.0) if has_tokens and self.token_room < math.inf else 0.0 if has_tokens else math.inf
        )
        self.is_limited = bool(self.limits) or has_tokens
        self.quick = not (key.requests_per_minute or key.tokens_per_minute)

    async def begin(self, seconds: float) -> None:
        """Wait for one of the requests that the key may have in progress; `end` must follow.

        Raises `HttpFailure` 429 after ``seconds``, or if too many wait.
        """
        most = self.key.concurrent
        if most is None or (not self.gate.locked() and self.ledger.begin(self, most)):
            self.running += most is None
            return
        if self.queueing >= MOST_WAITING:
            raise too_many(most)
        self.queueing += 1
        try:
            async with asyncio.timeout(seconds), self.gate:
                while not self.ledger.begin(self, most):
                    self.ended.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self.pause):
                            await self.ended.wait()
        except TimeoutError:
            raise too_many(most) from None
        finally:
            self.queueing -= 1

    def end(self) -> None:
        """End a request of `begin`."""
        self.ledger.end(self)
        self.ended.set()

    def refill(self, amount: float, tokens: float) -> bool:
        """Return whether this much is there now, after setting more aside if needed."""
        if super().refill(amount, tokens):
            return True
        return self.ledger.refill(self, amount, tokens)

    def nothing_else(self, own: Reservation) -> bool:
        """Return whether no other request of the key, in any worker, holds a part."""
        return self.held == own.holds and not any(self.elsewhere)

    def exhausted(self) -> Exception:
        """Return the error if nothing is left."""
        now = self.ledger.clock()
        return exhausted(self.key, self.ledger.account(self.key, now), now)

    def checked(self, cost: float, tokens: int) -> tuple[float, int]:
        """Return a charge; one that cannot be (negative or not finite) is reported and counts as a request only."""
        if 0.0 <= cost < math.inf and 0 <= tokens <= _MOST:
            return cost, tokens
        self.ledger.report(f"invalid charge for key {self.key.id}: ${cost:g}, {tokens} tokens; the request is not charged")
        return 0.0, 0

    def settled(self, cost: float, tokens: int, now: float | None = None) -> None:
        """Charge the key."""
        ledger = self.ledger
        self.at = now = ledger.clock() if now is None else now
        self.cost += cost
        self.tokens += tokens
        self.requests += 1
        if not 0.0 <= now - ledger.written_at < TOGETHER:
            ledger.write(now)

    def charged(self, cost: float, tokens: int) -> None:
        """Charge the key for a part of a request, which is counted at its end."""
        self.at = self.ledger.clock()
        self.cost += cost
        self.tokens += tokens

    @property
    def uncharged(self) -> bool:
        """Whether there are charges that are not yet written."""
        return bool(self.requests or self.cost or self.tokens)

    @property
    def promised(self) -> tuple[float, float]:
        """The dollars and tokens that this worker's reservations hold."""
        if not self.held:
            return _NOTHING
        dollars, tokens = self.granted
        some = dollars - self.room - self.cost if self.limits else 0.0
        more = tokens - self.token_room - self.tokens if self.key.tokens_per_day else 0.0
        return max(some, 0.0), max(more, 0.0)


class Ledger:
    """Accounts by key. Not thread-safe: use it from one thread per process.

    If the file cannot be written (a full disk), ``report`` is called once and charges stay in memory until it can; a key
    whose limits cannot be checked is refused. ``clock`` returns epoch seconds.
    """

    def __init__(
        self,
        path: Path,
        *,
        report: Callable[[str], None] = lambda text: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self.report = report
        self.clock = clock
        self.written_at = float("-inf")
        self._looked_at = float("-inf")
        self._failing = False
        self._is_behind = False
        self._places: dict[str, int] = {}
        self._known: dict[str, bytes] = {}
        self._budgets: dict[str, KeyBudget] = {}
        self._leases: Leases | None = None
        self._locks = RangeLocks(path)
        try:
            self._begin()
        except BaseException:
            self._locks.close()
            raise

    def _begin(self) -> None:
        """Write the head of a new file. Raises ValueError if the file is something else."""
        with self._whole():
            begun = os.pread(self._locks.descriptor, len(_MAGIC) + _RECORD.size, 0)
            if len(begun) < len(_MAGIC) + _RECORD.size and _MAGIC.startswith(begun[: len(_MAGIC)]):
                self._append(_MAGIC + bytes(_ROOM * _RECORD.size), 0)
            elif begun[: len(_MAGIC)] != _MAGIC:
                raise ValueError(f"{self._path} is not a ledger")

    # ------------------------------------------------------------------------------------------------------- requests

    def budget_of(self, key: Key) -> KeyBudget:
        """Return what this worker knows of a key's budget."""
        budget = self._budgets.get(key.id)
        if budget is None:
            budget = self._budgets[key.id] = KeyBudget(self, key)
        elif budget.key is not key:
            budget.use(key)
        return budget

    def admit(self, key: Key, now: float) -> KeyBudget:
        """Admit and count a request, unless a limit is reached; return the key's budget, in which to reserve its cost.

        Raises `HttpFailure` 429; 503 if the usage is unavailable.
        """
        budget = self._budgets.get(key.id)
        if budget is None or budget.key is not key:
            budget = self.budget_of(key)
        if budget.quick and budget.room > 0.0 and budget.token_room > 0.0:
            return budget  # what is set aside suffices, or there are no limits
        try:
            account = self.account(key, now)
            if account.free(budget.limits) <= ROUNDING or (
                key.tokens_per_day and account.tokens_today >= key.tokens_per_day
            ):
                raise exhausted(key, account, now)
            if key.tokens_per_minute and account.next_token - now > 60.0:
                raise too_fast("tokens", key.tokens_per_minute, account.next_token - now - 60.0)
            if key.requests_per_minute:
                self._count(key, key.requests_per_minute, now)
        except OSError as error:
            self._tell(error)
            raise unavailable() from None
        return budget

    def _count(self, key: Key, limit: int, now: float) -> None:
        """Count a request towards the limit per minute."""
        place = self._place(key.id)
        with self._locks.hold(place, _RECORD.size, wait=PATIENCE):
            account = self._read(key, place)
            self._turn_over(account, now)
            step = 60.0 / limit
            early = account.next_request - now - (60.0 - step)
            if early > ROUNDED:
                raise too_fast("requests", limit, early)
            account.next_request = max(account.next_request, now) + step
            self._write(key.id, place, account)

    def begin(self, budget: KeyBudget, most: int) -> bool:
        """Count a request as running, unless ``most`` of its key run already, in all workers. Raises `HttpFailure` 503."""
        try:
            place = self._place(budget.key.id)
            with self._locks.hold(place, _RECORD.size, wait=_BRIEFLY):
                if budget.running + self._others(place)[2] >= most:
                    return False
                budget.running += 1
                self._put(budget, place)
        except TimeoutError:
            return False
        except OSError as error:
            self._tell(error)
            raise unavailable() from None
        return True

    def end(self, budget: KeyBudget) -> None:
        """Count a request of `begin` as ended."""
        budget.running -= 1
        try:
            self._put(budget, self._place(budget.key.id))  # only this worker writes it, and a smaller number harms nobody
        except OSError as error:
            self._tell(error)

    def refill(self, budget: KeyBudget, amount: float, tokens: float) -> bool:
        """Set aside enough of a key's budgets for a request; return whether there is enough.

        If others have set nothing aside, all that is left is then in ``room``. Raises `HttpFailure` 503.
        """
        try:
            place = self._place(budget.key.id)
            with self._locks.hold(place, _RECORD.size, wait=_BRIEFLY):
                return self._refill(budget, place, amount, tokens)
        except TimeoutError:
            budget.elsewhere = (1.0, 0.0)  # someone works on it: look again soon
            return False
        except OSError as error:
            self._tell(error)
            raise unavailable() from None

    def _refill(self, budget: KeyBudget, place: int, amount: float, tokens: float) -> bool:
        key = budget.key
        account = self._written(budget, place, self.clock())
        some, more, _ = self._others(place)
        budget.elsewhere = (some, more)
        promised, held = budget.promised
        free = account.free(budget.limits) - some - promised
        left = (key.tokens_per_day - account.tokens_today - more - held) if key.tokens_per_day else math.inf
        enough = amount <= free + ROUNDING and tokens <= left
        if enough:
            room = max(amount, amount + (free - amount) / _SHARE) if budget.limits else math.inf
            token_room = tokens + (left - tokens) // _SHARE
        else:
            alone = not (some or more or budget.held)
            room, token_room = (max(free, 0.0), max(left, 0.0)) if alone else (0.0, 0.0)
        budget.room = room if budget.limits else math.inf
        budget.token_room = token_room if key.tokens_per_day else math.inf
        budget.granted = (
            promised + budget.room if budget.limits else 0.0,
            held + budget.token_room if key.tokens_per_day else 0.0,
        )
        self._put(budget, place)
        return enough

    def charge(self, key: Key, *, cost: float, tokens: int, now: float | None = None) -> None:
        """Charge a finished request that has reserved nothing."""
        budget = self.budget_of(key)
        cost, tokens = budget.checked(cost, tokens)
        budget.room -= cost
        budget.token_room -= tokens
        budget.settled(cost, tokens, now)

    def account(self, key: Key, now: float) -> Account:
        """Return a key's usage in the periods that contain ``now``. Raises OSError."""
        try:
            account = self._read(key, self._places.get(key.id) or self._place(key.id))
        except TimeoutError:  # the file was cut: the record has another place now
            account = self._read(key, self._place(key.id))
        budget = self._budgets.get(key.id)
        if budget is not None and budget.uncharged:
            self._add(account, budget)
        self._turn_over(account, now)
        return account

    def left(self, key: Key, now: float) -> float | None:
        """Return the dollars left in a key's budgets; None if it has none."""
        return max(0.0, self.account(key, now).free(key.limits)) if key.limits else None

    # -------------------------------------------------------------------------------------------------------- writing

    def write(self, now: float, *, wait: float = 0.0) -> None:
        """Write all charges, and give back what is set aside but not reserved; a locked record follows with the next write.

        Never raises: what cannot be written is reported and kept.
        """
        self.written_at = now
        if not 0.0 <= now - self._looked_at < _LOOK_EVERY:
            self._looked_at = now
            self._look()
        failing = False
        for budget in list(self._budgets.values()):
            if not budget.uncharged and budget.leased == budget.granted in (_NOTHING, budget.promised):
                continue
            try:
                self._write_one(budget, now, wait)
            except TimeoutError:
                continue
            except Exception as error:  # noqa: BLE001  # one record's error must not block the others
                failing = True
                self._tell(error)
        self._failing = failing

    def _write_one(self, budget: KeyBudget, now: float, wait: float) -> None:
        place = self._place(budget.key.id)
        with self._locks.hold(place, _RECORD.size, wait=wait):
            self._written(budget, place, now)
            granted = budget.promised
            if budget.granted != granted:
                budget.room = 0.0 if budget.limits else math.inf
                budget.token_room = 0.0 if budget.key.tokens_per_day else math.inf
                budget.granted = granted
            if budget.leased != granted:
                self._put(budget, place)

    def _written(self, budget: KeyBudget, place: int, now: float) -> Account:
        """Write a key's charges, under its lock; return the account as it is now."""
        account = self._read(budget.key, place)
        if budget.uncharged:
            promised = budget.promised
            self._add(account, budget)
            self._write(budget.key.id, place, account)
            budget.cost, budget.requests, budget.tokens = 0.0, 0, 0
            # A request that cost more than it had reserved has made the room negative; the account knows of it now.
            budget.room, budget.token_room = max(budget.room, 0.0), max(budget.token_room, 0.0)
            some = promised[0] + budget.room if budget.limits else 0.0
            budget.granted = (some, promised[1] + budget.token_room if budget.key.tokens_per_day else 0.0)
        self._turn_over(account, now)
        return account

    def _add(self, account: Account, budget: KeyBudget) -> None:
        """Add the charges that are not yet written."""
        self._turn_over(account, budget.at)
        account.spent_today += budget.cost
        account.spent_this_month += budget.cost
        account.spent_in_all += budget.cost
        account.requests = min(account.requests + budget.requests, _MOST)
        account.tokens = min(account.tokens + budget.tokens, _MOST)
        account.tokens_today = min(account.tokens_today + budget.tokens, _MOST)
        account.seen = max(account.seen, budget.at)
        if budget.key.tokens_per_minute:
            account.next_token = max(account.next_token, budget.at) + budget.tokens * 60.0 / budget.key.tokens_per_minute

    def _turn_over(self, account: Account, now: float) -> None:
        if account.began <= now < account.began + DAY and now >= account.seen:
            return  # nearly always
        if not account.turn_over(now) and not self._is_behind:
            self._is_behind = True
            day = time.strftime("%Y-%m-%d", time.gmtime(account.began))
            self.report(f"the clock was set back: budgets of API keys count for {day} until that day is over")

    def _tell(self, error: Exception) -> None:
        if not self._failing:
            why = error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
            self.report(f"cannot write the ledger {self._path}, charges stay in memory: {why}")
        self._failing = True

    def close(self) -> None:
        """Write pending charges and close the files."""
        self.write(self.clock(), wait=PATIENCE)
        self._locks.close()
        if self._leases is not None:
            self._leases.close()

    # -------------------------------------------------------------------------------------------------------- records

    def _others(self, place: int) -> tuple[float, float, int]:
        return self._shared().others((place - len(_MAGIC)) // _RECORD.size)

    def _put(self, budget: KeyBudget, place: int) -> None:
        self._shared().put((place - len(_MAGIC)) // _RECORD.size, *budget.granted, budget.running)
        budget.leased = budget.granted

    def _shared(self) -> Leases:
        if self._leases is None:
            self._leases = Leases(self._path.with_name(f"{self._path.name}.reserved"))
        return self._leases

    def _look(self) -> None:
        """Use the files that are at their paths now; what this process knows of accounts goes there."""
        try:
            if self._leases is not None and self._leases.replaced:
                self._leases.close()
                self._leases = None
                self._lease_again()
            if is_replaced(self._path, self._locks.descriptor):
                self._reopen()
        except (OSError, ValueError) as error:
            self._tell(error)

    def _lease_again(self) -> None:
        """Write what this worker has set aside into a new file."""
        for budget in self._budgets.values():
            if budget.granted != _NOTHING or budget.running:
                self._put(budget, self._place(budget.key.id))

    def _reopen(self) -> None:
        old, self._locks = self._locks, RangeLocks(self._path)
        try:
            self._begin()
        except BaseException:
            self._locks.close()
            self._locks = old
            raise
        old.close()
        self._places.clear()
        self.report(f"the ledger {self._path} was removed or replaced; the usage known to this process is written to it")

    def _place(self, identity: str) -> int:
        place = self._places.get(identity)
        if place is None:
            place = self._find(identity)
            self._mend(identity, place)
            self._places[identity] = place
        return place

    def _mend(self, identity: str, place: int) -> None:
        """Reset impossible numbers in a record to 0, so that its key is neither unlimited nor locked out.

        A record that has less than this process knows of it gets that: money that was spent stays spent.
        """
        with self._locks.hold(place, _RECORD.size, wait=PATIENCE):
            found = os.pread(self._locks.descriptor, _NUMBERS.size, place + 32)
            account = Account(*_NUMBERS.unpack(found))
            wrong = [name for name in _NOT_NEGATIVE if not 0.0 <= getattr(account, name) < math.inf]
            wrong += [name for name in ("began", "seen") if getattr(account, name) > _LATEST]
            for name in wrong:
                setattr(account, name, 0.0)
            known = Account(*_NUMBERS.unpack(self._known.get(identity, bytes(_NUMBERS.size))))
            if (known.spent_in_all, known.requests) > (account.spent_in_all, account.requests):
                account, wrong = known, ["spent_in_all"]
            if wrong:
                self._write(identity, place, account)

    def _find(self, identity: str) -> int:
        """Return the record's offset; append a record for a new key."""
        name = identity.encode()[:32].ljust(32, b"\0")
        with self._whole():
            size = os.fstat(self._locks.descriptor).st_size
            data = os.pread(self._locks.descriptor, size, 0)
            if data[: len(_MAGIC)] != _MAGIC:
                if data:
                    raise OSError(f"{self._path} is no longer a ledger")
                self._append(_MAGIC, 0)
                data = _MAGIC
            for place in range(len(_MAGIC), len(data) - _RECORD.size + 1, _RECORD.size):
                found = data[place : place + 32]
                if found == name:
                    return place
                if not any(found):
                    os.pwrite(self._locks.descriptor, name, place)
                    return place
            place = len(_MAGIC) + (len(data) - len(_MAGIC)) // _RECORD.size * _RECORD.size
            os.ftruncate(self._locks.descriptor, place)  # half a record is left only where the file was cut
            self._append(name + bytes(_ROOM * _RECORD.size - 32), place)
            return place

    def _append(self, data: bytes, place: int) -> None:
        """Append all of the data or none. Raises OSError."""
        before, written = os.fstat(self._locks.descriptor).st_size, 0
        try:
            while written < len(data):
                written += os.pwrite(self._locks.descriptor, data[written:], place + written)
        except OSError:
            os.ftruncate(self._locks.descriptor, before)
            raise

    def _read(self, key: Key, place: int) -> Account:
        """Return a record; find it again if the file was cut or overwritten. Raises OSError."""
        data = os.pread(self._locks.descriptor, _RECORD.size, place)
        if len(data) < _RECORD.size or not data.startswith(key.id.encode()):
            self._places.clear()
            self.report(f"the ledger {self._path} was truncated or overwritten; the usage known to this process is restored")
            raise TimeoutError(f"{self._path} is being restored")  # the lock that is held is not the record's any more
        self._known[key.id] = data[32:]
        account = Account(*_NUMBERS.unpack_from(data, 32))
        account.period = key.period if key.limits else "total"
        if not account.seen:  # of an earlier version, which knew one period
            _as_now(account, key.period)
        return account

    def _write(self, identity: str, place: int, account: Account) -> None:
        # One call writes all numbers: a reader without the lock, or after a killed process, never sees half a record.
        self._known[identity] = numbers = _NUMBERS.pack(*astuple(account)[:-1])
        os.pwrite(self._locks.descriptor, numbers, place + 32)

    def _whole(self) -> AbstractContextManager[None]:
        """Return the lock on the whole file, to find or append a record."""
        return self._locks.hold(0, len(_MAGIC), wait=PATIENCE)


def _as_now(account: Account, period: Period) -> None:
    """Read a record of an earlier version: its period was the key's, and began then."""
    if period == "day":
        account.spent_today = account.spent_this_month
    elif period == "total":
        account.spent_this_month = 0.0
    account.seen = 1.0
