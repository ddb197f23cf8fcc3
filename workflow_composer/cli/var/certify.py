"""``var certify``: find a threshold with a guarantee from recorded routes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from workflow_composer.cli.options import common_options, examples
from workflow_composer.cli.output import percent, print_json, print_table
from workflow_composer.cli.state import State
from workflow_composer.cli.var.group import libraries

if TYPE_CHECKING:
    from workflow_composer.calibration.certify.route_certificate import Certified

NOTHING_CERTIFIED = 1
_SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(
    epilog=examples(
        "var certify --routes routes.jsonl --margin 0.05 -o var-certificate.json",
        "var certify --routes routes.jsonl --alpha 0.05 --delta 0.05 --tables tables",
    )
)
@click.option("--routes", type=_FILE, required=True, help="Recorded routes (JSONL); see docs/var-models.md.")
@click.option(
    "--margin",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.05,
    show_default=True,
    help="Largest share of the gate's weight that a prompt may lose; one that loses more is bad.",
)
@click.option("--alpha", type=_SHARE, default=0.1, show_default=True, help="Largest allowed share of bad prompts.")
@click.option("--delta", type=_SHARE, default=0.1, show_default=True, help="Probability that the guarantee fails.")
@click.option(
    "--share",
    type=click.FloatRange(0, 1),
    default=0.15,
    show_default=True,
    help="Largest share of tokens that call the gate.",
)
@click.option(
    "--context",
    type=click.IntRange(1, 8),
    default=2,
    show_default=True,
    help="Number of tokens that a table entry depends on.",
)
@click.option("--fit-share", type=_SHARE, default=0.5, show_default=True, help="Share of the prompts to learn tables from.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the random split of the prompts."
)
@click.option(
    "--tables", type=click.Path(path_type=Path, file_okay=False), help="Write the tables to this folder, one file per layer."
)
@click.option(
    "-o", "--output", type=_FILE, default=Path("var-certificate.json"), show_default=True, help="Certificate file to write."
)
@common_options
@click.pass_context
def certify(
    context_: click.Context,
    routes: Path,
    margin: float,
    alpha: float,
    delta: float,
    share: float,
    context: int,
    fit_share: float,
    seed: int,
    tables: Path | None,
    output: Path,
) -> None:
    """Learn tables from recorded routes, and find the confidence from which they may be used.

    The certificate guarantees: with probability 1 - delta, at most a share alpha of prompts loses more than the margin. The
    share of tokens that call the gate is always bounded. docs/var.md states the assumption and the proof.

    Exit codes: 0 certified; 1 nothing can be certified from these data; 2 wrong usage or input.
    """
    with libraries("calibration"):
        from workflow_composer.calibration.certify.route_certificate import certify_routes
        from workflow_composer.moe.models.replaying import Paths

        paths = Paths(learned_share=share, table_context=context)
        found = certify_routes(routes, margin=margin, alpha=alpha, delta=delta, paths=paths, fit_share=fit_share, seed=seed)
        found.certificate.save(output)
        if tables is not None:
            tables.mkdir(parents=True, exist_ok=True)
            for layer, table in found.tables.items():
                table.save(tables / f"layer-{layer}.npz")
    if context_.ensure_object(State).json:
        print_json({**found.certificate.to_dict(), "file": str(output)})
    else:
        _show(found)
        click.echo(f"certificate: {output}")
    context_.exit(0 if found.certificate.selection.threshold is not None else NOTHING_CERTIFIED)


def _show(found: Certified) -> None:
    certificate = found.certificate
    selection = certificate.selection
    click.echo(
        f"{certificate.prompts} prompts: {certificate.fitted} for learning, {selection.prompts} for testing; "
        f"layers {', '.join(map(str, certificate.layers))}"
    )
    print_table(
        ("min. confidence", "bad prompts", "p-value", "passed", "mean loss", "gate calls"),
        [
            (
                f"{test.threshold:g}",
                test.bad,
                f"{test.p_value:.2g}",
                "yes" if test.passed else "no",
                f"{test.mean_loss:.4f}",
                percent(test.asked),
            )
            for test in selection.tested
        ],
    )
    if selection.threshold is not None:
        at = found.replay.thresholds.index(selection.threshold)
        click.echo()
        print_table(
            ("layer", "loss", "fast", "cached", "learned", "forced"),
            [
                (layer, f"{row[0]:.4f}", *(percent(share) for share in row[1:]))
                for layer, row in zip(certificate.layers, found.replay.by_layer[:, at], strict=True)
            ],
            title=f"by layer, at confidence {selection.threshold:g}",
        )
        click.echo(f"upper bound of the share of bad prompts: {selection.bound:.4f}")
    click.echo(certificate.statement)
