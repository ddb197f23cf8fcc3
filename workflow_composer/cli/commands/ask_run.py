"""``ask``: checking, the forecast, the sample, the run, the table and the summary."""

from __future__ import annotations

import asyncio
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workflow_composer.answers.form import OutputForm
from workflow_composer.answers.output_form import output_form
from workflow_composer.batch.asking.forecast import Measured, PriceForecast, forecast, seconds_per_token
from workflow_composer.batch.asking.labels import LabelCounts
from workflow_composer.batch.asking.table_output import OTHER, cell, journal_beside, suffix_of
from workflow_composer.batch.asking.templates import PromptTemplate
from workflow_composer.batch.datasets.table import read_table
from workflow_composer.batch.run.answer_file import AnswerFile, answers_in
from workflow_composer.batch.run.journal import unwritable
from workflow_composer.batch.run.runner import RunBudget
from workflow_composer.cli.interrupt import run_stoppable
from workflow_composer.cli.output import (
    code_of,
    cost_text,
    dollars,
    known_cost,
    percent,
    print_json,
    print_table,
    tell_no_price,
)
from workflow_composer.cli.progress import DecisionLog, doubting, progress_for, raise_if_over, tell_spent_before
from workflow_composer.cli.state import State
from workflow_composer.errors import InputError
from workflow_composer.storage.lines import unreadable
from workflow_composer.storage.replacing import replace_file
from workflow_composer.workflows.asking import AskRun, NewColumns

if TYPE_CHECKING:
    from workflow_composer.batch.run.tally import Tally
    from workflow_composer.orchestrator import ModelOrchestrator
    from workflow_composer.plan import Plan

_REMEDY = "the reason is in OUTPUT.journal (error); say in the prompt what the answer must be, or try another model"
_FIRST = 3
"""Answers after which the time of the other rows is told."""

_FEW = 20
"""With no more rows than this left, there is nothing to tell."""

_AT_ONCE = 16
"""Rows at a time that a forecast assumes; the limiter adapts it."""

_WIDEST = 48
_BREAK = re.compile(r"\\n(?!(?:abla|u|eq?|eg|ot|otin|i|mid|leq|geq|ewline)\b)")
r"""``\n`` as a shell passes it on, but not the beginning of a LaTeX command such as ``\nabla``."""

_REQUEST_FIELDS = ("task_type", "model", "system", "max_tokens", "temperature", "timeout", "form_retries")


def opened_run(source: str, options: Mapping[str, Any]) -> AskRun:
    """Return the run that the options describe. Raises `InputError`, `click.UsageError`."""
    template = _template(options["prompt"], options["prompt_file"])
    if (system := options["system"]) is not None and "{{" in system:
        raise InputError("--system has no columns: it is the same for all rows", hint="write {{ … }} into the prompt")
    form = _form(options["choices"], options["schema"], options["json_fields"])
    new = NewColumns.of(form, answer=options["column"], prefix=options["prefix"])
    if options["label_column"] and new.fields and len(new.fields) > 1:
        raise click.UsageError("--label-column needs an answer of one column: use --choices, or one field")
    fields = {name: options[name] for name in _REQUEST_FIELDS if options[name] is not None}
    if options["contexts"]:
        fields["context"] = options["contexts"]
    return AskRun(
        read_table(source, data_dir=options["data_dir"], asks=False),
        template,
        form,
        new,
        fields=fields,
        keep=options["keep"] or None,
        label=options["label_column"],
        limit=options["limit"],
        keep_texts=not options["no_texts"],
    )


def _template(prompt: str | None, file: Path | None) -> PromptTemplate:
    if (prompt is None) == (file is None):
        raise click.UsageError("give --prompt or --prompt-file")
    if file is not None:
        try:
            return PromptTemplate(file.read_text(encoding="utf-8-sig"), name=str(file))
        except UnicodeDecodeError:
            raise InputError(f"{file} is not UTF-8", hint="convert it: iconv -f LATIN1 -t UTF-8") from None
        except OSError as error:
            raise unreadable(file, error) from None
    assert prompt is not None
    return PromptTemplate(prompt if "\n" in prompt else _BREAK.sub("\n", prompt), name="--prompt")


