"""Simulated worlds for selective_risk.py, in which the truth is known: of one tier, and of cascades of three."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.stats import beta

from workflow_composer.calibration.certify.cascade_risk import climb

# ------------------------------------------------------------------------------------------------------------- the worlds


@dataclass(frozen=True)
class World:
    """Scores [points], falling, all equally likely (repeated where likelier), and P(right | score) [points]."""

    scores: np.ndarray
    right: np.ndarray

    @cached_property
    def _wrong(self) -> np.ndarray:
        return np.append(0.0, np.cumsum(1 - self.right))

    @cached_property
    def _falling(self) -> np.ndarray:
        return -self.scores

    def at(self, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """True coverage and risk at each threshold; the risk is 0 where nothing is accepted."""
        counts = np.searchsorted(self._falling, -np.asarray(thresholds), side="right")
        return counts / len(self.scores), self._wrong[counts] / np.maximum(counts, 1)

    def oracle(self, alpha: float) -> float:
        """The most that a threshold accepts at a risk of at most alpha."""
        coverage, risk = self.at(np.unique(self.scores))
        return float(max(coverage[risk <= alpha + 1e-12], default=0.0))


def _smooth(right: Callable[[np.ndarray], np.ndarray]) -> World:
    scores = beta.ppf((np.arange(20_000, 0, -1) - 0.5) / 20_000, 2, 1.2)
    return World(scores, right(scores))


def _tied(scores: list[float], right: list[float]) -> World:
    return World(np.repeat(scores, 100), np.repeat(right, 100))


def _logistic(slope: float, shift: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda scores: 1 / (1 + np.exp(-(slope * scores - shift)))


WORLDS: dict[str, Callable[[float], World]] = {
    "logistic": lambda alpha: _smooth(_logistic(9, 4.2)),
    "confident liar": lambda alpha: _smooth(lambda s: np.where(s > 0.93, 0.75, _logistic(9, 4.2)(s))),
    "steep": lambda alpha: _smooth(_logistic(30, 18)),
    "ties": lambda alpha: _tied([1.0, 0.9, 0.75, 0.75, 0.5, 0.5, 0.25, 0.0], [0.99, 0.97, 0.95, 0.95, 0.8, 0.8, 0.5, 0.2]),
    "all right": lambda alpha: _smooth(np.ones_like),
    "all wrong": lambda alpha: _smooth(np.zeros_like),
    "useless": lambda alpha: _smooth(lambda s: np.full_like(s, 0.7)),
    "just too bad": lambda alpha: _smooth(lambda s: np.full_like(s, 1 - alpha - 1e-6)),
    "edge": lambda alpha: _tied([0.9, 0.6, 0.3], [1 - alpha - 1e-6, 1 - 2 * alpha, 1 - 4 * alpha]),
}


# ----------------------------------------------------------------------------------------------------------- the cascades


@dataclass(frozen=True)
class Cascade:
    """Equally likely kinds of request: scores [kinds, tiers], and the chance of each pattern of right answers.

    ``patterns`` [patterns, tiers] of 0 and 1; ``chances`` [kinds, patterns].
    """

    scores: np.ndarray
    patterns: np.ndarray
    chances: np.ndarray

    @cached_property
    def right(self) -> np.ndarray:
        """P(right) by kind and tier."""
        return self.chances @ self.patterns

    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Scores and right answers [n, tiers] of ``n`` requests."""
        kinds = rng.integers(len(self.scores), size=n)
        chosen = (rng.random((n, 1)) > self.chances[kinds].cumsum(axis=1)).sum(axis=1)
        return self.scores[kinds], self.patterns[np.minimum(chosen, len(self.patterns) - 1)]

    def truth(self, thresholds: tuple, straight_up: tuple) -> tuple[float, float, float]:
        """The worst tier's risk among the accepted, the share accepted, and the risk of all answers returned."""
        tier, accepted = climb(self.scores, thresholds, straight_up)
        wrong = 1 - self.right[np.arange(len(tier)), tier]
        risks = [wrong[taken].mean() for t in range(3) if (taken := accepted & (tier == t)).any()]
        return max(risks, default=0.0), float(accepted.mean()), float(wrong.mean())


def _independent(scores: np.ndarray, right: np.ndarray) -> Cascade:
    patterns = np.array(list(itertools.product((0, 1), repeat=right.shape[1])))
    chances = np.prod(np.where(patterns[None], right[:, None], 1 - right[:, None]), axis=2)
    return Cascade(scores, patterns, chances)


def _tiers(rng: np.random.Generator, shifts: tuple[float, ...], noise: float) -> tuple[np.ndarray, np.ndarray]:
    ease = rng.normal(size=(2_000, 1))
    right = 1 / (1 + np.exp(-(2.5 * ease + np.array(shifts))))
    return np.clip(right + noise * rng.normal(size=right.shape), 0, 1), right


def _opposed(rng: np.random.Generator) -> Cascade:
    """Tier 2 is right exactly where tier 1 is wrong; its score is tier 1's turned around. Tier 3 knows nothing."""
    score = rng.beta(2, 1.2, size=2_000)
    right = _logistic(9, 4.2)(score)
    patterns = np.array([[1, 0, 1], [1, 0, 0], [0, 1, 1], [0, 1, 0]])
    chances = np.stack([right * 0.9, right * 0.1, (1 - right) * 0.9, (1 - right) * 0.1], axis=1)
    return Cascade(np.stack([score, 1 - score, np.full_like(score, 0.5)], axis=1), patterns, chances)


def _borderline(rng: np.random.Generator, alpha: float) -> Cascade:
    """Every tier is just too bad whatever its score, and no request is answered wrongly by two tiers.

    So where tier 1 was lucky with what it accepted, what it passes on makes tier 2 look better than it is.
    """
    a = alpha + 1e-6
    patterns = np.array([[1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 1, 0]])
    return Cascade(rng.random((2_000, 3)), patterns, np.tile([1 - 3 * a, a, a, a], (2_000, 1)))


CASCADES: dict[str, Callable[[np.random.Generator, float], Cascade]] = {
    "good scores": lambda rng, alpha: _independent(*_tiers(rng, (0.5, 2, 4), 0.05)),
    "noisy scores": lambda rng, alpha: _independent(*_tiers(rng, (0.5, 2, 4), 0.3)),
    "opposed": lambda rng, alpha: _opposed(rng),
    "borderline": _borderline,
}


def greedy(world: Cascade, alpha: float) -> float:
    """The coverage of an oracle that gives each tier in turn the loosest threshold with a true risk of at most alpha."""
    rest, taken = np.ones(len(world.scores), bool), 0
    for tier in range(world.scores.shape[1]):
        score = np.where(rest, world.scores[:, tier], -1.0)
        order = np.argsort(-score, kind="stable")[: int(rest.sum())]
        risk = np.cumsum(1 - world.right[order, tier]) / np.arange(1, len(order) + 1)
        last = np.append(np.diff(score[order]) < 0, True)
        found = np.flatnonzero((risk <= alpha + 1e-9) & last)
        if len(found):
            rest[order[: found[-1] + 1]] = False
            taken += found[-1] + 1
    return taken / len(world.scores)
