"""Execution feedback without a call: the cascade that a cheap and a strong model's kept answers would have made."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from workflow_composer.calibration.scores.signals import DEFAULT_RULES, FeedbackRules, FeedbackSignal
from workflow_composer.calibration.scores.token_forms import ABSENT, field_of, is_list
from workflow_composer.errors import InputError


@dataclass(frozen=True, slots=True)
class KeptStep:
    """What a cascade of two tiers would have done with one question. ``cost`` in dollars; None: unknown.

    ``answer`` is the one that it would have returned: the cheap one, or if ``escalated`` the strong one. ``correct`` is that
    answer's label; None without one.
    """

    answer: Any
    escalated: bool
    signal: FeedbackSignal
    cost: float | None
    correct: bool | None

    @property
    def reason(self) -> str:
        """Why the strong model would have been asked; empty if it would not."""
        return self.signal.escalation_reason


@dataclass(frozen=True, slots=True)
class KeptCascade:
    """A cascade over kept answers: a `KeptStep` per question, in their order. Costs in dollars; None: not all are known."""

    steps: tuple[KeptStep, ...]
    always_strong: float | None
    """What the strong model alone would have cost."""

    def __iter__(self) -> Iterator[KeptStep]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, number: int) -> KeptStep:
        return self.steps[number]

    @property
    def escalated(self) -> int:
        """The number of questions that the strong model would have been asked."""
        return sum(step.escalated for step in self.steps)

    @property
    def escalation_rate(self) -> float:
        """Their share."""
        return self.escalated / len(self.steps)

    @property
    def cost(self) -> float | None:
        """What the cascade would have cost: every cheap answer, and the strong ones that it would have asked for."""
        return _sum([step.cost for step in self.steps])

    @property
    def saved(self) -> float | None:
        """Dollars less than the strong model alone; negative if the cascade would have cost more."""
        return None if self.cost is None or self.always_strong is None else self.always_strong - self.cost

    @property
    def accuracy(self) -> float | None:
        """The share of right answers among those returned; None unless all have a label."""
        labels = [step.correct for step in self.steps]
        return None if None in labels else sum(map(bool, labels)) / len(labels)

    def __repr__(self) -> str:
        told = [f"{self.escalated} of {len(self.steps)} escalated"]
        told += [f"cost ${self.cost:.3g}"] * (self.cost is not None) + [f"accuracy {self.accuracy or 0:.3f}"] * (
            self.accuracy is not None
        )
        return f"KeptCascade({', '.join(told)})"


def cascade_of(cheap: Any, strong: Any, rules: FeedbackRules = DEFAULT_RULES) -> KeptCascade:
    """Return what a cascade would have done with the kept answers of a cheap and a strong model; calls nothing.

    ``cheap`` and ``strong``: one answer each, or as many, to the same questions in the same order. A cheap answer has
    log-probabilities in any form of `read_logprobs`; without them it is doubtful. Of a strong answer nothing is required.
    ``cost`` (dollars) and ``correct`` are read from answers that have them, as a recording's lines do. Raises `InputError`
    for lists of different lengths, none at all, and unreadable log-probabilities, which it names by number.

    >>> cheap = [{"logprobs": [-0.1], "cost": 1.0}, {"logprobs": [-6.0], "cost": 1.0}]
    >>> kept = cascade_of(cheap, [{"cost": 9.0}, {"cost": 9.0}])
    >>> [step.escalated for step in kept], kept.cost, kept.always_strong
    ([False, True], 11.0, 18.0)
    """
    one = not (_is_answers(cheap) and _is_answers(strong))
    first, second = ([cheap], [strong]) if one else (list(cheap), list(strong))
    if len(first) != len(second) or not first:
        raise InputError(
            f"{len(first)} cheap answers, {len(second)} strong ones",
            hint="give the answers of both models to the same questions, in the same order",
        )
    pairs = enumerate(zip(first, second, strict=True), start=1)
    steps = tuple(_step(weak, better, rules, number) for number, (weak, better) in pairs)
    return KeptCascade(steps, _sum([_dollars(better) for better in second]))


def _is_answers(value: Any) -> bool:
    """Whether it is a list of answers, and not one answer's list of tokens."""
    if not is_list(value):
        return False
    first = value[0] if len(value) else None
    return not isinstance(first, Real) and field_of(first, "logprob", ABSENT) is ABSENT


def _step(weak: Any, better: Any, rules: FeedbackRules, number: int) -> KeptStep:
    try:
        signal = rules.analyze(weak)
    except InputError as error:
        raise InputError(f"cheap answer {number}: {error.message}", hint=error.hint) from None
    if signal.kind == "unknown" or signal.should_escalate:
        return KeptStep(better, True, signal, _sum([_dollars(weak), _dollars(better)]), _label(better))
    return KeptStep(weak, False, signal, _dollars(weak), _label(weak))


def _dollars(answer: Any) -> float | None:
    found = field_of(answer, "cost")
    return float(found) if isinstance(found, Real) and math.isfinite(found) else None


def _label(answer: Any) -> bool | None:
    found = field_of(answer, "correct")
    return None if found is None else bool(found)


def _sum(costs: Sequence[float | None]) -> float | None:
    known = [cost for cost in costs if cost is not None]
    return math.fsum(known) if len(known) == len(costs) else None
