"""An answer file: rows are appended as they are answered, and a later run resumes where this one stopped."""

from __future__ import annotations

import json
import os
import re
from array import array
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any, BinaryIO, Self

from workflow_composer.answers import Question, reader
from workflow_composer.batch.datasets.prompt_rows import UNBOUND, InputRow
from workflow_composer.batch.keeping.identity import Served
from workflow_composer.batch.keeping.places import NO_KEY, Keys, Moves, content_key, moves, number_of
from workflow_composer.batch.run.answering import said_of
from workflow_composer.batch.run.batch_output import batch_answer, batch_failure
from workflow_composer.batch.run.journal import open_own, unwritable
from workflow_composer.batch.run.records import Head
from workflow_composer.batch.run.runner import Generate
from workflow_composer.errors import InputError
from workflow_composer.storage.appending import OwnFile
from workflow_composer.storage.lines import encoded, unreadable
from workflow_composer.support.fast_dataclass import changed
from workflow_composer.types import LLMRequest, LLMResponse, Sample, TierResult, is_cut_off

# ------------------------------------------------------------------------------------------------------------ line answers
#
# The request made from a row, and the line made from the response.


class LineAnswers:
    """Answers rows by calling ``generate``, and raises what it raises.

    ``fields`` are fields of `LLMRequest` for all rows, plus ``system``. A row's own task type, model and context take
    precedence over them; if a row is itself a request, ``fields`` take precedence over its fields. ``keep_texts`` keeps the
    row's question, label and columns, and the votes' samples.
    """

    def __init__(self, generate: Generate, fields: Mapping[str, Any], *, keep_texts: bool = False) -> None:
        self._generate = generate
        self._fields = dict(fields)
        self._keep_texts = keep_texts

    async def __call__(self, row: InputRow, budget: float | None) -> AnswerLine:
        """Answer one row for at most ``budget`` dollars; return its line."""
        fields, prompt = self._of(row, budget), row.prompt
        if isinstance(prompt, LLMRequest) and (system := fields.pop("system", None)) is not None:
            prompt = changed(prompt, messages=({"role": "system", "content": system}, *prompt.messages))
        response = await self._generate(prompt, **fields)
        logprobs = bool(fields.get("logprobs") or (isinstance(prompt, LLMRequest) and prompt.logprobs))
        return await self.line_of(row, response, logprobs=logprobs)

    async def line_of(self, row: InputRow, response: LLMResponse, *, logprobs: bool = False) -> AnswerLine:
        """Return the line of a row that has been answered, with its log-probabilities if they were asked for."""
        line = {**self._head(row), **await _answered(response, row.labels, logprobs=logprobs)}
        if row.batch_url:
            line |= batch_answer(row.id, row.batch_url, response, logprobs=logprobs)
        return AnswerLine(line | _samples_of(response) if self._keep_texts else line)

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
        if row.batch_url:
            found |= batch_failure(row.id, found["error"])
        return AnswerLine(self._head(row) | found)

    def _head(self, row: InputRow) -> dict[str, Any]:
        head = {"index": row.index, "key": row.key, "content": content_of(row), "id": row.id}
        return head | kept_of(row) if self._keep_texts else head

    def _of(self, row: InputRow, budget: float | None) -> dict[str, Any]:
        own = {"task_type": row.task_type, "model": row.model, "context": row.context, "budget": budget}
        if budget is not None and isinstance(row.prompt, LLMRequest) and row.prompt.budget is not None:
            own["budget"] = min(budget, row.prompt.budget)
        return self._fields | dict(row.own or {}) | {name: value for name, value in own.items() if value is not None}


def content_of(row: InputRow) -> str:
    """Return a digest of what a row's answer depends on, besides the settings of the run."""
    given = {name: getattr(row, name) for name in _CONTENT if getattr(row, name) is not None}
    if isinstance(row.prompt, LLMRequest):
        given["prompt"] = {
            field.name: getattr(row.prompt, field.name) for field in fields_of(row.prompt) if field.name not in UNBOUND
        }
    return content_key(given)


_NO_CONTENT = frozenset({"index", "where", "key", "id", "label", "others", "columns", "batch_url"})
_CONTENT = tuple(name for name in InputRow.__slots__ if name not in _NO_CONTENT)
"""Fields of a row on which its answer depends."""


