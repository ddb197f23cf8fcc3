"""Locks on files: between threads, objects of one process, processes, and after a fork."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.unit.storage.stranger import STRANGER, Stranger
from workflow_composer.storage import locks
from workflow_composer.storage.locks import FileLock, RangeLocks, lock_beside, locked

COUNTER = """
import sys
from pathlib import Path
from workflow_composer.storage.locks import locked
path = Path(sys.argv[1])
for _ in range(int(sys.argv[2])):
    with locked(path, wait=60.0):
        path.write_text(str(int(path.read_text()) + 1))
"""


def test_a_second_object_of_the_same_process_is_turned_away(tmp_path):
    """POSIX locks alone would let it in; and its attempt must not take the first one's lock away."""
    first, second = FileLock(tmp_path / "l").take(), FileLock(tmp_path / "l")
    with pytest.raises(TimeoutError):
        second.take()
    assert second.is_taken()
    assert not second.held
    command = [sys.executable, "-c", STRANGER, str(tmp_path / "l")]
    with pytest.raises(subprocess.TimeoutExpired):  # it waits in the kernel, since the lock is still there
        subprocess.run(command, stdin=subprocess.DEVNULL, timeout=0.5, check=False)
    first.release()
    assert second.take().held
    second.release()


def test_the_same_lock_by_another_name_is_the_same_lock(tmp_path):
    """Relative paths and links lead to one file."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    with FileLock(tmp_path / "folder" / "l").take(), pytest.raises(TimeoutError):
        FileLock(tmp_path / "link" / ".." / "folder" / "l").take()


def test_a_strangers_lock_is_waited_for_and_named(tmp_path):
    """The error says which process holds it; when it ends, however it does, the lock is free."""
    lock = FileLock(tmp_path / "l")
    with Stranger(tmp_path / "l") as stranger:
        assert lock.is_taken()
        with pytest.raises(TimeoutError, match=str(stranger.process.pid)):
            lock.take(wait=0.01)
        threading.Timer(0.05, stranger.process.kill).start()
        lock.take(wait=20.0)
    assert lock.held
    lock.release()
    assert not lock.is_taken()


def test_to_ask_whether_a_lock_is_taken_makes_no_file_and_takes_nothing(tmp_path):
    """Nobody who tries for it meanwhile is turned away."""
    lock = FileLock(tmp_path / "l")
    assert not lock.is_taken()
    assert list(tmp_path.iterdir()) == []
    lock.take().release()
    assert not lock.is_taken()


def test_threads_and_processes_lose_no_change(tmp_path):
    """Four threads here and two processes add to one number, each alone with it."""
    path = tmp_path / "number"
    path.write_text("0")
    others = [subprocess.Popen([sys.executable, "-c", COUNTER, str(path), "50"]) for _ in range(2)]

    def count():
        for _ in range(50):
            with locked(path, wait=60.0):
                path.write_text(str(int(path.read_text()) + 1))

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [other.wait(60) for other in others] == [0, 0]
    assert path.read_text() == "300"
    assert sorted(tmp_path.iterdir()) == [lock_beside(path), path]


def test_a_forked_child_has_no_lock_of_its_parents_and_takes_none_away(tmp_path):
    """Whatever threads held at the fork, the child can try; what it closes leaves the parent's locks as they are."""
    with FileLock(tmp_path / "l").take() as lock:
        child = os.fork()
        if not child:
            status = 1
            try:
                assert not lock.held
                lock.release()
                with pytest.raises(TimeoutError):
                    FileLock(tmp_path / "l").take(wait=0.05)
                FileLock(tmp_path / "other").take().release()
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with pytest.raises(subprocess.TimeoutExpired):
            command = [sys.executable, "-c", STRANGER, str(tmp_path / "l")]
            subprocess.run(command, stdin=subprocess.DEVNULL, timeout=0.5, check=False)


def test_a_fault_that_is_not_a_held_lock_is_raised_at_once(tmp_path, monkeypatch):
    """A disk's fault is no lock to wait for: after one attempt it is raised as it is."""
    attempts = []

    def fail(*_):
        attempts.append(1)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(locks.fcntl, "lockf", fail)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), locked(tmp_path / "l", wait=0.5):
        pass
    assert len(attempts) == 1


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_with_the_remedy(tmp_path, monkeypatch, number):
    """At once, not when the time to wait is over."""

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.fcntl, "lockf", refuse)
    with pytest.raises(OSError, match="has no locks; use another one") as failure, locked(tmp_path / "l", wait=1000.0):
        pass
    assert failure.value.errno == number
    monkeypatch.undo()
    FileLock(lock_beside(tmp_path / "l")).take().release()  # nothing of the attempt is left


def test_ranges_of_one_file_are_apart_between_processes_and_shared_within_one(tmp_path):
    """A stranger's lock on one record keeps nobody from another; a second object here ends no lock of the first."""
    path = tmp_path / "records"
    first, second = RangeLocks(path), RangeLocks(path)
    held = subprocess.Popen(
        [sys.executable, "-c", STRANGER.replace("LOCK_EX)", "LOCK_EX, 10, 0)"), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert held.stdout.readline() == b"held\n"
        with first.hold(10, 10, wait=0.05):
            pass
        with pytest.raises(TimeoutError), first.hold(0, 10, wait=0.05):
            pass
    finally:
        held.communicate(b"\n", timeout=20)
    with first.hold(0, 10, wait=0.05), pytest.raises(TimeoutError), second.hold(20, 10, wait=0.05):
        pass
    with Stranger(path):  # nothing is left of what was held
        pass
    closing = threading.Thread(target=second.close)
    with first.hold(0, 10, wait=0.05):
        closing.start()
        probe = "import fcntl,sys; fcntl.lockf(open(sys.argv[1],'a'), fcntl.LOCK_EX|fcntl.LOCK_NB, 10, 0)"
        assert subprocess.run([sys.executable, "-c", probe, path], capture_output=True, check=False).returncode != 0
    closing.join(20)
    first.close()


def test_two_threads_are_never_in_the_same_lock_and_one_gives_way_to_the_other(tmp_path):
    """POSIX locks are a process's: to them both would be one."""
    inside, waiting, order = threading.Event(), threading.Event(), []

    def second():
        inside.wait(20)
        with pytest.raises(TimeoutError):
            FileLock(tmp_path / "l").take()
        waiting.set()
        with FileLock(tmp_path / "l").take(wait=20.0):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with FileLock(tmp_path / "l").take():
        inside.set()
        assert waiting.wait(20)
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]


@pytest.mark.parametrize("fault", ["a stranger has it", "there is no folder", "no locks"])
def test_an_attempt_that_fails_leaves_nothing_behind(tmp_path, monkeypatch, fault):
    """Neither a descriptor nor a lock within the process: the next attempt is a new one."""
    path = tmp_path / "folder" / "l"
    if fault == "there is no folder":
        with pytest.raises(FileNotFoundError):
            FileLock(path).take()
        path.parent.mkdir()
    else:
        path.parent.mkdir()
        with Stranger(path):
            if fault == "no locks":
                monkeypatch.setattr(locks.fcntl, "lockf", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "none")))
            with pytest.raises(OSError):  # noqa: PT011  # TimeoutError or another, as the fault is
                FileLock(path).take()
        monkeypatch.undo()
    assert str(path) not in {os.path.realpath(descriptor) for descriptor in Path("/proc/self/fd").iterdir()}
    FileLock(path).take().release()
