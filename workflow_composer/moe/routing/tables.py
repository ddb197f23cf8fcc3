"""Precomputed routing tables: the most likely experts of a token in its context of previous tokens.

They are learned from a gate's routes. Let c(e) be the number of times that expert e was among the k chosen for a context
with n occurrences, and p' the prediction for the context without its oldest token (its *parent*). Then

    p(e) = (c(e) + m p'(e)) / (n + m),        m = ``smoothing``,

which is interpolated back-off with a Dirichlet prior (MacKay and Peto 1995). A context's route is the k experts with the
largest p; its confidence is their mean p, the expected share of the gate's k experts that the route contains. Its weights
are the expected gate weights of these experts, estimated in the same way and scaled to the gate's total weight.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workflow_composer.errors import InputError
from workflow_composer.moe.routing.arrays import PIECE, pieces
from workflow_composer.moe.routing.cache import HashIndex
from workflow_composer.moe.routing.decisions import RouteArrays
from workflow_composer.moe.routing.hashing import (
    NO_TOKEN,
    Keys,
    Tokens,
    columns_in,
    suffix_key_rows,
    suffix_keys,
    weights_key,
)

__all__ = ["GAIN", "NO_TOKEN", "Fitted", "Floats", "RouteTables", "fit_rows"]


# ----------------------------------------------------------------------------------------------------------------- fitting
#
# `RouteTables` are learned from counts by context, smoothed with those of the shorter context.


GAIN = 0.02
"""Minimum difference in confidence from its parent for which a longer context with the same experts is kept."""

_AT_ONCE = 4_000_000  # maximum size of a table of counts that is computed in one piece

Floats = NDArray[np.float64]


@dataclass(slots=True, eq=False)
class Fitted:
    """The arrays of `RouteTables`: rows of tokens, then the row for any other token, then rows of longer contexts.

    ``tokens`` is each row's token; ``keys`` and ``orders`` are the keys and lengths of the longer contexts; ``deepest``
    [vocabulary + 1] is the length of the longest kept context that ends in a token.
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
        """Return a description of inconsistent arrays; empty if they are consistent."""
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
    """The counted routes: experts [n, k] and their weights [n, k]."""

    experts: NDArray[np.int64]
    weights: NDArray[np.float32]
    num_experts: int
    smoothing: float

    def smoothed(self, groups: NDArray[np.int64], at: NDArray[np.int64], size: int, prior: Floats) -> Floats:
        """Return [size, 2, experts]: the smoothed share of each expert and its mean weight, per group.

        ``groups`` [m] is the group number of each occurrence, and ``at`` [m] its position; ``prior`` has the result's shape,
        or one row.
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
    """The rows so far, and for each occurrence the row of its longest known context."""

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
        """Add contexts with one more token if they differ from their parents. ``whole``: the occurrences."""
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
        """Return all rows."""
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
    """Return each token's row, smoothed with the row over all tokens, which is the last one."""
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
    """Contexts with enough occurrences: ``key`` [g], ``count`` [g], ``first`` occurrence [g]; all occurrences ``member`` [m]
    and the ``group`` [m] of each.
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
    """`_Routes.smoothed` for many groups, in pieces of bounded memory."""
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
    """Return the experts, weights and confidence of each row, most likely expert first."""
    chosen, weight = smoothed[:, 0], smoothed[:, 1]
    top = np.argsort(-chosen, axis=1, kind="stable")[:, :k]
    mine = np.take_along_axis(weight, top, axis=1)
    scale = weight.sum(axis=1, keepdims=True) / np.maximum(mine.sum(axis=1, keepdims=True), 1e-12)
    confidence = np.take_along_axis(chosen, top, axis=1).mean(axis=1)
    return top.astype(np.int16), (mine * scale).astype(np.float32), np.minimum(confidence, 1.0).astype(np.float32)


# ------------------------------------------------------------------------------------------------------------------ tables

FORMAT = "workflow-composer/var-tables/2"
_ARRAYS = ("experts", "weights", "confidence", "counts", "tokens", "keys", "orders", "deepest")


class RouteTables:
    """Routes by longest known context; immutable.

    Row t is token t's (0 <= t < ``vocabulary``), row ``vocabulary`` is for any other token, and the rows after it are those
    of longer contexts; ``tokens`` [rows] is each row's token. ``gate`` is the `weights_key` of the gate whose routes these
    are; 0: unknown.
    """

    def __init__(self, fitted: Fitted, *, gate: int = 0) -> None:
        self.gate = gate
        self.experts: NDArray[np.int16] = fitted.experts
        self.weights: NDArray[np.float32] = fitted.weights
        self.confidence: NDArray[np.float32] = fitted.confidence
        self.routes = RouteArrays(self.experts, self.weights, self.confidence)
        self.counts: NDArray[np.int64] = fitted.counts
        self.tokens: NDArray[np.int32] = fitted.tokens
        self.keys: Keys = fitted.keys
        self.orders: NDArray[np.uint8] = fitted.orders
        self.deepest: NDArray[np.uint8] = fitted.deepest
        self.vocabulary = len(fitted.deepest) - 1
        self.width = int(self.orders.max(initial=1))
        """Length of the longest context, in tokens."""
        self._index = HashIndex(len(self.keys))  # one for all lengths: a key depends on its context's length
        self._index.add(self.keys, np.arange(len(fitted.deepest), len(self.experts), dtype=np.int32))

    @classmethod
    def fit(
        cls,
        tokens: NDArray[np.integer[Any]],
        experts: NDArray[np.integer[Any]],
        weights: NDArray[np.floating[Any]] | None = None,
        *,
        num_experts: int,
        sequences: NDArray[np.integer[Any]] | None = None,
        vocabulary: int | None = None,
        context: int = 2,
        min_count: int = 3,
        max_contexts: int = 200_000,
        smoothing: float = 4.0,
        gate: int = 0,
    ) -> RouteTables:
        """Learn from routes: ``tokens`` [n], ``experts`` [n, k], and the gate's ``weights`` [n, k] (None: equal, sum 1).

        ``sequences`` [n] is the number of each token's text (None: one text). ``context`` is the length of the longest
        context in tokens, including the current one. A context of two or more tokens is kept if it occurs at least
        ``min_count`` times, is among the ``max_contexts`` most frequent of its length, and differs from its parent. Raises
        `InputError` for inconsistent shapes or invalid numbers.
        """
        token, expert = np.asarray(tokens, np.int64), np.asarray(experts, np.int64)
        if token.ndim != 1 or expert.ndim != 2 or len(expert) != len(token) or not expert.size:
            raise InputError(f"tokens must have shape (n,) and experts (n, k), not {token.shape} and {expert.shape}")
        if token.min() < 0 or expert.min() < 0 or expert.max() >= num_experts or num_experts > np.iinfo(np.int16).max:
            raise InputError(f"tokens must be at least 0, and experts from 0 to {num_experts - 1}")
        k = expert.shape[1]
        weight = np.full(expert.shape, 1 / k, np.float32) if weights is None else np.asarray(weights, np.float32)
        if weight.shape != expert.shape or not np.isfinite(weight).all():
            raise InputError(f"weights must be finite and have shape {expert.shape}; found shape {weight.shape}")
        line = np.zeros(len(token), np.int64) if sequences is None else np.asarray(sequences, np.int64)
        fitted = fit_rows(
            columns_in(token, context, line),
            expert,
            weight,
            num_experts=num_experts,
            vocabulary=int(token.max()) + 1 if vocabulary is None else vocabulary,
            min_count=min_count,
            max_contexts=max_contexts,
            smoothing=smoothing,
        )
        return cls(fitted, gate=gate)

    @property
    def experts_per_token(self) -> int:
        """Number of experts per route."""
        return int(self.experts.shape[1])

    @property
    def nbytes(self) -> int:
        """Memory of the tables in bytes."""
        arrays: int = sum(getattr(self, name).nbytes for name in _ARRAYS)
        return arrays + self._index.nbytes

    def __len__(self) -> int:
        return len(self.experts)

    def rows(self, columns: Sequence[Tokens]) -> NDArray[np.int32]:
        """Return the row of each context's longest known suffix [n]. ``columns``: tokens [n], newest first.

        Only tokens with longer contexts in the tables are looked up again.
        """
        token = columns[0]
        if len(token) > PIECE:
            return np.concatenate([self.rows([column[part] for column in columns]) for part in pieces(len(token))])
        known = token.view(np.uint64) < np.uint64(self.vocabulary) if token.dtype == np.int64 else token < self.vocabulary
        found = np.where(known, token, self.vocabulary).astype(np.int32)
        deepest = self.deepest[found]
        open_ = np.flatnonzero(deepest > 1)
        width = min(int(deepest.max(initial=1)), len(columns))
        if width > 1:
            keys = suffix_key_rows([column[open_] for column in columns[:width]])[1:]
            longer = self._index.find(keys.ravel()).reshape(keys.shape)
            longest = found[open_]
            for row in longer:  # the longest known context wins
                np.copyto(longest, row, where=row >= 0)
            found[open_] = longest
        return found

    def predict(
        self, contexts: NDArray[np.integer[Any]]
    ) -> tuple[NDArray[np.int16], NDArray[np.float32], NDArray[np.float32]]:
        """Return experts [n, k], weights [n, k] and confidence [n] for contexts [n, w], the current token last.

        `NO_TOKEN` marks positions before the start of a sequence; contexts longer than the tables' are truncated.
        """
        lines = np.atleast_2d(np.asarray(contexts, np.int64))
        rows = self.rows([np.ascontiguousarray(lines[:, -1 - back]) for back in range(lines.shape[1])])
        return self.experts[rows], self.weights[rows], self.confidence[rows]

    @property
    def digest(self) -> int:
        """A 64-bit hash of these tables."""
        return weights_key(*(getattr(self, name) for name in _ARRAYS), np.array([self.gate], np.uint64))

    def save(self, path: Path) -> None:
        """Save to an ``.npz`` file. Raises OSError."""
        about = json.dumps({"format": FORMAT, "gate": self.gate})
        with path.open("wb") as file:
            np.savez_compressed(file, about=np.array(about), **{name: getattr(self, name) for name in _ARRAYS})

    @classmethod
    def load(cls, path: Path, *, gate: int | None = None) -> RouteTables:
        """Read a saved file. Raises `InputError` if it is not one, or if its routes are those of another ``gate``."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
                about = json.loads(str(data["about"]))
                arrays = {name: data[name] for name in _ARRAYS}
        except OSError as error:
            raise InputError(f"cannot read tables from {path}: {error.strerror or error}") from None
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(f"{path}: not a routing-table file: {error}") from None
        if about.get("format") != FORMAT:
            raise InputError(f"{path}: not a routing-table file in format {FORMAT}")
        if gate is not None and about["gate"] != gate:
            raise InputError(
                f"{path}: tables of gate {about['gate']:016x}, not of {gate:016x}", hint="learn new tables from this gate"
            )
        fitted = Fitted(**arrays)
        if fault := fitted.fault():
            raise InputError(f"{path}: damaged tables: {fault}")
        return cls(fitted, gate=int(about["gate"]))
