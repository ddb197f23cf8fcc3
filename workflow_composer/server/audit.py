"""The audit log: who switched what and when, and what was refused. One line of JSON each, appended and never rewritten."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from workflow_composer.storage.appending import append_lines

_PATIENCE = 0.5
"""Seconds to wait for another process that appends."""


class Audit:
    """Appends to a file. What cannot be written is reported, and keeps nobody from switching."""

    def __init__(self, path: Path, *, report: Callable[[str], None] = lambda text: None) -> None:
        self.path = path
        self._report = report

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
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            append_lines(self.path, json.dumps(line, default=str).encode() + b"\n", wait=_PATIENCE, mode=0o600)
        except OSError as error:
            lost = f"{what} by {who}: {outcome}"
            self._report(f"the audit log {self.path} cannot be written: {error.strerror}; it was: {lost}")
