"""A fleet's id: random, made by its first command, and kept in its state folder under the path of its fleet file.

Every registry entry and the comment of every SLURM job carry it, together with the fleet file's path. So a copy of the file
makes another fleet, a state folder that several files share keeps them apart, and an id whose record was deleted is found
again in what still runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from workflow_composer.errors import WorkflowComposerError
from workflow_composer.storage.locks import WAIT, FileLock, lock_beside
from workflow_composer.storage.replacing import replace_file
from workflow_composer.storage.saved import read_saved, saved

FOLDER = "fleets"
"""The folder of the ids in the fleet's state."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """The record of an id. ``file`` is the fleet file's path."""

    id: str
    file: str


def same_file(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Whether two paths name one fleet file, whatever links lead to it.

    >>> same_file("/a/fleet.yaml", "/a/../a/fleet.yaml"), same_file("", "/a/fleet.yaml")
    (True, False)
    """
    return bool(one and other) and os.path.realpath(one) == os.path.realpath(other)


def known_id(states: Path, file: Path) -> str:
    """Return the recorded id of the fleet of this file; empty if it has none yet."""
    with contextlib.suppress(OSError, ValueError):
        return read_saved(_Kept, _record(states, file).read_bytes()).id
    return ""


def fleet_id(states: Path, file: Path, traces: Callable[[], Iterable[str]]) -> str:
    """Return the id of the fleet of this file; if there is no record, the first of its ``traces``, else a new one.

    Raises `WorkflowComposerError` if it cannot be recorded.
    """
    if found := known_id(states, file):
        return found
    path = _record(states, file)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(lock_beside(path)).take(WAIT):
            found = known_id(states, file) or next(iter(traces()), "") or secrets.token_hex(6)
            replace_file(path, saved(_Kept(found, str(file))), mode=0o644)
    except OSError as error:
        hint = "it must be a folder that you own, with free space; set `state` in the fleet file to another"
        raise WorkflowComposerError(
            f"the fleet's state in {states} cannot be written: {error.strerror or error}", hint=hint
        ) from error
    return found


def _record(states: Path, file: Path) -> Path:
    return states / FOLDER / f"{hashlib.sha256(os.fsencode(os.path.realpath(file))).hexdigest()[:16]}.json"
