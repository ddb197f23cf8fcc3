"""The audit log: who switched what and when, and what was refused. One line of JSON each, appended and never rewritten."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path


class Audit:
    """Appends to a file. What cannot be written is reported, and keeps nobody from switching."""

    def __init__(self, path: Path, *, report: Callable[[str], None] = lambda text: None) -> None:
        self.path = path
        self._report = report
        self._cut = False

    def write(self, what: str, *, who: str, outcome: str, **fields: object) -> None:
        """One line. ``who`` is a key's ID, an address, SIGHUP or a file; never a token."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {
            "at": at,
            "what": what,
            "who": who,
            "outcome": outcome,
            **{k: v for k, v in fields.items() if v not in (None, "")},
        }
        reason = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                data = (b"\n" if self._cut else b"") + json.dumps(line, default=str).encode() + b"\n"
                self._cut = os.write(descriptor, data) < len(data)  # the next line does not go on with half of this one
            finally:
                os.close(descriptor)
            if self._cut:
                reason = os.strerror(errno.ENOSPC)
        except OSError as error:
            reason = error.strerror
        if reason is not None:
            self._report(f"the audit log {self.path} cannot be written: {reason}; it was: {what} by {who}: {outcome}")
