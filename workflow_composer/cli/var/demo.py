"""``var demo``: demonstrate the three paths on synthetic text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from workflow_composer.cli.options import common_options, examples
from workflow_composer.cli.output import percent, print_json, print_table
from workflow_composer.cli.var.group import libraries

if TYPE_CHECKING:
    from workflow_composer.moe.models.demo import Demonstration

BROKEN = 1


@click.command(epilog=examples("var demo", "var demo --margin 0.01 --seed 3", "var demo --tokens 100000 --json"))
@click.option(
    "--tokens", type=click.IntRange(2000), default=500_000, show_default=True, help="Length of the text in tokens."
)
@click.option(
    "--margin",
    type=click.FloatRange(0, 1),
    help="Learn the fast routes from this quality margin instead of using fixed thresholds.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Random seed; determines everything except the times.",
)
@common_options
@click.pass_context
def demo(context: click.Context, tokens: int, margin: float | None, seed: int) -> None:
    """Route synthetic text through table, cache and learned router; report the costs and check the constraints.

    Exit codes: 0 all constraints hold; 1 a constraint is violated; 2 wrong usage, or torch is not installed.
    """
    from workflow_composer.cli.state import State

    with libraries("moe"):
        from workflow_composer.moe.models.demo import Setup, run_poc_demonstration

        found = run_poc_demonstration(Setup(tokens=tokens, margin=margin, seed=seed))
    if context.ensure_object(State).json:
        print_json(found.to_dict())
    else:
        _show(found)
    context.exit(0 if all(found.constraints.values()) else BROKEN)


def _show(found: Demonstration) -> None:
    setup, stats, task = found.setup, found.stats, found.task
    chosen = "fixed thresholds" if setup.margin is None else f"learned from a margin of {setup.margin:g}"
    click.echo(
        f"configuration: {setup.num_experts} experts, {setup.top_k} per token; hidden size {setup.hidden_dim}; vocabulary "
        f"{setup.vocabulary}; {setup.tokens} tokens, half for learning, half routed; seed {setup.seed}"
    )
    click.echo(f"fast routes: {found.fast_routes} of single tokens, {chosen}, confidence >= {found.threshold:.3g}")
    click.echo()
    shares = [(name, int(stats[name]), percent(stats[f"{name}_share"])) for name in ("fast", "cached", "learned", "forced")]
    print_table(("path", "tokens", "share"), shares)
    click.echo(
        f"cache hit rate: {percent(stats['cache_hit_rate'])} outside the tables; {stats['memory_bytes']:.0f} bytes in total"
    )
    click.echo(
        f"quality: {percent(task.relative)} of the learned router's (accuracy {percent(task.accuracy)}, learned router "
        f"{percent(task.learned_accuracy)}); {percent(task.agreement)} of the gate's weight kept"
    )
    click.echo()
    _show_times(found)
    click.echo()
    for name, holds in found.constraints.items():
        click.echo(f"{'holds' if holds else 'FAILS'}: {name}")


def _show_times(found: Demonstration) -> None:
    times = found.times
    rows = [
        ("VAR", f"{times['var_batched']:.0f}", f"{times['var_by_token']:.0f}"),
        ("learned router alone", f"{times['learned_batched']:.0f}", f"{times['learned_by_token']:.0f}"),
    ]
    print_table(("ns per token, one core", "in batches", "token by token"), rows)
    click.echo(f"speed-up over the learned router in batches: {found.speedup:.2f}")
    if found.speedup < 1:
        click.echo(
            "VAR is slower than this gate, which is one small matrix product. It is useful if knowing the experts early "
            "helps (prefetching, planning) or if the gate is expensive (docs/var.md)."
        )
    else:
        click.echo("The gate is a tiny part of a model's computation, so the model itself is not faster (docs/var.md).")
