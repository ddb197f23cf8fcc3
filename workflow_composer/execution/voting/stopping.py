"""When a majority vote may end before all its samples are drawn. Pure functions of the votes; no scipy.

``votes`` are the samples' groups in the order of arrival: groups are numbered from 0 by first appearance, and -1 is a sample
that could not be read and votes for no answer. ``limit`` is the maximum number of samples. The leader is the group with the
most votes, the earliest on a tie.

============ ===================================== ======================================================================
rule         meaning of ``level`` (default)        what a stop implies about the leader
============ ===================================== ======================================================================
`decided`    none                                  certain: it wins the vote of ``limit`` samples too
`beta`       probability (.95)                     a posterior: its share exceeds the runner-up's, given a uniform prior
`window`     length of a window (4)                nothing more than that one window agreed: a heuristic
`sprt`       error of either kind (.05)            a heuristic: Wald's test, on a leader chosen from the same data
`martingale` error over the whole vote (.05)       a guarantee: it is the true mode, whenever the vote is stopped
`fixed`      none                                  nothing: every sample is drawn
============ ===================================== ======================================================================

Every rule except `fixed` also stops when `decided` does. Statements about "the true mode" assume that samples are
independent draws from one distribution, examined in the order in which they were drawn. Samples examined as they finish
violate this slightly: short answers come first.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import ClassVar

from workflow_composer.errors import ConfigError

UNREADABLE = -1
_ROUNDING = 1e-12


class StoppingRule(ABC):
    """Decides after each vote whether to continue. A rule is stateless: it accepts any votes, in any order of calls."""

    name: ClassVar[str]

    @abstractmethod
    def certifies(self, votes: Sequence[int]) -> bool:
        """Whether the rule's own criterion supports the leader, regardless of the number of remaining samples."""

    def stop(self, votes: Sequence[int], limit: int) -> bool:
        """Whether the vote may end now: by the rule, because nothing can change any more, or at the limit."""
        return len(votes) >= limit or self.certifies(votes) or decided(votes, limit)

    def __repr__(self) -> str:
        return self.name


class Decided(StoppingRule):
    """Certainty about the vote: stop when the leader can no longer be overtaken, whatever the remaining samples are.

    Never changes the winner of the vote of ``limit`` samples, and says nothing about the true mode. Assumes nothing.
    """

    name = "decided"

    def certifies(self, votes: Sequence[int]) -> bool:
        """Return False: certainty depends on the limit."""
        return False


class Beta(StoppingRule):
    """A posterior, not a guarantee: stop when P(share > 1/2 | a, b) >= ``level``.

    a and b are the two largest counts, and the share is the leader's among the votes for these two. With a uniform prior
    the posterior is Beta(a + 1, b + 1), so that P = ``beta.sf(0.5, a + 1, b + 1)``, which is exactly the binomial tail
    P(Bin(a + b + 1, 1/2) <= a); it is compared as integers. Because it is checked after every vote, and the leader is
    chosen from the same votes, it errs more often than 1 - ``level`` for unfavourable distributions (close races).

    Source: Adaptive-Consistency, Aggarwal et al., EMNLP 2023.
    """

    name = "beta"

    def __init__(self, level: float = 0.95) -> None:
        self.level = _within(self.name, level, 0.5, 1.0)

    def certifies(self, votes: Sequence[int]) -> bool:
        """Whether the posterior reaches the level."""
        _, first, second = _two_leading(_tally(votes))
        return _beta_reaches(first, second, self.level)


class Window(StoppingRule):
    """A heuristic: stop when all samples of one window agree. ``level`` is the window's length.

    Windows do not overlap; an unreadable sample agrees with nothing. The rule has no error bound: a window of w samples
    agrees by chance on an answer of probability q with probability q**w, independently in each window.

    Source: early-stopping self-consistency (ESC), Li et al., ICLR 2024.
    """

    name = "window"

    def __init__(self, level: float = 4) -> None:
        if not 2 <= level < math.inf or level != int(level):
            raise ConfigError(f"the level of stopping rule 'window' must be an integer of at least 2, not {level!r}")
        self.level = int(level)

    def certifies(self, votes: Sequence[int]) -> bool:
        """Whether one complete window agrees."""
        size = self.level
        for start in range(0, len(votes) - size + 1, size):
            window = votes[start : start + size]
            if window[0] != UNREADABLE and all(vote == window[0] for vote in window):
                return True
        return False


