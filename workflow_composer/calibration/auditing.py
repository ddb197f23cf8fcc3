"""Audits in production: a random sample of accepted answers is graded; too many errors raise an alarm.

Audits run in the background: they neither delay a response nor fail a request, and their errors are reported once.
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
"""Returns whether the answer is right; None: undecided, so the audit stays pending for feedback."""

_LOOK_EVERY = 1.0
"""Seconds between two reads of events written by other processes."""


class Auditor:
    """Samples the accepted answers of one certificate, has them graded, and monitors their error.

    ``rate``: share of accepted answers to audit. ``judge`` grades them; None: they stay pending for ``feedback``.
    ``allowance``: upper bound, by group, of how often the judge calls right answers wrong. ``report`` receives alarms and
    file errors as one sentence.
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
        """The reason of an alarm, after which the certificate's answers are no longer accepted; empty without one."""
        now = self._clock()
        if now - self._looked >= _LOOK_EVERY:
            self._looked = now
            self._look()
        return self._alarm

    def consider(self, request: LLMRequest, response: LLMResponse, group: str) -> None:
        """Audit an accepted answer with probability ``rate``. Must be called in a running event loop."""
        if self._draw() < self._rate:
            task = asyncio.get_running_loop().create_task(self._audit(request, response, group))
            self._tasks[task] = Future()
            task.add_done_callback(self._ended)

    async def aclose(self) -> None:
        """Wait for running audits, also those of other event loops; skip those whose event loop has stopped."""
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
        except Exception as error:  # noqa: BLE001  # a judge may be user code
            self._trouble(f"audit {response.request_id}: {self._judge_name} raised {type(error).__name__}: {error}")

    def _look(self) -> None:
        """Read new events; the first process that sees an alarm records and reports it."""
        try:
            self._log.refresh()
            watched = self._log.watched(self._digest)
            if watched is None:  # nothing drawn yet, or the file is gone, which does not clear an alarm
                return
            if not watched.alarmed:
                self._alarm = ""
                return
            reason = watched.reason
            if self._log.alarm(self._digest, reason):
                self._report(f"certificate {self._digest} is suspended, every request escalates: {reason}; recalibrate")
            self._alarm = reason
        except WorkflowComposerError as error:
            self._trouble(str(error))

    def _trouble(self, text: str) -> None:
        if not self._troubled:
            self._troubled = True
            self._report(f"{text}; further audit errors are not reported")


def _goes_on(loop: asyncio.AbstractEventLoop) -> bool:
    return loop.is_running() and not stands_still(loop)
