"""Verifiable adaptive routing (VAR) of tokens: by table, by cache, or by the learned router for a bounded share of tokens.

All work is done in batches. `VARSystem.route_token` is a batch of one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workflow_composer.errors import ConfigError, InputError
from workflow_composer.moe.routing.arrays import joined, like, numbers, pieces, rows_of, taken
from workflow_composer.moe.routing.decisions import (
    BatchDecision,
    Eligibility,
    RouteArrays,
    RoutedBatch,
    RoutingDecision,
    TokenStats,
    learn_threshold,
    lost_weight,
    stats_of,
)
from workflow_composer.moe.routing.hashing import Tokens, columns_in, columns_of, context_keys
from workflow_composer.moe.routing.learned_gate import Gate, GateOutput
from workflow_composer.moe.routing.tables import RouteTables
from workflow_composer.moe.routing.three_paths import Choice, Clock, ThreePaths, Way

_SPECIAL = 10


class VARSystem:
    """Routes tokens by three paths. Thread-safe, but a stream of tokens has one order: see ``route_batch``.

    Args:
        router: the learned router.
        frequency_threshold, entropy_threshold: a token is common (`is_common_token`) if its count is above the first and
            the gate's mean entropy (nats) is below the second, or if its id is below 10.
        confidence_threshold: the minimum confidence of a fast route.
        quality_margin: None: common tokens have fast routes. A number: fast routes are chosen by a learned confidence
            threshold instead, such that on held-out text they lose at most this share of the gate's weight.
        context_window: the number of tokens, including the current one, that a cached decision depends on.
        table_context: the maximum number of tokens that a fast route depends on.
        cache_ttl, cache_size: lifetime in seconds, and number of entries, of the decision cache.
        learned_share: the learned router decides at most ``learned_share * (n + 1)`` of the first n tokens, for every n.
        clock: returns seconds; for the cache and for timestamps.
    """

    def __init__(
        self,
        router: Gate,
        *,
        frequency_threshold: int = 50,
        entropy_threshold: float = 0.5,
        confidence_threshold: float = 0.8,
        quality_margin: float | None = None,
        context_window: int = 4,
        table_context: int = 2,
        cache_ttl: float = 60.0,
        cache_size: int = 1000,
        learned_share: float = 0.15,
        clock: Clock = time.monotonic,
    ) -> None:
        if context_window < 1 or table_context < 1:
            raise ConfigError("context_window must be at least 1")
        self.router = router
        self.eligibility = Eligibility(frequency_threshold, entropy_threshold, confidence_threshold, _SPECIAL)
        self.quality_margin = quality_margin
        self.context_window, self.table_context = context_window, table_context
        self.threshold = confidence_threshold
        self.tables: RouteTables | None = None
        self.token_stats: dict[int, TokenStats] = {}
        self._clock = clock
        self._paths = ThreePaths(share=learned_share, entries=cache_size, ttl=cache_ttl, clock=clock)
        self._remembered = RouteArrays.room(cache_size, router.top_k)
        self._fast = np.zeros(0, np.bool_)
        self._seen = np.zeros(router.num_experts, np.int64)
        self._gate = router.fingerprint()
        self._recent: list[int] = []
        self._lock = threading.RLock()

    # ----------------------------------------------------------------------------------------------------- learning

    def precompute_statistics(self, token_ids: Any, hidden_states: Any, *, sequences: Any = None) -> None:
        """Learn statistics and fast routes from a corpus: ``token_ids`` [n], ``hidden_states`` [n, d].

        The learned router decides every token, in batches. ``sequences`` [n] is the number of each token's text (None: one
        text). With a ``quality_margin``, the tables are learned without the last fifth, on which the threshold is learned.
        """
        tokens = numbers(token_ids).astype(np.int64)
        said = [self._ask(part, hidden_states, tokens[part]) for part in pieces(len(tokens))]
        experts, weights, logits, sure = (numbers(joined([getattr(one, name) for one in said])) for name in _PARTS)
        line = np.zeros(len(tokens), np.int64) if sequences is None else numbers(sequences).astype(np.int64)
        known = len(tokens) if self.quality_margin is None else len(tokens) - len(tokens) // 5
        tables = RouteTables.fit(
            tokens[:known],
            experts[:known],
            weights[:known],
            num_experts=self.router.num_experts,
            sequences=line[:known],
            context=self.table_context,
            gate=self.router.fingerprint(),
        )
        with self._lock:
            self.token_stats = stats_of(tokens, logits, sure)
            self.tables = tables
            if self.quality_margin is not None:
                row = tables.rows(columns_in(tokens, self.table_context, line))[known:]
                lost = lost_weight(tables.experts[row], experts[known:], weights[known:])
                self.threshold = learn_threshold(tables.confidence[row], lost, self.quality_margin)
            self._choose_fast(tables)

    def use_tables(self, tables: RouteTables, threshold: float) -> None:
        """Use the given tables: routes whose confidence is at least ``threshold`` are fast.

        Raises `InputError` if they were learned from another gate, or have a different number of experts.
        """
        if tables.gate not in (0, self.router.fingerprint()):
            raise InputError(
                "the tables were learned from another gate's routes", hint="learn new tables from this gate's routes"
            )
        if tables.experts_per_token != self.router.top_k or tables.experts.max() >= self.router.num_experts:
            raise InputError("the tables have a different number of experts")
        with self._lock:
            self.tables, self.threshold = tables, threshold
            self._fast = tables.confidence >= threshold

    def _choose_fast(self, tables: RouteTables) -> None:
        self._fast = tables.confidence >= self.threshold
        if self.quality_margin is None:
            common = np.zeros(tables.vocabulary + 1, np.bool_)
            for token, stats in self.token_stats.items():
                common[token] = self.eligibility.admits(token, stats)
            self._fast &= common[tables.tokens]

    def is_common_token(self, token_id: int) -> bool:
        """Whether the fixed thresholds allow the token a fast route: frequent and unambiguous, or special (id below 10)."""
        return self.eligibility.admits(token_id, self.token_stats.get(token_id))

    def compute_context_hash(self, tokens: Sequence[int]) -> int:
        """Return a 64-bit key of the last ``context_window`` tokens *and* of the learned router's current weights."""
        columns = columns_of(np.asarray(tokens[-1:], np.int64), self.context_window, tokens[:-1])
        return int(context_keys(columns, self.router.fingerprint())[0])

    # ------------------------------------------------------------------------------------------------------- routing

    def learned_router(self, token_id: int, hidden_state: Any) -> RoutingDecision:
        """Return the learned router's decision for one token, without counting it. ``hidden_state`` [d]."""
        said = self.router.route(hidden_state[None], like(np.array([token_id]), hidden_state))
        experts, weights, logits, sure = (numbers(getattr(said, name)) for name in _PARTS)
        key = self.compute_context_hash([*self._recent, token_id])
        return RoutingDecision(experts[0], float(sure[0]), self._clock(), key, logits[0], weights[0])

    def fast_path_router(self, token_id: int, context: Sequence[int] = ()) -> RoutingDecision | None:
        """Return the fast route of a token after ``context``; None if it has none or the gate has changed since."""
        columns = columns_of(np.array([token_id], np.int64), max(self.table_context, self.context_window), context)
        with self._lock:
            if self._renewed() or self.tables is None:
                return None
            row = int(self.tables.rows(columns)[0])
            if not self._fast[row]:
                return None
            return self._decision(self.tables, row, int(context_keys(columns[: self.context_window], self._gate)[0]))

    def route_token(self, token_id: int, hidden_state: Any) -> RoutingDecision:
        """Route the next token of the stream. ``hidden_state`` [d]."""
        with self._lock:
            key = self.compute_context_hash([*self._recent, token_id])
            made = self.route_batch(np.array([token_id]), hidden_state[None])
        logits = numbers(made.logits)[0] if len(made.asked) else None
        experts, weights = numbers(made.expert_indices)[0], numbers(made.expert_weights)[0]
        path = Way(int(numbers(made.paths)[0]))
        return RoutingDecision(experts, float(numbers(made.confidence)[0]), self._clock(), key, logits, weights, path)

    def route_batch(self, token_ids: Any, hidden_states: Any) -> BatchDecision:
        """Route many tokens. Arrays or tensors; tensors give tensors, on the device of ``hidden_states``.

        ``token_ids`` [n] with ``hidden_states`` [n, d] are the next tokens of the system's own stream; [b, t] with [b, t, d]
        are b separate texts, and the result is flat, [b * t]. For tensors on another device, token ids and decisions are
        copied once each; hidden states are not copied.
        """
        tokens = numbers(token_ids)
        hidden = rows_of(hidden_states)
        if len(hidden) != tokens.size:
            raise InputError(f"token_ids and hidden_states differ in length: {tokens.size} and {len(hidden)}")
        width = max(self.table_context, self.context_window)
        with self._lock:
            flat = np.ascontiguousarray(tokens.reshape(-1), np.int64)
            if tokens.ndim == 2:
                columns = columns_in(flat, width, np.repeat(np.arange(len(tokens)), tokens.shape[1]))
            else:
                columns = columns_of(flat, width, self._recent)
                self._recent = [*self._recent, *flat[-width:].tolist()][-width:]
            made = RoutedBatch(len(flat), self.router.top_k)
            for part in pieces(len(flat)):
                self._route([column[part] for column in columns], part, hidden, made)
        return made.decision(hidden_states)

    def _route(self, columns: list[Tokens], part: slice, hidden: Any, made: RoutedBatch) -> None:
        """Route the tokens of ``part`` with the contexts ``columns``."""
        stale = self._renewed()
        found = made.routes.part(part)
        fast = self._guess(columns, found, stale=stale)
        unknown = np.flatnonzero(~fast)
        keys = context_keys([column[unknown] for column in columns[: self.context_window]], self._gate)
        with self._paths.lock:
            choice = self._paths.choose(len(fast), unknown, keys)
            found.put(choice.cached, self._remembered.take(choice.slots))
            if len(choice.ask):
                self._learn(columns[0], choice, part, hidden, found, made)
        made.paths[part] = choice.paths

    def _learn(
        self, tokens: Tokens, choice: Choice, part: slice, hidden: Any, found: RouteArrays, made: RoutedBatch
    ) -> None:
        """Call the gate; write its decisions to ``found`` and the cache."""
        output = self._ask(choice.ask + part.start, hidden, tokens[choice.ask])
        said = RouteArrays.said(output)
        found.put(choice.ask, said)
        found.put(choice.repeats, said.take(choice.repeated))
        slots = self._paths.store(choice.asked)
        roomy = np.flatnonzero(slots >= 0)
        self._remembered.put(slots[roomy], said.take(roomy))
        self._seen += np.bincount(said.experts.ravel(), minlength=len(self._seen))
        made.asked.append(choice.ask + part.start)
        made.logits.append(output.logits)

    def _guess(self, columns: list[Tokens], found: RouteArrays, *, stale: bool) -> NDArray[np.bool_]:
        """Write each token's best route without the gate to ``found``; return which tokens have a fast route."""
        if self.tables is not None and not stale:
            row = self.tables.rows(columns[: self.table_context])
            self.tables.routes.take_into(row, found)
            return self._fast.take(row)
        # No table of this gate: use the experts that it has chosen most often so far.
        n, k = len(columns[0]), self.router.top_k
        usual = np.argsort(-self._seen, kind="stable")[:k].astype(np.int16)
        share = float(self._seen[usual].sum() / max(1, self._seen.sum()))
        alike = RouteArrays(np.tile(usual, (n, 1)), np.full((n, k), 1 / k, np.float32), np.full(n, share, np.float32))
        found.put(slice(None), alike)
        return np.zeros(n, np.bool_)

    def _renewed(self) -> bool:
        """Detect a change of the gate's weights; return True if the tables belong to other weights."""
        gate = self.router.fingerprint()
        if gate != self._gate:
            self._gate = gate
            self._seen[:] = 0
        return self.tables is None or self.tables.gate not in (0, gate)

    def _ask(self, at: slice | NDArray[np.int64], hidden: Any, tokens: Tokens) -> GateOutput:
        mine = hidden[at] if isinstance(at, slice) else taken(hidden, at)
        return self.router.route(mine, like(tokens, hidden))

    # ---------------------------------------------------------------------------------------------------------- state

    @property
    def cache(self) -> Any:
        """The decision cache (`RouteCache`)."""
        return self._paths.cache

    @property
    def fast_routes(self) -> Mapping[int, RoutingDecision]:
        """The fast routes that depend on the token alone, by token id."""
        return _FastRoutes(self)

    @property
    def nbytes(self) -> int:
        """Memory of the cache and tables in bytes; the cache's part is constant."""
        return (
            self._paths.cache.nbytes
            + self._remembered.nbytes
            + (self.tables.nbytes + self._fast.nbytes if self.tables else 0)
        )

    def get_performance_stats(self) -> dict[str, float]:
        """Return counts and shares of the paths, the hit rate, and the largest learned share; see `ThreePaths.counts`."""
        return {**self._paths.counts(), "cache_entries": len(self._paths.cache), "memory_bytes": self.nbytes}

    def reset_performance_counters(self) -> None:
        """Reset the counts and the call budget; keep the tables and the cache."""
        self._paths.reset()

    def new_text(self, *, forget: bool = False) -> None:
        """Start a new stream without previous tokens. ``forget``: also reset the cache, the counts and the budget."""
        with self._lock, self._paths.lock:
            self._recent = []
            if forget:
                self._paths.cache.clear()
                self._paths.reset()

    def _decision(self, tables: RouteTables, row: int, key: int) -> RoutingDecision:
        sure = float(tables.confidence[row])
        return RoutingDecision(tables.experts[row], sure, self._clock(), key, None, tables.weights[row], Way.FAST)


_PARTS = ("experts", "weights", "logits", "confidence")


class _FastRoutes(Mapping[int, RoutingDecision]):
    """A view of the fast routes of single tokens, by token id."""

    def __init__(self, system: VARSystem) -> None:
        self._tables = system.tables
        tokens = 0 if self._tables is None else self._tables.vocabulary
        self._rows = np.flatnonzero(system._fast[:tokens])
        self._system = system

    def __getitem__(self, token: int) -> RoutingDecision:
        if token not in self._rows or self._tables is None:
            raise KeyError(token)
        return self._system._decision(self._tables, token, self._system.compute_context_hash([token]))

    def __iter__(self) -> Iterator[int]:
        return iter(self._rows.tolist())

    def __len__(self) -> int:
        return len(self._rows)
