"""Run a transformers mixture-of-experts model with most of its experts in a file, fetched on demand or in advance.

::

    with OffloadedModel(model, path, slots=8, link=Link(100e6), forecaster=TableForecaster(tables)) as offloaded:
        model.generate(...)
    offloaded.store.counts
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn

from workflow_composer.errors import ConfigError
from workflow_composer.moe.models.gates import TokenWatch, gates, inner_model, patched
from workflow_composer.moe.offload.expert_cache import Keep
from workflow_composer.moe.offload.expert_store import ExpertFile, ExpertStore, Link
from workflow_composer.moe.routing.hashing import Tokens, suffix_keys
from workflow_composer.moe.routing.tables import RouteTables

# -------------------------------------------------------------------------------------------------------- linear predictor
#
# Predicts a layer's experts from the hidden state that enters a layer, before its attention. It is the baseline for tables
# of token ids: it sees the model's state, but only when the token has reached the layer. It is fitted by ridge regression
# from hidden states to the gate's logits, in closed form; the most likely experts have the largest outputs.


Hook = Callable[[int, Tensor], None]

_RIDGE = 1e-2


def watch_layers(model: nn.Module, hook: Hook) -> Callable[[], None]:
    """Call ``hook(layer, hidden)`` when hidden [batch, length, width] enters a layer with experts; return the remover."""
    layers: Any = inner_model(model).layers
    handles = [
        layers[number].register_forward_pre_hook(
            lambda module, args, kwargs, number=number: hook(number, args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
        )
        for number in gates(model)
    ]

    def end() -> None:
        for handle in handles:
            handle.remove()

    return end


class LinearPredictor:
    """Predicts the experts of layer ``l + ahead`` from the hidden state that enters layer ``l``."""

    def __init__(self, weights: dict[int, Tensor], ahead: int) -> None:
        self.weights, self.ahead = weights, ahead

    @classmethod
    def fit(cls, model: nn.Module, batches: Iterable[Tensor], *, ahead: int = 0) -> LinearPredictor:
        """Learn from runs of the model over batches of token ids [batch, length]."""
        found = gates(model)
        hidden: dict[int, Tensor] = {}
        sums: dict[int, list[Tensor]] = {}
        numbers = sorted(found)
        target = dict(zip(numbers, numbers[ahead:], strict=False))
        end = watch_layers(model, lambda layer, state: hidden.__setitem__(layer, features(state)))
        handles = [found[layer].register_forward_hook(_summing(layer, target, hidden, sums)) for layer in numbers]
        try:
            with torch.inference_mode():
                for ids in batches:
                    model(input_ids=ids, use_cache=False)
        finally:
            end()
            for handle in handles:
                handle.remove()
        weights = {}
        for layer, (gram, moment) in sums.items():
            identity = torch.eye(len(gram), dtype=gram.dtype) * (_RIDGE * gram.diagonal().mean())
            weights[layer] = torch.linalg.solve(gram + identity, moment).float()
        return cls(weights, ahead)

    def likely(self, layer: int, hidden: Tensor, count: int) -> Tensor:
        """Return the ``count`` most likely experts [rows, count] of layer ``layer`` + ahead for hidden [..., width]."""
        return (features(hidden) @ self.weights[layer]).topk(count, dim=-1).indices


def features(hidden: Tensor) -> Tensor:
    """Return the hidden state scaled to unit mean square, as the layer's norm does, with a one appended."""
    flat = hidden.detach().reshape(-1, hidden.shape[-1]).float()
    flat = flat * torch.rsqrt(flat.pow(2).mean(-1, keepdim=True) + 1e-6)
    return torch.cat((flat, torch.ones_like(flat[:, :1])), dim=-1)


def _summing(
    layer: int, target: dict[int, int], hidden: dict[int, Tensor], sums: dict[int, list[Tensor]]
) -> Callable[[nn.Module, Any, tuple[Tensor, Tensor, Tensor]], None]:
    """Return a hook that accumulates the normal equations of the predictor for this target layer."""
    source = next((origin for origin, goal in target.items() if goal == layer), None)

    def add(module: nn.Module, args: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
        if source is None:
            return
        x, y = hidden[source].double(), output[0].detach().double()
        y = y - y.mean(-1, keepdim=True)
        gram, moment = x.T @ x, x.T @ y
        if source in sums:
            sums[source][0] += gram
            sums[source][1] += moment
        else:
            sums[source] = [gram, moment]

    return add


# -------------------------------------------------------------------------------------------------------------- offloading


class Forecaster(Protocol):
    """Predicts the experts of one token at a time; layer -> experts, most likely first."""

    def for_token(self, contexts: Tokens) -> Mapping[int, Sequence[int]]:
        """Return the predictions that are available when the token is known; contexts [1, width]."""

    def for_layer(self, layer: int, hidden: Tensor) -> Mapping[int, Sequence[int]]:
        """Return the predictions that are available when the hidden state enters a layer, before attention."""


class TableForecaster:
    """Predicts a token's experts in every layer from tables, if these are confident enough, as soon as the token is known.

    Tokens are looked up in dictionaries, whose keys are computed once for all layers: a third of the time of
    `RouteTables.predict` for a batch of one.
    """

    def __init__(self, tables: Mapping[int, RouteTables], *, least: float = 0.0) -> None:
        self._tables, self._least = dict(sorted(tables.items())), least
        self._rows: dict[int, dict[int, int]] = {}
        for layer, table in self._tables.items():
            first = len(table) - len(table.keys)
            self._rows[layer] = {key: first + at for at, key in enumerate(table.keys.tolist())}
        self._width = max((table.width for table in self._tables.values()), default=1)

    def for_token(self, contexts: Tokens) -> Mapping[int, Sequence[int]]:
        """Return the experts of all layers."""
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
        """Return nothing, because a table does not use hidden states."""
        return {}


class OffloadedModel:
    """In its ``with`` block, the model's experts are in the file at ``path``, and at most ``slots`` per layer in memory.

    The experts' parameters are removed from the model and restored from the file, bit for bit, at the end. Outputs equal
    those of transformers' eager experts: results are added in the order of experts, regardless of their arrival. Forecasts
    are made for calls with a single token (generation of one text); longer calls fetch experts on demand, one at a time. For
    one computing thread, and for inference only.
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
    """One layer's experts, fetched on demand."""

    def __init__(self, store: ExpertStore, layer: int, module: Any) -> None:
        self._store, self._layer, self._act = store, layer, module.act_fn

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Compute the same as the eager experts of transformers: [rows, width] in and out."""
        needed = torch.unique(top_k_index).tolist()
        self._store.begin(self._layer, needed)
        found = torch.zeros_like(hidden_states)
        for expert in needed:
            up, down = self._store.acquire(self._layer, expert)
            place, rows = torch.where((top_k_index == expert).T)  # in transformers' order, for bit-identical sums
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
