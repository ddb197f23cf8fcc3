"""Batch policies: each turns the questions of a data set into routing strings, one per row.

A policy is any object with ``routes(questions, context)``; plugins add their own (`register_batch_strategies`). It gets one
chunk of the data set at a time, works on whole columns, and calls no model. ``docs/batch-policies.md`` describes the
built-in policies and their measured results.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from workflow_composer.errors import ConfigError, InputError, nearest
from workflow_composer.markers import HIGHEST_TEMPERATURE, MOST_SAMPLES, parse_route
from workflow_composer.plan import Plan

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PlanningTier:
    """A tier as policies see it. Prices in dollars per million tokens; None if unknown."""

    name: str
    input_price: float | None = None
    output_price: float | None = None
    greedy_only: bool = False


@dataclass(frozen=True, slots=True)
class PlanningContext:
    """The information that policies use. ``tiers`` are ordered from cheap to strong.

    Adaptive policies plan up to ``k_max`` votes so that a tier's majority is right with probability ``target``; the others
    use ``k`` votes. ``parse`` reads routing strings as the run will. ``predictor`` is None without a probe. Raises
    `ConfigError` for an invalid value.
    """

    tiers: tuple[PlanningTier, ...]
    target: float = 0.9
    k: int = 8
    k_max: int = 9
    temperature: float = 0.7
    predictor: Predictor | None = None
    parse: Callable[[str], Plan] = field(default=parse_route)

    def __post_init__(self) -> None:
        if not self.tiers:
            raise ConfigError("batch policies need tiers", hint="list the tiers of the cascade under `tiers` in the profile")
        if not 0.5 < self.target < 1:
            raise ConfigError(f"target must be between 0.5 and 1 (exclusive), not {self.target}")
        if not 2 <= self.k <= MOST_SAMPLES:
            raise ConfigError(f"k, the number of votes per tier, must be 2 to {MOST_SAMPLES}, not {self.k}")
        if not 1 <= self.k_max <= MOST_SAMPLES:
            raise ConfigError(f"k_max, the maximum number of votes per tier, must be 1 to {MOST_SAMPLES}, not {self.k_max}")
        if not 0.001 <= self.temperature <= HIGHEST_TEMPERATURE:
            raise ConfigError(f"temperature must be 0.001 to {HIGHEST_TEMPERATURE:g}, not {self.temperature}")

    def tier(self, name: str) -> PlanningTier:
        """Return the tier of this name. Raises `ConfigError` if there is none."""
        for tier in self.tiers:
            if tier.name == name:
                return tier
        names = [tier.name for tier in self.tiers]
        raise ConfigError(f"unknown tier {name!r}", hint=nearest(name, names) or f"known tiers: {', '.join(names)}")

    def route(self, steps: Sequence[tuple[PlanningTier, int]], *, entropy: bool = False) -> str:
        """Return the routing string for tiers and their votes. A single vote is greedy, as is a greedy-only tier.

        >>> small, large = PlanningTier("small"), PlanningTier("large", greedy_only=True)
        >>> PlanningContext((small, large)).route([(small, 5), (large, 5)])
        'mv_cascade_small_k5_t0.7_large_k1_t0.0'
        """
        settled = [(tier.name, 1 if tier.greedy_only else k) for tier, k in steps]
        words = [f"{name}_k{k}_t{round(float(self.temperature), 3) if k > 1 else 0.0}" for name, k in settled]
        if len(settled) > 1:
            again = entropy and any(k > 1 for _, k in settled[:-1])  # only votes that may escalate can be ambiguous
            return f"mv_{'entropy_' if again else ''}cascade_{'_'.join(words)}"
        return f"mv_{words[0]}" if settled[0][1] > 1 else settled[0][0]


class Predictor(Protocol):
    """Predicts whether tiers answer questions correctly, such as a `workflow_composer.batch.planning.probe.Probe`."""

    def success(self, questions: Questions, tier: str) -> Floats:
        """Return the probability, for each question, that one sample of ``tier`` is right: shape ``(len(questions),)``."""
        ...


class Questions:
    """The questions of one chunk of a data set, as columns. Every attribute is computed once, on first use."""

    def __init__(self, texts: Any, predictor: Predictor | None = None) -> None:
        self.texts = _strings(texts)
        self._predictor = predictor
        self._success: dict[str, Floats] = {}

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def lengths(self) -> Counts:
        """The characters of each question: shape ``(n,)``."""
        return np.asarray(pc.utf8_length(self.texts), dtype=np.int64)

    @cached_property
    def features(self) -> NDArray[np.float32]:
        """The features of each question (`workflow_composer.batch.planning.features`): shape ``(n, features)``."""
        from workflow_composer.batch.planning.features import features

        return features(self.texts)

    def success(self, tier: str) -> Floats:
        """Return the predicted probability that one sample of ``tier`` is right: shape ``(n,)``.

        Raises `ConfigError` if there is no probe.
        """
        if tier not in self._success:
            if self._predictor is None:
                raise ConfigError(
                    "this policy needs a probe, which predicts the tiers' success", hint="add --probing-dataset NAME"
                )
            self._success[tier] = self._predictor.success(self, tier)
        return self._success[tier]


def _strings(texts: Any) -> pa.LargeStringArray:
    """Return one Arrow array of texts without nulls, from a table with a column ``question``, an array or a list."""
    if hasattr(texts, "column_names") or isinstance(texts, pa.RecordBatch):
        texts = texts.column("question")
    try:
        array = texts if isinstance(texts, (pa.Array, pa.ChunkedArray)) else pa.array(texts, pa.large_string())
        array = array.cast(pa.large_string())
    except MemoryError:
        raise
    except pa.ArrowException as error:
        raise InputError(f"questions are not strings: {error}") from error
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # older versions of pyarrow return this for empty chunks
        array = pa.array([], pa.large_string())
    return array.fill_null("")


class BatchStrategy(Protocol):
    """The interface of a batch policy."""

    def routes(self, questions: Questions, context: PlanningContext) -> Sequence[str] | NDArray[np.object_]:
        """Return one routing string per question, in order. Must be fast: whole columns, no I/O, no model calls."""
        ...


StrategyFactory = Callable[..., BatchStrategy]
"""``() -> BatchStrategy``, or ``(tier: str) -> BatchStrategy`` if the user may name a tier; for example a class."""


# ------------------------------------------------------------------------------------------------------ how many votes


def votes_needed(success: Floats, target: float, k_max: int) -> Counts:
    """Return the smallest odd k for which a majority of k independent samples is right with probability ``target``.

    ``success`` (any shape) is the probability p that one sample is right; the majority is right with
    ``P(Binomial(k, p) > k/2)``. If p is too small to reach ``target`` within ``k_max`` votes (always for p <= 1/2, where
    more votes make it worse), the result is ``k_max``: the vote's own confidence then decides about escalation. An even
    ``k_max`` counts as the odd number below it, because an even number of votes can tie.

    The probability that at least m = (k+1)/2 of k are right is the regularised incomplete beta function I_p(m, m), which
    grows with p. Each k therefore has one threshold on p, its inverse at ``target``, and the rows are vectorized.

    >>> votes_needed(np.array([0.95, 0.85, 0.7, 0.4]), target=0.9, k_max=9).tolist()
    [1, 3, 9, 9]
    """
    from scipy.special import betaincinv

    odd = np.arange(1, max(k_max, 1) + 1, 2)
    half = (odd + 1) / 2
    thresholds = betaincinv(half, half, target)  # decreasing: with more votes, p may be smaller
    position = len(odd) - np.searchsorted(thresholds[::-1], success, side="right")
    return np.asarray(odd[np.minimum(position, len(odd) - 1)], dtype=np.int64)


# -------------------------------------------------------------------------------------------------------- the policies


class _Uniform(ABC):
    """A policy with the same route for every question."""

    def routes(self, questions: Questions, context: PlanningContext) -> NDArray[np.object_]:
        """Return the same routing string for every question."""
        return np.full(len(questions), self.route(context), dtype=object)

    @abstractmethod
    def route(self, context: PlanningContext) -> str:
        """Return the routing string."""


class Plain(_Uniform):
    """One greedy answer of the named tier, by default the strongest."""

    def __init__(self, tier: str | None = None) -> None:
        self._tier = tier

    def route(self, context: PlanningContext) -> str:
        """Return the tier's name."""
        tier = context.tiers[-1] if self._tier is None else context.tier(self._tier)
        return context.route([(tier, 1)])


