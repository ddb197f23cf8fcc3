"""Money that is reserved before it is spent: requests under way never promise more than is left.

A request reserves the most that it will probably cost before it starts, and settles what it did cost at its end. One that
does not fit waits while others are under way, because most cost less than they reserved. Rows of a run share a `Budget`; the
service's keys share one over all workers (`workflow_composer.server.auth.ledger.KeyBudget`).

A reservation covers every call that is made from it: before a retry, a fallback, a further sample or a later tier begins, it
is raised if what is left of it does not pay for that call (`Reservation.cover`).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from workflow_composer.errors import BudgetExceeded, BudgetReserved

Estimate = Callable[[], tuple[float, float]]
"""Returns the most dollars and tokens that a request will probably use; infinite: nothing bounds them."""


_MOST = 2**63
MOST_WAITING = 1024
"""Requests that may wait for one budget."""
_MORE = "send fewer requests at once, limit max_tokens, or raise the budget"
ROUNDING = 1e-9
"""Dollars by which sums and differences of reservations may be wrong."""


class Place(Protocol):
    """What a request gives up while it waits for money, so that others can use it."""

    def leave(self) -> None:
        """Give the place up."""

    async def enter(self) -> None:
        """Take one again. May raise if there is none."""


class Budget:
    """Dollars, and perhaps tokens, that requests share. Belongs to one event loop.

    ``room`` and ``token_room`` are what can be reserved now, ``held`` the number of reservations of something, ``waiting``
    the number of requests that wait for a part, and ``begun`` how many of them have begun: these come first, or what they
    have spent would be spent in vain. ``spent`` is in dollars.
    """

    pause = math.inf
    """Seconds after which a waiting request looks again, although nothing has been settled here."""

    def __init__(self, limit: float = math.inf, *, tokens: float = math.inf, spent: float = 0.0) -> None:
        self.room = limit - spent
        self.token_room = tokens
        self.spent = spent
        self.held = 0
        self.waiting = 0
        self.begun = 0
        self.changed = asyncio.Event()
        self.turn = asyncio.Lock()
        self.turn_of_begun = asyncio.Lock()

    async def reserve(self, amount: float | Estimate, *, until: float = math.inf) -> Reservation:
        """Reserve ``amount`` dollars, or what an estimate returns when there is room for it.

        More than is left is reserved as what is left, once nothing else is. Waits until the clock (`time.perf_counter`)
        reaches ``until``. Raises `BudgetExceeded` if nothing is left, `BudgetReserved` if others have reserved it.
        """
        made = Reservation(self)
        await made.wait(amount if callable(amount) else lambda: (amount, 0.0), until=until)
        return made

    def refill(self, amount: float, tokens: float) -> bool:
        """Return whether this much can be reserved now; a budget that others share first asks them for more room."""
        return amount <= self.room + ROUNDING and tokens <= self.token_room

    def nothing_else(self, own: Reservation) -> bool:
        """Return whether no other request holds a part, so that waiting would not help."""
        return self.held == own.holds

    def exhausted(self) -> Exception:
        """Return the error if nothing is left."""
        return BudgetExceeded(f"the budget is used up: ${self.spent:.3g} spent", hint="raise the budget")

    def checked(self, cost: float, tokens: int) -> tuple[float, int]:
        """Return what is charged for a cost that cannot be (negative, not finite): nothing."""
        return (cost, tokens) if 0.0 <= cost < math.inf else (0.0, 0)

    def settled(self, cost: float, tokens: int) -> None:
        """Count what a request has used."""
        self.spent += cost

    def charged(self, cost: float, tokens: int) -> None:
        """Count what a request has used so far, which goes on."""
        self.spent += cost


@dataclass(slots=True, eq=False)
class Reservation:
    """A request's part of a budget: empty until `take` or `wait`, settled once or, for several answers, several times.

    ``place`` is given up during a wait; ``aside`` says that it is given up now. ``paid`` (dollars, tokens) has been charged
    before the end. ``calls`` are the calls under way that `cover` knows of, each with the most that it will probably use.
    """

    budget: Budget
    amount: float = 0.0
    tokens: float = 0.0
    holds: bool = False
    place: Place | None = None
    aside: bool = False
    paid: tuple[float, int] = (0.0, 0)
    calls: dict[object, tuple[float, float]] = field(default_factory=dict)
    ended: asyncio.Event | None = None
    turn: asyncio.Lock | None = None

    def take(self, amount: float, tokens: float = 0.0) -> bool:
        """Reserve this much more, if there is room and nobody waits for it; return whether it is reserved."""
        if not amount and not tokens:
            return True
        budget = self.budget
        if (budget.waiting and self.turn is None) or (
            (amount > budget.room or tokens > budget.token_room) and not budget.refill(amount, tokens)
        ):
            return False
        self._hold(amount, tokens)
        return True

    def _hold(self, amount: float, tokens: float) -> None:
        budget = self.budget
        if budget.room < math.inf:
            budget.room -= amount
            self.amount += amount
        if budget.token_room < math.inf:
            budget.token_room -= tokens
            self.tokens += tokens
        if not self.holds:
            self.holds = True
            budget.held += 1

    async def wait(self, estimate: Estimate, *, until: float = math.inf) -> float | None:
        """Wait for room and take it; return the dollars that there are if they are fewer than estimated, else None.

        Requests wait in the order of their coming, those that have begun before the others. Raises `BudgetExceeded`,
        `BudgetReserved`.
        """
        budget = self.budget
        if budget.waiting >= MOST_WAITING:
            raise BudgetReserved("too many requests wait for the rest of the budget", hint="send fewer requests at once")
        has_begun = self.turn is not None
        budget.waiting += 1
        budget.begun += has_begun
        if self.place is not None and not self.aside:
            self.place.leave()
            self.aside = True
        try:
            async with asyncio.timeout(None if math.isinf(until) else max(0.0, until - time.perf_counter())):
                async with budget.turn_of_begun if has_begun else budget.turn:
                    left = await self._next(estimate)
        except TimeoutError:
            reason = "requests in progress have reserved the rest of the budget, and none has ended within the time limit"
            raise BudgetReserved(reason, hint=_MORE) from None
        finally:
            budget.waiting -= 1
            budget.begun -= has_begun
            if has_begun and budget.waiting:
                budget.changed.set()
        if self.place is not None:
            await self.place.enter()
            self.aside = False
        return left

    async def _next(self, estimate: Estimate) -> float | None:
        budget = self.budget
        while True:
            budget.changed.clear()
            if self.turn is not None or not budget.begun:
                amount, tokens = estimate()
                whole = budget.refill(amount, tokens)
                if whole or budget.nothing_else(self):
                    break
            try:
                async with asyncio.timeout(None if math.isinf(budget.pause) else budget.pause):
                    await budget.changed.wait()
            except TimeoutError:
                continue
        if not whole and (budget.room <= ROUNDING or budget.token_room <= 0.0):
            if self.turn is not None:  # the request has begun: it may have an answer already
                raise BudgetExceeded("nothing is left of the budget for another call", hint="raise the budget")
            raise budget.exhausted()
        left = budget.room
        self._hold(min(amount, left), min(tokens, budget.token_room))
        return None if amount <= left else left

    async def cover(
        self,
        call: object,
        estimate: Estimate,
        expected: Callable[[], float],
        used: Callable[[], tuple[float, int]],
        *,
        until: float = math.inf,
    ) -> None:
        """Let a further call of the request begin: only once the reservation pays for the most that it will probably use.

        ``used`` returns what the request has used so far. If the reservation is too small, it is raised; if there is no room
        for that, the call waits for the request's own other calls, and then for other requests. Until then the request
        holds nothing but what it has used, which is charged, so that no two requests wait for each other. If less than
        estimated is left at last, that is reserved, provided that it pays for ``expected`` dollars. ``call`` counts as under
        way until `over`. Raises `BudgetExceeded`, `BudgetReserved`.
        """
        if self.turn is None:
            self.turn, self.ended = asyncio.Lock(), asyncio.Event()
        assert self.ended is not None  # set with the lock
        async with self.turn:
            while not self._raised(*(most := estimate()), used()):
                if not self.calls:
                    self._pay(*used())
                    left = await self.wait(estimate, until=until)
                    most = estimate()
                    if left is not None and (cost := expected()) > left:
                        self._pay(*used())
                        told = f"it would probably cost ${cost:.3g}; ${left:.3g} of the budget is left"
                        raise BudgetExceeded(told, hint="raise the budget, or limit max_tokens")
                    break
                self.ended.clear()
                try:
                    async with asyncio.timeout(None if math.isinf(until) else max(0.0, until - time.perf_counter())):
                        await self.ended.wait()
                except TimeoutError:
                    raise BudgetReserved("the rest of the budget does not pay for another call", hint=_MORE) from None
            self.calls[call] = (min(most[0], self.amount), min(most[1], self.tokens))

    def over(self, call: object) -> None:
        """End a call of `cover`. What it used is part of what ``used`` of the next one returns."""
        self.calls.pop(call, None)
        if self.ended is not None:
            self.ended.set()

    def _raised(self, dollars: float, tokens: float, used: tuple[float, int]) -> bool:
        """Whether this much is reserved beyond what is used and what the calls under way need, perhaps by taking more."""
        spent: float = used[0] - self.paid[0]
        counted: float = used[1] - self.paid[1]
        for some, more in self.calls.values():
            spent, counted = spent + some, counted + more
        missing = max(0.0, dollars + spent - self.amount) if self.budget.room < math.inf else 0.0
        lacking = max(0.0, tokens + counted - self.tokens) if self.budget.token_room < math.inf else 0.0
        return self.take(0.0 if missing <= ROUNDING else missing, lacking)

    def _pay(self, used: float, tokens: int) -> None:
        """Charge what the request has used so far, and give back the rest of the reservation."""
        budget = self.budget
        cost, counted = budget.checked(max(0.0, used - self.paid[0]), max(0, tokens - self.paid[1]))
        budget.room += self.amount - cost
        budget.token_room += self.tokens - counted
        self.amount = self.tokens = 0.0
        self.paid = (self.paid[0] + cost, self.paid[1] + counted)
        if self.holds:
            self.holds = False
            budget.held -= 1
        budget.charged(cost, counted)
        if budget.waiting:
            budget.changed.set()

    def settle(self, actual: float, tokens: int = 0) -> None:
        """Give back what was reserved, and spend ``actual`` dollars and ``tokens`` tokens instead."""
        budget = self.budget
        if not 0.0 <= actual < math.inf or not 0 <= tokens < _MOST:
            actual, tokens = budget.checked(actual, tokens)
        if self.turn is not None:
            actual, tokens = max(0.0, actual - self.paid[0]), max(0, tokens - self.paid[1])
            self.paid = (0.0, 0)
        budget.room += self.amount - actual
        budget.token_room += self.tokens - tokens
        self.amount = self.tokens = 0.0
        if self.holds:
            self.holds = False
            budget.held -= 1
        budget.settled(actual, tokens)
        if budget.waiting:
            budget.changed.set()
