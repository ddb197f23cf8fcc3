"""Replay of recorded routes through the three paths, with the recording in place of the gate.

Each prompt is routed with fresh state: no previous token, an empty cache, a new budget. Its result therefore depends only on
the prompt and the tables, so exchangeable prompts have exchangeable losses. The clock is frozen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workflow_composer.moe.routing.arrays import numbers
from workflow_composer.moe.routing.decisions import lost_weight
from workflow_composer.moe.routing.learned_gate import GateOutput
from workflow_composer.moe.routing.routes import RecordedRoutes
from workflow_composer.moe.routing.system import VARSystem
from workflow_composer.moe.routing.tables import RouteTables
from workflow_composer.moe.routing.three_paths import Way


@dataclass(frozen=True, slots=True)
class Paths:
    """Settings of a replay, as `VARSystem`'s arguments of the same names."""

    learned_share: float = 0.15
    context_window: int = 4
    table_context: int = 2
    cache_size: int = 1000


class RecordedGate:
    """A gate that returns recorded decisions; the "hidden state" of a token is its row in the recording."""

    def __init__(self, experts: NDArray[np.int16], weights: NDArray[np.float32], num_experts: int) -> None:
        self.experts, self.weights = experts, weights
        self.num_experts, self.top_k = num_experts, experts.shape[1]

    def route(self, hidden: Any, token_ids: Any) -> GateOutput:
        """Return the recorded decisions; logits are NaN."""
        rows = numbers(hidden)[:, 0]
        nothing = np.full((len(rows), self.num_experts), np.nan, np.float32)
        return GateOutput(self.weights[rows], self.weights[rows].sum(axis=1), nothing, self.experts[rows])

    def fingerprint(self) -> int:
        """Return a constant, because the recording does not change."""
        return 1


def weights_in(routes: RecordedRoutes, layer: int) -> NDArray[np.float32]:
    """Return the layer's weights [n, k]; equal weights if none were recorded."""
    experts = routes.experts[layer]
    return routes.weights.get(layer, np.full(experts.shape, 1 / experts.shape[1], np.float32))


def fit_tables(routes: RecordedRoutes, paths: Paths, num_experts: int) -> dict[int, RouteTables]:
    """Return the tables learned from these routes, by layer."""
    return {
        layer: RouteTables.fit(
            routes.tokens,
            routes.experts[layer],
            weights_in(routes, layer),
            num_experts=num_experts,
            sequences=routes.sequences,
            context=paths.table_context,
        )
        for layer in routes.layers
    }


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """Results of p prompts at t thresholds, averaged over a prompt's tokens and the layers.

    ``losses`` [p, t]: share of the gate's weight on experts missing from the route. ``shares`` [p, t, 4]: share of each
    `Way`. ``by_layer`` [layers, t, 5]: mean loss and the paths' shares over all prompts.
    """

    prompts: NDArray[np.int64]
    thresholds: tuple[float, ...]
    losses: NDArray[np.float64]
    shares: NDArray[np.float64]
    by_layer: NDArray[np.float64]


def replay(routes: RecordedRoutes, tables: Mapping[int, RouteTables], thresholds: Sequence[float], paths: Paths) -> Replay:
    """Route every sequence of ``routes`` at every threshold, each independently."""
    prompts, starts = np.unique(routes.sequences, return_index=True)
    edges = np.r_[np.sort(starts), len(routes)]
    prompts = routes.sequences[edges[:-1]]
    found = np.zeros((len(routes.layers), len(thresholds), len(prompts), 1 + len(Way)))
    for at, layer in enumerate(routes.layers):
        num_experts = 1 + max(int(routes.experts[layer].max()), int(tables[layer].experts.max()))
        gate = RecordedGate(routes.experts[layer], weights_in(routes, layer), num_experts)
        system = VARSystem(
            gate,
            context_window=paths.context_window,
            table_context=paths.table_context,
            learned_share=paths.learned_share,
            cache_size=paths.cache_size,
            clock=lambda: 0.0,
        )
        for which, threshold in enumerate(thresholds):
            system.use_tables(tables[layer], threshold)
            for prompt, rows in enumerate(np.arange(a, b) for a, b in pairwise(edges)):
                system.new_text(forget=True)
                made = system.route_batch(routes.tokens[rows], rows[:, None])
                lost = lost_weight(made.expert_indices, gate.experts[rows], gate.weights[rows])
                shares = np.bincount(made.paths, minlength=len(Way)) / len(rows)
                found[at, which, prompt] = [lost.mean(), *shares]
    means = found.mean(axis=0).transpose(1, 0, 2)
    return Replay(prompts, tuple(thresholds), means[..., 0], means[..., 1:], found.mean(axis=2))
