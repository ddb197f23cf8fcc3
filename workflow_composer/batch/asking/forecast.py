"""What a run will probably cost and take: by the profile's prices before the first answer, by the answers afterwards.

Before: a prompt token for every four characters, and answers as long as the form makes them; the cheapest case is that every
first tier is accepted, the dearest that no tier but the last is. The time is that of the model's earlier requests, by their
tokens. Afterwards: the mean cost and time of the rows answered.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_composer.answers.form import OutputForm
from workflow_composer.backends.pricing import CHARACTERS_PER_TOKEN, UNSEEN_ANSWER, Price
from workflow_composer.types import Usage

if TYPE_CHECKING:
    from workflow_composer.config.strategy import StrategyConfig
    from workflow_composer.plan import Plan, Tier

_WORD = 8
"""Tokens of an answer that is one word or number."""

_TAIL = 1 << 18
"""Bytes of metrics that are looked at: some hundreds of requests."""

_FIELD = 24
"""Tokens of a field of a JSON answer."""


@dataclass(frozen=True, slots=True)
class PriceForecast:
    """Dollars for some rows: ``least`` if every first tier is accepted, ``most`` if every tier is asked.

    ``unpriced`` models have no price in the profile, so that the sums leave them out.
    """

    rows: int
    prompt_tokens: int
    answer_tokens: int
    least: float
    most: float
    unpriced: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Measured:
    """Means of the rows answered so far: dollars (None: unknown) and seconds of a row."""

    rows: int
    cost: float | None
    seconds: float

    @classmethod
    def of(cls, lines: Iterable[Mapping[str, Any]]) -> Measured | None:
        """Return the means over the lines of a journal; None if no row has an answer."""
        found = [line for line in lines if "error" not in line]
        if not found:
            return None
        known = all(line.get("cost_known", True) for line in found)
        cost = sum(line["cost"] for line in found) / len(found)
        return cls(len(found), cost if known else None, sum(line["latency_ms"] for line in found) / len(found) / 1000.0)


def seconds_per_token(metrics: Path, candidate: str) -> float | None:
    """Return the seconds per token of a model by the metrics of its latest requests; None if there are none."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - _TAIL, 0))
            lines = file.read().splitlines()
    except OSError:
        return None
    seconds = tokens = 0.0
    for line in lines:
        with suppress(ValueError, KeyError, TypeError):  # a line that is cut, damaged or of another version tells nothing
            found = json.loads(line)
            if found["candidate"] == candidate and found["success"] and found["completion_tokens"] > 0:
                seconds += found["latency_ms"] / 1000.0
                tokens += found["completion_tokens"]
    return seconds / tokens if tokens else None


def forecast(
    plan: Plan, config: StrategyConfig, form: OutputForm, *, rows: int, characters: int, most_tokens: int | None
) -> PriceForecast:
    """Return the price of ``rows`` prompts with so many characters in all, and ``most_tokens`` tokens at most an answer."""
    prompt = round(characters / CHARACTERS_PER_TOKEN)
    answer = _answer_tokens(form)
    answer = answer if most_tokens is None else min(answer, most_tokens)
    sums = [_tier(tier, config, prompt, answer * rows) for tier in plan.tiers]
    unpriced = {
        candidate.name
        for tier in plan.tiers
        for candidate in (member.candidates[0] for member in tier.members)
        if not _is_priced(config, candidate.name)
    }
    return PriceForecast(rows, prompt, answer, sums[0], sum(sums), tuple(sorted(unpriced)))


def _tier(tier: Tier, config: StrategyConfig, prompt: int, answers: int) -> float:
    apart = tier.voting is not None and tier.voting.draw == "at_once"
    dollars = 0.0
    for member in tier.members:
        name = member.candidates[0].name
        if _is_priced(config, name):
            calls = member.samples if apart else 1
            dollars += Price.of(config.models[name]).cost(Usage(prompt * calls, answers * member.samples))
    return dollars


def _is_priced(config: StrategyConfig, name: str) -> bool:
    spec = config.models.get(name)
    return spec is not None and (spec.input_price is not None or spec.output_price is not None)


def _answer_tokens(form: OutputForm) -> int:
    schema = form.json_schema()
    if "enum" in schema or schema.get("type") in ("number", "integer", "boolean"):
        return _WORD
    fields = schema.get("properties")
    return _FIELD * len(fields) if fields else UNSEEN_ANSWER
