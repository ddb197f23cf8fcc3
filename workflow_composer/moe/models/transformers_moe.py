"""Routing tables in place of a transformers model's gates, for the duration of a ``with`` block.

::

    tables = {layer: learn(...) for layer in gates(model)}
    with TableRouting(model, tables, share=0.15) as routing:
        model.generate(**tokenizer(text, return_tensors="pt"))
    routing.counts()

A token goes to the experts that the layer's table has for its context. If the table is not confident, the gate decides, but
at any moment for at most ``share`` of a layer's tokens; beyond that, the table decides.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from workflow_composer.errors import ConfigError
from workflow_composer.moe.models.gates import TokenWatch, gates, patched
from workflow_composer.moe.routing.arrays import taken
from workflow_composer.moe.routing.hashing import context_keys, weights_key
from workflow_composer.moe.routing.routes import Experts, Tokens, Weights
from workflow_composer.moe.routing.three_paths import Clock, ThreePaths

RECENT = 4096
"""Number of recent tokens whose confidences determine the threshold."""


class LayerTable(Protocol):
    """Protocol of a layer's routing table."""

    def predict(self, contexts: Tokens) -> tuple[Experts, Weights, NDArray[np.float32]]:
        """Return experts [n, k], gate weights [n, k] and confidence [n] for contexts [n, width], the token itself last."""


class TableRouting:
    """Routes a model by tables in a ``with`` block.

    Blocks nest: the innermost one routes and calls the model's original gate. Several threads may make forward calls
    concurrently, but not while a block is entered or left. Padding rows are routed by the table and not counted. A gate
    called outside of the model's forward call behaves as the original.

    Args:
        model: an OLMoE, Qwen2-MoE or Mixtral model of transformers 5, or one with the same structure.
        tables: layer -> table. Layers without a table keep their gate.
        certain: the minimum confidence to use a table without the gate: one number, or layer -> number. None: a moving
            threshold such that the gate gets the least confident ``share`` of the layer's last `RECENT` tokens.
        share: a layer's gate decides at most ``share * (n + 1)`` of its first n tokens, for every n.
        width: tokens per context, at least the tables' longest context; also the context of the cache's keys.
        remember: reuse the gate's latest decision for the same ``width`` tokens. This saves gate calls but costs quality,
            because the same few tokens have different routes in different texts.
        entries, ttl, clock: the cache of recent gate decisions, one per layer.

    Raises `ConfigError` if a table's layer has no gate.
    """

    def __init__(
        self,
        model: nn.Module,
        tables: Mapping[int, LayerTable],
        *,
        certain: Mapping[int, float] | float | None = None,
        share: float = 0.15,
        width: int = 4,
        remember: bool = False,
        entries: int = 1000,
        ttl: float = 60.0,
        clock: Clock = time.monotonic,
    ) -> None:
        there = gates(model)
        missing = sorted(set(tables) - set(there))
        if missing:
            raise ConfigError(f"layer {missing[0]} has no gate", hint=f"layers with gates: {sorted(there)}")
        self._watch = TokenWatch(model, width)
        self.layers = {
            layer: _TableGate(
                there[layer],
                table,
                self._watch,
                certain[layer] if isinstance(certain, Mapping) else certain,
                ThreePaths(share=share, entries=entries, ttl=ttl, clock=clock),
                remember=remember,
            )
            for layer, table in tables.items()
        }
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> Self:
        if self._undo:
            raise ConfigError("this routing is already active", hint="create another TableRouting to nest them")
        self._watch.attach()
        for layer in self.layers.values():
            layer.find_own()
        self._undo = [patched(layer.gate, "forward", layer.forward) for layer in self.layers.values()]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        while self._undo:
            self._undo.pop()()
        self._watch.detach()

    def counts(self) -> dict[int, dict[str, float]]:
        """Return per layer: tokens in total and by path, their shares, the cache's hit rate, the largest learned share."""
        return {layer: gate.paths.counts() for layer, gate in self.layers.items()}

    def reset(self) -> None:
        """Reset the counts and forget recently learned routes."""
        for gate in self.layers.values():
            with gate.paths.lock:
                gate.paths.reset()
                gate.paths.cache.clear()
                gate.forget()


