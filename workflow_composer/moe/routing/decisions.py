"""Routing decisions, statistics of tokens, and the thresholds for fast routes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workflow_composer.moe.routing.arrays import joined, like, numbers
from workflow_composer.moe.routing.learned_gate import GateOutput
from workflow_composer.moe.routing.three_paths import Way

# -------------------------------------------------------------------------------------------------------------- thresholds
#
# Fast routes are chosen by fixed thresholds on a token's statistics, or by a threshold learned from held-out text.

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Eligibility:
    """The fixed rule: (frequency > ``frequency`` and average entropy < ``entropy`` nats) or token id < ``special``."""

    frequency: int = 50
    entropy: float = 0.5
    confidence: float = 0.8
    special: int = 10

    def admits(self, token: int, stats: TokenStats | None) -> bool:
        """Return whether the token may have a fast route."""
        if 0 <= token < self.special:
            return True
        return stats is not None and stats.frequency > self.frequency and stats.get_average_entropy() < self.entropy


def lost_weight(
    guessed: NDArray[np.integer[Any]], experts: NDArray[np.integer[Any]], weights: Floats
) -> NDArray[np.float64]:
    """Return the share of the gate's weight on experts that are missing from the guess [n].

    ``guessed`` [n, j]; the gate's ``experts`` [n, k] and ``weights`` [n, k], non-negative.

    >>> lost_weight(np.array([[3, 5]]), np.array([[5, 1]]), np.array([[0.75, 0.25]]))
    array([0.25])
    """
    kept = (experts[:, :, None] == guessed[:, None, :]).any(axis=2)
    total = weights.sum(axis=1, dtype=np.float64)
    found: NDArray[np.float64] = 1.0 - (weights * kept).sum(axis=1, dtype=np.float64) / np.maximum(total, 1e-12)
    return np.maximum(found, 0.0)


def learn_threshold(confidence: Floats, loss: Floats, margin: float) -> float:
    """Return the smallest confidence threshold for which fast routes have a mean ``loss`` of at most ``margin`` (n tokens).

    ``confidence`` [n] and ``loss`` [n] are those of each guessed route. The result is infinite if no threshold qualifies. It
    is an estimate, which `certify` tests.

    >>> learn_threshold(np.array([0.9, 0.8, 0.7, 0.6]), np.array([0.0, 0.1, 0.1, 0.9]), 0.05)
    0.7
    """
    if not len(confidence):
        return float("inf")
    order = np.argsort(-confidence, kind="stable")
    sure, lost = confidence[order], np.cumsum(loss[order]) / len(order)
    # Cut only between different confidences: routes of equal confidence are all fast or all not.
    ends = np.flatnonzero(np.r_[sure[1:] < sure[:-1], True])
    within = ends[lost[ends] <= margin]
    return float(sure[within[-1]]) if len(within) else float("inf")


_KEPT = 8
"""Number of a token's latest logits and confidences that are kept; averages are running sums over all."""


@dataclass(frozen=True, slots=True, eq=False)
class RoutingDecision:
    """The route of one token. ``timestamp`` is in seconds of the system's clock.

    ``expert_indices`` [k] and ``expert_weights`` [k] are arrays. ``confidence`` is the gate's probability of these experts
    if it decided (now or from the cache), else the expected share of the gate's choice that they contain. ``full_logits``
    [experts] is None unless the gate decided now.
    """

    expert_indices: Any
    confidence: float
    timestamp: float
    context_hash: int
    full_logits: Any = None
    expert_weights: Any = None
    path: Way = Way.LEARNED


@dataclass(frozen=True, slots=True, eq=False)
class BatchDecision:
    """The routes of a batch of n tokens: numpy arrays, or tensors on the hidden states' device if these are tensors.

    ``expert_indices`` [n, k], ``expert_weights`` [n, k], ``confidence`` [n] (see `RoutingDecision`), ``paths`` [n] (values
    of `Way`). ``asked`` are the positions that the gate decided, and ``logits`` [asked, experts] its logits.
    """

    expert_indices: Any
    expert_weights: Any
    confidence: Any
    paths: Any
    asked: NDArray[np.int64]
    logits: Any

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(slots=True, eq=False)
class TokenStats:
    """Statistics of the gate's decisions for one token: its latest logits and confidences, and running sums.

    >>> stats = TokenStats()
    >>> for _ in range(100):
    ...     stats.update(np.array([0.0, 0.0]), 1.0)
    >>> stats.frequency, len(stats.router_logits_history), round(stats.get_average_entropy(), 4)
    (100, 8, 0.6931)
    """

    frequency: int = 0
    router_logits_history: deque[NDArray[np.floating[Any]]] = field(default_factory=lambda: deque(maxlen=_KEPT))
    confidence_history: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))
    entropy_sum: float = 0.0
    confidence_sum: float = 0.0

    def update(self, logits: NDArray[np.floating[Any]], confidence: float) -> None:
        """Add one occurrence."""
        self.frequency += 1
        self.router_logits_history.append(logits)
        self.confidence_history.append(confidence)
        self.entropy_sum += float(entropies(logits[None])[0])
        self.confidence_sum += confidence

    def get_average_entropy(self) -> float:
        """Return the mean entropy of the gate's distribution over all occurrences, in nats; infinite without occurrences."""
        return self.entropy_sum / self.frequency if self.frequency else float("inf")

    def get_average_confidence(self) -> float:
        """Return the mean confidence over all occurrences; 0.0 without occurrences."""
        return self.confidence_sum / self.frequency if self.frequency else 0.0


