"""A file of answers: rows are appended as they are answered, and a later run goes on where this one stopped."""

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

from workflow_composer.answers import reader
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
# Rows answered as lines: the request that a row becomes, and the line that is made of the response.


pass  # MERGED


class LineAnswers:
    """Answers rows with whatever answers requests, and raises what that raises.

    ``fields`` are those of `LLMRequest` for all rows, and ``system``; a row's own task type, model and context go before
    them, the fields of a row that is a request itself do not.
    """

    def __init__(self, generate: Generate, fields: Mapping[str, Any]) -> None:
        self._generate = generate
        self._fields = dict(fields)

    async def __call__(self, row: InputRow, budget: float | None) -> AnswerLine:
        """The line of one row, which may cost ``budget`` dollars."""
        fields, prompt = self._of(row, budget), row.prompt
        if isinstance(prompt, LLMRequest) and (system := fields.pop("system", None)) is not None:
            prompt = changed(prompt, messages=({"role": "system", "content": system}, *prompt.messages))
        response = await self._generate(prompt, **fields)
        logprobs = bool(fields.get("logprobs") or (isinstance(prompt, LLMRequest) and prompt.logprobs))
        return AnswerLine({**_head(row), **await _answered(response, row.label, logprobs=logprobs)})

    def failed(self, row: InputRow, error: BaseException, seconds: float) -> AnswerLine:
        """The line of a row that has failed, with the cost of its attempts."""
        found = {
            "error": {"type": type(error).__name__, "message": str(error)},
            "cost": sum(attempt.cost for attempt in getattr(error, "attempts", ())),
            "latency_ms": round(seconds * 1000.0, 3),
        }
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
    if label is not None:
        found |= await graded(response.samples[0], label)
    if response.tool_calls:
        found["tool_calls"] = [dict(call) for call in response.tool_calls]
    if logprobs:
        found["logprobs"] = logprobs_of(response)
    return found


async def graded(sample: Sample, label: str) -> dict[str, Any]:
    """What was read in an answer, why it ended, and whether it is right."""
    answer = reader().read_said(sample, label)
    right = await reader().grade(answer, label)
    return {"answer": answer, "finish_reason": sample.finish_reason, "correct": right}


def logprobs_of(response: LLMResponse) -> list[list[Any]] | None:
    """[token, log-probability] of the answer; None where the model gave none."""
    found = response.samples[0].logprobs if response.samples else None
    return None if found is None else [[token.token, token.logprob] for token in found]


_BEGIN = b'{"index":'
_INDEX = re.compile(rb'\{"index":(\d+)')
_NO_KEY = 0
_MOST_ROWS = 1 << 28
"""Two gigabytes of keys: no index beyond this is believed."""


@dataclass(frozen=True, slots=True)
class AnswerLine:
    """What is written down of a row: plain data, ``index`` and ``key`` of the row first."""

    fields: Mapping[str, Any]

    @property
    def head(self) -> Head:
        """What counting needs."""
        fields, error = self.fields, self.fields.get("error")
        found = (error["type"], error["message"]) if isinstance(error, Mapping) and error else None
        failed = error is not None
        correct = fields.get("correct") if isinstance(fields.get("correct"), bool) else None
        unread = correct is not None and fields.get("answer", "") is None
        cut_off = unread and fields.get("finish_reason") == "length"
        deciding = str(fields.get("candidate") or "")
        return Head(
            fields["index"], found or ("", "") if failed else None, deciding, correct, fields["cost"], unread, cut_off
        )


class AnswerFile:
    """A file of answers, locked for this process from `open` to `close`. A context manager.

    Each row is one ``write``: a process that is killed loses the rows in flight and none besides. A row that failed is
    written down, too, and tried again; its later line counts, and its cost is what all its tries have cost. Lines that no
    longer count are taken out when the file is closed. A last line that was only half written is dropped. Anything else
    that is no row of such a file is an error, so that no other file is ever overwritten.
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
        """Open and lock the file; ``each`` is told the head of every line that counts.

        Raises `InputError` where it is the input itself (``source``), is in use, or holds something else; ``other`` is what
        the user may name to write elsewhere.
        """
        path = Path(os.path.realpath(path))
        if source is not None and path.exists() and source.exists() and path.samefile(source):
            raise InputError(f"{path} is both input and output", hint=f"name {other}")
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
        """Take out lines that no longer count, and let others have the file."""
        try:
            if self._file.is_open and self._stale:
                with suppress(OSError):  # a full disk: the file is right as it is, and the next run tries again
                    self._rewrite()
        finally:
            self._file.close()

    def is_done(self, row: InputRow) -> bool:
        """Whether the row has its answer. Raises `InputError` where the answer is to another row or other options."""
        key = self._keys[row.index] if row.index < len(self._keys) else _NO_KEY
        if key == _NO_KEY:
            return False
        if key != _number(row.key):
            raise InputError(
                f"{self.path} answers another row {row.index} than {row.where} gives: "
                "the rows or the options (task, model, system, temperature, ...) have changed since",
                hint=f"name {self._other} for the new run",
            )
        return True

    @property
    def rows(self) -> int:
        """One more than the highest index that is answered."""
        return len(self._keys)

    def append(self, line: AnswerLine) -> None:
        """Append a row; its cost is added to what its earlier tries have cost.

        Raises `WorkflowComposerError` where there is no room; what was written before stays whole.
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
        """Have all that was written put on the disk itself."""
        if self._file.is_open:
            try:
                self._file.sync()
            except OSError as error:
                raise unwritable(self.path, error, other=self._other) from error

    # ------------------------------------------------------------------------------------------- what was there before

    def _read(self, each: Callable[[Head], None]) -> None:
        offset = 0
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                fields = _fields(line)
                if fields is None:
                    if next(lines, None) is not None or not _half_written(line):
                        raise InputError(
                            f"{self.path}:{number}: this is no line of a file of answers",
                            hint=f"name {self._other}, or take the line out",
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
        """Put a file without the lines that no longer count in the place of this one, all at once."""
        offset = 0
        with self._file.rewriting() as copy, self.path.open("rb") as lines:
            for line in lines:
                if offset not in self._stale:
                    copy.write(line)
                offset += len(line)


def answers_in(path: Path) -> Iterator[Mapping[str, Any]]:
    """The line that counts of every row, in the order of the rows. 8 bytes a row are kept in memory.

    Raises `InputError` where the file cannot be read.
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
    """The row that a line holds; None where it is not one."""
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
    """Whether a last line is what a crash leaves: a row without its end, or the zeros of a block that never came."""
    return (_BEGIN.startswith(line[: len(_BEGIN)]) and not line.endswith(b"\n")) or not line.strip(b"\0\n")


def _number(key: str) -> int:
    return int(key, 16) or 1
