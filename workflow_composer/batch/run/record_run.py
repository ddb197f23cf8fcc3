"""``record``: send the questions of data sets to every tier and append the answers to a recording."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

from workflow_composer.backends.recordings import Recorded
from workflow_composer.batch.datasets.dataset import DataSet, Row
from workflow_composer.batch.run.answer_file import graded
from workflow_composer.batch.run.journal import open_own, unwritable
from workflow_composer.batch.run.limiter import Limiter
from workflow_composer.batch.run.records import Head
from workflow_composer.batch.run.runner import Generate, GoOn, RunBudget, heard, run
from workflow_composer.batch.run.tally import Tally
from workflow_composer.errors import InputError
from workflow_composer.storage.appending import OwnFile
from workflow_composer.storage.lines import encoded
from workflow_composer.types import LLMResponse, TokenLogprob, is_cut_off

_LEAST = -9999.0
"""Servers' stand-in for minus infinity, which JSON cannot represent."""

_OTHER = "another --output"


@dataclass(frozen=True, slots=True)
class TierQuestion:
    """A question of a data set, for one tier."""

    row: Row
    tier: str

    @property
    def key(self) -> bytes:
        """The digest that identifies it in a recording."""
        return _key(self.tier, self.row.question)


@dataclass(frozen=True, slots=True)
class RecordedRow:
    """The fields of an answer that are counted, and its line of the recording; None if the row failed."""

    head: Head
    line: Mapping[str, Any] | None


def questions(datasets: Sequence[DataSet], tiers: Sequence[str], *, skip: int, limit: int | None) -> list[TierQuestion]:
    """Return every question for every tier, each once. Raises `InputError` if a question has no label."""
    found: dict[bytes, TierQuestion] = {}
    for data in datasets:
        for row in islice(data.rows(), skip, None if limit is None else skip + limit):
            if row.label is None:
                hint = "a recording needs the correct answers: use a data set with labels"
                raise InputError(f"{data.name}: row {row.row} has no label", hint=hint)
            for tier in tiers:
                asked = TierQuestion(row, tier)
                found.setdefault(asked.key, asked)
    if not found:
        raise InputError("no rows to record", hint="lower --skip")
    return list(found.values())


class RecordingFile:
    """A recording, locked from `open` to `close`; answers are appended after its last complete line. A context manager.

    ``spent`` is the cost (dollars) of the answers in it; failed rows are not written.
    """

    def __init__(self, file: OwnFile) -> None:
        self.path = file.path
        self.spent = 0.0
        self._file = file
        self._done: set[bytes] = set()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open and lock the file. Raises `InputError` if another run holds the lock or the content is not a recording."""
        found = cls(open_own(path, other=_OTHER))
        try:
            found._read(path)
        except BaseException:
            found.close()
            raise
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def is_done(self, question: TierQuestion) -> bool:
        """Whether the tier's answer is recorded."""
        return question.key in self._done

    def append(self, record: RecordedRow) -> None:
        """Append an answer. Raises `WorkflowComposerError` if the disk is full."""
        if record.line is not None:
            try:
                self._file.append(encoded(record.line))
            except OSError as error:
                raise unwritable(self.path, error, other=_OTHER) from error

    def sync(self) -> None:
        """Flush all written lines to disk (fsync)."""
        if self._file.is_open:
            try:
                self._file.sync()
            except OSError as error:
                raise unwritable(self.path, error, other=_OTHER) from error

    def close(self) -> None:
        """Close the file and release the lock."""
        self._file.close()

    def _read(self, path: Path) -> None:
        whole = 0
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):  # a run was killed while it wrote
                    break
                whole += len(line)
                try:
                    recorded = Recorded.parse(line)
                except (ValueError, RecursionError) as error:
                    hint = f"choose {_OTHER}, or delete the line"
                    raise InputError(f"{path}:{number}: {error}", hint=hint) from None
                self._done.add(_key(recorded.model, recorded.question))
                self.spent += recorded.cost or 0.0
        self._file.cut(whole)


