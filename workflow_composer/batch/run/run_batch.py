"""Rows from Python: `ModelOrchestrator.run_batch`, whose results are a journal, and `generate_many`, whose are a list."""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TextIO

from workflow_composer.answers.form import OutputForm, as_data
from workflow_composer.batch.datasets.prompt_rows import InputRow, PythonRows
from workflow_composer.batch.run.answer_file import AnswerFile, AnswerLine, LineAnswers, answers_in
from workflow_composer.batch.run.journal import unwritable
from workflow_composer.batch.run.limiter import Limiter
from workflow_composer.batch.run.runner import Generate, RunBudget, heard, run
from workflow_composer.batch.run.tally import Tally
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.contexts.library import Library
from workflow_composer.errors import InputError
from workflow_composer.types import LLMRequest, shortened

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    V = TypeVar("V", default=Any)
else:
    from typing import TypeVar

    V = TypeVar("V")

_OTHER = "another journal"


@dataclass(frozen=True, slots=True)
class RowError:
    """Why a row failed: the exception's type and message."""

    type: str
    message: str


@dataclass(frozen=True, slots=True)
class RowResult(Generic[V]):
    """The result of a row. ``id`` is the row's id, or else its index; ``cost`` (dollars) sums all its tries.

    A failed row has an ``error`` and an empty ``text``; an answered row has ``error`` None. ``correct`` is None without a
    label, ``confidence`` if it is unknown. ``value`` is the answer as read by the request's form (None without a form, or
    without such an answer): JSON data in a run's results, an instance of a pydantic type in those of `generate_many`.
    ``data`` is the row's complete line of the journal.
    """

    index: int
    id: int | str
    text: str
    error: RowError | None
    cost: float
    model: str
    confidence: float | None
    correct: bool | None
    tool_calls: tuple[Mapping[str, Any], ...]
    data: Mapping[str, Any]
    value: V | None = None

    def __repr__(self) -> str:
        if self.error is not None:
            return f"RowResult({self.id!r}, error={self.error.type}: {shortened(self.error.message)})"
        value = "" if self.value is None else f", value={self.value!r}"
        return f"RowResult({self.id!r}, {shortened(self.text)!r}{value}, model={self.model!r}, cost={self.cost})"

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> RowResult[Any]:
        """Return the result in a line of the journal."""
        error = data.get("error")
        return RowResult(
            data["index"],
            data["index"] if data["id"] is None else data["id"],
            data.get("text", ""),
            None if error is None else RowError(error["type"], error["message"]),
            data["cost"],
            data.get("model", ""),
            data.get("confidence"),
            data.get("correct"),
            tuple(data.get("tool_calls", ())),
            data,
            data.get("value"),
        )

    @classmethod
    def unpaid(cls, index: int) -> RowResult[Any]:
        """Return the result of a row that the run budget did not cover."""
        error = RowError("BudgetExceeded", "the run budget was used up before this row was sent")
        return RowResult(index, index, "", error, 0.0, "", None, None, (), {})


@dataclass(frozen=True, slots=True)
class BatchRun:
    """A run of rows. Iterating yields a `RowResult` for every processed row, in row order.

    ``done`` rows have an answer (``earlier`` of them from an earlier run) and ``failed`` rows an error; a later run with the
    same journal tries the failed ones again. ``cost`` (dollars) is the cost of all runs of the journal, ``cost_now`` of this
    run; both are lower bounds if ``unpriced`` rows have a cost that is not fully known. ``stopped_by`` is ``"budget"`` if
    the run budget was used up before all rows were processed, else None. Each iteration reads the results from the journal;
    they are not kept in memory.
    """

    journal: Path
    done: int
    earlier: int
    failed: int
    cost: float
    cost_now: float
    stopped_by: str | None
    seconds: float
    unpriced: int = 0

    def __repr__(self) -> str:
        stopped = f", stopped by {self.stopped_by}" if self.stopped_by else ""
        return f"<BatchRun {self.journal}: {self.done} answered, {self.failed} failed, ${self.cost:.4g}{stopped}>"

    def __iter__(self) -> Iterator[RowResult[Any]]:
        return map(RowResult.of, answers_in(self.journal))


