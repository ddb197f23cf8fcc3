"""``generate --input``: answer the rows of a file into an answer file."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from workflow_composer import __version__
from workflow_composer.answers.form import as_data
from workflow_composer.batch.datasets.prompt_rows import InputRow, RowFile, together
from workflow_composer.batch.keeping.identity import meaning_of, voting_of
from workflow_composer.batch.keeping.notes import in_common, joined, read_note, refuse_other_settings, write_note
from workflow_composer.batch.keeping.shards import Shard, refuse_other_counts, shards_of
from workflow_composer.batch.run.answer_file import AnswerFile, AnswerLine, LineAnswers, content_of
from workflow_composer.batch.run.journal import unwritable
from workflow_composer.batch.run.limiter import Limiter
from workflow_composer.batch.run.records import Head
from workflow_composer.batch.run.runner import Generate, GoOn, RunBudget, heard, run
from workflow_composer.batch.run.tally import Tally
from workflow_composer.contexts.library import Library
from workflow_composer.errors import WorkflowComposerError
from workflow_composer.storage.lines import encoded

if TYPE_CHECKING:
    from workflow_composer.batch.datasets.columns import Columns
    from workflow_composer.config.strategy import StrategyConfig
    from workflow_composer.contexts.applying import Contexts

OTHER = "another --output"
_LIMITS = frozenset({"timeout", "budget"})


class Printed:
    """Writes answers to a stream instead of an answer file; no row counts as answered before."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream = stream
        self._name = name

    def is_done(self, row: InputRow) -> bool:
        """Return False: a stream keeps no earlier answers."""
        return False

    def append(self, line: AnswerLine) -> None:
        """Write a line. Raises `BrokenPipeError` if the reader is gone, `WorkflowComposerError` on other write errors."""
        try:
            self._stream.write(encoded(line.fields))
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise WorkflowComposerError(f"cannot write to {self._name}: {error.strerror or error}") from error

    def sync(self) -> None:
        """Do nothing: a stream is not synced."""


