"""``workflow show``: what a run has done, and who made each value."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import click

from workflow_composer.cli.options import common_options, examples
from workflow_composer.cli.state import State


@click.command("show", epilog=examples("workflow show triaged.csv", "workflow show triaged.csv --row 18", "--json"))
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--row", type=click.IntRange(min=1), metavar="N", help="Only this row, counted from 1.")
@common_options
@click.pass_obj
def show_command(state: State, /, run: Path, row: int | None) -> int:
    """Show what a run has done, and for each value which step of which version of the file, which model and how many tries
    made it, at what cost, and whether it was asked for by the last run or kept from an earlier one.

    RUN is the output's path. No value and no prompt is printed: digests and counts instead.

    Exit codes: 0 done; 2 no such run.
    """
    from workflow_composer.cli.output import dollars, print_json, print_table
    from workflow_composer.workflows.keeping.earlier_run import EarlierRun

    kept = EarlierRun.of(run)
    rows = [one for one in kept.lineage() if row in (None, one["row"])]
    summary = kept.summary()
    if state.json:
        print_json({**summary, "rows": rows})
        return 0
    click.echo(f"{kept.journal}: {summary['answers']} answers, {summary['failures']} failures, {dollars(summary['spent'])}")
    for name, models in summary["models"].items():
        click.echo(f"{name} was answered by {' and '.join(f'{model} ({number})' for model, number in models.items())}")
    if row is not None:
        facts = [_facts(place, one) for found in rows for place, one in found["steps"].items()]
        print_table(["step", "state", "origin", "model", "served", "attempts", "cost", "seconds", "digest", "file"], facts)
        return 0
    told: dict[str, Counter[str]] = {}
    for found in rows:
        for place, one in found["steps"].items():
            if "state" in one:
                counts = told.setdefault(place, Counter())
                counts[f"{one['state']}, {one['origin']}" if one["state"] == "done" else one["state"]] += 1
    print_table(
        ["step", "rows"], [[name, "; ".join(f"{n} {what}" for what, n in counts.items())] for name, counts in told.items()]
    )
    return 0


def _facts(place: str, one: dict[str, Any]) -> list[Any]:
    names = ("state", "origin", "model", "served", "attempts", "cost", "seconds")
    return [place, *(one.get(name, "") for name in names), str(one.get("digest", ""))[:12], one.get("file", "")]
