"""``plugins``: list plugins, what they provide, and their errors."""

from __future__ import annotations

import click

from workflow_composer.cli.options import common_options, examples
from workflow_composer.cli.output import print_json, print_table
from workflow_composer.cli.state import State


@click.command(epilog=examples("plugins", "plugins --json"))
@common_options
@click.pass_obj
def plugins(state: State) -> None:
    """List plugins and what they provide.

    A plugin that cannot be loaded is listed with the reason; everything else still works. To block plugins, list their names
    in WORKFLOW_COMPOSER_BLOCK_PLUGINS, separated by commas (*: all installed plugins).
    """
    from dataclasses import asdict

    from workflow_composer import __version__
    from workflow_composer.cli.group import commands_of
    from workflow_composer.plugins.builtin import plugin_host
    from workflow_composer.plugins.host import BUILTIN

    host = plugin_host()
    commands_of(host)  # raises if a command's name clashes with a built-in one
    if state.json:
        print_json({"plugins": [asdict(info) for info in host.plugins]})
        return
    rows = [
        (
            info.name,
            __version__ if info.name == BUILTIN else info.version,
            f"{info.status}: {info.detail}" if info.detail else info.status,
            ", ".join(info.provides),
        )
        for info in host.plugins
    ]
    print_table(("plugin", "version", "status", "provides"), rows)