class MajorityVote(_Uniform):
    """A vote of ``k`` samples of the named tier, by default the strongest that is not greedy-only."""

    def __init__(self, tier: str | None = None) -> None:
        self._tier = tier

    def route(self, context: PlanningContext) -> str:
        """Return the routing string of the vote. Raises `ConfigError` if the tier is greedy-only."""
        voting = [tier for tier in context.tiers if not tier.greedy_only]
        if self._tier is None and voting:
            return context.route([(voting[-1], context.k)])
        tier = context.tiers[-1] if self._tier is None else context.tier(self._tier)
        if tier.greedy_only:
            raise ConfigError(f"tier {tier.name!r} is greedy-only and cannot vote", hint="use majority_vote:TIER")
        return context.route([(tier, context.k)])


class Cascade(_Uniform):
    """All tiers in order with ``k`` votes each, and one greedy answer of the last."""

    def route(self, context: PlanningContext) -> str:
        """Return the cascade, without greedy-only tiers before the last: their answers would always be accepted."""
        *before, last = context.tiers
        return context.route([*((tier, context.k) for tier in before if not tier.greedy_only), (last, 1)])


class AdaptiveKSampling:
    """All tiers in order, each with the number of votes that its majority needs by the probe's prediction.

    If one answer suffices by prediction, it is accepted as it is, because a single answer has no vote to measure its
    confidence. A greedy-only tier before the last is therefore skipped if one answer does not suffice.
    """

    entropy: ClassVar[bool] = False

    def routes(self, questions: Questions, context: PlanningContext) -> NDArray[np.object_]:
        """Return a cascade for each question."""
        return _spelled(self.votes(questions, context), context, entropy=self.entropy)

    def votes(self, questions: Questions, context: PlanningContext) -> Counts:
        """Return the votes of each tier, 0 if it is skipped: shape ``(questions, tiers)``."""
        votes = np.ones((len(questions), len(context.tiers)), dtype=np.int64)
        last = len(context.tiers) - 1
        for position, tier in enumerate(context.tiers):
            if tier.greedy_only and position == last:
                continue
            needed = votes_needed(questions.success(tier.name), context.target, context.k_max)
            votes[:, position] = np.where(needed > 1, 0, 1) if tier.greedy_only else needed
        return votes


