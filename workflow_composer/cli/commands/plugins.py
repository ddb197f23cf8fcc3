"""``plugins``: list plugins and what they provide, and reload those of a running service."""

from __future__ import annotations

from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workflow_composer.cli.options import common_options, examples
from workflow_composer.cli.output import print_json, print_table
from workflow_composer.cli.state import State
from workflow_composer.errors import ConfigError

if TYPE_CHECKING:
    from workflow_composer.plugins.scaffold import Kind

_PATIENCE = 60.0
"""Seconds for a service to load plugins in all of its workers."""


@click.group(
    invoke_without_command=True,
    epilog=examples("plugins", "plugins new my-router", "plugins reload --url http://localhost:8080 --dry-run"),
)
@common_options
@click.pass_context
def plugins(context: click.Context) -> None:
    """List plugins and what they provide.

    A plugin that cannot be loaded is listed with the reason; everything else still works. To block plugins, list their names
    in WORKFLOW_COMPOSER_BLOCK_PLUGINS, separated by commas (*: all installed plugins).
    """
    if context.invoked_subcommand is None:
        _show(context.ensure_object(State))


def _show(state: State) -> None:
    from dataclasses import asdict

    from workflow_composer import __version__
    from workflow_composer.cli.group import commands_of
    from workflow_composer.plugins.host import BUILTIN, plugin_host

    host = plugin_host(environ=state.environ)
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


@plugins.command(
    epilog=examples("plugins new my-router --router", "plugins new my-engine --backend", "plugins new my-step --step")
)
@click.argument("name")
@click.option("--router", "kind", flag_value="router", default="router", help="A router (the default).")
@click.option("--backend", "kind", flag_value="backend", help="A backend, for a server of your own.")
@click.option("--policy", "kind", flag_value="policy", help="A batch policy.")
@click.option("--step", "kind", flag_value="step", help="A kind of workflow step.")
@click.option("--command", "kind", flag_value="command", help="A command.")
@common_options
@click.pass_obj
def new(state: State, name: str, kind: Kind) -> None:
    """Write a new plugin into the folder NAME: a package with a test that passes."""
    from workflow_composer.plugins.scaffold import write_files

    written = write_files(name, kind, Path())
    if state.json:
        print_json({"files": [str(path) for path in written]})
        return
    for path in written:
        click.echo(str(path))
    module = name.replace("-", "_")
    file = "" if kind == "command" else f"  or, without installing it: --plugin {name}/{module}"
    click.echo(f"\nNext:\n  (cd {name} && python -m pytest)\n  pip install --no-deps ./{name}{file}")


@plugins.command(
    "reload",
    epilog=examples("plugins reload --url http://localhost:8080 --dry-run", "plugins reload --url URL --rollback"),
)
@click.option("--url", required=True, metavar="URL", help="The running service.")
@click.option("--dry-run", is_flag=True, help="Load and check the plugins in every worker, but do not use them.")
@click.option("--rollback", is_flag=True, help="Return to the plugins before the last change, whatever is installed now.")
@click.option("--why", default="", metavar="TEXT", help="For the service's audit log.")
@common_options
@click.pass_obj
def reload_plugins(state: State, url: str, dry_run: bool, rollback: bool, why: str) -> None:
    """Load new and changed plugins into a running service: in all of its workers, or in none.

    Requests in progress finish with the plugins with which they began. The token is that of the service, from
    $WORKFLOW_COMPOSER_ADMIN_TOKEN.
    """
    from workflow_composer.server.settings import ADMIN_VARIABLE

    token = state.environ.get(ADMIN_VARIABLE, "").strip()
    if not token:
        raise ConfigError(f"${ADMIN_VARIABLE} is not set", hint="set it to the token with which the service was started")
    wanted = {"dry_run": dry_run, "why": why}
    found = _post(f"{url.rstrip('/')}/admin/plugins/{'rollback' if rollback else 'reload'}", token, wanted)
    if state.json:
        print_json(found)
        return
    for change in found["plugins"]:
        click.echo(f"{change['name']}: {change['from'] or 'not there'} -> {change['to'] or 'gone'}")
    if not found["plugins"]:
        click.echo("nothing has changed")
    elif dry_run:
        click.echo("a reload would succeed; nothing has changed yet")
    else:
        click.echo(f"version {found['version']['number']} is active in all workers")


def _post(url: str, token: str, body: dict[str, Any]) -> dict[str, Any]:
    """Post to the admin API. Raises `ConfigError` if the service refuses or cannot be reached."""
    import asyncio
    import json

    from workflow_composer.backends.http.client import Client
    from workflow_composer.backends.http.connection import Broken
    from workflow_composer.backends.http.egress import EgressPolicy, endpoint_of
    from workflow_composer.errors import EgressDenied

    async def post() -> tuple[int, bytes]:
        policy = EgressPolicy(allow_cloud=True, local=frozenset(), cloud=frozenset({endpoint_of(url)}))
        headers = {"Authorization": f"Bearer {token}"}
        async with asyncio.timeout(_PATIENCE), Client(policy) as client:
            answer = await client.ask(url, json.dumps(body).encode(), headers=headers)
            return answer.status, bytes(answer.body)

    try:
        status, text = asyncio.run(post())
    except EgressDenied as error:
        raise ConfigError(f"{url!r} is no URL of a service: {error.message}", hint="such as http://localhost:8080") from None
    except (OSError, Broken) as error:
        raise ConfigError(f"cannot reach the service at {url}: {error}", hint="is it running there?") from None
    if status != HTTPStatus.OK:
        raise ConfigError(f"the service refuses ({status}): {_reason(text)}")
    found: dict[str, Any] = json.loads(text)
    return found


def _reason(body: bytes) -> str:
    import json

    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace") or "no reason given"
