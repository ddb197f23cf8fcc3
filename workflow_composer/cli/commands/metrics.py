"""``metrics``: summarize past requests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from workflow_composer.cli.options import common_options, examples
from workflow_composer.cli.output import cost_text, percent, print_json, print_table
from workflow_composer.cli.state import State

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta

    from workflow_composer.metrics.summary import Percentiles, RequestSums, Summary


@click.command(
    epilog=examples("metrics --since 24h", "metrics --file logs/routing_metrics.jsonl --json", "metrics --html report.html")
)
@click.option("--since", metavar="TIME", help="Only the last 30m, 24h, 7d, 2w, ... Default: everything.")
@click.option(
    "--file",
    "path",
    type=click.Path(path_type=Path),
    help="Metrics file. Default: $WORKFLOW_COMPOSER_METRICS, else in the profile's `logs`, else in your state folder.",
)
@click.option(
    "--html",
    "page",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a dashboard page of the metrics to this file.",
)
@common_options
@click.pass_obj
def metrics(state: State, since: str | None, path: Path | None, page: Path | None) -> None:
    """Summarize the metrics of past requests.

    Shows the rates of fallback (a call failed and another model answered), escalation (an answer was not accepted and a
    stronger model was called) and errors; exact latency percentiles of answered requests by task; the orchestrator's
    overhead; tokens; cost by model and strategy, "unknown" where the profile has no price. Damaged lines are counted and
    skipped.
    """
    from workflow_composer.metrics.summary import parse_duration, summarize

    period = None if since is None else parse_duration(since)
    path = path or state.metrics_file()
    if page is not None:
        _write_page(page, path, period, since)
        return
    found = summarize(path, since=period)
    if state.json:
        print_json(found.to_dict())
    else:
        _print(found)


def _write_page(page: Path, path: Path, period: timedelta | None, since: str | None) -> None:
    from workflow_composer.errors import InputError
    from workflow_composer.metrics import page as pages
    from workflow_composer.metrics.figures import figures, snapshot_of_file

    told = "all time" if since is None else f"the last {since}"
    found = figures(snapshot_of_file(path, since=period))
    text = pages.page({"live": False, "title": path.name, "period": told, "figures": found})
    try:
        page.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {page}: {error.strerror}", hint="choose another file") from error
    click.echo(f"wrote {page}: {found['total']['requests']} requests", err=True)


def _print(found: Summary) -> None:
    total = found.total
    period = f", {found.first:%Y-%m-%d %H:%M} to {found.last:%Y-%m-%d %H:%M} UTC" if found.first and found.last else ""
    click.echo(f"requests:    {total.requests}{period}")
    click.echo(f"fallback:    {percent(found.rate(found.fallbacks))}")
    click.echo(f"escalation:  {percent(found.rate(found.escalations))}")
    click.echo(f"errors:      {percent(found.rate(total.errors))}{_kinds(found.errors)}")
    click.echo(f"tokens:      {total.prompt_tokens} prompt, {total.completion_tokens} completion")
    estimated = f"; {total.estimated} requests estimated" if total.estimated else ""
    click.echo(f"cost:        {cost_text(total.cost, total.unpriced, 'request')}{estimated}")
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
