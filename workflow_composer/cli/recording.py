"""What ``record`` opens and prints."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workflow_composer.batch.run.budget import Budget
from workflow_composer.batch.run.recording import Recorder, RecordingFile, questions
from workflow_composer.cli.decisions import DecisionLog
from workflow_composer.cli.interrupt import run_stoppable
from workflow_composer.cli.output import dollars, percent, print_json
from workflow_composer.cli.progress import progress_for
from workflow_composer.cli.spending import raise_if_over, tell_spent_before
from workflow_composer.cli.state import State
from workflow_composer.cli.unread import ENDING, tell_unread
from workflow_composer.errors import ConfigError

if TYPE_CHECKING:
    from workflow_composer.orchestrator import ModelOrchestrator

SOME_FAILED = 1


class Recording:
    """One ``record``; the options are those of the command."""

    def __init__(self, state: State, **options: Any) -> None:
        self._state = state
        self._options = options
        self._output: Path = options["output"]

    def run(self) -> int:
        """Record what is not recorded yet; the exit code."""
        options = self._options
        self._state.log = log = DecisionLog()
        budget = Budget(options["budget"], options["run_budget"])
        with RecordingFile.open(self._output) as file:
            tell_spent_before(budget, file.spent)
            orchestrator = self._open()
            try:
                tiers = self._tiers(orchestrator)
                skip, limit = options["skip"], options["limit"]
                recorder = Recorder(questions(options["datasets"], options["data_dir"], tiers, skip=skip, limit=limit), file)
            except BaseException:
                orchestrator.close()
                raise
            with log:
                self._answer(orchestrator, recorder, budget)
        self._sum_up(recorder)
        raise_if_over(budget, recorder.tally)
        return SOME_FAILED if recorder.tally.errors else 0

    def _answer(self, orchestrator: ModelOrchestrator, recorder: Recorder, budget: Budget) -> None:
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
                )

        def told() -> str:
            return f"{tally.done} of {tally.total} answers recorded; run the same command again to go on"

        with progress_for(tally) as progress:
            run_stoppable(work, told)

    def _open(self) -> ModelOrchestrator:
        """One that asks each model by its name; other routers may want the certificate that is yet to be made."""
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
            raise ConfigError(f"profile {config.profile_name!r} has no tiers", hint="add tiers to it, or name --tiers")
        for tier in tiers:
            orchestrator.plan("?", model=tier)  # what cannot run is an error before anything is paid for
        return tiers

    def _fields(self) -> dict[str, Any]:
        options = self._options
        fields = {name: options[name] for name in ("system", "max_tokens", "timeout") if options[name] is not None}
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
            "cost": tally.cost_now,
            "seconds": round(tally.seconds, 3),
        }
        if self._state.json:
            print_json(found)
            return
        earlier = f" ({tally.earlier} before)" if tally.earlier else ""
        accuracy = "" if tally.accuracy is None else f", accuracy {percent(tally.accuracy)}"
        parts = f"{tally.answered} answers{earlier}, {tally.errors} errors{accuracy}, cost {dollars(tally.cost_now)}"
        click.echo(f"{self._output}: {parts}, {tally.seconds:.1f} s", err=True)
        tell_unread(tally.unreadable, tally.graded, cut_off=tally.cut_off, remedy=ENDING)
        if tally.errors:
            click.echo(f"the first error: {' '.join(recorder.first_error.split())}", err=True)
            click.echo("hint: run the same command again to try what failed again", err=True)
