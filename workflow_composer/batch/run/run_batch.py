"""`ModelOrchestrator.run_batch`: rows from Python, a journal, and what came of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflow_composer.batch.datasets.prompt_rows import PythonRows
from workflow_composer.batch.run.answer_file import AnswerFile, LineAnswers, answers_in
from workflow_composer.batch.run.journal import unwritable
from workflow_composer.batch.run.limiter import Limiter
from workflow_composer.batch.run.runner import Budget, Generate, heard, run
from workflow_composer.batch.run.tally import Tally
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.contexts.library import Library
from workflow_composer.errors import InputError
from workflow_composer.types import LLMRequest

_OTHER = "another journal"


@dataclass(frozen=True, slots=True)
class RowError:
    """Why a row has failed: the type of the exception, and its message."""

    type: str
    message: str


@dataclass(frozen=True, slots=True)
class RowResult:
    """What became of a row. ``id`` is its own, or its index; ``cost`` (dollars) is that of all its tries.

    Either ``error`` is None or there is no answer: ``text`` is empty then. ``correct`` is None without a label,
    ``confidence`` where it is unknown. ``data`` is the row's whole line of the journal.
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

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> RowResult:
        """The result that a line of the journal holds."""
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
    """A run of rows. Iterating gives a `RowResult` for every row that was reached, in the order of the rows.

    Of the rows, ``done`` have an answer (``earlier`` of them since an earlier run) and ``failed`` an error; a later run with
    the same journal tries those again. ``cost`` (dollars) is what all runs of the journal have cost, ``cost_now`` this one's
    share. ``stopped_by`` is ``"budget"`` where the run's budget was used up before all rows were reached, else None. Results
    are read from the journal, as often as they are iterated over, and are not kept in memory.
    """

    journal: Path
    done: int
    earlier: int
    failed: int
    cost: float
    cost_now: float
    stopped_by: str | None
    seconds: float

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
    """Answer rows into a journal, going on where it ends; see `ModelOrchestrator.arun_batch`."""
    limits, limiter = Budget.of(budget), Limiter.of(_whole("concurrency", concurrency, 1))
    tries_more = _whole("retries", retries, 0) or 0
    library = Library(environ=environ)
    if fields.get("context") is not None:
        names = fields["context"]
        fields = {**fields, "context": library.pins((names,) if isinstance(names, str) else names)}
    LLMRequest.of("?", **fields)  # raises TypeError where there is no such field
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
    )


def _opened(path: Path, tally: Tally) -> AnswerFile:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error, other=_OTHER) from error
    return AnswerFile.open(path, source=None, each=tally.add_earlier, other=_OTHER)


def _compare(rows: PythonRows, file: AnswerFile) -> None:
    """Compare what is answered with the rows, before anything is paid for."""
    if file.rows:
        for row in rows:
            file.is_done(row)
        _refuse_more(file, rows.seen)


def _refuse_more(file: AnswerFile, rows: int) -> None:
    if file.rows > rows:
        raise InputError(
            f"{file.path} answers {file.rows} rows, and there are {rows}: it is the journal of other rows",
            hint=f"name {_OTHER} for the new run",
        )


def _identity(config: StrategyConfig, fields: Mapping[str, Any]) -> str:
    """What answers depend on besides their rows. Limits on time and money are none of it."""
    models = {name: f"{spec.backend}:{spec.model}" for name, spec in config.models.items()}
    asked = {name: value for name, value in fields.items() if name not in {"timeout", "metadata"}}
    return json.dumps([config.profile_name, models, asked], sort_keys=True, default=dict)


def _whole(name: str, value: int | None, least: int) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise InputError(f"{name} is {value!r}", hint=f"give a whole number from {least} on")
    return value
