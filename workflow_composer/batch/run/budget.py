"""What a run of rows may spend, and whether there is money for another row."""

from __future__ import annotations

import math
from typing import Any, Self

from workflow_composer.errors import InputError


class Budget:
    """Dollars that a row and the whole run may cost; None: no limit. Told of every row by `begin` and `end`.

    A row begins where the run's money pays for it and for the rows under way, each taken to cost the row's budget, or,
    without one, as much as the dearest row so far. The first row then goes alone, so that there is something to go by. With
    a budget for rows the run's budget holds as far as estimates do; without one, the last row may cost more than was left.
    """

    def __init__(self, row: float | None = None, run: float | None = None) -> None:
        for name, dollars in (("row", row), ("run", run)):
            wrong = dollars is not None and (isinstance(dollars, bool) or not isinstance(dollars, (int, float)))
            if wrong or (dollars is not None and not 0 < dollars < math.inf):
                raise InputError(f"the budget of a {name} is {dollars!r}", hint="give a number of dollars above 0")
        self.row, self.run = row, run
        self.spent = 0.0
        self._dearest: float | None = None
        self._under_way = 0
        self._is_over = False

    @classmethod
    def of(cls, given: Any) -> Self:
        """The budget that a mapping names: ``{"row": dollars, "run": dollars}``, either or both."""
        if given is None:
            return cls()
        if not isinstance(given, dict) or not given.keys() <= {"row", "run"}:
            raise InputError(f"the budget is {given!r}", hint='write it as {"row": 0.01, "run": 5.0}, or one of the two')
        return cls(**given)

    @property
    def left(self) -> float:
        """Dollars that the run may still spend."""
        return math.inf if self.run is None else self.run - self.spent

    @property
    def is_over(self) -> bool:
        """Whether no further row may begin, whatever ends."""
        return self._is_over or self.left <= 0

    @property
    def room(self) -> bool:
        """Whether another row may begin now; where not, and the budget is not over, once another has ended."""
        if self.run is None or not self._under_way:
            return not self.is_over
        expected = self._dearest if self.row is None else self.row
        return expected is not None and (self._under_way + 1) * expected <= self.left

    def earlier(self, cost: float) -> None:
        """Count what earlier runs have spent."""
        self.spent += cost

    def begin(self) -> float | None:
        """A row begins; returns what it may cost, None where only its own limits hold."""
        self._under_way += 1
        return None if self.row is None else min(self.row, self.left)

    def end(self, cost: float = 0.0, *, well: bool = False, unpaid: bool = False) -> None:
        """A row is over and has cost so much; ``well`` where it has an answer.

        ``unpaid``: what it might cost paid for no tier. Where that was the run's last money, the run is over.
        """
        self._under_way -= 1
        self.spent += cost
        if well or cost:
            self._dearest = max(cost, self._dearest or 0.0)
        if unpaid and self.row is not None and self.left < self.row:
            self._is_over = True
