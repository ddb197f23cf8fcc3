"""What is on record about one request: every attempt, every tier that is done with, and the answer of a tier."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from workflow_composer.cascade.retry import Deadline
from workflow_composer.types import Attempt, Candidate, Sample, Tier, TierResult, Usage, Verdict

NO_SAMPLES: tuple[Sample, ...] = ()


@dataclass(slots=True)  # not frozen: made for every request, and seen by two functions
class Outcome:
    """The answer of a tier: which candidate gave it, and what the tier's rule said. ``whole``: it was not cut short."""

    samples: tuple[Sample, ...]
    model: str
    candidate: Candidate
    tier: int
    fallback_depth: int
    verdict: Verdict
    whole: bool = True

    @property
    def answer(self) -> Sample:
        """The sample that is the answer."""
        return self.samples[self.verdict.choice]

    @property
    def answer_first(self) -> tuple[Sample, ...]:
        """All samples, the answer before the others."""
        choice = self.verdict.choice
        return (self.samples[choice], *self.samples[:choice], *self.samples[choice + 1 :])

    @property
    def is_readable(self) -> bool:
        """Whether the tier has an answer; a vote of samples that cannot be read has none."""
        return bool(self.verdict.votes) or not self.verdict.unreadable


@dataclass(slots=True, eq=False)
class Trace:
    """What happened to one request so far. The caller keeps it, so that it is there also when the run fails.

    ``waited`` counts the seconds spent in models and in pauses between calls: all that is not the orchestrator's own work.
    ``tiers`` are those that are done with, where a plan has several or votes.
    """

    deadline: Deadline
    attempts: list[Attempt] = field(default_factory=list)
    waited: float = 0.0
    tiers: list[TierResult] = field(default_factory=list)
    _began: float = 0.0
    _first: int = 0
    _waiting: int = 0
    _since: float = 0.0

    def wait(self, now: float) -> None:
        """A call or a pause begins; time in which several are under way counts once."""
        if not self._waiting:
            self._since = now
        self._waiting += 1

    def go_on(self, now: float) -> None:
        """A call or a pause has ended."""
        self._waiting -= 1
        if not self._waiting:
            self.waited += now - self._since

    def begin_tier(self) -> None:
        """The attempts from now on belong to another tier."""
        self._began = time.perf_counter()
        self._first = len(self.attempts)

    def reopen_tier(self, index: int) -> None:
        """The tier is asked again: what became of it before is no result any more; its attempts stay on record."""
        self.tiers = [tier for tier in self.tiers if tier.tier != index]
        self.begin_tier()

    def close_tier(self, tier: Tier, verdict: Verdict, outcome: Outcome | None, index: int) -> None:
        """Write down what became of a tier; without an outcome nothing answered in it."""
        attempts = self.attempts[self._first :]
        usage = sum((attempt.usage for attempt in attempts), Usage())
        cost = sum(attempt.cost for attempt in attempts)
        milliseconds = (time.perf_counter() - self._began) * 1000.0
        candidate, model, samples = "", "", NO_SAMPLES
        if outcome is not None:
            candidate, model, samples = outcome.candidate.name, outcome.model, outcome.samples
        self.tiers.append(
            TierResult(index, tier.name or candidate, candidate, model, samples, verdict, usage, cost, milliseconds)
        )

    @property
    def cost(self) -> float:
        """Dollars for all attempts, failed and rejected ones included."""
        attempts = self.attempts
        return attempts[0].cost if len(attempts) == 1 else sum(attempt.cost for attempt in attempts)

    @property
    def usage(self) -> Usage:
        """Tokens of all attempts."""
        attempts = self.attempts
        return attempts[0].usage if len(attempts) == 1 else sum((attempt.usage for attempt in attempts), Usage())
