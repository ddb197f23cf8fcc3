"""Appending lines: whole, behind whole lines, by many at once."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from workflow_composer.storage import appending
from workflow_composer.storage.appending import append_lines
from workflow_composer.storage.locks import locked

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