class RecordingAnswers:
    """Answers each question by its tier and makes lines of a recording. ``fields`` as in `LLMRequest`.

    Without ``keep_texts`` answers, tokens, ids and labels are left out of the lines.
    """

    def __init__(self, generate: Generate, fields: Mapping[str, Any], *, keep_texts: bool = True) -> None:
        self._generate = generate
        self._fields = fields
        self._keep_texts = keep_texts
        self.first_error = ""

    async def __call__(self, question: TierQuestion, budget: float | None) -> RecordedRow:
        """Answer one question for at most ``budget`` dollars; return its line."""
        own: dict[str, Any] = {**question.row.own, "model": question.tier}
        if budget is not None:
            own["budget"] = budget
        response = await self._generate(question.row.prompt, **{**self._fields, **own})
        assert question.row.label is not None  # `questions` rejects rows without a label
        grade = await graded(response.samples[0], *question.row.labels)
        unread = grade["answer"] is None
        cut_off = unread and is_cut_off(grade["finish_reason"])
        counts = (grade["correct"], response.cost, unread, cut_off)
        head = Head(question.row.row, None, question.tier, *counts, priced=response.cost_known)
        return RecordedRow(head, self._line(question, response, grade))

    def _line(self, question: TierQuestion, response: LLMResponse, grade: Mapping[str, Any]) -> dict[str, Any]:
        sample, row = response.samples[0], question.row
        line: dict[str, Any] = {
            "question": row.question,
            "model": question.tier,
            "sample": 0,
            "answer": sample.text if self._keep_texts else "",
            "correct": grade["correct"],
            "tokens": response.usage.completion_tokens,
            "prompt_tokens": response.usage.prompt_tokens,
            "cost": response.cost if response.cost_known else None,
            "read_by": grade["read_by"],
        }
        if sample.finish_reason not in (None, "stop"):
            line["finish_reason"] = sample.finish_reason
        if self._keep_texts:
            line |= {"id": row.id, "label": list(row.labels) if row.others else row.label}
            line |= {"columns": dict(row.columns)} if row.columns else {}
            line |= {"reasoning": sample.reasoning} if sample.reasoning else {}
        if sample.logprobs is not None:
            line["logprobs"] = [_token(token, keep_texts=self._keep_texts) for token in sample.logprobs]
        return line

    def failed(self, question: TierQuestion, error: BaseException, seconds: float) -> RecordedRow:
        """Return the record of a failed question, with the cost of its attempts."""
        self.first_error = self.first_error or str(error)
        cost = sum(attempt.cost for attempt in getattr(error, "attempts", ()))
        return RecordedRow(Head(question.row.row, (type(error).__name__, str(error)), "", None, cost), None)


class Recorder:
    """Sends the questions that are not recorded yet; ``tally`` counts the progress."""

    def __init__(self, asked: Sequence[TierQuestion], file: RecordingFile, *, keep_texts: bool = True) -> None:
        self._file = file
        self._keep_texts = keep_texts
        self._left = [question for question in asked if not file.is_done(question)]
        done = len(asked) - len(self._left)
        self.tally = Tally(len(asked), answered=done, earlier=done, cost=file.spent)
        self.first_error = ""

    async def answer(
        self,
        generate: Generate,
        fields: Mapping[str, Any],
        *,
        concurrency: int,
        budget: RunBudget,
        progress: Callable[[Tally], None],
        stop: asyncio.Event,
        go_on: GoOn,
    ) -> None:
        """Send ``concurrency`` questions at a time; ``fields`` are fields of `LLMRequest` for all of them."""
        limiter = Limiter.of(concurrency)
        answers = RecordingAnswers(heard(generate, limiter), fields, keep_texts=self._keep_texts)
        budget.earlier(self._file.spent)
        try:
            await run(
                self._left,
                answers,
                self._file,
                tally=self.tally,
                limiter=limiter,
                budget=budget,
                progress=progress,
                stop=stop,
                go_on=go_on,
            )
        finally:
            self.first_error = answers.first_error


def _token(token: TokenLogprob, *, keep_texts: bool) -> dict[str, Any]:
    top = [[text if keep_texts else "", max(_LEAST, value)] for text, value in token.top]
    return {"token": token.token if keep_texts else "", "logprob": max(_LEAST, token.logprob), "top": top}


def _key(model: str | None, question: Any) -> bytes:
    return hashlib.blake2b(f"{model}\0{str(question).strip()}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
