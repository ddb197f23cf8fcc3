"""Watching the error of accepted answers while they are served: a test that may be looked at after every audit, for ever.

An *audit* is an accepted answer that was drawn at random and then graded, right or wrong. The hypothesis under test is what
the certificate claims: whatever has happened so far, the next audited answer is wrong with probability at most ``alpha``.

**The evidence** is a mixture of likelihood ratios. For an alternative q > alpha an audit multiplies by q / alpha where the
answer is wrong and by (1 - q) / (1 - alpha) where it is right; under the hypothesis that factor's expectation is at most 1,
as it grows with the chance of a wrong answer and is exactly 1 at alpha. So each product is a nonnegative supermartingale,
and so is their mixture over a fixed grid of alternatives (nobody knows how bad it will be) and over the audit at which the
product starts (nobody knows when). Its value is the *e-value*, 1 at the beginning.

**The guarantee**: by Ville's inequality P(the e-value ever reaches 1 / level) <= level while the hypothesis holds. The
number of audits need not be fixed in advance, and looking often costs nothing. It assumes that audits are drawn at random
among accepted answers, and that whether and when one is graded does not depend on whether it is right. An audit may have a
limit of its own in alpha's place, where its grader is known to err: the expectation above is at most 1 for each audit by
itself.

References: Ville 1939; Howard, Ramdas, McAuliffe and Sekhon 2021 (time-uniform bounds); Shin, Ramdas and Rinaldo 2022
(mixtures over starts against a late change). Standard library only: it runs while requests are served.
"""

from __future__ import annotations

import math
from functools import lru_cache

from workflow_composer.errors import ConfigError

ODDS_RATIOS = (1.25, 1.5, 2.0, 3.0, 4.5, 7.0, 12.0, 25.0)
"""The alternatives: odds of a wrong answer, as multiples of alpha's odds. So they lie between alpha and 1 for any alpha."""

_MOST = 1e300
"""Sums are held below this so that none becomes infinite. Less evidence than there is keeps the guarantee."""

_POOLED = 0.5


def weight_to_come(audits: int) -> float:
    """The share of the mixture that starts after so many audits: 1 / log2(audits + 2).

    It falls so slowly that a change after a thousand audits still finds weight to start with: audit n has about
    ln 2 / (n ln² n), where the simplest choice, 1 / (n (n + 1)), would have left it a fifteenth of that at n = 1,000.

    >>> weight_to_come(0), weight_to_come(2), round(weight_to_come(1000), 3)
    (1.0, 0.5, 0.1)
    """
    return 1.0 / math.log2(audits + 2)


class RiskMonitor:
    """One anytime-valid test of "at most a share ``alpha`` of the audited answers is wrong".

    ``alpha``: the certified risk. ``level``: the largest acceptable probability of ever giving a false alarm. Raises
    `ConfigError` where either is not strictly between 0 and 1. An update takes the same short time after any number of them.

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
        """The audit (counted from 1) at which the alarm was raised; None where it was not."""

    def observe(self, wrong: bool, limit: float | None = None) -> None:
        """Take one audit. ``limit``: how likely it may be found wrong, where not alpha; from 1 on it is no evidence."""
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
        """The evidence against the hypothesis now: 1 is none, 1 / level raises the alarm."""
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
        """The evidence against the claim now: 1 is none, 1 / level raises the alarm."""
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
    """What each alternative multiplies by: where the answer is right, and where it is wrong."""
    odds = [alpha / (1 - alpha) * ratio for ratio in ODDS_RATIOS]
    alternatives = [o / (1 + o) for o in odds]
    return tuple((1 - q) / (1 - alpha) for q in alternatives), tuple(q / alpha for q in alternatives)


def _share(name: str, value: float) -> float:
    if isinstance(value, bool) or not 0 < value < 1:
        raise ConfigError(f"{name} is {value!r}", hint="a number between 0 and 1, without either")
    return float(value)
