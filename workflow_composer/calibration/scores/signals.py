"""Confidence signals of one answer, from its tokens' log-probabilities. Pure Python, one answer at a time.

Three kinds of signals: with the most likely alternatives of each token (``distribution``), the entropy of the token's
distribution is known within bounds; with the chosen token's log-probability only (``surprisal``), it is not, but the
surprisal of the answer is; without either (``unknown``), nothing is known, which does not count as confidence.

**Bounds of the entropy** (nats) of one token whose k most likely outcomes have the probabilities p_1 >= ... >= p_k; the rest
has the mass r = 1 - sum p. No unseen token is more likely than p_k. The rest contributes least if it is as concentrated as
possible (floor(r / p_k) tokens of p_k and one with the remainder), and most if it is spread evenly over the vocabulary:
r log((V - k) / r). Both follow from the concavity of -p log p.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from workflow_composer.calibration.scores.token_forms import read_alternatives, read_logprobs
from workflow_composer.errors import InvalidProbability
from workflow_composer.support.fast_dataclass import quick
from workflow_composer.types import Sample

VOCABULARY = 2**18
"""Size of the largest common vocabularies; if the model's is smaller, the upper bound is slightly too high."""
FLOOR = -100.0
"""Lower limit of log-probabilities: servers return -9999 or minus infinity for impossible tokens."""
LOW_CONFIDENCE = 0.5
"""A token less likely than this has low confidence."""
HEAVY_TAIL = 0.01
"""Unseen probability of a token above which its entropy counts as uncertain."""
QUANTILES = (0.05, 0.25, 0.5)

_ROUNDING = 1e-6

Kind = Literal["distribution", "surprisal", "unknown"]


@quick
@dataclass(frozen=True, slots=True)
class FeedbackSignal:
    """Signals of an answer's tokens. None: unknown. Means are over tokens; log-probabilities and entropies are in nats.

    ``entropy`` is the upper bound of the mean entropy of the tokens' distributions (``entropy_bound`` is "upper"), so that
    unseen mass counts as doubt; ``entropy_low`` and ``entropy_high`` are both bounds. ``heavy_tails`` counts tokens with
    more than 1 % unseen probability, ``tail_mass`` is the mean unseen probability. ``binary_entropy`` (bits, at most 1) is
    that of "the chosen token or another". ``surprisal`` is minus ``mean_logprob``. ``margin`` is the probability of the most
    likely token minus that of the second. ``low_confidence_tokens`` counts tokens less likely than 0.5.
    """

    kind: Kind
    token_count: int = 0
    mean_logprob: float | None = None
    min_logprob: float | None = None
    sequence_logprob: float | None = None
    log_length: float | None = None
    logprob_q05: float | None = None
    logprob_q25: float | None = None
    logprob_q50: float | None = None
    binary_entropy: float | None = None
    low_confidence_tokens: int = 0
    low_confidence_ratio: float | None = None
    entropy: float | None = None
    entropy_low: float | None = None
    entropy_high: float | None = None
    margin: float | None = None
    min_margin: float | None = None
    tail_mass: float | None = None
    heavy_tails: int = 0
    should_escalate: bool = True
    escalation_reason: str = "no usable log-probabilities: the model's confidence is unknown"

    @property
    def entropy_bound(self) -> str:
        """Which bound ``entropy`` is; empty without an entropy."""
        return "" if self.entropy is None else "upper"

    @property
    def surprisal(self) -> float | None:
        """Mean surprisal of the chosen tokens (nats); it does not need alternatives."""
        return None if self.mean_logprob is None else -self.mean_logprob

    @property
    def confidence(self) -> float | None:
        """Probability per token (geometric mean); None if unknown. Not the probability that the answer is right."""
        return None if self.mean_logprob is None else math.exp(self.mean_logprob)

    @property
    def quantiles(self) -> tuple[float | None, ...]:
        """The tokens' log-probabilities at 5, 25 and 50 %."""
        return (self.logprob_q05, self.logprob_q25, self.logprob_q50)


UNKNOWN = FeedbackSignal("unknown")


