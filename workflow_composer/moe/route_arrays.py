"""Routes of many tokens as three arrays, and the result of a batch while it is made."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from workflow_composer.moe.arrays import joined, like, numbers
from workflow_composer.moe.decisions import BatchDecision
from workflow_composer.moe.learned_gate import GateOutput


class Routes:
    """``experts`` [n, k], ``weights`` [n, k] and ``confidence`` [n]: 6 k + 4 bytes a route."""

    def __init__(self, experts: NDArray[np.int16], weights: NDArray[np.float32], confidence: NDArray[np.float32]) -> None:
        self.experts, self.weights, self.confidence = experts, weights, confidence

    @classmethod
    def room(cls, size: int, k: int) -> Routes:
        """Room for so many routes."""
        return cls(np.zeros((size, k), np.int16), np.zeros((size, k), np.float32), np.zeros(size, np.float32))

    @classmethod
    def said(cls, output: GateOutput) -> Routes:
        """What a gate has decided."""
        experts = numbers(output.experts).astype(np.int16)
        return cls(experts, numbers(output.weights), numbers(output.confidence))

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.experts.nbytes + self.weights.nbytes + self.confidence.nbytes

    def take(self, at: NDArray[np.integer[Any]]) -> Routes:
        """A copy of some."""
        return Routes(self.experts.take(at, 0), self.weights.take(at, 0), self.confidence.take(at))

    def take_into(self, at: NDArray[np.integer[Any]], room: Routes) -> None:
        """A copy of some into others' places; all of ``at`` must be valid."""
        # Clipping changes nothing then, and spares numpy a buffer.
        self.experts.take(at, 0, out=room.experts, mode="clip")
        self.weights.take(at, 0, out=room.weights, mode="clip")
        self.confidence.take(at, out=room.confidence, mode="clip")

    def part(self, part: slice) -> Routes:
        """Some that stand together; the same memory."""
        return Routes(self.experts[part], self.weights[part], self.confidence[part])

    def put(self, at: NDArray[np.integer[Any]] | slice, others: Routes) -> None:
        """Put others in the places ``at``."""
        self.experts[at], self.weights[at], self.confidence[at] = others.experts, others.weights, others.confidence


class Batch:
    """A batch of ``size`` decisions while it is made, piece by piece."""

    def __init__(self, size: int, k: int) -> None:
        self.routes = Routes.room(size, k)
        self.paths = np.empty(size, np.uint8)
        self.asked: list[NDArray[np.int64]] = []
        self.logits: list[Any] = []

    def decision(self, model: Any) -> BatchDecision:
        """The whole, in arrays like ``model``."""
        return BatchDecision(
            like(self.routes.experts, model),
            like(self.routes.weights, model),
            like(self.routes.confidence, model),
            like(self.paths, model),
            np.concatenate(self.asked) if self.asked else np.zeros(0, np.int64),
            joined(self.logits) if self.logits else None,
        )