class FileRun:
    """The rows of a file and their progress. ``fields`` are fields of `LLMRequest` for all rows, plus ``system``.

    ``shard``: only its rows, into a file of its own beside the target. ``keep_texts`` keeps the rows' questions, labels and
    columns with their answers. The constructor reads every row, so that errors show before any call is paid for. Raises
    `InputError`.
    """

    def __init__(
        self,
        source: Path,
        fields: Mapping[str, Any],
        *,
        limit: int | None,
        environ: Mapping[str, str] | None,
        columns: Columns | None = None,
        keep: Sequence[str] = (),
        shard: Shard | None = None,
        keep_texts: bool = True,
    ) -> None:
        library = Library(environ=environ)
        if "context" in fields:
            fields = {**fields, "context": library.pins(fields["context"])}
        salt = json.dumps(
            {name: value for name, value in fields.items() if name != "timeout"}, sort_keys=True, default=as_data
        )
        self.rows = RowFile(
            source, salt=salt, limit=limit, pins=library.pins, columns=columns, keep=keep, keeps_model="model" not in fields
        )
        self.shard = shard
        self._total = self.rows.count()
        self.tally = Tally(self._total if shard is None else shard.rows_of(self._total))
        self._fields = fields
        self._whole = limit is None
        self._keep_texts = keep_texts
        self._note: dict[str, Any] | None = None

    @property
    def is_done(self) -> bool:
        """Whether every row is answered."""
        return self.tally.answered == self.tally.total

    def holds(self, row: int) -> bool:
        """Whether the row belongs to this run."""
        return self.shard is None or self.shard.holds(row)

    def target_of(self, target: Path) -> Path:
        """Return the file that this run writes: the target, or its shard."""
        return target if self.shard is None else self.shard.beside(target)

    # ------------------------------------------------------------------------------------------------- the answer file

    def opened(self, target: Path) -> AnswerFile:
        """Open the answer file to resume it. Raises `InputError` if it belongs to another run."""
        path = self.target_of(target)
        if self.shard is not None:
            refuse_other_counts(self.shard, shards_of(target))
        self._note = self._checked_note(path)
        file = AnswerFile.open(
            path,
            source=self.rows.path,
            each=self._count_earlier,
            other=OTHER,
            rows=self.rows,
            whole=self._whole,
            by_content=self._note is not None or not _has_lines(path),
            holds=self.holds,
        )
        try:
            if self.shard is not None:
                self._adopt(file, target)
            self._write_note(file.path)
        except BaseException:
            file.close()
            raise
        return file

    def _checked_note(self, path: Path) -> dict[str, Any] | None:
        """Return the note of the answers in the file, after comparing the options; None if there are none."""
        note = read_note(path) if _has_lines(path) else None
        if note is not None:
            refuse_other_settings(path, "the options have", note["options"], self._options(), other=OTHER)
        return note

    def _options(self) -> dict[str, Any]:
        return {name: value for name, value in self._fields.items() if name not in _LIMITS}

    def _write_note(self, path: Path, profile: Mapping[str, Any] | None = None) -> None:
        note = {
            "version": __version__,
            "options": self._options(),
            "input": {"path": str(self.rows.path), "rows": self._total, "sha256": self.rows.sha256},
            "shard": None if self.shard is None else str(self.shard),
        }
        before = self._note or {}
        now = {**before, **note} if profile is None else {**before, **note, **profile}
        if now != before:
            try:
                write_note(path, now)
            except OSError as error:
                raise unwritable(path, error, other=OTHER) from error
        self._note = now

    def bind(self, config: StrategyConfig, target: Path) -> None:
        """Compare the profile with the one of the earlier answers, before any call. Raises `InputError` naming changes."""
        path = self.target_of(target)
        targets: dict[str, None] = {}
        tasks: dict[str, None] = {}
        for row in self.rows:
            if (model := row.model or self._fields.get("model")) is not None:
                targets[model] = None
            else:
                tasks[row.task_type or self._fields.get("task_type") or "*"] = None
        now = {"profile": meaning_of(config, targets, tasks), "votes": voting_of(config).meaning}
        before = self._note or {}
        if "profile" in before:
            one, other = in_common(before["profile"], now["profile"])
            told = {"profile": one, "votes": before.get("votes")}, {"profile": other, "votes": now["votes"]}
            refuse_other_settings(path, "the models have", *told, other=OTHER)
            now["profile"] = joined(before["profile"], now["profile"])
        self._write_note(path, now)

    def _count_earlier(self, head: Head) -> None:
        mine = head.row < self._total and self.holds(head.row)
        self.tally.add_earlier(head._replace(row=0 if mine else self._total))

    def _adopt(self, file: AnswerFile, target: Path) -> None:
        """Copy answers of this shard's rows that the whole file, or a shard with rows in another order, has already."""
        sources = [target] if _has_lines(target) else []
        sources += [path for path in shards_of(target).values() if path != file.path and self._has_other_order(path)]
        if not sources:
            return
        open_rows: dict[str, list[InputRow]] = {}
        for row in self._mine():
            if not file.is_done(row):
                open_rows.setdefault(content_of(row), []).append(row)
        for path in sources:
            self._checked_note(path)
            for line in file.adopt(path, open_rows):
                self._count_earlier(line.head)

    def _has_other_order(self, path: Path) -> bool:
        digest = (read_note(path) or {}).get("input", {}).get("sha256")
        return _has_lines(path) and digest != self.rows.sha256

    # ------------------------------------------------------------------------------------------------------- answering

    def _mine(self) -> Iterator[InputRow]:
        return (row for row in self.rows if self.holds(row.index))

    async def answer(
        self,
        generate: Generate,
        file: AnswerFile | Printed,
        *,
        contexts: Contexts | None,
        concurrency: int | None,
        budget: RunBudget,
        progress: Callable[[Tally], None],
        stop: asyncio.Event,
        go_on: GoOn,
    ) -> None:
        """Answer the remaining rows; ``contexts``, if given, group the rows by their context."""
        rows: Iterable[InputRow] = self.rows if contexts is None else together(self.rows, contexts, self._fields)
        limiter = Limiter.of(concurrency)
        budget.earlier(self.tally.cost)
        await run(
            (row for row in rows if self.holds(row.index) and not file.is_done(row)),
            LineAnswers(heard(generate, limiter), self._fields, keep_texts=self._keep_texts),
            file,
            tally=self.tally,
            limiter=limiter,
            budget=budget,
            progress=progress,
            stop=stop,
            go_on=go_on,
        )

    async def finish(self, file: AnswerFile) -> None:
        """Put the answers into the order of the input, with its ids, labels and columns of today."""
        await file.finish(self._mine, keep_texts=self._keep_texts)


def _has_lines(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:
        return False
