"""Comparison of stopping rules for votes at equal accuracy, on simulated and on recorded votes.

    python benchmarks/stopping_rules.py [--data DIR] [--replay FILE] [--questions 300] [--seeds 5] [--json]

*Simulated*: each question has a distribution of answers of its own, drawn from a population of questions; answer 0 is right.
So the true mode is known. 40 samples at the most, as in the two papers. *Recorded*: ``--data`` is where the samples of
QwenLM/Qwen2.5-Math lie (100 problems of MATH, eight samples each); ``--replay`` is a recording (docs/recordings.md). There a
seed is an order of the samples, and a leader counts as wrong where it does not win the vote of all samples.

First table: every rule at its usual level. *Saved* is the limit over the mean number of samples. *Changed* are votes whose
winner is not that of all samples. *Certified* are votes that the rule itself ended for its leader (and not because they were
decided), *wrong* those of them whose leader is not the true mode; both are shares of all votes, with Wilson's 95 % interval.
*Samples* and *points* (of accuracy, against all samples) are medians over seeds, with the least and the greatest.

Second table: each rule at the cheapest of several levels that loses at most 0.1 percentage points of accuracy against all
samples (the loss that Adaptive-Consistency reports). The level is chosen on one half of the questions and seeds, and
everything in the table was measured on the other half. "Fixed" with a level is that number of samples for every question; a
rule of which every level loses more is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from recorded_votes import RULES, Recording, group, qwen_math, replay

from workflow_composer.answers import reader
from workflow_composer.execution.voting.confidence import leader
from workflow_composer.execution.voting.stopping import StoppingRule, stopping_rule

LIMIT = 40
LOSS = 0.001
USUAL = {"fixed": None, "decided": None, "beta": 0.95, "window": 4, "sprt": 0.05, "martingale": 0.05}
LEVELS: dict[str, list[float | None]] = {
    "fixed": [*range(1, 40, 2), 40],
    "decided": [None],
    "beta": [0.8, 0.9, 0.95, 0.975, 0.99, 0.995],
    "window": [2, 3, 4, 5, 6, 10],
    "sprt": [0.3, 0.2, 0.1, 0.05, 0.02, 0.001],
    "martingale": [0.9, 0.7, 0.5, 0.3, 0.1, 0.01],
}
PUBLISHED = """Published: Adaptive-Consistency (EMNLP 2023), the beta rule: up to 7.9 times fewer samples, mean loss of
accuracy below 0.1 %. ESC (ICLR 2024), the window rule: samples -33.8 % (MATH) to -84.2 % (Coin Flip), that is 1.5 to 6.3
times fewer."""


@dataclass(frozen=True)
class Question:
    """Votes in their order, which of them wins, which are right, whether that is known, and the true mode.

    All as groups; None for a winner or a mode without a vote.
    """

    votes: list[int]
    winner: int | None
    right: set[int]
    graded: bool
    mode: int | None


@dataclass
class Outcome:
    """What a rule did with one set of questions."""

    questions: int = 0
    samples: int = 0
    limit: int = 0
    correct: int = 0
    correct_by_all: int = 0
    graded: int = 0
    changed: int = 0
    certified: int = 0
    wrong: int = 0

    @property
    def mean(self) -> float:
        """Samples per question."""
        return self.samples / self.questions

    @property
    def saved(self) -> float:
        """How many times fewer samples."""
        return self.limit / self.samples

    @property
    def loss(self) -> float | None:
        """Accuracy of all samples less accuracy, as a share."""
        return (self.correct_by_all - self.correct) / self.graded if self.graded else None


# ------------------------------------------------------------------------------------------------------------- the votes


def _dirichlet(rng: random.Random, n: int, parameter: float) -> list[float]:
    parts = [rng.gammavariate(parameter, 1) for _ in range(n)]
    return [part / sum(parts) for part in parts]


def _population(a: float, b: float, wrong: int, parameter: float, unreadable: float = 0.0) -> Callable:
    """The right answer's share is Beta(a, b); the rest falls on so many wrong ones."""

    def draw(rng: random.Random) -> list[float]:
        share = rng.betavariate(a, b)
        readable = [share, *((1 - share) * part for part in _dirichlet(rng, wrong, parameter))]
        return [*((1 - unreadable) * part for part in readable), unreadable]

    return draw


