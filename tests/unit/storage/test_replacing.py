"""Replacing a file: old or new, never half; on the disk; with the right permissions."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from workflow_composer.storage import replacing as module
from workflow_composer.storage.replacing import replace_file, replacing, set_aside, try_to_write

WRITER = """
import sys
from pathlib import Path
from workflow_composer.storage.replacing import replace_file
print("ready", flush=True)
number = 0
while True:
    number += 1
    replace_file(Path(sys.argv[1]), f"{number % 10}" * 200_000)
"""


def mode_of(path):
    """A file's permissions."""
    return stat.S_IMODE(path.stat().st_mode)


def test_a_writer_that_is_killed_at_any_moment_leaves_a_whole_file(tmp_path):
    """Ten times; what is read is one of the contents, from the first byte to the last."""
    path = tmp_path / "f"
    replace_file(path, "0" * 200_000)
    for _ in range(10):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout.readline() == b"ready\n"
            for _ in range(200):
                text = path.read_text()
                assert text == text[0] * 200_000
            writer.send_signal(signal.SIGKILL)


def test_file_and_folder_are_put_on_the_disk(tmp_path, monkeypatch):
    """The content before it takes its name, the name after."""
    done = []
    monkeypatch.setattr(
        module.os, "fsync", lambda d: done.append((str(Path(f"/proc/self/fd/{d}").readlink()), (tmp_path / "f").exists()))
    )
    replace_file(tmp_path / "f", "new")
    (beside, before), (folder, after) = done
    assert beside.startswith(str(tmp_path / ".f."))
    assert (folder, before, after) == (str(tmp_path), False, True)


@pytest.mark.parametrize("fault", [OSError("no space"), KeyboardInterrupt()])
def test_what_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path, fault):
    """Whatever the fault is."""
    replace_file(tmp_path / "f", "old")
    with pytest.raises(type(fault)), replacing(tmp_path / "f") as file:
        file.write(b"half of the n")
        raise fault
    assert (tmp_path / "f").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_permissions_are_those_asked_for_else_those_of_the_old_file(tmp_path):
    """A secret is never readable by others, also not for a moment; a shared file stays shared."""
    before = os.umask(0o022)
    try:
        replace_file(tmp_path / "secret", "x", mode=0o600)
        replace_file(tmp_path / "plain", "x")
        (tmp_path / "shared").write_text("x")
        (tmp_path / "shared").chmod(0o664)
        replace_file(tmp_path / "shared", "y")
    finally:
        os.umask(before)
    assert [mode_of(tmp_path / name) for name in ("secret", "plain", "shared")] == [0o600, 0o644, 0o664]


def test_a_link_stays_a_link(tmp_path):
    """The file that it names is replaced."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "real").write_text("old")
    (tmp_path / "link").symlink_to("folder/real")
    replace_file(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder" / "real").read_text() == "new"


def test_a_link_that_others_may_have_put_there_is_replaced_itself(tmp_path):
    """In a folder that others write to, it could name any file of the writer's."""
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "link").symlink_to("mine")
    replace_file(tmp_path / "link", "new", follow=False)
    assert (tmp_path / "mine").read_text() == "precious"
    assert (tmp_path / "link").read_text() == "new"
    assert not (tmp_path / "link").is_symlink()


def test_what_is_set_aside_takes_the_place_of_what_has_that_name(tmp_path):
    """In the same folder; nothing is left under the old name."""
    (tmp_path / "a.log").write_text("newer")
    (tmp_path / "a.log.1").write_text("older")
    set_aside(tmp_path / "a.log", "a.log.1")
    assert [path.name for path in tmp_path.iterdir()] == ["a.log.1"]
    assert (tmp_path / "a.log.1").read_text() == "newer"
    with pytest.raises(FileNotFoundError):
        set_aside(tmp_path / "a.log", "a.log.1")


def test_trying_to_write_leaves_nothing_and_tells_of_what_forbids_it(tmp_path):
    """Whether the folder is missing, or no folder."""
    try_to_write(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    for place in (tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(OSError, match=r"No such file|Not a directory"):
            try_to_write(place)
