"""Live metrics of several workers: each worker saves its own to a file, and any worker can sum them.

A worker that replaces a crashed one continues from its counts, so that no counter decreases.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from workflow_composer.metrics.live import LiveMetrics, merged
from workflow_composer.storage.replacing import replace_file


class SharedMetrics:
    """The metrics of this worker and of the others. Without a directory there are no others."""

    def __init__(self, live: LiveMetrics, directory: Path | None = None, number: int = 0) -> None:
        self._live = live
        self._directory = directory
        self._path = None if directory is None else directory / f"metrics-{number}.json"
        self._before = None if self._path is None else _read(self._path)

    def own(self) -> dict[str, Any]:
        """Return the counts of this worker and its predecessors."""
        now = self._live.snapshot()
        return now if self._before is None else merged([self._before, now])

    def all(self) -> dict[str, Any]:
        """Return the counts of all workers."""
        if self._directory is None or self._path is None:
            return self.own()
        others = [_read(path) for path in sorted(self._directory.glob("metrics-*.json")) if path != self._path]
        return merged([self.own(), *(found for found in others if found is not None)])

    def save(self) -> None:
        """Save the counts for the other workers; blocks. If that fails, their sums lag until a later save succeeds."""
        self._write(self.own())

    async def asave(self) -> None:
        """Like `save`, without blocking the event loop."""
        await asyncio.to_thread(self._write, self.own())

    def _write(self, counted: Mapping[str, Any]) -> None:
        if self._path is not None:
            with suppress(OSError):
                replace_file(self._path, json.dumps(counted))


def forget(directory: Path) -> None:
    """Reset the counters: remove the files of an earlier service's workers."""
    for path in directory.glob("metrics-*.json"):
        path.unlink(missing_ok=True)


def _read(path: Path) -> Mapping[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "series" in found else None
