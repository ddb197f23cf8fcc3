"""Confidence of a vote in its leader: four measures between 0 and 1. Pure functions; no scipy.

``votes`` are the samples' groups, as in `workflow_composer.execution.voting.stopping`: numbered from 0 by first appearance,
-1 for a sample that could not be read. ``weights`` has one entry per vote; None means equal weights. For `logprob`, a weight
is exp(mean log-probability of the sample's tokens), or None if that is unknown. `posterior` ignores weights.

============ ==================================================================== ==================================
measure      formula, for n samples of which n_i gave answer i                    an unreadable sample
============ ==================================================================== ==================================
`share`      n_leader / n;  with weights W_leader / W                             counts against the leader
`entropy`    1 - H / log n,  H = -sum of (n_i / n) log(n_i / n)                   is a separate answer
`posterior`  P(p_leader > every other p_i | votes), uniform prior                 is ignored
`logprob`    weight of the leader's votes / weight of all votes                   counts against the leader
============ ==================================================================== ==================================

W_i is the weight of all votes for answer i, and W the weight of all votes; with weights, `entropy` uses W_i / W for n_i / n.

No measure is the probability that the answer is right: a model can agree with itself and be wrong. The result is None
(unknown, never confident) for a single sample, which has no other to agree with, and for `logprob` with a missing weight. It
is 0 if no sample could be read.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from workflow_composer.errors import ConfigError
from workflow_composer.execution.voting.stopping import UNREADABLE

Weights = Sequence[float | None]

_MOST_FOR_A_POSTERIOR = 40
"""Votes for one answer from which the posterior, 1 - 2**-(votes + 1), is 1 as far as numbers show."""


def confidence(measure: str, votes: Sequence[int], weights: Weights | None = None) -> float | None:
    """Return the confidence in the leader by this measure, between 0 and 1, or None if it is unknown.

    Raises `ConfigError` for an unknown measure.

    >>> confidence("share", [0, 0, 1, -1]), confidence("share", [0]), confidence("share", [-1])
    (0.5, None, 0.0)
    >>> round(confidence("posterior", [0, 0, 0, 1]), 3)
    0.779
    >>> confidence("share", [0, 1, 1], weights=[3.0, 0.5, 0.5])
    0.75
    """
    if measure not in _MEASURES:
        raise ConfigError(f"unknown confidence measure {measure!r}", hint=f"known: {', '.join(_MEASURES)}")
    readable = [vote for vote in votes if vote != UNREADABLE]
    if not readable:
        return 0.0
    if len(votes) == 1:
        return None
    if measure == "logprob" or (measure == "share" and weights is not None):
        return _share_of_weight(votes, weights)
    if measure == "entropy" and weights is not None:
        return _entropy_of_weight(votes, weights)
    return _MEASURES[measure](votes, Counter(readable))


def highest(measure: str, votes: int) -> float | None:
    """Return the largest confidence that this many votes can reach, which is that of votes for one answer.

    None if nothing bounds it: a score is the model's own, and a single vote has no confidence.

    >>> highest("share", 4), highest("posterior", 2), highest("score", 4)
    (1.0, 0.875, None)
    """
    if measure == "score" or votes < 2:
        return None
    return round(confidence(measure, [0] * votes) or 0.0, 9) if measure == "posterior" else 1.0


def fewest(measure: str, target: float) -> int | None:
    """Return the smallest number of votes that can reach this target; None if no number can.

    >>> fewest("share", 0.75), fewest("posterior", 0.95), fewest("share", 1.5)
    (2, 4, None)
    """
    return next((votes for votes in range(2, _MOST_FOR_A_POSTERIOR) if (highest(measure, votes) or 0.0) >= target), None)


def leader(votes: Sequence[int], weights: Weights | None = None) -> int | None:
    """Return the leading group, the earliest on a tie; None if no sample could be read.

    By weight if every vote has one, else by count.

    >>> leader([0, 1, 1, 0]), leader([0, 1, 1], weights=[0.9, 0.3, 0.4]), leader([-1])
    (0, 0, None)
    """
    by_group = totals(votes, weights if weights is not None and _all_known(weights) else [1.0] * len(votes))
    return max(by_group, key=by_group.__getitem__, default=None)


def _share(votes: Sequence[int], counts: Counter[int]) -> float:
    return max(counts.values()) / len(votes)


def _entropy(votes: Sequence[int], counts: Counter[int]) -> float:
    """1 if all samples agree, 0 if no two do: one minus Shannon's entropy over its maximum for this number of samples."""
    total = len(votes)
    alone = total - sum(counts.values())
    surprise = sum(count * math.log(total / count) for count in counts.values()) + alone * math.log(total)
    return min(1.0, max(0.0, 1 - surprise / (total * math.log(total))))


