"""``generate --input``: answer the rows of a file into an answer file."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from workflow_composer.batch.datasets.prompt_rows import InputRow, RowFile, together
from workflow_composer.batch.run.answer_file import AnswerFile, AnswerLine, LineAnswers
from workflow_composer.batch.run.limiter import Limiter
from workflow_composer.batch.run.runner import Budget, Generate, GoOn, heard, run
from workflow_composer.batch.run.tally import Tally
from workflow_composer.contexts.library import Library
from workflow_composer.errors import InputError, WorkflowComposerError
from workflow_composer.storage.lines import encoded

if TYPE_CHECKING:
    from workflow_composer.contexts.applying import Contexts

OTHER = "another --output"


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

    The constructor reads every row, so that errors show before any call is paid for. Raises `InputError`.
    """

    def __init__(
        self, source: Path, fields: Mapping[str, Any], *, limit: int | None, environ: Mapping[str, str] | None
    ) -> None:
        library = Library(environ=environ)
        if "context" in fields:
            fields = {**fields, "context": library.pins(fields["context"])}
        salt = json.dumps({name: value for name, value in fields.items() if name != "timeout"}, sort_keys=True)
        self.rows = RowFile(source, salt=salt, limit=limit, pins=library.pins)
        self.tally = Tally(self.rows.count())
        self._fields = fields
        self._whole = limit is None

    @property
    def is_done(self) -> bool:
        """Whether every row is answered."""
        return self.tally.answered == self.tally.total

    def opened(self, target: Path) -> AnswerFile:
        """Open the answer file to resume it. Raises `InputError` if it belongs to another run."""
        file = AnswerFile.open(target, source=self.rows.path, each=self.tally.add_earlier, other=OTHER)
        try:
            self._compare(file)
        except BaseException:
            file.close()
            raise
        return file

    def _compare(self, file: AnswerFile) -> None:
        total = self.tally.total or 0
        if self._whole and file.rows > total:
            raise InputError(
                f"{file.path} answers {file.rows} rows, but {self.rows.path} has {total}: the input has changed",
                hint=f"choose {OTHER} for the new run",
            )
        if file.rows:
            for row in self.rows:
                file.is_done(row)

    async def answer(
        self,
        generate: Generate,
        file: AnswerFile | Printed,
        *,
        contexts: Contexts | None,
        concurrency: int | None,
        budget: Budget,
        progress: Callable[[Tally], None],
        stop: asyncio.Event,
        go_on: GoOn,
    ) -> None:
        """Answer the remaining rows; ``contexts``, if given, group the rows by their context."""
        rows: Iterable[InputRow] = self.rows if contexts is None else together(self.rows, contexts, self._fields)
        limiter = Limiter.of(concurrency)
        budget.earlier(self.tally.cost)
        await run(
            (row for row in rows if not file.is_done(row)),
            LineAnswers(heard(generate, limiter), self._fields),
            file,
            tally=self.tally,
            limiter=limiter,
            budget=budget,
            progress=progress,
            stop=stop,
            go_on=go_on,
        )
