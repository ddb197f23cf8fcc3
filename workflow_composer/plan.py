"""The plan: a router's complete instruction for one request.

Escalation moves from tier to tier while the answer is not accepted. A tier has one or more members whose samples are counted
in one vote. Fallback moves through a member's candidates while calls fail. Every router returns a plan, and one executor
runs all plans.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from workflow_composer.answers.form import ANY_FORM, AnswerForm, OutputForm
from workflow_composer.support.fast_dataclass import quick
from workflow_composer.types import Message, Sample, TokenLogprob, Verdict


@quick
@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that can answer.

    ``name`` is its key among the profile's models. ``local`` is true if its data stays on the profile's own machines.
    ``endpoint`` is the role of its server, if it has one. ``capabilities`` is empty if they are unknown.
    """

    name: str
    local: bool
    context_length: int | None = None
    endpoint: str | None = None
    capabilities: tuple[str, ...] = ()


class Acceptance(Protocol):
    """Decides whether a tier's samples answer the request."""

    def __call__(self, samples: Sequence[Sample]) -> Verdict:
        """Judge the samples of one tier, best known first."""
        ...


class Watch(Protocol):
    """Watches one answer while it is generated."""

    def hear(self, tokens: Sequence[TokenLogprob]) -> Verdict | None:
        """Take the next tokens; return the verdict as soon as the answer can no longer be accepted, else None."""
        ...


StartWatch = Callable[[int], Watch]
"""Starts to watch an answer; the argument is its maximum length in tokens."""


class AlwaysAccept:
    """Accept every answer."""

    verdict = Verdict(accepted=True, reason="always accepted")

    def __call__(self, samples: Sequence[Sample]) -> Verdict:
        """Accept without a confidence."""
        return self.verdict

    def __repr__(self) -> str:
        return "always"


ALWAYS = AlwaysAccept()


Measure = Literal["share", "entropy", "posterior", "logprob", "score"]
Stopping = Literal["decided", "beta", "window", "sprt", "martingale", "fixed"]
Drawing = Literal["at_once", "as_needed"]
Grouping = Literal["answer", "embedding"]


@quick
@dataclass(frozen=True, slots=True)
class Voting:
    """How a tier's samples become one answer: a majority vote (self-consistency) and its stopping rule.

    ``measure`` selects the confidence measure (`workflow_composer.execution.voting.confidence`). With ``score`` there is no
    vote: the sample with the best score is the answer, and its score is the confidence. An answer is accepted if its
    confidence is at least ``target``. ``stopping`` selects the rule that may end the vote early
    (`workflow_composer.execution.voting.stopping`), and ``level`` is that rule's parameter. Up to ``explore`` further
    samples are drawn while they could settle the vote. ``draw="at_once"`` requests all samples concurrently and cancels
    those no longer needed; ``"as_needed"`` requests the fewest that could decide, which costs least. ``form`` extracts and
    compares answers. With ``by="embedding"``, free texts are grouped by the profile's embedding role instead: texts whose
    cosine similarity is at least ``similarity``, directly or through others, are one answer.
    """

    measure: Measure = "share"
    target: float = 0.75
    stopping: Stopping = "decided"
    level: float | None = None
    explore: int = 0
    draw: Drawing = "at_once"
    form: AnswerForm = ANY_FORM
    by: Grouping = "answer"
    similarity: float = 0.9

    @property
    def meaning(self) -> dict[str, Any]:
        """The settings as plain data, by which journals know a run; what journals did not always have only if it matters."""
        found = asdict(self)
        if self.by == "answer":
            del found["by"], found["similarity"]
        return found


@dataclass(frozen=True, slots=True)
class PromptForm:
    """A member's rewriting of the request's messages: ``shown(messages)``, a pure function.

    ``name`` identifies the form in logs. Two forms are equal if both their names and their functions are.
    """

    name: str
    shown: Callable[[tuple[Message, ...]], tuple[Message, ...]]


@dataclass(frozen=True, slots=True)
class Member:
    """A voter of a tier: candidates in order of preference; the next one is called only if calls fail (fallback).

    ``samples`` samples are drawn from the first candidate that works, at ``temperature`` (None: the request's), for the
    request's messages as rewritten by ``form``. Each of its votes has the weight ``weight``. Raises `ValueError` for invalid
    values.
    """

    candidates: tuple[Candidate, ...]
    samples: int = 1
    temperature: float | None = None
    form: PromptForm | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.candidates:
            raise ValueError("a member needs at least one candidate")
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, not {self.samples}")
        if not 0.0 < self.weight < math.inf:
            raise ValueError(f"weight must be a positive, finite number, not {self.weight}")