def _form(choices: Sequence[str], schema: Path | None, fields: Sequence[str]) -> OutputForm:
    """Return the form that the options describe. Raises `click.UsageError` for several, `ConfigError` for a faulty one."""
    if sum(map(bool, (choices, schema, fields))) > 1:
        raise click.UsageError("give only one of --choices, --schema and --json")
    if choices:
        words = choices if len(choices) > 1 else [word.strip() for word in choices[0].split(",")]
        return output_form([word for word in words if word])
    if schema is not None:
        return output_form({"json_schema": str(schema)})
    if fields:
        named = [field.strip() for part in fields for field in part.split(",") if field.strip()]
        return output_form({"json_schema": _schema_of(named)})
    return output_form("text")


def _schema_of(fields: Sequence[str]) -> dict[str, Any]:
    """Return the schema of an object with these fields: ``NAME``, any value, or ``NAME:FORM``, such as ``year:number``."""
    properties: dict[str, Any] = {}
    for field in fields:
        name, _, form = field.partition(":")
        if name in properties:
            raise InputError(f"--json: the field {name!r} is given twice", hint="give each field once")
        spec: Any = form.split("|") if "|" in form else form
        properties[name] = output_form(spec).json_schema() if form else {}
    return {"type": "object", "properties": properties, "required": list(properties)}


