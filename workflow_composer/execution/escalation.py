"""Escalation over a plan's tiers: which tier runs next, the result of each, and which answer is returned.

Shared by requests and streams. Escalation ends when an answer is accepted. A tier that would probably cost more than the
rest of the budget is skipped; a later, cheaper tier may still run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

from workflow_composer.errors import AllCandidatesFailed, BudgetExceeded, CircuitOpen
from workflow_composer.execution.call import Outcome, Trace
from workflow_composer.execution.member_run import CallObserver
from workflow_composer.plan import Plan, Tier
from workflow_composer.types import LLMRequest, Verdict

_SUSPENDED = "calls to all of its models are suspended"


class Estimate(Protocol):
    """Returns the expected cost of a tier for a request, in dollars."""

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
        """Yield the number and the tier, from the first to the one whose answer is accepted.

        If no tier has a complete answer, the tier of the last abandoned answer runs again: a doubtful answer is better than
        none.
        """
        for index, tier in enumerate(self._plan.tiers):
            if self._passed_over(index):
                self._trace.skip_tier(index, "the answer before it was too doubtful for it")
                continue
            if self._too_expensive(tier):
                self._gap = f"tier {tier.title} was skipped: {self._unpaid}"
                self._trace.skip_tier(index, self._unpaid)
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
        """Whether an unfinished answer may be abandoned: not if a budget could prevent the remaining tiers from running."""
        budgets = (self._request.budget, self._plan.budget, *(tier.budget for tier in self._plan.tiers))
        return all(budget is None for budget in budgets)

    def is_last(self, index: int) -> bool:
        """Whether this is the last tier."""
        return self._again or index + 1 == len(self._plan.tiers)

    def answered(self, outcome: Outcome) -> None:
        """Record a tier's answer. A later answer replaces an earlier one, unless it cannot be read or was abandoned."""
        if self._gap and self._plan.gapless and outcome.verdict.accepted:
            reason = f"{outcome.verdict.reason}; but an earlier tier has not answered: {self._gap}"
            outcome.verdict = replace(outcome.verdict, accepted=False, reason=reason)
        if outcome.whole and (self._best is None or outcome.is_readable or not self._best.is_readable):
            self._best = outcome
        if not outcome.whole:
            self._abandoned = outcome.tier
        self._close(outcome.tier, outcome.verdict, outcome)

    def failed(self, index: int, error: AllCandidatesFailed) -> None:
        """Record that no candidate of the tier answered. ``error`` is raised if the request ends without an answer."""
        skipped = self._not_run(error)
        self._gap = f"tier {self._plan.tiers[index].title} was skipped: {skipped}" if skipped else error.summary
        over = self._trace.over
        if over or self.is_last(index):
            self._failure = error
        reason = f"skipped: {skipped}" if skipped else "every candidate failed"
        self._close(index, Verdict(accepted=False, reason=reason), None)
        self._accepted = over

    def outcome(self) -> Outcome:
        """Return the answer, accepted or not. Raises the last error if no tier answered, `BudgetExceeded` if none ran."""
        if self._best is None and self._failure is not None:
            raise self._failure
        if self._best is None:
            which = "every tier" if len(self._trace.skipped) == len(self._plan.tiers) else "the rest"
            hint = "raise the budget, or limit max_tokens"
            raise BudgetExceeded(f"{which} was skipped: {self._unpaid}", attempts=self._trace.attempts, hint=hint)
        if self._unpaid and not self._best.verdict.accepted:
            verdict = self._best.verdict
            self._best.verdict = replace(verdict, reason=f"{verdict.reason}; a tier was skipped: {self._unpaid}")
        return self._best

    def _not_run(self, error: AllCandidatesFailed) -> str:
        """Return why no call of this tier was made; empty if one was made and failed."""
        tried = self._trace.tried
        if tried:
            return _SUSPENDED if all(attempt.error_type == CircuitOpen.__name__ for attempt in tried) else ""
        return error.summary if isinstance(error, BudgetExceeded) else ""

    def _close(self, index: int, verdict: Verdict, outcome: Outcome | None) -> None:
        self._trace.close_tier(self._plan.tiers[index], verdict, outcome, index)
        self._accepted = verdict.accepted
        self._left = (index, verdict)

    def _passed_over(self, index: int) -> bool:
        """Whether the answer is so doubtful that escalation goes directly to the last tier."""
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
        self._unpaid = f"{tier.title} would probably cost ${cost:.3g}; ${max(left, 0.0):.3g} of the budget is left"
        return True
