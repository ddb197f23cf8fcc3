"""The audit log: which accepted answers were drawn for an audit, and their grades.

One JSON line per event, append-only, written by any number of processes. It contains no prompts and no answers:

============ =========================================================================================================
event        fields, besides ``event``, ``id`` and ``at`` (UTC)
============ =========================================================================================================
`accepted`   an accepted answer was drawn: ``certificate`` (digest), ``alpha``, ``level``, ``tier``, ``group``, ``score``
`graded`     it was graded: ``correct``, ``by`` (grader), ``allowance`` (error rate allowed for the grader), and ``key``, the
             ID of the grader's API key, if there is one
`reported`   feedback on an answer that was not drawn: ``correct``, ``by``, ``key``. Kept, but not part of the test: users
             report mainly wrong answers, so reports do not show how often answers are wrong
`alarm`      ``certificate`` (no ``id``), ``reason``: answers of this certificate are no longer accepted
`reset`      ``certificate`` (no ``id``), ``by``: the cause of the alarm was found, and the test restarts
============ =========================================================================================================

The state of a certificate is always rebuilt from the file, so all processes agree, also after restarts.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from workflow_composer.calibration.certify.certificate import Certificate
from workflow_composer.calibration.monitoring.error_monitor import StratifiedMonitor
from workflow_composer.errors import ConfigError, InputError, WorkflowComposerError
from workflow_composer.storage.appending import append_to, open_for_appending
from workflow_composer.storage.lines import encoded
from workflow_composer.storage.locks import locked
from workflow_composer.support.loop_thread import stands_still
from workflow_composer.support.places import log_file
from workflow_composer.types import LLMRequest, LLMResponse

# ---------------------------------------------------------------------------------------------------------------- auditing
#
# Audits in production: a random sample of accepted answers is graded; too many errors raise an alarm.
#
# Audits run in the background: they neither delay a response nor fail a request, and their errors are reported once.


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


AUDITS_VARIABLE = "WORKFLOW_COMPOSER_AUDITS"
"""Environment variable: path of the audit log."""

AUDITS_FILE = "audits.jsonl"
"""The audit log's name in the state folder."""
LEVEL = 0.05


def audits_file(environ: Mapping[str, str]) -> Path:
    """The path of the audit log: the environment's, relative to the working directory, or the user's."""
    named = environ.get(AUDITS_VARIABLE, "").strip()
    return Path(named).expanduser() if named else log_file(environ, AUDITS_FILE)


@dataclass(frozen=True, slots=True)
class Audit:
    """An accepted answer that was drawn, and its grade: ``correct`` is None until it is graded. Times are ISO 8601 in UTC.

    ``certificate`` is the digest of the certificate that accepted it, ``alpha`` the certified risk, ``allowance`` the share
    of right answers that the grader may call wrong, ``key`` the ID of the grader's API key, if there is one.
    """

    id: str
    certificate: str
    alpha: float
    tier: str
    group: str
    score: float | None
    at: str
    correct: bool | None = None
    by: str = ""
    allowance: float = 0.0
    key: str = ""
    test: int = 0
    """The certificate's test that this audit belongs to: the number of resets before it was drawn."""

    @property
    def stratum(self) -> str:
        """The group and tier for which the certificate has a separate guarantee."""
        return f"{self.group}/{self.tier}"


@dataclass
class WatchedCertificate:
    """State of one certificate since its test began. ``alarm``: the recorded reason of an alarm, None without one."""

    monitor: StratifiedMonitor
    alarm: str | None = None
    resets: int = 0

    @property
    def alarmed(self) -> bool:
        """Whether its answers are no longer accepted."""
        return self.alarm is not None or self.monitor.alarmed

    @property
    def reason(self) -> str:
        """The reason of the alarm in one sentence; empty if there is none."""
        if self.alarm is not None or not self.monitor.alarmed:
            return self.alarm or ""
        monitor, worst = self.monitor, self.monitor.worst or ""
        part = monitor.strata[worst]
        return (
            f"{monitor.wrong} of {monitor.audits} audited answers were wrong ({worst}: {part.wrong} of {part.audits}), too "
            f"many for a risk of {monitor.alpha:g} (alarm at audit {monitor.alarm_at}, level {monitor.level:g})"
        )


_NO_EVENT = (ValueError, KeyError, TypeError, OverflowError, RecursionError, ConfigError)
"""Errors of a line that is not JSON or does not match the table above."""