WORLDS: dict[str, Callable[[random.Random], list[float]]] = {
    "strong model: right share Beta(9, 1)": _population(9, 1, 6, 0.5),
    "middling: Beta(2.5, 1.5)": _population(2.5, 1.5, 6, 0.5),
    "weak: Beta(1, 1.5)": _population(1, 1.5, 6, 0.5),
    "scattered: Beta(1.5, 6), 30 wrong answers": _population(1.5, 6, 30, 1.0),
    "two close rivals: the right one's share 1/2 to 2/3": lambda rng: [share := rng.uniform(1 / 2, 2 / 3), 1 - share, 0.0],
    "middling, 15 % unreadable": _population(2.5, 1.5, 6, 0.5, 0.15),
}


def numbered(answers: Iterable[int]) -> tuple[list[int], dict[int, int]]:
    """Groups numbered by first appearance, and which answer has which number."""
    numbers: dict[int, int] = {}
    return [-1 if answer < 0 else numbers.setdefault(answer, len(numbers)) for answer in answers], numbers


def simulated(world: str, questions: int, seed: int) -> list[Question]:
    """So many questions of a population, each with 40 votes."""
    rng = random.Random(f"{world} {seed}")
    found = []
    for _ in range(questions):
        shares = WORLDS[world](rng)
        names = [*range(len(shares) - 1), -1]
        votes, numbers = numbered(rng.choices(names, shares, k=LIMIT))
        mode = max(names[:-1], key=lambda name, shares=shares: shares[name])
        found.append(Question(votes, leader(votes), {numbers.get(0, -2)}, True, numbers.get(mode)))
    return found


async def _groups(recordings: list[Recording]) -> list[list[int]]:
    return [await group(recording.texts, reader()) for recording in recordings]


def recorded(recordings: list[Recording], groups: list[list[int]], seed: int) -> list[Question]:
    """The same votes in another order; order 0 is the recorded one."""
    rng = random.Random(seed)
    found = []
    for recording, group_of in zip(recordings, groups, strict=True):
        order = list(range(len(group_of)))
        if seed:
            rng.shuffle(order)
        votes, numbers = numbered(group_of[i] for i in order)
        right = {numbers[group_of[i]] for i in order if recording.correct[i] and group_of[i] >= 0}
        graded = all(correct is not None for correct in recording.correct)
        found.append(Question(votes, leader(votes), right, graded, leader(votes)))
    return found


# ------------------------------------------------------------------------------------------------------------- the rules


def play(questions: list[Question], name: str, level: float | None) -> Outcome:
    """Let a rule look at the votes one by one."""
    rule: StoppingRule | None = None if name == "fixed" else stopping_rule(name, level)
    outcome = Outcome()
    for question in questions:
        limit = len(question.votes)
        drawn = min(limit, int(level)) if rule is None and level is not None else limit
        certified = False
        if rule is not None:
            drawn = next(n for n in range(1, limit + 1) if rule.stop(question.votes[:n], limit))
            certified = rule.certifies(question.votes[:drawn])
        won, would_win = leader(question.votes[:drawn]), question.winner
        outcome.questions += 1
        outcome.samples += drawn
        outcome.limit += limit
        outcome.changed += won != would_win
        outcome.certified += certified
        outcome.wrong += certified and won != question.mode
        if question.graded:
            outcome.graded += 1
            outcome.correct += won in question.right
            outcome.correct_by_all += would_win in question.right
    return outcome


def pooled(outcomes: list[Outcome]) -> Outcome:
    """All of them together."""
    total = Outcome()
    for outcome in outcomes:
        for name, value in vars(outcome).items():
            setattr(total, name, getattr(total, name) + value)
    return total


