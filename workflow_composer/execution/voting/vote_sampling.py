"""Drawing the votes of one tier: concurrently, each member's from its first candidate that works, and no more than wanted.

Samples come either each by a call of its own, so that the rest can be cancelled at the server as soon as the vote is
decided, or a member's together in one call where none of them can be spared (then the prompt is sent and paid for once).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from workflow_composer.errors import ModelError
from workflow_composer.execution.call import Outcome, Trace
from workflow_composer.execution.member_run import MemberRun, Models, exhausted
from workflow_composer.execution.voting.ballot import Ballot
from workflow_composer.plan import Candidate, Member, Tier
from workflow_composer.types import Attempt, Completion, LLMRequest


class GivenUp(Exception):  # no error: the way goes on at ``position``
    """The candidate is given up after its last attempt, ``failed``; the next one stands at ``position``."""

    def __init__(self, position: int, failed: Attempt | None) -> None:
        super().__init__(position)
        self.position = position
        self.failed = failed


@dataclass(slots=True, eq=False)
class _Seat:
    """A member at the poll: which of its candidates draws for it.

    ``model`` is the name that its server gave itself. ``gently``: the candidate was in trouble, so one call goes ahead of
    the others.
    """

    number: int
    member: Member
    position: int = 0
    model: str = ""
    gently: bool = False

    @property
    def candidate(self) -> Candidate:
        """Who draws."""
        return self.member.candidates[self.position]


@dataclass(frozen=True, slots=True)
class _Draw:
    """A call under way: for whom, the number of its first sample, and how many they are."""

    seat: _Seat
    first: int
    samples: int


class Poll:
    """One ballot, filled by a tier's members. A member that fails takes nobody else's votes with it."""

    def __init__(
        self, models: Models, index: int, tier: Tier, request: LLMRequest, trace: Trace, *, last: bool = True
    ) -> None:
        assert tier.voting is not None  # asked for by who has looked
        self._models = models
        self._quiet = replace(models, observer=None)  # each of many calls would tell of the same fallback
        self._index = index
        self._tier = tier
        self._request = request
        self._trace = trace
        self._patience = None if last else tier.deadline
        self._ballot = Ballot(tier.voting, tier.members, last=last)
        self._seats = [_Seat(number, member) for number, member in enumerate(tier.members)]
        self._under_way: dict[asyncio.Task[Completion], _Draw] = {}
        self._asked: Counter[str] = Counter()  # members may share a model, and each sample of it has a number
        self._note = ""
        self._failure: ModelError | None = None
        self._first_attempt = len(trace.attempts)

    async def run(self) -> Outcome:
        """Draw until the ballot wants no more; a tier that is not the last, for at most as long as it may take.

        Raises `AllCandidatesFailed` where no sample came, and a `ModelError` that no other candidate can mend.
        """
        for seat in self._seats:
            self._begin(seat, 0)
        try:
            async with asyncio.timeout(self._patience):
                await self._fill()
        except TimeoutError:
            self._note = f"the tier was given up after {self._tier.deadline:g} s"
            for seat in self._seats:
                self._ballot.lose(seat.number)
        finally:
            await self._cancel(list(self._under_way))
        if not self._ballot.samples:
            raise self._failure or exhausted(self._trace.attempts[self._first_attempt :], self._note)
        verdict = self._ballot.verdict(note=self._note)
        seat = self._seats[self._ballot.voter(verdict.choice)]
        samples = tuple(self._ballot.samples)
        return Outcome(samples, seat.model, seat.candidate, self._index, seat.position, verdict)

    def _begin(self, seat: _Seat, position: int) -> None:
        """That candidate draws for the member from now on."""
        seat.position = position
        seat.gently = self._models.endpoints[seat.candidate.name].breaker.state != "closed"

    async def _fill(self) -> None:
        while wanted := self._ballot.wanted():
            for seat in self._seats:
                self._start(seat, wanted.count(seat.number))
            done, _ = await asyncio.wait(self._under_way, return_when=asyncio.FIRST_COMPLETED)
            await self._count([task for task in self._under_way if task in done])

    def _start(self, seat: _Seat, wanted: int) -> None:
        """See that so many of a member's samples are under way."""
        if seat.gently:
            wanted = min(wanted, 1)
        under_way = sum(draw.samples for draw in self._under_way.values() if draw.seat is seat)
        if self._ballot.together and under_way:
            return
        size = wanted if self._ballot.together else 1
        while under_way < wanted:
            draw = _Draw(seat, self._asked[seat.candidate.name], size)
            self._under_way[asyncio.ensure_future(self._ask(draw))] = draw
            self._asked[seat.candidate.name] += size
            under_way += size

    async def _count(self, done: Sequence[asyncio.Task[Completion]]) -> None:
        """Count what has come. A failure matters only where the vote is not decided without that sample."""
        failures: list[tuple[_Seat, BaseException]] = []
        for task in done:
            seat = self._under_way.pop(task).seat
            seat.gently = False
            if (error := task.exception()) is not None:
                failures.append((seat, error))
                continue
            completion = task.result()
            seat.model = completion.model
            for sample in completion.samples:
                await self._ballot.add(sample, seat.number)
        for seat, error in dict(reversed(failures)).items():  # the first of each
            if self._ballot.wanted():
                await self._replace(seat, error)

    async def _replace(self, seat: _Seat, error: BaseException) -> None:
        """The next candidate draws all of the member's samples; where there is none, what has been drawn stands.

        Raises ``error`` where no candidate can mend it, and the member is alone.
        """
        alone = len(self._seats) == 1
        if not isinstance(error, GivenUp) and (alone or not isinstance(error, ModelError)):
            raise error
        await self._cancel([task for task, draw in self._under_way.items() if draw.seat is seat])
        if not isinstance(error, GivenUp) or error.position >= len(seat.member.candidates) or self._trace.over:
            self._note = "no further sample could be drawn" + ("" if alone else f" from {seat.candidate.name}")
            if isinstance(error, ModelError):
                self._failure = error
                self._note += f" ({type(error).__name__})"
            self._ballot.lose(seat.number)
            return
        self._ballot.withdraw(seat.number)
        self._begin(seat, error.position)
        if self._models.observer is not None and error.failed is not None:
            self._models.observer.on_fallback(self._request, error.failed, seat.candidate)

    async def _ask(self, draw: _Draw) -> Completion:
        seat, position = draw.seat, draw.seat.position
        run = MemberRun(
            self._quiet,
            self._index,
            self._tier,
            seat.member,
            self._request,
            self._trace,
            position=position,
            samples=draw.samples,
            first=draw.first,
        )
        while run.next() and run.position == position:
            try:
                return await run.complete()
            except ModelError as error:
                await run.failed(error)
        raise GivenUp(run.position, self._trace.attempts[-1] if self._trace.attempts else None)

    async def _cancel(self, tasks: Iterable[asyncio.Task[Completion]]) -> None:
        """Stop what is no longer needed, and wait until it has: its cost is then on record."""
        pending = list(tasks)
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.gather(*pending, return_exceptions=True)
        for task in pending:
            del self._under_way[task]
