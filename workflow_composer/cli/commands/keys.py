"""``keys``: create, list and revoke the service's API keys."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workflow_composer.cli.options import common_options, examples
from workflow_composer.cli.output import dollars, print_json, print_table
from workflow_composer.cli.state import State
from workflow_composer.errors import ConfigError

if TYPE_CHECKING:
    from workflow_composer.server.auth.ledger import Ledger

FILE = click.option(
    "--file", "path", type=click.Path(path_type=Path), default=Path("keys.json"), show_default=True, help="The keys file."
)


def _number(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    if value is not None and math.isnan(value):
        raise click.BadParameter("nan is not a valid number")
    return value


@click.group(epilog=examples("keys new alice --budget 5 --per day", "keys list", "keys revoke 1f0c9a2b3d4e"))
@common_options
def keys() -> None:
    """Create, list and revoke the service's API keys.

    A key is shown once, when it is created; the file stores only its hash. A running service applies changes within one
    second.
    """


@keys.command(epilog=examples("keys new alice", "keys new batch --requests-per-minute 600 --model small --expires 30d"))
@click.argument("name")
@FILE
@click.option(
    "--budget",
    type=click.FloatRange(0, 1e12, min_open=True),
    callback=_number,
    help="Budget of the key per period, in dollars.",
)
@click.option(
    "--per", "period", type=click.Choice(["day", "month", "total"]), default="month", show_default=True, help="Period."
)
@click.option("--requests-per-minute", type=click.IntRange(1), help="Limit of requests per minute.")
@click.option("--tokens-per-minute", type=click.IntRange(1), help="Limit of prompt and completion tokens per minute.")
@click.option(
    "--most-calls", type=click.IntRange(1), help="Calls to models that one request may make. Default: that of `serve`."
)
@click.option("--strategy", "strategies", multiple=True, help="Allowed strategy; may be repeated. Default: all.")
@click.option(
    "--model", "models", multiple=True, help="Allowed value of `model`, including auto; may be repeated. Default: all."
)
@click.option(
    "--right",
    "rights",
    multiple=True,
    type=click.Choice(["feedback", "admin"]),
    help="feedback: may grade answers to its own requests; admin: may do all that the admin token allows. "
    "May be repeated. Default: none.",
)
@click.option("--expires", metavar="TIME", help="Lifetime of the key, such as 12h, 30d or 8w. Default: until revoked.")
@common_options
@click.pass_obj
def new(state: State, /, name: str, path: Path, expires: str | None, **limits: Any) -> None:
    """Create a key for NAME and print it once."""
    from workflow_composer.metrics.summary import parse_duration
    from workflow_composer.server.auth.keys import Key, change_keys

    if not name.strip() or not name.isprintable() or len(name) > 100:
        raise click.BadParameter("must be 1 to 100 printable characters", param_hint="NAME")
    until = None if expires is None else time.time() + parse_duration(expires).total_seconds()
    key, secret = Key.new(name, expires=until, **limits)
    change_keys(path, lambda known: known.update({key.id: key}))
    if state.json:
        print_json({"id": key.id, "name": name, "key": secret, "file": str(path)})
        return
    click.echo(secret)
    click.echo(f"added key {key.id} of {name} to {path}; the key is not shown again", err=True)


@keys.command("list", epilog=examples("keys list", "keys list --json"))
@FILE
@common_options
@click.pass_obj
def list_(state: State, path: Path) -> None:
    """List the keys, their limits and their usage."""
    from workflow_composer.server.auth.keys import read_keys

    ledger, now = _ledger(state), time.time()
    found: list[dict[str, Any]] = []
    for key in read_keys(path).values():
        used = None if ledger is None else ledger.account(key, now)
        found.append(
            {
                "id": key.id,
                "name": key.name,
                "state": "revoked" if key.revoked else "expired" if key.expires and key.expires <= now else "valid",
                "budget": key.budget,
                "period": key.period,
                "spent": 0.0 if used is None else used.spent if key.budget is not None else used.spent_in_all,
                "requests": 0 if used is None else used.requests,
                "tokens": 0 if used is None else used.tokens,
                "requests_per_minute": key.requests_per_minute,
                "tokens_per_minute": key.tokens_per_minute,
                "most_calls": key.most_calls,
                "strategies": list(key.strategies),
                "models": list(key.models),
                "rights": list(key.rights),
            }
        )
    if state.json:
        print_json(found)
        return
    rows = [(k["id"], k["name"], k["state"], k["requests"], k["tokens"], dollars(k["spent"]), _budget(k)) for k in found]
    print_table(("id", "name", "state", "requests", "tokens", "spent", "budget"), rows)


@keys.command(epilog=examples("keys revoke 1f0c9a2b3d4e"))
@click.argument("identity", metavar="ID")
@FILE
@common_options
@click.pass_obj
def revoke(state: State, identity: str, path: Path) -> None:
    """Revoke a key; a running service applies it within a second."""
    from dataclasses import replace

    from workflow_composer.server.auth.keys import Key, change_keys

    def change(known: dict[str, Key]) -> None:
        if identity not in known:
            raise ConfigError(f"{path} has no key {identity!r}", hint="run `keys list` for the ids")
        known[identity] = replace(known[identity], revoked=True)

    if not path.exists():
        raise ConfigError(f"keys file {path} does not exist", hint="set --file to the keys file")
    change_keys(path, change)
    if state.json:
        print_json({"id": identity, "revoked": True})
        return
    click.echo(f"key {identity} is revoked")


def _ledger(state: State) -> Ledger | None:
    """Open the usage ledger of a service; None if there is none. Raises `ConfigError`."""
    from workflow_composer.server.auth.ledger import Ledger
    from workflow_composer.server.settings import STATE_VARIABLE, state_directory

    place = state_directory(state.environ) / "ledger.bin"
    try:
        return Ledger(place) if place.is_file() else None
    except (OSError, ValueError) as error:
        hint = f"set ${STATE_VARIABLE} to the service's state directory"
        raise ConfigError(f"cannot read the ledger of keys: {error}", hint=hint) from None


def _budget(key: dict[str, Any]) -> str:
    return "" if key["budget"] is None else f"{dollars(key['budget'])} per {key['period']}"