class AuditLog:
    """The audit log at a path; the first event creates the file and its folder. Safe for many threads and processes.

    ``level``: probability of ever raising a false alarm, for tests that begin with an answer drawn by this log; it is
    recorded, so every reader of the file runs the same test. Damaged or unknown lines, and lines that contradict earlier
    ones, are skipped and counted in ``skipped``. Raises `WorkflowComposerError` if the file exists but cannot be read, or
    cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], *, level: float = LEVEL) -> None:
        self.path = Path(path)
        self.level = level
        self.skipped = 0
        self._lock = threading.RLock()
        self._inode: int | None = None
        self._offset = 0
        self._audits: dict[str, Audit] = {}
        self._watched: dict[str, WatchedCertificate] = {}
        self._fresh: list[Audit] = []
        self._reported: dict[str, bool] = {}
        self._reports = 0

    def sampled(
        self, request_id: str, *, certificate: str, alpha: float, tier: str, group: str, score: float | None = None
    ) -> None:
        """Record that an accepted answer was drawn for an audit; ``certificate`` is the digest of the certificate that
        accepted it, ``alpha`` the certified risk.
        """
        known = score is not None and math.isfinite(score)
        claim = {"certificate": certificate, "alpha": alpha, "level": self.level}
        answer = {"tier": tier, "group": group, "score": score if known else None}
        with self._exclusive() as descriptor:
            _write(descriptor, {"event": "accepted", "id": request_id, **claim, **answer})

    def grade(self, request_id: str, correct: bool, by: str, *, allowance: float = 0.0, key: str = "") -> Audit:
        """Record the grade of a drawn answer; repeating the same grade has no effect. ``key``: ID of the grader's API key.

        ``allowance``: upper bound of how often this grader (such as a stronger model) calls right answers wrong; it is
        added to alpha for this audit. Raises `InputError` if the answer was not drawn, or already has the opposite grade.
        """
        with self._lock:
            self._read()
            self._drawn(request_id)  # fail before the file is created
        with self._exclusive() as descriptor:
            self._read()
            audit = self._drawn(request_id)
            if audit.correct is not None and audit.correct != correct:
                raise InputError(
                    f"audit {request_id!r} was graded {_word(audit.correct)} by {audit.by or 'unknown'}; grades are final",
                    hint="if a wrong grade raised an alarm, restart the test with `feedback --reset`",
                )
            if audit.correct is None:
                found = {"correct": correct, "by": by, "allowance": allowance, **_keyed(key)}
                _write(descriptor, {"event": "graded", "id": request_id, **found})
                self._read()
            return self._audits[request_id]

    def report(self, request_id: str, correct: bool, by: str, *, key: str = "") -> None:
        """Record feedback on an answer that was not drawn; not part of the test. Raises `InputError` if it was drawn.

        Repeating the same feedback has no effect, so that a file grows no faster than answers are given.
        """
        with self._lock:
            self._read()
            if self._reported.get(request_id) is correct:
                return
        with self._exclusive() as descriptor:
            self._read()
            if request_id in self._audits:
                raise InputError(f"answer {request_id!r} was drawn for an audit", hint="grade it: omit --report")
            _write(descriptor, {"event": "reported", "id": request_id, "correct": correct, "by": by, **_keyed(key)})

    def alarm(self, certificate: str, reason: str) -> bool:
        """Record an alarm unless there already is one; return whether it was recorded, so that only one process reports it.

        Raises `InputError` if no answer of the certificate was drawn.
        """
        with self._lock:
            self._read()
            self._known(certificate)
        with self._exclusive() as descriptor:
            self._read()
            if self._known(certificate).alarm is not None:
                return False
            _write(descriptor, {"event": "alarm", "certificate": certificate, "reason": reason})
            self._read()
            return True

    def reset(self, certificate: str, by: str) -> None:
        """Restart the certificate's test without an alarm. Each test has its own probability of a false alarm.

        Answers drawn before do not count in the new test, graded or not. Raises `InputError` as `alarm` does.
        """
        with self._lock:
            self._read()
            self._known(certificate)
        with self._exclusive() as descriptor:
            _write(descriptor, {"event": "reset", "certificate": certificate, "by": by})
            self._read()

    def refresh(self) -> list[Audit]:
        """Read appended events; return the audits graded since the last call, in the order of their grades."""
        with self._lock:
            self._read()
            found = self._fresh
            self._fresh = []
            return found

    def watched(self, certificate: str) -> WatchedCertificate | None:
        """The state of a certificate as of the last `refresh`; None if none of its answers was drawn."""
        with self._lock:
            return self._watched.get(certificate)

    @property
    def certificates(self) -> tuple[str, ...]:
        """The certificates in the file, in the order of their first audits, as of the last `refresh`."""
        with self._lock:
            return tuple(self._watched)

    @property
    def reports(self) -> int:
        """Reports of answers that were not drawn, as of the last `refresh`."""
        return self._reports

    def pending(self) -> list[Audit]:
        """The ungraded audits, oldest first, without those drawn before a reset, which no longer count."""
        with self._lock:
            self._read()
            tests = {certificate: watched.resets for certificate, watched in self._watched.items()}
            return [a for a in self._audits.values() if a.correct is None and a.test == tests[a.certificate]]

    def graded(self, certificate: str) -> list[Audit]:
        """The audits of the certificate's test that have a grade, as of the last `refresh`."""
        with self._lock:
            watched = self._watched.get(certificate)
            test = -1 if watched is None else watched.resets
            own = (audit for audit in self._audits.values() if audit.certificate == certificate and audit.test == test)
            return [audit for audit in own if audit.correct is not None]

    def _drawn(self, request_id: str) -> Audit:
        if request_id not in self._audits:
            raise InputError(
                f"no audit {request_id!r}: the answer was not drawn for an audit, so its grade cannot count",
                hint="list ungraded audits with `feedback --pending`; use `--report` for feedback on other answers",
            )
        return self._audits[request_id]

    def _known(self, certificate: str) -> WatchedCertificate:
        if certificate not in self._watched:
            hint = f"certificates with audits: {', '.join(self._watched)}" if self._watched else "no answer was drawn yet"
            raise InputError(f"no accepted answer of certificate {certificate!r} was drawn for an audit", hint=hint)
        return self._watched[certificate]

    # --------------------------------------------------------------------------------------------------------- writing

    @contextmanager
    def _exclusive(self) -> Iterator[int]:
        """Open the file for appending, under its lock."""
        with self._lock:
            self._read()  # keeps the time under the lock short
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                descriptor = open_for_appending(self.path)
                try:
                    with locked(self.path):
                        yield descriptor
                finally:
                    os.close(descriptor)
            except OSError as error:
                raise WorkflowComposerError(
                    f"cannot write audits to {self.path}: {error.strerror or error}",
                    hint=f"free disk space or grant write permission, or set ${AUDITS_VARIABLE} to another file",
                ) from error

    # --------------------------------------------------------------------------------------------------------- reading

    def _forget(self) -> None:
        self._inode, self._offset, self._reports, self.skipped = None, 0, 0, 0
        self._audits, self._watched, self._fresh, self._reported = {}, {}, [], {}

    def _read(self) -> None:
        """Read the complete lines appended since the last call; a replaced or truncated file is read from its start."""
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._inode or status.st_size < self._offset:
                    self._forget()
                    self._inode = status.st_ino
                if status.st_size == self._offset:
                    return
                file.seek(self._offset)
                for line in file:
                    if not line.endswith(b"\n"):  # still being written
                        break
                    self._offset += len(line)
                    if line.strip() and not self._take(line):
                        self.skipped += 1
        except FileNotFoundError:
            self._forget()
        except OSError as error:
            raise WorkflowComposerError(
                f"cannot read {self.path}: {error.strerror}", hint=f"set ${AUDITS_VARIABLE} to another file"
            ) from error

    def _take(self, line: bytes) -> bool:
        """Apply one event; return False if it is invalid or contradicts earlier ones."""
        try:
            event = json.loads(line)
            take = _TAKES[event["event"]]
            return bool(take(self, event))
        except _NO_EVENT:
            return False

    def _take_accepted(self, event: Mapping[str, Any]) -> bool:
        score = event["score"]
        texts = [event[name] for name in ("id", "certificate", "tier", "group", "at")]
        if not all(isinstance(text, str) for text in texts) or event["id"] in self._audits:
            return False
        fresh = WatchedCertificate(StratifiedMonitor(event["alpha"], event["level"]))
        watched = self._watched.setdefault(event["certificate"], fresh)
        audit = Audit(
            id=event["id"],
            certificate=event["certificate"],
            alpha=float(event["alpha"]),
            tier=event["tier"],
            group=event["group"],
            score=None if score is None else float(score),
            at=event["at"],
            test=watched.resets,
        )
        self._audits[audit.id] = audit
        return True

    def _take_graded(self, event: Mapping[str, Any]) -> bool:
        audit, correct, allowance = self._audits[event["id"]], event["correct"], event["allowance"]
        if audit.correct is not None or not isinstance(correct, bool) or not allowance >= 0:
            return False
        by, key = str(event["by"]), str(event.get("key", ""))
        audit = replace(audit, correct=correct, by=by, allowance=float(allowance), key=key)
        self._audits[audit.id] = audit
        watched = self._watched[audit.certificate]
        if audit.test == watched.resets:
            watched.monitor.observe(not correct, audit.stratum, audit.alpha + audit.allowance)
        self._fresh.append(audit)
        return True

    def _take_reported(self, event: Mapping[str, Any]) -> bool:
        if not isinstance(event["id"], str) or not isinstance(event["correct"], bool):
            return False
        self._reported[event["id"]] = event["correct"]
        self._reports += 1
        return True

    def _take_alarm(self, event: Mapping[str, Any]) -> bool:
        self._watched[event["certificate"]].alarm = str(event["reason"])
        return True

    def _take_reset(self, event: Mapping[str, Any]) -> bool:
        watched = self._watched[event["certificate"]]
        fresh = StratifiedMonitor(watched.monitor.alpha, watched.monitor.level)
        self._watched[event["certificate"]] = WatchedCertificate(fresh, resets=watched.resets + 1)
        return True


_TAKES = {
    "accepted": AuditLog._take_accepted,
    "graded": AuditLog._take_graded,
    "reported": AuditLog._take_reported,
    "alarm": AuditLog._take_alarm,
    "reset": AuditLog._take_reset,
}


def _write(descriptor: int, event: Mapping[str, Any]) -> None:
    """Append one event. Raises OSError."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    append_to(descriptor, encoded({**event, "at": at}))


def _keyed(key: str) -> dict[str, str]:
    return {"key": key} if key else {}


def _word(correct: bool) -> str:
    return "correct" if correct else "wrong"
