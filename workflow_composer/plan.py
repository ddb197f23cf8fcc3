"""The Plan: the one value by which a router says what is to be done.

Tiers are tried while the answer is not accepted (escalation). A tier is one or more members whose samples are counted in one
vote, and a member's candidates are tried while calls fail (fallback). Every way of routing is a plan, and one executor runs
them all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from workflow_composer.answers.form import ANY_FORM, AnswerForm
from workflow_composer.support.fast_dataclass import quick
from workflow_composer.types import Message, Sample, TokenLogprob, Verdict


@quick
@dataclass(frozen=True, slots=True)
class Candidate:
    """One model that could answer.

    ``name`` is its key among the profile's models; ``local`` says whether its bytes stay on the profile's own machines;
    ``endpoint`` names the role of the server behind it, where there is one; ``capabilities`` is empty where nothing is
    known.
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
    """Follows one answer while it is generated."""

    def hear(self, tokens: Sequence[TokenLogprob]) -> Verdict | None:
        """Hear the next tokens; the verdict, as soon as it is certain that the answer will not be accepted."""
        ...


StartWatch = Callable[[int], Watch]
"""Begins to follow an answer of at most so many tokens."""


class AlwaysAccept:
    """Take whatever comes."""

    verdict = Verdict(accepted=True, reason="always accepted")

    def __call__(self, samples: Sequence[Sample]) -> Verdict:
        """Accept; the confidence stays unknown."""
        return self.verdict

    def __repr__(self) -> str:
        return "always"


ALWAYS = AlwaysAccept()


Measure = Literal["share", "entropy", "posterior", "logprob", "score"]
Stopping = Literal["decided", "beta", "window", "sprt", "martingale", "fixed"]
Drawing = Literal["at_once", "as_needed"]


@quick
@dataclass(frozen=True, slots=True)
class Voting:
    """How the samples of a tier become one answer: a majority vote (self-consistency), and when it is over.

    ``measure`` says what confidence is (`workflow_composer.execution.voting.confidence`; with ``score`` there is no vote:
    the sample with the best score is the answer, and its score the confidence). An answer is accepted from ``target`` on.
    ``stopping`` names the rule that may end the vote early (`workflow_composer.execution.voting.stopping`), ``level`` its
    own parameter. ``explore`` further samples at the most are drawn while more votes could settle it. ``draw``: ``at_once``
    asks for all samples at the same time and cancels what is no longer needed; ``as_needed`` asks for the fewest that could
    decide, so that nothing is paid for in vain. ``form`` reads and compares answers.
    """

    measure: Measure = "share"
    target: float = 0.75
    stopping: Stopping = "decided"
    level: float | None = None
    explore: int = 0
    draw: Drawing = "at_once"
    form: AnswerForm = ANY_FORM


@dataclass(frozen=True, slots=True)
class PromptForm:
    """What a member reads in place of the request's messages: ``shown(messages)``, a pure function.

    ``name`` tells a person which form it is. Two forms are equal where both name and function are.
    """

    name: str
    shown: Callable[[tuple[Message, ...]], tuple[Message, ...]]


@dataclass(frozen=True, slots=True)
class Member:
    """One voice in a tier: candidates in order of preference; the next is asked only while calls fail (fallback).

    ``samples`` answers are drawn from the one that works, at ``temperature`` (None: the request's own), to the request's
    messages as ``form`` shows them. Each of its votes counts ``weight``. Raises `ValueError` for values that cannot be.
    """

    candidates: tuple[Candidate, ...]
    samples: int = 1
    temperature: float | None = None
    form: PromptForm | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.candidates:
            raise ValueError("a member needs a candidate")
        if self.samples < 1:
            raise ValueError(f"a member draws at least one sample, not {self.samples}")
        if not 0.0 < self.weight < math.inf:
            raise ValueError(f"the weight of a vote is a positive number, not {self.weight}")