class _TableGate:
    """One layer: the replacement of its gate's ``forward``."""

    def __init__(
        self, gate: Any, table: LayerTable, watch: TokenWatch, certain: float | None, paths: ThreePaths, *, remember: bool
    ) -> None:
        self.gate, self.paths = gate, paths
        self._table, self._watch, self._certain = table, watch, certain
        self._recent = np.zeros(0, np.float32)
        self._remember = remember
        self._own: Callable[[Tensor], Any] = gate.forward
        self._k, self._experts = int(gate.top_k), int(gate.num_experts)
        # transformers omits the attribute if weights are always normalised (Mixtral).
        self._normalised = bool(getattr(gate, "norm_topk_prob", True))
        self._key = weights_key(gate.weight.detach().float().cpu().numpy())
        self._cached_experts = np.zeros((paths.cache.entries, self._k), np.int16)
        self._cached_weights = np.zeros((paths.cache.entries, self._k), np.float32)

    def forget(self) -> None:
        """Forget the table's recent confidences."""
        self._recent = self._recent[:0]

    def find_own(self) -> None:
        """Find the gate's original ``forward`` beneath any other active routing."""
        current = self.gate.forward
        outer = getattr(current, "__self__", None)
        self._own = outer._own if isinstance(outer, _TableGate) else current

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits [rows, experts], scores [rows, k] and indices [rows, k], as the gate's ``forward`` does."""
        rows = self._watch.rows
        if rows is None:
            own: tuple[Tensor, Tensor, Tensor] = self._own(hidden)
            return own
        flat = hidden.reshape(-1, hidden.shape[-1])
        contexts = rows.contexts.cpu().numpy()
        experts, weights, confidence = self._table.predict(contexts)
        experts, weights = experts[:, : self._k].copy(), weights[:, : self._k].copy()
        real = rows.real.cpu().numpy()
        learned = self._decide(flat, contexts, experts, weights, real, self._doubtful(confidence, real))
        return self._result(flat, experts, weights, learned)

    def _doubtful(self, confidence: NDArray[np.float32], real: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return for which rows the table is not confident; [rows]."""
        if self._certain is not None:
            return (confidence < self._certain) & real
        with self.paths.lock:
            self._recent = np.concatenate((self._recent, confidence[real]))[-RECENT:]
            limit = np.quantile(self._recent, self.paths.budget.share) if len(self._recent) else 0.0
        found: NDArray[np.bool_] = (confidence < limit) & real
        return found

    def _decide(
        self,
        hidden: Tensor,
        contexts: Tokens,
        experts: Experts,
        weights: Weights,
        real: NDArray[np.bool_],
        doubtful: NDArray[np.bool_],
    ) -> tuple[NDArray[np.int64], tuple[Tensor, Tensor, Tensor] | None]:
        """Fill in cached and learned routes; return the learned rows and the gate's output for them."""
        at = np.flatnonzero(real)
        unknown = np.flatnonzero(doubtful[at])
        keys = self._keys(contexts[at[unknown]])
        with self.paths.lock:
            choice = self.paths.choose(len(at), unknown, keys)
            experts[at[choice.cached]] = self._cached_experts[choice.slots]
            weights[at[choice.cached]] = self._cached_weights[choice.slots]
            rows = at[choice.ask]
            if not len(rows):
                return rows, None
            word: tuple[Tensor, Tensor, Tensor] = self._own(taken(hidden, rows))
            experts[rows] = word[2].detach().cpu().numpy()
            weights[rows] = word[1].detach().float().cpu().numpy()
            repeats, first = at[choice.repeats], rows[choice.repeated]
            experts[repeats], weights[repeats] = experts[first], weights[first]
            if self._remember:
                slots = self.paths.store(choice.asked)
                kept = slots >= 0
                self._cached_experts[slots[kept]] = experts[rows[kept]]
                self._cached_weights[slots[kept]] = weights[rows[kept]]
        return rows, word

    def _keys(self, contexts: Tokens) -> NDArray[np.uint64]:
        """Return the cache keys of the gate's decisions; without caching, all keys are distinct."""
        if not self._remember:
            return np.arange(len(contexts), dtype=np.uint64)
        columns = [np.ascontiguousarray(contexts[:, back]) for back in range(contexts.shape[1] - 1, -1, -1)]
        return context_keys(columns, self._key)

    def _result(
        self,
        hidden: Tensor,
        experts: Experts,
        weights: Weights,
        learned: tuple[NDArray[np.int64], tuple[Tensor, Tensor, Tensor] | None],
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self._normalised:
            weights = weights / np.maximum(weights.sum(1, keepdims=True), 1e-9)
        indices = torch.from_numpy(experts.astype(np.int64)).to(hidden.device)
        probabilities = torch.from_numpy(weights).to(hidden.device)
        # A table has no probabilities of the experts that were not chosen: they share the rest equally.
        others = max(1, self._experts - self._k)
        rest = ((1 - probabilities.sum(1, keepdim=True)) / others).clamp(min=1e-6)
        logits = rest.expand(-1, self._experts).scatter(1, indices, probabilities.clamp(min=1e-6)).log().to(hidden.dtype)
        rows, word = learned
        # Mixtral's scores are always float32; those of the other models have the model's type.
        scores = probabilities if not hasattr(self.gate, "norm_topk_prob") else probabilities.to(hidden.dtype)
        if word is not None:
            at = torch.from_numpy(rows).to(hidden.device)
            logits = logits.index_copy(0, at, word[0].to(logits.dtype))
            scores = scores.index_copy(0, at, word[1].to(scores.dtype))
        return logits, scores, indices
