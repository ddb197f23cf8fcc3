"""``workflow forget``: remove what a run has kept."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from workflow_composer.cli.options import common_options, examples
from workflow_composer.cli.state import State


@click.command("forget", epilog=examples("workflow forget triaged.csv", "workflow forget triaged.csv --yes"))
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--yes", is_flag=True, help="Do not ask.")
@common_options
@click.pass_obj
def forget_command(state: State, /, run: Path, yes: bool) -> int:
    """Remove a run's journal with all prompts, answers and people's answers in it. The table stays.

    RUN is the output's path. The answers are then lost: the same `workflow run` asks for all of them again.

    Exit codes: 0 done; 2 no such run, or one that is going on.
    """
    from workflow_composer.cli.output import print_json
    from workflow_composer.errors import InputError
    from workflow_composer.workflows.keeping.earlier_run import EarlierRun

    kept = EarlierRun.of(run)
    if not yes:
        if not (sys.stdin is not None and sys.stdin.isatty()):
            raise InputError(f"{kept.journal} holds answers that are lost then", hint="confirm with --yes")
        click.confirm(f"Remove {kept.journal} with {kept.summary()['answers']} answers?", abort=True, err=True)
    removed = [str(path) for path in kept.forget()]
    if state.json:
        print_json({"removed": removed})
    else:
        click.echo(f"removed: {', '.join(removed)}", err=True)
    return 0
