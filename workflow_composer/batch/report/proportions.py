"""Intervals and tests for shares of questions: closed forms that hold with few questions and near 0 and 1.

**Assumption.** The questions are an independent random sample of the population of interest.

- A share (right, accepted, unreadable): Wilson's score interval (Wilson 1927), recommended for all sizes by Brown, Cai and
  DasGupta (2001). Its coverage is near 95 % on average; the percentile bootstrap has no width at 0 and 1.
- The difference of two shares over the same questions: the adjusted Wald interval for paired shares (Bonett and Price 2012).
- Whether two runs differ: the exact test of McNemar (1947) on the questions that only one of them has right: under the null
  hypothesis each is equally likely to be either's. It never rejects more often than its level. p-values of several
  comparisons are adjusted by Holm's (1979) step-down method, which bounds the probability of any false finding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

from workflow_composer.batch.report.statistics import IntervalEstimate

LEVEL = 0.95
_LARGE = 2000
"""Above this number of questions the exact test's binomial is replaced by its normal limit, with continuity correction."""


def share_of(count: float, of: float, level: float = LEVEL) -> IntervalEstimate:
    """Return a share with Wilson's interval; NaN without questions.

    >>> [round(number, 3) for number in share_of(20, 20)]
    [1.0, 0.839, 1.0]
    """
    if not of:
        return IntervalEstimate(math.nan, math.nan, math.nan)
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, spread = count / of, z * z / of
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / of + spread / (4 * of))
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return IntervalEstimate(share, 0.0 if count == 0 else low, 1.0 if count == of else high)


def paired_difference(first_only: float, second_only: float, of: float, level: float = LEVEL) -> IntervalEstimate:
    """Return the first run's share minus the second's, with its interval.

    ``first_only`` and ``second_only`` count the questions, of ``of``, that only one of the two has right.

    >>> [round(number, 3) for number in paired_difference(10, 2, 50)]
    [0.16, 0.019, 0.289]
    """
    if not of:
        return IntervalEstimate(math.nan, math.nan, math.nan)
    one, other = (first_only + 1) / (of + 2), (second_only + 1) / (of + 2)
    z = NormalDist().inv_cdf((1 + level) / 2)
    half = z * math.sqrt((one + other - (one - other) ** 2) / (of + 2))
    return IntervalEstimate((first_only - second_only) / of, max(-1.0, one - other - half), min(1.0, one - other + half))


def mcnemar(first_only: int, second_only: int) -> float:
    """Return the two-sided p-value of McNemar's exact test: 1 if neither run has a question right that the other misses.

    >>> round(mcnemar(10, 2), 4), mcnemar(3, 3), mcnemar(0, 0)
    (0.0386, 1.0, 1.0)
    """
    differing, fewer = first_only + second_only, min(first_only, second_only)
    if differing == 0:
        return 1.0
    if differing > _LARGE:
        return 2 * NormalDist().cdf(min(0.0, (fewer + 0.5 - differing / 2) / math.sqrt(differing / 4)))
    tail = sum(math.comb(differing, count) for count in range(fewer + 1))
    return min(1.0, 2 * tail / (1 << differing))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for their number, in the same order.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, highest = [1.0] * len(p_values), 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = highest
    return adjusted
