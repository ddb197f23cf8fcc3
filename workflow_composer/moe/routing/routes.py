"""Recorded routes: which experts a mixture-of-experts model gave to which token, layer by layer.

A recording is JSON lines, one per token and layer, which any program can write::

    {"token": 17, "layer": 0, "experts": [3, 9], "weights": [0.41, 0.22], "sequence": 0, "position": 5}

``token``, ``layer`` and ``experts`` are required. ``weights`` are the gate's, one per expert. ``sequence`` and ``position``
are the number of the token's text and its position there; without them, the lines of one layer are one sequence in file
order. Every layer has a line for every token, in the same order. numpy only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workflow_composer.errors import InputError
from workflow_composer.moe.routing.hashing import NO_TOKEN
from workflow_composer.storage.appending import PRIVATE
from workflow_composer.storage.lines import decoded, lines

HIGHEST = 2**31 - 1

Tokens = NDArray[np.int64]
Experts = NDArray[np.int16]
Weights = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class RecordedRoutes:
    """The routes of n tokens.

    ``tokens``, ``sequences``, ``positions``: [n]; ``experts``: layer -> [n, k], by descending weight; ``weights``: layer ->
    [n, k], or empty if the recording has none. Tokens of one sequence are contiguous, in order of position.
    """

    tokens: Tokens
    sequences: Tokens
    positions: Tokens
    experts: Mapping[int, Experts]
    weights: Mapping[int, Weights]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def layers(self) -> tuple[int, ...]:
        """The recorded layers, in order."""
        return tuple(sorted(self.experts))

    @property
    def expert_count(self) -> int:
        """One more than the highest expert number in any layer."""
        return 1 + max((int(chosen.max()) for chosen in self.experts.values() if chosen.size), default=-1)

    def contexts(self, width: int) -> Tokens:
        """Return each token's last ``width`` tokens [n, width], itself last; -1 before the start of its sequence."""
        found = np.full((len(self), width), NO_TOKEN, dtype=np.int64)
        for back in range(width):
            source = slice(0, len(self) - back)
            same = self.sequences[back:] == self.sequences[source]
            same &= self.positions[back:] - self.positions[source] == back
            found[back:, width - 1 - back] = np.where(same, self.tokens[source], NO_TOKEN)
        return found

    def take(self, chosen: NDArray[np.bool_]) -> RecordedRoutes:
        """Return the routes of the tokens for which ``chosen`` [n] is true."""
        return RecordedRoutes(
            self.tokens[chosen],
            self.sequences[chosen],
            self.positions[chosen],
            {layer: rows[chosen] for layer, rows in self.experts.items()},
            {layer: rows[chosen] for layer, rows in self.weights.items()},
        )

    def split(self, share: float) -> tuple[RecordedRoutes, RecordedRoutes]:
        """Return the first ``share`` of the sequences, and the rest; a single sequence is cut in two.

        Raises `InputError` if a part would be empty.
        """
        known = np.unique(self.sequences)
        if len(known) > 1:
            first = np.isin(self.sequences, known[: round(share * len(known))])
        else:
            first = np.arange(len(self)) < round(share * len(self))
        if not first.any() or first.all():
            raise InputError(f"a recording of {len(self)} tokens cannot be split at {share:g}", hint="record more text")
        return self.take(first), self.take(~first)

    def lines(self) -> Iterator[str]:
        """Yield the recording's JSON lines, token by token, without line ends."""
        for row in range(len(self)):
            for layer in self.layers:
                fields: dict[str, Any] = {
                    "token": int(self.tokens[row]),
                    "layer": layer,
                    "experts": self.experts[layer][row].tolist(),
                }
                if layer in self.weights:
                    fields["weights"] = [round(float(w), 6) for w in self.weights[layer][row]]
                fields["sequence"], fields["position"] = int(self.sequences[row]), int(self.positions[row])
                yield json.dumps(fields)

    def write(self, path: Path) -> None:
        """Write the recording, readable by its owner only: its tokens are a text. Raises `OSError`."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, PRIVATE)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in self.lines())


def read_routes(path: Path) -> RecordedRoutes:
    """Read a recording. Raises `InputError`, which names the faulty line and the reason."""
    return parse_routes((decoded(line, f"{path}, line {number}") for number, line in enumerate(lines(path), 1)), str(path))


def parse_routes(written: Iterable[str], name: str = "recording") -> RecordedRoutes:
    """Return the routes of a recording's lines. Raises `InputError`."""
    layers: dict[int, _Layer] = {}
    for number, line in enumerate(written, start=1):
        if not line.strip():
            continue
        place = f"{name}, line {number}"
        try:
            fields = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            raise InputError(f"{place}: not JSON") from None
        if not isinstance(fields, dict):
            raise InputError(f"{place}: not a JSON object")
        layer = _whole(fields, "layer", place)
        layers.setdefault(layer, _Layer()).add(fields, place)
    if not layers:
        raise InputError(
            f"{name} contains no routes", hint="example of a line: {'token': 17, 'layer': 0, 'experts': [3, 9]}"
        )
    first, *others = (layers[layer] for layer in sorted(layers))
    if any(other.place != first.place for other in others):
        raise InputError(f"{name}: all layers must have the same tokens in the same order")
    weighted = all(layer.weights is not None for layer in layers.values())
    tokens, sequences, positions = np.array(first.place, dtype=np.int64).T.copy()
    routes = RecordedRoutes(
        tokens,
        sequences,
        positions,
        {layer: np.array(rows.experts, dtype=np.int16) for layer, rows in layers.items()},
        {layer: np.array(rows.weights, dtype=np.float32) for layer, rows in layers.items()} if weighted else {},
    )
    return _in_order(routes)


