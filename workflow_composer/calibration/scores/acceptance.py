"""Acceptance of an answer from its own tokens: by rules, or by a score with a certified threshold.

Both also work while an answer is streamed: they compute the best value that the complete answer could still reach, so an
answer is aborted early only if it would be rejected in the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from workflow_composer.calibration.scores.scores import ScoreModel
from workflow_composer.calibration.scores.signals import FLOOR, VOCABULARY, FeedbackRules, FeedbackSignal, analyze, signal_of
from workflow_composer.types import Sample, TokenLogprob, Verdict

# ------------------------------------------------------------------------------------------------------------------ prefix
#
# The prefix of a streamed answer: bounds of each feature of the complete answer.
#
# For an answer with n tokens so far and at most N in the end, sums over tokens are known in part. The remaining tokens are
# at best certain (log-probability 0, entropy 0, margin 1) and at worst the opposite; the bounds of a mean use the most
# favorable length. This assumes that later tokens carry the same information as earlier ones: a server that returns
# alternatives for the first token returns them for all.


Range = tuple[float, float]


_EXTREMES: dict[str, Range] = {
    "mean_logprob": (FLOOR, 0.0),
    "binary_entropy": (0.0, 1.0),
    "entropy": (0.0, math.log(VOCABULARY)),
    "margin": (0.0, 1.0),
    "tail_mass": (0.0, 1.0),
}
"""Features that are means over tokens -> range of one token's contribution."""
_ROUNDING = 1e-9
"""Tolerance for rounding: the sum of partial sums can differ from the total."""


class Prefix:
    """The tokens received so far, of an answer of at most ``longest`` tokens."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._count = 0
        self._known = True
        self._lacking: set[str] = set()
        self._least = 0.0
        self._low = 0
        self._sums = dict.fromkeys(_EXTREMES, 0.0)
        self._least_margin = 1.0

    def hear(self, tokens: Sequence[TokenLogprob]) -> None:
        """Add the next tokens."""
        heard = analyze([token.logprob for token in tokens], [[value for _, value in token.top] for token in tokens])
        if heard.kind == "unknown":
            self._known = False
            return
        count = heard.token_count
        self._count += count
        self._low += heard.low_confidence_tokens
        self._least = min(self._least, heard.min_logprob or 0.0)
        for name in self._sums:
            value = getattr(heard, name)
            if value is None:
                self._lacking.add(name)
            else:
                self._sums[name] += value * count
        self._least_margin = min(self._least_margin, 1.0 if heard.min_margin is None else heard.min_margin)

    def best_case(self) -> FeedbackSignal | None:
        """Return the most confident signal that the complete answer could have; None if it is unknown."""
        if not self._known or not self._count:
            return None
        most, spread = max(self._longest, self._count), "entropy" not in self._lacking
        share = (1.0 - _ROUNDING) / most
        return FeedbackSignal(
            "distribution" if spread else "surprisal",
            token_count=self._count,
            mean_logprob=self._sums["mean_logprob"] * share,
            min_logprob=self._least,
            binary_entropy=self._sums["binary_entropy"] * share,
            low_confidence_tokens=self._low,
            low_confidence_ratio=self._low / most,
            entropy=self._sums["entropy"] * share if spread else None,
        )

    def ranges(self, features: Sequence[str]) -> list[Range] | None:
        """Return the range of each feature of the complete answer; None if one is unknown."""
        if not self._known or not self._count:
            return None
        found: list[Range] = []
        for name in features:
            between = self._range(name)
            if between is None:
                return None
            low, high = between
            found.append((low - _ROUNDING * (1.0 + abs(low)), high + _ROUNDING * (1.0 + abs(high))))
        return found

    def _range(self, name: str) -> Range | None:
        count, most = self._count, max(self._longest, self._count)
        if name in self._lacking or (name == "min_margin" and "margin" in self._lacking):
            return None
        if name in _EXTREMES:
            return self._mean(self._sums[name], *_EXTREMES[name])
        if name.startswith("logprob_q"):
            return (FLOOR, 0.0)
        known: dict[str, Range] = {
            "log_length": (math.log(count), math.log(most)),
            "sequence_logprob": (FLOOR * most, self._sums["mean_logprob"]),
            "min_logprob": (FLOOR, self._least),
            "low_confidence_ratio": self._mean(self._low, 0.0, 1.0),
            "min_margin": (0.0, self._least_margin),
        }
        return known.get(name)

    def _mean(self, total: float, low: float, high: float) -> Range:
        """The range of the mean if each further token contributes between ``low`` and ``high``."""
        most = max(self._longest, self._count)
        now, left = total / self._count, most - self._count
        return min(now, (total + low * left) / most), max(now, (total + high * left) / most)


@dataclass(frozen=True, slots=True)
class RuleAcceptance:
    """Accept an answer that no rule flags as doubtful; the confidence is its probability per token.

    ``accept_unknown``: accept answers without log-probabilities; their confidence is unknown either way.
    ``final``: accept every answer, since this is the last tier.
    """

    rules: FeedbackRules
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

    def __init__(self, rules: FeedbackRules, longest: int) -> None:
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
