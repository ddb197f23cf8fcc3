"""``calibrate``: thresholds with a guarantee, from answers that somebody has graded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from workflow_composer.cli.execute import spread
from workflow_composer.cli.options import common_options, context_option, examples, profile_option
from workflow_composer.cli.state import State

_SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)


class _WithTiers(click.Command):
    """``--tiers small medium``, or ``--tiers small --tiers medium``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat the option's name before each of its values, which is how click knows it."""
        return super().parse_args(ctx, spread(args, ("--tiers", "--floor")))


@click.command(
    cls=_WithTiers,
    epilog=examples(
        "calibrate --replay answers.jsonl --tiers small medium large --alpha 0.1 --delta 0.1 -o certificate.json",
        "calibrate --pairs scores.csv --alpha 0.05 --coverage 0.6",
        "-s development calibrate --replay answers.jsonl --group-by group --floor legal=large --plots plots",
    ),
)
@click.option(
    "--pairs",
    type=click.Path(path_type=Path),
    help="Scores and grades: JSONL, or CSV with a head line; see docs/calibration.md.",
)
@click.option("--replay", type=click.Path(path_type=Path), help="Recorded, graded answers (JSONL); see docs/recordings.md.")
@click.option("--alpha", type=_SHARE, default=0.1, show_default=True, help="Largest share of accepted answers to be wrong.")
@click.option("--delta", type=_SHARE, default=0.1, show_default=True, help="Chance that the data mislead; 1 - delta holds.")
@click.option("--tiers", multiple=True, metavar="NAME...", help="Tiers, cheap first. Default: the profile's, or the file's.")
@click.option("--group-by", type=click.Choice(["group"]), help="Certify each group (task type) by itself; delta is split.")
@click.option("--floor", "floors", multiple=True, metavar="TASK=TIER...", help="The tier at which a task's requests start.")
@click.option(
    "--escalation",
    type=click.Choice(["next", "predicted"]),
    default="next",
    show_default=True,
    help="Go up one tier at a time, or straight to the last where that is likely to be cheaper.",
)
@click.option("--coverage", type=click.FloatRange(0, 1, min_open=True), metavar="SHARE", help="Share that must be accepted.")
@click.option(
    "--method",
    type=click.Choice(["fixed_sequence", "holm"]),
    default="fixed_sequence",
    show_default=True,
    help="How several thresholds are tested at once.",
)
@click.option(
    "--fit-share",
    type=_SHARE,
    default=0.3,
    show_default=True,
    help="Share of the rows that scores are learned on, not tested.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Decides which rows these are.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="At which the answers were drawn.")
@click.option(
    "--top-logprobs", type=click.IntRange(min=1), metavar="K", help="Alternatives asked for. Default: by the data."
)
@context_option
@click.option("--system", metavar="TEXT", help="The system message of the answers' requests; its digest is kept.")
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="Most tokens that the answers could have.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default="certificate.json", show_default=True, help="The certificate."
)
@click.option("--plots", type=click.Path(path_type=Path), metavar="DIR", help="Draw risk, reliability and scores there.")
@profile_option("$BIOPIPELINES_STRATEGY, else none: models and prices are then not stated")
@common_options
@click.pass_context
def calibrate(context: click.Context, /, **options: Any) -> None:
    """Find thresholds that keep the error of accepted answers below a limit.

    Of the answers whose score reaches its tier's threshold, at most a share alpha is wrong, with confidence 1 - delta. A
    part of the graded answers teaches each tier a score (from the log-probabilities of its tokens, unless the file has
    scores already); the rest decides about thresholds. The certificate says, for every tier and group, which threshold was
    found, how many answers it accepts and how many of them are wrong.

    With a profile (-s) the certificate also names the models, so that it is refused where they have changed, and prices tell
    what would be saved. Exit codes: 0 something could be certified; 1 nothing could, or less than --coverage; 2 wrong usage
    or input.
    """
    from workflow_composer.cli.calibration import Calibration, Options

    if (options["pairs"] is None) == (options["replay"] is None):
        raise click.UsageError("name either --pairs or --replay")
    context.exit(Calibration(context.ensure_object(State), Options(**options)).run())
