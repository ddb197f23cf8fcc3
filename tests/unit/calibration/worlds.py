"""Made-up requests whose truth is known."""

from __future__ import annotations

import numpy as np

from workflow_composer.calibration.certify.pairs import CalibrationTable, TierColumn
from workflow_composer.calibration.scores.signal_table import SignalTable

TIERS = ("small", "medium", "large")


def signal_table(sure, generator):
    """Answers of a few tokens, the surer the more likely their tokens are."""
    answers = []
    for value in sure:
        length = int(generator.integers(3, 9))
        answers.append(((np.log(np.clip(value, 0.01, 0.999)) * generator.gamma(8.0, 1 / 8, length)).tolist(), None))
    return SignalTable.of_answers(answers)


def cascade(rows=900, *, seed=0, signals=True, groups=("*",), costs=True, tiers=TIERS, step=0.2):
    """Requests of growing difficulty to tiers of growing strength; each tier knows roughly how sure it may be.

    ``step``: by how much more difficulty the next tier masters.
    """
    generator = np.random.default_rng(seed)
    difficulty = generator.random(rows)
    columns, correct = [], []
    for at, name in enumerate(tiers):
        chance = 1 / (1 + np.exp(14 * (difficulty - 0.5 - step * at)))
        correct.append(generator.random(rows) < chance)
        sure = np.clip(chance + generator.normal(0, 0.05, rows), 0.0, 1.0)
        columns.append(TierColumn(name, signals=signal_table(sure, generator)) if signals else TierColumn(name, given=sure))
    prices = np.array([1.0, 4.0, 20.0])[: len(tiers)]
    return CalibrationTable(
        ids=tuple(f"request {at}" for at in range(rows)),
        groups=tuple(groups[at % len(groups)] for at in range(rows)),
        tiers=tuple(columns),
        correct=np.column_stack(correct),
        costs=np.tile(prices, (rows, 1)) * generator.uniform(0.8, 1.2, (rows, 1)) if costs else None,
        source="made.jsonl",
        digest="0" * 64,
    )


def shuffled(table, seed=1):
    """The same requests in another order."""
    order = np.random.default_rng(seed).permutation(len(table))
    return taken(table, order)


def taken(table, order):
    """Only these rows, in this order."""
    columns = []
    for tier in table.tiers:
        signals = tier.signals and SignalTable(
            {name: column[order] for name, column in tier.signals.columns.items()}, tier.signals.should_escalate[order]
        )
        columns.append(TierColumn(tier.name, signals, None if tier.given is None else tier.given[order], tier.top_logprobs))
    return CalibrationTable(
        ids=tuple(table.ids[at] for at in order),
        groups=tuple(table.groups[at] for at in order),
        tiers=tuple(columns),
        correct=table.correct[order],
        costs=None if table.costs is None else table.costs[order],
        source=table.source,
        digest=table.digest,
        notes=table.notes,
    )