class Keeping(Protocol):
    """Where a run's answers are kept."""

    path: Path

    @property
    def rows(self) -> int:
        """How many rows it has, from the first one to the last one that is answered."""
        ...

    def is_done(self, row: InputRow) -> bool:
        """Whether the row is answered. Raises `InputError` if the answer belongs to another row."""
        ...

    def append(self, line: AnswerLine) -> None:
        """Keep a row's line."""
        ...

    def sync(self) -> None:
        """Make sure that what was appended survives a loss of power."""
        ...


class KeptInMemory:
    """A journal in memory."""

    path = Path()
    rows = 0

    def __init__(self) -> None:
        self.lines: dict[int, Mapping[str, Any]] = {}

    def is_done(self, row: InputRow) -> bool:
        """Return False: nothing is kept from an earlier run."""
        return False

    def append(self, line: AnswerLine) -> None:
        """Keep a row; its cost is added to that of its earlier tries."""
        fields, index = line.fields, line.fields["index"]
        before = self.lines.get(index, {"cost": 0.0})["cost"]
        self.lines[index] = {**fields, "cost": before + fields["cost"]}

    def sync(self) -> None:
        """Do nothing."""


async def run_rows(
    generate: Generate,
    rows: Iterable[Any],
    *,
    config: StrategyConfig,
    environ: Mapping[str, str],
    journal: str | Path,
    budget: Mapping[str, float] | None,
    concurrency: int | None,
    retries: int,
    progress: Callable[[Tally], None] | None,
    fields: Mapping[str, Any],
) -> BatchRun:
    """Answer rows into a journal, resuming where it ends; see `ModelOrchestrator.arun_batch`."""
    path = Path(journal)
    run = _Rows(generate, rows, config, environ, (RunBudget.of(budget), concurrency, retries), fields)
    tally = await run.answer(lambda tally: _opened(path, tally), progress or (lambda tally: None))
    return BatchRun(
        path,
        tally.answered,
        tally.earlier,
        tally.errors,
        tally.cost,
        tally.cost_now,
        tally.stopped_by or None,
        tally.seconds,
        tally.unpriced,
    )


async def run_many(
    generate: Generate,
    prompts: Iterable[Any],
    *,
    config: StrategyConfig,
    environ: Mapping[str, str],
    journal: str | Path | None = None,
    budget: Mapping[str, float] | None = None,
    concurrency: int | None = None,
    retries: int = 1,
    progress: bool | Callable[[Tally], None] = False,
    **fields: Any,
) -> list[RowResult[Any]]:
    """Answer prompts; return their results in order. See `ModelOrchestrator.agenerate_many`."""
    if isinstance(prompts, (str, bytes, Mapping, LLMRequest)):
        raise InputError(f"prompts is {type(prompts).__name__}, not a list of prompts", hint="put it into a list: [...]")
    rows = [{"messages": row} if isinstance(row, (list, tuple)) else row for row in prompts]
    if not rows:
        return []
    run = _Rows(generate, rows, config, environ, (RunBudget.of(budget), concurrency, retries), fields)
    kept = KeptInMemory()
    show = Shown(sys.stderr) if progress is True else progress or (lambda tally: None)
    if journal is None:
        await run.answer(lambda tally: nullcontext(kept), show)
    else:
        path = Path(journal)
        await run.answer(lambda tally: _opened(path, tally), show)
        kept.lines = {line["index"]: line for line in answers_in(path)}
    if isinstance(show, Shown):
        show.end()
    form = fields.get("form")
    return [
        _valued(RowResult.of(kept.lines[index]), form) if index in kept.lines else RowResult.unpaid(index)
        for index in range(len(rows))
    ]


def _valued(row: RowResult[Any], form: OutputForm | None) -> RowResult[Any]:
    """Return a row's result with the answer as its form reads it, and not as JSON data."""
    if form is None or row.value is None:
        return row
    return replace(row, value=form.read(row.text).value)


