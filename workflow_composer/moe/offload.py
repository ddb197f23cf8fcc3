"""Run a transformers mixture-of-experts model with most of its experts in a file, fetched when or before they are needed.

::

    with OffloadedModel(model, path, slots=8, link=Link(100e6), forecaster=TableForecaster(tables)) as offloaded:
        model.generate(...)
    offloaded.store.counts
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn

from workflow_composer.errors import ConfigError
from workflow_composer.moe.expert_cache import Keep
from workflow_composer.moe.expert_store import ExpertFile, ExpertStore, Link
from workflow_composer.moe.gates import TokenWatch, gates, inner_model, patched
from workflow_composer.moe.hashing import Tokens, suffix_keys
from workflow_composer.moe.linear import watch_layers
from workflow_composer.moe.tables import RouteTables


class Forecaster(Protocol):
    """Predicts the experts of one token at a time; layer -> experts, likeliest first."""

    def for_token(self, contexts: Tokens) -> Mapping[int, Sequence[int]]:
        """What is expected as soon as the token is known; contexts [1, width]."""

    def for_layer(self, layer: int, hidden: Tensor) -> Mapping[int, Sequence[int]]:
        """What is expected as its hidden state enters a layer, before attention."""


class TableForecaster:
    """Tables say at the token's beginning which experts it will need in every layer, where they are confident enough.

    One token at a time is looked up by dictionaries, whose keys are made once for all layers: a third of the time that
    `RouteTables.predict` takes for a batch of one.
    """

    def __init__(self, tables: Mapping[int, RouteTables], *, least: float = 0.0) -> None:
        self._tables, self._least = dict(sorted(tables.items())), least
        self._rows: dict[int, dict[int, int]] = {}
        for layer, table in self._tables.items():
            first = len(table) - len(table.keys)
            self._rows[layer] = {key: first + at for at, key in enumerate(table.keys.tolist())}
        self._width = max((table.width for table in self._tables.values()), default=1)

    def for_token(self, contexts: Tokens) -> Mapping[int, Sequence[int]]:
        """All layers' experts."""
        columns = [np.ascontiguousarray(contexts[:1, at]) for at in range(contexts.shape[1] - 1, -1, -1)]
        keys = [int(key[0]) for key in suffix_keys(columns[: self._width])]
        token = int(contexts[0, -1])
        found: dict[int, Sequence[int]] = {}
        for layer, table in self._tables.items():
            row = token if 0 <= token < table.vocabulary else table.vocabulary
            known = self._rows[layer]
            row = next((known[key] for key in reversed(keys[1:]) if key in known), row)
            if table.confidence[row] >= self._least:
                found[layer] = table.experts[row].tolist()
        return found

    def for_layer(self, layer: int, hidden: Tensor) -> Mapping[int, Sequence[int]]:
        """Nothing: a table does not see hidden states."""
        return {}


class OffloadedModel:
    """While the block runs, the model's experts are in the file at ``path`` and at most ``slots`` of each layer in memory.

    The experts' parameters are taken out of the model and put back from the file, bit for bit, at the end. Outputs are those
    of transformers' eager experts: each expert's part is added in the order of experts, whichever arrived first. Forecasts
    are made for calls of a single token (generation of one text); longer calls fetch on demand, an expert at a time. For one
    computing thread, and for inference.
    """

    def __init__(
        self,
        model: nn.Module,
        path: Path,
        *,
        slots: int,
        keep: Keep = Keep.LRU,
        link: Link | None = None,
        pinned: Mapping[int, Sequence[int]] | None = None,
        forecaster: Forecaster | None = None,
        width: int = 4,
    ) -> None:
        self._model, self._path, self._forecaster = model, path, forecaster
        self._modules: dict[int, Any] = {layer: _experts(model, layer) for layer in gates(model)}
        self._options: dict[str, Any] = {"slots": slots, "keep": keep, "link": link, "pinned": pinned}
        self._watch = TokenWatch(model, width)
        self._undo: list[Callable[[], None]] = []
        self.store: ExpertStore

    def __enter__(self) -> Self:
        file = ExpertFile(self._path, self._modules)
        self.store = ExpertStore(file, **self._options)
        for layer, module in self._modules.items():
            for name in ("gate_up_proj", "down_proj"):
                getattr(module, name).data = torch.empty(0)
            self._undo.append(patched(module, "forward", _Experts(self.store, layer, module).forward))
        if self._forecaster is not None:
            self._watch.attach()
            self._undo.append(self._watch.detach)
            handle = inner_model(self._model).register_forward_pre_hook(self._on_token)
            self._undo += [handle.remove, watch_layers(self._model, self._on_layer)]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        while self._undo:
            self._undo.pop()()
        self.store.close()
        for layer, module in self._modules.items():
            parts = [self.store.file.read(layer, expert) for expert in range(self.store.file.experts[layer])]
            module.gate_up_proj.data = torch.stack([up for up, _ in parts])
            module.down_proj.data = torch.stack([down for _, down in parts])

    def _on_token(self, module: nn.Module, args: Any) -> None:
        rows = self._watch.rows
        if self._forecaster is not None and rows is not None and len(rows.contexts) == 1:
            for layer, experts in self._forecaster.for_token(rows.contexts.numpy()).items():
                self.store.want(layer, experts)

    def _on_layer(self, layer: int, hidden: Tensor) -> None:
        if self._forecaster is not None and hidden.shape[:2].numel() == 1:
            for target, experts in self._forecaster.for_layer(layer, hidden).items():
                self.store.want(target, experts)


class _Experts:
    """One layer's experts, fetched as needed."""

    def __init__(self, store: ExpertStore, layer: int, module: Any) -> None:
        self._store, self._layer, self._act = store, layer, module.act_fn

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """As the eager experts of transformers: [rows, width] in and out."""
        needed = torch.unique(top_k_index).tolist()
        self._store.begin(self._layer, needed)
        found = torch.zeros_like(hidden_states)
        for expert in needed:
            up, down = self._store.acquire(self._layer, expert)
            place, rows = torch.where((top_k_index == expert).T)  # in transformers' order, for the same sums
            gate, linear = nn.functional.linear(hidden_states[rows], up).chunk(2, dim=-1)
            part = nn.functional.linear(self._act(gate) * linear, down) * top_k_weights[rows, place, None]
            found.index_add_(0, rows, part.to(found.dtype))
            self._store.release(self._layer, expert)
        return found


def _experts(model: nn.Module, layer: int) -> Any:
    layers: Any = inner_model(model).layers
    experts = getattr(layers[layer].mlp, "experts", None)
    if experts is None or not hasattr(experts, "gate_up_proj") or not hasattr(experts, "down_proj"):
        raise ConfigError(f"layer {layer} has no experts with gate_up_proj and down_proj at mlp.experts")
    return experts
