"""Appending lines: whole, behind whole lines, by many at once."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from workflow_composer.storage import appending
from workflow_composer.storage.appending import LineFile, OwnFile, append_lines
from workflow_composer.storage.locks import FileLock, lock_beside, locked

WRITER = """
import sys
from pathlib import Path
from workflow_composer.storage.appending import append_lines
for number in range(100):
    append_lines(Path(sys.argv[1]), f"{sys.argv[2] * 5000} {number}\\n".encode(), wait=60.0)
"""


def test_lines_of_several_processes_are_all_there_and_whole(tmp_path):
    """Each in its process's order."""
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, tmp_path / "f", name]) for name in "abc"]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    lines = (tmp_path / "f").read_text().splitlines()
    for name in "abc":
        assert [line for line in lines if line[0] == name] == [f"{name * 5000} {number}" for number in range(100)]
    assert len(lines) == 300


def test_a_torn_last_line_spoils_no_other(tmp_path):
    """It is ended, not lost."""
    (tmp_path / "f").write_bytes(b'{"a":1}\n{"a":')
    append_lines(tmp_path / "f", b'{"a":2}\n')
    assert (tmp_path / "f").read_bytes() == b'{"a":1}\n{"a":\n{"a":2}\n'


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    """Where the system takes only a part, it is taken back, and the error says why."""
    append_lines(tmp_path / "f", b"first\n")
    write = os.write
    monkeypatch.setattr(appending.os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    with pytest.raises(OSError, match="No space") as failure:
        append_lines(tmp_path / "f", b"second\n")
    assert failure.value.errno == errno.ENOSPC
    assert (tmp_path / "f").read_bytes() == b"first\n"


def test_while_another_holds_the_lock_nothing_is_added(tmp_path):
    """For as long as one is ready to wait."""
    with locked(tmp_path / "f"), pytest.raises(TimeoutError):
        append_lines(tmp_path / "f", b"line\n", wait=0.01)
    assert not (tmp_path / "f").exists()


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    """A pipe without a reader included."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(OSError, match=r"regular file|directory"):
            append_lines(path, b"line\n")


@pytest.mark.parametrize(
    "append", [lambda path: append_lines(path, b"second\n"), lambda path: LineFile(path).append(b"second\n")]
)
def test_a_disk_that_fails_within_a_line_leaves_no_half_of_it(tmp_path, monkeypatch, append):
    """The error is the system's."""
    append_lines(tmp_path / "f", b"first\n")
    write = os.write

    def fail(descriptor, data):
        write(descriptor, data[:3])
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(appending.os, "write", fail)
    with pytest.raises(OSError, match="Input/output"):
        append(tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"first\n"
    assert not FileLock(lock_beside(tmp_path / "f")).is_taken()


# -------------------------------------------------------------------------------------------------- a file of one's own


def test_a_file_of_ones_own_is_shut_to_others_until_it_is_closed(tmp_path):
    """Also by another name; and only to those who want it for their own."""
    (tmp_path / "link").symlink_to("f")
    own = OwnFile.open(tmp_path / "f")
    own.append(b"line\n")
    for name in ("f", "link"):
        with pytest.raises(TimeoutError):
            OwnFile.open(tmp_path / name)
    assert (tmp_path / "f").read_bytes() == b"line\n"
    own.close()
    own.close()
    OwnFile.open(tmp_path / "link").close()


def test_a_file_that_cannot_be_opened_is_locked_to_nobody(tmp_path, monkeypatch):
    """When the fault is mended it can be opened."""
    system = os.open

    def refuse(path, *rest, **options):
        if path == tmp_path / "f":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return system(path, *rest, **options)

    monkeypatch.setattr(appending.os, "open", refuse)
    with pytest.raises(PermissionError):
        OwnFile.open(tmp_path / "f")
    monkeypatch.undo()
    OwnFile.open(tmp_path / "f").close()


def test_lines_behind_a_rewriting_are_in_the_new_file(tmp_path):
    """Where it fails, the old one goes on."""
    own = OwnFile.open(tmp_path / "f")
    own.append(b"old\n")
    with pytest.raises(ZeroDivisionError), own.rewriting() as file:
        file.write(b"half")
        raise ZeroDivisionError
    own.append(b"more\n")
    assert (tmp_path / "f").read_bytes() == b"old\nmore\n"
    with own.rewriting() as file:
        file.write(b"new\n")
    own.append(b"line\n")
    own.close()
    assert (tmp_path / "f").read_bytes() == b"new\nline\n"


def test_what_a_full_disk_takes_of_ones_own_lines_is_taken_back(tmp_path, monkeypatch):
    """The next line begins behind a whole one."""
    own = OwnFile.open(tmp_path / "f")
    own.append(b"first\n")
    write = os.write
    with monkeypatch.context() as full:
        full.setattr(appending.os, "write", lambda descriptor, data: write(descriptor, data[:3]))
        with pytest.raises(OSError, match="No space"):
            own.append(b"second\n")
    own.append(b"third\n")
    own.close()
    assert (tmp_path / "f").read_bytes() == b"first\nthird\n"


def test_to_synchronise_puts_the_lines_and_the_files_name_on_the_disk(tmp_path, monkeypatch):
    """A new file whose folder is not written is lost with the machine, its lines with it."""
    own, done = OwnFile.open(tmp_path / "f"), []
    monkeypatch.setattr(
        appending.os, "fsync", lambda descriptor: done.append(os.path.realpath(f"/proc/self/fd/{descriptor}"))
    )
    own.sync()
    own.close()
    assert done == [str(tmp_path / "f"), str(tmp_path)]


# ------------------------------------------------------------------------------------------------- a file of many writers


def test_a_file_that_is_moved_away_is_begun_anew(tmp_path):
    """As rotation of logs does it; the lock is the new file's."""
    file = LineFile(tmp_path / "folder" / "f")
    file.append(b"one\n")
    (tmp_path / "folder" / "f").rename(tmp_path / "folder" / "f.1")
    file.append(b"two\n")
    file.close()
    assert [(tmp_path / "folder" / name).read_bytes() for name in ("f.1", "f")] == [b"one\n", b"two\n"]


def test_a_line_waits_for_the_lock_and_goes_without_one_where_none_can_be_made(tmp_path, monkeypatch):
    """Who holds it may be in the middle of a line; in a folder that is another's one write is whole all the same."""
    file = LineFile(tmp_path / "f")
    with locked(tmp_path / "f"), pytest.raises(TimeoutError):
        file.append(b"line\n", wait=0.01)
    assert (tmp_path / "f").read_bytes() == b""
    file.append(b"first\n")
    assert not FileLock(lock_beside(tmp_path / "f")).is_taken()
    system = os.open

    def refuse(path, *rest, **options):
        if path == lock_beside(tmp_path / "f"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return system(path, *rest, **options)

    monkeypatch.setattr(appending.os, "open", refuse)
    file.append(b"second\n")
    file.close()
    assert (tmp_path / "f").read_bytes() == b"first\nsecond\n"
