"""The plan of a data set: one row per question with its route, and the breakdown that ``--dry-run`` prints.

Data sets are planned in chunks. Only codes of routing strings are kept, so the plan of a million questions takes about ten
megabytes, however long the questions are.
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
# Cost estimates of a plan, from the length of questions and the predicted success of tiers.
#
# Prompt tokens come from a question's length, completion tokens from an average; both are stated. No model is called.


@dataclass(frozen=True, slots=True)
class TokenAssumption:
    """Token counts assumed for cost estimates.

    A prompt has ``per_character`` tokens for each character of the question plus ``per_prompt`` tokens; a sample has
    ``answer`` completion tokens, or the tier's number in ``answers``. ``source`` describes the origin of the numbers.
    """

    per_character: float = 0.25
    per_prompt: float = 0.0
    answer: float = 256.0
    answers: Mapping[str, float] = field(default_factory=dict)
    source: str = "assumed: 1 prompt token per 4 characters, 256 tokens per answer"

    @classmethod
    def of_probe(cls, probe: Probe) -> TokenAssumption:
        """Return the averages of a probe's training data; the defaults if the data had no token counts."""
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
    """Return a tier's name in routing strings."""
    return tier.title


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """Dollars for a whole data set.

    ``least``: only each question's first tier runs. ``most``: every tier runs and draws all its samples.
    ``expected``: by the probe's predictions; None without a probe.
    """

    least: float
    expected: float | None
    most: float


class Costs:
    """Sums the estimated cost of routes (see `CostEstimate`)."""

    def __init__(self, context: PlanningContext, tokens: TokenAssumption) -> None:
        self._prices = {tier.name: (tier.input_price, tier.output_price) for tier in context.tiers}
        self._tokens = tokens
        self._predicted = context.predictor is not None
        self._least = self._expected = self._most = 0.0

    def add(self, plan: Plan, questions: Questions, rows: NDArray[np.intp]) -> bool:
        """Add the questions at ``rows``, whose route is ``plan``. Return False if a tier has no price per token."""
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
        """Return the sums so far."""
        return CostEstimate(self._least, self._expected if self._predicted else None, self._most)


def accepted(success: NDArray[np.float64], tier: Tier) -> NDArray[np.float64]:
    """Return the probability that a tier's vote is accepted, considering only the share of right samples.

    ``P(Binomial(k, p) >= ceil(target * k))``; 1 for a single sample that is always accepted, and p for a single sample that
    is accepted by its token probabilities. The formula assumes that samples are independent given the question and that
    wrong samples differ; a model that repeats the same wrong answer is accepted more often than estimated.
    """
    from scipy.special import bdtrc

    if tier.samples == 1:
        return success if tier.voting is None and tier.accept is not ALWAYS else np.ones_like(success)
    target = tier.voting.target if tier.voting else 1.0
    needed = max(math.ceil(target * tier.samples - 1e-9), 1)
    if needed > tier.samples:
        return np.zeros_like(success)
    return np.asarray(bdtrc(needed - 1, tier.samples, success), dtype=np.float64)


COLUMNS = ("route_to", "is_cascade", "cascade_tiers", "sc_n", "sc_temp")
"""The plan table's columns: see `PlanTable`."""

BETWEEN_TIERS = " > "
_VOTE, _GREEDY = "majority vote", "greedy"
_EVERYTHING = 1 << 15
"""Most distinct routing strings of one plan: their codes have 16 bits."""


