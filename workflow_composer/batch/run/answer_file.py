"""An answer file: rows are appended as they are answered, and a later run resumes where this one stopped."""

from __future__ import annotations

import json
import os
import re
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from workflow_composer.answers import Question, reader
from workflow_composer.batch.datasets.prompt_rows import InputRow
from workflow_composer.batch.run.journal import open_own, unwritable
from workflow_composer.batch.run.records import Head
from workflow_composer.batch.run.runner import Generate
from workflow_composer.errors import InputError
from workflow_composer.storage.appending import OwnFile
from workflow_composer.storage.lines import encoded, unreadable
from workflow_composer.support.fast_dataclass import changed
from workflow_composer.types import LLMRequest, LLMResponse, Sample

# ------------------------------------------------------------------------------------------------------------ line answers
#
# The request made from a row, and the line made from the response.


class LineAnswers:
    """Answers rows by calling ``generate``, and raises what it raises.

    ``fields`` are fields of `LLMRequest` for all rows, plus ``system``. A row's own task type, model and context take
    precedence over them; if a row is itself a request, ``fields`` take precedence over its fields.
    """

    def __init__(self, generate: Generate, fields: Mapping[str, Any]) -> None:
        self._generate = generate
        self._fields = dict(fields)

    async def __call__(self, row: InputRow, budget: float | None) -> AnswerLine:
        """Answer one row for at most ``budget`` dollars; return its line."""
        fields, prompt = self._of(row, budget), row.prompt
        if isinstance(prompt, LLMRequest) and (system := fields.pop("system", None)) is not None:
            prompt = changed(prompt, messages=({"role": "system", "content": system}, *prompt.messages))
        response = await self._generate(prompt, **fields)
        logprobs = bool(fields.get("logprobs") or (isinstance(prompt, LLMRequest) and prompt.logprobs))
        return AnswerLine({**_head(row), **await _answered(response, row.label, logprobs=logprobs)})

    def failed(self, row: InputRow, error: BaseException, seconds: float) -> AnswerLine:
        """Return the line of a failed row, with the cost of its attempts."""
        found = {
            "error": {"type": type(error).__name__, "message": str(error)},
            "cost": sum(attempt.cost for attempt in getattr(error, "attempts", ())),
            "latency_ms": round(seconds * 1000.0, 3),
        }
        if not all(attempt.priced for attempt in getattr(error, "attempts", ())):
            found["cost_known"] = False
        if row.label is not None:
            found["correct"] = False
        return AnswerLine(_head(row) | found)

    def _of(self, row: InputRow, budget: float | None) -> dict[str, Any]:
        own = {"task_type": row.task_type, "model": row.model, "context": row.context, "budget": budget}
        if budget is not None and isinstance(row.prompt, LLMRequest) and row.prompt.budget is not None:
            own["budget"] = min(budget, row.prompt.budget)
        return self._fields | {name: value for name, value in own.items() if value is not None}


def _head(row: InputRow) -> dict[str, Any]:
    return {"index": row.index, "key": row.key, "id": row.id}


async def _answered(response: LLMResponse, label: str | None, *, logprobs: bool) -> dict[str, Any]:
    decision, usage = response.decision, response.usage
    found = {
        "text": response.text,
        "model": decision.model,
        "candidate": decision.candidate,
        "tier": decision.tier,
        "fallback_depth": decision.fallback_depth,
        "cost": response.cost,
        "tokens": {"prompt": usage.prompt_tokens, "completion": usage.completion_tokens},
        "latency_ms": round(response.latency_ms, 3),
        "confidence": response.confidence,
    }
    if not response.cost_known:
        found["cost_known"] = False
    if label is not None:
        found |= await graded(response.samples[0], label)
    if response.tool_calls:
        found["tool_calls"] = [dict(call) for call in response.tool_calls]
    if logprobs:
        found["logprobs"] = logprobs_of(response)
    return found