def kept_of(row: InputRow) -> dict[str, Any]:
    """Return the fields of a line with the row's own content."""
    prompt = [dict(message) for message in row.prompt.messages] if isinstance(row.prompt, LLMRequest) else row.prompt
    kept: dict[str, Any] = {"question": prompt, "label": list(row.labels) if row.others else row.label}
    return kept | {"columns": dict(row.columns)} if row.columns else kept


def _samples_of(response: LLMResponse) -> dict[str, Any]:
    """Return the field ``tiers`` with all samples, if there are more than the answer; and the answer's reasoning."""
    found: dict[str, Any] = {}
    if response.samples and response.samples[0].reasoning:
        found["reasoning"] = response.samples[0].reasoning
    if len(response.tiers) > 1 or any(len(tier.samples) > 1 for tier in response.tiers):
        found["tiers"] = [_tier_of(tier) for tier in response.tiers]
    return found


def _tier_of(tier: TierResult) -> dict[str, Any]:
    verdict = tier.verdict
    return {
        "name": tier.name,
        "candidate": tier.candidate,
        "model": tier.model,
        "texts": [sample.text for sample in tier.samples],
        "said": list(said_of(tier.samples)),
        "votes": [list(vote) for vote in verdict.votes],
        "confidence": verdict.confidence,
        "accepted": verdict.accepted,
        "reason": verdict.reason,
        "cost": tier.cost,
        "tokens": {"prompt": tier.usage.prompt_tokens, "completion": tier.usage.completion_tokens},
    }


async def _answered(response: LLMResponse, labels: tuple[str, ...], *, logprobs: bool) -> dict[str, Any]:
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
        "finish_reason": response.samples[0].finish_reason if response.samples else None,
    }
    if not response.cost_known:
        found["cost_known"] = False
    if labels:
        found |= await graded(response.samples[0], *labels)
    if response.value is not None:
        found["value"] = _plain(response.value)
    if response.asked_again:
        found["asked_again"] = response.asked_again
    if response.warning:
        found["warning"] = response.warning
    if response.tool_calls:
        found["tool_calls"] = [dict(call) for call in response.tool_calls]
    if logprobs:
        found["logprobs"] = logprobs_of(response)
    return found


def _plain(value: Any) -> Any:
    """Return a form's value as JSON data; it may be, or contain, instances of a pydantic type."""
    if isinstance(value, (str, int, float)):
        return value
    from pydantic_core import to_jsonable_python

    return to_jsonable_python(value)


async def graded(sample: Sample, *labels: str) -> dict[str, Any]:
    """Return the final answer read from a sample, the method that read it, its finish reason, and whether it is correct.

    Each label is a right answer; the reading for the one that it equals counts, or else for the first.
    """
    found: dict[str, Any] = {}
    for label in labels:
        extracted = reader().extract_said(sample, label)
        answer, how = (None, None) if extracted is None else (extracted.answer, extracted.how)
        right = await Question(reader(), label).is_correct(answer)
        if right or not found:
            found = {"answer": answer, "read_by": how, "finish_reason": sample.finish_reason, "correct": right}
        if right:
            break
    return found


def logprobs_of(response: LLMResponse) -> list[list[Any]] | None:
    """Return [token, log-probability] pairs of the answer; None if the model returned none."""
    found = response.samples[0].logprobs if response.samples else None
    return None if found is None else [[token.token, token.logprob] for token in found]


