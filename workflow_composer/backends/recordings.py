"""Recorded answers: one JSON object per line, indexed by question without keeping a text in memory."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
import threading
import weakref
from array import array
from bisect import bisect_left
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from workflow_composer.backends.recorded_tables import converted, converted_lines, is_table, is_wide
from workflow_composer.errors import BadRequest, InputError, ModelNotFound, ServerUnreachable, Unsupported
from workflow_composer.storage.lines import seekable, spooled
from workflow_composer.types import (
    Chunk,
    Completion,
    Embeddings,
    EndpointStatus,
    ModelCall,
    Sample,
    TokenLogprob,
    Usage,
    texts,
)

if TYPE_CHECKING:
    from workflow_composer.backends.base import BackendContext
    from workflow_composer.config.strategy import ModelSpec


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
    finish_reason: str = "stop"

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
            data.get("finish_reason") or "stop",
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
    "question": (_is_text, "a string"),
    "model": (_is_text, "a string"),
    "sample": (_is_count, "0, 1, 2, ..."),
    "answer": (_is_text, "a string"),
    "correct": (lambda value: value is None or isinstance(value, bool), "true, false or null"),
    "tokens": (_is_count, "a non-negative integer"),
    "prompt_tokens": (lambda value: value is None or _is_count(value), "a non-negative integer"),
    "logprobs": (lambda value: value is None or isinstance(value, list), "a list"),
    "score": (_is_number, "a number"),
    "cost": (lambda value: _is_number(value, 0.0), "a non-negative number of dollars"),
    "group": (lambda value: value is None or _is_text(value), "a string"),
    "finish_reason": (lambda value: value is None or _is_text(value), "a string"),
    **{name: (lambda value: True, "anything") for name in ("id", "label", "columns", "reasoning", "read_by")},
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

    A compressed file is decompressed into an anonymous temporary file, which is deleted with this object; a table
    (`workflow_composer.backends.recorded_tables`) is converted into one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._models: dict[str, _Index] = {}
        try:
            self._file = _lines_of(path)
        except (OSError, InputError) as error:
            raise ModelNotFound(f"cannot read the recorded answers {path}: {error}") from None
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
        with _lines_of(self.path) as file:
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


def _lines_of(path: Path) -> BinaryIO:
    """Open the file as seekable lines of a recording, converted from a table if it is one."""
    if not is_table(path):
        file = seekable(path)
        first = next((line for line in file if line.strip()), b"")
        file.seek(0)
        if not is_wide(first):
            return file
        with file:
            return spooled(converted_lines(path, file))
    return spooled(converted(path))


_open: weakref.WeakValueDictionary[tuple[Path, int, int], Recording] = weakref.WeakValueDictionary()
_open_lock = threading.Lock()


def _after_fork() -> None:
    """Open recordings anew in a forked child: the two would share one place in each file."""
    global _open, _open_lock  # one of each per process
    _open, _open_lock = weakref.WeakValueDictionary(), threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def open_recording(path: Path) -> Recording:
    """Return the indexed file; users of the same file share one index. Raises `ModelNotFound`."""
    try:
        status = path.stat()
    except OSError as error:
        raise ModelNotFound(f"cannot read the recorded answers {path}: {error.strerror}") from None
    key = (path.resolve(), status.st_mtime_ns, status.st_size)
    with _open_lock:
        recording = _open.get(key)
        if recording is None:
            recording = _open[key] = Recording(path)
        return recording


# ------------------------------------------------------------------------------------------------------------------ replay
#
# Replays recorded answers of real models, for benchmarks and tests without the models.


_PIECES = 4
_REFUSED = ("tools", "tool_choice", "response_format")


class ReplayBackend:
    """One model of a file of recorded answers; see ``docs/recordings.md`` for the format.

    ``path`` is the file, ``model`` selects the model in it (default: the entry's name). Answers are looked up by the text
    of the last user message: ``samples`` recorded answers in their order, starting with number ``first_sample``, always the
    same. The settings of the recording (temperature, length, seed) apply; those of the call are ignored, except that a stop
    string of the call ends the text before it.
    Log-probabilities are returned if they were recorded; otherwise a request for them raises `Unsupported`.
    """

    local = True
    replays = True

    def __init__(self, spec: ModelSpec, context: BackendContext) -> None:
        self.name = spec.name
        self._model = spec.model or spec.name
        self._path = Path(spec.path or "")
        self._recording: Recording | None = None
        self._closed = False

    async def complete(self, call: ModelCall) -> Completion:
        """Return ``call.samples`` recorded answers, from number ``call.first_sample`` on."""
        return self._completion(await self._opened(), call, call.samples)

    async def stream(self, call: ModelCall) -> AsyncGenerator[Chunk, None]:
        """Yield the first recorded answer in a few pieces."""
        completion = self._completion(await self._opened(), call, 1)
        (sample,) = completion.samples
        size = max(1, -(-len(sample.text) // _PIECES))
        for start in range(0, len(sample.text), size):
            yield Chunk(sample.text[start : start + size], model=completion.model)
        yield Chunk(
            finish_reason=sample.finish_reason,
            logprobs=sample.logprobs or (),
            usage=completion.usage,
            model=completion.model,
        )

    async def embed(self, texts: Sequence[str], *, timeout: float, dimensions: int | None = None) -> Embeddings:
        """Raise `Unsupported`: embeddings are not recorded."""
        raise Unsupported(f"{self.name}: recordings have no embeddings", hint="route embeddings to another model")

    async def health(self, *, timeout: float) -> EndpointStatus:
        """Return whether the file exists. Counts answers only if it is already open."""
        url = f"replay:{self._path.name}"
        if not await asyncio.to_thread(self._path.is_file):
            return EndpointStatus(name=self.name, url=url, healthy=False, detail=f"no file {self._path}")
        count = None if self._recording is None else self._recording.models.get(self._model, 0)
        detail = "loads on first use" if count is None else f"{count} recorded answers"
        return EndpointStatus(
            name=self.name, url=url, healthy=count != 0, models=(self._model,), latency_ms=0.0, detail=detail
        )

    async def close(self) -> None:
        """Close the recording."""
        self._closed, self._recording = True, None

    async def _opened(self) -> Recording:
        if self._closed:
            raise ServerUnreachable(f"{self.name}: the recording is closed")
        if self._recording is None:
            self._recording = await asyncio.to_thread(open_recording, self._path)
        return self._recording

    def _completion(self, recording: Recording, call: ModelCall, count: int) -> Completion:
        request = call.request
        refused = [name for name in _REFUSED if getattr(request, name) is not None] + sorted(
            set(request.extra) - {"metadata"}
        )
        if refused:
            raise Unsupported(f"{self.name}: recordings do not support {', '.join(refused)}", hint="leave it out")
        question = next((" ".join(texts(m)) for m in reversed(request.messages) if m.get("role") == "user"), None)
        if question is None:
            raise BadRequest(f"{self.name}: the request has no user message, by which recorded answers are found")
        try:
            answers = recording.answers(self._model, question, call.first_sample + count)[call.first_sample :]
        except (OSError, ValueError) as error:  # the file was truncated or replaced meanwhile
            raise ModelNotFound(f"{self._path}: {error}") from None
        wanted = request.top_logprobs if request.top_logprobs is not None else (0 if request.logprobs else None)
        samples = tuple(_stopped(self._sample(answer, wanted), request.stop) for answer in answers)
        usage = Usage(answers[0].prompt_tokens, sum(answer.tokens for answer in answers))
        costs = [answer.cost for answer in answers if answer.cost is not None]
        return Completion(
            samples=samples, usage=usage, model=self._model, cost=sum(costs) if len(costs) == len(answers) else None
        )

    def _sample(self, answer: Recorded, alternatives: int | None) -> Sample:
        if alternatives is None:
            return Sample(answer.answer, answer.finish_reason, score=answer.score)
        if answer.logprobs is None:
            raise Unsupported(f"{self.name}: no log-probabilities were recorded", hint="record them, or leave logprobs out")
        tokens = tuple(type(token)(token.token, token.logprob, token.top[:alternatives]) for token in answer.logprobs)
        return Sample(answer.answer, answer.finish_reason, logprobs=tokens, score=answer.score)


def _stopped(sample: Sample, stop: str | Sequence[str] | None) -> Sample:
    """Return the sample up to the first stop string, as a model would have ended; its tokens are those of the recording."""
    places = [sample.text.find(text) for text in ((stop,) if isinstance(stop, str) else stop or ())]
    end = min((place for place in places if place >= 0), default=None)
    return sample if end is None else replace(sample, text=sample.text[:end], finish_reason="stop")