class _Layer:
    """The parsed lines of one layer: places (token, sequence, position), and their routes."""

    def __init__(self) -> None:
        self.place: list[tuple[int, int, int]] = []
        self.experts: list[list[int]] = []
        self.weights: list[list[float]] | None = []

    def add(self, fields: dict[str, Any], place: str) -> None:
        token, row = _whole(fields, "token", place), len(self.place)
        sequence = _whole(fields, "sequence", place) if "sequence" in fields else 0
        position = _whole(fields, "position", place) if "position" in fields else row
        experts = _experts(fields.get("experts"), place)
        if self.experts and len(experts) != len(self.experts[0]):
            raise InputError(f"{place}: {len(experts)} experts, but the layer's first line has {len(self.experts[0])}")
        weights = fields.get("weights")
        if weights is None:
            self.weights = None
        elif self.weights is not None:
            self.weights.append(_weights(weights, len(experts), place))
        self.place.append((token, sequence, position))
        self.experts.append(experts)


def _whole(fields: Mapping[str, Any], name: str, place: str) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= HIGHEST:
        raise InputError(f"{place}: {name} must be a non-negative integer, not {str(value)[:40]!r}")
    return value


def _experts(value: Any, place: str) -> list[int]:
    valid = isinstance(value, list) and value and all(type(e) is int and 0 <= e < 2**15 for e in value)
    if not valid or len(set(value)) != len(value):
        raise InputError(
            f"{place}: experts must be a list of distinct integers from 0 to {2**15 - 1}, not {str(value)[:40]!r}"
        )
    return list(value)


def _weights(value: Any, count: int, place: str) -> list[float]:
    numbers = isinstance(value, list) and all(type(w) in (int, float) and 0 <= w < float("inf") for w in value)
    if not numbers or len(value) != count:
        raise InputError(f"{place}: weights must be a list of {count} numbers, one per expert, not {str(value)[:40]!r}")
    return [float(w) for w in value]


def _in_order(routes: RecordedRoutes) -> RecordedRoutes:
    order = np.lexsort((routes.positions, routes.sequences))
    if (order[1:] > order[:-1]).all():
        return routes
    return RecordedRoutes(
        routes.tokens[order],
        routes.sequences[order],
        routes.positions[order],
        {layer: rows[order] for layer, rows in routes.experts.items()},
        {layer: rows[order] for layer, rows in routes.weights.items()},
    )


def joined(parts: Sequence[RecordedRoutes]) -> RecordedRoutes:
    """Join several recordings of one model. Raises `ValueError` if there are none."""
    first = parts[0]
    return RecordedRoutes(
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.sequences for part in parts]),
        np.concatenate([part.positions for part in parts]),
        {layer: np.concatenate([part.experts[layer] for part in parts]) for layer in first.experts},
        {layer: np.concatenate([part.weights[layer] for part in parts]) for layer in first.weights},
    )
