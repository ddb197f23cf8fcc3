"""Sequential monitoring of the error of accepted answers: an anytime-valid test, evaluated after every audit.

An *audit* is an accepted answer that was drawn at random and graded as right or wrong. The null hypothesis is the
certificate's guarantee: given the past, the next audited answer is wrong with probability at most ``alpha``.

**Test statistic**: a mixture of likelihood ratios. For an alternative q > alpha, an audit multiplies by q / alpha if the
answer is wrong and by (1 - q) / (1 - alpha) if it is right. Under the null hypothesis the expectation of this factor is at
most 1, since it increases with the probability of a wrong answer and is exactly 1 at alpha. So each product is a nonnegative
supermartingale, and so is their mixture over a fixed grid of alternatives (the size of the deviation is unknown) and over
the audit at which the product starts (the time of a change is unknown). Its value is the *e-value*, initially 1.

**Guarantee**: by Ville's inequality, P(the e-value ever reaches 1 / level) <= level under the null hypothesis. The number of
audits need not be fixed in advance, and the test may be evaluated at any time. Assumptions: audits are drawn at random among
accepted answers, and whether and when one is graded does not depend on whether it is right. An audit may have its own limit
in place of alpha if its grader is known to err, since the expectation above is at most 1 for each audit.

References: Ville 1939; Howard, Ramdas, McAuliffe and Sekhon 2021 (time-uniform bounds); Shin, Ramdas and Rinaldo 2022
(mixtures over starts against a late change). Standard library only: it runs while requests are served.
"""

from __future__ import annotations

import math
from functools import lru_cache

from workflow_composer.errors import ConfigError

ODDS_RATIOS = (1.25, 1.5, 2.0, 3.0, 4.5, 7.0, 12.0, 25.0)
"""The alternatives as multiples of alpha's odds, so that they lie between alpha and 1 for any alpha."""

_MOST = 1e300
"""Upper limit of the sums, to avoid infinity. Reducing the evidence keeps the guarantee."""

_POOLED = 0.5


def weight_to_come(audits: int) -> float:
    """Return the mixture's weight of products that start after ``audits`` audits: 1 / log2(audits + 2).

    It decreases slowly, so that a change after a thousand audits is still detected: audit n has weight of about
    ln 2 / (n ln² n), fifteen times that of the simplest choice, 1 / (n (n + 1)), at n = 1,000.

    >>> weight_to_come(0), weight_to_come(2), round(weight_to_come(1000), 3)
    (1.0, 0.5, 0.1)
    """
    return 1.0 / math.log2(audits + 2)


class RiskMonitor:
    """One anytime-valid test of "at most a share ``alpha`` of the audited answers is wrong".

    ``alpha``: the certified risk. ``level``: upper bound of the probability of ever raising a false alarm. Raises
    `ConfigError` unless both are strictly between 0 and 1. An update takes constant time.

    >>> monitor = RiskMonitor(alpha=0.1)
    >>> for wrong in [True] * 4:
    ...     monitor.observe(wrong)
    >>> monitor.alarmed, monitor.alarm_at, monitor.e_value > 20
    (True, 3, True)
    """

    def __init__(self, alpha: float, level: float = 0.05) -> None:
        self.alpha = _share("alpha", alpha)
        self.level = _share("level", level)
        self._sums = [0.0] * len(ODDS_RATIOS)
        self._to_come = 1.0
        self.audits = 0
        """Audits so far."""
        self.wrong = 0
        """How many of them were wrong."""
        self.alarm_at: int | None = None
        """The audit (counted from 1) at which the alarm was raised; None without an alarm."""

    def observe(self, wrong: bool, limit: float | None = None) -> None:
        """Add one audit. ``limit`` replaces alpha for this audit; a limit of 1 or more makes it no evidence."""
        limit = self.alpha if limit is None else limit
        if limit >= 1:
            return
        self.audits += 1
        self.wrong += wrong
        left = weight_to_come(self.audits)
        starting, self._to_come = self._to_come - left, left
        factors = _factors(limit)[wrong]
        self._sums = [min(_MOST, (total + starting) * by) for total, by in zip(self._sums, factors, strict=True)]
        if self.alarm_at is None and self.e_value >= 1 / self.level:
            self.alarm_at = self.audits

    @property
    def e_value(self) -> float:
        """The current evidence against the null hypothesis: 1 is none, 1 / level raises the alarm."""
        return sum(self._sums) / len(self._sums) + self._to_come

    @property
    def alarmed(self) -> bool:
        """Whether the alarm was raised at any audit. It stays raised: the evidence counted when it was there."""
        return self.alarm_at is not None

    @property
    def error(self) -> float | None:
        """The share of wrong answers among the audits so far; None before the first."""
        return self.wrong / self.audits if self.audits else None

    def audits_to_alarm(self, error: float, after: int = 0) -> float:
        """About how many audits it takes until the alarm, if a share ``error`` is wrong from audit ``after`` + 1 on.

        The evidence of one alternative q grows by the factor exp(d) per audit, where
        d = error log(q / alpha) + (1 - error) log((1 - q) / (1 - alpha)), and has to make up for the level, for the number
        of alternatives and for the weight of the starts in time, those in the first 1 / d audits. So this is the least over
        q of (log(1 / level) + log(alternatives) - log(weight)) / d; infinite where no alternative gains, as for errors up to
        alpha. It leaves out what the other alternatives and starts add, so the alarm mostly comes somewhat earlier.
        """
        pairs = zip(*_factors(self.alpha), strict=True)
        drift = max(error * math.log(bad) + (1 - error) * math.log(good) for good, bad in pairs)
        if drift <= 0:
            return math.inf
        weight = weight_to_come(after) - weight_to_come(after + math.ceil(1 / drift))
        return (math.log(len(self._sums) / self.level) - math.log(weight)) / drift


