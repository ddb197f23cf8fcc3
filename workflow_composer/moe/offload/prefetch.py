"""Simulator of expert prefetching, driven by recorded routes, for machines that are not available.

Tokens are processed one at a time, as in generation. In each layer, attention runs first, then the gate chooses the experts,
then these run. One link makes one transfer at a time, without interruption, into a bounded memory. Experts chosen by the
gate are transferred before predicted ones. Predictions are known either with the token (a table's, for all layers) or when
the token reaches a layer (a linear predictor's, for that layer or a few layers ahead).

Times are in any unit that the caller chooses. numpy only; `offloaded_model` has the real offloading.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from workflow_composer.errors import ConfigError, InputError
from workflow_composer.moe.offload.expert_cache import ExpertCache, Keep
from workflow_composer.moe.routing.routes import Experts, RecordedRoutes

Likely = NDArray[np.int16]


@dataclass(frozen=True)
class Machine:
    """Times of a transfer and of a layer: ``attention`` before the layer's gate, ``experts`` after it."""

    slots: int
    """Experts of each layer that fit into memory."""
    transfer: float
    attention: float
    experts: float

    def __post_init__(self) -> None:
        if self.slots < 1 or min(self.transfer, self.attention, self.experts) < 0:
            raise ConfigError("a machine needs at least one slot per layer and non-negative times")


@dataclass(frozen=True, eq=False)
class ExpertForecast:
    """Predicted experts: layer -> [n, m], most likely first, -1 for none.

    ``known`` is the number of layers in advance at which a layer's prediction is known: None from the start of the token, 0
    when the token reaches the layer. ``lookahead`` is the maximum number of layers ahead of the running one to prefetch for.
    """

    experts: Mapping[int, Likely]
    known: int | None = None
    lookahead: int | None = None


@dataclass
class LayerCount:
    """Counts of one layer; a hit is an expert that was resident when the gate chose it."""

    uses: int = 0
    hits: int = 0
    late: int = 0
    """Experts in transfer when the gate chose them: waited for, but less than a full transfer."""
    demanded: int = 0
    """Transfers that began after the gate's choice."""
    fetched: int = 0
    """Transfers started by a prediction."""
    useless: int = 0
    """Predicted transfers that the token did not use."""
    waited: float = 0.0

    @property
    def hit_rate(self) -> float:
        """Hits per use."""
        return self.hits / self.uses if self.uses else 0.0


@dataclass
class PrefetchOutcome:
    """A policy's result over a whole recording."""

    tokens: int
    time: float
    layers: dict[int, LayerCount] = field(default_factory=dict)

    @property
    def time_per_token(self) -> float:
        """Mean time per token, in the machine's unit."""
        return self.time / self.tokens

    @property
    def hit_rate(self) -> float:
        """Hits per use over all layers."""
        uses = sum(count.uses for count in self.layers.values())
        return sum(count.hits for count in self.layers.values()) / uses if uses else 0.0

    @property
    def transfers_per_token(self) -> float:
        """Mean number of transfers per token, demanded and predicted."""
        return sum(count.demanded + count.fetched for count in self.layers.values()) / self.tokens


def simulate(
    routes: RecordedRoutes,
    machine: Machine,
    *,
    keep: Keep = Keep.LRU,
    forecast: ExpertForecast | None = None,
    pinned: Mapping[int, Sequence[int]] | None = None,
) -> PrefetchOutcome:
    """Run the recording's tokens through the machine. ``pinned``: layer -> experts that are kept under `Keep.PINNED`.

    Raises `InputError` if the forecast is not for these tokens.
    """
    if forecast is not None:
        for layer, rows in forecast.experts.items():
            if len(rows) != len(routes) or layer not in routes.experts:
                raise InputError(f"the forecast for layer {layer} must have one row for each of the {len(routes)} tokens")
    run = _Simulation(routes, machine, keep, forecast, pinned or {})
    for row in range(len(routes)):
        run.token(row)
    return PrefetchOutcome(len(routes), run.now, run.counts)


