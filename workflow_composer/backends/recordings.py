"""Recorded answers: one JSON object per line, indexed by question without keeping a text in memory."""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
import weakref
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflow_composer.errors import BadRequest, InputError, ModelNotFound
from workflow_composer.storage.lines import seekable
from workflow_composer.types import TokenLogprob


@dataclass(frozen=True, slots=True)
class Recorded:
    """One recorded answer. ``correct`` is None if it was not graded; ``tokens`` counts those of the answer.

    ``score`` is that of a gate or a reward model, ``cost`` is in dollars, ``group`` is the request's task type; None if
    unknown.
    """

    question: str
    model: str
    sample: int
    answer: str
    correct: bool | None
    tokens: int
    prompt_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] | None = None
    score: float | None = None
    cost: float | None = None
    group: str | None = None

    @classmethod
    def parse(cls, line: bytes) -> Recorded:
        """Parse one line. Raises ValueError with the fault."""
        data = json.loads(line)
        if not isinstance(data, dict):
            raise ValueError("not a JSON object")  # noqa: TRY004  # callers expect ValueError for every fault of a line
        unknown = sorted(data.keys() - _CHECKS.keys())
        if unknown:
            raise ValueError(f"unknown key {unknown[0]!r}; allowed: {', '.join(_CHECKS)}")
        for key, (holds, wanted) in _CHECKS.items():
            if not holds(data.get(key)):
                raise ValueError(f"{key} is {_short(data.get(key))}; it must be {wanted}")
        logprobs = data.get("logprobs")
        return cls(
            data["question"],
            data["model"],
            data["sample"],
            data["answer"],
            data.get("correct"),
            data["tokens"],
            data.get("prompt_tokens") or 0,
            None if logprobs is None else tuple(_token(entry) for entry in logprobs),
            data.get("score"),
            data.get("cost"),
            data.get("group"),
        )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 32


