"""The plan of a data set: one row per question with the way it goes, and the breakdown that ``--dry-run`` prints.

Data sets are planned piece by piece. Only codes of routing strings are kept, so the plan of a million questions takes some
ten megabytes, however long the questions are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workflow_composer.batch.planning.policies import BatchStrategy, PlanningContext, Questions
from workflow_composer.errors import PluginError
from workflow_composer.plan import ALWAYS, Plan, Tier

if TYPE_CHECKING:
    import pandas as pd

    from workflow_composer.batch.planning.probe import Probe


# ------------------------------------------------------------------------------------------------------------------- costs
#
# What a plan would cost: estimated from the length of questions and from what tiers are predicted to answer.
#
# Prompt tokens come from a question's length, completion tokens from an average; both are stated. Nothing is called.


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


pass  # MERGED

COLUMNS = ("route_to", "is_cascade", "cascade_tiers", "sc_n", "sc_temp")
"""The plan table's columns: see `PlanTable`."""

BETWEEN_TIERS = " > "
_EVERYTHING = 1 << 15
"""Routing strings of one plan are numbered in 16 bits."""


@dataclass(frozen=True, slots=True)
class Start:
    """Questions whose first tier is ``tier``, and how many votes that tier draws: fewest, median, most."""

    tier: str
    questions: int
    k_min: int
    k_median: int
    k_max: int


@dataclass(frozen=True, slots=True)
class Breakdown:
    """What a policy would do with a data set. ``cost`` is None where a tier has no price per token."""

    policy: str
    questions: int
    starts: tuple[Start, ...]
    routes: Mapping[str, int]
    cost: CostEstimate | None
    assumptions: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        starts = [{name: getattr(start, name) for name in Start.__slots__} for start in self.starts]
        cost = None if self.cost is None else {name: getattr(self.cost, name) for name in CostEstimate.__slots__}
        return {
            "policy": self.policy,
            "questions": self.questions,
            "starts": starts,
            "routes": dict(self.routes),
            "cost": cost,
            "assumptions": list(self.assumptions),
        }


@dataclass(frozen=True, slots=True)
class PlanTable:
    """The plan of a data set.

    ``frame`` has one row per question, in their order: ``route_to`` (the routing string; categorical), ``is_cascade``,
    ``cascade_tiers`` (the names of a cascade's tiers joined by `BETWEEN_TIERS`, missing for a single tier; categorical),
    ``sc_n`` and ``sc_temp`` (samples and temperature of the first tier).
    """

    frame: pd.DataFrame
    breakdown: Breakdown

    def routes(self, start: int = 0) -> Iterator[str]:
        """The routing string of each question from number ``start`` on."""
        column = self.frame["route_to"].cat
        names = list(column.categories)
        for at in range(start, len(self.frame), 65536):
            for code in column.codes.to_numpy()[at : at + 65536].tolist():
                yield names[code]


def plan(
    chunks: Iterable[Any],
    policy: BatchStrategy,
    context: PlanningContext,
    *,
    name: str = "",
    tokens: TokenAssumption | None = None,
) -> PlanTable:
    """Plan a data set, given in pieces: tables with a column ``question``, Arrow arrays, or lists of texts.

    Raises `PluginError` where the policy does not give one routing string per question, `MarkerError` where one of them
    cannot be read, `InputError` where questions are no texts.
    """
    name = name or type(policy).__name__
    return plan_all(chunks, {name: policy}, context, tokens=tokens)[name]


def plan_all(
    chunks: Iterable[Any],
    policies: Mapping[str, BatchStrategy],
    context: PlanningContext,
    *,
    tokens: TokenAssumption | None = None,
) -> dict[str, PlanTable]:
    """As `plan`, for several policies at once: the data set is read, and its questions are measured, once."""
    builders = {name: _Builder(name, context, tokens or TokenAssumption()) for name in policies}
    for chunk in chunks:
        questions = Questions(chunk, context.predictor)
        for name, policy in policies.items():
            builders[name].add(questions, policy.routes(questions, context))
    return {name: builder.table() for name, builder in builders.items()}


# ---------------------------------------------------------------------------------------------------------- building it