@dataclass(frozen=True, slots=True)
class FeedbackRules:
    """Manual limits; an answer beyond any of them is doubtful.

    ``safety_threshold``: minimum `FeedbackSignal.confidence`. ``entropy``: maximum mean entropy in nats (if only surprisals
    are known, of the mean surprisal, which has the same expectation). ``binary_entropy``: maximum, in bits.
    ``min_logprob``: minimum log-probability of any token. ``low_confidence_ratio``: maximum share of low-confidence tokens.
    """

    safety_threshold: float = 0.30
    entropy: float = 2.5
    binary_entropy: float = 0.85
    min_logprob: float = -5.0
    low_confidence_ratio: float = 0.15

    def reasons(self, signal: FeedbackSignal) -> list[str]:
        """Return why the answer is doubtful, each reason with value and limit; empty if no rule flags it."""
        if signal.kind == "unknown":
            return [signal.escalation_reason]
        found: list[str] = []
        _below(found, "confidence per token", signal.confidence, self.safety_threshold)
        if signal.entropy is not None:
            _above(found, "mean entropy", signal.entropy, self.entropy, " nats")
        else:
            _above(found, "mean surprisal", signal.surprisal, self.entropy, " nats")
        _above(found, "mean binary entropy", signal.binary_entropy, self.binary_entropy, " bits")
        _below(found, "lowest log-probability", signal.min_logprob, self.min_logprob)
        _above(found, "share of low-confidence tokens", signal.low_confidence_ratio, self.low_confidence_ratio)
        return found

    def analyze(self, logprobs: Any, top: Sequence[Sequence[float]] | None = None) -> FeedbackSignal:
        """Return the signal of an answer that is there already, and whether it is doubtful under these rules.

        ``logprobs``: log-probabilities (nats) of the chosen tokens, as numbers, or in the form in which OpenAI, vLLM or this
        package returns them (`token_forms.read_logprobs`). ``top``: for each token those of the likeliest alternatives, if
        ``logprobs`` does not have them. Without tokens the signal is unknown, which is doubtful. Raises
        `InvalidProbability`, a `ValueError`, if they are no log-probabilities.

        >>> FeedbackRules().analyze([-0.1, -0.2]).should_escalate, FeedbackRules().analyze([-6.0]).should_escalate
        (False, True)
        """
        found = read_logprobs(logprobs)
        if found is None:
            return UNKNOWN
        values, tops = found
        if top is not None:
            tops = read_alternatives(top, len(values))
        return analyze(values, tops, self)


DEFAULT_RULES = FeedbackRules()


def _below(found: list[str], name: str, value: float | None, limit: float) -> None:
    if value is not None and value < limit:
        found.append(f"{name} {value:.3g} < {limit:g}")


def _above(found: list[str], name: str, value: float | None, limit: float, unit: str = "") -> None:
    if value is not None and value > limit:
        found.append(f"{name} {value:.3g}{unit} > {limit:g}")


# ------------------------------------------------------------------------------------------------------------- analysis


def signal_of(sample: Sample, rules: FeedbackRules = DEFAULT_RULES) -> FeedbackSignal:
    """The signal of one sample."""
    tokens = sample.logprobs
    if not tokens:
        return UNKNOWN
    top = [[value for _, value in token.top] for token in tokens]
    return analyze([token.logprob for token in tokens], top, rules)


def analyze(
    logprobs: Sequence[float],
    top: Sequence[Sequence[float]] | None = None,
    rules: FeedbackRules = DEFAULT_RULES,
    *,
    vocabulary: int = VOCABULARY,
) -> FeedbackSignal:
    """The signal of one answer.

    ``logprobs``: of the chosen tokens. ``top``: for each token, the log-probabilities of the most likely ones, in any order;
    the chosen one may be missing if it was less likely. Unless every token has some, only surprisals are known. Without
    tokens, or with invalid log-probabilities (NaN, positive), the signal is unknown.

    >>> analyze([-0.1, -0.7], [[-0.1, -2.5], [-0.7, -0.7]]).kind, analyze([-0.1, -0.7]).kind, analyze([]).kind
    ('distribution', 'surprisal', 'unknown')
    >>> analyze([-6.0, -0.1]).escalation_reason
    'confidence per token 0.0474 < 0.3; mean surprisal 3.05 nats > 2.5; lowest log-probability -6 < -5; share of \
low-confidence tokens 0.5 > 0.15'
    """
    count = len(logprobs)
    if not count or any(not isinstance(value, (int, float)) or not value <= _ROUNDING for value in logprobs):
        return UNKNOWN
    chosen = [min(0.0, max(FLOOR, value)) for value in logprobs]
    ordered = sorted(chosen)
    total = math.fsum(chosen)
    low = sum(value < _LOW for value in chosen)
    spread = _spread(chosen, top, vocabulary) if top is not None and len(top) == count and all(top) else None
    entropy_low, entropy_high, margin, min_margin, tail_mass, heavy = spread or (None, None, None, None, None, 0)
    q05, q25, q50 = (_quantile(ordered, share) for share in QUANTILES)
    signal = FeedbackSignal(
        kind="surprisal" if spread is None else "distribution",
        token_count=count,
        mean_logprob=total / count,
        min_logprob=ordered[0],
        sequence_logprob=total,
        log_length=math.log(count),
        logprob_q05=q05,
        logprob_q25=q25,
        logprob_q50=q50,
        binary_entropy=math.fsum(map(binary_entropy, map(math.exp, chosen))) / count,
        low_confidence_tokens=low,
        low_confidence_ratio=low / count,
        entropy=entropy_high,
        entropy_low=entropy_low,
        entropy_high=entropy_high,
        margin=margin,
        min_margin=min_margin,
        tail_mass=tail_mass,
        heavy_tails=heavy,
        should_escalate=False,
        escalation_reason="",
    )
    reasons = rules.reasons(signal)
    return judged(signal, reasons) if reasons else signal


def judged(signal: FeedbackSignal, reasons: Sequence[str]) -> FeedbackSignal:
    """Return the same signal with these reasons for doubt."""
    return replace(signal, should_escalate=bool(reasons), escalation_reason="; ".join(reasons))


