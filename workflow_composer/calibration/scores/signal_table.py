"""Signals of many answers at once: the results of `signals.analyze` as numpy columns.

Answers have different lengths, so their tokens are concatenated in flat arrays, and ``offsets`` mark where each answer
begins. Tokens are processed in pieces that fit into the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workflow_composer.calibration.scores.signals import (
    DEFAULT_RULES,
    FLOOR,
    HEAVY_TAIL,
    LOW_CONFIDENCE,
    QUANTILES,
    VOCABULARY,
    FeedbackRules,
    FeedbackSignal,
)
from workflow_composer.errors import InputError

Floats = NDArray[np.float64]
Answer = tuple[Sequence[float], Sequence[Sequence[float]] | None]
"""Log-probabilities of the chosen tokens and, if known, those of the most likely tokens at each position."""

COLUMNS = tuple(field.name for field in fields(FeedbackSignal) if field.type in ("int", "float | None"))
"""The numeric fields of `FeedbackSignal`."""

_PIECE = 1 << 14
_ROUNDING = 1e-6
_NOTHING = -1e4
"""A finite log-probability whose exp is 0, so that its product with 0 is 0."""
_TINY = 1e-300
"""A number with a finite logarithm: cheaper than masking zeros."""
_LOG_LOW = float(np.log(LOW_CONFIDENCE))
_SPREAD = ("entropy_low", "entropy_high", "margin", "tail_mass")


@dataclass(frozen=True)
class SignalTable:
    """Columns [n] named as in `FeedbackSignal`; NaN: unknown (counts are 0 there)."""

    columns: Mapping[str, Floats]
    should_escalate: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.should_escalate)

    def __getitem__(self, name: str) -> Floats:
        return self.columns[name]

    @property
    def known(self) -> NDArray[np.bool_]:
        """Answers with known signals [n]."""
        found: NDArray[np.bool_] = ~np.isnan(self["mean_logprob"])
        return found

    @property
    def distribution(self) -> NDArray[np.bool_]:
        """Answers with known token distributions [n], not only the chosen tokens."""
        found: NDArray[np.bool_] = ~np.isnan(self["entropy"])
        return found

    def matrix(self, features: Sequence[str]) -> Floats:
        """Columns side by side [n, features]."""
        return np.column_stack([self[name] for name in features]) if features else np.zeros((len(self), 0))

    @classmethod
    def of(
        cls,
        logprobs: Any,
        offsets: Any,
        top: Any = None,
        rules: FeedbackRules = DEFAULT_RULES,
        *,
        vocabulary: int = VOCABULARY,
    ) -> SignalTable:
        """Analyze answers whose tokens are concatenated.

        ``logprobs`` [tokens], of the chosen tokens; ``offsets`` [n + 1], answer i being ``offsets[i]:offsets[i + 1]``;
        ``top`` [tokens, k], log-probabilities of the most likely tokens, padded with NaN. The chosen token may be missing
        there if it was less likely. Raises `InputError` if the shapes do not match.

        >>> table = SignalTable.of([-0.1, -0.7, -0.2], [0, 2, 3, 3])
        >>> table["token_count"].tolist(), table.known.tolist()
        ([2.0, 1.0, 0.0], [True, True, False])
        """
        chosen = np.asarray(logprobs, dtype=np.float64)
        starts = np.asarray(offsets, dtype=np.int64)
        likeliest = None if top is None else np.asarray(top)
        _check_shapes(chosen, starts, likeliest)
        columns = {name: np.full(len(starts) - 1, np.nan) for name in COLUMNS}
        pieces = list(_pieces(starts))
        longest = max((int(starts[piece.stop] - starts[piece.start]) for piece in pieces), default=0)
        room = np.empty((2, 0 if likeliest is None else likeliest.shape[1], longest))
        for piece in pieces:
            _fill(columns, piece, chosen, starts, likeliest, vocabulary, room)
        for name in ("token_count", "low_confidence_tokens", "heavy_tails"):
            columns[name] = np.nan_to_num(columns[name])
        columns["entropy"] = columns["entropy_high"]
        return cls(columns, _doubtful(columns, rules))

    @classmethod
    def of_answers(
        cls, answers: Sequence[Answer | None], rules: FeedbackRules = DEFAULT_RULES, *, vocabulary: int = VOCABULARY
    ) -> SignalTable:
        """Analyze a sequence of answers; None: unknown."""
        lengths = [0 if answer is None else len(answer[0]) for answer in answers]
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        chosen = np.fromiter((v for a in answers if a is not None for v in a[0]), dtype=np.float64, count=int(offsets[-1]))
        width = max((len(t) for a in answers if a is not None and a[1] is not None for t in a[1]), default=0)
        if not width:
            return cls.of(chosen, offsets, None, rules, vocabulary=vocabulary)
        top = np.full((len(chosen), width), np.nan)
        for start, answer in zip(offsets, answers, strict=False):
            if answer is None or answer[1] is None or len(answer[1]) != len(answer[0]):
                continue
            for at, values in enumerate(answer[1], start=int(start)):
                # A NaN in the data must not count as padding.
                top[at, : len(values)] = [np.inf if value != value else value for value in values]  # noqa: PLR0124  # NaN
        return cls.of(chosen, offsets, top, rules, vocabulary=vocabulary)


def _check_shapes(chosen: Floats, starts: NDArray[np.int64], top: NDArray[Any] | None) -> None:
    if chosen.ndim != 1 or starts.ndim != 1 or not len(starts):
        raise InputError("logprobs and offsets must be one-dimensional, with one offset more than answers")
    if starts[0] != 0 or starts[-1] != len(chosen) or (np.diff(starts) < 0).any():
        raise InputError(f"offsets must increase from 0 to the number of tokens, {len(chosen)}")
    if top is not None and (top.ndim != 2 or len(top) != len(chosen)):
        raise InputError(f"top must have shape ({len(chosen)}, k), one row per token, not {top.shape}")


def _pieces(starts: NDArray[np.int64]) -> Iterator[slice]:
    """Yield slices of answers with about `_PIECE` tokens each."""
    first, count = 0, len(starts) - 1
    while first < count:
        last = int(np.searchsorted(starts, starts[first] + _PIECE, side="right")) - 1
        last = min(count, max(last, first + 1))
        yield slice(first, last)
        first = last


def _fill(
    columns: dict[str, Floats],
    piece: slice,
    logprobs: Floats,
    starts: NDArray[np.int64],
    top: NDArray[Any] | None,
    vocabulary: int,
    room: Floats,
) -> None:
    """Write the columns of one piece. ``room`` is a reused buffer: allocating one for each piece costs a third more."""
    bounds = starts[piece.start : piece.stop + 1]
    tokens = slice(int(bounds[0]), int(bounds[-1]))
    raw = logprobs[tokens]
    lengths = np.diff(bounds)
    filled = np.flatnonzero(lengths)
    begin = (bounds[:-1] - bounds[0])[filled]
    if not len(filled):
        return
    usable = np.logical_and.reduceat(raw <= _ROUNDING, begin)  # false for NaN
    chosen = np.minimum(np.maximum(raw, FLOOR), 0.0)  # NaN stays and makes its answer unusable
    likely = np.exp(chosen)
    rows, count = piece.start + filled, lengths[filled].astype(np.float64)
    total = np.add.reduceat(chosen, begin)
    found = {
        "token_count": count,
        "mean_logprob": total / count,
        "sequence_logprob": total,
        "log_length": np.log(count),
        "binary_entropy": np.add.reduceat(_binary_entropy(chosen, likely), begin) / count,
        "low_confidence_tokens": np.add.reduceat((chosen < _LOG_LOW).astype(np.float64), begin),
    }
    found["low_confidence_ratio"] = found["low_confidence_tokens"] / count
    found |= _order(chosen, begin, lengths[filled])
    if top is not None:
        alternatives, probabilities = room[:, :, : len(raw)]
        np.copyto(alternatives, top[tokens].T)
        found |= _spread(chosen, likely, alternatives, probabilities, begin, count, vocabulary)
    for name, values in found.items():
        columns[name][rows] = np.where(usable, values, np.nan)


def _order(chosen: Floats, begin: NDArray[np.int64], lengths: NDArray[np.int64]) -> dict[str, Floats]:
    """Compute the minimum and quantiles of each answer with one sort of its tokens."""
    width = int(lengths.max())
    if len(begin) * width == len(chosen):
        ordered = np.sort(chosen.reshape(len(begin), width), axis=1)
    else:
        ordered = np.full((len(begin), width), np.nan)  # NaN sorts last
        ordered[np.arange(width) < lengths[:, None]] = chosen
        ordered.sort(axis=1)
    row = np.arange(len(begin))
    found = {"min_logprob": ordered[:, 0]}
    for name, share in zip(("logprob_q05", "logprob_q25", "logprob_q50"), QUANTILES, strict=True):
        place = share * (lengths - 1)
        below = np.floor(place).astype(np.int64)
        low, high = ordered[row, below], ordered[row, np.minimum(below + 1, lengths - 1)]
        found[name] = low + (place - below) * (high - low)
    return found


def _spread(
    chosen: Floats,
    likely: Floats,
    top: Floats,
    probabilities: Floats,
    begin: NDArray[np.int64],
    count: Floats,
    vocabulary: int,
) -> dict[str, Floats]:
    """Compute mean entropy bounds, margins and unseen mass; NaN unless every token of the answer has alternatives.

    ``top`` and ``probabilities`` [k, tokens] are overwritten. The formulas are those of `signals.entropy_bounds`.
    """
    usable, seen, least = _tidy(top)
    beyond = chosen < least - _ROUNDING
    merged = likely * beyond
    np.exp(top, out=probabilities)
    known = np.einsum("kt,kt->t", probabilities, top)
    known += merged * chosen
    np.negative(known, out=known)
    rest = probabilities.sum(axis=0)
    rest += merged
    np.maximum(np.subtract(1.0, rest, out=rest), 0.0, out=rest)
    counted = seen + beyond
    low, high = _bounds(known, rest, least, counted, vocabulary)
    second = merged if len(top) == 1 else np.where(seen > 1, probabilities[1], merged)
    margins = np.subtract(probabilities[0], second)
    if counted.min() < 2:
        margins[counted < 2] = np.nan
    whole = np.logical_and.reduceat(usable, begin)
    found = {
        name: np.where(whole, np.add.reduceat(values, begin) / count, np.nan)
        for name, values in zip(_SPREAD, (low, high, margins, rest), strict=True)
    }
    found["min_margin"] = np.where(whole, np.minimum.reduceat(margins, begin), np.nan)
    found["heavy_tails"] = np.where(whole, np.add.reduceat(rest > HEAVY_TAIL, begin, dtype=np.float64), 0.0)
    return found


def _tidy(top: Floats) -> tuple[NDArray[np.bool_], NDArray[np.int8], Floats]:
    """Sort and clip the alternatives in place; return which tokens' are usable, their number and their minimum.

    Missing alternatives become `_NOTHING`, whose probability is 0.
    """
    if (top[:-1] >= top[1:]).all() and not np.isnan(top[-1]).any():  # sorted and complete, as servers send them
        usable = top[0] <= _ROUNDING
        if top[-1].min() < FLOOR or top[0].max() > 0.0:
            np.minimum(np.maximum(top, FLOOR, out=top), 0.0, out=top)
        return usable, np.full(top.shape[1], len(top), dtype=np.int8), top[-1]
    missing = np.isnan(top)
    seen = (len(top) - missing.sum(axis=0)).astype(np.int8)
    usable = (seen > 0) & ~(top > _ROUNDING).any(axis=0)
    top[:] = np.where(missing, _NOTHING, np.clip(top, FLOOR, 0.0))
    least = np.where(missing, 0.0, top).min(axis=0)
    top[:] = -np.sort(-top, axis=0)
    return usable, seen, least


def _bounds(known: Floats, rest: Floats, least: Floats, seen: NDArray[np.int8], vocabulary: int) -> tuple[Floats, Floats]:
    """Compute lower and upper bounds of entropies with the unseen mass ``rest``."""
    outcomes = np.maximum(1, vocabulary - np.arange(int(seen.max()) + 1)).astype(np.float64)
    largest = np.exp(least)
    high = np.log(outcomes)[seen]
    high -= np.log(np.maximum(rest, _TINY))
    high *= rest
    high += known
    held = np.floor(rest / largest)
    held *= largest * outcomes[seen] >= rest
    held *= largest
    left = np.maximum(0.0, rest - held)
    low = known - held * least
    low -= left * np.log(np.maximum(left, _TINY))
    return np.minimum(low, high, out=low), high


def _binary_entropy(chosen: Floats, likely: Floats) -> Floats:
    """Entropy in bits of the event "the chosen token or another"."""
    other = 1.0 - likely
    bits: Floats = (likely * chosen + other * np.log(np.maximum(other, _TINY))) / -np.log(2.0)
    return bits


def _doubtful(columns: Mapping[str, Floats], rules: FeedbackRules) -> NDArray[np.bool_]:
    """Return which answers `FeedbackRules.reasons` finds doubtful; unknown answers are doubtful."""
    mean = columns["mean_logprob"]
    spread = np.where(np.isnan(columns["entropy"]), -mean, columns["entropy"])
    doubtful: NDArray[np.bool_] = (
        np.isnan(mean)
        | (np.exp(mean) < rules.safety_threshold)
        | (spread > rules.entropy)
        | (columns["binary_entropy"] > rules.binary_entropy)
        | (columns["min_logprob"] < rules.min_logprob)
        | (columns["low_confidence_ratio"] > rules.low_confidence_ratio)
    )
    return doubtful