def _is_number(value: Any, least: float = -math.inf) -> bool:
    return value is None or (
        isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= least
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_CHECKS: Mapping[str, Any] = {
    "question": (_is_text, "a text"),
    "model": (_is_text, "a text"),
    "sample": (_is_count, "0, 1, 2, ..."),
    "answer": (_is_text, "a text"),
    "correct": (lambda value: value is None or isinstance(value, bool), "true, false or null"),
    "tokens": (_is_count, "a count"),
    "prompt_tokens": (lambda value: value is None or _is_count(value), "a count"),
    "logprobs": (lambda value: value is None or isinstance(value, list), "a list"),
    "score": (_is_number, "a number"),
    "cost": (lambda value: _is_number(value, 0.0), "a number of dollars"),
    "group": (lambda value: value is None or _is_text(value), "a text"),
}


def _token(entry: Any) -> TokenLogprob:
    try:
        top = tuple((str(text), float(value)) for text, value in entry.get("top", ()))
        return TokenLogprob(str(entry["token"]), float(entry["logprob"]), top)
    except (AttributeError, KeyError, TypeError, ValueError):
        wanted = '{"token": text, "logprob": number, "top": [[text, number], ...]}'
        raise ValueError(f"an entry of logprobs is {_short(entry)}; it must be {wanted}") from None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class _Index:
    """The positions of one model's answers in the file, sorted by question's hash and sample: 28 bytes each."""

    def __init__(self) -> None:
        self._hashes, self._samples = array("Q"), array("I")
        self._offsets, self._lengths, self._lines = array("Q"), array("I"), array("I")

    def add(self, record: Recorded, offset: int, length: int, line: int) -> None:
        self._hashes.append(_hash(record.question))
        self._samples.append(record.sample)
        self._offsets.append(offset)
        self._lengths.append(length)
        self._lines.append(line)

    def sort(self) -> None:
        order = sorted(range(len(self._hashes)), key=self._samples.__getitem__)
        order.sort(key=self._hashes.__getitem__)
        columns = (self._hashes, self._samples, self._offsets, self._lengths, self._lines)
        for column in columns:
            column[:] = array(column.typecode, [column[i] for i in order])

    def repeated(self) -> tuple[int, int] | None:
        """Return two lines with the same sample of the same question, if any."""
        for at in range(1, len(self)):
            if self._hashes[at] == self._hashes[at - 1] and self._samples[at] == self._samples[at - 1]:
                return self._lines[at - 1], self._lines[at]
        return None

    def places(self, question: str) -> Iterator[tuple[int, int, int]]:
        """Yield offset, length and line of every answer whose question has this hash, by sample."""
        wanted = _hash(question)
        at = bisect_left(self._hashes, wanted)
        while at < len(self._hashes) and self._hashes[at] == wanted:
            yield self._offsets[at], self._lengths[at], self._lines[at]
            at += 1

    def __len__(self) -> int:
        return len(self._hashes)


def _hash(question: str) -> int:
    return int.from_bytes(hashlib.blake2b(question.strip().encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


class Recording:
    """An open, indexed file of recorded answers; thread-safe. The file must not change while it is open.

    A compressed file is decompressed into an anonymous temporary file, which is deleted with this object.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._models: dict[str, _Index] = {}
        try:
            self._file = seekable(path)
        except (OSError, InputError) as error:
            raise ModelNotFound(f"no recorded answers: {path}: {error}") from None
        try:
            self._read()
        except BaseException:
            self._file.close()
            raise
        weakref.finalize(self, self._file.close)

    @property
    def models(self) -> Mapping[str, int]:
        """Map each model in the file to its number of answers."""
        return {name: len(index) for name, index in self._models.items()}

    def records(self) -> Iterator[Recorded]:
        """Yield every answer in the order of the file."""
        with seekable(self.path) as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield self._record(line, number)

    def answers(self, model: str, question: str, count: int) -> list[Recorded]:
        """Return the first ``count`` answers of a model. Raises `ModelNotFound`, or `BadRequest` if there are too few."""
        index = self._models.get(model)
        if index is None:
            there = ", ".join(sorted(self._models)) or "none"
            raise ModelNotFound(f"{self.path.name} has no answers of model {model!r}; recorded models: {there}")
        found: list[Recorded] = []
        for offset, length, line in index.places(question):
            record = self._record(os.pread(self._file.fileno(), length, offset), line)
            if record.question.strip() == question.strip():
                found.append(record)
                if len(found) == count:
                    return found
        if not found:
            raise ModelNotFound(f"{self.path.name} has no answer of {model!r} to {_short(question)}")
        raise BadRequest(f"{self.path.name} has {len(found)} answers of {model!r} to {_short(question)}, not {count}")

    def _read(self) -> None:
        offset = 0
        for number, line in enumerate(self._file, start=1):
            if line.strip():
                record = self._record(line, number)
                self._models.setdefault(record.model, _Index()).add(record, offset, len(line), number)
            offset += len(line)
        for index in self._models.values():
            index.sort()
            if lines := index.repeated():
                fault = f"duplicate model, question and sample; see line {lines[0]}"
                raise ModelNotFound(f"damaged recording: {self.path}:{lines[1]}: {fault}")

    def _record(self, line: bytes, number: int) -> Recorded:
        try:
            return Recorded.parse(line)
        except (ValueError, RecursionError) as error:
            raise ModelNotFound(f"damaged recording: {self.path}:{number}: {error}") from None


_open: weakref.WeakValueDictionary[tuple[Path, int, int], Recording] = weakref.WeakValueDictionary()
_open_lock = threading.Lock()


def open_recording(path: Path) -> Recording:
    """Return the indexed file; users of the same file share one index. Raises `ModelNotFound`."""
    try:
        status = path.stat()
    except OSError as error:
        raise ModelNotFound(f"no recorded answers: {path}: {error.strerror}") from None
    key = (path.resolve(), status.st_mtime_ns, status.st_size)
    with _open_lock:
        recording = _open.get(key)
        if recording is None:
            recording = _open[key] = Recording(path)
        return recording