class CostAwareEscalation(AdaptiveKSampling):
    """`AdaptiveKSampling` that skips the smallest tier if it would need 5 or more votes.

    A model that needs so many votes is wrong nearly as often as right: its vote takes time and is seldom accepted.
    """

    too_many: ClassVar[int] = 5

    def votes(self, questions: Questions, context: PlanningContext) -> Counts:
        """Return the votes of each tier; see `AdaptiveKSampling.votes`."""
        votes = super().votes(questions, context)
        if len(context.tiers) > 1 and not context.tiers[0].greedy_only:
            needed = votes_needed(
                questions.success(context.tiers[0].name), context.target, max(context.k_max, self.too_many)
            )
            votes[needed >= self.too_many, 0] = 0
        return votes


class EntropyAwareEscalation(AdaptiveKSampling):
    """`AdaptiveKSampling` in which a tier with an ambiguous vote draws more samples before it escalates."""

    entropy = True


def _spelled(votes: Counts, context: PlanningContext, *, entropy: bool) -> NDArray[np.object_]:
    """Return one routing string per row of ``votes``; each combination is formatted once."""
    codes = np.zeros(len(votes), dtype=np.int64)
    decoders: list[Counts] = []
    for column in votes.T:  # one code per combination: sorting rows of a matrix is forty times slower
        values, code = np.unique(column, return_inverse=True)
        codes = codes * max(len(values), 1) + code
        decoders.append(values)
    combinations, rows = np.unique(codes, return_inverse=True)
    spelled = np.empty(len(combinations), dtype=object)
    for at, combination in enumerate(combinations.tolist()):
        rest, steps = combination, []
        for tier, values in zip(reversed(context.tiers), reversed(decoders), strict=True):
            rest, code = divmod(rest, len(values))
            if values[code]:
                steps.append((tier, int(values[code])))
        spelled[at] = context.route(steps[::-1], entropy=entropy)
    return spelled[rows]


# ----------------------------------------------------------------------------------------------------------- lookup


def make_policy(text: str, factories: Mapping[str, Callable[..., Any]]) -> BatchStrategy:
    """Return the policy that a user names: ``NAME``, or ``NAME:TIER`` if it takes a tier.

    Raises `ConfigError` for an unknown name, and for a tier that the policy does not take.
    """
    name, colon, tier = text.partition(":")
    if name not in factories:
        known = sorted(factories)
        raise ConfigError(
            f"unknown batch policy {name!r}", hint=nearest(name, known) or f"known policies: {', '.join(known)}"
        )
    try:
        policy = factories[name](tier) if colon else factories[name]()
    except TypeError as error:
        how = f"takes no tier ({text!r})" if colon else "needs a tier (NAME:TIER)"
        raise ConfigError(f"batch policy {name!r} {how}: {error}") from error
    if not callable(getattr(policy, "routes", None)):
        raise ConfigError(f"batch policy {name!r} has no method `routes(questions, context)`")
    return policy  # type: ignore[no-any-return]  # a plugin's object; only the method can be checked


def baseline_routes(context: PlanningContext) -> tuple[str, ...]:
    """Return the baselines of cascades: each tier greedily, then each tier that can vote with ``k`` votes."""
    greedy = [context.route([(tier, 1)]) for tier in context.tiers]
    return (*greedy, *(context.route([(tier, context.k)]) for tier in context.tiers if not tier.greedy_only))
