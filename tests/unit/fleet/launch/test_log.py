"""A server's log: appended to, set aside, and no danger to the server where the disk is full."""

from __future__ import annotations

import errno

import pytest

from workflow_composer.errors import FleetError
from workflow_composer.fleet.launch.process import TAIL, ServerLog


def test_a_log_is_appended_to_and_the_supervisors_lines_are_marked(tmp_path):
    path = tmp_path / "logs" / "s.log"
    for _ in range(2):
        log = ServerLog(path)
        log.say("starting")
        log.write(b"from vLLM\n")
        log.close()

    lines = path.read_text().splitlines()
    assert [line.partition("[fleet] ")[2] or line for line in lines] == ["starting", "from vLLM"] * 2
    assert path.stat().st_mode & 0o077 == 0


def test_a_large_log_is_set_aside_at_the_start_and_while_it_grows(tmp_path):
    path, aside = tmp_path / "s.log", tmp_path / "s.log.1"
    path.write_bytes(b"old" * 10)

    log = ServerLog(path, largest=20)
    assert (aside.read_bytes(), path.read_bytes()) == (b"old" * 10, b"")
    for _ in range(3):
        log.write(b"0123456789\n")
    log.write(b"last\n")
    log.close()

    assert path.read_bytes().endswith(b"last\n")
    assert aside.read_bytes().startswith(b"0123456789\n")


def test_the_end_is_kept_in_memory(tmp_path):
    log = ServerLog(tmp_path / "s.log")
    log.write(b"x" * TAIL)
    log.write("the end, ä\n".encode())
    log.close()

    assert log.tail.endswith("the end, ä\n")
    assert len(log.tail.encode()) == TAIL


def test_what_a_full_disk_does_not_take_is_lost_and_told_of_once_there_is_room(small_disk):
    filler = small_disk / "filler"
    log = ServerLog(small_disk / "s.log")
    log.write(b"before\n")
    with pytest.raises(OSError, match="No space") as caught, filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    assert caught.value.errno == errno.ENOSPC
    for _ in range(3):  # the first fills the file's last page
        log.write(b"y" * 8191 + b"\n")
    assert log.tail.endswith("yyy\n")

    filler.unlink()
    log.write(b"after\n")
    log.close()

    text = (small_disk / "s.log").read_text()
    assert text.startswith("before\n")
    assert "bytes of this log were lost: it could not be written\nafter\n" in text


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(FleetError, match=r"the log .*/file/s\.log cannot be written: (Not a directory|File exists)"):
        ServerLog(tmp_path / "file" / "s.log")


def test_writing_to_a_log_that_is_closed_is_no_error(tmp_path):
    log = ServerLog(tmp_path / "s.log")
    log.close()
    log.write(b"late\n")

    assert log.tail == "late\n"
    assert (tmp_path / "s.log").stat().st_size == 0
