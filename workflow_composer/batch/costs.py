"""What a plan would cost: estimated from the length of questions and from what tiers are predicted to answer.

Prompt tokens come from a question's length, completion tokens from an average; both are stated. Nothing is called.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from workflow_composer.batch.strategies import PlanningContext, Questions
from workflow_composer.plan import ALWAYS, Plan, Tier

if TYPE_CHECKING:
    from workflow_composer.batch.probe import Probe


@dataclass(frozen=True, slots=True)
class TokenAssumption:
    """How many tokens calls take, for costs that are estimated before any call is made.

    ``per_character`` prompt tokens for each character of a question and ``per_prompt`` for what is sent with every one;
    ``answer`` completion tokens per sample, or those in ``answers`` for tiers that are known. ``source`` says whence.
    """

    per_character: float = 0.25
    per_prompt: float = 0.0
    answer: float = 256.0
    answers: Mapping[str, float] = field(default_factory=dict)
    source: str = "assumed: a prompt token per 4 characters, 256 tokens per answer"

    @classmethod
    def of_probe(cls, probe: Probe) -> TokenAssumption:
        """The averages of the data that a probe was trained on; the assumption where that held no tokens."""
        tokens = probe.tokens
        if tokens is None:
            return cls()
        return cls(
            per_character=tokens.per_character,
            per_prompt=tokens.per_prompt,
            answers=tokens.answers,
            source=f"averages of the probe's training data ({probe.training.dataset})",
        )


def name_of(tier: Tier) -> str:
    """What a tier is called in routing strings."""
    return tier.title


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """Dollars for a whole data set.

    ``least``: only each question's first tier runs. ``most``: every tier runs, with every vote that it may draw.
    ``expected``: with the probe's predictions; None without a probe.
    """

    least: float
    expected: float | None
    most: float


class Costs:
    """Adds up what routes would cost (see `CostEstimate`)."""

    def __init__(self, context: PlanningContext, tokens: TokenAssumption) -> None:
        self._prices = {tier.name: (tier.input_price, tier.output_price) for tier in context.tiers}
        self._tokens = tokens
        self._predicted = context.predictor is not None
        self._least = self._expected = self._most = 0.0

    def add(self, plan: Plan, questions: Questions, rows: NDArray[np.intp]) -> bool:
        """Add the questions at ``rows``, which go by ``plan``. False where a tier has no price per token."""
        prompt = self._tokens.per_prompt + self._tokens.per_character * questions.lengths[rows]
        reached = np.ones(len(rows))
        for position, tier in enumerate(plan.tiers):
            name = name_of(tier)
            per_prompt, per_answer = self._prices.get(name, (None, None))
            if per_prompt is None or per_answer is None:
                return False
            answer = per_answer * self._tokens.answers.get(name, self._tokens.answer)
            explore = tier.voting.explore if tier.voting else 0
            cost = (per_prompt * prompt + tier.samples * answer) / 1e6
            self._most += float((tier.samples + explore) * (per_prompt * prompt + answer).sum() / 1e6)
            self._least += float(cost.sum()) if position == 0 else 0.0
            if self._predicted:
                self._expected += float((reached * cost).sum())
                if position + 1 < len(plan.tiers):
                    reached = reached * (1 - accepted(questions.success(name)[rows], tier))
        return True

    def estimate(self) -> CostEstimate:
        """The sums so far."""
        return CostEstimate(self._least, self._expected if self._predicted else None, self._most)


def accepted(success: NDArray[np.float64], tier: Tier) -> NDArray[np.float64]:
    """The probability that a tier's votes are confident enough to be taken, by the share of right ones alone.

    ``P(Binomial(k, p) >= ceil(target * k))``; 1 for one sample that nothing doubts, and p for one that is doubted by what
    its own tokens tell. Samples are taken to be
    independent given the question, and wrong ones to differ from each other: where a model is wrong in the same way again
    and again, its vote is accepted more often than this says.
    """
    from scipy.special import bdtrc

    if tier.samples == 1:
        return success if tier.voting is None and tier.accept is not ALWAYS else np.ones_like(success)
    target = tier.voting.target if tier.voting else 1.0
    needed = max(math.ceil(target * tier.samples - 1e-9), 1)
    if needed > tier.samples:
        return np.zeros_like(success)
    return np.asarray(bdtrc(needed - 1, tier.samples, success), dtype=np.float64)
