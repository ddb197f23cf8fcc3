"""Drawing the votes of one tier: concurrently, from the first candidate that works, and no more than the ballot wants.

Samples come either each by a call of its own, so that the rest can be cancelled at the server as soon as the vote is
decided, or together in one call where none of them can be spared (then the prompt is sent and paid for once).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence

from workflow_composer.cascade.attempt import Walk
from workflow_composer.cascade.voting import Ballot
from workflow_composer.errors import ModelError
from workflow_composer.types import Candidate, Completion, ModelCall

Draw = Callable[[Candidate, ModelCall, Walk], Awaitable[Completion]]
NewWalk = Callable[[int], Walk]
NewCall = Callable[[int, int], ModelCall]


class GivenUp(Exception):  # no error: the way goes on at ``position``
    """The candidate is given up; the next one stands at ``position``."""

    def __init__(self, position: int) -> None:
        super().__init__(position)
        self.position = position


class Poll:
    """One ballot, filled by one candidate.

    ``draw`` makes one call; ``walk(position)`` is a fresh way through the tier's candidates; ``call(samples, first)`` is
    what is asked, ``first`` being the number of the first sample. ``model`` is the name that the server gave itself.
    """

    def __init__(self, ballot: Ballot, *, position: int, draw: Draw, walk: NewWalk, call: NewCall) -> None:
        self.model = ""
        self._ballot = ballot
        self._position = position
        self._draw = draw
        self._walk = walk
        self._call = call
        self._asked = 0

    async def run(self, *, gently: bool = False) -> None:
        """Draw until the ballot wants no more. Raises `GivenUp`, or a `ModelError` that no other candidate can mend.

        ``gently``: the candidate was in trouble, so one call goes ahead of the others.
        """
        under_way: dict[asyncio.Task[Completion], int] = {}
        try:
            while True:
                wanted = self._ballot.wanted()
                if not wanted:
                    return
                self._start(under_way, 1 if gently else wanted)
                done, _ = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                await self._count(sorted(done, key=under_way.__getitem__))
                for task in done:
                    del under_way[task]
                gently = False
        finally:
            await _cancel(under_way)

    def _start(self, under_way: dict[asyncio.Task[Completion], int], wanted: int) -> None:
        """See that so many samples are under way; each task goes with the number of its first sample."""
        size = wanted if self._ballot.together else 1
        while len(under_way) * size < wanted:
            under_way[asyncio.ensure_future(self._ask(size, self._asked))] = self._asked
            self._asked += size

    async def _count(self, done: Sequence[asyncio.Task[Completion]]) -> None:
        """Count what has come; raises the first failure where the vote is not decided without it."""
        failure: BaseException | None = None
        for task in done:
            if (error := task.exception()) is not None:
                failure = failure or error
                continue
            completion = task.result()
            self.model = completion.model
            for sample in completion.samples:
                await self._ballot.add(sample)
        if failure is not None and self._ballot.wanted():
            raise failure

    async def _ask(self, samples: int, first: int) -> Completion:
        walk = self._walk(self._position)
        while (candidate := walk.next()) is not None and walk.position == self._position:
            try:
                return await self._draw(candidate, self._call(samples, first), walk)
            except ModelError as error:
                await walk.failed(error)
        raise GivenUp(walk.position)


async def _cancel(tasks: Iterable[asyncio.Task[Completion]]) -> None:
    """Stop what is no longer needed, and wait until it has: its cost is then on record."""
    pending = list(tasks)
    for task in pending:
        task.cancel()
    if pending:
        await asyncio.gather(*pending, return_exceptions=True)
