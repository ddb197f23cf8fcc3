"""Acceptance of an answer from its own tokens: by rules, or by a score with a certified threshold.

Both also work while an answer is streamed: they compute the best value that the complete answer could still reach, so an
answer is aborted early only if it would be rejected in the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from workflow_composer.calibration.prefix import Prefix
from workflow_composer.calibration.scores import ScoreModel
from workflow_composer.calibration.signals import Rules, signal_of
from workflow_composer.plan import Verdict
from workflow_composer.types import Sample, TokenLogprob


@dataclass(frozen=True, slots=True)
class RuleAcceptance:
    """Accept an answer that no rule flags as doubtful; the confidence is its probability per token.

    ``accept_unknown``: accept answers without log-probabilities; their confidence is unknown either way.
    ``final``: accept every answer, since this is the last tier.
    """

    rules: Rules
    accept_unknown: bool = False
    final: bool = False

    def __call__(self, samples: Sequence[Sample]) -> Verdict:
        """Judge the only sample."""
        signal = signal_of(samples[0], self.rules)
        reason = signal.escalation_reason or "no rule flags the answer as doubtful"
        if signal.kind == "unknown":
            accepted = self.accept_unknown or self.final
        else:
            accepted = self.final or not signal.should_escalate
        return Verdict(accepted, signal.confidence, f"{reason}; accepted by the last tier" if self.final else reason)

    def watch(self, longest: int) -> RuleWatch:
        """Follow an answer of at most so many tokens."""
        return RuleWatch(self.rules, longest)

    def __repr__(self) -> str:
        return "always (last tier)" if self.final else "no rule flags the answer as doubtful"


class RuleWatch:
    """See `RuleAcceptance.watch`."""

    def __init__(self, rules: Rules, longest: int) -> None:
        self._rules = rules
        self._prefix = Prefix(longest)

    def hear(self, tokens: Sequence[TokenLogprob]) -> Verdict | None:
        """Add tokens; return the verdict as soon as it is certain that the answer is doubtful, else None."""
        self._prefix.hear(tokens)
        best = self._prefix.best_case()
        if best is None:
            return None
        reasons = self._rules.reasons(best)
        return Verdict(accepted=False, reason="; ".join(reasons)) if reasons else None


@dataclass(frozen=True, slots=True)
class ScoreAcceptance:
    """Accept an answer whose score is at least ``threshold`` (None: accept nothing); the confidence is the score.

    ``score`` computes the score from the tokens' signal; None: use the sample's own score. An unknown score is never
    accepted. A score below ``straight_up`` escalates directly to the last tier.
    """

    score: ScoreModel | None
    threshold: float | None
    straight_up: float | None = None

    def __call__(self, samples: Sequence[Sample]) -> Verdict:
        """Judge the only sample."""
        found = self._score_of(samples[0])
        if found is None:
            return Verdict(accepted=False, reason="unknown score: no usable log-probabilities")
        straight_up = self.straight_up is not None and found < self.straight_up
        if self.threshold is None:
            reason = f"score {found:.3g}; this tier accepts no answer"
            return Verdict(accepted=False, confidence=found, reason=reason, straight_up=straight_up)
        accepted = found >= self.threshold
        reason = f"score {found:.3g} {'>=' if accepted else '<'} {self.threshold:.3g}"
        return Verdict(accepted, found, reason, straight_up=straight_up and not accepted)

    def _score_of(self, sample: Sample) -> float | None:
        if self.score is not None:
            return self.score.probability(signal_of(sample))
        return sample.score if sample.score is not None and math.isfinite(sample.score) else None

    def watch(self, longest: int) -> ScoreWatch:
        """Follow an answer of at most so many tokens."""
        return ScoreWatch(self, longest)

    def __repr__(self) -> str:
        return "accepts nothing" if self.threshold is None else f"score >= {self.threshold:.3g}"


class ScoreWatch:
    """See `ScoreAcceptance.watch`.

    If very low scores escalate directly to the last tier, an answer is aborted only when that is certain: with a higher
    score it would reach the next tier, and that tier's guarantee includes such requests.
    """

    def __init__(self, acceptance: ScoreAcceptance, longest: int) -> None:
        self._score = acceptance.score
        self._straight_up = acceptance.straight_up is not None
        limits = [limit for limit in (acceptance.threshold, acceptance.straight_up) if limit is not None]
        self._limit = min(limits, default=math.inf)
        self._prefix = Prefix(longest)

    def hear(self, tokens: Sequence[TokenLogprob]) -> Verdict | None:
        """Add tokens; return the verdict as soon as it is certain that the score will be too low, else None."""
        if self._score is None:
            return None
        self._prefix.hear(tokens)
        ranges = self._prefix.ranges(self._score.features)
        if ranges is None:
            return None
        best = self._score.highest(ranges)
        if best >= self._limit:
            return None
        return Verdict(accepted=False, reason=f"score at most {best:.3g} < {self._limit:.3g}", straight_up=self._straight_up)


@dataclass(frozen=True, slots=True)
class Suspended:
    """Accept nothing, because no certificate covers the request."""

    reason: str

    def __call__(self, samples: Sequence[Sample]) -> Verdict:
        """Reject the answer."""
        return Verdict(accepted=False, reason=self.reason)

    def __repr__(self) -> str:
        return f"accepts nothing: {self.reason}"