def wilson(hits: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval for a share."""
    share, square = hits / of, z * z / of
    middle, half = share + square / 2, z * math.sqrt(share * (1 - share) / of + square / of / 4)
    return max(0.0, (middle - half) / (1 + square)), min(1.0, (middle + half) / (1 + square))


def at_usual_levels(sets: list[list[Question]]) -> list[dict]:
    """One row for each rule."""
    rows = []
    for name in RULES:
        outcomes = [play(questions, name, USUAL[name]) for questions in sets]
        rows.append(_row(name, USUAL[name], outcomes))
    return rows


def at_equal_accuracy(sets: list[list[Question]]) -> list[dict]:
    """One row for each rule, at the level that one half chose, measured on the other half."""
    choosing = [questions[::2] for questions in sets]
    measured = [questions[1::2] for questions in sets]
    rows = []
    for name in RULES:
        found = [(level, pooled([play(questions, name, level) for questions in choosing])) for level in LEVELS[name]]
        equal = [(level, outcome) for level, outcome in found if outcome.loss is not None and outcome.loss <= LOSS]
        if equal:
            level = min(equal, key=lambda pair: pair[1].samples)[0]
            rows.append(_row(name, level, [play(questions, name, level) for questions in measured]))
    return rows


def _row(name: str, level: float | None, outcomes: list[Outcome]) -> dict:
    total = pooled(outcomes)
    losses = [0.0 - 100 * outcome.loss for outcome in outcomes if outcome.loss is not None]
    return {
        "rule": name,
        "level": level,
        "samples": [outcome.mean for outcome in outcomes],
        "saved": total.saved,
        "accuracy": total.correct / total.graded if total.graded else None,
        "difference": losses,
        "changed": total.changed / total.questions,
        "certified": total.certified / total.questions,
        "wrong": total.wrong / total.questions,
        "wrong_interval": wilson(total.wrong, total.questions),
    }


# ----------------------------------------------------------------------------------------------------------------- print


def _spread(values: list[float], form: str) -> str:
    if not values:
        return "?"
    middle, low, high = (format(value, form) for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low}..{high})"


def table(title: str, rows: list[dict]) -> None:
    """Print one table."""
    print(f"\n{title}")
    print(f"{'rule':10} {'level':>6} {'samples (min..max)':>20} {'saved':>6} {'accuracy':>8}", end=" ")
    print(f"{'points (min..max)':>22} {'changed':>8} {'certified':>9}  wrong [95 %]")
    for row in rows:
        low, high = row["wrong_interval"]
        level = "" if row["level"] is None else f"{row['level']:g}"
        accuracy = "?" if row["accuracy"] is None else f"{row['accuracy']:.4f}"
        wrong = f"{row['wrong']:.2%} [{low:.2%}, {high:.2%}]" if row["certified"] else "-"
        print(
            f"{row['rule']:10} {level:>6} {_spread(row['samples'], '.2f'):>20} {row['saved']:5.2f}x {accuracy:>8}"
            f" {_spread(row['difference'], '+.2f'):>22} {row['changed']:8.2%} {row['certified']:9.1%}  {wrong}"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--replay", type=Path, action="append", default=[])
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    started = time.perf_counter()
    sets = {f"simulated, {w}": [simulated(w, options.questions, seed) for seed in range(options.seeds)] for w in WORLDS}
    recordings = qwen_math(options.data) if options.data else {}
    for path in options.replay:
        recordings |= replay(path)
    for name, found in recordings.items():
        groups = asyncio.run(_groups(found))
        sets[f"recorded, {name}"] = [recorded(found, groups, seed) for seed in range(options.seeds)]
    results = {}
    for name, seeds in sets.items():
        results[name] = {"usual": at_usual_levels(seeds), "equal": at_equal_accuracy(seeds)}
    if options.json:
        json.dump({"questions": options.questions, "seeds": options.seeds, "results": results}, sys.stdout)
        return
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}", end="; ")
    print(f"workflow-composer {version('workflow-composer')}; seeds 0..{options.seeds - 1}", end="; ")
    print(f"{time.perf_counter() - started:.0f} s\n{PUBLISHED}")
    for name, found in results.items():
        size = f"{len(sets[name][0])} questions, {len(sets[name][0][0].votes)} samples"
        table(f"{name} ({size}), usual levels", found["usual"])
        table(f"{name}, at equal accuracy (within {100 * LOSS:g} points of all samples)", found["equal"])


if __name__ == "__main__":
    main()
