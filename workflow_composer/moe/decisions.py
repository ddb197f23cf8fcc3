"""What is decided about tokens, and what is known of them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workflow_composer.moe.core import Path

_KEPT = 8
"""How many of a token's latest logits and confidences are kept; averages are running sums over all."""


@dataclass(frozen=True, slots=True, eq=False)
class RoutingDecision:
    """Where one token goes. ``timestamp`` is in seconds, of the system's clock.

    ``expert_indices`` [k] and ``expert_weights`` [k] are arrays. ``confidence``: the gate's probability of these experts
    where it was asked (or is remembered), else the expected share of the gate's choice that they make up. ``full_logits``
    [experts] are there where the gate was asked just now, else None.
    """

    expert_indices: Any
    confidence: float
    timestamp: float
    context_hash: int
    full_logits: Any = None
    expert_weights: Any = None
    path: Path = Path.LEARNED


@dataclass(frozen=True, slots=True, eq=False)
class BatchDecision:
    """Where a batch of n tokens goes: numpy arrays, or tensors on the hidden states' device if these were tensors.

    ``expert_indices`` [n, k], ``expert_weights`` [n, k], ``confidence`` [n] (see `RoutingDecision`), ``paths`` [n] (values
    of `Path`). ``asked`` are the positions for which the gate was asked, ``logits`` [asked, experts] what it said.
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
    """What the gate did with one token. Memory is bounded: the latest few logits and confidences, and running sums.

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
        """One more occurrence."""
        self.frequency += 1
        self.router_logits_history.append(logits)
        self.confidence_history.append(confidence)
        self.entropy_sum += float(entropies(logits[None])[0])
        self.confidence_sum += confidence

    def get_average_entropy(self) -> float:
        """The mean entropy of the gate's distribution over all occurrences, in nats; infinite where there were none."""
        return self.entropy_sum / self.frequency if self.frequency else float("inf")

    def get_average_confidence(self) -> float:
        """The mean confidence over all occurrences; 0.0 where there were none."""
        return self.confidence_sum / self.frequency if self.frequency else 0.0


def entropies(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """The entropy, in nats, of softmax(logits) [n, experts] -> [n]."""
    shifted = np.asarray(logits, np.float64)
    shifted = shifted - shifted.max(axis=1, keepdims=True)
    raised = np.exp(shifted)
    total = raised.sum(axis=1)
    found: NDArray[np.float64] = np.log(total) - (raised * shifted).sum(axis=1) / total
    return found


def stats_of(
    tokens: NDArray[np.int64], logits: NDArray[np.floating[Any]], confidence: NDArray[np.floating[Any]]
) -> dict[int, TokenStats]:
    """The statistics of every token that occurs; as `TokenStats.update` one by one."""
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
