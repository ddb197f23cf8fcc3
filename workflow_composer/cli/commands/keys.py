"""``keys``: create, change, list and revoke the service's API keys, and show who used what."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workflow_composer.cli.options import common_options, examples
from workflow_composer.cli.output import dollars, print_json, print_table
from workflow_composer.cli.state import State
from workflow_composer.errors import ConfigError

if TYPE_CHECKING:
    from workflow_composer.server.auth.keys import Key
    from workflow_composer.server.auth.ledger import Ledger

FILE = click.option(
    "--file", "path", type=click.Path(path_type=Path), default=Path("keys.json"), show_default=True, help="The keys file."
)


_LIMITS = (
    click.option(
        "--budget",
        "budgets",
        multiple=True,
        metavar="DOLLARS[/PERIOD]",
        help="Budget of the key; may be repeated for several periods, such as 5/day and 50/month.",
    ),
    click.option(
        "--per",
        "period",
        type=click.Choice(["day", "month", "total"]),
        default="month",
        show_default=True,
        help="Period of a budget that names none.",
    ),
    click.option("--requests-per-minute", type=click.IntRange(1), help="Limit of requests per minute."),
    click.option("--tokens-per-minute", type=click.IntRange(1), help="Limit of prompt and completion tokens per minute."),
    click.option("--tokens-per-day", type=click.IntRange(1), help="Limit of prompt and completion tokens per day (UTC)."),
    click.option("--concurrent", type=click.IntRange(1), help="Requests that may be in progress at a time; others wait."),
    click.option(
        "--most-calls", type=click.IntRange(1), help="Calls to models that one request may make. Default: that of `serve`."
    ),
    click.option("--user", help="Label for reports: the person who uses the key."),
    click.option("--team", help="Label for reports: the team that pays for the key."),
    click.option("--strategy", "strategies", multiple=True, help="Allowed strategy; may be repeated. Default: all."),
    click.option(
        "--model",
        "models",
        multiple=True,
        help="Allowed value of `model`, including auto; may be repeated. Default: all.",
    ),
    click.option(
        "--right",
        "rights",
        multiple=True,
        type=click.Choice(["feedback", "admin"]),
        help="feedback: may grade answers to its own requests; admin: may do all that the admin token allows. "
        "May be repeated. Default: none.",
    ),
    click.option("--expires", metavar="TIME", help="Lifetime of the key, such as 12h, 30d or 8w. Default: until revoked."),
)


def _limited(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a key's limits."""
    for option in reversed(_LIMITS):
        command = option(command)
    return command


def _limits_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a key's record that the options name."""
    from workflow_composer.server.auth.people import budgets_of, name_of

    found = {name: value for name, value in given.items() if name not in {"budgets", "period", "expires"} and value}
    try:
        found |= budgets_of(list(given["budgets"]), given["period"])
        for label in ("user", "team"):
            if label in found:
                name_of(found[label], f"--{label}")
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if given["expires"] is not None:
        found["expires"] = _until(given["expires"])
    return found


def _until(text: str) -> float:
    from workflow_composer.metrics.summary import parse_duration

    return time.time() + parse_duration(text).total_seconds()


@click.group(epilog=examples("keys new alice --budget 5 --per day", "keys list", "keys revoke 1f0c9a2b3d4e"))
@common_options
def keys() -> None:
    """Create, change, list and revoke the service's API keys, and show who used what.

    A key is shown once, when it is created; the file stores only its hash. A running service applies changes within one
    second.
    """


@keys.command(
    epilog=examples(
        "keys new alice --budget 5/day --budget 50/month",
        "keys new batch --requests-per-minute 600 --model small --expires 30d",
        "keys new --from people.csv --team genomics > handed-out.csv",
    )
)
@click.argument("name", required=False)
@click.option(
    "--from",
    "people",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Create a key for each row of a CSV file with the columns name, user, team, budget, per, expires, "
    "tokens_per_day, ...; options stand for empty cells.",
)
@FILE
@_limited
@common_options
@click.pass_obj
def new(state: State, /, name: str | None, people: Path | None, path: Path, **given: Any) -> None:
    """Create a key for NAME and print it once, or a key for each person of a table."""
    from workflow_composer.server.auth.people import name_of

    if (name is None) == (people is None):
        raise click.UsageError("give either NAME or --from FILE")
    limits = _limits_of(given)
    if people is not None:
        _new_keys(state, people, path, limits)
        return
    assert name is not None
    try:
        name_of(name, "NAME")
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="NAME") from None
    from workflow_composer.server.auth.keys import Key, change_keys

    key, secret = Key.new(name, **limits)
    change_keys(path, lambda known: known.update({key.id: key}))
    if state.json:
        print_json({"id": key.id, "name": name, "key": secret, "file": str(path)})
        return
    click.echo(secret)
    click.echo(f"added key {key.id} of {name} to {path}; the key is not shown again", err=True)


def _new_keys(state: State, people: Path, path: Path, limits: Mapping[str, Any]) -> None:
    """Create all keys of a table or, if one is faulty or has a key already, none; print them once as a table."""
    from workflow_composer.errors import InputError
    from workflow_composer.server.auth.keys import Key, change_keys
    from workflow_composer.server.auth.people import read_people

    made: list[tuple[Key, str]] = []
    persons = read_people(people)
    for person in persons:
        merged = {**limits, **person.limits}
        if person.expires:
            merged["expires"] = _until(person.expires)
        made.append(Key.new(person.name, **merged))

    def add(known: dict[str, Key]) -> None:
        taken = {key.name for key in known.values() if not key.revoked}
        for person in persons:
            if person.name in taken:
                hint = "remove the row, or change the key with `keys edit`"
                raise InputError(f"{people}: line {person.line}: {person.name!r} has a key in {path} already", hint=hint)
        known.update({key.id: key for key, _ in made})

    change_keys(path, add)
    if state.json:
        print_json([{"id": key.id, "name": key.name, "key": secret} for key, secret in made])
        return
    columns = ("name", "user", "team", "id", "key")
    _print_csv(columns, ((key.name, key.user, key.team, key.id, secret) for key, secret in made))
    click.echo(f"added {len(made)} keys to {path}; they are not shown again", err=True)