class _Builder:
    """Collects one policy's routes, as codes, and what they would cost."""

    def __init__(self, name: str, context: PlanningContext, tokens: TokenAssumption) -> None:
        self._name = name
        self._context = context
        self._tokens = tokens
        self._names: list[str] = []
        self._code: dict[str, int] = {}
        self._plans: list[Plan] = []
        self._codes: list[NDArray[np.int16]] = []
        self._cost: Costs | None = Costs(context, tokens)

    def add(self, questions: Questions, routes: Any) -> None:
        """Take the routes of the next piece."""
        codes = self._coded(routes, len(questions))
        self._codes.append(codes)
        if self._cost is None or not len(codes):
            return
        order = np.argsort(codes, kind="stable")
        present, starts = np.unique(codes[order], return_index=True)
        for code, rows in zip(present.tolist(), np.split(order, starts[1:]), strict=True):
            if not self._cost.add(self._plans[code], questions, rows):
                self._cost = None
                return

    def _coded(self, routes: Any, expected: int) -> NDArray[np.int16]:
        import pandas as pd

        if len(routes) != expected:
            raise PluginError(f"batch policy {self._name!r} gave {len(routes)} routes for {expected} questions")
        try:
            codes, found = pd.factorize(np.fromiter(routes, object, expected), use_na_sentinel=False)
        except TypeError as error:  # something that cannot be hashed is no text
            raise PluginError(f"batch policy {self._name!r} gave routes that are no texts: {error}") from error
        table = np.empty(len(found), dtype=np.int16)
        for at, route in enumerate(found):
            if route not in self._code:
                if not isinstance(route, str):
                    raise PluginError(f"batch policy {self._name!r} gave {route!r} where a routing string belongs")
                if len(self._names) == _EVERYTHING:
                    raise PluginError(f"batch policy {self._name!r} gave more than {_EVERYTHING} different routes")
                self._plans.append(self._context.parse(route))
                self._code[route] = len(self._names)
                self._names.append(route)
            table[at] = self._code[route]
        coded: NDArray[np.int16] = table[codes]
        return coded

    def table(self) -> PlanTable:
        """What was collected. Equal routes in different spellings are one category."""
        import pandas as pd

        codes = np.concatenate(self._codes) if self._codes else np.empty(0, np.int16)
        self._codes = []
        route_to = _categories([str(plan) for plan in self._plans], codes)
        cascades = [len(plan.tiers) > 1 for plan in self._plans]
        tiers = [BETWEEN_TIERS.join(map(name_of, plan.tiers)) if len(plan.tiers) > 1 else None for plan in self._plans]
        samples = np.array([plan.tiers[0].samples for plan in self._plans], np.int16)
        temperatures = np.array([plan.tiers[0].members[0].temperature or 0.0 for plan in self._plans], np.float32)
        columns = (
            route_to,
            np.array(cascades, np.bool_)[codes],
            _categories(tiers, codes),
            samples[codes],
            temperatures[codes],
        )
        return PlanTable(pd.DataFrame(dict(zip(COLUMNS, columns, strict=True))), self._breakdown(codes))

    def _breakdown(self, codes: NDArray[np.int16]) -> Breakdown:
        counts = np.bincount(codes, minlength=len(self._plans)).tolist()
        votes: dict[str, list[tuple[int, int]]] = {tier.name: [] for tier in self._context.tiers}
        routes: dict[str, int] = {}
        for plan, count in sorted(zip(self._plans, counts, strict=True), key=lambda pair: -pair[1]):
            first = plan.tiers[0]
            votes.setdefault(name_of(first), []).append((first.samples, count))
            routes[str(plan)] = routes.get(str(plan), 0) + count
        starts = tuple(_start(tier, found) for tier, found in votes.items() if found)
        cost = None if self._cost is None else self._cost.estimate()
        return Breakdown(self._name, len(codes), starts, routes, cost, self._assumptions())

    def _assumptions(self) -> tuple[str, ...]:
        if self._cost is None:
            return ("a tier has no price per token: the cost is unknown",)
        always = (
            f"tokens: {self._tokens.source}",
            "least: only the first tier runs, with all of its votes (one that ends early costs less), prompts paid once",
            "most: every tier runs, with every vote that it may draw, prompts paid once per vote",
        )
        if self._cost.estimate().expected is None:
            return (*always, "expected: unknown without a probe")
        return (
            *always,
            "expected: a tier answers where enough of its votes are right for its target; votes are independent given the "
            "question, wrong answers differ, and no vote ends early",
        )


def _categories(values: list[str | None] | list[str], codes: NDArray[np.int16]) -> pd.Categorical:
    """A categorical column of ``values[codes]``; None is a missing value."""
    import pandas as pd

    names = sorted({value for value in values if value is not None})
    place = {name: at for at, name in enumerate(names)}
    table = np.array([-1 if value is None else place[value] for value in values], np.int16)
    return pd.Categorical.from_codes(table[codes], categories=pd.Index(names, dtype=object))


def _start(tier: str, found: list[tuple[int, int]]) -> Start:
    """``found``: (votes, questions) pairs. The median is the lower one of an even number."""
    found = sorted(found)
    questions = sum(count for _, count in found)
    passed, median = 0, found[0][0]
    for votes, count in found:
        median = votes
        passed += count
        if 2 * passed >= questions:
            break
    return Start(tier, questions, found[0][0], median, found[-1][0])


# ------------------------------------------------------------------------------------------------------------ showing it


def breakdown_text(breakdowns: Iterable[Breakdown]) -> str:
    """The breakdowns as a table for a terminal, and below it what the costs rest on."""
    head = ("policy", "questions", "starts at", "share", "k: min", "median", "max", "cost: least", "expected", "most")
    lines: list[tuple[str, ...]] = [head]
    notes: dict[str, None] = {}
    for breakdown in breakdowns:
        notes |= dict.fromkeys(breakdown.assumptions)
        cost = breakdown.cost
        dollars = ("?", "?", "?") if cost is None else tuple(map(_dollars, (cost.least, cost.expected, cost.most)))
        first = (breakdown.policy, f"{breakdown.questions:,}")
        if not breakdown.starts:
            lines.append((*first, *("",) * 5, *dollars))
        for start in breakdown.starts:
            share = f"{start.questions / breakdown.questions:.1%}"
            lines.append((*first, start.tier, share, *map(str, (start.k_min, start.k_median, start.k_max)), *dollars))
            first, dollars = ("", ""), ("", "", "")
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = []
    for line in lines:
        cells = (
            cell.ljust(w) if at in {0, 2} else cell.rjust(w) for at, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        shown.append("  ".join(cells).rstrip())
    return "\n".join([*shown, "", *notes])


def _dollars(amount: float | None) -> str:
    if amount is None:
        return "?"
    return f"${amount:,.2f}" if amount >= 1 else f"${amount:.3g}"