class _Simulation:
    """The state of a simulation: the clock, the link, and each layer's memory."""

    def __init__(
        self,
        routes: RecordedRoutes,
        machine: Machine,
        keep: Keep,
        forecast: ExpertForecast | None,
        pinned: Mapping[int, Sequence[int]],
    ) -> None:
        self.routes, self.machine, self.forecast = routes, machine, forecast
        self.layers = routes.layers
        self.caches = {layer: ExpertCache(machine.slots, keep, pinned=pinned.get(layer, ())) for layer in self.layers}
        for cache in self.caches.values():
            for expert in cache.pinned:
                cache.place(expert)
        self.counts = {layer: LayerCount() for layer in self.layers}
        self.now = 0.0
        self.link_free = 0.0
        self.queue: list[tuple[int, int]] = []
        self.due: dict[tuple[int, int], float] = {}
        self.hoped: set[tuple[int, int]] = set()

    def token(self, row: int) -> None:
        """Run one token through all layers."""
        if self.forecast is not None and self.forecast.known is None:
            reach = len(self.layers) if self.forecast.lookahead is None else self.forecast.lookahead + 1
            self._hope(row, self.layers[:reach])
        for at, layer in enumerate(self.layers):
            self._look_ahead(row, at)
            self._advance(self.now + self.machine.attention)
            self._gate(layer, self.routes.experts[layer][row].tolist())
            self._advance(self.now + self.machine.experts)

    def _look_ahead(self, row: int, at: int) -> None:
        if self.forecast is None:
            return
        if self.forecast.known is not None:
            self._hope(row, self.layers[at : at + 1] if self.forecast.known == 0 else self._fresh(at, self.forecast.known))
        elif self.forecast.lookahead is not None:
            self._hope(row, self.layers[at + self.forecast.lookahead : at + self.forecast.lookahead + 1])

    def _fresh(self, at: int, ahead: int) -> tuple[int, ...]:
        """Return the layers whose predictions become known here: the one ``known`` ahead, and at the start those before."""
        return self.layers[0 if at == 0 else at + ahead : at + ahead + 1]

    def _hope(self, row: int, layers: Iterable[int]) -> None:
        assert self.forecast is not None
        for layer in layers:
            predicted = self.forecast.experts.get(layer)
            for expert in [] if predicted is None else predicted[row].tolist():
                if expert < 0:
                    continue
                self.hoped.add((layer, expert))
                if expert not in self.caches[layer] and (layer, expert) not in self.queue:
                    self.queue.append((layer, expert))

    def _advance(self, until: float) -> None:
        """Advance the clock; meanwhile the link makes predicted transfers."""
        while self.queue and self.link_free <= until:
            layer, expert = self.queue.pop(0)
            begin = max(self.link_free, self.now)
            if begin >= until:
                self.queue.insert(0, (layer, expert))
                break
            if self._transfer(layer, expert, begin):
                self.counts[layer].fetched += 1
        self.now = until

    def _transfer(self, layer: int, expert: int, begin: float) -> bool:
        """Start a transfer; return False if no expert may be evicted for it."""
        wanted = {e for of, e in self.hoped if of == layer}
        busy = {e for (of, e), time in self.due.items() if of == layer and time > begin}
        if self.caches[layer].place(expert, wanted | busy) is None:
            return False
        self.link_free = begin + self.machine.transfer
        self.due[layer, expert] = self.link_free
        return True

    def _gate(self, layer: int, experts: list[int]) -> None:
        """Take the gate's choice and wait for missing experts."""
        count, cache = self.counts[layer], self.caches[layer]
        self.queue = [(of, e) for of, e in self.queue if of != layer]
        predicted = {e for of, e in self.hoped if of == layer}
        count.useless += sum((layer, e) in self.due and e not in experts for e in predicted)
        self.hoped = {(of, e) for of, e in self.hoped if of != layer}
        ready = self.now
        missing = []
        for expert in experts:
            count.uses += 1
            cache.use(expert)
            arrives = self.due.get((layer, expert), 0.0)
            if expert not in cache:
                missing.append(expert)
            elif arrives > self.now:
                count.late += 1
                ready = max(ready, arrives)
            else:
                count.hits += 1
        for expert in missing:
            count.demanded += 1
            begin = max(self.link_free, self.now)
            cache.place(expert, experts)
            self.link_free = begin + self.machine.transfer
            ready = max(ready, self.link_free)
        for expert in experts:
            self.due.pop((layer, expert), None)
        count.waited += ready - self.now
        cache.through(experts)
        self.now = ready


def most_used(routes: RecordedRoutes, count: int) -> dict[int, list[int]]:
    """Return the experts used most often in the recording, by layer, the most frequent first."""
    found = {}
    for layer, rows in routes.experts.items():
        frequency = np.bincount(rows.ravel())
        found[layer] = np.argsort(-frequency, kind="stable")[:count].tolist()
    return found


def overlap(predicted: Experts, used: Experts) -> float:
    """Return the share of used experts [n, k] that were among the predicted ones [n, m]."""
    hit = (used[:, :, None] == predicted[:, None, :]).any(-1)
    return float(hit.mean()) if hit.size else 0.0
