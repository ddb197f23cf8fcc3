"""A run of `ask`: every row of a table goes through a workflow of one step, and the table is written with its answer.

Answers go to a journal beside the output, in the form of `generate`'s output, with these fields added: ``value`` (as the
form read it, in JSON), ``answer`` (the same as text), ``mended`` (what was mended in it), ``calls``, ``asked_again`` (calls
after answers without the form), and with a label ``label`` and ``correct``. A later run resumes from there.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_composer import __version__
from workflow_composer.answers.form import Formed, OutputForm, as_data
from workflow_composer.batch.asking.labels import Labelled
from workflow_composer.batch.asking.table_output import OTHER, TableOutput, cell, journal_beside, suffix_of, types_of
from workflow_composer.batch.asking.templates import PromptTemplate, is_missing, near_columns
from workflow_composer.batch.datasets.prompt_rows import InputRow, digest_of
from workflow_composer.batch.keeping.identity import meaning_of, voting_of
from workflow_composer.batch.keeping.notes import (
    in_common,
    joined,
    note_beside,
    read_note,
    refuse_other_settings,
    write_note,
)
from workflow_composer.batch.run.answer_file import AnswerFile, AnswerLine, LineAnswers, answers_in, graded
from workflow_composer.batch.run.journal import unwritable
from workflow_composer.batch.run.limiter import Limiter
from workflow_composer.batch.run.records import Head
from workflow_composer.batch.run.runner import Generate, GoOn, RunBudget, heard, run
from workflow_composer.batch.run.tally import Tally
from workflow_composer.errors import InputError, InvalidAnswer
from workflow_composer.storage.replacing import set_aside
from workflow_composer.support.fast_dataclass import changed
from workflow_composer.types import ANY_TASK, LLMRequest, LLMResponse, Sample
from workflow_composer.workflows.definition.model import PromptBody, Step, Workflow
from workflow_composer.workflows.definition.ordering import with_names
from workflow_composer.workflows.definition.readings import read_expression, read_template
from workflow_composer.workflows.keeping.answers import NothingKept, asked_anew
from workflow_composer.workflows.keeping.money import MoneyAccount, RunPurse
from workflow_composer.workflows.running.results import StepResult
from workflow_composer.workflows.running.row import run_row
from workflow_composer.workflows.running.world import World

if TYPE_CHECKING:
    from workflow_composer.batch.datasets.table import Table, TableRow
    from workflow_composer.config.strategy import StrategyConfig

ANSWER, ERROR = "answer", "_error"
"""The column of an answer without fields, and the column that says why a row has none."""

_OTHER = f"{OTHER} (or --again, which sets the earlier answers aside)"

_LIMITS = frozenset({"timeout", "max_tokens", "form_retries"})
"""Fields that say how long or how often to ask; an answer that kept to them is the same under larger ones."""

_NOT_ASKED = "not asked: the run ended before this row"


# ------------------------------------------------------------------------------------------------------------- columns


@dataclass(frozen=True, slots=True)
class NewColumns:
    """The columns that are added: one for each of the ``fields`` of an answer, or one for all of it, and the error."""

    fields: tuple[str, ...] | None
    answer: str = ANSWER
    prefix: str = ""

    @classmethod
    def of(cls, form: OutputForm, *, answer: str = ANSWER, prefix: str = "") -> NewColumns:
        """Return a column for each property of a form that is an object, else one column."""
        schema = form.json_schema()
        fields = tuple(schema.get("properties") or ()) if schema.get("type") == "object" else ()
        return cls(fields or None, answer, prefix)

    @property
    def answers(self) -> tuple[str, ...]:
        """The columns of answers."""
        return tuple(self.prefix + name for name in self.fields or (self.answer,))

    @property
    def error(self) -> str:
        """The column that says why a row has no answer."""
        return self.prefix + ERROR

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, in order."""
        return (*self.answers, self.error)

    def check(self, kept: Sequence[str], table: str) -> None:
        """Raise `InputError` if the table has a column of the same name."""
        clashes = [name for name in self.names if name in kept]
        if clashes:
            raise InputError(
                f"{table} has already a column {' and '.join(map(repr, clashes))}",
                hint="give the new columns a --prefix such as 'new_', or leave the old ones out with --keep",
            )

    def cells(self, line: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the cells of a row's line in the journal; None: the row was not asked."""
        if line is None:
            return dict.fromkeys(self.answers) | {self.error: _NOT_ASKED}
        if (error := line.get("error")) is not None:
            return dict.fromkeys(self.answers) | {self.error: f"{error['type']}: {error['message']}"}
        value = line["value"]
        found = [value] if self.fields is None else [value.get(name) for name in self.fields]
        return {**dict(zip(self.answers, found, strict=True)), self.error: None}


# ------------------------------------------------------------------------------------------------------------- answers


class AskLine(AnswerLine):
    """The line of a row; an answer without the form counts as unreadable, so that a run of them is noticed."""

    @property
    def head(self) -> Head:
        """The fields that `Tally` counts."""
        head = super().head
        return head._replace(unreadable=True) if head.error and head.error[0] == InvalidAnswer.__name__ else head


ASKED = "answer"
"""The name of the step."""


def one_step(fields: Mapping[str, Any], form: OutputForm) -> Workflow:
    """Return the workflow of one step that asks the prompt of a row, with fields of `LLMRequest` plus ``system``.

    What is filled in are whole texts: a prompt is made of a row's columns before anything is asked, and names the row.
    """
    names = {"prompt": "text"} | ({"system": "text"} if fields.get("system") is not None else {})
    body = PromptBody(
        prompt=read_template("{{ prompt }}"),
        system=read_template("{{ system }}") if "system" in names else None,
        context=fields.get("context"),
    )
    given = {step: fields[name] for name, step in _OF_STEPS.items() if fields.get(name) is not None}
    step = with_names(Step(name=ASKED, line=1, body=body, form=form, **given))
    output = {ASKED: read_expression(ASKED)}
    return Workflow(name="ask", path=None, inputs=names, steps={ASKED: step}, order=(ASKED,), output=output)  # type: ignore[arg-type]  # types of inputs


_OF_STEPS = {
    "task_type": "task",
    "model": "model",
    "temperature": "temperature",
    "max_tokens": "tokens",
    "timeout": "timeout",
    "form_retries": "retries",
}
"""Fields of a request, each with its name in a step."""


@dataclass(slots=True)
class _AskedRow:
    """A row as a workflow reads it, and as its request is sent: for at most ``budget`` dollars.

    ``response`` or ``error`` is what came of the request.
    """

    id: str
    inputs: Mapping[str, Any]
    generate: Generate
    budget: float | None
    plain: bool
    fault: str = ""
    response: LLMResponse | None = None
    error: BaseException | None = None

    async def ask(self, request: LLMRequest) -> LLMResponse:
        """Answer the step's request; any text has the form of a text, which need not be asked for."""
        sent = changed(request, budget=self.budget, form=None if self.plain else request.form)
        try:
            self.response = await self.generate(sent)
        except BaseException as error:
            self.error = error
            raise
        return self.response


class FormAnswers:
    """Answers rows, each by the workflow of one step. Raises what ``generate`` raises.

    ``fields`` are fields of `LLMRequest` for all rows, plus ``system``. An answer without the form becomes a failed row.
    ``keep_texts`` keeps the prompts and the votes' samples.
    """

    def __init__(self, generate: Generate, fields: Mapping[str, Any], form: OutputForm, *, keep_texts: bool) -> None:
        self._generate, self._form = generate, form
        self._flow = one_step(fields, form)
        self._fixed = {"system": fields["system"]} if "system" in self._flow.inputs else {}
        self._lines = LineAnswers(generate, {}, keep_texts=keep_texts)
        nothing = NothingKept()
        purse = RunPurse(MoneyAccount())  # the runner of rows watches over the money
        self._world = World(ask=generate, question=asked_anew, keeper=nothing, people=nothing, purse=purse)

    async def __call__(self, row: InputRow, budget: float | None) -> AnswerLine:
        """Answer one row for at most ``budget`` dollars; return its line."""
        inputs = {"prompt": row.prompt, **self._fixed}
        asked = _AskedRow(row.key, inputs, self._generate, budget, self._form.is_text)
        outcome = await run_row(self._flow, asked, changed(self._world, ask=asked.ask))
        if asked.error is not None:
            raise asked.error
        result = outcome.steps[ASKED]
        if asked.response is None:
            raise InvalidAnswer(result.reason)
        labelled = self._form.is_text and row.label is not None  # a text is graded by the answer read from it
        graded = row if labelled or row.label is None else replace(row, label=None)
        line = await self._lines.line_of(graded, asked.response)
        return AskLine({**line.fields, **self._read(row, result, asked.response)})

    def failed(self, row: InputRow, error: BaseException, seconds: float) -> AnswerLine:
        """Return the line of a failed row, with the cost of its attempts."""
        line = self._lines.failed(row, error, seconds)
        return AskLine({**line.fields, "calls": len(getattr(error, "attempts", ()))})

    def _read(self, row: InputRow, result: StepResult, response: LLMResponse) -> dict[str, Any]:
        found: dict[str, Any] = {"calls": len(response.attempts), "asked_again": response.asked_again}
        formed = self._formed(result, response)
        if formed.problem is not None:
            return {**found, "error": {"type": InvalidAnswer.__name__, "message": formed.problem}}
        found |= {"value": formed.value, "mended": list(formed.mended)}
        if row.label is not None:
            found["label"] = row.label
        if not self._form.is_text:
            found["answer"] = cell(formed.value)
            if row.label is not None:
                found["correct"] = self._form.key(self._form.read(response.text).value) == key_of(self._form, row.label)
        return found

    def _formed(self, result: StepResult, response: LLMResponse) -> Formed:
        """Return the answer as JSON data, or why there is none. A text is an answer although its vote has a warning."""
        if not self._form.is_text:
            problem = None if result.state == "done" else result.reason
            return Formed(value=result.value, problem=problem, mended=response.mended)
        if response.samples[0].cut_off:
            return Formed(problem="the answer was cut off by its token limit: raise --max-tokens")
        return self._form.read(response.text)


def key_of(form: OutputForm, label: str) -> str:
    """Return the key of a label, which is read as an answer is; a label that the form cannot read is a text."""
    formed = form.read(label)
    return json.dumps(label) if formed.problem is not None else form.key(formed.value)


# ----------------------------------------------------------------------------------------------------------------- run


class AskRun:
    """The rows of a table as prompts, and their progress.

    Args:
        table: the table.
        template: the prompt.
        form: what an answer must be.
        new: the columns to add.
        fields: fields of `LLMRequest` for all rows, plus ``system``.
        keep: the columns of the table to write, also with commas between them; None: all.
        label: the column with the right answer; None: none.
        limit: only so many rows.
        keep_texts: whether the journal keeps prompts and the votes' samples.

    Raises `InputError` for a name that is no column, or a new column that the table has already.
    """

    def __init__(
        self,
        table: Table,
        template: PromptTemplate,
        form: OutputForm,
        new: NewColumns,
        *,
        fields: Mapping[str, Any],
        keep: Sequence[str] | None = None,
        label: str | None = None,
        limit: int | None = None,
        keep_texts: bool = True,
    ) -> None:
        self.table, self.form, self.new = table, form, new
        self.columns = self._columns_for(template)
        keep = None if keep is None else [name for part in keep for name in _names(part, self.columns)]
        self.kept = [name for name in self.columns if keep is None or name in keep]
        for name, option in (*((each, "--keep") for each in keep or ()), *([(label, "--label-column")] if label else [])):
            if name not in self.columns:
                hint = near_columns(name, self.columns)
                raise InputError(f"{option}: {table.name} has no column {name!r}", hint=hint)
        new.check(self.kept, table.name)
        self.tally = Tally(None)
        self.characters = 0
        self.other_labels: list[str] = []
        self.set_aside: Path | None = None
        self._keep_texts = keep_texts
        self.fields = dict(fields)
        self.used = frozenset(name for reference in template.references for name in reference.path)
        self._template, self._label, self._limit, self._keep = template, label, limit, keep
        self._instructions = len(form.instructions())

    def _columns_for(self, template: PromptTemplate) -> list[str]:
        """Return the table's columns. Rows of JSON lines may have more than the first ones: then all rows are looked at."""
        columns = dict.fromkeys(self.table.names)
        try:
            template.check(list(columns))
        except InputError:
            for row in self.table.rows():
                columns.update(dict.fromkeys(row.values))
            template.check(list(columns))
        return list(columns)

    def check(self) -> None:
        """Fill in every prompt and read every label, so that faults show before any call is paid for.

        Sets the tally's total, ``characters`` (of all prompts) and ``other_labels``, which no answer can equal; adds columns
        that only later rows have. Raises `InputError` for the first faulty row, with the number of faulty rows.
        """
        total, faults, first = 0, 0, None
        found = dict.fromkeys(self.columns)
        for row in self._rows():
            total += 1
            found.update(dict.fromkeys(row.values))
            try:
                self.characters += len(self._prompt(row)) + self._instructions
            except InputError as error:
                faults, first = faults + 1, first or error
                continue
            label = self._label_of(row)
            if label is not None and self.form.read(label).problem is not None and label not in self.other_labels:
                self.other_labels.append(label)
        if first is not None:
            more = f", and {faults - 1} more rows" if faults > 1 else ""
            raise InputError(f"{first.message}{more}", hint=first.hint)
        if not total:
            raise InputError(f"{self.table.name} has no rows", hint="write at least one row")
        if self._keep is None:
            self.kept = self.columns = list(found)
            self.new.check(self.kept, self.table.name)
        self.tally.total = total

    def rows(self) -> Iterator[InputRow]:
        """Yield the rows as prompts."""
        salt = json.dumps(self._settings, sort_keys=True, default=as_data)
        for index, row in enumerate(self._rows()):
            prompt = self._prompt(row)
            key = digest_of(prompt.encode(), salt)
            yield InputRow(index, row.where, key, prompt, label=self._label_of(row))

    @property
    def _settings(self) -> dict[str, Any]:
        """What answers depend on besides the rows and the profile; limits on time, length and tries are left out."""
        asked = {name: value for name, value in self.fields.items() if name not in _LIMITS}
        return {"prompt": self._template.text, "form": self.form.spec, **asked}

    def opened(self, target: Path, config: StrategyConfig, *, again: bool = False, trying: bool = False) -> AnswerFile:
        """Open the journal of an output to resume it: rows that have moved keep their answers.

        ``again`` sets the earlier answers aside. ``trying`` does so if they are answers to other questions and no table was
        written yet. ``set_aside`` is then their file. Raises `InputError` if the output is not from here, or if the journal
        has answers to other questions, which it names.
        """
        suffix_of(target)
        journal = journal_beside(target)
        if target.exists() and any(map(target.samefile, self.table.paths)):
            raise InputError(f"{target} is the table itself, or a part of it", hint=f"choose {OTHER}")
        if target.exists() and not journal.exists():
            raise InputError(f"{target} exists and was not written by ask", hint=f"choose {OTHER}, or move the file")
        begun = journal.exists() and journal.stat().st_size > 0
        note = (read_note(journal) if begun else None) or {}
        if begun and (again or (trying and not target.exists() and self._is_other(journal, note, config))):
            self.set_aside, begun, note = _set_aside(journal), False, {}
        now = self._note(journal, note, config)
        self.tally = Tally(self.tally.total)
        file = AnswerFile.open(
            journal,
            source=self.table.paths[0],
            each=self.tally.add_earlier,
            other=OTHER,
            rows=self.rows(),
            whole=self._limit is None,
        )
        try:
            if now != note:
                write_note(journal, now)
        except OSError as error:
            file.close()
            raise unwritable(journal, error, other=OTHER) from error
        return file

    def _is_other(self, journal: Path, note: Mapping[str, Any], config: StrategyConfig) -> bool:
        try:
            self._note(journal, note, config)
        except InputError:
            return True
        return not note

    def _note(self, journal: Path, before: Mapping[str, Any], config: StrategyConfig) -> dict[str, Any]:
        """Return the note of this run. Raises `InputError` that names what has changed since the earlier answers."""
        if before:
            refuse_other_settings(journal, "the questions have", before["options"], self._settings, other=_OTHER)
        model, task = self.fields.get("model"), self.fields.get("task_type", ANY_TASK)
        profile = meaning_of(config, [] if model is None else [model], [task] if model is None else [])
        votes = voting_of(config).meaning
        if "profile" in before:
            one, other = in_common(before["profile"], profile)
            told = {"profile": one, "votes": before.get("votes")}, {"profile": other, "votes": votes}
            refuse_other_settings(journal, "the models have", *told, other=_OTHER)
            profile = joined(before["profile"], profile)
        source = {"path": str(self.table.paths[0]), "rows": self.tally.total}
        own = {"version": __version__, "command": "ask", "options": self._settings, "input": source}
        return {**before, **own, "profile": profile, "votes": votes}

    async def answer(
        self,
        generate: Generate,
        file: AnswerFile,
        *,
        wanted: Callable[[int], bool],
        concurrency: int | None,
        budget: RunBudget,
        progress: Callable[[Tally], None],
        stop: asyncio.Event,
        go_on: GoOn,
    ) -> None:
        """Answer the rows that have no answer yet and whose numbers are ``wanted``."""
        limiter = Limiter.of(concurrency)
        rows = (row for row in self.rows() if wanted(row.index))
        await run(
            (row for row in rows if not file.is_done(row)),
            FormAnswers(heard(generate, limiter), self.fields, self.form, keep_texts=self._keep_texts),
            file,
            tally=self.tally,
            limiter=limiter,
            budget=budget,
            progress=progress,
            stop=stop,
            go_on=go_on,
        )

    def labelled(self, target: Path) -> Iterator[Labelled]:
        """Yield the answers of rows that have a label today, whatever labels they had when they were asked."""
        lines = self._lines(target)
        for index, row in enumerate(self._rows()):
            line, label = lines(index), self._label_of(row)
            if line is None or "error" in line or label is None:
                continue
            if self.form.is_text:
                found = asyncio.run(graded(Sample(line["text"], line.get("finish_reason")), label))
                yield Labelled(index + 1, label, found["answer"], found["correct"], line["text"])
                continue
            named = self.form.read(label)
            meant = label if named.problem is not None else cell(self.form.plain(named.value))
            right = key_of(self.form, label) == self.form.key(self.form.read(line["text"]).value)
            yield Labelled(index + 1, meant, line["answer"], right, line["text"])

    def output(self, target: Path, *, keep_formulas: bool = False) -> TableOutput:
        """Return the table with the answers that the journal of ``target`` has."""
        own = frozenset(self.new.answers) if _has_own_words(self.form) else frozenset()
        return TableOutput(
            [*self.kept, *self.new.names],
            lambda: (values | cells for values, cells in self.answered(target)),
            answers=own | {self.new.error},
            types=types_of(self.table.paths),
            keep_formulas=keep_formulas,
        )

    def answered(self, target: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yield the cells of every row, the table's and the new ones."""
        lines = self._lines(target)
        for index, row in enumerate(self._rows()):
            yield dict(row.values), self.new.cells(lines(index))

    @staticmethod
    def _lines(target: Path) -> Callable[[int], Mapping[str, Any] | None]:
        """Return a function that returns a row's line in the journal; call it with increasing numbers."""
        found = answers_in(journal_beside(target))
        line = next(found, None)

        def of(index: int) -> Mapping[str, Any] | None:
            nonlocal line
            while line is not None and line["index"] < index:
                line = next(found, None)
            return line if line is not None and line["index"] == index else None

        return of

    def _rows(self) -> Iterator[TableRow]:
        return islice(self.table.rows(), self._limit)

    def _prompt(self, row: TableRow) -> str:
        prompt = self._template.render(row.values, row.where)
        if not prompt.strip():
            raise InputError(f"{row.where}: the prompt is empty", hint="leave this row out, or write some text around it")
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(prompt[error.start]):04x}"
            raise InputError(f"{row.where}: the prompt contains the lone surrogate {half}", hint="remove it") from None
        return prompt

    def _label_of(self, row: TableRow) -> str | None:
        value = None if self._label is None else row.values.get(self._label)
        if is_missing(value):
            return None
        # pandas writes 1.0 for 1 in a column with gaps
        return cell(int(value) if isinstance(value, float) and value.is_integer() else value).strip() or None


def _names(part: str, columns: Sequence[str]) -> list[str]:
    """Split names at commas, unless there is a column of this name."""
    return [part] if part in columns else [name for word in part.split(",") if (name := word.strip())]


def _set_aside(journal: Path) -> Path:
    """Rename a journal and its note to names that are free; return the journal's."""
    number = 1
    while (aside := journal.with_name(f"{journal.name}.{number}")).exists():
        number += 1
    if note_beside(journal).exists():
        set_aside(note_beside(journal), note_beside(aside).name)
    set_aside(journal, aside.name)
    return aside


def _has_own_words(form: OutputForm) -> bool:
    """Whether a model's own words can be in an answer, and not only words, numbers and truth values that were listed."""
    schema = form.json_schema()
    return "enum" not in schema and schema.get("type") not in ("number", "integer", "boolean")
