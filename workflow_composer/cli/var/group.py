"""``var``: verifiable adaptive routing for mixture-of-experts models. Its commands stand beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

import click

from workflow_composer.cli.options import common_options, examples
from workflow_composer.errors import ConfigError
from workflow_composer.support.installing import install_command

COMMANDS = {
    "demo": ("demo", "Demonstrate the three paths on synthetic text and check the constraints."),
    "certify": ("certify", "Find a confidence threshold for tables with a guarantee; write a certificate."),
    "verify": ("verify", "Recompute a certificate from the recorded routes and compare."),
    "record": ("record", "Record the routes that a model's gates choose for the tokens of a text."),
    "replay": ("replay", "Compare tables with recorded routes, and simulate prefetching of experts."),
}
"""Name -> module and short help; a module is imported when its command runs."""


_LIBRARIES = ("numpy", "scipy", "torch", "transformers", "safetensors")


@contextmanager
def libraries(extra: str) -> Iterator[None]:
    """Turn the import error of an optional library into an error that names the extra to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _LIBRARIES:
            raise
        raise ConfigError(f"this needs {error.name}, which is not installed", hint=install_command(extra)) from None


class _Group(click.Group):
    """Looks commands up in the table above."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The command names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command of that name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"workflow_composer.cli.var.{COMMANDS[cmd_name][0]}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=_Group, epilog=examples("var demo", "var demo --margin 0.02 --json"))
@common_options
def var() -> None:
    """Route the tokens of a mixture-of-experts model by table, cache or gate, within proven bounds.

    docs/var.md explains the guarantees and when it is worth using.
    """
