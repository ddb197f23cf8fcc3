"""When an answer is accepted, by what its own tokens tell: by rules, or by a score from a certified threshold on.

Both can be asked while the answer comes, too: they then look at the best that could still become of it, so that what is
given up early is only what would have been rejected in the end.
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
    """Accept an answer of which no rule says that it is doubtful; the confidence is its probability per token.

    ``accept_unknown``: whether an answer without log-probabilities is accepted; its confidence is unknown either way.
    ``final``: accept it however doubtful, since nobody else can be asked.
    """

    rules: Rules
    accept_unknown: bool = False
    final: bool = False

    def __call__(self, samples: Sequence[Sample]) -> Verdict:
        """Judge the only sample."""
        signal = signal_of(samples[0], self.rules)
        reason = signal.escalation_reason or "no rule says that it is doubtful"
        if signal.kind == "unknown":
            accepted = self.accept_unknown or self.final
        else:
            accepted = self.final or not signal.should_escalate
        return Verdict(accepted, signal.confidence, f"{reason}; it is the last tier" if self.final else reason)

    def watch(self, longest: int) -> RuleWatch:
        """Follow an answer of at most so many tokens."""
        return RuleWatch(self.rules, longest)

    def __repr__(self) -> str:
        return "always, being last" if self.final else "no rule says that it is doubtful"


class RuleWatch:
    """See `RuleAcceptance.watch`."""

    def __init__(self, rules: Rules, longest: int) -> None:
        self._rules = rules
        self._prefix = Prefix(longest)

    def hear(self, tokens: Sequence[TokenLogprob]) -> Verdict | None:
        """The verdict, as soon as it is certain that the answer is doubtful."""
        self._prefix.hear(tokens)
        best = self._prefix.best_case()
        if best is None:
            return None
        reasons = self._rules.reasons(best)
        return Verdict(accepted=False, reason="; ".join(reasons)) if reasons else None


@dataclass(frozen=True, slots=True)
class ScoreAcceptance:
    """Accept an answer whose score is at least ``threshold`` (None: none is); the confidence is the score.

    ``score`` makes the score of the tokens' signal; None: it is the sample's own. An unknown score is never accepted.
    Below ``straight_up`` the last tier is asked next.
    """

    score: ScoreModel | None
    threshold: float | None
    straight_up: float | None = None

    def __call__(self, samples: Sequence[Sample]) -> Verdict:
        """Judge the only sample."""
        found = self._score_of(samples[0])
        if found is None:
            return Verdict(accepted=False, reason="its score is unknown: no usable log-probabilities")
        straight_up = self.straight_up is not None and found < self.straight_up
        if self.threshold is None:
            reason = f"score {found:.3g}; no answer of this tier is accepted"
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
        return "nothing is accepted" if self.threshold is None else f"score >= {self.threshold:.3g}"


class ScoreWatch:
    """See `ScoreAcceptance.watch`.

    Where very low scores go straight to the last tier, an answer is given up only once that is certain: a higher score
    would send it to another tier, whose certificate counts on getting it.
    """

    def __init__(self, acceptance: ScoreAcceptance, longest: int) -> None:
        self._score = acceptance.score
        self._straight_up = acceptance.straight_up is not None
        limits = [limit for limit in (acceptance.threshold, acceptance.straight_up) if limit is not None]
        self._limit = min(limits, default=math.inf)
        self._prefix = Prefix(longest)

    def hear(self, tokens: Sequence[TokenLogprob]) -> Verdict | None:
        """The verdict, as soon as it is certain that the score will be too low."""
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
    """Accept nothing, for a reason that has nothing to do with the answer: no certificate covers it."""

    reason: str

    def __call__(self, samples: Sequence[Sample]) -> Verdict:
        """Return the answer as one that is not accepted."""
        return Verdict(accepted=False, reason=self.reason)

    def __repr__(self) -> str:
        return f"nothing is accepted: {self.reason}"
