"""``metrics``: summarize past requests, or explain one of them."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from workflow_composer.cli.options import common_options, examples
from workflow_composer.cli.output import cost_text, percent, print_json, print_table, printable
from workflow_composer.cli.state import State

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import timedelta

    from workflow_composer.config.strategy import StrategyConfig
    from workflow_composer.fleet.held import ReservedCost
    from workflow_composer.metrics.selecting import RequestFilter
    from workflow_composer.metrics.summary import Percentiles, RequestSums, Summary
    from workflow_composer.server.auth.keys import Key

F = TypeVar("F", bound="Callable[..., Any]")
DEFAULT_KEYS = Path("keys.json")
"""Where `keys` keeps them by default."""


def file_option(function: F) -> F:
    """``--file``, the metrics file."""
    text = "Metrics file. Default: $WORKFLOW_COMPOSER_METRICS, else in the profile's `logs`, else in your state folder."
    return click.option("--file", "path", type=click.Path(path_type=Path), help=text)(function)


def keys_option(function: F) -> F:
    """``--keys``, the keys file."""
    text = "Keys file, to tell whose requests they are. Default: keys.json, if it is there."
    return click.option("--keys", "keys_file", type=click.Path(path_type=Path), help=text)(function)


@click.group(
    invoke_without_command=True,
    epilog=examples(
        "metrics --since 24h",
        "metrics --task code_generation --error any --since 24h",
        "metrics --key ann --html report.html",
        "metrics --file logs/routing_metrics.jsonl --json",
        "metrics explain last",
    ),
)
@click.option("--since", metavar="TIME", help="Only the last 30m, 24h, 7d, 2w, ... Default: everything.")
@click.option("--task", metavar="TASK", help="Only requests of this task.")
@click.option("--model", metavar="MODEL", help="Only requests that this model answered, or failed last.")
@click.option("--key", metavar="NAME|ID", help="Only requests made with this API key.")
@click.option(
    "--error",
    metavar="TYPE",
    help="Only failed requests with this error, such as CallTimeout; or by fault: caller, server, ours; or `any`.",
)
@keys_option
@file_option
@click.option(
    "--html",
    "page",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a dashboard page of the metrics to this file.",
)
@common_options
@click.pass_context
def metrics(
    context: click.Context,
    /,
    since: str | None,
    path: Path | None,
    page: Path | None,
    keys_file: Path | None,
    **wanted: str | None,
) -> None:
    """Summarize the metrics of past requests, or explain one of them.

    Shows the rates of fallback (a call failed and another model answered), escalation (an answer was not accepted and a
    stronger model was called) and errors; exact latency percentiles of answered requests by task; the orchestrator's
    overhead; tokens; cost by model and strategy, "unknown" where the profile has no price; and, apart from these costs, what
    own GPUs cost that were held for the period, busy or idle (by the fleet's record, or `gpu_hours_per_day` of the profile
    that -s names). Damaged lines are counted and skipped. --task, --model, --key and --error choose requests, for the page
    as well.
    """
    state = context.ensure_object(State)
    if context.invoked_subcommand is not None:
        if page is not None or since or any(wanted.values()):
            raise click.UsageError(
                f"`{context.invoked_subcommand}` takes no --since, --html, --task, --model, --key or --error"
            )
        return
    from workflow_composer.metrics.selecting import RequestFilter
    from workflow_composer.metrics.summary import parse_duration, summarize

    key, keys = wanted.pop("key"), None if keys_file is None else _keys(keys_file)
    period = None if since is None else parse_duration(since)
    owns = None if key is None else _owns(key, keys or _keys(DEFAULT_KEYS))
    only = RequestFilter(wanted["task"], wanted["model"], wanted["error"], owns)
    path = path or state.metrics_file()
    if page is not None:
        chosen = [f"{name} {value}" for name, value in (*wanted.items(), ("key", key)) if value]
        told = ", ".join(["all time" if since is None else f"the last {since}", *chosen])
        _write_page(page, path, period, only, told, keys, partial(_reserved, state, period))
        return
    found = summarize(path, since=period, only=only)
    used = max(found.by_strategy, key=lambda name: found.by_strategy[name].requests, default="")
    reserved = _reserved(state, period, None if found.first is None else found.first.timestamp(), used)
    if state.json:
        print_json({**found.to_dict(), "reservation": None if reserved is None else reserved.to_dict()})
    else:
        _print(found, reserved)


@metrics.command(
    epilog=examples("metrics explain last", "metrics explain req-6b1f0c5a", "metrics explain chatcmpl-req-6b1f0c5a --json")
)
@click.argument("request_id")
@keys_option
@file_option
@common_options
@click.pass_context
def explain(context: click.Context, request_id: str, path: Path | None, keys_file: Path | None) -> None:
    """Explain a past request: what was decided, what was left out and why, what was called, and what came of it.

    REQUEST_ID is in the header x-workflow-composer-request-id of every answer, in `response.request_id`, and in the log. Its
    beginning suffices, the `id` of an answer, such as chatcmpl-..., is understood, and `last` is the last request. Plan,
    attempts and their errors are kept if debugging was on: debug_routing in the profile, or BIOPIPELINES_DEBUG_ROUTING=1.
    The prompt is not shown.
    """
    from workflow_composer.metrics.selecting import explained, found_request

    state = context.ensure_object(State)
    before = {} if context.parent is None else context.parent.params  # `metrics --file FILE explain ID`
    path, keys_file = path or before.get("path"), keys_file or before.get("keys_file")
    found = found_request(path or state.metrics_file(), request_id)
    names = _owner_names(found, None if keys_file is None else _keys(keys_file))
    if state.json:
        shown = [{**one, "key": name} for one, name in zip(found, names, strict=True)]
        print_json({"requests": [{field: value for field, value in one.items() if field != "prompt"} for one in shown]})
        return
    for number, (metric, name) in enumerate(zip(found, names, strict=True)):
        if number:
            click.echo()
        rows = explained(metric)
        if name:
            rows.insert(1, ("key", name))
        width = max(len(title) for title, _ in rows) + 2
        for title, text in rows:
            click.echo(f"{title + ':':<{width}} {printable(text)}")


def _keys(path: Path) -> Sequence[Key]:
    from workflow_composer.server.auth.keys import read_keys

    return tuple(read_keys(path).values())


def _owns(name: str, keys: Sequence[Key]) -> Callable[[str], bool]:
    """Return whether a request is that of the keys with this name or ID. Raises `InputError` if there is none."""
    from workflow_composer.errors import InputError, nearest
    from workflow_composer.server.auth.callers import is_own

    own = [key for key in keys if name in (key.id, key.name)]
    if not own:
        known = sorted({key.name for key in keys})
        raise InputError(f"no key {name!r}", hint=nearest(name, known) or f"keys: {', '.join(known) or 'none'}")
    return lambda request_id: any(is_own(key, request_id) for key in own)


def _owner_names(found: Sequence[Mapping[str, Any]], keys: Sequence[Key] | None) -> list[str | None]:
    """Return the names of the keys with which requests were made; None if unknown."""
    if keys is None:
        if not DEFAULT_KEYS.is_file():
            return [None] * len(found)
        keys = _keys(DEFAULT_KEYS)
    from workflow_composer.server.auth.callers import is_own

    identities = [str(one.get("request_id", "")) for one in found]
    return [next((key.name for key in keys if is_own(key, identity)), None) for identity in identities]


def _reserved(state: State, period: timedelta | None, first: float | None, used: str) -> ReservedCost | None:
    """Return the reservation of the period, or from the first request to now.

    Prices, and hours that no fleet knows, are those of the profile that is named, else of that with the name ``used``.
    """
    now = time.time()
    since = first if period is None else now - period.total_seconds()
    if since is None:
        return None
    from workflow_composer.errors import ConfigError
    from workflow_composer.fleet.held import Reservations

    def load(name: str | None = None) -> StrategyConfig | None:
        try:
            return (replace(state, strategy=name) if name else state).profile()
        except ConfigError:
            if state.strategy:
                raise
            return None  # what has been measured can be read without its profile

    return Reservations(state.environ).of(load(), since, now, used=lambda: load(used) if used else None)


def _write_page(
    page: Path,
    path: Path,
    period: timedelta | None,
    only: RequestFilter,
    told: str,
    keys: Sequence[Key] | None,
    reserved_since: Callable[[float | None, str], ReservedCost | None],
) -> None:
    from workflow_composer.errors import InputError
    from workflow_composer.metrics import page as pages
    from workflow_composer.metrics.figures import figures, snapshot_of_file

    found = figures(snapshot_of_file(path, since=period, only=only))
    names = _owner_names(found["recent"], keys)
    found["recent"] = [{**one, "key": name} for one, name in zip(found["recent"], names, strict=True)]
    reserved = reserved_since(found["since"] or None, found["recent"][-1]["strategy"] if found["recent"] else "")
    held = None if reserved is None else reserved.to_dict()
    text = pages.page({"live": False, "title": path.name, "period": told, "figures": found, "reservation": held})
    try:
        page.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {page}: {error.strerror}", hint="choose another file") from error
    click.echo(f"wrote {page}: {found['total']['requests']} requests", err=True)


def _print(found: Summary, reserved: ReservedCost | None) -> None:
    total = found.total
    period = f", {found.first:%Y-%m-%d %H:%M} to {found.last:%Y-%m-%d %H:%M} UTC" if found.first and found.last else ""
    click.echo(f"requests:    {total.requests}{period}")
    click.echo(f"fallback:    {percent(found.rate(found.fallbacks))}")
    click.echo(f"escalation:  {percent(found.rate(found.escalations))}")
    click.echo(f"errors:      {percent(found.rate(total.errors))}{_kinds(found.errors)}")
    click.echo(f"tokens:      {total.prompt_tokens} prompt, {total.completion_tokens} completion")
    estimated = f"; {total.estimated} requests estimated" if total.estimated else ""
    click.echo(f"cost:        {cost_text(total.cost, total.unpriced, 'request')}{estimated}")
    if reserved is not None:
        for role in reserved.roles:
            many = f", {role.servers} servers" if role.servers > 1 else ""
            cost = cost_text(role.cost or 0.0, role.cost is None)
            click.echo(f"reserved:    {cost} for {role.name}, held {role.hours:.1f} h, idle included ({role.source}{many})")
    if found.damaged_lines:
        click.echo(f"damaged:     {found.damaged_lines} lines skipped")
    data = found.latency()
    overhead = found.overhead()
    if data or overhead:
        click.echo()
        rows = [_latency_row(task, values) for task, values in data.items()]
        if overhead:
            rows.append(_latency_row("(overhead)", overhead, places=2))
        print_table(("latency (ms) by task", "requests", "p50", "p95", "p99"), rows)
    for title, groups in (("model", found.by_model), ("strategy", found.by_strategy)):
        if groups:
            click.echo()
            _print_groups(title, groups)


def _kinds(errors: Mapping[str, int]) -> str:
    return f" ({', '.join(f'{kind} {count}' for kind, count in errors.items())})" if errors else ""


def _cost(tally: RequestSums) -> str:
    return cost_text(tally.cost, tally.unpriced, "request")


def _latency_row(name: str, values: Percentiles, *, places: int = 0) -> tuple[str, ...]:
    return name, str(values.count), *(f"{value:.{places}f}" for value in (values.p50, values.p95, values.p99))


def _print_groups(title: str, groups: Mapping[str, RequestSums]) -> None:
    ordered = sorted(groups.items(), key=lambda item: (-item[1].cost, -item[1].requests))
    rows = [
        (name, tally.requests, tally.errors, tally.prompt_tokens, tally.completion_tokens, _cost(tally))
        for name, tally in ordered
    ]
    print_table((title, "requests", "errors", "prompt tokens", "completion tokens", "cost"), rows)