class Sprt(StoppingRule):
    """A heuristic: Wald's sequential probability ratio test of the leader against the runner-up.

    p is the leader's share among the votes for these two. H0: p = 1/2, H1: p = 3/4 (three votes to one). With counts a and
    b, L = a log(3/2) + b log(1/2); H1 is accepted from L >= log((1 - e) / e), H0 from L <= log(e / (1 - e)), where e =
    ``level`` bounds (nearly) both errors. The vote stops in either case: accepting H0 means that the race is too close to
    decide with this number of samples, and does not certify the leader. The bounds hold for a pair of answers fixed in
    advance; here the leader and the runner-up are chosen from the same votes, so the bounds do not apply.

    Source: Wald, Sequential Tests of Statistical Hypotheses, 1945.
    """

    name = "sprt"
    alternative: ClassVar[float] = 0.75

    def __init__(self, level: float = 0.05) -> None:
        self.level = _within(self.name, level, 0.0, 0.5)
        self._bound = math.log((1 - self.level) / self.level)

    def certifies(self, votes: Sequence[int]) -> bool:
        """Whether H1 is accepted."""
        return self._log_ratio(votes) >= self._bound

    def stop(self, votes: Sequence[int], limit: int) -> bool:
        """Stop as every rule does, and also when H0 is accepted."""
        return super().stop(votes, limit) or self._log_ratio(votes) <= -self._bound

    def _log_ratio(self, votes: Sequence[int]) -> float:
        _, first, second = _two_leading(_tally(votes))
        return first * math.log(2 * self.alternative) + second * math.log(2 * (1 - self.alternative))


class Martingale(StoppingRule):
    """A guarantee, valid at any time: P(the leader is ever certified and is not the one true mode) <= ``level``.

    It holds for every distribution over any number of answers, including ties at the top (where every certificate counts as
    wrong), and for every stopping time. Assumption: samples are independent draws from one distribution.

    *Null hypothesis*, for an ordered pair of answers (g, r): p_g <= p_r. Among the votes for g or r, each is for g with
    probability at most 1/2, so for every t in [1/2, 1] the product of 2t (a vote for g) and 2(1 - t) (a vote for r) is a
    nonnegative supermartingale that starts at 1. So is its mixture over t with a density proportional to t**4 on [1/2, 1]:
    with counts a for g and b for r, and N = a + b + 5,

        M(a, b) = 5 S / (31 N C(N - 1, b)),   S = sum of C(N, i) for i <= a + 4   (`evidence`).

    *Theorem* (Ville 1939): a nonnegative supermartingale that starts at 1 ever reaches 1/x with probability at most x.

    *The leader is chosen from the data*, so each answer that might be certified gets a part of the error: the answer with
    the order of appearance g = 0, 1, 2, … gets level_g = ``level`` 2/3**(g + 1); these add up to ``level``. Its counts start
    after its first appearance: given the votes so far, its number is fixed, and Ville's inequality holds for the following
    votes.

    *Rivals, seen or not*: the leader must reach 1/level_g against every rival at the same time. M decreases with b, so the
    rival with the most votes after the leader's first vote is the hardest, and an unseen one (b = 0) the easiest. A wrong
    leader must in particular beat a true mode other than itself, for which the null hypothesis is true. That is one event
    per leader, of probability at most level_g. So no union bound over rivals is needed, and their number may be unknown (an
    intersection-union test).

    Related: Cordero-Encinar and Duncan 2025 (Martingale Majority Certificate); Ota et al. 2026 (the same intersection-union
    test, for an answer fixed in advance).
    """

    name = "martingale"

    def __init__(self, level: float = 0.05) -> None:
        self.level = _within(self.name, level, 0.0, 1.0)

    def certifies(self, votes: Sequence[int]) -> bool:
        """Whether the evidence for the leader is sufficient against every rival."""
        counts = _tally(votes)
        leader, _, _ = _two_leading(counts)
        if leader is None:
            return False
        behind_its_first = _tally(votes[list(votes).index(leader) + 1 :])
        own = behind_its_first.pop(leader, 0)
        hardest = max(behind_its_first.values(), default=0)
        return _proves(own, hardest, list(counts).index(leader), self.level)


class Fixed(StoppingRule):
    """No early stop: always ``limit`` samples, even if the vote is decided."""

    name = "fixed"

    def certifies(self, votes: Sequence[int]) -> bool:
        """Never."""
        return False

    def stop(self, votes: Sequence[int], limit: int) -> bool:
        """Stop only at the limit."""
        return len(votes) >= limit


_WITH_LEVEL: dict[str, type[Beta | Window | Sprt | Martingale]] = {r.name: r for r in (Beta, Window, Sprt, Martingale)}
_WITHOUT_LEVEL: dict[str, type[Decided | Fixed]] = {r.name: r for r in (Decided, Fixed)}