_LOW = math.log(LOW_CONFIDENCE)

_Spread = tuple[float, float, float | None, float | None, float, int]


def _spread(chosen: Sequence[float], top: Sequence[Sequence[float]], vocabulary: int) -> _Spread | None:
    """Return mean entropy bounds, mean and minimum margin, mean unseen mass, and the number of heavy tails."""
    lows, highs, margins, tails = [], [], [], []
    for value, values in zip(chosen, top, strict=True):
        if any(not one <= _ROUNDING for one in values):
            return None
        known = sorted((min(0.0, max(FLOOR, one)) for one in values), reverse=True)
        least = known[-1]
        if value < least - _ROUNDING:
            known.append(value)  # the chosen token is not among the most likely ones
        probabilities = [math.exp(one) for one in known]
        rest = max(0.0, 1.0 - math.fsum(probabilities))
        low, high = entropy_bounds(probabilities, rest, math.exp(least), vocabulary)
        lows.append(low)
        highs.append(high)
        tails.append(rest)
        if len(probabilities) > 1:
            margins.append(probabilities[0] - probabilities[1])
    count = len(chosen)
    whole = len(margins) == count
    return (
        math.fsum(lows) / count,
        math.fsum(highs) / count,
        math.fsum(margins) / count if whole else None,
        min(margins) if whole else None,
        math.fsum(tails) / count,
        sum(rest > HEAVY_TAIL for rest in tails),
    )


def entropy_bounds(
    probabilities: Sequence[float], rest: float, largest_unseen: float, vocabulary: int = VOCABULARY
) -> tuple[float, float]:
    """Return lower and upper bound (nats) of the entropy of a distribution with the unseen mass ``rest``.

    ``largest_unseen``: maximum probability of an unseen outcome. ``vocabulary``: number of outcomes, seen and unseen.

    >>> [round(bound, 3) for bound in entropy_bounds([0.5, 0.3], 0.2, 0.3, vocabulary=4)]
    [1.03, 1.168]
    """
    known = -math.fsum(p * math.log(p) for p in probabilities if p > 0.0)
    if rest <= 0.0:
        return known, known
    unseen = max(1, vocabulary - len(probabilities))
    high = known + rest * math.log(unseen / rest)
    # With rounded probabilities, the rest can exceed what the unseen outcomes can hold; then assign all of it to one.
    held = math.floor(rest / largest_unseen) if largest_unseen * unseen >= rest else 0
    left = rest - held * largest_unseen
    low = known - (held * largest_unseen * math.log(largest_unseen) if held else 0.0)
    if left > 0.0:
        low -= left * math.log(left)
    return min(low, high), high


def token_entropy(probabilities: Sequence[float], vocabulary: int = VOCABULARY) -> float:
    """Return the entropy (nats) of a token's distribution, of which these probabilities are known.

    If they do not add up to 1, it is the upper bound: the rest is spread over the vocabulary. Of an empty list nothing is
    known, so it has the largest entropy that there is, log(vocabulary). Raises `InvalidProbability`, a `ValueError`, for a
    number outside 0 to 1, and for probabilities that add up to more than 1.

    >>> round(token_entropy([0.5, 0.5]), 3), round(token_entropy([]), 3), token_entropy([1.0])
    (0.693, 12.477, 0.0)
    """
    known = [probability_of(value, number) for number, value in enumerate(probabilities, start=1)]
    total = math.fsum(known)
    if total > 1.0 + _SUM_ROUNDING:
        raise InvalidProbability(f"the probabilities add up to {total:.6g}", hint="give those of one token's alternatives")
    return max(0.0, entropy_bounds(known, max(0.0, 1.0 - total), min(known, default=1.0), vocabulary)[1])


def probability_of(value: Any, number: int | None = None) -> float:
    """Return a probability as a float. Raises `InvalidProbability` if it is none; ``number`` is its place, from 1."""
    try:
        found = math.nan if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not 0.0 <= found <= 1.0 + _ROUNDING:
        where = "" if number is None else f"value {number}: "
        hint = "of a log-probability, give math.exp(x)" if found < 0.0 else "give numbers between 0 and 1"
        raise InvalidProbability(f"{where}{value!r} is no probability", hint=hint)
    return min(found, 1.0)


_SUM_ROUNDING = 1e-3
"""Servers and half-precision numbers round each probability."""


def binary_entropy(probability: float) -> float:
    """Return the entropy (bits) of an event with this probability: 1 if it is even, 0 if it is certain.

    >>> binary_entropy(0.5), round(binary_entropy(0.9), 3), binary_entropy(1.0)
    (1.0, 0.469, 0.0)
    """
    other = 1.0 - probability
    if probability <= 0.0 or other <= 0.0:
        return 0.0
    return -(probability * math.log2(probability) + other * math.log2(other))


def _quantile(ordered: Sequence[float], share: float) -> float:
    """The quantile of sorted values, with linear interpolation."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    if below + 1 >= len(ordered):
        return ordered[-1]
    return ordered[below] + (place - below) * (ordered[below + 1] - ordered[below])
