"""``workflow check``: everything about a workflow that can be known before anything is called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workflow_composer.cli.options import common_options, examples, strategy_option
from workflow_composer.cli.state import State

if TYPE_CHECKING:
    from workflow_composer.config.strategy import StrategyConfig
    from workflow_composer.workflows.definition.model import Workflow
    from workflow_composer.workflows.step_kinds import StepKind


@click.command(
    "check", epilog=examples("workflow check triage.yaml", "workflow check triage.yaml --input notes.csv", "--json")
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--input", "table", metavar="TABLE", help="The table whose columns must have the workflow's inputs.")
@strategy_option
@common_options
@click.pass_obj
def check_command(state: State, /, file: Path, table: str | None) -> int:
    """Check a workflow's file against the profile, and a table's columns; nothing is called.

    Prints every step in the order in which it may run, with what it reads and where its requests may go, then what leaves of
    private inputs and what is not promised. Faults have their line and the remedy, all at once.

    Exit codes: 0 the workflow may run; 2 something is wrong.
    """
    from workflow_composer.cli.output import print_json
    from workflow_composer.workflows.definition.drawing import as_lines
    from workflow_composer.workflows.programs.presence import missing

    config, kinds = profile_of(state)
    made = loaded_for(file, table, config, kinds)
    made = replace(made, notes=(*made.notes, *(f"a run is refused: {one}" for one in missing(made))))
    if state.json:
        print_json(_as_data(made, config))
        return 0
    click.echo(f"{file}: {made.name} may run; inputs: {', '.join(f'{n} ({k})' for n, k in made.inputs.items()) or 'none'}")
    for line in as_lines(made, config):
        click.echo(f"  {line}")
    for note in made.notes:
        click.echo(f"note: {note}")
    return 0


def profile_of(state: State) -> tuple[StrategyConfig, Mapping[str, StepKind]]:
    """Return the named profile, else the one that a request would use, and the kinds of steps that plugins offer."""
    found = state.profile()
    if found is not None:
        from workflow_composer.plugins.host import plugin_host

        host = plugin_host(environ=state.environ)
        return found, host.with_files(host.registry, map(Path, found.plugins)).step_kinds
    with state.orchestrator() as orchestrator:
        return orchestrator.config, orchestrator.step_kinds


def loaded_for(file: Path, table: str | None, config: StrategyConfig, kinds: Mapping[str, StepKind]) -> Workflow:
    """Load a workflow and check it against a profile, and against a table if there is one."""
    from workflow_composer.workflows.definition.loading import load_workflow

    columns = None
    if table is not None:
        from workflow_composer.batch.datasets.table import read_table

        columns = list(read_table(table, asks=False).names)
    return load_workflow(file, config=config, columns=columns, kinds=kinds)


def _as_data(made: Workflow, config: StrategyConfig) -> dict[str, Any]:
    return {
        "workflow": made.name,
        "inputs": dict(made.inputs),
        "order": list(made.order),
        "steps": dict(_steps(made, config)),
        "output": list(made.output),
        "tables": list(made.tables),
        "notes": list(made.notes),
    }


def _steps(made: Workflow, config: StrategyConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    from workflow_composer.workflows.definition.drawing import described

    for path, step in made.every_step():
        yield (
            path,
            {
                "does": described(step, config),
                "line": step.line,
                "level": step.level,
                "reads": sorted(step.reads),
                "needs": sorted(step.needs),
                "private": sorted(step.labels.data | step.labels.control),
                "leaves": None if step.release is None else step.release.how,
                "bits": step.labels.bits,
            },
        )
