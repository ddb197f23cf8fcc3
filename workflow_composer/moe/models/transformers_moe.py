"""Tables in the place of a transformers model's gates: on inside a ``with`` block, layer by layer, and off without a trace.

::

    tables = {layer: learn(...) for layer in gates(model)}
    with TableRouting(model, tables, share=0.15) as routing:
        model.generate(**tokenizer(text, return_tensors="pt"))
    routing.counts()

A token goes to the experts that the layer's table names for its context. Where the table is not confident, the gate is
asked, for those tokens alone and never for more than ``share`` of a layer's tokens at any moment; where that is spent, the
table's word counts after all.
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
"""Tokens whose confidences say which are the least."""


class LayerTable(Protocol):
    """What a layer's table must do."""

    def predict(self, contexts: Tokens) -> tuple[Experts, Weights, NDArray[np.float32]]:
        """For contexts [n, width], the token itself last: experts [n, k], their gate weights [n, k], a confidence [n]."""


class TableRouting:
    """Routes a model by tables while its ``with`` block runs.

    Blocks nest: the innermost routes, and what it leaves open goes to the model's own gate. Forward calls may come from
    several threads at once; entering and leaving must not overlap with them. Rows that are padding are routed by the table
    and not counted. A gate that is called outside of the model's own forward call is the untouched one.

    Args:
        model: an OLMoE, Qwen2-MoE or Mixtral of transformers 5, or any model built like these.
        tables: layer -> table. Layers without one keep their gate.
        certain: the confidence from which a table is believed without asking: one number, or layer -> number. None: what
            leaves the share to the least confident tokens of the layer's last `RECENT`.
        share: a layer's gate is asked for at most ``share * (n + 1)`` of its first n tokens, for every n.
        width: tokens in a context, at least what the tables look at; also the cache's key.
        remember: take the gate's latest word for the same ``width`` tokens before it is asked. This saves asking, but costs
            quality, since other texts lead to other routes after the same few tokens.
        entries, ttl, clock: the cache of lately learned routes, one per layer.

    Raises `ConfigError` where a table's layer has no gate.
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
        """Per layer: tokens, those of each path and their shares, the cache's hit rate, the worst prefix's learned share."""
        return {layer: gate.paths.counts() for layer, gate in self.layers.items()}

    def reset(self) -> None:
        """Reset the counts and forget recently learned routes."""
        for gate in self.layers.values():
            with gate.paths.lock:
                gate.paths.reset()
                gate.paths.cache.clear()
                gate.forget()


class _TableGate:
    """One layer: what stands in the place of its gate's ``forward``."""

    def __init__(
        self, gate: Any, table: LayerTable, watch: TokenWatch, certain: float | None, paths: ThreePaths, *, remember: bool
    ) -> None:
        self.gate, self.paths = gate, paths
        self._table, self._watch, self._certain = table, watch, certain
        self._recent = np.zeros(0, np.float32)
        self._remember = remember
        self._own: Callable[[Tensor], Any] = gate.forward
        self._k, self._experts = int(gate.top_k), int(gate.num_experts)
        # transformers leaves the attribute out where weights are always normalised (Mixtral).
        self._normalised = bool(getattr(gate, "norm_topk_prob", True))
        self._key = weights_key(gate.weight.detach().float().cpu().numpy())
        self._cached_experts = np.zeros((paths.cache.entries, self._k), np.int16)
        self._cached_weights = np.zeros((paths.cache.entries, self._k), np.float32)

    def forget(self) -> None:
        """Forget how confident the table was lately."""
        self._recent = self._recent[:0]

    def find_own(self) -> None:
        """Find the gate's own ``forward``, beneath whatever other routing is on."""
        current = self.gate.forward
        outer = getattr(current, "__self__", None)
        self._own = outer._own if isinstance(outer, _TableGate) else current

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [rows, experts], scores [rows, k], indices [rows, k]; as the gate's own ``forward``."""
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
        """Which rows the table is not believed for; [rows]."""
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
        """Fill in what is cached or learned; returns the learned rows and the gate's word on them."""
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
        """What the gate's word is remembered under; where nothing is remembered, no two are alike."""
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
        # What a gate believes of the experts that it did not choose is not in a table: the rest, in equal parts.
        others = max(1, self._experts - self._k)
        rest = ((1 - probabilities.sum(1, keepdim=True)) / others).clamp(min=1e-6)
        logits = rest.expand(-1, self._experts).scatter(1, indices, probabilities.clamp(min=1e-6)).log().to(hidden.dtype)
        rows, word = learned
        # Mixtral's scores are float32 whatever the model's type; the others have the model's.
        scores = probabilities if not hasattr(self.gate, "norm_topk_prob") else probabilities.to(hidden.dtype)
        if word is not None:
            at = torch.from_numpy(rows).to(hidden.device)
            logits = logits.index_copy(0, at, word[0].to(logits.dtype))
            scores = scores.index_copy(0, at, word[1].to(scores.dtype))
        return logits, scores, indices
