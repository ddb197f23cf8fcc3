"""Exclusive file locks across the threads of a process, the processes of a machine, and machines that share a file system.

They are POSIX record locks (``fcntl``), which NFS and Lustre support. A process loses such a lock as soon as it closes *any*
descriptor of the file, and the lock does not exclude threads of the same process. Therefore each lock has a separate file,
which only this module opens, and a mutex excludes other threads. The lock file is never removed: removing it could let two
processes hold the same lock (on NFS a removed file can stay visible for a moment).

Nothing blocks in the kernel: a lock is retried with pauses, for a bounded time. An event loop must not pause: it uses
``wait`` 0, or a thread.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

WAIT = 10.0
"""Default time limit in seconds for a lock that is usually held for milliseconds."""
_SHORTEST, _LONGEST = 0.0005, 0.05
"""Pause between two tries in seconds: the first, and the longest."""
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})
_TAKEN = frozenset({errno.EAGAIN, errno.EACCES})

_mutexes: dict[str, threading.Lock] = {}
_mutexes_lock = threading.Lock()
_kept: set[tuple[str, int]] = set()
"""Bytes that objects of this process keep locked: the kernel does not tell a process of its own locks."""
_generation = 0
"""Counts forks: a child holds none of its parent's locks, although it has copies of these variables."""


def _after_fork() -> None:
    global _mutexes, _mutexes_lock, _generation  # mutexes held by other threads would stay locked
    _mutexes, _mutexes_lock, _generation = {}, threading.Lock(), _generation + 1
    _kept.clear()


os.register_at_fork(after_in_child=_after_fork)


def _mutex(path: Path) -> threading.Lock:
    with _mutexes_lock:
        return _mutexes.setdefault(os.path.realpath(path), threading.Lock())


def lock_beside(path: Path) -> Path:
    """Return the path of the lock file for a file: hidden, in the same folder."""
    return path.with_name(f".{path.name}.lock")


class FileLock:
    """A lock on the lock file at ``path``, which is created if needed; its folder is not."""

    def __init__(self, path: Path, *, mode: int = 0o666) -> None:
        self.path = path
        self._mode = mode
        self._descriptor: int | None = None
        self._generation = -1
        self._mutex: threading.Lock | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock, in this process."""
        return self._descriptor is not None and self._generation == _generation

    def take(self, wait: float = 0.0) -> Self:
        """Take the lock, trying for up to ``wait`` seconds.

        Raises `TimeoutError` if it is still held by another, `OSError` if the file system has no locks; their ``strerror``
        says what to do.
        """
        ends = time.monotonic() + wait
        mutex = _mutex(self.path)
        if not (mutex.acquire(timeout=wait) if wait > 0 else mutex.acquire(blocking=False)):
            raise _taken(self.path)
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, self._mode)
            try:
                _try_until(ends, descriptor, self.path)
            except BaseException:
                os.close(descriptor)
                raise
        except BaseException:
            mutex.release()
            raise
        self._descriptor, self._mutex, self._generation = descriptor, mutex, _generation
        return self

    def release(self) -> None:
        """Release the lock. In a forked child, only its copy of the descriptor is closed; the parent keeps the lock."""
        descriptor, mutex, self._descriptor, self._mutex = self._descriptor, self._mutex, None, None
        if descriptor is not None and mutex is not None:
            os.close(descriptor)
            mutex.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def is_taken(self) -> bool:
        """Whether the lock is held now. The check takes no file lock, so it cannot make another process fail."""
        mutex = _mutex(self.path)
        if not mutex.acquire(blocking=False):
            return True
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        else:
            try:
                return _holder(descriptor) is not None
            finally:
                os.close(descriptor)
        finally:
            mutex.release()


@contextmanager
def locked(path: Path, *, wait: float = WAIT) -> Iterator[None]:
    """Hold the lock of the file at ``path``. Raises as `FileLock.take`."""
    with FileLock(lock_beside(path)).take(wait):
        yield


class RangeLocks:
    """Short-lived locks on byte ranges (records) of one open file that many processes map into memory.

    ``descriptor`` must be the only open descriptor of the file in this object's process; objects in one process that share
    the file share a mutex, and must be closed with `close`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mutex, self._generation = _mutex(path), _generation
        self._keeps: set[tuple[str, int]] = set()
        with self._mutex:
            self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @contextmanager
    def hold(self, start: int, length: int, *, wait: float) -> Iterator[None]:
        """Hold the lock on these bytes, trying for up to ``wait`` seconds. Raises as `FileLock.take`."""
        if self._generation != _generation:
            self._mutex, self._generation = _mutex(self._path), _generation
        mutex = self._mutex
        ends = time.monotonic() + wait
        if not (mutex.acquire(timeout=wait) if wait > 0 else mutex.acquire(blocking=False)):
            raise _taken(self._path)
        try:
            _try_until(ends, self.descriptor, self._path, start, length)
            try:
                yield
            finally:
                fcntl.lockf(self.descriptor, fcntl.LOCK_UN, length, start)
        finally:
            mutex.release()

    def keep(self, place: int) -> bool:
        """Lock one byte until this object is closed or its process ends; return False if another object keeps it."""
        kept = (os.path.realpath(self._path), place)
        with self._mutex:
            if kept in _kept:
                return False
            try:
                fcntl.lockf(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
            except OSError as error:
                if error.errno in _NO_LOCKS:
                    raise _no_locks(self._path, error) from None
                if error.errno not in _TAKEN:
                    raise
                return False
            _kept.add(kept)
            self._keeps.add(kept)
            return True

    def is_kept(self, place: int) -> bool:
        """Whether an object of any process keeps this byte."""
        return (os.path.realpath(self._path), place) in _kept or _holder(self.descriptor, place, 1) is not None

    def close(self) -> None:
        """Close the file once no thread of this process holds a range."""
        with self._mutex:
            _kept.difference_update(self._keeps)
            os.close(self.descriptor)


def _try_until(ends: float, descriptor: int, path: Path, start: int = 0, length: int = 0) -> None:
    pause = _SHORTEST
    while True:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                raise _no_locks(path, error) from None
            if error.errno not in _TAKEN:
                raise
        else:
            return
        left = ends - time.monotonic()
        if left <= 0:
            raise _taken(path, _holder(descriptor, start, length))
        time.sleep(min(pause, left))
        pause = min(2 * pause, _LONGEST)


def _taken(path: Path, pid: int | None = None) -> TimeoutError:
    who = f"process {pid}" if pid else "another process or thread"
    return TimeoutError(errno.ETIMEDOUT, f"{who} holds the lock {path}; wait for it to finish, or stop it")


def _no_locks(path: Path, error: OSError) -> OSError:
    return OSError(
        error.errno or errno.ENOLCK,
        f"the file system of {path.parent} has no locks; use another one, or mount NFS without nolock, Lustre with flock",
    )


_FLOCK = "qqihh4x" if sys.platform == "darwin" else "hhqqi4x"


def _holder(descriptor: int, start: int = 0, length: int = 0) -> int | None:
    """Return the id of the process that holds the lock; 0 if the id is unknown, None if the lock is free."""
    if sys.platform == "darwin":
        asked = struct.pack(_FLOCK, start, length, 0, fcntl.F_WRLCK, os.SEEK_SET)
        _, _, pid, kind, _ = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    else:
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
        kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    return None if kind == fcntl.F_UNLCK else max(0, pid)
