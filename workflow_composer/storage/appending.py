"""Appending lines to a file that many processes may append to: whole or not at all, each behind the end of another."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from workflow_composer.storage.locks import WAIT, locked

_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC


def append_lines(path: Path, lines: bytes, *, wait: float = WAIT, mode: int = 0o644) -> None:
    """Append whole lines under the file's lock (`locks.locked`), which is tried for ``wait`` seconds.

    The file is made where it is missing, its folder is not. Raises OSError; then nothing was added.
    """
    with locked(path, wait=wait):
        descriptor = open_for_appending(path, mode=mode)
        try:
            append_to(descriptor, lines)
        finally:
            os.close(descriptor)


def open_for_appending(path: Path, *, mode: int = 0o644) -> int:
    """A descriptor for `append_to`. Raises OSError, also where the path is no regular file."""
    descriptor = os.open(path, _FLAGS | os.O_NONBLOCK, mode)  # else a pipe would wait for its reader
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file")
    return descriptor


def append_to(descriptor: int, lines: bytes) -> None:
    """Append whole lines to a file whose lock is held. Raises OSError; then nothing was added.

    A last line that was torn (by a full disk, a lost machine) is ended first, so that it spoils no other.
    """
    before = os.fstat(descriptor).st_size
    if before and os.pread(descriptor, 1, before - 1) != b"\n":
        lines = b"\n" + lines
    try:
        if os.write(descriptor, lines) == len(lines):
            return
    except OSError:
        os.ftruncate(descriptor, before)
        raise
    os.ftruncate(descriptor, before)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
