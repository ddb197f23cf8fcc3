"""``strategies``: list, show and validate strategy profiles."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from workflow_composer.cli.options import common_options, examples
from workflow_composer.cli.output import print_json, print_table
from workflow_composer.cli.state import State
from workflow_composer.errors import ConfigError


@click.group(
    invoke_without_command=True,
    epilog=examples("strategies list", "strategies show t4_hybrid", "strategies validate my_profile.yaml"),
)
@common_options
@click.pass_context
def strategies(context: click.Context) -> None:
    """List, show and validate strategy profiles."""
    if context.invoked_subcommand is None:
        context.invoke(list_)


@strategies.command("list", epilog=examples("strategies list", "strategies list --json"))
@common_options
@click.pass_obj
def list_(state: State) -> None:
    """List the available profiles of the working directory, the user, and the package."""
    from workflow_composer.config.strategy import profiles

    found = {name: _entry(path, state) for name, path in profiles().items()}
    if state.json:
        print_json(found)
        return
    rows = [
        (name, "" if "error" in e else "yes" if e["allow_cloud"] else "no", e.get("error") or e["description"], e["source"])
        for name, e in found.items()
    ]
    print_table(("strategy", "cloud", "description", "file"), rows)


def _entry(path: Path, state: State) -> dict[str, Any]:
    from workflow_composer.config.strategy import StrategyConfig

    try:
        config = StrategyConfig.load_found(path, environ=state.environ, report=lambda text: None)
    except ConfigError as error:
        first, *others = error.message.splitlines()
        return {"source": str(path), "error": f"invalid: {first}" + (f" (and {len(others)} more)" if others else "")}
    return {"source": str(path), "description": config.description, "allow_cloud": config.allow_cloud}


@strategies.command(epilog=examples("strategies show t4_hybrid", "strategies show my_profile.yaml --json"))
@click.argument("name", metavar="NAME|PATH")
@common_options
@click.pass_obj
def show(state: State, name: str) -> None:
    """Show a profile with all defaults filled in; secrets are not shown."""
    from workflow_composer.config.strategy import StrategyConfig

    config = StrategyConfig.load(name, environ=state.environ)
    if state.json:
        print_json(config.to_dict())
        return
    import yaml

    click.echo(f"# {config.source}")
    yaml.safe_dump(config.to_dict(), sys.stdout, sort_keys=False, allow_unicode=True, width=120)


@strategies.command(epilog=examples("strategies validate t4_hybrid", "strategies validate my_profile.yaml"))
@click.argument("name", metavar="NAME|PATH")
@common_options
@click.pass_obj
def validate(state: State, name: str) -> None:
    """Validate a profile; print every error with its file, line and key, and exit with 2 if there are any.

    Also checks that the routers and backends are installed. Sends nothing.
    """
    from workflow_composer.metrics.sink import NullSink

    state.strategy, state.told_where = name, True
    with state.orchestrator(NullSink()) as orchestrator:
        config = orchestrator.config
    models = tuple(config.backend_specs())
    if state.json:
        print_json({"valid": True, "strategy": config.profile_name, "source": config.source, "models": models})
        return
    click.echo(f"{config.source} is valid: strategy {config.profile_name!r}, models {', '.join(models) or 'none'}")
