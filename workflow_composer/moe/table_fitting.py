"""How `tables.RouteTables` are learned: counts by context, smoothed by those of the shorter context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from workflow_composer.moe.hashing import NO_TOKEN, Keys, Tokens, suffix_keys

GAIN = 0.02
"""A longer context with the same experts is kept where its confidence differs from its parent's by as much."""

_AT_ONCE = 4_000_000  # numbers in a table of counts that is made in one piece

Floats = NDArray[np.float64]


@dataclass(slots=True, eq=False)
class Fitted:
    """The arrays of `RouteTables`: rows of tokens, of any token, of longer contexts.

    ``tokens`` are the tokens that the rows are about; ``keys`` and ``orders`` those of the longer contexts; ``deepest``
    [vocabulary + 1] is the longest context kept that ends in a token.
    """

    experts: NDArray[np.int16]
    weights: NDArray[np.float32]
    confidence: NDArray[np.float32]
    counts: NDArray[np.int64]
    tokens: NDArray[np.int32]
    keys: Keys
    orders: NDArray[np.uint8]
    deepest: NDArray[np.uint8]

    def fault(self) -> str:
        """What does not fit together, in words; empty where all is well."""
        rows, tokens = len(self.experts), len(self.deepest)
        if self.experts.ndim != 2 or self.weights.shape != self.experts.shape or not self.experts.shape[1]:
            return f"experts have shape {self.experts.shape}, weights {self.weights.shape}"
        if {self.confidence.shape, self.counts.shape, self.tokens.shape} != {(rows,)} or not tokens:
            return "confidence, counts and tokens are not one number per row"
        if self.keys.shape != self.orders.shape or rows != tokens + len(self.keys):
            return f"{rows} rows for {tokens} tokens and {len(self.keys)} contexts"
        kinds = [
            array.dtype.kind for array in (self.experts, self.weights, self.confidence, self.keys, self.orders, self.deepest)
        ]
        return "" if kinds == ["i", "f", "f", "u", "u", "u"] else f"arrays of kinds {', '.join(kinds)}"


@dataclass(slots=True, eq=False)
class _Routes:
    """What is counted: experts [n, k] and their weights [n, k]."""

    experts: NDArray[np.int64]
    weights: NDArray[np.float32]
    num_experts: int
    smoothing: float

    def smoothed(self, groups: NDArray[np.int64], at: NDArray[np.int64], size: int, prior: Floats) -> Floats:
        """[size, 2, experts]: how often each expert is chosen, and with which weight on average, in each group.

        ``groups`` [m] numbers the group of each occurrence, whose position is ``at`` [m]; ``prior`` is like the result,
        or of one row.
        """
        cells = (groups[:, None] * self.num_experts + self.experts[at]).ravel()
        length = size * self.num_experts
        chosen = np.bincount(cells, minlength=length)
        weight = np.bincount(cells, weights=self.weights[at].ravel(), minlength=length)
        sums = np.stack([chosen, weight], axis=-1).reshape(size, self.num_experts, 2).transpose(0, 2, 1)
        n = np.bincount(groups, minlength=size)[:, None, None]
        found: Floats = (sums + self.smoothing * prior) / (n + self.smoothing)
        return found


def fit_rows(
    columns: Sequence[Tokens],
    experts: NDArray[np.int64],
    weights: NDArray[np.float32],
    *,
    num_experts: int,
    vocabulary: int,
    min_count: int,
    max_contexts: int,
    smoothing: float,
) -> Fitted:
    """Learn the rows; ``columns`` are the contexts, newest first."""
    fitting = _Fitting(_Routes(experts, weights, num_experts, smoothing), columns[0], vocabulary)
    for order, key in enumerate(suffix_keys(columns), 1):
        if order == 1:
            continue
        whole = np.flatnonzero((columns[order - 1] != NO_TOKEN) & (columns[0] < vocabulary))
        groups = _groups(key[whole], min_count, max_contexts)
        if not len(groups.count):
            break
        fitting.deepen(order, groups, whole)
    return fitting.fitted()


