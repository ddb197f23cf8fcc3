"""The protocol of a learned router, which scores the experts for a batch of hidden states, and a numpy implementation.

`LinearGate` uses numpy; `workflow_composer.moe.models.demo.RealisticMoERouter` is a ``torch.nn.Linear``.
"""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from workflow_composer.moe.routing.hashing import weights_key

Floats = NDArray[np.float32]


class GateOutput(NamedTuple):
    """A gate's decisions for n tokens, in arrays of the hidden states' kind.

    ``weights`` [n, k]: weights of the chosen experts, with sum 1. ``confidence`` [n]: the gate's total probability of the
    chosen experts. ``logits`` [n, experts]. ``experts`` [n, k]: the chosen experts, most likely first.
    """

    weights: Any
    confidence: Any
    logits: Any
    experts: Any


class Gate(Protocol):
    """A learned router of tokens."""

    num_experts: int
    top_k: int

    def route(self, hidden: Any, token_ids: Any) -> GateOutput:
        """Decide for ``hidden`` [n, d] and ``token_ids`` [n], without gradients."""
        ...

    def fingerprint(self) -> int:
        """Return the `weights_key` of the current weights; fast if they have not changed."""
        ...


class LinearGate:
    """softmax(hidden @ weight.T + bias[token's cluster]), and the ``top_k`` most likely experts; numpy.

    ``weight`` [experts, d]; ``bias`` [clusters, experts]; the cluster of token t is ``clusters[t]``, or t modulo the number
    of clusters.
    """

    def __init__(
        self, weight: Floats, bias: Floats | None = None, *, top_k: int = 2, clusters: NDArray[np.int64] | None = None
    ) -> None:
        self.weight = weight
        self.bias = np.zeros((1, len(weight)), np.float32) if bias is None else bias
        self.clusters = clusters
        self.num_experts, self.top_k = len(weight), top_k
        self._name = WeightsName()

    def route(self, hidden: Any, token_ids: Any) -> GateOutput:
        """Decide; see `Gate`."""
        tokens = np.asarray(token_ids)
        cluster = tokens % len(self.bias) if self.clusters is None else self.clusters[tokens]
        logits = np.asarray(hidden) @ self.weight.T + self.bias[cluster]
        top = np.argsort(-logits, axis=1, kind="stable")[:, : self.top_k]
        raised = np.exp(logits - logits.max(axis=1, keepdims=True))
        chosen = np.take_along_axis(raised, top, axis=1)
        total = chosen.sum(axis=1)
        return GateOutput(chosen / total[:, None], total / raised.sum(axis=1), logits, top)

    def fingerprint(self) -> int:
        """Return the hash of weight and bias; see `Gate`."""
        return self._name.of(self.weight, self.bias)


class WeightsName:
    """`weights_key` of arrays that rarely change: recomputed only if their checksum (CRC-32) changes."""

    def __init__(self) -> None:
        self.key = 0
        self.version: object = None

    def of(self, *arrays: NDArray[Any], version: object = None) -> int:
        """Return the hash. ``version`` is any other value that changes with the arrays."""
        seen = (version, *(zlib.crc32(np.ascontiguousarray(array).data) for array in arrays))
        if seen != self.version:
            self.keep(weights_key(*arrays), seen)
        return self.key

    def keep(self, key: int, version: object) -> None:
        """Set the hash until ``version`` changes."""
        self.key, self.version = key, version