@dataclass(frozen=True, slots=True)
class Tier:
    """One or more members whose samples are counted in one vote. Most tiers have one member: `Tier.of` makes these.

    With ``voting`` the samples are votes, and it decides; else ``accept`` does, on the samples of the only member. A tier
    that is not the last is given up after ``deadline`` seconds, and is not started where ``budget`` dollars would probably
    not pay for it.

    ``logprobs``: so many alternatives are asked for beside each token's log-probability, of candidates that can give them;
    None: what the request asks for. With ``watch`` an answer that cannot be accepted any more is abandoned before its end,
    unless this is the last tier: in streams, and with ``watch_all`` in every request. ``when_unknown`` is run in this tier's
    place where the answer tells nothing of its own certainty.

    ``is_plain`` is computed: the tier draws one sample, and takes it whatever it is. Raises `ValueError` for several members
    without a vote, or with one that is not defined for them: statistical stopping rules take all votes for draws of one
    model, and `posterior` and `score` know no weights.
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
    is_plain: bool = field(init=False, repr=False, compare=False, default=False)

    def __post_init__(self) -> None:
        if len(self.members) != 1:
            self._check_several()
        plain = self.voting is None and self.accept is ALWAYS and self.samples == 1
        object.__setattr__(self, "is_plain", plain)

    def _check_several(self) -> None:
        count, voting = len(self.members), self.voting
        if voting is None or not count:
            raise ValueError(f"a tier without a vote has exactly one member, not {count}")
        if voting.stopping not in ("decided", "fixed"):
            rule = voting.stopping
            raise ValueError(f"stopping rule {rule!r} needs votes of one member; for {count}, use 'decided' or 'fixed'")
        if len({member.weight for member in self.members}) > 1 and voting.measure in ("posterior", "score"):
            raise ValueError(f"measure {voting.measure!r} knows no weights; use 'share', 'entropy' or 'logprob'")

    @classmethod
    def of(
        cls,
        candidates: Sequence[Candidate],
        name: str = "",
        samples: int = 1,
        temperature: float | None = None,
        *,
        form: PromptForm | None = None,
        **options: Any,
    ) -> Tier:
        """A tier of one member. ``options`` are the tier's own fields."""
        return cls((Member(tuple(candidates), samples, temperature, form),), name, **options)

    @property
    def samples(self) -> int:
        """Samples that all members draw together."""
        return sum(member.samples for member in self.members)

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Every candidate of every member, each once."""
        return tuple(dict.fromkeys(candidate for member in self.members for candidate in member.candidates))

    @property
    def title(self) -> str:
        """What a person calls the tier: its name, else those of its members' first candidates."""
        return self.name or "+".join(member.candidates[0].name for member in self.members)

    @property
    def has_route(self) -> bool:
        """Whether a routing string can say what the tier does."""
        decides = self.voting is not None or self.accept is ALWAYS
        return decides and len(self.members) == 1 and self.members[0].form is None


@quick
@dataclass(frozen=True, slots=True)
class Plan:
    """Tiers in order of strength: the next is asked only while the answer is not accepted (escalation).

    ``reason`` tells a person why; ``left_out`` what could have served but may not or cannot, each with its reason;
    ``notes`` what was changed in what the caller asked for; ``budget`` (dollars) holds for requests that name none.
    ``gapless``: a tier's answer counts as accepted only where every tier before it has answered. ``alarm`` says why a
    guarantee is suspended. `str` gives the routing string (`workflow_composer.markers`), or, where none says what its tiers
    accept, the router's name, which requests can ask for.
    """

    tiers: tuple[Tier, ...]
    router: str = ""
    reason: str = ""
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    budget: float | None = None
    gapless: bool = False
    alarm: str = ""

    def __str__(self) -> str:
        if not all(tier.has_route for tier in self.tiers):
            return self.router
        steps = [f"{t.title}_k{t.samples}_t{t.members[0].temperature or 0.0}" for t in self.tiers]
        if len(steps) > 1:
            entropy = any(tier.voting is not None and tier.voting.explore for tier in self.tiers)
            return f"mv_{'entropy_' if entropy else ''}cascade_{'_'.join(steps)}"
        (tier,) = self.tiers
        return f"mv_{steps[0]}" if tier.samples > 1 else tier.title
