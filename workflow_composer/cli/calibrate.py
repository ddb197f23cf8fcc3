"""``calibrate``: find thresholds with a guarantee from graded answers."""

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
        """Repeat the option before each of its values, as click requires."""
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
    help="Scores and grades: JSONL, or CSV with a header; see docs/calibration.md.",
)
@click.option("--replay", type=click.Path(path_type=Path), help="Recorded, graded answers (JSONL); see docs/recordings.md.")
@click.option(
    "--alpha", type=_SHARE, default=0.1, show_default=True, help="Largest allowed share of wrong answers among the accepted."
)
@click.option(
    "--delta",
    type=_SHARE,
    default=0.1,
    show_default=True,
    help="Probability that the guarantee fails; confidence 1 - delta.",
)
@click.option(
    "--tiers", multiple=True, metavar="NAME...", help="Tiers, cheapest first. Default: the profile's, or the file's."
)
@click.option("--group-by", type=click.Choice(["group"]), help="Certify each group (task type) separately; delta is split.")
@click.option("--floor", "floors", multiple=True, metavar="TASK=TIER...", help="Tier at which a task's requests start.")
@click.option(
    "--escalation",
    type=click.Choice(["next", "predicted"]),
    default="next",
    show_default=True,
    help="Escalate one tier at a time, or directly to the last tier if that is predicted to be cheaper.",
)
@click.option(
    "--coverage", type=click.FloatRange(0, 1, min_open=True), metavar="SHARE", help="Required share of accepted requests."
)
@click.option(
    "--method",
    type=click.Choice(["fixed_sequence", "holm"]),
    default="fixed_sequence",
    show_default=True,
    help="Multiple-testing procedure for the thresholds.",
)
@click.option(
    "--fit-share",
    type=_SHARE,
    default=0.3,
    show_default=True,
    help="Share of the rows for learning scores; the rest tests thresholds.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the split.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="Sampling temperature of the answers.")
@click.option(
    "--top-logprobs",
    type=click.IntRange(min=1),
    metavar="K",
    help="Alternatives requested per token. Default: from the data.",
)
@context_option
@click.option("--system", metavar="TEXT", help="System message of the answers' requests; only its digest is stored.")
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="Token limit of the answers' requests.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default="certificate.json",
    show_default=True,
    help="Certificate file to write.",
)
@click.option(
    "--plots",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write plots of risk, reliability and scores to this folder.",
)
@profile_option("$BIOPIPELINES_STRATEGY, else none: then models and prices are not stated")
@common_options
@click.pass_context
def calibrate(context: click.Context, /, **options: Any) -> None:
    """Find thresholds that keep the error of accepted answers below a limit.

    Of the answers whose score reaches the tier's threshold, at most a share alpha is wrong, with confidence 1 - delta. One
    part of the graded answers is used to learn each tier's score (from the log-probabilities of its tokens, unless the file
    already has scores), the rest to choose thresholds. For every tier and group, the certificate states the threshold, how
    many answers it accepts and how many of them are wrong.

    With a profile (-s), the certificate also names the models, so that it is rejected after a change, and prices show the
    savings. Exit codes: 0 something was certified; 1 nothing was, or less than --coverage; 2 wrong usage or input.
    """
    from workflow_composer.cli.calibration import Calibration, Options

    if (options["pairs"] is None) == (options["replay"] is None):
        raise click.UsageError("specify either --pairs or --replay")
    context.exit(Calibration(context.ensure_object(State), Options(**options)).run())
