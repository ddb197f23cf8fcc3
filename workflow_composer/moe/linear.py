"""A linear predictor of routes: from the hidden state that enters a layer, before its attention, to the experts behind it.

What a table of token ids is measured against: it sees the text so far through the model's own eyes, but only once the token
has reached the layer. Fitted by ridge regression from hidden states to the gate's logits, in closed form; the likeliest
experts are those of the largest outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from workflow_composer.moe.gates import gates, inner_model

Hook = Callable[[int, Tensor], None]

_RIDGE = 1e-2


def watch_layers(model: nn.Module, hook: Hook) -> Callable[[], None]:
    """Call ``hook(layer, hidden)`` as hidden [batch, length, width] enters a layer with experts; returns what ends that."""
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
        """Learn from the model's own run over batches of token ids [batch, length]."""
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
        """The ``count`` likeliest experts [rows, count] of layer ``layer`` + ahead for hidden [..., width]."""
        return (features(hidden) @ self.weights[layer]).topk(count, dim=-1).indices


def features(hidden: Tensor) -> Tensor:
    """The hidden state scaled to unit mean square, as the layer's own norm does, with a one behind it."""
    flat = hidden.detach().reshape(-1, hidden.shape[-1]).float()
    flat = flat * torch.rsqrt(flat.pow(2).mean(-1, keepdim=True) + 1e-6)
    return torch.cat((flat, torch.ones_like(flat[:, :1])), dim=-1)


def _summing(
    layer: int, target: dict[int, int], hidden: dict[int, Tensor], sums: dict[int, list[Tensor]]
) -> Callable[[nn.Module, Any, tuple[Tensor, Tensor, Tensor]], None]:
    """A hook that adds up the normal equations of the predictor whose target is this layer."""
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