_BEGIN = b'{"index":'
_INDEX = re.compile(rb'\{"index":(\d+)')
_KEYS = re.compile(rb'\{"index":(\d+),"key":"([0-9a-f]{1,16})"(?:,"content":"([0-9a-f]{16})")?')
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
        cut_off = unread and is_cut_off(fields.get("finish_reason"))
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

    def __init__(self, file: OwnFile, other: str, *, by_content: bool) -> None:
        self.path = file.path
        self._file = file
        self._other = other
        self._by_content = by_content
        self._served = Served(file.path, other=other)
        self._keys = array("Q")
        self._failed: dict[int, tuple[float, int]] = {}  # index: cost so far, where its line begins
        self._stale: set[int] = set()

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        source: Path | None,
        each: Callable[[Head], None],
        other: str,
        rows: Iterable[InputRow] | None = None,
        whole: bool = True,
        by_content: bool = False,
        holds: Callable[[int], bool] = lambda index: True,
    ) -> Self:
        """Open and lock the file; call ``each`` with the head of every line that counts.

        ``other`` names the option to change in hints, such as "another --output". With ``rows``, answers get the places
        that their rows have now; if the rows are the ``whole`` input, none may be missing. ``by_content``: rows are known
        by their content, because the settings of the run have been compared. ``holds``: which rows belong here (a
        shard's). Raises `InputError` if the file is the input itself (``source``), is locked by another run, holds other
        content, or answers other rows.
        """
        path = Path(os.path.realpath(path))
        if source is not None and path.exists() and source.exists() and path.samefile(source):
            raise InputError(f"{path} is both the input and the output", hint=f"choose {other}")
        found = cls(open_own(path, other=other), other, by_content=by_content)
        try:
            if rows is not None:
                found._arrange(((row, holds(row.index)) for row in rows), str(source), whole=whole)
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
        key = self._keys[row.index] if row.index < len(self._keys) else NO_KEY
        if key == NO_KEY:
            return False
        if key not in self._keys_of(row):
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

        Raises `WorkflowComposerError` if the disk is full, `InputError` if a server reports another model than in earlier
        runs; earlier lines stay intact.
        """
        self._served.check(_served(line.fields))
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

    def adopt(self, path: Path, wanted: dict[str, list[InputRow]]) -> Iterator[AnswerLine]:
        """Copy the answers of wanted rows, by the digest of their content, from another file; yield each copied line.

        Rows are removed from ``wanted`` as they are found. Raises `InputError` if the file cannot be read.
        """
        for fields in answers_in(path):
            rows = wanted.get(fields.get("content", ""))
            if rows and fields.get("error") is None:
                row = rows.pop(0)
                line = AnswerLine({**fields, "index": row.index, "key": row.key, "id": row.id})
                self._served.remember(_served(fields))
                self.append(line)
                yield line

    def sync(self) -> None:
        """Flush all written lines to disk (fsync)."""
        if self._file.is_open:
            try:
                self._file.sync()
            except OSError as error:
                raise unwritable(self.path, error, other=self._other) from error

    # ----------------------------------------------------------------------------------------------- reading the file

    def _keys_of(self, row: InputRow) -> Keys:
        key = number_of(row.key)
        return (number_of(content_of(row)), key) if self._by_content else (key,)

    def _arrange(self, rows: Iterable[tuple[InputRow, bool]], source: str, *, whole: bool) -> None:
        """Give every line its row's place in the input. Raises `InputError` if the whole input lacks answered rows."""
        kept = array("Q")
        with self.path.open("rb") as lines:
            for line in lines:
                if (found := _KEYS.match(line)) and line.endswith(b"\n") and int(found[1]) < _MOST_ROWS:
                    index = int(found[1])
                    if index >= len(kept):
                        kept.extend([NO_KEY] * (index + 1 - len(kept)))
                    kept[index] = self._number_in(found)
        if not kept:
            return
        found_moves = moves(kept, (self._keys_of(row) if mine else () for row, mine in rows))
        if found_moves.lost and whole:
            raise InputError(
                f"{self.path} has answers to {len(found_moves.lost)} rows that {source} does not have, the first to row "
                f"{found_moves.lost[0]}: the rows or the options (task, model, system, temperature, ...) have changed",
                hint=f"restore them, or choose {self._other} for the new run",
            )
        if found_moves.places:
            self._move(found_moves)

    def _number_in(self, found: re.Match[bytes]) -> int:
        """Return the number by which a line's row is known."""
        content = found[3] if self._by_content else None
        return number_of((content or found[2]).decode())

    def _move(self, found_moves: Moves) -> None:
        with self._file.rewriting() as copy, self.path.open("rb") as lines:
            for line in lines:
                found = _INDEX.match(line)
                place = None if found is None else found_moves.places.get(int(found[1]))
                copy.write(line if found is None or place is None else b"%s%d%s" % (_BEGIN, place, line[found.end() :]))

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
        self._served.remember(_served(fields))
        if index < len(self._keys) and self._keys[index] != NO_KEY:
            self._stale.add(offset)
            return
        if index in self._failed:
            self._stale.add(self._failed[index][1])
        self._remember(fields, offset)
        if fields.get("error") is None:
            each(AnswerLine(fields).head)

    def _remember(self, fields: Mapping[str, Any], offset: int) -> None:
        index = fields["index"]
        self._failed.pop(index, None)
        if fields.get("error") is not None:
            self._failed[index] = fields["cost"], offset
            return
        if index >= len(self._keys):
            self._keys.extend([NO_KEY] * (index + 1 - len(self._keys)))
        self._keys[index] = number_of(fields["content"] if self._by_content and "content" in fields else fields["key"])

    async def finish(self, rows: Callable[[], Iterable[InputRow]], *, keep_texts: bool) -> None:
        """Put the lines into the order of the rows, and give them the rows' ids, labels and columns of today.

        ``rows`` returns them anew for every pass. Answers whose label has changed are graded again. Answers of other rows
        stay at the end. The file is replaced only if something changes. Raises `WorkflowComposerError` if it cannot be
        written.
        """
        offsets = self._offsets()
        if not offsets:
            return
        with self.path.open("rb") as lines:
            settled, last = True, -1
            async for offset, _, same in self._in_order(rows(), offsets, lines, keep_texts=keep_texts):
                settled = settled and same and offset > last
                last = offset
        if settled and not self._stale:
            return
        try:
            with self._file.rewriting() as copy, self.path.open("rb") as lines:
                async for _, line, _ in self._in_order(rows(), offsets, lines, keep_texts=keep_texts):
                    copy.write(line)
        except OSError as error:
            raise unwritable(self.path, error, other=self._other) from error
        self._stale.clear()

    def _offsets(self) -> array[int]:
        """Return the offset plus one of each row's current line; 0 for a row without."""
        offsets, offset = array("Q"), 0
        with self.path.open("rb") as lines:
            for line in lines:
                index = int(found[1]) if (found := _INDEX.match(line)) else 0
                if found and offset not in self._stale:
                    if index >= len(offsets):
                        offsets.extend([0] * (index + 1 - len(offsets)))
                    offsets[index] = offset + 1
                offset += len(line)
        return offsets

    async def _in_order(
        self, rows: Iterable[InputRow], offsets: array[int], lines: BinaryIO, *, keep_texts: bool
    ) -> AsyncIterator[tuple[int, bytes, bool]]:
        """Yield offset and line of each row that has one, then those of other rows; and whether the line is as it was."""
        last = -1
        for row in rows:
            last = row.index
            if row.index < len(offsets) and offsets[row.index]:
                lines.seek(offsets[row.index] - 1)
                line = lines.readline()
                fresh = await _refreshed(line, row, keep_texts=keep_texts)
                yield offsets[row.index] - 1, fresh, fresh == line
        for index in range(last + 1, len(offsets)):
            if offsets[index]:
                lines.seek(offsets[index] - 1)
                yield offsets[index] - 1, lines.readline(), True

    def _rewrite(self) -> None:
        """Replace the file atomically by one without the superseded lines."""
        offset = 0
        with self._file.rewriting() as copy, self.path.open("rb") as lines:
            for line in lines:
                if offset not in self._stale:
                    copy.write(line)
                offset += len(line)


