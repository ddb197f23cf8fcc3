"""Live metrics of several workers: each writes its own down, whoever is asked adds them up.

A worker that is started in the place of one that died goes on from that one's counts, so that no counter ever falls.
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
    """This worker's metrics together with the others'. Without a directory there are no others."""

    def __init__(self, live: LiveMetrics, directory: Path | None = None, number: int = 0) -> None:
        self._live = live
        self._directory = directory
        self._path = None if directory is None else directory / f"metrics-{number}.json"
        self._before = None if self._path is None else _read(self._path)

    def own(self) -> dict[str, Any]:
        """What this worker and its predecessors have counted."""
        now = self._live.snapshot()
        return now if self._before is None else merged([self._before, now])

    def all(self) -> dict[str, Any]:
        """What all workers have counted."""
        if self._directory is None or self._path is None:
            return self.own()
        others = [_read(path) for path in sorted(self._directory.glob("metrics-*.json")) if path != self._path]
        return merged([self.own(), *(found for found in others if found is not None)])

    def save(self) -> None:
        """Let the others know, and wait for the disk. What cannot be written is missing from their sums until it can."""
        self._write(self.own())

    async def asave(self) -> None:
        """The same without keeping the event loop, which counts on meanwhile."""
        await asyncio.to_thread(self._write, self.own())

    def _write(self, counted: Mapping[str, Any]) -> None:
        if self._path is not None:
            with suppress(OSError):
                replace_file(self._path, json.dumps(counted))


def forget(directory: Path) -> None:
    """Begin at zero: remove what workers of an earlier service have left."""
    for path in directory.glob("metrics-*.json"):
        path.unlink(missing_ok=True)


def _read(path: Path) -> Mapping[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "series" in found else None
