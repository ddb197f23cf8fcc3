"""Locks on files: who holds one is alone, among the threads of a process, the processes of a machine, and machines.

They are POSIX record locks (``fcntl``), the kind that NFS and Lustre know. A process loses such a lock as soon as it closes
*any* descriptor of the file, and threads of one process do not exclude each other by it. So a lock stands on a file of its
own, which nothing but this module opens, and within a process one thread at a time has it. The file stays where it is: to
remove it would let two hold what they take for the same lock (on NFS a removed file can still be found for a moment).

Nothing waits in the kernel: a lock is tried for, with pauses, and for a bounded time. Pauses are no thing for an event loop:
there either ``wait`` is 0, or the work goes to a thread.
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
"""Seconds after which a lock that is usually held for milliseconds is given up."""
_SHORTEST, _LONGEST = 0.0005, 0.05
"""Seconds of a pause between two tries: the first, and the longest."""
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})
_TAKEN = frozenset({errno.EAGAIN, errno.EACCES})

_mutexes: dict[str, threading.Lock] = {}
_mutexes_lock = threading.Lock()
_generation = 0
"""Counts forks: a child has none of its parent's locks, whatever its copies of these variables say."""


def _after_fork() -> None:
    global _mutexes, _mutexes_lock, _generation  # what another thread held stays locked
    _mutexes, _mutexes_lock, _generation = {}, threading.Lock(), _generation + 1


os.register_at_fork(after_in_child=_after_fork)


def _mutex(path: Path) -> threading.Lock:
    with _mutexes_lock:
        return _mutexes.setdefault(os.path.realpath(path), threading.Lock())


def lock_beside(path: Path) -> Path:
    """The lock file that guards another file: hidden, in the same folder."""
    return path.with_name(f".{path.name}.lock")


class FileLock:
    """The lock that the file at ``path`` is. It is made where it is missing; its folder is not."""

    def __init__(self, path: Path, *, mode: int = 0o666) -> None:
        self.path = path
        self._mode = mode
        self._descriptor: int | None = None
        self._generation = -1
        self._mutex: threading.Lock | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds it, in this process."""
        return self._descriptor is not None and self._generation == _generation

    def take(self, wait: float = 0.0) -> Self:
        """Take the lock, trying for ``wait`` seconds.

        Raises `TimeoutError` where another holds it all that time, `OSError` where there can be no lock; their
        ``strerror`` says what to do.
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
        """Let others have it. In a forked child only its copy of the descriptor is closed; the parent keeps the lock."""
        descriptor, mutex, self._descriptor, self._mutex = self._descriptor, self._mutex, None, None
        if descriptor is not None and mutex is not None:
            os.close(descriptor)
            mutex.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def is_taken(self) -> bool:
        """Whether anybody holds it now. Asks without trying for it, so nobody who tries just then is turned away."""
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
    """Alone with the file at ``path``, by the lock beside it. Raises as `FileLock.take`."""
    with FileLock(lock_beside(path)).take(wait):
        yield


class RangeLocks:
    """Locks on parts of one open file that many processes map into memory, for moments: a record each.

    ``descriptor`` is the only one that this process has of the file through this class or otherwise; where several objects
    of a process share the file, they share the lock within the process, and close by `close`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mutex, self._generation = _mutex(path), _generation
        with self._mutex:
            self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @contextmanager
    def hold(self, start: int, length: int, *, wait: float) -> Iterator[None]:
        """Alone with these bytes, tried for ``wait`` seconds. Raises as `FileLock.take`."""
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

    def close(self) -> None:
        """Close the file, while nobody of this process holds a part of it."""
        with self._mutex:
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
    return TimeoutError(errno.ETIMEDOUT, f"{who} holds the lock {path}; wait for it, or end it")


def _no_locks(path: Path, error: OSError) -> OSError:
    return OSError(
        error.errno or errno.ENOLCK,
        f"the file system of {path.parent} has no locks; use another one (or mount NFS without nolock, Lustre with flock)",
    )


_FLOCK = "qqihh4x" if sys.platform == "darwin" else "hhqqi4x"


def _holder(descriptor: int, start: int = 0, length: int = 0) -> int | None:
    """The process that holds a lock there; 0 where the system does not know its number, None where nobody does."""
    if sys.platform == "darwin":
        asked = struct.pack(_FLOCK, start, length, 0, fcntl.F_WRLCK, os.SEEK_SET)
        _, _, pid, kind, _ = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    else:
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
        kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    return None if kind == fcntl.F_UNLCK else max(0, pid)
