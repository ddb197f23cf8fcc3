"""The Plan: the one value by which a router says what is to be done.

Tiers are tried while the answer is not accepted (escalation); a tier's candidates while calls fail (fallback). Every way of
routing is a plan, and one executor runs them all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from workflow_composer.answers.form import ANY_FORM, AnswerForm
from workflow_composer.sample import Sample, TokenLogprob
from workflow_composer.values import quick


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


@quick
@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a tier's answer is taken. ``confidence`` is None where nothing is known: unknown is not confident.

    ``choice`` is the position of the sample that is the answer. Where there was a vote, ``votes`` are the answers and how
    many samples gave each, the leader first; ``unreadable`` samples voted for nothing, or are no answer (cut off by their
    length, or empty). ``straight_up``: the answer is so
    doubtful that the last tier is asked next, and none between.
    """

    accepted: bool
    confidence: float | None = None
    reason: str = ""
    choice: int = 0
    votes: tuple[tuple[str, int], ...] = ()
    unreadable: int = 0
    straight_up: bool = False


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

    _verdict = Verdict(accepted=True, reason="always accepted")

    def __call__(self, samples: Sequence[Sample]) -> Verdict:
        """Accept; the confidence stays unknown."""
        return self._verdict

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

    ``measure`` says what confidence is (`workflow_composer.cascade.confidence`; with ``score`` there is no vote: the sample
    with the best score is the answer, and its score the confidence). An answer is accepted from ``target`` on.
    ``stopping`` names the rule that may end the vote early (`workflow_composer.cascade.stopping`), ``level`` its own
    parameter. ``explore`` further samples at the most are drawn while more votes could settle it. ``draw``: ``at_once``
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


@quick
@dataclass(frozen=True, slots=True)
class Tier:
    """Candidates in order of preference: the next is asked only while calls fail (fallback).

    ``samples`` answers are drawn from the one that works, at ``temperature`` (None: the request's own). With ``voting``
    they are votes, and it decides; else ``accept`` does. A tier that is not the last is given up after ``deadline``
    seconds, and is not started where ``budget`` dollars would probably not pay for it.

    ``logprobs``: so many alternatives are asked for beside each token's log-probability, of candidates that can give them;
    None: what the request asks for. With ``watch`` an answer that cannot be accepted any more is abandoned before its end,
    unless this is the last tier: in streams, and with ``watch_all`` in every request. ``when_unknown`` is run in this tier's
    place where the answer tells nothing of its own certainty.
    """

    candidates: tuple[Candidate, ...]
    name: str = ""
    samples: int = 1
    temperature: float | None = None
    accept: Acceptance = ALWAYS
    voting: Voting | None = None
    deadline: float | None = None
    budget: float | None = None
    logprobs: int | None = None
    watch: StartWatch | None = None
    watch_all: bool = False
    when_unknown: Tier | None = None


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
        if any(tier.voting is None and tier.accept is not ALWAYS for tier in self.tiers):
            return self.router
        steps = [f"{t.name or t.candidates[0].name}_k{t.samples}_t{t.temperature or 0.0}" for t in self.tiers]
        if len(steps) > 1:
            entropy = any(tier.voting is not None and tier.voting.explore for tier in self.tiers)
            return f"mv_{'entropy_' if entropy else ''}cascade_{'_'.join(steps)}"
        (tier,) = self.tiers
        return f"mv_{steps[0]}" if tier.samples > 1 else tier.name or tier.candidates[0].name
