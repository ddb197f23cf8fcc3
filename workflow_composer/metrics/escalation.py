"""Cost and savings of escalation.

``spent`` is the cost of all answered requests, without failed requests and audits. It is the sum of ``kept`` (the
returned answers, with all samples of a vote) and ``wasted`` (rejected answers, failed and abandoned calls).
``always_strongest`` is the cost if every request had gone to the strongest tier alone; ``saved`` is ``always_strongest``
minus ``spent``, negative if the cascade cost more.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from workflow_composer.types import LLMResponse, TierResult, Usage


@dataclass(frozen=True, slots=True)
class Kept:
    """The returned answer: its cost and usage with all samples of a vote, and the usage of one sample (``one``)."""

    cost: float
    usage: Usage
    one: Usage

    @classmethod
    def of(cls, response: LLMResponse, tier: TierResult) -> Kept:
        """Compute it from the calls of the tier that answered."""
        good = [attempt for attempt in response.attempts if attempt.tier == tier.tier and attempt.error is None]
        usage = sum((attempt.usage for attempt in good), Usage())
        one = Usage(usage.prompt_tokens // max(1, len(good)), usage.completion_tokens // max(1, len(tier.samples)))
        return cls(sum(attempt.cost for attempt in good), usage, one)


@dataclass(frozen=True, slots=True)
class EscalationStats:
    """Counts of requests, and dollars as the module defines them. ``by_tier`` counts returned answers by tier.

    ``always_strongest`` is exact for answers of the strongest tier; otherwise it is an estimate for one answer to the same
    prompt with as many tokens, at its price. The GPU time per token is taken from the answers of the strongest tier.
    """

    requests: int
    escalated: int
    accepted: int
    abandoned: int
    by_tier: dict[str, int]
    spent: float
    kept: float
    wasted: float
    always_strongest: float
    saved: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


class EscalationTally:
    """Counts responses; thread-safe.

    ``strongest`` names the last tier; ``price`` returns its cost in dollars for a usage, without GPU time.
    """

    def __init__(self, strongest: str, price: Callable[[Usage], float]) -> None:
        self._strongest = strongest
        self._price = price
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._tiers: Counter[str] = Counter()
        self._spent = self._kept = self._always = 0.0
        self._beyond_dollars = 0.0
        self._beyond_tokens = self._other_tokens = 0

    def count(self, response: LLMResponse) -> None:
        """Count one response."""
        tiers = response.tiers
        deciding = next(tier for tier in tiers if tier.tier == response.decision.tier)
        strongest = deciding.name == self._strongest
        abandoned = sum(attempt.error_type == "Abandoned" for attempt in response.attempts)
        kept = Kept.of(response, deciding)
        with self._lock:
            self._counts["requests"] += 1
            self._counts["escalated"] += deciding is not tiers[0]
            self._counts["accepted"] += response.accepted
            self._counts["abandoned"] += abandoned
            self._tiers[deciding.name] += 1
            self._spent += response.cost
            self._kept += kept.cost
            if strongest:
                self._always += kept.cost
                self._beyond_dollars += kept.cost - self._price(kept.usage)
                self._beyond_tokens += kept.usage.completion_tokens
            else:
                self._always += self._price(kept.one)
                self._other_tokens += kept.one.completion_tokens

    def stats(self) -> EscalationStats:
        """Return the totals so far."""
        with self._lock:
            always = self._always + self._other_tokens * self._beyond_dollars / max(1, self._beyond_tokens)
            return EscalationStats(
                requests=self._counts["requests"],
                escalated=self._counts["escalated"],
                accepted=self._counts["accepted"],
                abandoned=self._counts["abandoned"],
                by_tier=dict(self._tiers),
                spent=self._spent,
                kept=self._kept,
                wasted=self._spent - self._kept,
                always_strongest=always,
                saved=always - self._spent,
            )
