"""Money that is reserved before it is spent: requests under way never promise more than is left.

A request reserves the most that it will probably cost before it starts, and settles what it did cost at its end. One that
does not fit waits while others are under way, because most cost less than they reserved. Rows of a run share a `Budget`; the
service's keys share one over all workers (`workflow_composer.server.auth.ledger.KeyBudget`).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from workflow_composer.errors import BudgetExceeded, BudgetReserved

Estimate = Callable[[], tuple[float, float]]
"""Returns the most dollars and tokens that a request will probably use; infinite: nothing bounds them."""


_MOST = 2**63
MOST_WAITING = 1024
"""Requests that may wait for one budget."""
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

    ``room`` and ``token_room`` are what can be reserved now, ``held`` the number of reservations of something, and
    ``waiting`` the number of requests that wait for a part. ``spent`` is in dollars.
    """

    pause = math.inf
    """Seconds after which a waiting request looks again, although nothing has been settled here."""

    def __init__(self, limit: float = math.inf, *, tokens: float = math.inf, spent: float = 0.0) -> None:
        self.room = limit - spent
        self.token_room = tokens
        self.spent = spent
        self.held = 0
        self.waiting = 0
        self.changed = asyncio.Event()
        self.turn = asyncio.Lock()

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


@dataclass(slots=True, eq=False)
class Reservation:
    """A request's part of a budget: empty until `take` or `wait`, settled once or, for several answers, several times.

    ``place`` is given up during a wait; ``aside`` says that it is given up now.
    """

    budget: Budget
    amount: float = 0.0
    tokens: float = 0.0
    holds: bool = False
    place: Place | None = None
    aside: bool = False

    def take(self, amount: float, tokens: float = 0.0) -> bool:
        """Reserve this much more, if there is room and nobody waits for it; return whether it is reserved."""
        if not amount and not tokens:
            return True
        budget = self.budget
        if budget.waiting or ((amount > budget.room or tokens > budget.token_room) and not budget.refill(amount, tokens)):
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

        Requests wait in the order of their coming. Raises `BudgetExceeded`, `BudgetReserved`.
        """
        budget = self.budget
        if budget.waiting >= MOST_WAITING:
            raise BudgetReserved("too many requests wait for the rest of the budget", hint="send fewer requests at once")
        budget.waiting += 1
        if self.place is not None and not self.aside:
            self.place.leave()
            self.aside = True
        try:
            async with asyncio.timeout(None if math.isinf(until) else max(0.0, until - time.perf_counter())):
                async with budget.turn:
                    left = await self._next(estimate)
        except TimeoutError:
            reason = "requests in progress have reserved the rest of the budget, and none has ended within the time limit"
            raise BudgetReserved(reason, hint="send fewer requests at once, limit max_tokens, or raise the budget") from None
        finally:
            budget.waiting -= 1
        if self.place is not None:
            await self.place.enter()
            self.aside = False
        return left

    async def _next(self, estimate: Estimate) -> float | None:
        budget = self.budget
        while True:
            budget.changed.clear()
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
            raise budget.exhausted()
        left = budget.room
        self._hold(min(amount, left), min(tokens, budget.token_room))
        return None if amount <= left else left

    def settle(self, actual: float, tokens: int = 0) -> None:
        """Give back what was reserved, and spend ``actual`` dollars and ``tokens`` tokens instead."""
        budget = self.budget
        if not 0.0 <= actual < math.inf or not 0 <= tokens < _MOST:
            actual, tokens = budget.checked(actual, tokens)
        budget.room += self.amount - actual
        budget.token_room += self.tokens - tokens
        self.amount = self.tokens = 0.0
        if self.holds:
            self.holds = False
            budget.held -= 1
        budget.settled(actual, tokens)
        if budget.waiting:
            budget.changed.set()