@dataclass(frozen=True, slots=True)
class Tier:
    """One or more members whose samples are counted in one vote. Most tiers have one member: use `Tier.of`.

    With ``voting``, the samples are votes, and the vote decides; otherwise ``accept`` judges the samples of the only member.
    A tier other than the last ends after ``deadline`` seconds, and is skipped if it would probably cost more than ``budget``
    dollars.

    ``form`` is what an answer must be, beside ``accept`` and ``voting``: the model is told, a reply of another form goes
    back to it with what is wrong, at most ``retries`` times, and in a vote a further sample replaces it.

    ``logprobs`` is the number of alternative tokens to request with each log-probability, from candidates that support them
    (None: as in the request). With ``watch``, an answer that can no longer be accepted is abandoned before its end, except
    in the last tier: in streams only, or in every request with ``watch_all``. ``when_unknown`` runs instead of this tier if
    the answer has no log-probabilities to judge it by.

    ``is_plain`` is computed: the tier draws one sample and always accepts it, whatever its form. Raises `ValueError` for
    several members without a vote, or with a vote that is not defined for them: statistical stopping rules assume that all
    votes are draws from one model, and `posterior` and `score` do not support weights.
    """

    members: tuple[Member, ...]
    name: str = ""
    accept: Acceptance = ALWAYS
    voting: Voting | None = None
    deadline: float | None = None
    budget: float | None = None
    logprobs: int | None = None
    watch: StartWatch | None = None
    watch_all: bool = False
    when_unknown: Tier | None = None
    form: OutputForm | None = None
    retries: int = 2
    is_plain: bool = field(init=False, repr=False, compare=False, default=False)

    def __post_init__(self) -> None:
        if len(self.members) != 1:
            self._check_several()
        plain = self.voting is None and self.accept is ALWAYS and self.samples == 1 and self.form is None
        object.__setattr__(self, "is_plain", plain)

    def _check_several(self) -> None:
        count, voting = len(self.members), self.voting
        if voting is None or not count:
            raise ValueError(f"a tier without voting must have exactly one member, not {count}")
        if voting.stopping not in ("decided", "fixed"):
            rule = voting.stopping
            raise ValueError(f"stopping rule {rule!r} supports one member only; for {count}, use 'decided' or 'fixed'")
        if len({member.weight for member in self.members}) > 1 and voting.measure in ("posterior", "score"):
            raise ValueError(f"measure {voting.measure!r} does not support weights; use 'share', 'entropy' or 'logprob'")

    @classmethod
    def of(
        cls,
        candidates: Sequence[Candidate],
        name: str = "",
        samples: int = 1,
        temperature: float | None = None,
        *,
        form: PromptForm | None = None,
        output_form: OutputForm | None = None,
        **options: Any,
    ) -> Tier:
        """Return a tier with one member, whose prompt form is ``form``; ``output_form`` is the tier's ``form``.

        ``options`` are further fields of the tier.
        """
        return cls((Member(tuple(candidates), samples, temperature, form),), name, form=output_form, **options)

    @property
    def samples(self) -> int:
        """Total number of samples of all members."""
        return sum(member.samples for member in self.members)

    @property
    def draws_fixed(self) -> bool:
        """Whether the number of samples is decided before the first one is drawn."""
        voting = self.voting
        return voting is None or (
            not voting.explore and (voting.stopping == "fixed" or voting.measure == "score" or self.samples == 1)
        )

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """The candidates of all members, without duplicates."""
        return tuple(dict.fromkeys(candidate for member in self.members for candidate in member.candidates))

    @property
    def title(self) -> str:
        """The tier's display name: its name, or else the names of its members' first candidates."""
        return self.name or "+".join(member.candidates[0].name for member in self.members)

    @property
    def has_route(self) -> bool:
        """Whether a routing string can express the tier."""
        decides = self.voting is not None or self.accept is ALWAYS
        return decides and len(self.members) == 1 and self.members[0].form is None


@quick
@dataclass(frozen=True, slots=True)
class Plan:
    """Tiers in order of strength: the next one runs only if the answer was not accepted (escalation).

    ``reason`` explains the plan. ``left_out`` lists the candidates that were excluded, each with its reason. ``notes`` lists
    the changes to what the caller asked for. ``budget`` (dollars) applies to requests without a budget. With ``gapless``, a
    tier's answer counts as accepted only if every earlier tier has answered. ``alarm`` says why a guarantee is suspended.
    `str` returns the routing string (`workflow_composer.markers`), or, if no routing string expresses the tiers, the
    router's name, which a request can give as its model.
    """

    tiers: tuple[Tier, ...]
    router: str = ""
    reason: str = ""
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    budget: float | None = None
    gapless: bool = False
    alarm: str = ""

    def __repr__(self) -> str:
        names = " => ".join(tier.title for tier in self.tiers)
        return f"<Plan {str(self) or names!r} by {self.router or 'no router'}: {self.reason}>"

    def __str__(self) -> str:
        if not all(tier.has_route for tier in self.tiers):
            return self.router
        steps = [f"{t.title}_k{t.samples}_t{t.members[0].temperature or 0.0}" for t in self.tiers]
        if len(steps) > 1:
            entropy = any(tier.voting is not None and tier.voting.explore for tier in self.tiers)
            return f"mv_{'entropy_' if entropy else ''}cascade_{'_'.join(steps)}"
        (tier,) = self.tiers
        return f"mv_{steps[0]}" if tier.samples > 1 else tier.title