async def _refreshed(line: bytes, row: InputRow, *, keep_texts: bool) -> bytes:
    """Return a line with the row's id, label and columns of today, graded again if the label has changed."""
    fields = json.loads(line)
    before = fields.get("label")
    fields["id"] = row.id
    if keep_texts and "question" in fields:
        fields.pop("columns", None)
        fields |= kept_of(row)
        if before != fields["label"] and "text" in fields:
            if row.label is None:
                for name in ("answer", "read_by", "correct"):
                    fields.pop(name, None)
            else:
                fields |= await graded(Sample(fields["text"], fields.get("finish_reason")), *row.labels)
    return encoded(fields)


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
        whole = isinstance(index, int) and 0 <= index < _MOST_ROWS and number_of(key) != NO_KEY
        whole = whole and isinstance(found["cost"], (int, float))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if whole else None


def _half_written(line: bytes) -> bool:
    """Whether a last line was left by a crash: a truncated row, or the zeros of an unwritten block."""
    return (_BEGIN.startswith(line[: len(_BEGIN)]) and not line.endswith(b"\n")) or not line.strip(b"\0\n")


def _served(fields: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the candidates of a line that answered, each with the model that its server reported."""
    tiers = fields.get("tiers") or (() if fields.get("error") is not None else (fields,))
    return [(str(tier.get("candidate") or ""), str(tier.get("model") or "")) for tier in tiers]