_CLEARED: dict[str, dict[str, Any]] = {
    "budget": {"budget": None, "budgets": ()},
    "requests-per-minute": {"requests_per_minute": None},
    "tokens-per-minute": {"tokens_per_minute": None},
    "tokens-per-day": {"tokens_per_day": None},
    "concurrent": {"concurrent": None},
    "most-calls": {"most_calls": None},
    "user": {"user": ""},
    "team": {"team": ""},
    "strategy": {"strategies": ()},
    "model": {"models": ()},
    "right": {"rights": ()},
    "expires": {"expires": None},
}


@keys.command(
    epilog=examples(
        "keys edit 1f0c9a2b3d4e --budget 10/day --budget 100/month", "keys edit alice --no tokens-per-day --team genomics"
    )
)
@click.argument("identity", metavar="ID")
@click.option("--name", help="Another name for the key.")
@click.option(
    "--no", "cleared", multiple=True, type=click.Choice(list(_CLEARED)), help="Limit or label to remove; may be repeated."
)
@FILE
@_limited
@common_options
@click.pass_obj
def edit(state: State, /, identity: str, name: str | None, cleared: tuple[str, ...], path: Path, **given: Any) -> None:
    """Change the limits and labels of a key, by its ID or its name; the key itself stays the same.

    What is not named stays as it is. Budgets given replace all budgets of the key.
    """
    from dataclasses import replace

    from workflow_composer.server.auth.keys import change_keys, read_keys
    from workflow_composer.server.auth.people import name_of

    changes: dict[str, Any] = {}
    for limit in cleared:
        changes |= _CLEARED[limit]
    changes |= _limits_of(given)
    if name is not None:
        try:
            changes["name"] = name_of(name, "--name")
        except ValueError as error:
            raise click.UsageError(str(error)) from None
    if not changes:
        raise click.UsageError("nothing to change; see --help for the limits and labels")
    found = _one(read_keys(path), identity, path)

    def change(known: dict[str, Key]) -> None:
        known[found.id] = replace(_one(known, found.id, path), **changes)

    change_keys(path, change)
    if state.json:
        print_json({"id": found.id, "changed": sorted(changes)})
        return
    click.echo(f"key {found.id} is changed: {', '.join(sorted(changes))}")


def _one(known: Mapping[str, Key], named: str, path: Path) -> Key:
    """Return the key with this ID or, if only one has it, this name. Raises `ConfigError`."""
    if named in known:
        return known[named]
    found = [key for key in known.values() if key.name == named and not key.revoked]
    if len(found) == 1:
        return found[0]
    problem = f"{path} has {'no key' if not found else f'{len(found)} keys'} {named!r}"
    raise ConfigError(problem, hint="run `keys list` for the ids")


def _print_csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table as CSV; a text that a spreadsheet would run as a formula gets an apostrophe in front."""
    import csv
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([f"'{cell}" if isinstance(cell, str) and cell[:1] in _FORMULA else cell for cell in row])
    click.echo(text.getvalue(), nl=False)


_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_BY = {"day": ("day",), "key": ("key",), "user": ("key", "user"), "team": ("team",), "all": ("day", "key", "user")}


@keys.command(epilog=examples("keys usage --since 30d", "keys usage --by team --csv > usage.csv"))
@click.option("--since", metavar="TIME", default="30d", show_default=True, help="Days to report, such as 7d or 12w.")
@click.option(
    "--by", type=click.Choice(list(_BY)), default="key", show_default=True, help="What a row is for; all: day, key and user."
)
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@common_options
@click.pass_obj
def usage(state: State, since: str, by: str, as_csv: bool) -> None:
    """Show who used what: requests, tokens and dollars of keys, users and teams."""
    from workflow_composer.server.auth.history import FILE_NAME, day_of, joined, read_rows
    from workflow_composer.server.settings import state_directory

    place = state_directory(state.environ) / FILE_NAME
    begin = day_of(max(0.0, 2 * time.time() - _until(since)))
    names = _BY[by]
    rows = joined(read_rows(place, begin), lambda row: tuple(getattr(row, name) for name in names))
    labels = {"day": ("day",), "key": ("key", "name", "team"), "user": ("key", "name", "team", "user"), "team": ("team",)}
    columns = (*labels.get(by, ("day", "key", "name", "team", "user")), "requests", "prompt_tokens", "completion_tokens")
    found = [{**{name: getattr(row, name) for name in columns}, "cost": row.cost} for row in rows]
    if state.json:
        print_json(found)
    elif as_csv:
        _print_csv((*columns, "cost"), ((*(row[name] for name in columns), f"{row['cost']:.6f}") for row in found))
    else:
        table = [(*(row[name] for name in columns), dollars(row["cost"])) for row in found]
        print_table((*columns, "cost"), table, title=f"since {begin} (UTC)")


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
                "user": key.user,
                "team": key.team,
                "budget": key.budget,
                "period": key.period,
                "budgets": dict(key.limits),
                "spent_in": {} if used is None else {period: used.spent_in(period) for period, _ in key.limits},
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

    from workflow_composer.server.auth.keys import change_keys

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
    return ", ".join(f"{dollars(limit)} per {period}" for period, limit in key["budgets"].items())
