"""Appends lines to a file that many processes may append to. Each append is all or nothing, and they never overlap."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Self

from workflow_composer.storage.locks import WAIT, FileLock, lock_beside, locked
from workflow_composer.storage.replacing import replacing, sync_file, sync_folder

PRIVATE = 0o600
"""Mode of a new file: the lines are prompts, answers, grades, or say who asked what."""
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC


def append_lines(path: Path, lines: bytes, *, wait: float = WAIT, mode: int = PRIVATE) -> None:
    """Append whole lines under the file's lock (`locks.locked`), waiting for it up to ``wait`` seconds.

    Creates the file if needed, but not its folder. Raises OSError; then nothing was appended.
    """
    with suppress(FileNotFoundError):
        _refuse_odd(path.stat())  # before a lock file is created beside a device
    with locked(path, wait=wait):
        descriptor = open_for_appending(path, mode=mode)
        try:
            append_to(descriptor, lines)
        finally:
            os.close(descriptor)


def open_for_appending(path: Path, *, mode: int = PRIVATE) -> int:
    """Open a file for `append_to` and return its descriptor. Raises OSError, also if it is not a regular file."""
    descriptor = os.open(path, _FLAGS | os.O_NONBLOCK, mode)  # opening a pipe must not wait for a reader
    try:
        _refuse_odd(os.fstat(descriptor))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _refuse_odd(status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")


def append_to(descriptor: int, lines: bytes) -> None:
    """Append whole lines to a file whose lock is held. Raises OSError; then nothing was appended.

    If the last line is incomplete (after a full disk or a crash), it is ended first, so that it does not corrupt the next.
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


class OwnFile:
    """A file that one run at a time appends to: locked from `open` to `close` or to the end of the process.

    The lock is a file beside it (`locks.lock_beside`), so the file itself may be read and replaced meanwhile. A new file
    has the mode 0600, because such files hold what models answered.
    """

    def __init__(self, path: Path, lock: FileLock, descriptor: int) -> None:
        self.path = path
        self._lock = lock
        self._descriptor: int | None = descriptor

    @classmethod
    def open(cls, path: Path) -> Self:
        """Lock the file, then open or create it. Raises `TimeoutError` if another run holds the lock, OSError."""
        path = Path(os.path.realpath(path))
        with suppress(FileNotFoundError):
            _refuse_odd(path.stat())
        lock = FileLock(lock_beside(path)).take()
        try:
            return cls(path, lock, open_for_appending(path))
        except BaseException:
            lock.release()
            raise

    @property
    def is_open(self) -> bool:
        """Whether the file is open for appending."""
        return self._descriptor is not None

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        return os.fstat(self._opened).st_size

    def append(self, lines: bytes) -> None:
        """Append all of the lines or nothing. Raises OSError."""
        written = os.write(self._opened, lines)
        if written < len(lines):  # the disk is full
            os.ftruncate(self._opened, self.size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def cut(self, size: int) -> None:
        """Truncate the file to ``size`` bytes. Raises OSError."""
        if self.size > size:
            os.ftruncate(self._opened, size)

    def sync(self) -> None:
        """Sync the file and its folder to disk. Raises OSError."""
        sync_file(self._opened)
        sync_folder(self.path.parent)

    @contextmanager
    def rewriting(self) -> Iterator[BinaryIO]:
        """Yield a new file that replaces this one when the block succeeds. Raises OSError."""
        with replacing(self.path) as file:
            yield file
        before, self._descriptor = self._opened, open_for_appending(self.path)
        os.close(before)

    def close(self) -> None:
        """Close the file and release its lock; safe to call twice."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
            self._lock.release()

    @property
    def _opened(self) -> int:
        if self._descriptor is None:
            raise ValueError(f"{self.path} is closed")
        return self._descriptor


class LineFile:
    """A file of lines that stays open between appends. The first append creates it and its folder. Not thread-safe.

    If it was moved or removed (log rotation), the next append creates a new one. Pipes, devices and files in a folder where
    no lock file can be created are written without a lock: one write in append mode is atomic on a local disk.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._inode = (0, 0)
        self._regular = True

    def append(self, lines: bytes, *, wait: float = 0.0) -> None:
        """Append whole lines. Raises OSError; then nothing was written, or possibly a part to a device."""
        descriptor = self._opened()
        if not self._regular:
            if os.write(descriptor, lines) != len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return
        lock: FileLock | None = self._lock
        try:
            self._lock.take(wait)
        except TimeoutError:
            raise
        except OSError:
            lock = None
        try:
            append_to(descriptor, lines)
        finally:
            if lock is not None:
                lock.release()

    def _opened(self) -> int:
        if self._descriptor is not None:
            if self._regular and self._inode != _inode_at(self.path):
                self.close()
            else:
                return self._descriptor
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = descriptor = os.open(self.path, _FLAGS, PRIVATE)
        status = os.fstat(descriptor)
        self._regular, self._inode = stat.S_ISREG(status.st_mode), (status.st_dev, status.st_ino)
        self._lock = FileLock(lock_beside(self.path))
        return descriptor

    def close(self) -> None:
        """Close the file; the next append reopens it."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def _inode_at(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
