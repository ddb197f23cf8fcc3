"""Violations and coverage of certified thresholds and of other rules, in simulations with known truth.

    python benchmarks/selective_risk.py [--draws 2000] [--seed 0] [--part tier|cascade|starts] [--quick] [--all] [--json]

A world says how scores are distributed and how often an answer with that score is right. A draw is ``n`` labelled requests;
each rule chooses a threshold by them; the draw is a *violation* where the true share of wrong answers among the accepted
exceeds alpha. *Coverage* is the true share of requests accepted, as a mean over draws (0 where nothing is accepted).

========== ==============================================================================================================
oracle     the most that any threshold can accept at a true risk of alpha
fixed      `select` on `fixed_grid`
placed     `select` on `grid_from` the scores of 0.43 times as many other requests, at least 30: a fitting part of 30 %
Holm       as fixed, by Holm's procedure: Learn-then-Test as usually done
pointwise  naive: the loosest of 100 thresholds at which Clopper and Pearson's bound at delta is at most alpha
empirical  naive: the loosest of 100 thresholds at which the share of wrong answers seen is at most alpha
shortcut   naive: accept where the uncertainty is at most the ceil((1 - alpha)(n + 1))-th smallest one; looks at no label
SGR        binary search over 100 thresholds with bounds at delta / ceil(log2 100) (Geifman and El-Yaniv 2017)
CRC        conformal risk control of "accepted and wrong" (Angelopoulos and others 2022): another question, see the guide
========== ==============================================================================================================

The guarantee is about fixed, placed and Holm: violations at most delta, up to Monte Carlo error (for "placed" by groups of
draws that share a reference). Cascades have three tiers: violation means that *any*
tier's accepted answers, or all answers returned, exceed what was certified.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm
from selective_worlds import CASCADES, WORLDS, World, greedy

from workflow_composer.calibration.certify.cascade_risk import certify, design
from workflow_composer.calibration.certify.risk import Grid, fixed_grid, grid_from, most_liberal, p_value, rejected, select

SIZES = (20, 100, 200, 500, 2000)
ALPHAS = (0.02, 0.05, 0.10, 0.20)
DELTAS = (0.05, 0.10)
FINE = np.round(np.arange(99, -1, -1) * 0.01, 2)
REFERENCES = 50


# -------------------------------------------------------------------------------------------------------------- the rules


@dataclass(frozen=True)
class Outcomes:
    """True coverage and risk [draws] of what a rule chose; draws that share a reference stand next to each other."""

    coverage: np.ndarray
    risk: np.ndarray
    groups: int

    def summary(self, alpha: float) -> tuple[float, float, float]:
        """Share of violations, its standard error, mean coverage."""
        violated = self.risk > alpha + 1e-12
        shares = violated.reshape(self.groups, -1).mean(axis=1) if self.groups > 1 else violated.astype(float)
        return float(violated.mean()), float(shares.std() / math.sqrt(len(shares))), float(self.coverage.mean())


def counts(world: World, thresholds: np.ndarray, n: int, draws: int, rng: np.random.Generator):
    """Accepted and wrong [draws, thresholds] of ``n`` requests: multinomial between thresholds, then binomial."""
    coverage, risk = world.at(thresholds)
    share, wrong = np.diff(coverage, prepend=0.0), np.diff(coverage * risk, prepend=0.0)
    error = np.clip(np.divide(wrong, share, out=np.zeros_like(share), where=share > 0), 0, 1)
    fell = rng.multinomial(n, np.append(share, max(0.0, 1 - coverage[-1])), size=draws)[:, :-1]
    return fell.cumsum(axis=1), rng.binomial(fell, error).cumsum(axis=1)


def outcomes(world: World, thresholds: np.ndarray, position: np.ndarray) -> Outcomes:
    """The truth at the chosen positions; -1 accepts nothing."""
    coverage, risk = world.at(thresholds)
    return Outcomes(np.append(coverage, 0.0)[position], np.append(risk, 0.0)[position], 1)


def certified(world: World, grid: Grid, p: np.ndarray, delta: float, method: str = "fixed_sequence") -> Outcomes:
    """`select`, for all draws at once, by their p-values [draws, thresholds]."""
    return outcomes(world, np.array(grid.thresholds), most_liberal(rejected(p, grid.starts, delta, method)))


def placed(
    world: World, n: int, alpha: float, delta: float, draws: int, rng: np.random.Generator, **options: object
) -> Outcomes:
    """A grid from other requests' scores, new ones for each group of draws."""
    parts, each = [], max(1, draws // REFERENCES)
    for _ in range(REFERENCES):
        reference = rng.choice(world.scores, size=max(30, int(0.43 * n)))
        grid = grid_from(reference, n=n, alpha=alpha, level=delta, **options)
        accepted, wrong = counts(world, np.array(grid.thresholds), n, each, rng)
        parts.append(certified(world, grid, p_value(wrong, accepted, alpha), delta))
    return Outcomes(
        np.concatenate([part.coverage for part in parts]), np.concatenate([part.risk for part in parts]), REFERENCES
    )


def sgr(p: np.ndarray, delta: float) -> np.ndarray:
    """Geifman and El-Yaniv's binary search for the loosest position that passes; -1 where none was seen to."""
    size = p.shape[1]
    steps = math.ceil(math.log2(size))
    passes = p <= delta / steps
    low, high = np.full(len(p), -1), np.full(len(p), size)
    for _ in range(steps + 1):
        middle = (low + high) // 2
        ok = passes[np.arange(len(p)), np.clip(middle, 0, size - 1)] & (middle >= 0)
        open_ = high - low > 1
        low, high = np.where(open_ & ok, middle, low), np.where(open_ & ~ok, middle, high)
    return low


def shortcut(world: World, n: int, alpha: float, draws: int, rng: np.random.Generator) -> Outcomes:
    """The quantile without labels: the r-th largest of n scores lies at a Beta(r, n + 1 - r) share of the world."""
    rank = math.ceil((1 - alpha) * (n + 1))
    share = rng.beta(rank, n + 1 - rank, size=draws) if rank <= n else np.ones(draws)
    place = np.minimum((share * len(world.scores)).astype(int), len(world.scores) - 1)
    coverage, risk = world.at(world.scores[place])
    return Outcomes(coverage, risk, 1)


def compare(
    world: World, n: int, alpha: float, deltas: tuple[float, ...], draws: int, rng: np.random.Generator
) -> list[dict[str, Outcomes]]:
    """Every rule at every delta, on the same draws where the thresholds allow."""
    accepted, wrong = counts(world, FINE, n, draws, rng)
    # A bound at delta is at most alpha where the p-value is at most delta.
    p = p_value(wrong, accepted, alpha)
    grid = fixed_grid()
    coarse = p[:, [int(np.argmin(abs(FINE - threshold))) for threshold in grid.thresholds]]
    same = {
        "empirical": outcomes(world, FINE, most_liberal((wrong <= alpha * accepted + 1e-9) & (accepted > 0))),
        "CRC": outcomes(world, FINE, most_liberal((wrong + 1) / (n + 1) <= alpha)),
        "shortcut": shortcut(world, n, alpha, draws, rng),
    }
    return [
        same
        | {
            "fixed": certified(world, grid, coarse, delta),
            "placed": placed(world, n, alpha, delta, draws, rng),
            "Holm": certified(world, grid, coarse, delta, "holm"),
            "pointwise": outcomes(world, FINE, most_liberal(p <= delta)),
            "SGR": outcomes(world, FINE, sgr(p, delta)),
        }
        for delta in deltas
    ]


# ----------------------------------------------------------------------------------------------------------- the cascades


def climbing(name: str, n: int, alpha: float, delta: float, draws: int, rng: np.random.Generator) -> dict[str, object]:
    """`design` on a fitting part of 0.43 n requests and `certify` on n, over draws; "unweighted" ignores earlier choices."""
    world = CASCADES[name](rng, alpha)
    found = np.zeros((draws, 6))
    for draw in range(draws):
        plan = design(*world.draw(max(30, int(0.43 * n)), rng), n=n, alpha=alpha, delta=delta)
        scores, correct = world.draw(n, rng)
        guarantee = certify(scores, correct, plan, alpha=alpha, delta=delta)
        worst, coverage, returned = world.truth(guarantee.thresholds, plan.straight_up)
        thresholds = unweighted(scores, correct, [tier.grid for tier in plan.tiers], alpha, 0.9 * delta / len(plan.tiers))
        naive, more, _ = world.truth(thresholds, plan.straight_up)
        over = returned > guarantee.returned_bound + 1e-9
        found[draw] = worst > alpha + 1e-9 or over, coverage, guarantee.returned_bound, returned, naive > alpha + 1e-9, more
    mean = found.mean(axis=0)
    error = math.sqrt(mean[0] * (1 - mean[0]) / draws)
    names = ("violations", "coverage", "bound", "returned", "unweighted violations", "unweighted coverage")
    setting = {"world": name, "n": n, "alpha": alpha, "delta": delta, "oracle": greedy(world, alpha), "error": error}
    return setting | dict(zip(names, mean.tolist(), strict=True))


def unweighted(scores: np.ndarray, correct: np.ndarray, grids: list[Grid], alpha: float, level: float) -> tuple:
    """The naive cascade: each tier at its own share, as if earlier thresholds had been fixed beforehand."""
    rest, thresholds = np.ones(len(scores), bool), []
    for tier, grid in enumerate(grids):
        threshold = select(scores[rest, tier], correct[rest, tier], grid, alpha=alpha, delta=level).threshold
        thresholds.append(threshold)
        rest &= ~(scores[:, tier] >= (math.inf if threshold is None else threshold))
    return tuple(thresholds)


# ------------------------------------------------------------------------------------------------------------- the tables

RULES = ("fixed", "placed", "Holm", "pointwise", "empirical", "shortcut", "SGR", "CRC")
GUARANTEED = ("fixed", "placed", "Holm")


def settings(draws: int, rng: np.random.Generator, sizes=SIZES, alphas=ALPHAS, deltas=DELTAS) -> list[dict[str, object]]:
    """One row for each world and setting: the oracle's coverage, and (violations, error, coverage) of each rule."""
    rows = []
    for name, make in WORLDS.items():
        for alpha in alphas:
            world = make(alpha)
            for n in sizes:
                for delta, found in zip(deltas, compare(world, n, alpha, deltas, draws, rng), strict=True):
                    row = {"world": name, "n": n, "alpha": alpha, "delta": delta, "oracle": world.oracle(alpha)}
                    rows.append(row | {rule: found[rule].summary(alpha) for rule in RULES})
    return rows


def one_by_one(rows: list[dict], rules: tuple[str, ...] = RULES) -> str:
    """Violations / coverage of each rule, a line for each setting."""
    lines = [
        "| world | n | alpha | delta | oracle | " + " | ".join(rules) + " |",
        "|---|---|---|---|---" + "|---" * len(rules) + "|",
    ]
    for row in rows:
        cells = " | ".join(f"{row[rule][0]:.3f} / {row[rule][2]:.2f}" for rule in rules)
        start = f"| {row['world']} | {row['n']} | {row['alpha']:g} | {row['delta']:g} | {row['oracle']:.2f}"
        lines.append(f"{start} | {cells} |")
    return "\n".join(lines)


def worst(rows: list[dict]) -> str:
    """For each world and delta, the most violations over all n and alpha, by rule."""
    lines = ["| world | delta | " + " | ".join(RULES) + " |", "|---|---" + "|---" * len(RULES) + "|"]
    for name, delta in itertools.product(WORLDS, sorted({row["delta"] for row in rows})):
        chosen = [row for row in rows if (row["world"], row["delta"]) == (name, delta)]
        if chosen:
            most = " | ".join(f"{max(row[rule][0] for row in chosen):.3f}" for rule in RULES)
            lines.append(f"| {name} | {delta:g} | {most} |")
    return "\n".join(lines)


def verdict(rows: list[dict], draws: int) -> str:
    """Whether any setting violates more than chance allows; the limit is for all settings at once (Bonferroni)."""
    tests = [(row, rule, row[rule]) for row in rows for rule in GUARANTEED]
    high = norm.isf(0.01 / len(tests))
    beyond = [
        f"{row['world']} n={row['n']} alpha={row['alpha']:g} delta={row['delta']:g} {rule}: {share:.3f}"
        for row, rule, (share, error, _) in tests
        if share > row["delta"] + high * max(error, math.sqrt(row["delta"] * (1 - row["delta"]) / draws))
    ]
    over = sum(share > row["delta"] for row, _, (share, _, _) in tests)
    text = f"{len(tests)} settings with a guarantee: {over} above delta, {len(beyond)} beyond chance ({high:.1f} errors)"
    return "\n".join([text, *beyond])


def cascades(draws: int, rng: np.random.Generator) -> str:
    """The cascades' table."""
    lines = [
        "| world | n | alpha | violations | coverage | oracle | bound on all returned | their true risk | unweighted |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, n, alpha in itertools.product(CASCADES, (200, 1000), (0.10,)):
        row = climbing(name, n, alpha, 0.1, draws, rng)
        lines.append(
            f"| {name} | {n} | {alpha:g} | {row['violations']:.3f} ± {row['error']:.3f} | {row['coverage']:.2f} "
            f"| {row['oracle']:.2f} | {row['bound']:.3f} | {row['returned']:.3f} "
            f"| {row['unweighted violations']:.3f} / {row['unweighted coverage']:.2f} |"
        )
    return "\n".join(lines)


CHOICES = ((1.2,), (1.5,), (2,), (3,), (5,), (1.2, 3), (1.5, 3), (1.5, 5), (2, 5), (1.2, 2.5, 5), (1.5, 3, 6), (3, 6, 9))
CHOICES += ((1.3, 2.6, 5, 10), (1.5, 2, 3, 4, 6), (2, 4, 8, 16))
FIXED = ((3,), (5,), (3, 6), (2, 4, 6), (2, 5, 8), (3, 6, 9), (3, 8), (4, 9), (1, 3, 5, 7), (0, 4, 8, 12))


def choices(draws: int, rng: np.random.Generator) -> str:
    """Mean coverage by where starts are and how many thresholds, over worlds in which something can be accepted."""
    names = ("logistic", "confident liar", "steep", "ties", "all right")
    cases = list(itertools.product((100, 200, 500, 2000), ((0.02, 0.05), (0.05, 0.10), (0.10, 0.10), (0.20, 0.10))))
    lines = [
        "| starts | thresholds | mean coverage | " + " | ".join(names) + " |",
        "|---|---|---" + "|---" * len(names) + "|",
    ]

    def line(label: str, size: int, run: Callable[[World, int, float, float], Outcomes]) -> None:
        by_world = [
            np.mean([run(WORLDS[name](alpha), n, alpha, delta).coverage.mean() for n, (alpha, delta) in cases])
            for name in names
        ]
        cells = " | ".join(f"{value:.3f}" for value in by_world)
        lines.append(f"| {label} | {size} | {np.mean(by_world):.3f} | {cells} |")

    for size in (10, 15, 20, 30):
        line("placed as by default", size, lambda *a, size=size: placed(*a, draws, rng, size=size))
    for reach in (0.0, 0.2, 0.6):
        line(f"placed, reach {reach:g}", 20, lambda *a, reach=reach: placed(*a, draws, rng, reach=reach))
    for multiples in CHOICES:
        label = "placed at " + ", ".join(map(str, multiples))
        line(label, 20, lambda *a, multiples=multiples: placed(*a, draws, rng, multiples=multiples))
    for starts in FIXED:
        grid = Grid(fixed_grid().thresholds, starts)

        def run(world: World, n: int, alpha: float, delta: float, grid: Grid = grid) -> Outcomes:
            accepted, wrong = counts(world, np.array(grid.thresholds), n, draws, rng)
            return certified(world, grid, p_value(wrong, accepted, alpha), delta)

        line("fixed at " + ", ".join(f"{grid.thresholds[start]:g}" for start in starts), 20, run)
    return "\n".join(lines)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000, help="draws per setting, a multiple of 50")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="200 draws, n of 100 and 500 and alpha = delta = .10 only")
    parser.add_argument("--all", action="store_true", help="print every setting, not the worst of each world only")
    parser.add_argument(
        "--part",
        choices=("tier", "cascade", "starts"),
        default="tier",
        help="one tier's rules, three tiers, or choices of starts",
    )
    parser.add_argument("--json", action="store_true", help="print the rows of one tier as JSON instead")
    options = parser.parse_args()
    rng, began = np.random.default_rng(options.seed), time.perf_counter()
    draws = 200 if options.quick else options.draws
    if options.part != "tier":
        print(choices(draws, rng) if options.part == "starts" else cascades(draws, rng))
        return
    rows = settings(draws, rng, (100, 500), (0.1,), (0.1,)) if options.quick else settings(draws, rng)
    if options.json:
        print(json.dumps(rows))
        return
    usual = [row for row in rows if row["alpha"] == row["delta"] == 0.1 and row["n"] in {100, 500}]
    print(f"One tier, {draws:,} draws a setting. Violations / coverage.\n\n{one_by_one(usual)}\n")
    print(f"The most violations over all n and alpha.\n\n{worst(rows)}\n\n{verdict(rows, draws)}\n")
    if options.all:
        print(f"Every setting.\n\n{one_by_one(rows)}\n")
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
