"""Sampling of one tier's votes: concurrent calls, each member's first working candidate, no more samples than wanted.

Each sample is a separate call, so that calls no longer needed can be cancelled at the server when the vote is decided. If
all of a member's samples are certainly needed, one call requests them, so that the prompt is sent and paid for once.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from workflow_composer.errors import BudgetExceeded, ModelError
from workflow_composer.execution.call import Outcome, Trace
from workflow_composer.execution.member_run import MemberRun, Models
from workflow_composer.execution.voting.ballot import Ballot
from workflow_composer.execution.voting.vote_kinds import VoteKind
from workflow_composer.plan import Candidate, Member, Tier
from workflow_composer.types import Attempt, Completion, LLMRequest


class GivenUp(Exception):  # no error: sampling continues with the candidate at ``position``
    """The candidate's last attempt, ``failed``, is over; the next candidate is at ``position``."""

    def __init__(self, position: int, failed: Attempt | None) -> None:
        super().__init__(position)
        self.position = position
        self.failed = failed


@dataclass(slots=True, eq=False)
class _Seat:
    """A member's state: the candidate that draws its samples.

    ``model`` is the model name reported by the server. ``gently``: the candidate failed recently, so one call is made before
    the others.
    """

    number: int
    member: Member
    position: int = 0
    model: str = ""
    gently: bool = False

    @property
    def candidate(self) -> Candidate:
        """The candidate that draws the samples."""
        return self.member.candidates[self.position]


@dataclass(frozen=True, slots=True)
class _Draw:
    """A running call: its member, the number of its first sample, and its number of samples."""

    seat: _Seat
    first: int
    samples: int


class Poll:
    """Fills one ballot with the samples of a tier's members. A member that fails does not affect the others' votes."""

    def __init__(
        self,
        models: Models,
        index: int,
        tier: Tier,
        request: LLMRequest,
        trace: Trace,
        kind: VoteKind,
        *,
        last: bool = True,
    ) -> None:
        assert tier.voting is not None  # the caller has checked
        self._models = models
        self._quiet = replace(models, observer=None)  # concurrent calls would report the same fallback many times
        self._index = index
        self._tier = tier
        self._request = request
        self._trace = trace
        self._patience = None if last else tier.deadline
        redraws = 0 if tier.form is None else tier.retries
        self._ballot = Ballot(tier.voting, tier.members, last=last, kind=kind, redraws=redraws)
        self._seats = [_Seat(number, member) for number, member in enumerate(tier.members)]
        self._under_way: dict[asyncio.Task[Completion], _Draw] = {}
        self._asked: Counter[str] = Counter()  # samples are numbered per model, which several members may share
        self._note = ""
        self._failure: ModelError | BudgetExceeded | None = None
        self._first_attempt = len(trace.attempts)

    async def run(self) -> Outcome:
        """Draw until the ballot wants no more samples, or until the deadline of a tier other than the last.

        Raises `AllCandidatesFailed` if no sample was drawn, and a `ModelError` that no other candidate can fix.
        """
        for seat in self._seats:
            self._begin(seat, 0)
        try:
            async with asyncio.timeout(self._patience):
                await self._fill()
        except TimeoutError:
            self._note = f"the tier's deadline of {self._tier.deadline:g} s passed"
            for seat in self._seats:
                self._ballot.lose(seat.number)
        finally:
            await self._cancel(list(self._under_way))
        if not self._ballot.samples:
            raise self._failure or self._models.exhausted(self._trace, self._first_attempt, self._note)
        verdict = self._ballot.verdict(note=self._note)
        seat = self._seats[self._ballot.voter(verdict.choice)]
        samples = tuple(self._ballot.samples)
        return Outcome(samples, seat.model, seat.candidate, self._index, seat.position, verdict)

    def _begin(self, seat: _Seat, position: int) -> None:
        """Let this candidate draw the member's samples from now on."""
        seat.position = position
        seat.gently = self._models.endpoints[seat.candidate.name].breaker.state != "closed"

    async def _fill(self) -> None:
        while wanted := self._ballot.wanted():
            for seat in self._seats:
                self._start(seat, wanted.count(seat.number))
            done, _ = await asyncio.wait(self._under_way, return_when=asyncio.FIRST_COMPLETED)
            await self._count([task for task in self._under_way if task in done])

    def _start(self, seat: _Seat, wanted: int) -> None:
        """Start calls until this number of the member's samples is in flight."""
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
        """Count the finished samples. A failure matters only if the vote is not decided without its sample."""
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
        for seat, error in dict(reversed(failures)).items():  # the first failure of each member
            if self._ballot.wanted():
                await self._replace(seat, error)

    async def _replace(self, seat: _Seat, error: BaseException) -> None:
        """Let the next candidate draw all of the member's samples; if none is left, keep those drawn.

        Raises ``error`` if no candidate can fix it and the member is the only one, unless there are samples and only the
        money for more is missing.
        """
        alone = len(self._seats) == 1
        can_go_on = not alone or (isinstance(error, BudgetExceeded) and self._ballot.samples)
        if not isinstance(error, GivenUp) and not (can_go_on and isinstance(error, (ModelError, BudgetExceeded))):
            raise error
        await self._cancel([task for task, draw in self._under_way.items() if draw.seat is seat])
        if not isinstance(error, GivenUp) or error.position >= len(seat.member.candidates) or self._trace.over:
            self._note = "drawing further samples failed" + ("" if alone else f" for {seat.candidate.name}")
            if isinstance(error, (ModelError, BudgetExceeded)):
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
        if run.unpaid is not None:
            raise run.exhausted()
        raise GivenUp(run.position, self._trace.attempts[-1] if self._trace.attempts else None)

    async def _cancel(self, tasks: Iterable[asyncio.Task[Completion]]) -> None:
        """Cancel the calls that are no longer needed and wait for their end, so that their cost is recorded."""
        pending = list(tasks)
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.gather(*pending, return_exceptions=True)
        for task in pending:
            del self._under_way[task]
