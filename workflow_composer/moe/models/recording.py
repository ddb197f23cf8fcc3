"""Record the routes of a running transformers model, and measure the effect of changed routes on its predictions."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from workflow_composer.errors import InputError
from workflow_composer.moe.models.gates import TokenWatch, gates
from workflow_composer.moe.routing.routes import RecordedRoutes

RESAMPLES = 2000
"""Number of bootstrap resamples in `effect`."""


class RouteRecorder:
    """Records the routes of every forward call in its ``with`` block, whether chosen by the gate or by a `TableRouting`.

    Padding is excluded. Every text of every call is a separate sequence. With ``joined=True``, a call that continues a
    key-value cache continues its texts' sequences, row by row (greedy or sampled generation; beam search reorders rows).
    Memory: about 6 bytes per token, layer and expert. Calls from several threads are not interleaved.
    """

    def __init__(self, model: nn.Module, *, joined: bool = False) -> None:
        self._gates = gates(model)
        self._watch = TokenWatch(model, 1)
        self._joined = joined
        self._lock = threading.Lock()
        self._undo: list[Callable[[], None]] = []
        self._local = threading.local()
        self._calls: list[tuple[list[NDArray[Any]], dict[int, tuple[NDArray[np.int16], NDArray[np.float32]]]]] = []
        self._next = 0
        self._open: list[int] = []

    def __enter__(self) -> Self:
        self._watch.attach()
        last = max(self._gates)
        for layer, gate in self._gates.items():
            self._undo.append(gate.register_forward_hook(self._hook(layer, last=layer == last)).remove)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        while self._undo:
            self._undo.pop()()
        self._watch.detach()

    def _hook(self, layer: int, *, last: bool) -> Callable[[nn.Module, Any, tuple[Tensor, Tensor, Tensor]], None]:
        def keep(module: nn.Module, args: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
            rows = self._watch.rows
            if rows is None:
                return
            seen = self._local.__dict__.setdefault("layers", {})
            real = rows.real.cpu().numpy()
            experts = output[2].detach().cpu().numpy().astype(np.int16)[real]
            seen[layer] = (experts, output[1].detach().float().cpu().numpy()[real])
            if last:
                del self._local.layers
                text = np.repeat(np.arange(rows.batch), len(real) // rows.batch)[real]
                places = [rows.contexts[:, -1].cpu().numpy()[real], text, rows.positions.cpu().numpy()[real]]
                with self._lock:
                    self._keep(places, seen, rows.batch)

        return keep

    def _keep(self, places: list[NDArray[Any]], layers: dict[int, Any], batch: int) -> None:
        continues = self._joined and len(self._open) == batch and places[2].size and places[2].min() > 0
        if not continues:
            self._open = list(range(self._next, self._next + batch))
            self._next += batch
        places[1] = np.asarray(self._open, dtype=np.int64)[places[1]]
        self._calls.append((places, layers))

    def routes(self) -> RecordedRoutes:
        """Return the complete recording. Raises `InputError` if it is empty."""
        with self._lock:
            calls = list(self._calls)
        if not calls:
            raise InputError("no routes were recorded", hint="run the model inside the recorder's with block")
        tokens, sequences, positions = (np.concatenate([places[i] for places, _ in calls]) for i in range(3))
        order = np.lexsort((positions, sequences))
        layers = sorted(self._gates)
        return RecordedRoutes(
            tokens[order],
            sequences[order],
            positions[order],
            {layer: np.concatenate([found[layer][0] for _, found in calls])[order] for layer in layers},
            {layer: np.concatenate([found[layer][1] for _, found in calls])[order] for layer in layers},
        )


@dataclass(frozen=True)
class Prediction:
    """A model's predictions for some text, row by row.

    ``losses`` [rows]: nats, summed over a row's ``tokens_per_row`` [rows] predicted tokens. ``likeliest``: the most likely
    next tokens, one array [batch, length - 1] per batch.
    """

    losses: NDArray[np.float64]
    tokens_per_row: NDArray[np.int64]
    likeliest: tuple[NDArray[np.int64], ...]

    @property
    def tokens(self) -> int:
        """Number of predicted tokens."""
        return int(self.tokens_per_row.sum())

    @property
    def loss(self) -> float:
        """Mean loss, in nats per token."""
        return float(self.losses.sum() / self.tokens_per_row.sum())

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(self.loss)


@dataclass(frozen=True)
class Effect:
    """Comparison of a changed model's predictions with the original model's on the same text."""

    perplexity: float
    untouched: float
    agreement: float
    """Share of positions with the same most likely next token."""
    interval: tuple[float, float]
    """95 % interval of `increase`, by the percentile bootstrap over rows (Efron 1979): similar text, the same model."""

    @property
    def increase(self) -> float:
        """The relative increase of perplexity; 0.01 is one percent."""
        return self.perplexity / self.untouched - 1


def predict(model: nn.Module, batches: Iterable[Tensor]) -> Prediction:
    """Run the model over batches of token ids [batch, length] without padding; a row's first token is not predicted."""
    losses, counts, likeliest = [np.zeros(0)], [np.zeros(0, np.int64)], []
    with torch.inference_mode():
        for ids in batches:
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
            goals = ids[:, 1:]
            each = nn.functional.cross_entropy(logits.flatten(0, 1), goals.flatten(), reduction="none")
            losses.append(each.view_as(goals).double().sum(1).cpu().numpy())
            counts.append(np.full(len(goals), goals.shape[1], np.int64))
            likeliest.append(logits.argmax(-1).cpu().numpy())
    made = Prediction(np.concatenate(losses), np.concatenate(counts), tuple(likeliest))
    if not made.tokens:
        raise InputError("no text to predict")
    return made


def effect(changed: Prediction, untouched: Prediction) -> Effect:
    """Compare two predictions of the same batches. Deterministic. Raises `InputError` if the batches differ."""
    if [a.shape for a in changed.likeliest] != [a.shape for a in untouched.likeliest]:
        raise InputError("the two predictions belong to different texts")
    same = sum(int((a == b).sum()) for a, b in zip(changed.likeliest, untouched.likeliest, strict=True))
    more, tokens = changed.losses - untouched.losses, untouched.tokens_per_row
    drawing, rows, found = np.random.default_rng(0), len(more), []
    for _ in range(RESAMPLES):  # one by one: a single array would take thousands of times the rows' memory
        drawn = drawing.integers(rows, size=rows)
        found.append(more[drawn].sum() / tokens[drawn].sum())
    low, high = np.expm1(np.quantile(found, [0.025, 0.975])).tolist()
    return Effect(changed.perplexity, untouched.perplexity, same / untouched.tokens, (low, high))


def rows_of(ids: Sequence[int], length: int, batch: int = 16) -> list[Tensor]:
    """Split token ids into batches of rows of ``length``; drop the incomplete rest."""
    rows = torch.tensor(ids[: len(ids) // length * length]).view(-1, length)
    return list(rows.split(batch))
