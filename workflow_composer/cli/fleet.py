"""``fleet``: names and short help of its commands; a command's module is imported when it runs."""

from __future__ import annotations

from importlib import import_module

import click

from workflow_composer.cli.options import common_options, examples

COMMANDS = {
    "up": ("fleet_up", "Start servers on this machine and wait until they answer."),
    "down": ("fleet_down", "Stop servers after active requests have finished."),
    "submit": ("fleet_submit", "Start servers as SLURM jobs."),
    "status": ("fleet_status", "Show addresses and states of servers."),
    "logs": ("fleet_logs", "Show a server's log."),
    "monitor": ("fleet_monitor", "Check every server, restart failed ones, send alerts."),
    "serve": ("fleet_serve", "Run one server in the foreground."),
}
"""Name -> module and short help. The module defines a command of the same name."""

HIDDEN = {"job": "fleet_job"}
"""Name -> module of commands that are run by programs only."""


class FleetGroup(click.Group):
    """Looks commands up in the tables above."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The command names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command of that name."""
        module = HIDDEN.get(cmd_name) or COMMANDS.get(cmd_name, ("",))[0]
        if not module:
            return None
        command: click.Command = getattr(import_module(f"workflow_composer.cli.{module}"), cmd_name)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or fail with the nearest name."""
        name = args[0]
        if not ctx.resilient_parsing and not name.startswith("-") and name not in {*COMMANDS, *HIDDEN}:
            from workflow_composer.names import nearest

            near = nearest(name, COMMANDS) or f"commands: {', '.join(COMMANDS)}"
            ctx.fail(f"no such command: {name!r}; {near}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=FleetGroup,
    epilog=examples("fleet up", "fleet up coder --dry-run", "fleet logs coder -f", "fleet down"),
)
@common_options
def fleet() -> None:
    """Start, stop and monitor your own vLLM servers, on this machine or on SLURM.

    The fleet file defines them: the file given by --fleet, else config/fleet.yaml in the working directory, else the user's
    ~/.config/workflow-composer/fleet.yaml, else the shipped one.
    """
