"""Files that one run at a time may append to: opened and locked, and what to do where that cannot be done.

``other`` is what a user may name to write elsewhere: "another --output", say.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path

from workflow_composer.errors import InputError, WorkflowComposerError


def open_locked(path: Path, *, other: str, opener: Callable[[Path, int, int], int] = os.open) -> int:
    """Open the file and lock it; once more where another run has put a new file in its place meanwhile.

    Raises `InputError` where another run holds it or it is no regular file, `OSError` where it cannot be opened.
    """
    while True:
        descriptor = opener(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            _lock(descriptor, path, other)
            current = os.path.samestat(os.fstat(descriptor), os.stat(path))  # noqa: PTH116  # the pair of fstat
        except BaseException:
            os.close(descriptor)
            raise
        if current:
            return descriptor
        os.close(descriptor)


def _lock(descriptor: int, path: Path, other: str) -> None:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise InputError(f"{path} is not a regular file", hint=f"name {other}")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(
            f"another run is writing to {path}", hint="wait for it or stop it; then run this again, and it goes on there"
        ) from None


def append_whole(descriptor: int, line: bytes) -> None:
    """Append the line, or nothing of it. Raises OSError."""
    before = os.fstat(descriptor).st_size
    if os.write(descriptor, line) < len(line):  # the disk is full now
        os.ftruncate(descriptor, before)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def unwritable(path: Path, error: OSError, *, other: str) -> WorkflowComposerError:
    """The error for a file that cannot be written, with the remedy for its cause."""
    kind = InputError if error.errno in (errno.EISDIR, errno.ENOENT, errno.EACCES, errno.EROFS) else WorkflowComposerError
    hints = {
        errno.EISDIR: f"name {other}, or a file in it",
        errno.ENOENT: "make its folder first",
        errno.ENOLCK: f"its file system has no locks; name {other} on another one",
        errno.EACCES: f"allow this user to write it, or name {other}",
    }
    again = "make room; then run the same command again, and it goes on where it stopped: nothing is lost"
    return kind(f"cannot write {path}: {error.strerror or error}", hint=hints.get(error.errno or 0, again))
