"""``certificate``: show a certificate, or verify it against its data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from workflow_composer.cli.options import common_options, examples
from workflow_composer.cli.output import print_differences, print_json, print_table
from workflow_composer.cli.state import State

if TYPE_CHECKING:
    from workflow_composer.calibration.certify.certificate import Certificate

_FILE = click.Path(path_type=Path)


@click.group(
    epilog=examples("certificate show certificate.json", "certificate verify certificate.json --replay answers.jsonl")
)
@common_options
def certificate() -> None:
    """Show a certificate, or verify it by recomputing it from its data."""


@certificate.command(epilog=examples("certificate show certificate.json", "certificate show certificate.json --json"))
@click.argument("file", type=_FILE)
@common_options
@click.pass_obj
def show(state: State, file: Path) -> None:
    """Show the models it applies to, the results of each tier, and the guarantee."""
    from workflow_composer.calibration.certify.certificate import Certificate
    from workflow_composer.cli.commands.calibrate import show as show_tables

    found = Certificate.load(file)
    if state.json:
        print_json({**found.to_dict(), "digest": found.digest})
        return
    _show_origin(found)
    click.echo()
    show_tables(found, {})


@certificate.command(
    epilog=examples(
        "certificate verify certificate.json --replay answers.jsonl",
        "certificate verify certificate.json --pairs scores.csv",
    )
)
@click.argument("file", type=_FILE)
@click.option("--pairs", type=_FILE, help="The scores and grades from which the certificate was made.")
@click.option("--replay", type=_FILE, help="The recorded answers from which the certificate was made.")
@common_options
@click.pass_context
def verify(context: click.Context, file: Path, pairs: Path | None, replay: Path | None) -> None:
    """Split, learn and test again from the data, and compare every number with the certificate.

    Exit codes: 0 no difference; 1 something differs; 2 wrong usage or input.
    """
    from workflow_composer.calibration.certify.certificate import Certificate
    from workflow_composer.cli.commands.calibrate import libraries, read_recording

    if (pairs is None) == (replay is None):
        raise click.UsageError("specify either --pairs or --replay")
    found = Certificate.load(file)
    with libraries():
        from workflow_composer.batch.datasets.columns import Columns
        from workflow_composer.batch.datasets.pairs_table import read_pairs
        from workflow_composer.calibration.certify.calibrate import verify as differences_of
        from workflow_composer.calibration.certify.pairs import from_pairs

        if pairs is not None:
            rows = read_pairs(pairs, Columns()).rows()
            table = from_pairs(pairs, [tier.name for tier in found.tiers], rows=rows)
        else:
            assert replay is not None  # checked above
            table = read_recording(replay, {tier.name: (tier.name, tier.identity.model) for tier in found.tiers})
        differences = differences_of(found, table)
    same = f"{file}: every number is reproduced from {table.source} ({len(table)} requests)"
    context.exit(print_differences(differences, same, json=context.ensure_object(State).json))


def _show_origin(found: Certificate) -> None:
    """Print the models, the data and the settings."""
    headers = ("tier", "model", "backend", "log-probabilities", "alternatives", "temperature", "score")
    rows = []
    for tier in found.tiers:
        identity = tier.identity
        score = "the answer's own" if tier.score is None else f"learned ({tier.score.calibrator.form})"
        known = (identity.model, identity.backend, identity.logprobs, identity.top_logprobs, identity.temperature)
        rows.append((tier.name, *("not stated" if value is None else value for value in known), score))
    print_table(headers, rows, title=f"certificate {found.digest}, made {found.created} by version {found.version}")
    data, request = found.data, found.request
    click.echo(
        f"data: {data.source} (SHA-256 {data.digest[:16]}...), {data.rows} requests: {data.fitted} for learning scores, "
        f"{data.calibrated} for testing thresholds; seed {data.seed}"
    )
    click.echo(f"method: {found.method.replace('_', '-')} testing, alpha {found.alpha:g}, delta {found.delta:g}")
    asked = {
        "system message": f"digest {request.system[:16]}..." if request.system else "none",
        "max_tokens": request.max_tokens,
        "top_p": request.top_p,
        "stop": request.stop,
    }
    click.echo("requests: " + ", ".join(f"{name} {'not set' if value is None else value}" for name, value in asked.items()))