class _Rows:
    """Rows to be answered; ``limits`` are the budget, the rows at once, and the tries after a failure."""

    def __init__(
        self,
        generate: Generate,
        rows: Iterable[Any],
        config: StrategyConfig,
        environ: Mapping[str, str],
        limits: tuple[RunBudget, int | None, int],
        fields: Mapping[str, Any],
    ) -> None:
        self._budget, concurrency, retries = limits
        self._limiter = Limiter.of(whole_number("concurrency", concurrency, 1))
        self._retries = whole_number("retries", retries, 0) or 0
        library = Library(environ=environ)
        if fields.get("context") is not None:
            names = fields["context"]
            fields = {**fields, "context": library.pins((names,) if isinstance(names, str) else names)}
        LLMRequest.of("?", **fields)  # raises TypeError for an unknown field
        self._rows = PythonRows(rows, salt=_identity(config, fields), pins=library.pins)
        self._answers = LineAnswers(heard(generate, self._limiter), fields)

    async def answer(
        self, opened: Callable[[Tally], AbstractContextManager[Keeping]], progress: Callable[[Tally], None]
    ) -> Tally:
        """Answer the rows that the journal does not have."""
        rows = self._rows
        await asyncio.to_thread(rows.check)
        tally = Tally(rows.total)
        with opened(tally) as journal:
            self._budget.earlier(tally.cost)
            if rows.total is not None:
                await asyncio.to_thread(_compare, rows, journal)
            await run(
                (row for row in rows if not journal.is_done(row)),
                self._answers,
                journal,
                tally=tally,
                limiter=self._limiter,
                budget=self._budget,
                retries=self._retries,
                progress=progress,
            )
            if not tally.stopped_by:
                _refuse_more(journal, rows.seen)
        return tally


class Shown:
    """Shows a run's progress on one line of a terminal or a notebook; elsewhere it writes a line now and then."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic, *, what: str = "answers") -> None:
        self._stream, self._what = stream, what
        self._live = stream.isatty() or "ipykernel" in sys.modules
        self._interval = 0.1 if self._live else 5.0
        self._clock = clock
        self._last = clock() - (math.inf if self._live else 0.0)
        self._text = ""

    def __call__(self, tally: Tally) -> None:
        """Show the tally, unless it was shown a moment ago."""
        failed = f", {tally.errors} failed" if tally.errors else ""
        left = "" if tally.seconds_left is None else f", {tally.seconds_left:.0f} s left"
        self._text = f"{tally.done}/{tally.total} {self._what}{failed}, ${tally.cost_now:.4g}{left}"
        now = self._clock()
        if now - self._last >= self._interval:
            self._last = now
            self._write(end="" if self._live else "\n")

    def end(self) -> None:
        """Show the last tally."""
        if self._text:
            self._write(end="\n")

    def _write(self, end: str) -> None:
        self._stream.write(f"\r\x1b[K{self._text}{end}" if self._live else self._text + end)
        self._stream.flush()


def _opened(path: Path, tally: Tally) -> AnswerFile:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error, other=_OTHER) from error
    return AnswerFile.open(path, source=None, each=tally.add_earlier, other=_OTHER)


def _compare(rows: PythonRows, file: Keeping) -> None:
    """Compare the answers in the journal with the rows, before any call is paid for."""
    if file.rows:
        for row in rows:
            file.is_done(row)
        _refuse_more(file, rows.seen)


def _refuse_more(file: Keeping, rows: int) -> None:
    if file.rows > rows:
        raise InputError(
            f"{file.path} answers {file.rows} rows, but {rows} rows were given: it is the journal of other rows",
            hint=f"choose {_OTHER} for the new run",
        )


def _identity(config: StrategyConfig, fields: Mapping[str, Any]) -> str:
    """Return what answers depend on besides their rows; limits on time and money are excluded."""
    models = {name: f"{spec.backend}:{spec.model}" for name, spec in config.models.items()}
    asked = {name: value for name, value in fields.items() if name not in {"timeout", "metadata"}}
    return json.dumps([config.profile_name, models, asked], sort_keys=True, default=as_data)


def whole_number(name: str, value: int | None, least: int) -> int | None:
    """Return an argument that is None or an integer of at least ``least``. Raises `InputError`."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise InputError(f"invalid {name}: {value!r}", hint=f"give an integer of at least {least}")
    return value
