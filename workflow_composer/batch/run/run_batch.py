"""`ModelOrchestrator.run_batch`: rows from Python, a journal, and the results."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflow_composer.answers.form import as_data
from workflow_composer.batch.datasets.prompt_rows import PythonRows
from workflow_composer.batch.run.answer_file import AnswerFile, LineAnswers, answers_in
from workflow_composer.batch.run.journal import unwritable
from workflow_composer.batch.run.limiter import Limiter
from workflow_composer.batch.run.runner import Generate, RunBudget, heard, run
from workflow_composer.batch.run.tally import Tally
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.contexts.library import Library
from workflow_composer.errors import InputError
from workflow_composer.types import LLMRequest

_OTHER = "another journal"


@dataclass(frozen=True, slots=True)
class RowError:
    """Why a row failed: the exception's type and message."""

    type: str
    message: str


@dataclass(frozen=True, slots=True)
class RowResult:
    """The result of a row. ``id`` is the row's id, or else its index; ``cost`` (dollars) sums all its tries.

    A failed row has an ``error`` and an empty ``text``; an answered row has ``error`` None. ``correct`` is None without a
    label, ``confidence`` if it is unknown. `value` is the answer as read by the request's form, as JSON data. ``data`` is
    the row's complete line of the journal.
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

    @property
    def value(self) -> Any:
        """The answer as read by the request's form; None without a form or without such an answer."""
        return self.data.get("value")

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> RowResult:
        """Return the result in a line of the journal."""
        error = data.get("error")
        return cls(
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
        )


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

    def __iter__(self) -> Iterator[RowResult]:
        return map(RowResult.of, answers_in(self.journal))


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
    limits, limiter = RunBudget.of(budget), Limiter.of(_whole("concurrency", concurrency, 1))
    tries_more = _whole("retries", retries, 0) or 0
    library = Library(environ=environ)
    if fields.get("context") is not None:
        names = fields["context"]
        fields = {**fields, "context": library.pins((names,) if isinstance(names, str) else names)}
    LLMRequest.of("?", **fields)  # raises TypeError for an unknown field
    found = PythonRows(rows, salt=_identity(config, fields), pins=library.pins)
    await asyncio.to_thread(found.check)
    tally = Tally(found.total)
    with _opened(Path(journal), tally) as file:
        limits.earlier(tally.cost)
        if found.total is not None:
            await asyncio.to_thread(_compare, found, file)
        await run(
            (row for row in found if not file.is_done(row)),
            LineAnswers(heard(generate, limiter), fields),
            file,
            tally=tally,
            limiter=limiter,
            budget=limits,
            retries=tries_more,
            progress=progress or (lambda tally: None),
        )
        if not tally.stopped_by:
            _refuse_more(file, found.seen)
    return BatchRun(
        file.path,
        tally.answered,
        tally.earlier,
        tally.errors,
        tally.cost,
        tally.cost_now,
        tally.stopped_by or None,
        tally.seconds,
        tally.unpriced,
    )


def _opened(path: Path, tally: Tally) -> AnswerFile:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error, other=_OTHER) from error
    return AnswerFile.open(path, source=None, each=tally.add_earlier, other=_OTHER)


def _compare(rows: PythonRows, file: AnswerFile) -> None:
    """Compare the answers in the journal with the rows, before any call is paid for."""
    if file.rows:
        for row in rows:
            file.is_done(row)
        _refuse_more(file, rows.seen)


def _refuse_more(file: AnswerFile, rows: int) -> None:
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


def _whole(name: str, value: int | None, least: int) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise InputError(f"invalid {name}: {value!r}", hint=f"give an integer of at least {least}")
    return value
