"""The active profile's file, watched: what is saved is switched to, once it is whole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from workflow_composer.errors import WorkflowComposerError
from workflow_composer.server.strategies import Strategies

EVERY = 0.5
"""Seconds between two looks; a file is read when two looks in a row found it alike, so that half a file is not."""

Stamp = tuple[int, int, int] | None


async def reload(strategies: Strategies, who: str, report: Callable[[str], None]) -> None:
    """Read the profile again; a broken one is reported, and the one before serves on."""
    try:
        version = await strategies.reload(who=who)
    except WorkflowComposerError as error:
        report(f"{who}: the profile stays as it was: {error.message}")
    else:
        report(f"{who}: nothing has changed" if version is None else f"{who}: version {version.number} is active")


async def watch(strategies: Strategies, report: Callable[[str], None], *, every: float = EVERY) -> None:
    """Watch until cancelled."""
    source = (await strategies.versions())[-1].source
    seen: dict[str, Stamp] = {source: _stamp(Path(source))}  # what is saved before the first look is seen at it, too
    moving: Stamp = None
    while True:
        await asyncio.sleep(every)
        source = (await strategies.versions())[-1].source
        stamp = _stamp(Path(source))
        if source not in seen:
            seen = {source: stamp}
        elif stamp is not None and stamp != seen[source]:
            if stamp == moving:
                seen[source] = stamp
                await reload(strategies, source, report)
            moving = stamp


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
