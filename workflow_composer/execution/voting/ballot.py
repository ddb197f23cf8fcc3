"""A ballot: collects the votes of one tier, says how many more are wanted, and chooses the answer.

The ballot extracts answers, computes the confidence and applies the stopping rule. `VoteSampling` draws the samples that it
wants.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from workflow_composer.answers import reader
from workflow_composer.execution.call import CUT_OFF
from workflow_composer.execution.voting.confidence import confidence, leader, totals
from workflow_composer.execution.voting.stopping import UNREADABLE, StoppingRule, decided_by_weight, stopping_rule
from workflow_composer.execution.voting.vote_kinds import BY_EMBEDDING, AnswerVotes, FormVotes, VoteKind
from workflow_composer.plan import Member, Voting
from workflow_composer.types import Sample, Verdict

AMBIGUOUS_SHARE = 2 / 3
"""Minimum share of the two leading answers for which more votes could settle a vote; below it, the vote is scattered."""


_ROUNDING = 1e-9


class _Standing(NamedTuple):
    """The state of a vote: the votes and their members, then the members of missing and lost votes, one entry per vote."""

    votes: tuple[int, ...]
    voters: tuple[int, ...]
    to_come: tuple[int, ...]
    missing: tuple[int, ...] = ()

    def given(self, group: int, count: int) -> _Standing:
        """Return the state after ``count`` further votes for this group."""
        votes, voters = (*self.votes, *[group] * count), (*self.voters, *self.to_come[:count])
        return _Standing(votes, voters, self.to_come[count:], self.missing)


class Ballot:
    """The votes of one tier. ``last``: no tier follows, so an early rejection saves nothing.

    Members take turns, each in proportion to its number of samples; they have the tier's numbering. ``together``: all wanted
    samples are certainly needed, so one call may request them. ``kind`` says what a sample votes for (None: its final
    answer). Up to ``redraws`` samples that cannot be read are replaced by further ones.
    """

    def __init__(
        self,
        voting: Voting,
        members: Sequence[Member],
        *,
        last: bool = False,
        kind: VoteKind | None = None,
        redraws: int = 0,
    ) -> None:
        self.samples: list[Sample] = []
        self._samples = sum(member.samples for member in members)
        self.together = voting.draw == "as_needed" or voting.stopping == "fixed" or self._samples == 1
        self._voting = voting
        self._last = last
        self._limit = self._samples
        self._most = self._samples + voting.explore
        self._turns = _turns(tuple(member.samples for member in members), self._most)
        self._lost: set[int] = set()
        weights = [member.weight for member in members]
        self._member_weights = weights if len(set(weights)) > 1 else None
        self._kind: VoteKind = AnswerVotes(reader(voting.form)) if kind is None else kind
        self._redraws = redraws
        self._redrawn = 0
        self._rule = _rule(voting.stopping, voting.level)
        self._votes: list[int] = []
        self._voters: list[int] = []
        self._read: list[str | None] = []
        self._answers: list[str] = []
        self._known: dict[str, int] = {}

    async def add(self, sample: Sample, member: int = 0) -> None:
        """Count one sample of this member."""
        if self._kind.judges:
            await self._kind.judge(sample)
        answer = self._kind.read(sample)
        if answer is None and self._redrawn < self._redraws and not self._kind.is_free_text(sample):
            self._redrawn += 1
            return
        groups = self._known if answer is None or answer in self._known else await self._grouped(answer)
        self.samples.append(sample)
        self._voters.append(member)
        self._read.append(answer)
        if groups is self._known:
            self._votes.append(UNREADABLE if answer is None else groups[answer])
            return
        self._known, self._answers = groups, _first_of_each(groups)
        self._votes = [UNREADABLE if read is None else groups[read] for read in self._read]

    def withdraw(self, member: int) -> None:
        """Remove all votes of this member, because another candidate takes over."""
        kept = [at for at, voter in enumerate(self._voters) if voter != member]
        self.samples = [self.samples[at] for at in kept]
        self._votes = [self._votes[at] for at in kept]
        self._voters = [self._voters[at] for at in kept]
        self._read = [self._read[at] for at in kept]
        self._known = {}  # the next answer groups all that are left
        if not kept:
            self._limit = self._samples
            self._answers = []

    def lose(self, member: int) -> None:
        """Record that this member draws no further samples; its missing samples count as votes for no answer."""
        self._lost.add(member)

    def voter(self, sample: int) -> int:
        """The member that gave this sample."""
        return self._voters[sample]

    async def _grouped(self, answer: str) -> dict[str, int]:
        """Return the group of each answer that was read and of this one.

        A new answer may change what the others are, so all are grouped again: the result does not depend on their order.
        """
        answers = list(dict.fromkeys([*[read for read in self._read if read is not None], answer]))
        return dict(zip(answers, await self._kind.groups(answers), strict=True))

    def wanted(self) -> Sequence[int]:
        """The members from which samples are wanted now, in turn order; empty when the vote has ended."""
        now = self._standing()
        if not now.to_come and self._ambiguous():
            self._limit = min(self._most, self._limit + self._samples)
            now = self._standing()
        if self._over(now):
            return ()
        if self._voting.draw == "at_once" or self._voting.stopping == "fixed":
            return now.to_come
        return now.to_come[: self._fewest(now)]

    def _standing(self) -> _Standing:
        come = Counter(self._voters)
        to_come: list[int] = []
        missing: list[int] = []
        for member in self._turns[: self._limit]:
            if come[member]:
                come[member] -= 1
            else:
                (missing if member in self._lost else to_come).append(member)
        return _Standing(tuple(self._votes), tuple(self._voters), tuple(to_come), tuple(missing))

    def _over(self, now: _Standing) -> bool:
        voting = self._voting
        if not now.to_come:
            return True
        if voting.stopping == "fixed" or voting.measure == "score":
            return False
        stopped, certified = self._stops(now)
        if voting.measure == "logprob" and not certified:
            return False  # neither counts nor members' weights decide a leader by probability
        if certified or (stopped and len(now.votes) > 1 and self._is_certain_to_accept(now)):
            return True
        # The last tier's answer is always returned, so its leader must be settled, too.
        return (stopped or not self._last) and self._hopeless(now)

    def _stops(self, now: _Standing) -> tuple[bool, bool]:
        """Return whether the rule stops, and whether it stops because the leader is certain."""
        weights, left = self._weighed(now.voters), self._weighed(now.to_come)
        if weights is None or left is None:
            return _ruled(self._rule, now.votes, len(now.votes) + len(now.to_come))
        return decided_by_weight(totals(now.votes, weights), math.fsum(left)), False

    def _is_certain_to_accept(self, now: _Standing) -> bool:
        """Whether the target is reached even if no further vote is for the leader.

        A leader that cannot be overtaken may still miss a target above one half.
        """
        return self._accepts(now.given(UNREADABLE, len(now.to_come)))

    def _hopeless(self, now: _Standing) -> bool:
        """Whether the target is missed even if all further votes are for the leader."""
        first = leader(now.votes, self._weighed(now.voters))
        return not self._accepts(now.given(0 if first is None else first, len(now.to_come)))

    def _accepts(self, end: _Standing) -> bool:
        if self._voting.measure in ("logprob", "score"):
            return True  # weights and scores of future samples are unknown, so nothing can be ruled out
        votes = (*end.votes, *[UNREADABLE] * len(end.missing))
        found = _confidence(self._voting.measure, votes, self._weighed((*end.voters, *end.missing)))
        return found is None or found >= self._voting.target - _ROUNDING

    def _fewest(self, now: _Standing) -> int:
        """The fewest further samples that could end the vote: all for the leader, or each for a new answer."""
        first, fresh = leader(now.votes, self._weighed(now.voters)), len(self._answers)
        for more in range(1, len(now.to_come)):
            agreeing = now.given(fresh if first is None else first, more)
            apart = agreeing._replace(votes=(*now.votes, *range(fresh, fresh + more)))
            if self._over(agreeing) or self._over(apart):
                return more
        return len(now.to_come)

    def _ambiguous(self) -> bool:
        """Whether more samples are allowed, needed, and could settle the vote."""
        if self._limit >= self._most or self._last or self._lost or self._limit == 1 or self._voting.measure == "score":
            return False
        votes, voters = tuple(self._votes), tuple(self._voters)
        found = confidence(self._voting.measure, votes, self._weights())
        if found is None or found >= self._voting.target - _ROUNDING:
            return False
        weights = self._weighed(voters) or (1.0,) * len(votes)
        by_group = totals(votes, weights)
        if sum(sorted(by_group.values(), reverse=True)[:2]) < AMBIGUOUS_SHARE * math.fsum(weights):
            return False
        further = self._turns[self._limit : self._limit + self._samples]
        return self._accepts(_Standing(votes, voters, further).given(max(by_group, key=by_group.__getitem__), len(further)))

    def _weighed(self, voters: Sequence[int]) -> tuple[float, ...] | None:
        """Return the weights of these members' votes; None if all are equal."""
        given = self._member_weights
        return None if given is None else tuple([given[voter] for voter in voters])

    def _weights(self, missing: Sequence[int] = ()) -> list[float | None] | None:
        """The weight of each vote, then of each missing vote; None if all are equal.

        With `logprob`, a weight is multiplied by the sample's probability per token (geometric mean), 0 for a missing
        sample.
        """
        weights = self._weighed([*self._voters, *missing])
        if self._voting.measure != "logprob":
            return None if weights is None else list(weights)
        given = weights or [1.0] * len(self._votes)
        probable = (_weight(sample) for sample in self.samples)
        found = [None if p is None else p * weight for p, weight in zip(probable, given, strict=False)]
        return [*found, *[0.0] * len(missing)]

    def verdict(self, *, note: str = "") -> Verdict:
        """Return the verdict. ``note`` says why samples of lost members are missing; these count as votes for no answer."""
        if self._voting.measure == "score":
            return self._best_scored(note)
        first = leader(self._votes, self._weights())
        unreadable = self._votes.count(UNREADABLE)
        if self._kind.unknown and first is not None:
            said = self._kind.unknown
            return Verdict(accepted=False, reason=said, choice=self._votes.index(first), unreadable=unreadable, warning=said)
        if unreadable and (free := self._free_text(unreadable, note)) is not None:
            return free
        if first is None:
            reason = note or self._nothing_read()
            return Verdict(accepted=False, confidence=0.0, reason=reason, unreadable=unreadable, asked_again=self._redrawn)
        tally, choice = self._tally(first), self._votes.index(first)
        if self._limit == 1:
            return self._completed(Verdict(accepted=True, reason="a single readable answer", choice=choice, votes=tally))
        missing = self._standing().missing
        found = confidence(self._voting.measure, [*self._votes, *[UNREADABLE] * len(missing)], self._weights(missing))
        accepted = found is not None and found >= self._voting.target - _ROUNDING
        reason = self._reason(found, len(self._votes), note)
        return self._completed(Verdict(accepted, found, reason, choice, tally, unreadable))

    def _completed(self, verdict: Verdict) -> Verdict:
        """Add what a form reads in the chosen sample, and how many samples were replaced."""
        if not isinstance(self._kind, FormVotes):
            return verdict
        read = self._kind.formed(self.samples[verdict.choice])
        if read is None:
            return replace(verdict, asked_again=self._redrawn)
        return replace(verdict, value=read.value, mended=read.mended, asked_again=self._redrawn)

    def _free_text(self, unreadable: int, note: str) -> Verdict | None:
        """Return the verdict if most samples are free text: an answer of unknown confidence, never a share."""
        unread = (at for at, vote in enumerate(self._votes) if vote == UNREADABLE)
        free = [at for at in unread if self._kind.is_free_text(self.samples[at])]
        if len(free) <= len(self._votes) - unreadable:
            return None
        reason = f"{len(free)} of {len(self._votes)} samples are free text: their agreement is unknown"
        return Verdict(
            accepted=False,
            reason=f"{reason}; {note}" if note else reason,
            choice=free[0],
            unreadable=unreadable - len(free),
            asked_again=self._redrawn,
            warning=BY_EMBEDDING,
        )

    def _best_scored(self, note: str) -> Verdict:
        """Choose the sample with the best score; if any sample has no score, the confidence is unknown (not accepted)."""
        scores = [sample.score for sample in self.samples]
        known = [score for score in scores if score is not None]
        best = max(known, default=None) if len(known) == len(scores) else None
        choice = 0 if best is None else scores.index(best)
        votes = self._tally(self._votes[choice] if self._votes else UNREADABLE)
        cut_off = any(sample.cut_off for sample in self.samples[choice : choice + 1])
        accepted = best is not None and best >= self._voting.target - _ROUNDING and not cut_off
        reason = self._reason(best, len(scores), note or (CUT_OFF if cut_off else ""))
        return Verdict(accepted, best, reason, choice, votes, self._votes.count(UNREADABLE))

    def _nothing_read(self) -> str:
        reason = f"no answer could be read in {len(self.samples)} samples"
        cut_off = sum(sample.cut_off for sample in self.samples)
        return f"{reason}; {cut_off} cut off by their length" if cut_off else reason

    def _tally(self, first: int) -> tuple[tuple[str, int], ...]:
        """Return the answers and their counts, the group ``first`` before the others."""
        counts = Counter(vote for vote in self._votes if vote != UNREADABLE)
        ordered = sorted(counts.items(), key=lambda item: (item[0] != first, -item[1], item[0]))
        return tuple((self._answers[group], count) for group, count in ordered)

    def _reason(self, found: float | None, drawn: int, note: str) -> str:
        measure, target = self._voting.measure, self._voting.target
        if found is None:
            return f"{measure} of {drawn} votes is unknown"
        sign = ">=" if found >= target - _ROUNDING else "<"
        return f"{measure} of {drawn} votes {found:.3g} {sign} {target:g}" + (f"; {note}" if note else "")


