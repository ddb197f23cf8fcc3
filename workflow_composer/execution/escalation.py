"""The way up a plan's tiers: which is started next, what became of each, and whose answer is taken in the end.

Shared by requests and streams. A tier is left when its answer is accepted. One that would probably cost more than is left
of the budget is not started; a later, cheaper one may be.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

from workflow_composer.errors import AllCandidatesFailed, BudgetExceeded
from workflow_composer.execution.call import Outcome, Trace
from workflow_composer.execution.member_run import CallObserver
from workflow_composer.plan import Plan, Tier
from workflow_composer.types import LLMRequest, Verdict


class Estimate(Protocol):
    """Dollars that a tier will probably cost for a request."""

    def __call__(self, tier: Tier, request: LLMRequest, /) -> float:
        """Estimate."""
        ...


class Ascent:
    """Iterate over `tiers`, report each by `answered` or `failed`, then take `outcome`."""

    def __init__(
        self, plan: Plan, request: LLMRequest, trace: Trace, *, estimate: Estimate, observer: CallObserver | None = None
    ) -> None:
        self._plan = plan
        self._request = request
        self._trace = trace
        self._estimate = estimate
        self._observer = observer
        self._best: Outcome | None = None
        self._left: tuple[int, Verdict] | None = None
        self._accepted = False
        self._unpaid = ""
        self._gap = ""
        self._abandoned: int | None = None
        self._again = False
        self._failure: AllCandidatesFailed | None = None

    def tiers(self) -> Iterator[tuple[int, Tier]]:
        """Number and tier, from the first to the one whose answer is accepted.

        Where nobody has a whole answer in the end, the last of the answers that were abandoned is asked for again: a
        doubtful answer is better than none.
        """
        for index, tier in enumerate(self._plan.tiers):
            if self._passed_over(index):
                continue
            if self._too_expensive(tier):
                self._gap = self._unpaid
                continue
            if self._left is not None and self._observer is not None:
                self._observer.on_escalation(self._request, self._plan, *self._left)
            self._trace.begin_tier()
            yield index, tier
            if self._accepted:
                return
        if self._best is None and self._abandoned is not None:
            index, self._again = self._abandoned, True
            self._trace.reopen_tier(index)
            yield index, replace(self._plan.tiers[index], watch=None)

    @property
    def may_abandon(self) -> bool:
        """Whether an answer may be given up unfinished: not where the budget could leave nobody to be asked instead."""
        budgets = (self._request.budget, self._plan.budget, *(tier.budget for tier in self._plan.tiers))
        return all(budget is None for budget in budgets)

    def is_last(self, index: int) -> bool:
        """Whether no tier stands behind this one."""
        return self._again or index + 1 == len(self._plan.tiers)

    def answered(self, outcome: Outcome) -> None:
        """The tier has answered; the later of two answers is the better one, unless it cannot be read.

        One that was abandoned before its end is no answer to anyone.
        """
        if self._gap and self._plan.gapless and outcome.verdict.accepted:
            reason = f"{outcome.verdict.reason}; but not every tier before has answered: {self._gap}"
            outcome.verdict = replace(outcome.verdict, accepted=False, reason=reason)
        if outcome.whole and (self._best is None or outcome.is_readable or not self._best.is_readable):
            self._best = outcome
        if not outcome.whole:
            self._abandoned = outcome.tier
        self._close(outcome.tier, outcome.verdict, outcome)

    def failed(self, index: int, error: AllCandidatesFailed) -> None:
        """No candidate of the tier has answered. ``error`` is the request's where that ends it without an answer."""
        self._gap = error.summary
        over = self._trace.over
        if over or self.is_last(index):
            self._failure = error
        self._close(index, Verdict(accepted=False, reason="every candidate failed"), None)
        self._accepted = over

    def outcome(self) -> Outcome:
        """The answer, accepted or not. Raises the last error where no tier answered, `BudgetExceeded` where none began."""
        if self._best is None and self._failure is not None:
            raise self._failure
        if self._best is None:
            raise BudgetExceeded(self._unpaid, attempts=self._trace.attempts, hint="raise the budget, or limit max_tokens")
        return self._best

    def _close(self, index: int, verdict: Verdict, outcome: Outcome | None) -> None:
        self._trace.close_tier(self._plan.tiers[index], verdict, outcome, index)
        self._accepted = verdict.accepted
        self._left = (index, verdict)

    def _passed_over(self, index: int) -> bool:
        """Whether the answer that was left is so doubtful that only the last tier is asked."""
        return self._left is not None and self._left[1].straight_up and not self.is_last(index)

    def _too_expensive(self, tier: Tier) -> bool:
        budget = self._plan.budget if self._request.budget is None else self._request.budget
        if budget is None and tier.budget is None:
            return False
        left = min(
            float("inf") if budget is None else budget - self._trace.cost,
            float("inf") if tier.budget is None else tier.budget,
        )
        cost = self._estimate(tier, self._request)
        if cost <= left:
            return False
        self._unpaid = f"{tier.title} would probably cost ${cost:.3g}, and ${max(left, 0.0):.3g} may be spent"
        return True