class StratifiedMonitor:
    """The same test for all audits together and for each stratum (a tier of a group, say), as the certificate promises both.

    A stratum that goes bad is seen although others hide it in the whole. Each has a `RiskMonitor` of its own that sees its
    own audits only; the e-value is their weighted mean: half the weight is that of the whole, and the k-th stratum to appear
    has 1 / (k (k + 1)) of the other half, given to it before its first audit is looked at. So the mean is a supermartingale
    that starts at 1, too, and P(ever an alarm) <= level holds while alpha is kept in every stratum. It makes no difference
    how many strata there are or whether they were known beforehand.

    >>> monitor = StratifiedMonitor(alpha=0.1)
    >>> for at in range(300):
    ...     monitor.observe(wrong=at % 10 == 0, stratum="small/rare" if at % 10 == 0 else "small/common")
    >>> monitor.error, monitor.whole.alarmed, monitor.alarmed, monitor.worst
    (0.1, False, True, 'small/rare')
    """

    def __init__(self, alpha: float, level: float = 0.05) -> None:
        self.whole = RiskMonitor(alpha, level)
        self.strata: dict[str, RiskMonitor] = {}
        """By name, in the order of their first audits."""
        self.alarm_at: int | None = None
        """The audit (counted from 1, over all strata) at which the alarm was raised; None where it was not."""

    def observe(self, wrong: bool, stratum: str, limit: float | None = None) -> None:
        """Take one audit of a stratum; ``limit`` as in `RiskMonitor.observe`."""
        self.whole.observe(wrong, limit)
        if stratum not in self.strata:
            self.strata[stratum] = RiskMonitor(self.alpha, self.level)
        self.strata[stratum].observe(wrong, limit)
        if self.alarm_at is None and self.e_value >= 1 / self.level:
            self.alarm_at = self.audits

    @property
    def e_value(self) -> float:
        """The current evidence against the guarantee: 1 is none, 1 / level raises the alarm."""
        shares = [(1 - _POOLED) / (k * (k + 1)) for k in range(1, len(self.strata) + 1)]
        values = [share * monitor.e_value for share, monitor in zip(shares, self.strata.values(), strict=True)]
        return _POOLED * self.whole.e_value + sum(values) + 1 - _POOLED - sum(shares)

    @property
    def worst(self) -> str | None:
        """The stratum with the most evidence against it; None before the first audit."""
        return max(self.strata, key=lambda name: self.strata[name].e_value, default=None)

    @property
    def alpha(self) -> float:
        """The certified risk."""
        return self.whole.alpha

    @property
    def level(self) -> float:
        """The largest probability of ever giving a false alarm."""
        return self.whole.level

    @property
    def audits(self) -> int:
        """Audits so far."""
        return self.whole.audits

    @property
    def wrong(self) -> int:
        """How many of them were wrong."""
        return self.whole.wrong

    @property
    def error(self) -> float | None:
        """The share of wrong answers among the audits so far; None before the first."""
        return self.whole.error

    @property
    def alarmed(self) -> bool:
        """Whether the alarm was raised at any audit."""
        return self.alarm_at is not None


@lru_cache(maxsize=256)
def _factors(alpha: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The factors of the alternatives: for a right answer, and for a wrong one."""
    odds = [alpha / (1 - alpha) * ratio for ratio in ODDS_RATIOS]
    alternatives = [o / (1 + o) for o in odds]
    return tuple((1 - q) / (1 - alpha) for q in alternatives), tuple(q / alpha for q in alternatives)


def _share(name: str, value: float) -> float:
    if isinstance(value, bool) or not 0 < value < 1:
        raise ConfigError(f"{name} must be a number between 0 and 1 (exclusive), not {value!r}")
    return float(value)