@dataclass(frozen=True, slots=True)
class Start:
    """Questions whose first tier is ``tier``, and the minimum, median and maximum number of its votes.

    ``kind``: how it answers them, by majority vote or greedily; a tier that does both has two starts.
    """

    tier: str
    questions: int
    k_min: int
    k_median: int
    k_max: int
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Breakdown:
    """What a policy would do with a data set. ``cost`` is None if a tier has no price per token."""

    policy: str
    questions: int
    starts: tuple[Start, ...]
    routes: Mapping[str, int]
    cost: CostEstimate | None
    assumptions: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
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
    ``cascade_tiers`` (a cascade's tier names joined by `BETWEEN_TIERS`, missing for a single tier; categorical),
    ``sc_n`` and ``sc_temp`` (samples and temperature of the first tier).
    """

    frame: pd.DataFrame
    breakdown: Breakdown

    def routes(self, start: int = 0) -> Iterator[str]:
        """Yield the routing string of each question, beginning at number ``start``."""
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
    """Plan a data set given in chunks: tables with a column ``question``, Arrow arrays, or lists of texts.

    Raises `PluginError` if the policy does not return one routing string per question, `MarkerError` for an invalid routing
    string, `InputError` if questions are not strings.
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
    """Like `plan`, for several policies at once: reads the data set and computes the features only once."""
    builders = {name: _Builder(name, context, tokens or TokenAssumption()) for name in policies}
    for chunk in chunks:
        questions = Questions(chunk, context.predictor)
        for name, policy in policies.items():
            builders[name].add(questions, policy.routes(questions, context))
    return {name: builder.table() for name, builder in builders.items()}


# ------------------------------------------------------------------------------------------------------------- building


class _Builder:
    """Collects one policy's routes, as codes, and their estimated cost."""

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
        """Add the routes of the next chunk."""
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
            raise PluginError(f"batch policy {self._name!r} returned {len(routes)} routes for {expected} questions")
        try:
            codes, found = pd.factorize(np.fromiter(routes, object, expected), use_na_sentinel=False)
        except TypeError as error:  # an unhashable value is not a string
            raise PluginError(f"batch policy {self._name!r} returned routes that are not strings: {error}") from error
        table = np.empty(len(found), dtype=np.int16)
        for at, route in enumerate(found):
            if route not in self._code:
                if not isinstance(route, str):
                    raise PluginError(f"batch policy {self._name!r} returned {route!r}, not a routing string")
                if len(self._names) == _EVERYTHING:
                    raise PluginError(f"batch policy {self._name!r} returned more than {_EVERYTHING} different routes")
                self._plans.append(self._context.parse(route))
                self._code[route] = len(self._names)
                self._names.append(route)
            table[at] = self._code[route]
        coded: NDArray[np.int16] = table[codes]
        return coded

    def table(self) -> PlanTable:
        """Return the plan table. Different spellings of the same route are one category."""
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
        kinds = ((tier.name, kind) for tier in self._context.tiers for kind in (_GREEDY, _VOTE))
        votes: dict[tuple[str, str], list[tuple[int, int]]] = {start: [] for start in kinds}
        routes: dict[str, int] = {}
        for plan, count in sorted(zip(self._plans, counts, strict=True), key=lambda pair: -pair[1]):
            first = plan.tiers[0]
            kind = _VOTE if first.samples > 1 else _GREEDY
            votes.setdefault((name_of(first), kind), []).append((first.samples, count))
            routes[str(plan)] = routes.get(str(plan), 0) + count
        starts = tuple(_start(*start, found) for start, found in votes.items() if found)
        cost = None if self._cost is None else self._cost.estimate()
        return Breakdown(self._name, len(codes), starts, routes, cost, self._assumptions())

    def _assumptions(self) -> tuple[str, ...]:
        if self._cost is None:
            return ("cost: unknown, because a tier has no price per token",)
        always = (
            f"tokens: {self._tokens.source}",
            "least: only the first tier runs, with all its votes (less if a vote ends early); each prompt is paid once",
            "most: every tier runs and draws all its votes; each vote pays for its prompt",
        )
        if self._cost.estimate().expected is None:
            return (*always, "expected: unknown, because there is no probe")
        return (
            *always,
            "expected: a tier's vote is accepted if enough samples are right for its target; assumes that samples are "
            "independent given the question, that wrong answers differ, and that no vote ends early",
        )


def _categories(values: list[str | None] | list[str], codes: NDArray[np.int16]) -> pd.Categorical:
    """Return a categorical column of ``values[codes]``; None is a missing value."""
    import pandas as pd

    names = sorted({value for value in values if value is not None})
    place = {name: at for at, name in enumerate(names)}
    table = np.array([-1 if value is None else place[value] for value in values], np.int16)
    return pd.Categorical.from_codes(table[codes], categories=pd.Index(names, dtype=object))


def _start(tier: str, kind: str, found: list[tuple[int, int]]) -> Start:
    """Summarize (votes, questions) pairs; of an even number of questions, take the lower median."""
    found = sorted(found)
    questions = sum(count for _, count in found)
    passed, median = 0, found[0][0]
    for votes, count in found:
        median = votes
        passed += count
        if 2 * passed >= questions:
            break
    return Start(tier, questions, found[0][0], median, found[-1][0], kind)


# -------------------------------------------------------------------------------------------------------------- printing


_HEAD = (
    "policy", "questions", "starts at", "share", "k: min", "median", "max", "count", "by", "cost: least", "expected", "most"
)  # fmt: skip
_LEFT = frozenset({0, 2, 8})
"""Columns of texts; the others are numbers."""
_MOST_ROUTES = 12


def breakdown_text(breakdowns: Iterable[Breakdown]) -> str:
    """Return the breakdowns as tables for a terminal, followed by the assumptions of the cost estimates.

    Per start tier: how it answers, how many questions and which share of them, and the range of its votes. Then the most
    frequent routes of each policy that has several.
    """
    found = list(breakdowns)
    lines: list[tuple[str, ...]] = [_HEAD]
    notes: dict[str, None] = {}
    for breakdown in found:
        notes |= dict.fromkeys(breakdown.assumptions)
        cost = breakdown.cost
        dollars = ("?", "?", "?") if cost is None else tuple(map(_dollars, (cost.least, cost.expected, cost.most)))
        first = (breakdown.policy, f"{breakdown.questions:,}")
        if not breakdown.starts:
            lines.append((*first, *("",) * 7, *dollars))
        for start in breakdown.starts:
            share = f"{start.questions / breakdown.questions:.1%}"
            votes = map(str, (start.k_min, start.k_median, start.k_max))
            lines.append((*first, start.tier, share, *votes, f"{start.questions:,}", start.kind, *dollars))
            first, dollars = ("", ""), ("", "", "")
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = []
    for line in lines:
        cells = (
            cell.ljust(w) if at in _LEFT else cell.rjust(w) for at, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        shown.append("  ".join(cells).rstrip())
    routes = [line for breakdown in found for line in _routes_text(breakdown)]
    return "\n".join([*shown, "", *routes, *([""] if routes else []), *notes])


def _routes_text(breakdown: Breakdown) -> Iterator[str]:
    """Yield the most frequent routes of a policy, unless it is a single route by that name."""
    if set(breakdown.routes) <= {breakdown.policy}:
        return
    yield f"routes of {breakdown.policy}:"
    for route, count in list(breakdown.routes.items())[:_MOST_ROUTES]:
        yield f"  {count:>9,}  {count / breakdown.questions:>6.1%}  {route}"
    if (more := len(breakdown.routes) - _MOST_ROUTES) > 0:
        rest = sum(list(breakdown.routes.values())[_MOST_ROUTES:])
        yield f"  {rest:>9,}  {rest / breakdown.questions:>6.1%}  in {more} other routes (all of them: --json)"


def _dollars(amount: float | None) -> str:
    if amount is None:
        return "?"
    return f"${amount:,.2f}" if amount >= 1 else f"${amount:.3g}"
