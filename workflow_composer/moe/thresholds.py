"""Which routes are safe: by fixed thresholds on a token's statistics, or by a margin learned from held-out text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workflow_composer.moe.decisions import TokenStats

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Eligibility:
    """The fixed rule: (frequency > ``frequency`` and average entropy < ``entropy`` nats) or token id < ``special``."""

    frequency: int = 50
    entropy: float = 0.5
    confidence: float = 0.8
    special: int = 10

    def admits(self, token: int, stats: TokenStats | None) -> bool:
        """Whether the token may have a fast route."""
        if 0 <= token < self.special:
            return True
        return stats is not None and stats.frequency > self.frequency and stats.get_average_entropy() < self.entropy


def lost_weight(
    guessed: NDArray[np.integer[Any]], experts: NDArray[np.integer[Any]], weights: Floats
) -> NDArray[np.float64]:
    """[n]: the share of the gate's weight that goes to experts which the guess lacks.

    ``guessed`` [n, j]; the gate's own ``experts`` [n, k] and ``weights`` [n, k], not negative.

    >>> lost_weight(np.array([[3, 5]]), np.array([[5, 1]]), np.array([[0.75, 0.25]]))
    array([0.25])
    """
    kept = (experts[:, :, None] == guessed[:, None, :]).any(axis=2)
    total = weights.sum(axis=1, dtype=np.float64)
    found: NDArray[np.float64] = 1.0 - (weights * kept).sum(axis=1, dtype=np.float64) / np.maximum(total, 1e-12)
    return np.maximum(found, 0.0)


def learn_threshold(confidence: Floats, loss: Floats, margin: float) -> float:
    """The least confidence from which routes may be fast, so that over all n tokens the mean ``loss`` stays within
    ``margin``.

    ``confidence`` [n] of the guessed routes, ``loss`` [n] of each if it were taken. Infinite where not even the surest will
    do. An estimate, which `certify` puts to the test.

    >>> learn_threshold(np.array([0.9, 0.8, 0.7, 0.6]), np.array([0.0, 0.1, 0.1, 0.9]), 0.05)
    0.7
    """
    if not len(confidence):
        return float("inf")
    order = np.argsort(-confidence, kind="stable")
    sure, lost = confidence[order], np.cumsum(loss[order]) / len(order)
    # Only where the confidence falls: equal ones are fast together or not at all.
    ends = np.flatnonzero(np.r_[sure[1:] < sure[:-1], True])
    within = ends[lost[ends] <= margin]
    return float(sure[within[-1]]) if len(within) else float("inf")
