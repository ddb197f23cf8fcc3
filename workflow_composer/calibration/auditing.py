"""Audits while requests are served: some accepted answers, drawn at random, are checked; too many errors raise the alarm.

An audit never delays an answer and never fails a request: it runs beside, and what goes wrong with it is reported once.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future

from workflow_composer.calibration.audits import AuditLog
from workflow_composer.calibration.certificate import Certificate
from workflow_composer.errors import WorkflowComposerError
from workflow_composer.runner import stands_still
from workflow_composer.types import LLMRequest, LLMResponse

Judge = Callable[[LLMRequest, LLMResponse], Awaitable[bool | None]]
"""Whether the answer is right; None: it cannot tell, and the audit waits for somebody who can."""

_LOOK_EVERY = 1.0
"""Seconds between two looks at what other processes have written."""


class Auditor:
    """Draws, has graded and watches the accepted answers of one certificate.

    ``rate``: the share of accepted answers that is drawn. ``judge`` grades them; None: they wait for ``feedback``.
    ``allowance``: how often (at most) the judge calls right answers wrong, by group. ``report`` is told of an alarm, and of
    trouble with the file, in one sentence.
    """

    def __init__(
        self,
        log: AuditLog,
        certificate: Certificate,
        *,
        rate: float,
        judge: Judge | None = None,
        judge_name: str = "",
        allowance: Callable[[str], float] = lambda group: 0.0,
        report: Callable[[str], None] = lambda text: None,
        draw: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._certificate = certificate
        self._digest = certificate.digest
        self._rate = rate
        self._judge = judge
        self._judge_name = judge_name
        self._allowance = allowance
        self._report = report
        self._draw = draw
        self._clock = clock
        self._looked = -_LOOK_EVERY
        self._tasks: dict[asyncio.Task[None], Future[None]] = {}
        self._troubled = False
        self._alarm = ""

    @property
    def alarm(self) -> str:
        """Why the certificate's answers may not be accepted any more; empty while all is well."""
        now = self._clock()
        if now - self._looked >= _LOOK_EVERY:
            self._looked = now
            self._look()
        return self._alarm

    def consider(self, request: LLMRequest, response: LLMResponse, group: str) -> None:
        """Take note of an accepted answer; now and then it is drawn. Called on a running event loop."""
        if self._draw() < self._rate:
            task = asyncio.get_running_loop().create_task(self._audit(request, response, group))
            self._tasks[task] = Future()
            task.add_done_callback(self._ended)

    async def aclose(self) -> None:
        """Wait for the audits under way, those of other event loops too; one whose loop stands still would never end."""
        while ends := [end for task, end in tuple(self._tasks.items()) if _goes_on(task.get_loop())]:
            await asyncio.wait([asyncio.wrap_future(end) for end in ends])

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task).set_result(None)

    async def _audit(self, request: LLMRequest, response: LLMResponse, group: str) -> None:
        tier = next(tier.name for tier in response.tiers if tier.tier == response.decision.tier)
        try:
            await asyncio.to_thread(
                self._log.sampled,
                response.request_id,
                certificate=self._digest,
                alpha=self._certificate.alpha,
                tier=tier,
                group=group,
                score=response.confidence,
            )
            correct = None if self._judge is None else await self._judge(request, response)
            if correct is not None:
                allowance = self._allowance(group)
                await asyncio.to_thread(self._log.grade, response.request_id, correct, self._judge_name, allowance=allowance)
                await asyncio.to_thread(self._look)
        except WorkflowComposerError as error:
            self._trouble(f"audit {response.request_id}: {error}")
        except Exception as error:  # noqa: BLE001  # a judge may be anyone's code
            self._trouble(f"audit {response.request_id}: {self._judge_name} raised {type(error).__name__}: {error}")

    def _look(self) -> None:
        """Read what is new in the file; the first to see the alarm writes it down and tells."""
        try:
            self._log.refresh()
            watched = self._log.watched(self._digest)
            if watched is None:  # nothing was drawn yet; or the file is gone, which takes back no alarm
                return
            if not watched.alarmed:
                self._alarm = ""
                return
            reason = watched.reason
            if self._log.alarm(self._digest, reason):
                self._report(f"certificate {self._digest} is suspended, every request is escalated: {reason}; recalibrate")
            self._alarm = reason
        except WorkflowComposerError as error:
            self._trouble(str(error))

    def _trouble(self, text: str) -> None:
        if not self._troubled:
            self._troubled = True
            self._report(f"{text}; further trouble with audits is not reported")


def _goes_on(loop: asyncio.AbstractEventLoop) -> bool:
    return loop.is_running() and not stands_still(loop)
