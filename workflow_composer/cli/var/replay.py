"""``var replay``: how well tables predict recorded routes, and how much that helps a machine that fetches experts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workflow_composer.cli.options import common_options, examples
from workflow_composer.cli.output import percent, print_json, print_table
from workflow_composer.cli.state import State
from workflow_composer.cli.var.group import libraries
from workflow_composer.errors import InputError

if TYPE_CHECKING:
    from workflow_composer.moe.offload.prefetch import Machine, PrefetchOutcome
    from workflow_composer.moe.routing.routes import RecordedRoutes
    from workflow_composer.moe.routing.tables import RouteTables

_TIME = click.FloatRange(0)


@click.command(epilog=examples("var replay routes.jsonl", "var replay routes.jsonl --slots 4 --transfer 10 --layer-time 1"))
@click.argument("routes", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--context", "width", type=click.IntRange(1, 64), default=8, show_default=True, help="Longest context, in tokens."
)
@click.option(
    "--learn", type=click.FloatRange(0, 1), default=0.8, show_default=True, help="Share of the texts to learn tables from."
)
@click.option("--slots", type=click.IntRange(2), help="Experts per layer that fit into memory. [default: half of them]")
@click.option("--transfer", type=_TIME, default=1.0, show_default=True, help="Time to transfer one expert.")
@click.option(
    "--layer-time", type=_TIME, default=1.0, show_default=True, help="Compute time of a layer, half of it before its gate."
)
@common_options
@click.pass_context
def replay(
    context: click.Context, routes: Path, width: int, learn: float, slots: int | None, transfer: float, layer_time: float
) -> None:
    """Learn tables from the first recorded texts and compare them with the ROUTES of the others, layer by layer.

    Then simulate these others on a machine that keeps only some experts in memory. Times may be in any unit.
    Exit codes: 0 done; 2 wrong usage or input.
    """
    with libraries("calibration"):
        from workflow_composer.moe.offload.prefetch import Machine, overlap
        from workflow_composer.moe.routing.routes import read_routes

        learned, rest = read_routes(routes).split(learn)
        tables = _tables(learned, width, max(learned.expert_count, rest.expert_count))
        contexts = rest.contexts(width)
        guesses = {layer: table.predict(contexts) for layer, table in tables.items()}
        experts = max(learned.expert_count, rest.expert_count)
        machine = Machine(slots or max(2, experts // 2), transfer, layer_time / 2, layer_time / 2)
        layers = [
            {
                "layer": layer,
                "overlap": overlap(experts_, rest.experts[layer]),
                "expected": float(confidence.mean()),
                "rows": len(tables[layer]),
            }
            for layer, (experts_, _, confidence) in guesses.items()
        ]
        outcomes = _outcomes(learned, rest, machine, {layer: guess[0] for layer, guess in guesses.items()})
    found = {"tokens": len(rest), "learned": len(learned), "slots": machine.slots, "layers": layers}
    policies = {name: _numbers(outcome) for name, outcome in outcomes.items()}
    if context.ensure_object(State).json:
        print_json({**found, "policies": policies})
        return
    click.echo(f"{len(learned)} tokens for learning, {len(rest)} replayed")
    print_table(
        ("layer", "rows", "experts predicted", "expected"),
        [(str(r["layer"]), str(r["rows"]), percent(r["overlap"]), percent(r["expected"])) for r in layers],
    )
    click.echo(
        f"\n{machine.slots} of {experts} experts of each layer in memory, a transfer takes {transfer:g}, "
        f"a layer {layer_time:g}"
    )
    print_table(
        ("policy", "time per token", "hits", "transfers per token"),
        [
            (name, f"{row['time_per_token']:.2f}", percent(row["hit_rate"]), f"{row['transfers_per_token']:.2f}")
            for name, row in policies.items()
        ],
    )


def _tables(learned: RecordedRoutes, width: int, experts: int) -> dict[int, RouteTables]:
    from workflow_composer.moe.routing.tables import RouteTables

    return {
        layer: RouteTables.fit(
            learned.tokens,
            learned.experts[layer],
            learned.weights.get(layer),
            num_experts=experts,
            sequences=learned.sequences,
            context=width,
            min_count=2,
        )
        for layer in learned.layers
    }


def _outcomes(
    learned: RecordedRoutes, rest: RecordedRoutes, machine: Machine, guesses: dict[int, Any]
) -> dict[str, PrefetchOutcome]:
    from workflow_composer.moe.offload.expert_cache import Keep
    from workflow_composer.moe.offload.prefetch import ExpertForecast, most_used, simulate

    if set(learned.layers) != set(rest.layers):
        raise InputError("the recorded layers differ between the texts for learning and the others")
    pinned = most_used(learned, machine.slots - 1)
    return {
        "no memory": simulate(rest, machine, keep=Keep.NOTHING),
        "LRU": simulate(rest, machine),
        "LFU": simulate(rest, machine, keep=Keep.LFU),
        "frequency-pinned": simulate(rest, machine, keep=Keep.PINNED, pinned=pinned),
        "VAR": simulate(rest, machine, forecast=ExpertForecast(guesses)),
        "VAR, kept by LFU": simulate(rest, machine, keep=Keep.LFU, forecast=ExpertForecast(guesses)),
        "everything known": simulate(rest, machine, forecast=ExpertForecast(dict(rest.experts))),
    }


def _numbers(outcome: PrefetchOutcome) -> dict[str, float]:
    return {
        "time_per_token": outcome.time_per_token,
        "hit_rate": outcome.hit_rate,
        "transfers_per_token": outcome.transfers_per_token,
    }
