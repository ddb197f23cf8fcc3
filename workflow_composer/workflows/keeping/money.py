"""Money of a run, of a row within it, and of a nested workflow within a row: one account, with limits inside each other.

A call reserves what it will probably cost before it starts and settles what it did cost. What does not fit waits while
anything is under way. Rows that have spent something come first, so that a run that ends at its budget has few half rows.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from workflow_composer.errors import BudgetExceeded, RunBudgetReached
from workflow_composer.execution.reservation import ROUNDING, Budget, Estimate, Reservation

_RAISE = "run the same command again with a higher --run-budget: nothing is asked twice"


class MoneyAccount(Budget):
    """A limit in dollars (infinite: none) within an outer account. ``spent`` is what was spent from it, ``is_reached`` says
    whether it could not pay for a call of the run.

    What is reserved or spent here is reserved and spent in the outer accounts, too; ``room`` is the least of all.
    """

    def __init__(self, limit: float = math.inf, *, spent: float = 0.0, outer: MoneyAccount | None = None) -> None:
        self.outer = outer
        self.own_room, self.own_held, self.own_spent = limit - spent, 0, spent
        self._waiting = self._begun = 0
        self.limit, self.is_reached = limit, False
        self.token_room = math.inf
        root = self.root
        self.changed = asyncio.Event() if root is self else root.changed
        bounded = outer is None or limit < math.inf
        self.turn = asyncio.Lock() if bounded or outer is None else outer.turn
        self.turn_of_begun = asyncio.Lock() if bounded or outer is None else outer.turn_of_begun

    @property
    def root(self) -> MoneyAccount:
        """The account of the whole run."""
        return self if self.outer is None else self.outer.root

    @property
    def narrowest(self) -> MoneyAccount:
        """The account, of this one and those around it, that has the least room."""
        if self.outer is None:
            return self
        other = self.outer.narrowest
        return self if self.own_room <= other.own_room else other

    @property
    def room(self) -> float:
        """What can be reserved now."""
        return self.narrowest.own_room

    @room.setter
    def room(self, value: float) -> None:
        if self.room < math.inf:
            self._change_room(value - self.room)

    def _change_room(self, by: float) -> None:
        self.own_room += by
        if self.outer is not None:
            self.outer._change_room(by)

    @property
    def held(self) -> int:
        """Reservations of something within this account."""
        return self.own_held

    @held.setter
    def held(self, value: int) -> None:
        by = value - self.own_held
        self.own_held += by
        if self.outer is not None:
            self.outer.held += by

    @property
    def spent(self) -> float:
        """Dollars spent from this account."""
        return self.own_spent

    @spent.setter
    def spent(self, value: float) -> None:
        by = value - self.own_spent
        self.own_spent += by
        if self.outer is not None:
            self.outer.spent += by

    @property
    def waiting(self) -> int:
        """Requests of the run that wait for money."""
        return self.root._waiting

    @waiting.setter
    def waiting(self, value: int) -> None:
        self.root._waiting = value

    @property
    def begun(self) -> int:
        """Those of them that belong to rows that have spent something."""
        return self.root._begun

    @begun.setter
    def begun(self, value: int) -> None:
        self.root._begun = value

    def nothing_else(self, own: Reservation) -> bool:
        """Return whether nobody else holds a part of what is short, so that waiting would not help."""
        return self.narrowest.own_held == own.holds

    def exhausted(self) -> Exception:
        """Return the error if nothing is left."""
        short = self.narrowest
        if short.outer is None:
            return budget_reached(short)
        told = f"the row's budget of ${short.limit:.4g} is used up: ${short.spent:.4g} spent"
        return BudgetExceeded(told, hint="raise the row's budget")


def budget_reached(account: MoneyAccount) -> RunBudgetReached:
    """Return the error of a run that has used up its budget."""
    root = account.root
    root.is_reached = True
    return RunBudgetReached(
        f"the run's budget of ${root.limit:.4g} does not pay for more: ${root.spent:.4g} spent", hint=_RAISE
    )


class RowPrices:
    """Whether a run's budget pays for the rows that are left at the price of those that have ended: else it is low."""

    def __init__(self, account: MoneyAccount, rows: int) -> None:
        self._account, self._left = account, rows
        self._cost, self._paid = 0.0, 0

    @property
    def is_low(self) -> bool:
        """Whether the budget is low. It never is before a row has cost something."""
        account = self._account
        return self._paid > 0 and self._cost / self._paid * self._left > account.limit - account.own_spent

    def ended(self, cost: float, *, cheaper: bool) -> None:
        """Take what a row has cost; ``cheaper``: it is no measure of the others."""
        self._left -= 1
        if cost and not cheaper:
            self._cost, self._paid = self._cost + cost, self._paid + 1


class CallReservation(Reservation):
    """A call's part of an account. ``is_unseen`` says whether nothing is known of what such a call costs; it may then take
    what is left, whatever it is estimated at, and others wait until it has ended.
    """

    __slots__ = ("is_unseen",)

    def __init__(self, account: MoneyAccount) -> None:
        super().__init__(account)
        self.is_unseen: Callable[[], bool] = lambda: False
        if account.spent:  # what the row has spent would be lost without this call
            self.turn, self.ended = asyncio.Lock(), asyncio.Event()

    async def wait(self, estimate: Estimate, *, until: float = math.inf) -> float | None:
        """Wait for room and take it, as `Reservation.wait` does."""
        left = await super().wait(estimate, until=until)
        return None if self.is_unseen() else left


class RunPurse:
    """The `Purse` of a run, a row or a nested workflow."""

    def __init__(self, account: MoneyAccount) -> None:
        self.account = account

    def part(self, limit: float | None) -> RunPurse:
        """Return a purse of its own limit in dollars (None: no further one), whose spending counts in this one, too."""
        return RunPurse(MoneyAccount(math.inf if limit is None else limit, outer=self.account))

    def begin(self) -> CallReservation | None:
        """Return the purse of one request, to be settled with what it has cost; None: no budget limits it.

        Raises `BudgetExceeded` if the row's money is used up, `RunBudgetReached` if the run's is.
        """
        account = self.account
        if account.room == math.inf:
            return None
        if account.room <= ROUNDING and not account.narrowest.own_held:
            raise account.exhausted()
        return CallReservation(account)
