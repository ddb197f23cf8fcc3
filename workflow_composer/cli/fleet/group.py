"""``fleet``: names and short help of its commands; a command's module is imported when it runs."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

import click

from workflow_composer.cli.options import allow_code_option, common_options, examples

if TYPE_CHECKING:
    from workflow_composer.cli.state import State
    from workflow_composer.fleet.file import Fleet


# ----------------------------------------------------------------------------------------------------------- fleet options
#
# Options shared by the commands of ``fleet``.


F = TypeVar("F", bound=Callable[..., Any])


def fleet_option(function: F) -> F:
    """``--fleet FILE``, as the parameter ``fleet_file``, and ``--allow-code``."""
    text = (
        "The fleet file. Default: `config/fleet.yaml` or `fleet.yaml` in the working directory, the user's, or the shipped."
    )
    return click.option("--fleet", "fleet_file", metavar="FILE", help=text)(allow_code_option(function))


def open_fleet(state: State, fleet_file: str | None) -> Fleet:
    """Load the given fleet file, or the one found by default. Raises `ProfileError`, `FleetError`."""
    from workflow_composer.fleet.file import load_fleet

    return load_fleet(fleet_file, state.environ)


COMMANDS = {
    "up": ("up", "Start servers on this machine and wait until they answer."),
    "down": ("down", "Stop servers after active requests have finished."),
    "submit": ("submit", "Start servers as SLURM jobs."),
    "fetch": ("fetch", "Download models where there is network access."),
    "status": ("status", "Show addresses and states of servers."),
    "logs": ("logs", "Show a server's log."),
    "monitor": ("monitor", "Check every server, restart failed ones, send alerts."),
    "serve": ("serve", "Run one server in the foreground."),
}
"""Name -> module and short help. The module defines a command of the same name."""

HIDDEN = {"job": "job"}
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
        command: click.Command = getattr(import_module(f"workflow_composer.cli.fleet.{module}"), cmd_name)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or fail with the nearest name."""
        name = args[0]
        if not ctx.resilient_parsing and not name.startswith("-") and name not in {*COMMANDS, *HIDDEN}:
            from workflow_composer.errors import nearest

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

    The fleet file defines them: the file given by --fleet, else config/fleet.yaml or fleet.yaml in the working directory,
    else the user's ~/.config/workflow-composer/fleet.yaml, else the shipped one.
    """
