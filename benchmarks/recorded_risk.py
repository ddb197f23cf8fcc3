"""Certified cascades on recorded answers of real models: violations of the guarantee, coverage and savings.

    python benchmarks/recorded_risk.py --data DIR [--splits 500] [--delta 0.1] [--only gsm8k mmlu ...] [--seed 0] [--json]

``--data`` holds the recorded answers (`benchmarks/recorded_tiers.py` says which). Each split draws the rows anew: a fifth
(at most 1,500) to learn the scores and to lay out the grids, two fifths (at most 2,000) to certify, and the rest to test.
The cascade begins with the lowest tier that will pay, going by the learning part: accept a larger share of the requests
than a call of it costs of a call of the strongest.

*Violations* are shares of splits, to be compared with delta. *Test*: more than alpha of the accepted test answers is
wrong; a test part is small, so this happens by chance also where the true risk is below alpha. *All*: over all rows
outside the learning part. *Drawn*: as many rows as before are drawn from these with replacement, and certify; so requests
are independent draws from a population whose risk is known exactly. In the last two any broken promise counts: that of
one tier's accepted answers, or the bound of all answers that are returned. Where there are several prompts, each has its
part of the splits. *Naive* thresholds are, on the rows that certify, the loosest whose accepted answers are wrong at most
alpha of the time, from the same grids; a violation is more than alpha wrong among all that are accepted.

*Coverage*: requests whose answer some tier accepts, of all rows outside the learning part; *lower*: some tier below the
last. *Saved*: of the cost of asking the strongest tier only; the cascade asks it where no tier accepts, too. *Risk* and
*returned*: error of what was accepted, and of all that was returned. Columns are means over splits; a dash: nothing was
accepted, ever.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from recorded_tiers import COLLECTIONS, Floats, Recorded

from workflow_composer.calibration.certify.cascade_risk import NOTHING, GroupDesign, certify, climb, design
from workflow_composer.calibration.scores.fitting import (
    aurc,
    auroc,
    expected_calibration_error,
    fit_with_scores,
    probabilities,
)

ALPHAS = {"gsm8k": (0.1, 0.2, 0.3), "mmlu": (0.1, 0.2), "conformal-llm": (0.2, 0.3, 0.4), "mmlu-pro": (0.3, 0.4, 0.5)}
MOST_LEARNED, MOST = 1500, 2000
Bools = NDArray[np.bool_]
Thresholds = Sequence[float | None]
Found = dict[str, float]


def split(recorded: Recorded, alphas: Sequence[float], delta: float, seed: int) -> tuple[list[Found], list[Found]]:
    """One split: what was found for each alpha, and how good each tier's score is on rows that it was not learned from."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(recorded.correct))
    fit, rest = np.split(order, [min(MOST_LEARNED, len(order) // 5)])
    size = min(MOST, 2 * len(order) // 5)
    learned = [
        fit_with_scores({name: column[fit] for name, column in columns.items()}, right[fit], features=list(columns))
        for columns, right in zip(recorded.features, recorded.correct.T, strict=True)
    ]
    fit_scores = np.column_stack([held_out for _, held_out in learned])
    scores = np.column_stack(
        [
            probabilities(model, {name: column[rest] for name, column in columns.items()})
            for (model, _), columns in zip(learned, recorded.features, strict=True)
        ]
    )
    correct = recorded.correct[rest]
    drawn = generator.integers(0, len(rest), size)
    rows = []
    for alpha in alphas:
        plan = lay_out(fit_scores, recorded.correct[fit], recorded.costs, size, alpha, delta)
        first = plan.first
        mine = certify(scores[:size], correct[:size], plan, alpha=alpha, delta=delta)
        again = certify(scores[drawn], correct[drawn], plan, alpha=alpha, delta=delta)
        naive = loosest(scores[:size], correct[:size], plan, alpha)
        naive_again = loosest(scores[drawn], correct[drawn], plan, alpha)
        row = outcome(scores, correct, mine.thresholds, first, recorded.costs)
        row["test"] = broken(scores[size:], correct[size:], mine.thresholds, first, alpha)
        row["all"] = broken(scores, correct, mine.thresholds, first, alpha, returned=mine.returned_bound)
        row["drawn"] = broken(scores, correct, again.thresholds, first, alpha, returned=again.returned_bound)
        row["naive all"] = broken(scores, correct, naive, first, alpha)
        row["naive drawn"] = broken(scores, correct, naive_again, first, alpha)
        row["naive coverage"] = outcome(scores, correct, naive, first, recorded.costs)["coverage"]
        rows.append({"alpha": alpha, **row})
    return rows, [quality(score, right) for score, right in zip(scores.T, correct.T, strict=True)]


def lay_out(scores: Floats, correct: Bools, costs: Sequence[float], n: int, alpha: float, delta: float) -> GroupDesign:
    """The design of a cascade from the lowest tier that will probably pay: accept more than its share of the cost."""
    last = scores.shape[1] - 1
    for first in range(last + 1):
        plan = design(scores, correct, n=n, alpha=alpha, delta=delta, first=first)
        likely, grid = plan.tiers[0].likely, plan.tiers[0].grid
        accepted = 0.0 if likely in {None, NOTHING} else float((scores[:, first] >= grid.thresholds[likely]).mean())
        if accepted > costs[first] / costs[-1]:
            break
    return plan


def outcome(scores: Floats, correct: Bools, thresholds: Thresholds, first: int, costs: Sequence[float]) -> Found:
    """What a cascade does with these requests."""
    deciding, accepted = climb(scores, thresholds, None, first)
    wrong = ~correct[np.arange(len(correct)), deciding]
    spent = (np.cumsum(costs) - sum(costs[:first]))[deciding]
    return {
        "coverage": float(accepted.mean()),
        "lower": float((accepted & (deciding < len(costs) - 1)).mean()),
        "saved": float(1 - spent.mean() / costs[-1]),
        "risk": float(wrong[accepted].mean()) if accepted.any() else math.nan,
        "returned": float(wrong.mean()),
    }


def broken(
    scores: Floats, correct: Bools, thresholds: Thresholds, first: int, alpha: float, *, returned: float | None = None
) -> bool:
    """Whether more than alpha of the accepted is wrong; with ``returned``: or of any tier's, or more of all than that."""
    deciding, accepted = climb(scores, thresholds, None, first)
    wrong = ~correct[np.arange(len(correct)), deciding]
    parts = [accepted]
    if returned is not None:
        parts += [accepted & (deciding == tier) for tier in range(scores.shape[1])]
    over = any(wrong[part].mean() > alpha for part in parts if part.any())
    return over or (returned is not None and wrong.mean() > returned)


def loosest(scores: Floats, correct: Bools, plan: GroupDesign, alpha: float) -> Thresholds:
    """For each tier the loosest threshold of its grid whose accepted answers were wrong at most alpha of the time."""
    passed = np.ones(len(scores), bool)
    found: list[float | None] = []
    for index, tier in enumerate(plan.tiers, start=plan.first):
        score, right = scores[:, index], correct[:, index]
        keeps = [
            threshold
            for threshold in tier.grid.thresholds
            if (taken := passed & (score >= threshold)).any() and (~right[taken]).mean() <= alpha
        ]
        found.append(keeps[-1] if keeps else None)
        if keeps:
            passed &= ~(score >= keeps[-1])
    return found


def quality(score: Floats, right: Bools) -> Found:
    """How good a score is: whether it ranks, and whether it means what it says."""
    measures = {"AUROC": auroc(score, right), "AURC": aurc(score, right), "ECE": expected_calibration_error(score, right)}
    return {"accuracy": float(right.mean()), **{n: math.nan if v is None else v for n, v in measures.items()}}


def mean(rows: Iterable[Found]) -> Found:
    """Of each column; unknown values are left out."""
    rows = list(rows)
    columns = {name: np.array([row[name] for row in rows], float) for name in rows[0]}
    return {name: float(np.nanmean(c)) if not np.isnan(c).all() else math.nan for name, c in columns.items()}


def _print(title: str, rows: Sequence[dict[str, object]]) -> None:
    print(f"\n{title}\n")
    names = list(rows[0])
    print("|", " | ".join(names), "|\n|", " | ".join("---" for _ in names), "|")
    for row in rows:
        cells = [("-" if math.isnan(v) else f"{v:.3f}") if isinstance(v, float) else str(v) for v in row.values()]
        print("|", " | ".join(cells), "|")


def main() -> None:
    """Split, certify, compare with what was recorded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--splits", type=int, default=500)
    parser.add_argument("--delta", type=float, default=0.1)
    parser.add_argument("--only", nargs="+", choices=COLLECTIONS, default=list(COLLECTIONS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    started = time.monotonic()
    risks: list[dict[str, object]] = []
    scores: list[dict[str, object]] = []
    for collection in options.only:
        found: dict[str, list[tuple[Recorded, list[tuple[list[Found], list[Found]]]]]] = {}
        every = list(COLLECTIONS[collection](options.data))
        for recorded in every:
            # Prompts share the splits; each split is one of its own.
            first = options.seed + 1000 * len(found.get(recorded.name, ()))
            seeds = range(first, first + max(1, options.splits // [one.name for one in every].count(recorded.name)))
            done = [split(recorded, ALPHAS[collection], options.delta, seed) for seed in seeds]
            found.setdefault(recorded.name, []).append((recorded, done))
            print(f"{recorded.name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
        for name, parts in found.items():
            for at, alpha in enumerate(ALPHAS[collection]):
                risks.append(
                    {"data": name, **mean(rows[at] for _, done in parts for rows, _ in done), "alpha": f"{alpha:g}"}
                )
            for at, tier in enumerate(parts[0][0].tiers):
                scores.append({"data": name, "tier": tier, **mean(rows[at] for _, done in parts for _, rows in done)})
    if options.json:
        json.dump({"risks": risks, "scores": scores}, sys.stdout, indent=2)
        return
    print(f"{options.splits} splits, delta {options.delta:g}; Python {platform.python_version()}, numpy {np.__version__}")
    _print("Certified cascades: shares of splits with a violation, and means over splits", risks)
    _print("Scores, on rows that they were not learned from", scores)


if __name__ == "__main__":
    main()
