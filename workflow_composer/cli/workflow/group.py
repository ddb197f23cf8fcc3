"""``workflow``: names and short help of its commands; a command's module is imported when it runs."""

from __future__ import annotations

from importlib import import_module

import click

from workflow_composer.cli.options import common_options, examples

COMMANDS = {
    "check": ("check", "Check a workflow's file and a table's columns; nothing is called."),
    "graph": ("graph", "Draw the steps of a workflow: as lines, in Mermaid's language, or as SVG."),
    "try": ("try_out", "Do a few rows, show their values, and forecast the whole table."),
    "test": ("scripted_test", "Run a workflow with scripted answers instead of models, and compare its table."),
    "run": ("run", "Run a workflow over the rows of a table, or go on with a run."),
    "answer": ("answer", "List the questions that wait for a person, or answer one."),
    "show": ("show", "Show what a run has done, and who made each value."),
    "diff": ("diff", "Compare the tables of two runs."),
    "forget": ("forget", "Remove a run's journal, with all texts in it."),
}
"""Name -> module and short help. The module defines a command ``NAME_command``."""


class WorkflowGroup(click.Group):
    """Looks commands up in the table above."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The command names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command of that name."""
        if cmd_name not in COMMANDS:
            return None
        module = COMMANDS[cmd_name][0]
        command: click.Command = getattr(import_module(f"workflow_composer.cli.workflow.{module}"), f"{cmd_name}_command")
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or fail with the nearest name."""
        name = args[0]
        if not ctx.resilient_parsing and not name.startswith("-") and name not in COMMANDS:
            from workflow_composer.errors import nearest

            near = nearest(name, COMMANDS) or f"commands: {', '.join(COMMANDS)}"
            ctx.fail(f"no such command: {name!r}; {near}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=WorkflowGroup,
    epilog=examples("workflow run triage.yaml --input notes.csv -o triaged.csv", "workflow show triaged.csv"),
)
@common_options
def workflow() -> None:
    """Run several steps as one over the rows of a table: models, programs, functions and people.

    The file says what the steps are; a run writes a table, and a journal beside it from which the same command goes on after
    whatever ended it.
    """
