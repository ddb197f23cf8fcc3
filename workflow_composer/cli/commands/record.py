"""``record``: send every question of a data set to every tier, and record the answers with log-probabilities."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workflow_composer.batch.datasets.dataset import find
from workflow_composer.batch.run.record_run import Recorder, RecordingFile, questions
from workflow_composer.batch.run.runner import RunBudget
from workflow_composer.cli.interrupt import run_stoppable
from workflow_composer.cli.options import (
    column_options,
    columns_of,
    common_options,
    context_option,
    examples,
    finite,
    keep_option,
    run_budget_option,
    stop_option,
    strategy_option,
)
from workflow_composer.cli.output import ENDING, code_of, cost_text, known_cost, percent, print_json, tell_unread
from workflow_composer.cli.progress import (
    DecisionLog,
    doubting,
    progress_for,
    raise_if_over,
    tell_spent_before,
    tell_unlimited,
)
from workflow_composer.cli.state import State
from workflow_composer.errors import ConfigError

if TYPE_CHECKING:
    from workflow_composer.orchestrator import ModelOrchestrator


# --------------------------------------------------------------------------------------------------------------- recording
#
# The run of ``record``, and the printed summary.


class RecordRun:
    """One run of ``record``, with the options of the command."""

    def __init__(self, state: State, **options: Any) -> None:
        self._state = state
        self._columns = columns_of(options)
        self._options = options
        self._output: Path = options["output"]

    def run(self) -> int:
        """Record the missing answers; return the exit code."""
        options = self._options
        self._state.log = log = DecisionLog(self._state.log_file)
        budget = RunBudget(options["budget"], options["run_budget"])
        with RecordingFile.open(self._output) as file:
            tell_spent_before(budget, file.spent)
            orchestrator = self._open()
            try:
                tiers = self._tiers(orchestrator)
                sets = [
                    find(name, options["data_dir"], columns=self._columns, keep=options["keep"])
                    for name in options["datasets"]
                ]
                for rows in sets:
                    if not self._state.json:
                        click.echo(f"{rows.name}: {rows.describe()}", err=True)
                asked = questions(sets, tiers, skip=options["skip"], limit=options["limit"])
                recorder = Recorder(asked, file, keep_texts=not options["no_texts"])
            except BaseException:
                orchestrator.close()
                raise
            with log:
                self._answer(orchestrator, recorder, budget)
        self._sum_up(recorder)
        tell_unlimited(budget, recorder.tally)
        raise_if_over(budget, recorder.tally)
        return code_of([recorder.tally])

    def _answer(self, orchestrator: ModelOrchestrator, recorder: Recorder, budget: RunBudget) -> None:
        tally = recorder.tally

        async def work(stop: asyncio.Event) -> None:
            async with orchestrator:
                await recorder.answer(
                    orchestrator.agenerate,
                    self._fields(),
                    concurrency=self._options["in_flight"],
                    budget=budget,
                    progress=progress,
                    stop=stop,
                    go_on=doubting(progress, ENDING),
                )

        def told() -> str:
            return f"{tally.done} of {tally.total} answers recorded; run the same command again to resume"

        with progress_for(tally) as progress:
            run_stoppable(work, told)

    def _open(self) -> ModelOrchestrator:
        """Open an orchestrator with only the provider router: other routers may need a certificate, made from recordings."""
        from workflow_composer.orchestrator import ModelOrchestrator

        state = self._state
        config = state.profile()
        if config is None:
            return state.open(state, None)
        return ModelOrchestrator(config.replaced(routers=["provider"]), environ=state.environ, log=state.log)

    def _tiers(self, orchestrator: ModelOrchestrator) -> tuple[str, ...]:
        config = orchestrator.config
        tiers: tuple[str, ...] = self._options["tiers"] or tuple(config.tiers)
        if not tiers:
            raise ConfigError(f"profile {config.profile_name!r} has no tiers", hint="add tiers to it, or use --tiers")
        for tier in tiers:
            orchestrator.plan("?", model=tier)  # a tier that cannot run is an error before any call is paid for
        return tiers

    def _fields(self) -> dict[str, Any]:
        options = self._options
        fields = {name: options[name] for name in ("system", "max_tokens", "stop", "timeout") if options[name] is not None}
        if options["contexts"]:
            fields["context"] = options["contexts"]
        fields["temperature"] = options["temperature"]
        if not options["no_logprobs"]:
            fields |= {"logprobs": True, "top_logprobs": options["top_logprobs"]}
        return fields

    def _sum_up(self, recorder: Recorder) -> None:
        tally = recorder.tally
        found = {
            "recording": str(self._output),
            "answers": tally.answered,
            "earlier": tally.earlier,
            "errors": tally.errors,
            "first_error": recorder.first_error or None,
            "accuracy": tally.accuracy,
            "unreadable": tally.unreadable,
            "cut_off": tally.cut_off,
            "cost": known_cost(tally.cost_now, tally.unpriced_now),
            "cost_unknown_rows": tally.unpriced_now,
            "seconds": round(tally.seconds, 3),
        }
        if self._state.json:
            print_json(found)
            return
        earlier = f" ({tally.earlier} recorded earlier)" if tally.earlier else ""
        cost = cost_text(tally.cost_now, tally.unpriced_now)
        accuracy = "" if tally.accuracy is None else f", accuracy {percent(tally.accuracy)}"
        parts = f"{tally.answered} answers{earlier}, {tally.errors} errors{accuracy}, cost {cost}"
        click.echo(f"{self._output}: {parts}, {tally.seconds:.1f} s", err=True)
        tell_unread(tally.unreadable, tally.graded, cut_off=tally.cut_off, remedy=ENDING)
        if tally.errors:
            click.echo(f"first error: {' '.join(recorder.first_error.split())}", err=True)
            click.echo("hint: run the same command again to retry the failed answers", err=True)


@click.command(
    epilog=examples(
        "-s development record --datasets problems --data-dir data --limit 500 -o answers.jsonl",
        "calibrate --replay answers.jsonl --alpha 0.1 --delta 0.1 -o certificate.json",
    )
)
@click.option(
    "--datasets",
    required=True,
    multiple=True,
    metavar="NAME",
    help="Labelled data sets, paths or names; may be repeated.",
)
@column_options("question", "label", "choices", "id")
@click.option(
    "--data-dir", type=click.Path(path_type=Path), default="data", show_default=True, help="Folder of the data sets."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The recording (JSONL).")
@click.option("--tiers", multiple=True, metavar="NAME", help="Tiers or models; may be repeated. Default: all tiers.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N rows of each data set.")
@click.option("--skip", type=click.IntRange(min=0), default=0, metavar="N", help="Skip the first N rows of each data set.")
@click.option("--temperature", type=click.FloatRange(0, 2), default=0.0, show_default=True, help="Sampling temperature.")
@click.option(
    "--top-logprobs", type=click.IntRange(0, 20), default=5, show_default=True, help="Alternatives to record per token."
)
@click.option("--no-logprobs", is_flag=True, help="Do not request log-probabilities; some servers do not support them.")
@context_option
@click.option("--system", metavar="TEXT", help="System message of every request.")
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="Token limit of an answer.")
@stop_option
@click.option(
    "--budget",
    type=click.FloatRange(min=0, min_open=True),
    callback=finite,
    metavar="DOLLARS",
    help="Budget of one answer.",
)
@run_budget_option
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="Time limit of one answer.")
@click.option(
    "--in-flight", type=click.IntRange(1, 10_000), default=16, show_default=True, metavar="N", help="Requests in flight."
)
@keep_option
@click.option("--no-texts", is_flag=True, help="Record grades and log-probabilities without answers, tokens and labels.")
@strategy_option
@common_options
@click.pass_context
def record(context: click.Context, /, **options: Any) -> None:
    """Record every tier's answers to data sets, graded and with log-probabilities.

    `calibrate` learns from a recording, and `execute --replay` plays it back (docs/recordings.md). Every answer is written
    as soon as it arrives: after an interruption, the same command resumes. --run-budget includes the cost of the answers
    already in the recording; failed answers are not recorded and count only for their own run. Exit codes: 0 done; 1 some
    answers failed; 2 wrong usage or input; 6 the run budget is used up; 7 more than 5 % of the answers could not be read.
    """
    context.exit(RecordRun(context.ensure_object(State), **options).run())