class _Fitting:
    """The rows so far, and for each occurrence the row of the longest context that is known."""

    def __init__(self, routes: _Routes, token: Tokens, vocabulary: int) -> None:
        self.routes, self.token = routes, token
        self.k = routes.experts.shape[1]
        self.parents = np.minimum(token, vocabulary)
        tokens = _token_rows(routes, self.parents, vocabulary)
        counts = np.bincount(self.parents, minlength=vocabulary + 1)
        counts[vocabulary] = len(token)
        self.smoothed = tokens
        self.rows = [_row_arrays(tokens, self.k)]
        self.counts, self.keys, self.orders = [counts], [np.zeros(0, np.uint64)], [np.zeros(0, np.uint8)]
        self.tokens = [np.arange(vocabulary + 1, dtype=np.int32)]
        self.deepest = np.ones(vocabulary + 1, np.uint8)

    def deepen(self, order: int, groups: _Groups, whole: NDArray[np.int64]) -> None:
        """Add contexts of one more token, where they say something else than without it. ``whole``: the occurrences."""
        at = whole[groups.member]
        prior = self.smoothed[self.parents[whole[groups.first]]]
        smoothed = _in_pieces(self.routes, groups.group, at, prior)
        mine, above = _row_arrays(smoothed, self.k), _row_arrays(prior, self.k)
        differs = (np.sort(mine[0], axis=1) != np.sort(above[0], axis=1)).any(axis=1)
        keep = np.flatnonzero(differs | (np.abs(mine[2] - above[2]) >= GAIN))
        place = np.full(len(groups.count), -1, np.int64)
        place[keep] = len(self.smoothed) + np.arange(len(keep))
        inside = place[groups.group]
        self.parents[at[inside >= 0]] = inside[inside >= 0]
        tokens = self.token[whole[groups.first[keep]]]
        np.maximum.at(self.deepest, tokens, np.uint8(order))
        self.tokens.append(tokens.astype(np.int32))
        self.smoothed = np.concatenate([self.smoothed, smoothed[keep]])
        self.rows.append((mine[0][keep], mine[1][keep], mine[2][keep]))
        self.keys.append(groups.key[keep])
        self.orders.append(np.full(len(keep), order, np.uint8))
        self.counts.append(groups.count[keep])

    def fitted(self) -> Fitted:
        """All rows."""
        experts, weights, confidence = (np.concatenate(parts) for parts in zip(*self.rows, strict=True))
        return Fitted(
            experts=experts,
            weights=weights,
            confidence=confidence,
            counts=np.concatenate(self.counts),
            tokens=np.concatenate(self.tokens),
            keys=np.concatenate(self.keys),
            orders=np.concatenate(self.orders),
            deepest=self.deepest,
        )


def _token_rows(routes: _Routes, token: Tokens, vocabulary: int) -> Floats:
    """Each token's own row, smoothed by all tokens', and behind them that of all tokens."""
    even = routes.experts.shape[1] / routes.num_experts
    flat = np.full((1, 2, routes.num_experts), even)
    flat[0, 1] = routes.weights.sum(axis=1).mean() / routes.num_experts
    everywhere = np.arange(len(token))
    overall = routes.smoothed(np.zeros(len(token), np.int64), everywhere, 1, flat)
    rows = routes.smoothed(token, everywhere, vocabulary + 1, overall)
    rows[vocabulary] = overall[0]
    return rows


@dataclass(slots=True, eq=False)
class _Groups:
    """Contexts that are frequent enough: ``key`` [g], ``count`` [g], ``first`` occurrence [g]; their occurrences
    ``member`` [m] and the ``group`` [m] of each.
    """

    key: Keys
    count: NDArray[np.int64]
    first: NDArray[np.int64]
    member: NDArray[np.int64]
    group: NDArray[np.int64]


def _groups(keys: Keys, min_count: int, most: int) -> _Groups:
    key, first, which, count = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    kept = np.flatnonzero(count >= min_count)
    if len(kept) > most:
        kept = np.sort(kept[np.argsort(-count[kept], kind="stable")[:most]])
    number = np.full(len(key), -1, np.int64)
    number[kept] = np.arange(len(kept))
    group = number[which]
    member = np.flatnonzero(group >= 0)
    return _Groups(key[kept], count[kept], first[kept], member, group[member])


def _in_pieces(routes: _Routes, groups: NDArray[np.int64], at: NDArray[np.int64], prior: Floats) -> Floats:
    """`_Routes.smoothed` for many groups, a few at a time."""
    step = max(1, _AT_ONCE // routes.num_experts)
    order = np.argsort(groups, kind="stable")
    edges = np.searchsorted(groups[order], np.arange(0, len(prior) + step, step)[: -(-len(prior) // step) + 1])
    parts = []
    for start, (low, high) in zip(range(0, len(prior), step), pairwise(edges), strict=True):
        part = order[low:high]
        size = min(step, len(prior) - start)
        parts.append(routes.smoothed(groups[part] - start, at[part], size, prior[start : start + size]))
    return np.concatenate(parts)


def _row_arrays(smoothed: Floats, k: int) -> tuple[NDArray[np.int16], NDArray[np.float32], NDArray[np.float32]]:
    """Experts, weights and confidence of each row, likeliest expert first."""
    chosen, weight = smoothed[:, 0], smoothed[:, 1]
    top = np.argsort(-chosen, axis=1, kind="stable")[:, :k]
    mine = np.take_along_axis(weight, top, axis=1)
    scale = weight.sum(axis=1, keepdims=True) / np.maximum(mine.sum(axis=1, keepdims=True), 1e-12)
    confidence = np.take_along_axis(chosen, top, axis=1).mean(axis=1)
    return top.astype(np.int16), (mine * scale).astype(np.float32), np.minimum(confidence, 1.0).astype(np.float32)
