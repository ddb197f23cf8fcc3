"""The demonstration: made-up text, a gate as trained ones are, and what the three paths make of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from workflow_composer.moe.corpus import TaskResult, evaluate_downstream_task, generate_realistic_corpus, hidden_states
from workflow_composer.moe.learned_gate import GateOutput
from workflow_composer.moe.system import VARSystem
from workflow_composer.moe.torch_gate import RealisticMoERouter

BATCH = 8192
"""Tokens that are routed at a time, by VAR and by the learned router alone."""

LEARNED_LIMIT, QUALITY_MARGIN = 0.15, 0.05
_SINGLE = 500  # tokens of which the token-by-token figures are taken
_REPEATS = 3


@dataclass(frozen=True, slots=True)
class Setup:
    """What is demonstrated. ``margin``: learn which routes are fast from this margin, instead of the fixed thresholds."""

    tokens: int = 500_000
    vocabulary: int = 1000
    hidden_dim: int = 64
    num_experts: int = 8
    top_k: int = 2
    margin: float | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Demonstration:
    """What came out. Times are nanoseconds per token, the best of a few runs on one core; all else is exact."""

    setup: Setup
    stats: dict[str, float]
    task: TaskResult
    fast_routes: int
    threshold: float
    times: dict[str, float]

    @property
    def speedup(self) -> float:
        """Over the learned router called in batches of the same size: the fair baseline."""
        return self.times["learned_batched"] / self.times["var_batched"]

    @property
    def constraints(self) -> dict[str, bool]:
        """What must hold, and whether it does."""
        return {
            f"learned share at every prefix <= {LEARNED_LIMIT:g} * (n + 1)": self.stats["worst_prefix_share"]
            <= LEARNED_LIMIT,
            f"learned share < {LEARNED_LIMIT:g}": self.stats["learned_share"] < LEARNED_LIMIT,
            f"quality >= {1 - QUALITY_MARGIN:g} of the learned router's": self.task.relative >= 1 - QUALITY_MARGIN,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data = asdict(self)
        data["task"]["relative"] = self.task.relative
        return {**data, "speedup": self.speedup, "constraints": self.constraints}


def run_poc_demonstration(setup: Setup | None = None) -> Demonstration:
    """Half of the text teaches, the other half is routed. Deterministic from the seed, times apart.

    The cache's clock stands still, so that no result depends on the machine's speed.
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
    """Nanoseconds per token of this thread's processor time, of the best run: neither what another program does may count,
    nor the thread of a BLAS that spins for a while after the evaluation. All work is done in this thread: torch has one.
    """
    found = []
    for _ in range(repeats):
        started = time.thread_time_ns()
        work()
        found.append((time.thread_time_ns() - started) / tokens)
    return float(np.min(found))