def entropies(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return the entropy of softmax(logits) in nats; [n, experts] -> [n]."""
    shifted = np.asarray(logits, np.float64)
    shifted = shifted - shifted.max(axis=1, keepdims=True)
    raised = np.exp(shifted)
    total = raised.sum(axis=1)
    found: NDArray[np.float64] = np.log(total) - (raised * shifted).sum(axis=1) / total
    return found


def stats_of(
    tokens: NDArray[np.int64], logits: NDArray[np.floating[Any]], confidence: NDArray[np.floating[Any]]
) -> dict[int, TokenStats]:
    """Return the statistics of every token that occurs; equals `TokenStats.update` one by one."""
    order = np.argsort(tokens, kind="stable")
    token, start, count = np.unique(tokens[order], return_index=True, return_counts=True)
    entropy = np.add.reduceat(entropies(logits)[order], start) if len(start) else np.zeros(0)
    sure = np.add.reduceat(np.asarray(confidence, np.float64)[order], start) if len(start) else np.zeros(0)
    found = {}
    for at, name in enumerate(token.tolist()):
        latest = order[max(start[at], start[at] + count[at] - _KEPT) : start[at] + count[at]]
        found[name] = TokenStats(
            int(count[at]),
            deque(logits[latest], maxlen=_KEPT),
            deque(confidence[latest].tolist(), maxlen=_KEPT),
            float(entropy[at]),
            float(sure[at]),
        )
    return found


# ------------------------------------------------------------------------------------------------------------ route arrays
#
# Routes of many tokens as three arrays, and the result of a batch in progress.


class RouteArrays:
    """``experts`` [n, k], ``weights`` [n, k] and ``confidence`` [n]: 6 k + 4 bytes a route."""

    def __init__(self, experts: NDArray[np.int16], weights: NDArray[np.float32], confidence: NDArray[np.float32]) -> None:
        self.experts, self.weights, self.confidence = experts, weights, confidence

    @classmethod
    def room(cls, size: int, k: int) -> RouteArrays:
        """Return uninitialised arrays for ``size`` routes."""
        return cls(np.zeros((size, k), np.int16), np.zeros((size, k), np.float32), np.zeros(size, np.float32))

    @classmethod
    def said(cls, output: GateOutput) -> RouteArrays:
        """Return a gate's decisions as routes."""
        experts = numbers(output.experts).astype(np.int16)
        return cls(experts, numbers(output.weights), numbers(output.confidence))

    @property
    def nbytes(self) -> int:
        """Size of the arrays in bytes."""
        return self.experts.nbytes + self.weights.nbytes + self.confidence.nbytes

    def take(self, at: NDArray[np.integer[Any]]) -> RouteArrays:
        """Return a copy of the routes at these positions."""
        return RouteArrays(self.experts.take(at, 0), self.weights.take(at, 0), self.confidence.take(at))

    def take_into(self, at: NDArray[np.integer[Any]], room: RouteArrays) -> None:
        """Copy the routes at the positions ``at`` into other routes; all positions must be valid."""
        # With valid positions, clipping has no effect, but it saves numpy a buffer.
        self.experts.take(at, 0, out=room.experts, mode="clip")
        self.weights.take(at, 0, out=room.weights, mode="clip")
        self.confidence.take(at, out=room.confidence, mode="clip")

    def part(self, part: slice) -> RouteArrays:
        """Return a contiguous part; the same memory."""
        return RouteArrays(self.experts[part], self.weights[part], self.confidence[part])

    def put(self, at: NDArray[np.integer[Any]] | slice, others: RouteArrays) -> None:
        """Overwrite the routes at the positions ``at``."""
        self.experts[at], self.weights[at], self.confidence[at] = others.experts, others.weights, others.confidence


class RoutedBatch:
    """A batch of ``size`` decisions in progress, filled piece by piece."""

    def __init__(self, size: int, k: int) -> None:
        self.routes = RouteArrays.room(size, k)
        self.paths = np.empty(size, np.uint8)
        self.asked: list[NDArray[np.int64]] = []
        self.logits: list[Any] = []

    def decision(self, model: Any) -> BatchDecision:
        """Return the complete batch, in arrays of the same kind as ``model``."""
        return BatchDecision(
            like(self.routes.experts, model),
            like(self.routes.weights, model),
            like(self.routes.confidence, model),
            like(self.paths, model),
            np.concatenate(self.asked) if self.asked else np.zeros(0, np.int64),
            joined(self.logits) if self.logits else None,
        )
