"""Demonstration of the three routing paths with synthetic text and a realistic gate."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from workflow_composer.moe.models.corpus import (
    TaskResult,
    evaluate_downstream_task,
    generate_realistic_corpus,
    hidden_states,
)
from workflow_composer.moe.routing.hashing import weights_key
from workflow_composer.moe.routing.learned_gate import GateOutput, WeightsName
from workflow_composer.moe.routing.system import VARSystem

# -------------------------------------------------------------------------------------------------------------- torch gate
#
# A gate in torch: a linear layer with a bias per cluster of tokens, which resembles trained gates.


class RealisticMoERouter(nn.Linear):
    """``nn.Linear`` from ``hidden_dim`` to ``num_experts``, plus a semantic bias of the token's cluster.

    Trained gates route most tokens by their identity, and fewer by their context (Xue et al. 2024, OpenMoE, section 5). So
    each of the ``num_clusters`` clusters prefers ``top_k`` experts: the first by ``bias_strength``, the next by three
    quarters of it, and so on. ``ambiguous`` is the share of clusters without a preference. Token t belongs to cluster
    t modulo ``num_clusters``. Deterministic for a given ``seed``.
    """

    semantic_bias: torch.Tensor

    def __init__(
        self,
        hidden_dim: int = 64,
        num_experts: int = 8,
        *,
        top_k: int = 2,
        num_clusters: int = 32,
        bias_strength: float = 10.0,
        ambiguous: float = 0.0625,
        seed: int = 0,
    ) -> None:
        super().__init__(hidden_dim, num_experts, bias=False)
        self.hidden_dim, self.num_experts, self.top_k = hidden_dim, num_experts, top_k
        drawing = torch.Generator().manual_seed(seed)
        bias = torch.zeros(num_clusters, num_experts)
        for cluster in range(num_clusters - round(ambiguous * num_clusters)):
            favoured = torch.randperm(num_experts, generator=drawing)[:top_k]
            bias[cluster, favoured] = bias_strength * 0.75 ** torch.arange(top_k, dtype=torch.float32)
        # Ambiguity must not correlate with the frequency of a cluster's tokens.
        bias = bias[torch.randperm(num_clusters, generator=drawing)]
        with torch.no_grad():
            self.weight.copy_(torch.randn(num_experts, hidden_dim, generator=drawing) * (0.5 / hidden_dim**0.5))
        self.semantic_bias = nn.Parameter(bias)
        self._name = WeightsName()

    def forward(self, hidden: Any, token_ids: Any = None) -> GateOutput:
        """Decide for ``hidden`` [..., d]; without ``token_ids`` [...], without the semantic bias."""
        logits = super().forward(hidden)
        if token_ids is not None:
            logits = logits + self.semantic_bias[token_ids % len(self.semantic_bias)]
        top, experts = logits.topk(self.top_k, dim=-1)
        confidence = (top.logsumexp(dim=-1) - logits.logsumexp(dim=-1)).exp()
        return GateOutput(top.softmax(dim=-1), confidence, logits, experts)

    def route(self, hidden: Any, token_ids: Any) -> GateOutput:
        """`forward` without gradients."""
        with torch.no_grad():
            return self(hidden, token_ids)  # type: ignore[no-any-return]  # a module's call is untyped

    def fingerprint(self) -> int:
        """Return the hash of the weights; see `fingerprint_of`."""
        return fingerprint_of(self._name, self.weight, self.semantic_bias)


def fingerprint_of(name: WeightsName, *tensors: torch.Tensor) -> int:
    """The `weights_key` of tensors, cached until they change.

    On a CPU, changes are detected from the bytes. On other devices, they are detected from torch's version counters, which
    miss changes through ``tensor.data``.
    """
    version = tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return name.of(*(_array(tensor) for tensor in tensors), version=version)
    if version != name.version:
        name.keep(weights_key(*(_array(tensor.cpu()) for tensor in tensors)), version)
    return name.key


def _array(tensor: torch.Tensor) -> Any:
    found = tensor.detach()
    return (found.float() if found.dtype == torch.bfloat16 else found).numpy()


# ----------------------------------------------------------------------------------------------------------- demonstration

BATCH = 8192
"""Tokens per batch, for VAR and for the learned router alone."""

LEARNED_LIMIT, QUALITY_MARGIN = 0.15, 0.05
_SINGLE = 500  # tokens for the single-token measurements
_REPEATS = 3


@dataclass(frozen=True, slots=True)
class Setup:
    """Settings of the demonstration. ``margin``: learn the fast routes from this margin instead of fixed thresholds."""

    tokens: int = 500_000
    vocabulary: int = 1000
    hidden_dim: int = 64
    num_experts: int = 8
    top_k: int = 2
    margin: float | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Demonstration:
    """Results of the demonstration. Times are nanoseconds per token, the best of a few runs on one core."""

    setup: Setup
    stats: dict[str, float]
    task: TaskResult
    fast_routes: int
    threshold: float
    times: dict[str, float]

    @property
    def speedup(self) -> float:
        """Speed-up over the learned router in batches of the same size, which is the fair baseline."""
        return self.times["learned_batched"] / self.times["var_batched"]

    @property
    def constraints(self) -> dict[str, bool]:
        """Return the required properties, and whether each holds."""
        return {
            f"learned share at every prefix <= {LEARNED_LIMIT:g} * (n + 1)": self.stats["worst_prefix_share"]
            <= LEARNED_LIMIT,
            f"learned share < {LEARNED_LIMIT:g}": self.stats["learned_share"] < LEARNED_LIMIT,
            f"quality >= {1 - QUALITY_MARGIN:g} of the learned router's": self.task.relative >= 1 - QUALITY_MARGIN,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        data = asdict(self)
        data["task"]["relative"] = self.task.relative
        return {**data, "speedup": self.speedup, "constraints": self.constraints}


def run_poc_demonstration(setup: Setup | None = None) -> Demonstration:
    """Learn from the first half of the text and route the second. Deterministic for a given seed, except for times.

    The cache's clock is frozen, so that the results do not depend on the machine's speed.
    """
    chosen = setup or Setup()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _run(chosen)
    finally:
        torch.set_num_threads(threads)


def _run(setup: Setup) -> Demonstration:
    text = generate_realistic_corpus(setup.tokens, setup.vocabulary, seed=setup.seed)
    hidden = torch.from_numpy(hidden_states(text, setup.hidden_dim, seed=setup.seed))
    tokens = torch.from_numpy(text)
    gate = RealisticMoERouter(setup.hidden_dim, setup.num_experts, top_k=setup.top_k, seed=setup.seed)
    system = VARSystem(gate, quality_margin=setup.margin, clock=lambda: 0.0)
    half = setup.tokens // 2
    system.precompute_statistics(tokens[:half], hidden[:half])
    tokens, hidden = tokens[half:], hidden[half:]

    experts, weights = _routed(system, tokens, hidden)
    stats = system.get_performance_stats()
    said = _learned(gate, tokens, hidden)
    task = evaluate_downstream_task(said, experts, weights, hidden, seed=setup.seed)
    fast, threshold = len(system.fast_routes), system.threshold
    return Demonstration(setup, stats, task, fast, threshold, _times(system, gate, tokens, hidden))


def _routed(system: VARSystem, tokens: torch.Tensor, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    system.new_text(forget=True)
    made = [system.route_batch(tokens[at : at + BATCH], hidden[at : at + BATCH]) for at in range(0, len(tokens), BATCH)]
    return torch.cat([one.expert_indices for one in made]), torch.cat([one.expert_weights for one in made])


def _learned(gate: RealisticMoERouter, tokens: torch.Tensor, hidden: torch.Tensor) -> GateOutput:
    said = [gate.route(hidden[at : at + BATCH], tokens[at : at + BATCH]) for at in range(0, len(tokens), BATCH)]
    return GateOutput(*(torch.cat([getattr(one, name) for one in said]) for name in GateOutput._fields))


def _times(system: VARSystem, gate: RealisticMoERouter, tokens: torch.Tensor, hidden: torch.Tensor) -> dict[str, float]:
    few, ids = hidden[:_SINGLE], tokens[:_SINGLE].tolist()

    def one_by_one() -> None:
        system.new_text(forget=True)
        for token, state in zip(ids, few, strict=True):
            system.route_token(token, state)

    def learned_one_by_one() -> None:
        for at in range(len(few)):
            gate.route(few[at : at + 1], tokens[at : at + 1])

    return {
        "var_batched": _best(lambda: _routed(system, tokens, hidden), len(tokens)),
        "learned_batched": _best(lambda: _learned(gate, tokens, hidden), len(tokens)),
        "var_by_token": _best(one_by_one, len(ids), repeats=2),
        "learned_by_token": _best(learned_one_by_one, len(ids), repeats=2),
    }


def _best(work: Callable[[], object], tokens: int, repeats: int = _REPEATS) -> float:
    """Return nanoseconds per token of this thread's processor time, for the best run.

    This excludes other programs, and BLAS threads that spin after the evaluation. All work runs in this thread, because
    torch uses one.
    """
    found = []
    for _ in range(repeats):
        started = time.thread_time_ns()
        work()
        found.append((time.thread_time_ns() - started) / tokens)
    return float(np.min(found))
