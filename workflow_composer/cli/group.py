"""The command group: names and short helps stand here; a command's module is imported when it runs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

import click

from workflow_composer.cli.options import debug_option, examples, json_option, strategy_option
from workflow_composer.cli.state import State
from workflow_composer.errors import PluginError

if TYPE_CHECKING:
    from workflow_composer.plugins.host import PluginHost

COMMANDS = {
    "generate": "Answer a prompt, or every row of a file.",
    "execute": "Run data sets through cascades and batch strategies, and compare them.",
    "route": "Show which models a request would go to, and why; sends nothing.",
    "serve": "Serve OpenAI's API over the strategy, with a dashboard.",
    "keys": "Make, list and revoke the service's API keys.",
    "status": "Show the strategy, what is reachable, and the routers.",
    "fleet": "Start, stop and monitor your own vLLM servers, on this machine or on SLURM.",
    "strategies": "List, show and check strategy profiles.",
    "contexts": "List, show and copy context templates.",
    "plugins": "List plugins and what they provide.",
    "metrics": "Summarize the metrics of past requests.",
    "record": "Record every tier's answers to data sets, graded and with log-probabilities.",
    "calibrate": "Find thresholds that keep the error of accepted answers below a limit.",
    "certificate": "Show a certificate, or verify it by recomputing it from its data.",
    "feedback": "Grade accepted answers that were drawn for an audit, and see what the grades say.",
    "var": "Route the tokens of a mixture-of-experts model by table, cache or gate, within proven bounds.",
}
"""Name -> short help. Each is the command of the same name in ``commands/NAME.py`` or ``NAME/group.py``."""

ENTRY_POINTS = "workflow_composer"
"""`hookspecs.ENTRY_POINT_GROUP`, without importing what that module needs."""

_FOUND = f"{__name__}.plugin_commands"


def _home(command: str) -> str:
    folder = f"{command}.group" if command in {"fleet", "var"} else f"commands.{command}"
    return f"workflow_composer.cli.{folder}"


class LazyGroup(click.Group):
    """Built-in commands by table; those of plugins when a name is asked for that the table does not have."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The built-in commands, then those of plugins. Raises `PluginError` where they clash."""
        return [*COMMANDS, *sorted(_plugin_commands(ctx))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name; only for an unknown name are plugins looked at."""
        if cmd_name in COMMANDS:
            command: click.Command = getattr(import_module(_home(cmd_name)), cmd_name)
            return command
        return _plugin_commands(ctx).get(cmd_name)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which one may be meant."""
        name = args[0]
        if not ctx.resilient_parsing and not name.startswith("-") and self.get_command(ctx, name) is None:
            from workflow_composer.errors import nearest

            known = self.list_commands(ctx)
            near = nearest(name, known) or f"there are: {', '.join(known)}"
            ctx.fail(f"no such command: {name!r}; {near}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))
        if plugins := _plugin_commands(ctx):
            with formatter.section("Commands of plugins"):
                formatter.write_dl([(name, plugins[name].get_short_help_str(80)) for name in sorted(plugins)])


def _plugin_commands(context: click.Context) -> Mapping[str, click.Command]:
    """The commands that installed plugins bring; looked up once for a command line."""
    known = context.find_root().meta
    if _FOUND not in known:
        from importlib import metadata

        # Usually there is no plugin, and the machinery for them need not be loaded.
        known[_FOUND] = commands_of(_discover()) if metadata.entry_points(group=ENTRY_POINTS) else {}
    found: Mapping[str, click.Command] = known[_FOUND]
    return found


def _discover() -> PluginHost:
    from workflow_composer.plugins.builtin import plugin_host

    return plugin_host()


def commands_of(host: PluginHost) -> dict[str, click.Command]:
    """The commands of a host's plugins. Raises `PluginError` where one has a built-in's name or is no click command."""
    found: dict[str, click.Command] = {}
    for name, provided in host.registry.commands.items():
        if name in COMMANDS:
            raise PluginError(
                f"plugin {provided.plugin!r} brings a command {name!r}, which is the name of a built-in command",
                hint=f"block it: WORKFLOW_COMPOSER_BLOCK_PLUGINS={provided.plugin}",
            )
        if not isinstance(provided.value, click.Command):
            raise PluginError(f"plugin {provided.plugin!r} registers {name!r} as a command, but it is no click command")
        found[name] = provided.value
    return found


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    epilog=examples(
        '-s development generate "What is 30 + 12?"',
        "generate --input questions.jsonl --output answers.jsonl",
        'route --task code_generation "Write a parser"',
        "--json status",
    ),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@strategy_option
@json_option
@debug_option
@click.version_option(package_name="workflow-composer", prog_name="workflow_composer")
@click.pass_context
def cli(context: click.Context) -> None:
    """Send each request to the cheapest model that is good enough, and never a byte where it must not go.

    Without a command: a short status, and what to do next.

    Exit codes: 0 done; 1 some rows failed, or a file could not be written; 2 wrong usage, profile or input; 3 no route;
    4 forbidden by the profile; 5 no model answered; 6 the budget of a run is used up; 70 a fault of this program;
    130 Ctrl-C; 143 SIGTERM.
    """
    context.ensure_object(State)
    if context.invoked_subcommand is None:
        from workflow_composer.cli.commands.status import show_short

        show_short(context.ensure_object(State))
