r"""Features of questions: the input of the probe.

The features count words, sentences, numbers and digits, operators, LaTeX commands, and words that hint at the task (``how
many``, ``twice``, ``prove``). Word groups are English; in other languages lengths, numbers and signs still count. Counting
works on the bytes of a whole column at once, with tables of bytes and byte pairs, so that a million questions take seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

VERSION = 1
"""Incremented when a feature changes; a probe works only with the version that it was trained with."""

WORD_GROUPS: dict[str, str] = {
    "asking": "what which who whom whose where when why how",
    "amount": "many much number amount total altogether",
    "proving": "prove proof show derive justify explain demonstrate verify",
    "computing": "find compute calculate evaluate determine solve simplify express",
    "gaining": "more additional extra another gets gains buys bought receives received finds found adds added gives gave "
    "earns grows",
    "losing": "less fewer loses lost eats ate sells sold uses used breaks broke spends spent remain remains remaining left",
    "multiplying": "times twice thrice double doubles triple triples each every per multiple",
    "sharing": "half halves third quarter divide divided divides split equally share shared average mean ratio percent "
    "fraction",
    "comparing": "than older younger taller longer difference between compared same",
    "conditional": "not no never none if unless except without neither only",
    "extreme": "all any most least greatest maximum minimum largest smallest best exactly",
    "time": "second seconds minute minutes hour hours day days week weeks month months year years",
    "algebra": "integer integers polynomial equation function real complex prime positive negative root roots sum product",
    "geometry": "triangle circle square rectangle angle area perimeter radius diameter length volume",
    "chance": "probability random randomly dice coin choose chosen ways arrange combinations",
    "numerals": "one two three four five six seven eight nine ten dozen hundred thousand million",
    "referring": "he she they it his her their its this that these those following",
}
"""Groups of counted words; matching uses the first eight letters and ignores case."""

_COUNTED = (
    "words", "capitalised", "numbers", "decimals", "digits", "sentences", "question_marks", "operators", "minus_signs",
    "latex_commands", "dollars", "brackets", "lines", "clauses", "symbols",
)  # fmt: skip
NAMES: tuple[str, ...] = ("characters", *_COUNTED, "foreign", "longest_number", "word_length", *WORD_GROUPS)
"""The columns of a feature matrix. All are logarithms, ``log(1 + count)``."""

# ---------------------------------------------------------------------------------------- kinds of bytes and of pairs

_KINDS: tuple[str, ...] = (
    "other",
    "lower",
    "upper",
    "digit",
    "space",
    "line",
    "dot",
    "ask",
    "operator",
    "minus",
    "backslash",
    "dollar",
)
_KINDS += ("bracket", "clause", "lead", "boundary")
_KIND = {name: at for at, name in enumerate(_KINDS)}
_MEMBERS = {
    "lower": "abcdefghijklmnopqrstuvwxyz",
    "upper": "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "digit": "0123456789",
    "space": " \t",
    "line": "\n\r\v\f",
    "dot": ".!",
    "ask": "?",
    "operator": "+*/^=<>%",
    "minus": "-",
    "backslash": "\\",
    "dollar": "$",
    "bracket": "([{",
    "clause": ",;:",
}
_BYTES = 160 << 10
"""Bytes counted at a time. With fewer, call overhead dominates; with more, temporary arrays are allocated from and returned
to the system each time, which takes up to half as long again."""


@cache
def _tables() -> tuple[bytes, bytes, bytes]:
    """Tables for `bytes.translate`: byte to kind, pair of kinds to event, byte to small letter (0 for all others)."""
    kinds = bytearray(256)
    for name, members in _MEMBERS.items():
        for member in members.encode():
            kinds[member] = _KIND[name]
    for byte in range(0xC0, 0x100):  # the first byte of a character that is not ASCII; those that follow are "other"
        kinds[byte] = _KIND["lead"]
    events = bytearray(256)
    for before, first in _KIND.items():
        for here, second in _KIND.items():
            events[first * 16 + second] = _event(before, here)
    letters = bytearray(256)
    for small, capital in zip(_MEMBERS["lower"].encode(), _MEMBERS["upper"].encode(), strict=True):
        letters[small] = letters[capital] = small
    return bytes(kinds), bytes(events), bytes(letters)


_EVENT = {name: at + 1 for at, name in enumerate(_COUNTED)}


def _event(before: str, here: str) -> int:  # noqa: PLR0911  # one line per kind of byte
    """Return what to count at a byte: a number of `_EVENT`, or 0."""
    letter = {"lower", "upper", "lead"}
    if here in letter and before == "backslash":
        return _EVENT["latex_commands"]
    if here in letter and before not in letter:
        return _EVENT["capitalised" if here == "upper" else "words"]
    if here == "digit":
        inside = {"digit": "digits", "dot": "decimals"}
        return _EVENT[inside.get(before, "numbers")]
    if here == "dot":
        return 0 if before == "dot" else _EVENT["sentences"]
    if here == "other":
        return _EVENT["symbols"] if before in {"space", "boundary"} else 0
    if here == "minus":
        return 0 if before in letter else _EVENT["minus_signs"]
    same = {"ask": "question_marks", "operator": "operators", "dollar": "dollars", "bracket": "brackets"}
    same |= {"line": "lines", "clause": "clauses"}
    return _EVENT[same[here]] if here in same else 0


# --------------------------------------------------------------------------------------------------- words in groups

_ONES = np.uint64(0x0101010101010101)
_HIGHS = np.uint64(0x8080808080808080)
_FIRST = np.array([(1 << 8 * size) - 1 for size in range(9)], np.uint64)
"""Masks for the first n of eight bytes."""
_SLOTS = 12
"""Bits of the table of known words: 4,096 slots for about two hundred words."""


@cache
def _known_words() -> tuple[np.uint64, NDArray[np.uint64], NDArray[np.uint8]]:
    """Return a multiplier that hashes the known words without collisions, the table of words, and of their groups plus 1."""
    group: dict[int, int] = {}
    for at, listed in enumerate(WORD_GROUPS.values()):
        for word in listed.split():
            group.setdefault(int.from_bytes(word.encode()[:8].ljust(8, b"\0"), "little"), at + 1)
    keys = np.array(list(group), dtype=np.uint64)
    multipliers = np.random.default_rng(0).integers(1 << 62, 1 << 63, 100_000, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    multiplier = next(m for m in multipliers if len(np.unique(_places(keys, m))) == len(keys))
    places = _places(keys, multiplier)
    words, groups = np.zeros(1 << _SLOTS, np.uint64), np.zeros(1 << _SLOTS, np.uint8)
    words[places], groups[places] = keys, list(group.values())
    return multiplier, words, groups


def _places(keys: NDArray[np.uint64], multiplier: np.uint64) -> NDArray[np.intp]:
    with np.errstate(over="ignore"):
        return ((keys * multiplier) >> np.uint64(64 - _SLOTS)).astype(np.intp)


def _groups(letters: bytes, words: NDArray[np.intp], last: NDArray[np.intp], ends: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return the group, plus 1, of each word that begins at ``words``; 0 for words without a group.

    ``last`` are the positions in ``words`` of each row's last word, which must not be read beyond the row's end (``ends``).
    """
    aligned = np.frombuffer(letters + bytes(16 - len(letters) % 8), "<u8")
    at, shift = words >> 3, ((words & 7) << 3).astype(np.uint64)
    eight = (aligned.take(at) >> shift) | (aligned.take(at + 1) << (np.uint64(64) - shift))  # a shift by 64 gives 0
    eight[last] &= _FIRST[np.minimum(ends - words[last], 8)]
    with np.errstate(over="ignore"):
        stops = (eight - _ONES) & ~eight & _HIGHS  # its lowest bit marks the first byte that is not a letter
        keys = eight & (((stops & (~stops + np.uint64(1))) >> np.uint64(7)) - np.uint64(1))
    multiplier, known, groups = _known_words()
    places = _places(keys, multiplier)
    found: NDArray[np.uint8] = groups.take(places) * (known.take(places) == keys)
    return found


