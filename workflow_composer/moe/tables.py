"""Tables made beforehand: the experts that a token, or a token after others, is most likely sent to.

Learned from routes that a gate has taken. With c(e) the number of times that expert e was among the k chosen for a context
of n occurrences, and p' the same context's prediction without its oldest token (its *parent*),

    p(e) = (c(e) + m p'(e)) / (n + m),        m = ``smoothing``,

which is interpolated back-off with a Dirichlet prior (MacKay and Peto 1995). A context's route is the k experts of largest
p; its confidence is their mean p: the expected share of the gate's own k that the route contains. Its weights are the gate's
expected weights of these experts, made in the same way and scaled to what the gate gives out in all.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workflow_composer.errors import InputError
from workflow_composer.moe.arrays import PIECE, pieces
from workflow_composer.moe.hashing import NO_TOKEN, Keys, Tokens, columns_in, suffix_key_rows, weights_key
from workflow_composer.moe.index import HashIndex
from workflow_composer.moe.route_arrays import Routes
from workflow_composer.moe.table_fitting import Fitted, fit_rows

FORMAT = "workflow-composer/var-tables/2"
_ARRAYS = ("experts", "weights", "confidence", "counts", "tokens", "keys", "orders", "deepest")


class RouteTables:
    """Routes by context, longest known context first; immutable.

    Row t is token t's own (0 <= t < ``vocabulary``), row ``vocabulary`` is for any other token, and the rows behind it are
    those of longer contexts; ``tokens`` [rows] says which token each is about. ``gate`` is the `weights_key` of the gate
    that took the routes; 0: not stated.
    """

    def __init__(self, fitted: Fitted, *, gate: int = 0) -> None:
        self.gate = gate
        self.experts: NDArray[np.int16] = fitted.experts
        self.weights: NDArray[np.float32] = fitted.weights
        self.confidence: NDArray[np.float32] = fitted.confidence
        self.routes = Routes(self.experts, self.weights, self.confidence)
        self.counts: NDArray[np.int64] = fitted.counts
        self.tokens: NDArray[np.int32] = fitted.tokens
        self.keys: Keys = fitted.keys
        self.orders: NDArray[np.uint8] = fitted.orders
        self.deepest: NDArray[np.uint8] = fitted.deepest
        self.vocabulary = len(fitted.deepest) - 1
        self.width = int(self.orders.max(initial=1))
        """The longest context, in tokens."""
        self._index = HashIndex(len(self.keys))  # one for all lengths: a key says its length, too
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
        """Learn from routes: ``tokens`` [n], ``experts`` [n, k], and the gate's ``weights`` [n, k] (None: equal, of sum 1).

        ``sequences`` [n] says which text each token belongs to (None: one). ``context`` is the longest context in tokens,
        the current one included; a context of two or more is kept from ``min_count`` occurrences on, for each length the
        ``max_contexts`` most frequent, and only where it says something else than its parent. Raises `InputError` for
        shapes or numbers that do not fit together.
        """
        token, expert = np.asarray(tokens, np.int64), np.asarray(experts, np.int64)
        if token.ndim != 1 or expert.ndim != 2 or len(expert) != len(token) or not expert.size:
            raise InputError(f"tokens must have shape (n,) and experts (n, k), not {token.shape} and {expert.shape}")
        if token.min() < 0 or expert.min() < 0 or expert.max() >= num_experts or num_experts > np.iinfo(np.int16).max:
            raise InputError(f"tokens must be at least 0, and experts from 0 to {num_experts - 1}")
        k = expert.shape[1]
        weight = np.full(expert.shape, 1 / k, np.float32) if weights is None else np.asarray(weights, np.float32)
        if weight.shape != expert.shape or not np.isfinite(weight).all():
            raise InputError(f"weights must be finite, of shape {expert.shape}, not {weight.shape}")
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
        """How many experts a route has."""
        return int(self.experts.shape[1])

    @property
    def nbytes(self) -> int:
        """What the tables take in memory, in bytes."""
        arrays: int = sum(getattr(self, name).nbytes for name in _ARRAYS)
        return arrays + self._index.nbytes

    def __len__(self) -> int:
        return len(self.experts)

    def rows(self, columns: Sequence[Tokens]) -> NDArray[np.int32]:
        """The row of each context [n]: that of its longest part that is known. ``columns``: tokens [n], newest first.

        Only tokens that have longer contexts at all are looked up again.
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
            for row in longer:  # a longer context that is known takes over
                np.copyto(longest, row, where=row >= 0)
            found[open_] = longest
        return found

    def predict(
        self, contexts: NDArray[np.integer[Any]]
    ) -> tuple[NDArray[np.int16], NDArray[np.float32], NDArray[np.float32]]:
        """Experts [n, k], weights [n, k] and confidence [n] for contexts [n, w], whose last column is the current token.

        `NO_TOKEN` stands where a sequence begins; longer contexts than the tables know are cut.
        """
        lines = np.atleast_2d(np.asarray(contexts, np.int64))
        rows = self.rows([np.ascontiguousarray(lines[:, -1 - back]) for back in range(lines.shape[1])])
        return self.experts[rows], self.weights[rows], self.confidence[rows]

    @property
    def digest(self) -> int:
        """64 bits that name exactly these tables."""
        return weights_key(*(getattr(self, name) for name in _ARRAYS), np.array([self.gate], np.uint64))

    def save(self, path: Path) -> None:
        """Save to an ``.npz`` file. Raises OSError."""
        about = json.dumps({"format": FORMAT, "gate": self.gate})
        with path.open("wb") as file:
            np.savez_compressed(file, about=np.array(about), **{name: getattr(self, name) for name in _ARRAYS})

    @classmethod
    def load(cls, path: Path, *, gate: int | None = None) -> RouteTables:
        """Read the file. Raises `InputError` where it is none, or the routes were those of another ``gate``."""
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


__all__ = ["NO_TOKEN", "RouteTables"]