def _posterior(votes: Sequence[int], counts: Counter[int]) -> float:
    """Return the probability that the leader is the mode of the model's answer distribution, given the readable votes.

    Prior: uniform (Dirichlet with all parameters 1) over the answers seen and one more, which represents all unseen answers.
    The posterior's parameters are n_i + 1, and 1 for the unseen one. See `most_likely`.
    """
    first, *others = sorted(counts.values(), reverse=True)
    return most_likely(first + 1, (*(count + 1 for count in others), 1))


def _share_of_weight(votes: Sequence[int], weights: Weights | None) -> float | None:
    if weights is None or not _all_known(weights):
        return None
    whole = math.fsum(weight for weight in weights if weight is not None)
    return min(1.0, max(totals(votes, weights).values()) / whole) if whole > 0 else None


def _entropy_of_weight(votes: Sequence[int], weights: Weights) -> float | None:
    """`_entropy` with weights; equal weights give the same result."""
    if not _all_known(weights):
        return None
    alone = [weight for vote, weight in zip(votes, weights, strict=True) if vote == UNREADABLE]
    parts = [weight for weight in (*totals(votes, weights).values(), *alone) if weight]
    whole = math.fsum(parts)
    surprise = math.fsum(part / whole * math.log(whole / part) for part in parts)
    return min(1.0, max(0.0, 1 - surprise / math.log(len(votes))))


_MEASURES = {"share": _share, "entropy": _entropy, "posterior": _posterior, "logprob": _share}


def _all_known(weights: Weights) -> bool:
    return all(weight is not None and 0 <= weight < math.inf for weight in weights)


def totals(votes: Sequence[int], weights: Weights) -> dict[int, float]:
    """Return the weight of each group, in the order of first appearance."""
    parts: dict[int, list[float]] = {}
    for vote, weight in zip(votes, weights, strict=True):
        if vote != UNREADABLE:
            parts.setdefault(vote, []).append(weight or 0.0)
    return {vote: math.fsum(weights) for vote, weights in parts.items()}


@lru_cache(maxsize=8192)
def most_likely(a: int, others: tuple[int, ...]) -> float:
    """P(X_0 > all others), for (X_0, X_1, …) from a Dirichlet distribution with whole parameters ``a`` and ``others``.

    The shares are independent gamma variables G_i, of shapes ``a`` and ``others``, over their sum; so this is the integral
    of G_0's density times the other variables' distribution functions. With x = exp(t) the integrand is analytic and falls
    off exponentially on both sides, and the trapezoidal rule converges exponentially (Trefethen and Weideman 2014). With
    steps of at most half of G_0's standard deviation in t, the error is below 1e-9 for parameters up to 10,000.
    """
    shapes = Counter(others)
    top = max(shapes, default=1)
    step = min(0.1, 0.5 / math.sqrt(max(a, top)))
    start, end = (math.lgamma(a) - 42.0) / a, math.log(a + 12.0 * math.sqrt(a) + 40.0)
    total = 0.0
    for i in range(math.ceil((end - start) / step) + 1):
        x = math.exp(start + i * step)
        density = math.exp(a * math.log(x) - x - math.lgamma(a))
        if density > 1e-18:
            total += density * _all_below(x, shapes, top)
    return min(1.0, total * step)


def _all_below(x: float, shapes: Counter[int], top: int) -> float:
    """P(all G_i < x), for gamma variables of whole shapes: G of shape s exceeds x where a Poisson(x) count is below s."""
    product, exceeds, log_x = 1.0, 0.0, math.log(x)
    for shape in range(1, top + 1):
        exceeds += math.exp((shape - 1) * log_x - x - math.lgamma(shape))
        if shape in shapes:
            product *= max(0.0, 1.0 - exceeds) ** shapes[shape]
    return product