def stopping_rule(name: str, level: float | None = None) -> StoppingRule:
    """Return the rule of this name; ``level`` None selects the rule's default.

    Raises `ConfigError` for an unknown name, for a level out of range, and for a level given to a rule without one.

    >>> stopping_rule("beta").stop([0, 0, 0, 0], limit=40), stopping_rule("beta", 0.99).stop([0, 0, 0, 0], limit=40)
    (True, False)
    """
    if name in _WITH_LEVEL:
        rule = _WITH_LEVEL[name]
        return rule() if level is None else rule(level)
    if name not in _WITHOUT_LEVEL:
        known = ", ".join(sorted([*_WITH_LEVEL, *_WITHOUT_LEVEL]))
        raise ConfigError(f"unknown stopping rule {name!r}", hint=f"known: {known}")
    if level is not None:
        raise ConfigError(f"stopping rule {name!r} has no level", hint="omit the level")
    return _WITHOUT_LEVEL[name]()


def decided(votes: Sequence[int], limit: int) -> bool:
    """Whether the leader wins the vote of ``limit`` samples for all possible remaining samples.

    A tie is won by the group that appeared first.

    >>> decided([0, 0, 1], limit=4), decided([0, 1, 1], limit=4), decided([0, 0, 0, 1], limit=5)
    (True, False, True)
    """
    left = limit - len(votes)
    if left <= 0:
        return True
    if left > len(votes):  # one answer may still get more votes than all have so far
        return False
    counts = _tally(votes)
    leader, most, _ = _two_leading(counts)
    if leader is None or left > most:
        return False
    appeared = False
    for group, count in counts.items():
        if group == leader:
            appeared = True
        elif count + left > most or (count + left == most and not appeared):
            return False
    return True


def decided_by_weight(totals: Mapping[int, float], left: float) -> bool:
    """`decided` for weighted votes: each answer's weight so far, and the total weight of the missing votes.

    A tie is undecided, because sums of weights may be rounded.

    >>> decided_by_weight({0: 3.0, 1: 1.0}, left=1.0), decided_by_weight({0: 3.0, 1: 1.0}, left=2.0)
    (True, False)
    """
    first, second = sorted((0.0, 0.0, *totals.values()), reverse=True)[:2]
    return first - second - left > _ROUNDING * (first + second + left)


@lru_cache(maxsize=4096)
def evidence(a: int, b: int) -> Fraction:
    """Return M(a, b) of `Martingale`, exactly: the evidence of ``a`` votes for and ``b`` against that p_g > p_r.

    It is the integral of (2t)**a (2 - 2t)**b over t in [1/2, 1] with density 160/31 t**4.

    >>> evidence(0, 0), round(float(evidence(6, 0)), 2)
    (Fraction(1, 1), 30.01)
    """
    n = a + b + 5
    return Fraction(5 * sum(math.comb(n, i) for i in range(a + 5)), 31 * n * math.comb(n - 1, b))


@lru_cache(maxsize=4096)
def _proves(a: int, b: int, place: int, level: float) -> bool:
    """Whether the evidence for the answer with this order of appearance reaches 1 / (level 2/3**(place + 1))."""
    return evidence(a, b) * Fraction(level) * 2 >= Fraction(3 ** (place + 1))


def _tally(votes: Sequence[int]) -> dict[int, int]:
    """Return the votes per group, in the order of first appearance, without unreadable samples."""
    counts = Counter(votes)
    counts.pop(UNREADABLE, None)
    return counts


def _two_leading(counts: Mapping[int, int]) -> tuple[int | None, int, int]:
    """Return the leader (the earliest on a tie), its count, and the runner-up's count."""
    leader, first, second = None, 0, 0
    for group, count in counts.items():
        if count > first:
            leader, first, second = group, count, first
        elif count > second:
            second = count
    return leader, first, second


@lru_cache(maxsize=4096)
def _beta_reaches(a: int, b: int, level: float) -> bool:
    """Whether P(Bin(n, 1/2) <= a) >= level, for n = a + b + 1, in integer arithmetic."""
    n = a + b + 1
    numerator, denominator = level.as_integer_ratio()
    return sum(math.comb(n, i) for i in range(a + 1)) * denominator >= numerator << n


def _within(name: str, level: float, low: float, high: float) -> float:
    if not low < level < high:
        raise ConfigError(f"the level of stopping rule {name!r} must be between {low:g} and {high:g}, not {level!r}")
    return float(level)