async def graded(sample: Sample, label: str) -> dict[str, Any]:
    """Return the final answer read from a sample, its finish reason, and whether it is correct."""
    answer = reader().read_said(sample, label)
    right = await Question(reader(), label).is_correct(answer)
    return {"answer": answer, "finish_reason": sample.finish_reason, "correct": right}


def logprobs_of(response: LLMResponse) -> list[list[Any]] | None:
    """Return [token, log-probability] pairs of the answer; None if the model returned none."""
    found = response.samples[0].logprobs if response.samples else None
    return None if found is None else [[token.token, token.logprob] for token in found]


_BEGIN = b'{"index":'
_INDEX = re.compile(rb'\{"index":(\d+)')
_NO_KEY = 0
_MOST_ROWS = 1 << 28
"""Highest accepted row count (2 GiB of keys in memory); a line with a higher index is invalid."""


@dataclass(frozen=True, slots=True)
class AnswerLine:
    """The line written for a row: plain data, with ``index`` and ``key`` first."""

    fields: Mapping[str, Any]

    @property
    def head(self) -> Head:
        """The fields that `Tally` counts."""
        fields, error = self.fields, self.fields.get("error")
        found = (error["type"], error["message"]) if isinstance(error, Mapping) and error else None
        failed = error is not None
        correct = fields.get("correct") if isinstance(fields.get("correct"), bool) else None
        unread = not failed and correct is not None and fields.get("answer", "") is None
        cut_off = unread and fields.get("finish_reason") == "length"
        deciding, priced = str(fields.get("candidate") or ""), fields.get("cost_known", True)
        why = found or ("", "") if failed else None
        return Head(fields["index"], why, deciding, correct, fields["cost"], unread, cut_off, priced=priced)


