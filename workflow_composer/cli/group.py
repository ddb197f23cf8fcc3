"""The command group: names and short help texts; a command's module is imported only when it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING

import click

from workflow_composer.cli.options import debug_option, examples, json_option, piped_prompt, strategy_option
from workflow_composer.cli.state import State
from workflow_composer.errors import PluginError

if TYPE_CHECKING:
    from workflow_composer.plugins.host import PluginHost

COMMANDS = {
    "init": "Look for models on this machine, write a profile for one of them, and ask it a question.",
    "generate": "Answer a prompt, or every row of a file.",
    "ask": "Ask a prompt for every row of a table, and write the table with the answers.",
    "workflow": "Run several steps as one over the rows of a table: models, programs, functions and people.",
    "execute": "Run data sets through cascades and batch policies, and compare them.",
    "regrade": "Read, compare and vote over the kept answers of a run again, without a call.",
    "merge": "Join the shards of a run (--shard) into one, in the order of the input.",
    "route": "Show which models a request would go to, and why; sends nothing.",
    "serve": "Serve OpenAI's API over the strategy, with a dashboard.",
    "keys": "Create, change, list and revoke the service's API keys, and show who used what.",
    "status": "Show the strategy, the reachable servers, and the routers.",
    "doctor": "Check a profile against reality: servers, models, keys, prices, this machine; each finding has its remedy.",
    "fleet": "Start, stop and monitor your own vLLM servers, on this machine or on SLURM.",
    "strategies": "List, show and validate strategy profiles.",
    "models": "List the cloud models that a profile may name, with prices, and the models of a profile.",
    "contexts": "List, show and copy context templates.",
    "plugins": "List plugins and what they provide.",
    "metrics": "Summarize the metrics of past requests, or explain one of them.",
    "record": "Record every tier's answers to data sets, graded and with log-probabilities.",
    "calibrate": "Find thresholds that keep the error of accepted answers below a limit.",
    "certificate": "Show a certificate, or verify it by recomputing it from its data.",
    "feedback": "Grade accepted answers that were sampled for an audit, and show the results.",
    "var": "Route the tokens of a mixture-of-experts model by table, cache or gate, within proven bounds.",
}
"""Name -> short help. Each is the command of the same name in ``commands/NAME.py`` or ``NAME/group.py``."""

ENTRY_POINTS = "workflow_composer"
"""`hookspecs.ENTRY_POINT_GROUP`, repeated to avoid the imports of that module."""

_FOUND = f"{__name__}.plugin_commands"


def _home(command: str) -> str:
    folder = f"{command}.group" if command in {"fleet", "var", "workflow"} else f"commands.{command}"
    return f"workflow_composer.cli.{folder}"


class LazyGroup(click.Group):
    """Looks up built-in commands in a table; loads plugins only for unknown names and for the help text."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of built-in commands, then of plugins' commands. Raises `PluginError` on a name clash."""
        return [*COMMANDS, *sorted(_plugin_commands(ctx))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of that name; plugins are loaded only for names that are not built in."""
        if cmd_name in COMMANDS:
            command: click.Command = getattr(import_module(_home(cmd_name)), cmd_name)
            return command
        return _plugin_commands(ctx).get(cmd_name)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command, or fail with the most similar names, or with what to type to ask a question."""
        name = args[0]
        if not ctx.resilient_parsing and not name.startswith("-") and self.get_command(ctx, name) is None:
            from workflow_composer.errors import nearest

            known = self.list_commands(ctx)
            near = "" if _is_question(args) else nearest(name, known)
            if not near:
                ctx.fail(f"no such command: {name!r}; to ask it, type: {_asking(ctx, args)}")
            ctx.fail(f"no such command: {name!r}; {near}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))
        if plugins := _plugin_commands(ctx):
            with formatter.section("Commands of plugins"):
                formatter.write_dl([(name, plugins[name].get_short_help_str(80)) for name in sorted(plugins)])


def _is_question(words: Sequence[str]) -> bool:
    """Whether what stands in the place of a command and its arguments reads as a question."""
    return " " in words[0].strip() or words[-1].endswith("?") or not words[0].isascii()


def _asking(context: click.Context, words: Sequence[str]) -> str:
    """Return the command line that asks these words, for a shell to read."""
    import shlex

    strategy = context.ensure_object(State).strategy
    profile = ["-s", shlex.quote(strategy)] if strategy else []
    return " ".join([context.command_path, *profile, "generate", shlex.quote(" ".join(words))])


def _plugin_commands(context: click.Context) -> Mapping[str, click.Command]:
    """Return the commands of installed plugins, looked up once per process."""
    known = context.find_root().meta
    if _FOUND not in known:
        from importlib import metadata

        # Usually no plugin is installed, and the plugin modules need not be imported.
        known[_FOUND] = commands_of(_discover()) if metadata.entry_points(group=ENTRY_POINTS) else {}
    found: Mapping[str, click.Command] = known[_FOUND]
    return found


def _discover() -> PluginHost:
    from workflow_composer.plugins.host import plugin_host

    return plugin_host()


def commands_of(host: PluginHost) -> dict[str, click.Command]:
    """Return the commands of a host's plugins. Raises `PluginError` for a built-in name or a value that is no command."""
    found: dict[str, click.Command] = {}
    for name, provided in host.registry.commands.items():
        if name in COMMANDS:
            raise PluginError(
                f"plugin {provided.plugin!r} registers a command {name!r}, but that is a built-in command",
                hint=f"block it: WORKFLOW_COMPOSER_BLOCK_PLUGINS={provided.plugin}",
            )
        if not isinstance(provided.value, click.Command):
            raise PluginError(f"plugin {provided.plugin!r} registers {name!r}, which is not a click command")
        found[name] = provided.value
    return found


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    epilog=examples(
        "-s development",
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
    """Send each request to the cheapest model that is good enough, and only to the servers that the profile allows.

    Without a command: on a terminal, --strategy NAME opens a prompt (/help lists what it can do; Ctrl-D ends), and without
    a strategy a short status is printed, with the next commands to try. Standard input that is no terminal is answered as
    one prompt: `workflow-composer -s NAME < question.txt`.

    Exit codes: 0 done; 1 some rows failed, or a file could not be written; 2 wrong usage, profile or input; 3 no route;
    4 forbidden by the profile; 5 no model answered; 6 the run budget is used up; 7 more than 5 % of a run's graded answers
    could not be read; 70 a bug in this program; 130 Ctrl-C; 143 SIGTERM.
    """
    state = context.ensure_object(State)
    if context.invoked_subcommand is None:
        _without_command(state)


def _without_command(state: State) -> None:
    import sys

    if sys.stdin is not None and not sys.stdin.closed and not sys.stdin.isatty():
        if (prompt := piped_prompt()) is not None:
            from workflow_composer.cli.answering import answer_prompt

            answer_prompt(state, prompt, {})
            return
    elif state.named and not state.json and sys.stdin is not None and sys.stdout.isatty():
        from workflow_composer.cli.chat import chat

        chat(state)
        return
    from workflow_composer.cli.commands.status import show_short

    show_short(state)