def _first_of_each(groups: Mapping[str, int]) -> list[str]:
    """Return the first answer of each group; groups are numbered in order of first appearance."""
    found: list[str] = []
    for answer, group in groups.items():
        if group == len(found):
            found.append(answer)
    return found


@lru_cache(maxsize=256)
def _turns(samples: tuple[int, ...], most: int) -> tuple[int, ...]:
    """Return the member of each vote in turn: the one with the smallest part of its samples drawn, the earliest on a tie."""
    if len(samples) == 1:
        return (0,) * most
    drawn, turns = [0] * len(samples), []
    for _ in range(most):
        member = min(range(len(samples)), key=lambda at: (drawn[at] + 1) / samples[at])
        drawn[member] += 1
        turns.append(member)
    return tuple(turns)


@lru_cache(maxsize=64)
def _rule(name: str, level: float | None) -> StoppingRule:
    """Return one object per rule, so that its results can be cached."""
    return stopping_rule(name, level)


@lru_cache(maxsize=65_536)
def _ruled(rule: StoppingRule, votes: tuple[int, ...], limit: int) -> tuple[bool, bool]:
    """Return whether the rule stops, and whether it stops because the leader is certain.

    Cached: a few patterns of votes recur, and a rule can take longer than a look-up.
    """
    return rule.stop(votes, limit), rule.certifies(votes)


@lru_cache(maxsize=65_536)
def _confidence(measure: str, votes: tuple[int, ...], weights: tuple[float, ...] | None) -> float | None:
    return confidence(measure, votes, weights)


def _weight(sample: Sample) -> float | None:
    if not sample.logprobs or not all(isinstance(token.logprob, (int, float)) for token in sample.logprobs):
        return None
    return math.exp(sum(token.logprob for token in sample.logprobs) / len(sample.logprobs))