class AnswerFile:
    """An answer file, locked for this process from `open` to `close`. A context manager.

    Each row is one ``write``: a killed process loses only the rows in flight. Failed rows are written too and are tried
    again; the later line counts, and its cost is the sum over all tries. `close` removes superseded lines. An incomplete
    last line is dropped on opening. Any other line that is not an answer is an error, so that an unrelated file is never
    overwritten.
    """

    def __init__(self, file: OwnFile, other: str) -> None:
        self.path = file.path
        self._file = file
        self._other = other
        self._keys = array("Q")
        self._failed: dict[int, tuple[float, int]] = {}  # index: cost so far, where its line begins
        self._stale: set[int] = set()

    @classmethod
    def open(cls, path: Path, *, source: Path | None, each: Callable[[Head], None], other: str) -> Self:
        """Open and lock the file; call ``each`` with the head of every line that counts.

        ``other`` names the option to change in hints, such as "another --output". Raises `InputError` if the file is the
        input itself (``source``), is locked by another run, or holds other content.
        """
        path = Path(os.path.realpath(path))
        if source is not None and path.exists() and source.exists() and path.samefile(source):
            raise InputError(f"{path} is both the input and the output", hint=f"choose {other}")
        found = cls(open_own(path, other=other), other)
        try:
            found._read(each)
        except OSError as error:
            found._file.close()
            raise unwritable(path, error, other=other) from error
        except BaseException:
            found._file.close()
            raise
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove superseded lines and release the lock."""
        try:
            if self._file.is_open and self._stale:
                with suppress(OSError):  # disk full: the file is valid as it is, and the next run rewrites it
                    self._rewrite()
        finally:
            self._file.close()

    def is_done(self, row: InputRow) -> bool:
        """Whether the row is answered. Raises `InputError` if the answer belongs to another row or other options."""
        key = self._keys[row.index] if row.index < len(self._keys) else _NO_KEY
        if key == _NO_KEY:
            return False
        if key != _number(row.key):
            raise InputError(
                f"{self.path}: the answer to row {row.index} does not match {row.where}: "
                "the rows or the options (task, model, system, temperature, ...) have changed",
                hint=f"choose {self._other} for the new run",
            )
        return True

    @property
    def rows(self) -> int:
        """The highest answered index plus one."""
        return len(self._keys)

    def append(self, line: AnswerLine) -> None:
        """Append a row; its cost is added to the cost of its earlier tries.

        Raises `WorkflowComposerError` if the disk is full; earlier lines stay intact.
        """
        fields, index = line.fields, line.fields["index"]
        before, stale = self._failed.get(index, (0.0, None))
        if before:
            fields = {**fields, "cost": before + fields["cost"]}
        try:
            offset = self._file.size
            self._file.append(encoded(fields))
        except OSError as error:
            raise unwritable(self.path, error, other=self._other) from error
        if stale is not None:
            self._stale.add(stale)
        self._remember(fields, offset)

    def sync(self) -> None:
        """Flush all written lines to disk (fsync)."""
        if self._file.is_open:
            try:
                self._file.sync()
            except OSError as error:
                raise unwritable(self.path, error, other=self._other) from error

    # ----------------------------------------------------------------------------------------------- reading the file

    def _read(self, each: Callable[[Head], None]) -> None:
        offset = 0
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                fields = _fields(line)
                if fields is None:
                    if next(lines, None) is not None or not _half_written(line):
                        raise InputError(
                            f"{self.path}:{number}: not a line of an answer file",
                            hint=f"choose {self._other}, or delete the line",
                        )
                    break
                self._take(fields, offset, each)
                offset += len(line)
        self._file.cut(offset)
        for index, (cost, _) in self._failed.items():
            each(Head(index, ("", ""), "", None, cost))

    def _take(self, fields: Mapping[str, Any], offset: int, each: Callable[[Head], None]) -> None:
        index = fields["index"]
        if index < len(self._keys) and self._keys[index] != _NO_KEY:
            self._stale.add(offset)
            return
        if index in self._failed:
            self._stale.add(self._failed[index][1])
        self._remember(fields, offset)
        if "error" not in fields:
            each(AnswerLine(fields).head)

    def _remember(self, fields: Mapping[str, Any], offset: int) -> None:
        index = fields["index"]
        self._failed.pop(index, None)
        if "error" in fields:
            self._failed[index] = fields["cost"], offset
            return
        if index >= len(self._keys):
            self._keys.extend([_NO_KEY] * (index + 1 - len(self._keys)))
        self._keys[index] = _number(fields["key"])

    def _rewrite(self) -> None:
        """Replace the file atomically by one without the superseded lines."""
        offset = 0
        with self._file.rewriting() as copy, self.path.open("rb") as lines:
            for line in lines:
                if offset not in self._stale:
                    copy.write(line)
                offset += len(line)


def answers_in(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the current line of every row, in row order. Keeps 8 bytes per row in memory.

    Raises `InputError` if the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            offsets, offset = array("Q"), 0
            for line in file:
                if (found := _INDEX.match(line)) and line.endswith(b"\n"):
                    index = int(found[1])
                    if index >= len(offsets):
                        offsets.extend([0] * (index + 1 - len(offsets)))
                    offsets[index] = offset + 1
                offset += len(line)
            for place in filter(None, offsets):
                file.seek(place - 1)
                yield json.loads(file.readline())
    except OSError as error:
        raise unreadable(path, error) from None


def _fields(line: bytes) -> Mapping[str, Any] | None:
    """Return the row in a line; None if the line is not a valid row."""
    if not line.startswith(_BEGIN) or not line.endswith(b"\n"):
        return None
    try:
        found: Mapping[str, Any] = json.loads(line)
        index, key = found["index"], found["key"]
        whole = isinstance(index, int) and 0 <= index < _MOST_ROWS and _number(key) != _NO_KEY
        whole = whole and isinstance(found["cost"], (int, float))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if whole else None


def _half_written(line: bytes) -> bool:
    """Whether a last line was left by a crash: a truncated row, or the zeros of an unwritten block."""
    return (_BEGIN.startswith(line[: len(_BEGIN)]) and not line.endswith(b"\n")) or not line.strip(b"\0\n")


def _number(key: str) -> int:
    return int(key, 16) or 1
