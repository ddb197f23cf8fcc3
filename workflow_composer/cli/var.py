"""``var``: verifiable adaptive routing for mixture-of-experts models. The commands are in ``var_*.py``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

import click

from workflow_composer.cli.options import common_options, examples
from workflow_composer.errors import ConfigError

COMMANDS = {
    "demo": ("var_demo", "Show on made-up text what the three paths do, and whether the constraints hold."),
    "certify": ("var_certify", "Find from which confidence on tables may be used, with a guarantee; write a certificate."),
    "verify": ("var_verify", "Make a certificate again from the recorded routes, and compare."),
    "record": ("var_record", "Write down where a model's gates send the tokens of a text."),
    "replay": ("var_replay", "Compare tables with recorded routes, and simulate fetching experts ahead of their use."),
}
"""Name -> module, short help. Imported when it runs."""


_LIBRARIES = ("numpy", "scipy", "torch", "transformers", "safetensors")


@contextmanager
def libraries(extra: str) -> Iterator[None]:
    """Where a library is not installed, say which extra brings it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _LIBRARIES:
            raise
        raise ConfigError(
            f"this needs {error.name}, which is not installed", hint=f"pip install 'workflow-composer[{extra}]'"
        ) from None


class _Group(click.Group):
    """Commands by table."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands, in the table's order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"workflow_composer.cli.{COMMANDS[cmd_name][0]}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=_Group, epilog=examples("var demo", "var demo --margin 0.02 --json"))
@common_options
def var() -> None:
    """Route a mixture-of-experts model's tokens by table, cache or gate, within proven bounds.

    docs/var.md says what is guaranteed, and where it pays.
    """