# ------------------------------------------------------------------------------------------------------- the features


def features(texts: pa.LargeStringArray) -> NDArray[np.float32]:
    """Return the feature matrix of a column of texts without nulls: shape ``(n, len(NAMES))``.

    >>> matrix = features(pa.array(["How many are 12 and 30?", ""], pa.large_string()))
    >>> np.expm1(matrix[:, NAMES.index("numbers")]).round().tolist()
    [2.0, 0.0]
    """
    matrix = np.zeros((len(texts), len(NAMES)), np.float32)
    if not len(texts):
        return matrix
    _, ends, data = texts.buffers()
    offsets = np.frombuffer(ends, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    cuts = np.searchsorted(offsets, np.arange(offsets[0], offsets[-1], _BYTES), side="right") - 1
    for start, end in pairwise([*np.unique(cuts).tolist(), len(texts)]):
        piece = offsets[start : end + 1]
        whole = data.slice(int(piece[0]), int(piece[-1] - piece[0])).to_pybytes()
        _count(whole, piece - piece[0], matrix[start:end])
    return np.log1p(matrix, out=matrix)


def _count(data: bytes, offsets: NDArray[np.int64], into: NDArray[np.float32]) -> None:
    """Count the features of the texts between ``offsets`` of ``data``, each into its row."""
    kind_of, event_of, letter_of = _tables()
    kinds = np.frombuffer(data.translate(kind_of), np.uint8)
    paired = bytearray(kinds)
    pairs = np.frombuffer(paired, np.uint8)
    pairs[1:] |= kinds[:-1] << 4
    sizes = np.diff(offsets)
    first = offsets[:-1][sizes > 0]
    pairs[first] = (_KIND["boundary"] << 4) | kinds[first]
    events = np.frombuffer(paired.translate(event_of), np.uint8)

    column = {name: into[:, at] for at, name in enumerate(NAMES)}
    column["characters"][:] = sizes
    if not data.isascii():
        beyond = np.flatnonzero(np.frombuffer(data, np.int8) < 0)
        column["foreign"][:] = _per_row(beyond[kinds[beyond] == _KIND["lead"]], offsets)
        column["characters"][:] -= _per_row(beyond, offsets) - column["foreign"]
    signs = np.flatnonzero(events > _EVENT["words"])  # of booleans: three times faster than of numbers
    row = np.repeat(np.arange(len(sizes)), _per_row(signs, offsets))
    found = events[signs]
    _tally(row, found, into[:, _columns(_COUNTED)])

    words = np.flatnonzero((events == _EVENT["words"]) | (events == _EVENT["capitalised"]))
    per_row = _per_row(words, offsets)
    last = np.cumsum(per_row)[per_row > 0] - 1
    groups = _groups(data.translate(letter_of), words, last, offsets[1:][per_row > 0])
    known = np.flatnonzero(groups != 0)
    _tally(np.repeat(np.arange(len(sizes)), per_row).take(known), groups[known], into[:, _columns(WORD_GROUPS)])
    column["words"][:] = per_row
    column["digits"] += column["numbers"] + column["decimals"]
    np.divide(column["characters"], column["words"], out=column["word_length"], where=column["words"] > 0)
    _longest_runs(row, found, column["longest_number"])


def _tally(row: NDArray[np.intp], what: NDArray[np.uint8], into: NDArray[np.float32]) -> None:
    """Count how often each ``what`` (from 1) occurs in each row."""
    rows, width = into.shape
    into[:] = np.bincount(row * (width + 1) + what, minlength=rows * (width + 1)).reshape(rows, width + 1)[:, 1:]


def _longest_runs(row: NDArray[np.intp], found: NDArray[np.uint8], into: NDArray[np.float32]) -> None:
    """Write the number of digits of each row's longest number."""
    digits = np.flatnonzero((found >= _EVENT["numbers"]) & (found <= _EVENT["digits"]))
    runs = np.flatnonzero(found.take(digits) != _EVENT["digits"])
    if len(runs):
        owner = row.take(digits.take(runs))
        starts = np.concatenate([[0], np.flatnonzero(owner[1:] != owner[:-1]) + 1])
        lengths = np.concatenate([runs[1:], [len(digits)]]) - runs
        into[owner[starts]] = np.maximum.reduceat(lengths, starts)


def _columns(names: Iterable[str]) -> slice:
    """Return the position of these adjacent names in `NAMES`."""
    names = list(names)
    start = NAMES.index(names[0])
    return slice(start, start + len(names))


def _per_row(places: NDArray[np.intp], offsets: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return how many of these positions are in each row."""
    return np.diff(np.searchsorted(places, offsets))
