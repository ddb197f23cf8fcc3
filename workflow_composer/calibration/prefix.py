"""The prefix of a streamed answer: bounds of each feature of the complete answer.

For an answer with n tokens so far and at most N in the end, sums over tokens are known in part. The remaining tokens are at
best certain (log-probability 0, entropy 0, margin 1) and at worst the opposite; the bounds of a mean use the most favorable
length. This assumes that later tokens carry the same information as earlier ones: a server that returns alternatives for the
first token returns them for all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from workflow_composer.calibration.signals import FLOOR, VOCABULARY, FeedbackSignal, analyze
from workflow_composer.types import TokenLogprob

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