class AskSession:
    """One ``ask`` command."""

    def __init__(self, state: State, run: AskRun, target: Path, options: Mapping[str, Any]) -> None:
        self._state, self._run, self._target = state, run, target
        self._sample, self._concurrency = options["sample"], options["concurrency"]
        self._again = options["again"]
        self._formulas, self._label = options["formulas"], options["label_column"]
        self._budget = RunBudget(options["budget"], options["run_budget"])
        self._asked: frozenset[int] = frozenset()

    def run(self) -> int:
        """Ask and write the table; return the exit code."""
        run, state = self._run, self._state
        suffix_of(self._target)
        run.check()
        orchestrator = self._opened()
        if "temperature" not in run.fields and _all_local(orchestrator.plan("?", **run.fields)):
            run.fields["temperature"] = (
                0.0  # ollama and llama.cpp sample at 0.8 if nothing is said; some cloud models refuse 0
            )
        trying = self._sample is not None
        with run.opened(self._target, orchestrator.config, again=self._again, trying=trying) as file:
            self._tell_before(orchestrator)
            tell_spent_before(self._budget, run.tally.cost)
            self._budget.earlier(run.tally.cost)
            if self._sample is not None and not self._done:
                self._ask(orchestrator, file, self._spread(self._sample))
                self._show_sample()
                self._tell_measured()
                if not self._goes_on():
                    raise_if_over(self._budget, run.tally)
                    return code_of([run.tally])
                orchestrator = self._opened()
            if not self._done:
                self._ask(orchestrator, file, None)
            if not run.tally.stopped_by:
                asyncio.run(file.finish(run.rows, keep_texts=False))  # labels are read from the table, not from the lines
        return self._finish(state)

    @property
    def _done(self) -> bool:
        return self._run.tally.done == self._run.tally.total

    def _opened(self) -> ModelOrchestrator:
        self._state.log = DecisionLog(self._state.log_file)
        return self._state.open(self._state, None)

    # ---------------------------------------------------------------------------------------------------- asking

    def _ask(self, orchestrator: ModelOrchestrator, file: AnswerFile, only: frozenset[int] | None) -> None:
        """Ask the rows of these numbers, or all that are left."""
        run, tally = self._run, self._run.tally

        async def work(stop: asyncio.Event) -> None:
            async with orchestrator:
                await run.answer(
                    orchestrator.agenerate,
                    file,
                    wanted=self._wanted(only),
                    concurrency=self._concurrency,
                    budget=self._budget,
                    progress=progress if only is not None else self._telling(progress, begun=tally.answered),
                    stop=stop,
                    go_on=doubting(progress, _REMEDY),
                )

        def told() -> str:
            spent = cost_text(tally.cost_now, tally.unpriced_now)
            return f"{tally.done} of {tally.total} rows done, cost {spent}; run the same command again to resume"

        log = self._state.log
        assert isinstance(log, DecisionLog)
        with log, progress_for(tally) as progress:
            run_stoppable(work, told)
        self._asked |= only or frozenset()

    def _telling(self, progress: Callable[[Tally], None], *, begun: int) -> Callable[[Tally], None]:
        """Return ``progress`` that also tells price and time once, after the first answers of a run without earlier ones."""
        tally = self._run.tally
        left = (tally.total or 0) - tally.done
        told = begun > 0 or left <= _FEW

        def tell(now: Tally) -> None:
            nonlocal told
            progress(now)
            if not told and now.answered >= _FIRST:
                told = True
                self._tell_measured()

        return tell

    def _wanted(self, part: frozenset[int] | None) -> Callable[[int], bool]:
        before = self._asked
        return (lambda index: index not in before) if part is None else part.__contains__

    def _spread(self, count: int) -> frozenset[int]:
        """Return the numbers of some rows, spread over the table."""
        total = self._run.tally.total or 0
        count = min(count, total)
        return frozenset(at * total // count for at in range(count))

    def _goes_on(self) -> bool:
        """Whether to ask the other rows: the question is put on a terminal only."""
        tally = self._run.tally
        left = (tally.total or 0) - tally.done
        if not left or tally.stopped_by:
            return not tally.stopped_by
        if sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty():
            return click.confirm(f"Ask the other {left} rows?", err=True)
        click.echo(f"hint: run the same command without --try to ask the other {left} rows", err=True)
        return False

    # --------------------------------------------------------------------------------------------------- telling

    def _tell_before(self, orchestrator: ModelOrchestrator) -> None:
        run, tally = self._run, self._run.tally
        left = (tally.total or 0) - tally.answered
        facts = [f"{tally.total} rows", *run.table.notes, f"new columns: {', '.join(run.new.names)}"]
        click.echo(f"{run.table.name}: {'; '.join(facts)}", err=True)
        if run.other_labels:
            shown = ", ".join(map(repr, run.other_labels[:5]))
            click.echo(f"warning: labels that no answer can equal: {shown}", err=True)
        if run.set_aside is not None:
            click.echo(f"earlier answers, to other questions, are now in {run.set_aside}", err=True)
        if tally.earlier:
            click.echo(f"{tally.earlier} rows are answered in {journal_beside(self._target)}", err=True)
        if not left or self._tell_measured():
            return
        row = next(iter(run.rows()))
        plan = orchestrator.plan(row.prompt, **run.fields)
        found = forecast(
            plan,
            orchestrator.config,
            run.form,
            rows=left,
            characters=run.characters * left // (tally.total or 1),
            most_tokens=run.fields.get("max_tokens"),
        )
        pace = seconds_per_token(self._state.metrics_file(), plan.tiers[0].members[0].candidates[0].name)
        at_once = min(self._concurrency or _AT_ONCE, left)
        time = "told after the first answers"
        if pace is not None:
            time = f"{_duration(pace * found.answer_tokens * left / at_once)} by earlier requests, {at_once} rows at a time"
        click.echo(f"{_price(found, plan)}; time: {time}", err=True)

    def _tell_measured(self) -> bool:
        """Print price and time of the rows that are left, by the mean of those answered; return whether there are any."""
        tally = self._run.tally
        found = Measured.of(answers_in(journal_beside(self._target)))
        left = (tally.total or 0) - tally.done
        if found is None or not left:
            return found is not None
        at_once = min(self._concurrency or _AT_ONCE, left)
        price = "price unknown" if found.cost is None else dollars(found.cost * left)
        click.echo(
            f"forecast for the other {left} rows, by {found.rows} answered: {price}, "
            f"{_duration(found.seconds * left / at_once)} with {at_once} rows at a time",
            err=True,
        )
        return True

    def _show_sample(self) -> None:
        run = self._run
        shown = [name for name in run.columns if name in run.used or name == self._label]
        names = [*shown, *run.new.names]
        rows = [
            [_short(cell((values | cells)[name])) for name in names]
            for index, (values, cells) in enumerate(run.answered(self._target))
            if index in self._asked
        ]
        print_table(names, rows)

    # ------------------------------------------------------------------------------------------------- finishing

    def _finish(self, state: State) -> int:
        run, tally = self._run, self._run.tally
        output = run.output(self._target, keep_formulas=self._formulas)
        output.write(self._target)
        summary = self._summary()
        counts = LabelCounts.of(run.labelled(self._target)) if self._label else None
        if counts is not None:
            summary |= self._labelled(counts)
        if state.json:
            print_json(summary)
        else:
            self._tell(summary, counts, output.formulas)
        raise_if_over(self._budget, tally)
        return code_of([tally])

    def _summary(self) -> dict[str, Any]:
        tally = self._run.tally
        calls = again = escalated = 0
        mended = Counter[str]()
        for line in answers_in(journal_beside(self._target)):
            calls += line.get("calls", 0)
            again += line.get("asked_again", 0)
            escalated += line.get("tier", 0) > 0
            mended.update(line.get("mended", ()))
        return {
            "output": str(self._target),
            "columns": list(self._run.new.names),
            "rows": tally.total,
            "answered": tally.answered,
            "earlier": tally.earlier,
            "errors": tally.errors,
            "calls": calls,
            "asked_again": again,
            "escalated": escalated,
            "mended": dict(mended),
            "cost": known_cost(tally.cost_now, tally.unpriced_now),
            "seconds": round(tally.seconds, 3),
        }

    def _labelled(self, counts: LabelCounts) -> dict[str, Any]:
        report = self._target.with_name(f"{self._target.name}.report.md")
        facts = [f"table: {self._run.table.name}", f"label: {self._label}", f"answers: {journal_beside(self._target).name}"]
        try:
            replace_file(
                report,
                counts.report(f"Answers to {self._run.table.name}", facts, without=self._run.tally.errors),
                mode=0o600,
            )
        except OSError as error:
            raise unwritable(report, error, other=OTHER) from error
        confusion = [[label, answer, count] for (label, answer), count in counts.counts.most_common()]
        accuracy = counts.right / counts.graded if counts.graded else None
        return {"graded": counts.graded, "accuracy": accuracy, "confusion": confusion, "report": str(report)}

    def _tell(self, summary: Mapping[str, Any], counts: LabelCounts | None, formulas: int) -> None:
        if counts is not None and (matrix := counts.matrix()) is not None:
            print_table(*matrix)
        parts = [f"{summary['rows']} rows"]
        if summary["earlier"]:
            parts.append(f"{summary['earlier']} answered earlier")
        parts += [f"{summary['errors']} errors", f"{summary['calls']} calls"]
        if counts is not None and counts.graded:
            parts.append(f"accuracy {percent(summary['accuracy'])} of {counts.graded}")
        tally = self._run.tally
        parts += [f"cost {cost_text(tally.cost_now, tally.unpriced_now)}", f"{summary['seconds']:.1f} s"]
        click.echo(f"{', '.join(parts)}: {self._target}", err=True)
        tell_no_price(tally.cost_now, tally.unpriced_now)
        if summary["mended"]:
            told = ", ".join(f"{note} {count}" for note, count in summary["mended"].items())
            click.echo(f"mended without a call: {told}", err=True)
        if summary["asked_again"]:
            click.echo(f"answers without the form: asked again {summary['asked_again']} times", err=True)
        if summary["escalated"]:
            click.echo(f"escalated: {summary['escalated']} rows", err=True)
        if formulas:
            click.echo(
                f"{formulas} cells begin like a formula and got an apostrophe; --formulas leaves them as they are", err=True
            )
        if "report" in summary:
            click.echo(f"report: {summary['report']}", err=True)
        if summary["errors"]:
            click.echo(
                f"hint: {self._run.new.error} says why; run the same command again to retry the failed rows", err=True
            )


def _price(found: PriceForecast, plan: Plan) -> str:
    """Return the price before the first answer, with what it rests on."""
    if found.unpriced and not found.most:
        price = f"price unknown: the profile has no price for {', '.join(found.unpriced)}"
    else:
        price = f"price: about {dollars(found.least)}"
        if len(plan.tiers) > 1:
            price += f" if every first tier's answer is accepted, to {dollars(found.most)} if every tier is asked"
        if found.unpriced:
            price += f", without {', '.join(found.unpriced)}, which have no price"
    tokens = f"{found.prompt_tokens} prompt tokens, {found.answer_tokens} tokens an answer"
    return f"{price}; assumed: {tokens}"


def _all_local(plan: Plan) -> bool:
    return all(candidate.local for tier in plan.tiers for candidate in tier.candidates)


def _duration(seconds: float) -> str:
    """Return a rounded time.

    >>> _duration(0.4), _duration(75), _duration(4000), _duration(200_000)
    ('under a second', 'about 75 s', 'about 67 min', 'about 56 h')
    """
    if seconds < 1:
        return "under a second"
    if seconds < 120:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 7200 else f"about {seconds / 3600:.0f} h"


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _WIDEST else flat[: _WIDEST - 1] + "…"
