"""A ballot: the votes of one tier while they come in, whether more are wanted, and in the end which sample is the answer.

Only the ballot knows how answers are read, what confidence is and when a vote is over; whoever draws samples asks it how
many more it wants, and brings them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from workflow_composer.answers import Reader, reader
from workflow_composer.cascade.confidence import confidence, leader
from workflow_composer.cascade.judging import CUT_OFF
from workflow_composer.cascade.stopping import UNREADABLE, StoppingRule, stopping_rule
from workflow_composer.plan import Tier, Verdict, Voting
from workflow_composer.types import Sample

AMBIGUOUS_SHARE = 2 / 3
"""More votes are thought to settle a vote in which the two leading answers hold this share of it; else it is scattered."""

_ROUNDING = 1e-9


class Ballot:
    """The votes of one tier, from one candidate. ``last``: there is no further tier, so it is no use to give up early.

    ``together``: none of the wanted samples can be spared, so they may be asked for in one call.
    """

    def __init__(self, voting: Voting, samples: int, *, last: bool = False) -> None:
        self.samples: list[Sample] = []
        self.together = voting.draw == "as_needed" or voting.stopping == "fixed" or samples == 1
        self._voting = voting
        self._last = last
        self._limit = samples
        self._most = samples + voting.explore
        self._step = samples
        self._reader: Reader = reader(voting.form)
        self._rule = _rule(voting.stopping, voting.level)
        self._votes: list[int] = []
        self._answers: list[str] = []
        self._known: dict[str, int] = {}

    async def add(self, sample: Sample) -> None:
        """Count one sample."""
        answer = self._reader.read_said(sample)
        group = UNREADABLE if answer is None else await self._group(answer)
        self.samples.append(sample)
        self._votes.append(group)

    async def _group(self, answer: str) -> int:
        """The number of the group of answers that mean the same; a new one where none does."""
        known = self._known.get(answer)
        if known is not None:
            return known
        group = 0
        while group < len(self._answers) and not await self._same(answer, self._answers[group]):
            group += 1
        if group == len(self._answers):
            self._answers.append(answer)
        self._known[answer] = group
        return group

    async def _same(self, answer: str, other: str) -> bool:
        same = self._reader.same(answer, other)
        return await self._reader.decide(answer, other) if same is None else same

    def wanted(self) -> int:
        """How many further samples are wanted now; 0 when the vote is over."""
        votes = self._votes
        if len(votes) >= self._limit and self._ambiguous():
            self._limit = min(self._most, self._limit + self._step)
        if self._over(votes):
            return 0
        left = self._limit - len(votes)
        if self._voting.draw == "at_once" or self._voting.stopping == "fixed":
            return left
        return self._fewest(left)

    def _over(self, votes: Sequence[int]) -> bool:
        limit, voting = self._limit, self._voting
        if len(votes) >= limit:
            return True
        if voting.stopping == "fixed" or voting.measure == "score":
            return False
        stopped, certified = _ruled(self._rule, tuple(votes), limit)
        if voting.measure == "logprob" and not certified:
            return False  # counts do not settle who leads by weight
        if certified or (stopped and len(votes) > 1 and self._is_certain_to_accept(votes)):
            return True
        # The last tier's answer is taken in any case, so there the leader must be settled, too.
        return (stopped or not self._last) and self._hopeless(votes)

    def _is_certain_to_accept(self, votes: Sequence[int]) -> bool:
        """Whether the target is reached even if nothing that is left votes for the leader.

        A leader that cannot be overtaken may yet miss a target above one half.
        """
        return self._accepts([*votes, *[UNREADABLE] * (self._limit - len(votes))])

    def _hopeless(self, votes: Sequence[int]) -> bool:
        """Whether the target is missed even if all that is left votes for the leader."""
        first = leader(votes)
        best = [*votes, *[0 if first is None else first] * (self._limit - len(votes))]
        return not self._accepts(best)

    def _accepts(self, votes: Sequence[int]) -> bool:
        if self._voting.measure in ("logprob", "score"):
            return True  # weights and scores of samples to come are not known; nothing can be said ahead
        found = _confidence(self._voting.measure, tuple(votes))
        return found is None or found >= self._voting.target - _ROUNDING

    def _fewest(self, left: int) -> int:
        """The fewest further samples that could end the vote: all for the leader, or each for an answer of its own."""
        votes = self._votes
        first = leader(votes)
        fresh = len(self._answers)
        for more in range(1, left):
            agreeing = [*votes, *[fresh if first is None else first] * more]
            if self._over(agreeing) or self._over([*votes, *range(fresh, fresh + more)]):
                return more
        return left

    def _ambiguous(self) -> bool:
        """Whether more samples are allowed, needed, and could settle the vote."""
        if self._limit >= self._most or self._last or self._limit == 1:
            return False
        votes = self._votes
        if self._voting.measure == "score":
            return False
        found = confidence(self._voting.measure, votes, self._weights())
        if found is None or found >= self._voting.target - _ROUNDING:
            return False
        counts = Counter(vote for vote in votes if vote != UNREADABLE)
        if sum(count for _, count in counts.most_common(2)) < AMBIGUOUS_SHARE * len(votes):
            return False
        return self._accepts([*votes, *[counts.most_common(1)[0][0]] * min(self._step, self._most - self._limit)])

    def _weights(self) -> list[float | None] | None:
        """Each sample's probability per token (geometric mean); None where votes count alike."""
        if self._voting.measure != "logprob":
            return None
        return [_weight(sample) for sample in self.samples]

    def verdict(self, *, cut_short: str = "") -> Verdict:
        """The answer, and whether it is taken. ``cut_short`` says why samples that were wanted did not come.

        Those that did not come then count as votes for nothing: what they would have said is not known.
        """
        if self._voting.measure == "score":
            return self._best_scored(cut_short)
        votes, weights = list(self._votes), self._weights()
        if cut_short:
            missing = self._limit - len(votes)
            votes += [UNREADABLE] * missing
            weights = None if weights is None else [*weights, *[0.0] * missing]
        first = leader(votes, weights)
        unreadable = self._votes.count(UNREADABLE)
        if first is None:
            reason = cut_short or self._nothing_read(len(votes))
            return Verdict(accepted=False, confidence=0.0, reason=reason, unreadable=unreadable)
        tally, choice = self._tally(first), self._votes.index(first)
        if self._limit == 1:
            return Verdict(accepted=True, reason="one answer, which could be read", choice=choice, votes=tally)
        found = confidence(self._voting.measure, votes, weights)
        accepted = found is not None and found >= self._voting.target - _ROUNDING
        return Verdict(accepted, found, self._reason(found, len(self._votes), cut_short), choice, tally, unreadable)

    def _best_scored(self, cut_short: str) -> Verdict:
        """The sample with the best score; unknown, and not accepted, where any has none."""
        scores = [sample.score for sample in self.samples]
        known = [score for score in scores if score is not None]
        best = max(known, default=None) if len(known) == len(scores) else None
        choice = 0 if best is None else scores.index(best)
        votes = self._tally(self._votes[choice] if self._votes else UNREADABLE)
        cut_off = any(sample.cut_off for sample in self.samples[choice : choice + 1])
        accepted = best is not None and best >= self._voting.target - _ROUNDING and not cut_off
        reason = self._reason(best, len(scores), cut_short or (CUT_OFF if cut_off else ""))
        return Verdict(accepted, best, reason, choice, votes, self._votes.count(UNREADABLE))

    def _nothing_read(self, votes: int) -> str:
        reason = f"no answer could be read in {votes} samples"
        cut_off = sum(sample.cut_off for sample in self.samples)
        return f"{reason}; {cut_off} cut off by their length" if cut_off else reason

    def _tally(self, first: int) -> tuple[tuple[str, int], ...]:
        """Answers and their counts, the group ``first`` before the others."""
        counts = Counter(vote for vote in self._votes if vote != UNREADABLE)
        ordered = sorted(counts.items(), key=lambda item: (item[0] != first, -item[1], item[0]))
        return tuple((self._answers[group], count) for group, count in ordered)

    def _reason(self, found: float | None, drawn: int, cut_short: str) -> str:
        measure, target = self._voting.measure, self._voting.target
        if found is None:
            return f"{measure} of {drawn} votes is unknown"
        sign = ">=" if found >= target - _ROUNDING else "<"
        return f"{measure} of {drawn} votes {found:.3g} {sign} {target:g}" + (f"; {cut_short}" if cut_short else "")


def ballot_of(tier: Tier, *, last: bool) -> Ballot:
    """A fresh ballot for a tier that votes."""
    assert tier.voting is not None  # asked for by who has looked
    return Ballot(tier.voting, tier.samples, last=last)


@lru_cache(maxsize=64)
def _rule(name: str, level: float | None) -> StoppingRule:
    """One object per rule, so that what it says can be remembered."""
    return stopping_rule(name, level)


@lru_cache(maxsize=65_536)
def _ruled(rule: StoppingRule, votes: tuple[int, ...], limit: int) -> tuple[bool, bool]:
    """Whether the rule stops, and whether it does so because it is sure of the leader.

    Remembered: the same few patterns of votes come again and again, and a rule may take longer than a look-up.
    """
    return rule.stop(votes, limit), rule.certifies(votes)


@lru_cache(maxsize=65_536)
def _confidence(measure: str, votes: tuple[int, ...]) -> float | None:
    return confidence(measure, votes)


def _weight(sample: Sample) -> float | None:
    if not sample.logprobs:
        return None
    return math.exp(sum(token.logprob for token in sample.logprobs) / len(sample.logprobs))
