"""The output file: what is in it stays, whatever happens."""

from __future__ import annotations

import json
import os
import resource
import signal

import pytest

from workflow_composer.cli.journal import Journal
from workflow_composer.cli.rows import Row
from workflow_composer.errors import InputError, WorkflowComposerError
from workflow_composer.storage.lines import encoded


def row(index, key=None):
    """A row of the input."""
    return Row(index, index + 1, key or f"{index + 1:016x}", "prompt")


def record(index, **fields):
    """The answer to it."""
    return {"index": index, "key": f"{index + 1:016x}", "text": "t", "cost": 0.0, **fields}


@pytest.fixture
def path(tmp_path):
    """Where the output goes."""
    return tmp_path / "out.jsonl"


@pytest.fixture
def open_journal(path):
    """Opens the journal; what was opened is closed in the end."""
    opened = []

    def open_it(target=None, source=None):
        earlier = []
        journal = Journal.open(target or path, source=source or path.parent / "in.jsonl", each=earlier.append)
        opened.append(journal)
        journal.earlier = earlier
        return journal

    yield open_it
    for journal in opened:
        journal.close()


def indices(path):
    """The rows of the file, in order."""
    return [json.loads(line)["index"] for line in path.read_bytes().splitlines()]


def test_a_row_is_in_the_file_at_once(path, open_journal):
    """Nothing is lost with the process."""
    open_journal().write(record(0))

    assert indices(path) == [0]


def test_a_later_run_knows_what_is_done(path, open_journal):
    """By index and key; the rows are handed over to be counted."""
    first = open_journal()
    first.write(record(4))
    first.write(record(1))
    first.close()
    second = open_journal()

    assert [second.is_done(row(i)) for i in range(6)] == [False, True, False, False, True, False]
    assert [r["index"] for r in second.earlier] == [4, 1]
    assert (second.rows, second.dropped) == (5, 0)


def test_an_answer_to_another_row_is_an_error(path, open_journal):
    """Input or options have changed; the message says which row shows it."""
    first = open_journal()
    first.write(record(0))
    first.close()

    with pytest.raises(InputError, match="answers another row 0 than the one in line 1"):
        open_journal().is_done(row(0, key="f" * 16))


def test_rows_with_errors_are_dropped_to_be_tried_again(path, open_journal):
    """And the file keeps one line per row."""
    first = open_journal()
    first.write(record(0))
    first.write(record(1, error={"type": "CallTimeout", "message": "late"}))
    first.write(record(2))
    first.close()
    second = open_journal()

    assert [second.is_done(row(i)) for i in range(3)] == [True, False, True]
    assert second.dropped == 1
    second.write(record(1))
    assert indices(path) == [0, 2, 1]


@pytest.mark.parametrize("kept", [1, 5, 9, 20, len(encoded(record(1))) - 1])
def test_a_half_written_last_line_is_dropped(path, open_journal, kept):
    """Wherever it was cut, also just before its end; the row is answered again."""
    path.write_bytes(encoded(record(0)) + encoded(record(1))[:kept])
    journal = open_journal()

    assert [journal.is_done(row(i)) for i in range(2)] == [True, False]
    journal.write(record(1))
    assert indices(path) == [0, 1]


def test_zeros_that_a_crashed_machine_left_are_dropped(path, open_journal):
    """Some file systems grow a file before its bytes arrive."""
    path.write_bytes(encoded(record(0)) + b"\0" * 300)
    open_journal().write(record(1))

    assert indices(path) == [0, 1]


@pytest.mark.parametrize(
    "content",
    [
        b"important notes",
        b"important notes\n",
        b'{"question": "q"}\n',
        b'{"index":0}\n',
        b'{"index":0,"text":"of someone else"}\n',
        b'{"index":"0","key":"1"}\n',
        b'{"index":0,"key":"no hex"}\n',
        b'{"index":-1,"key":"1"}\n',
        b'{"index":999999999999,"key":"1"}\n',
        b"{half\n" + encoded(record(0)),
        encoded(record(0))[:20] + b"\n" + encoded(record(1)),
    ],
)
def test_a_file_that_holds_something_else_is_left_alone(path, open_journal, content):
    """A slip of the finger must not cost anyone their data."""
    path.write_bytes(content)

    with pytest.raises(InputError, match=r"out.jsonl:1: this is no row") as caught:
        open_journal()
    assert "another --output" in caught.value.hint
    assert path.read_bytes() == content


def test_the_input_cannot_be_the_output(path, open_journal, tmp_path):
    """Also not by another name."""
    path.write_bytes(b'{"prompt": "a"}\n')
    (tmp_path / "link").symlink_to(path)

    with pytest.raises(InputError, match="both input and output"):
        open_journal(tmp_path / "link", source=path)


def test_two_runs_cannot_have_one_file(path, open_journal):
    """Also not after the first has put a new file in its place."""
    first = open_journal()
    with pytest.raises(InputError, match="another run is writing to"):
        open_journal()
    first.write(record(0, error={}))
    first.close()

    second = open_journal()  # which rewrites the file
    with pytest.raises(InputError, match="another run is writing to"):
        open_journal()
    second.close()
    open_journal()


def test_a_run_that_reads_the_file_meanwhile_does_not_let_another_in(path, open_journal):
    """POSIX locks go with any descriptor of the file that the process closes; this one stands elsewhere."""
    first = open_journal()
    first.write(record(0))
    path.read_bytes()
    with pytest.raises(InputError, match="another run is writing to"):
        open_journal()
    first.write(record(1))
    assert indices(path) == [0, 1]


def test_a_link_stays_a_link(path, open_journal, tmp_path):
    """The file behind it is rewritten, with its permissions."""
    path.write_bytes(encoded(record(0, error={})))
    path.chmod(0o640)
    link = tmp_path / "link.jsonl"
    link.symlink_to(path)
    open_journal(link).write(record(0))

    assert link.is_symlink()
    assert indices(path) == [0]
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("name", "message"), [("", "Is a directory"), ("none/out.jsonl", "No such file"), ("pipe", "not a regular file")]
)
def test_what_cannot_be_written_is_an_error(name, message, tmp_path, open_journal):
    """In the words of the system, with a remedy."""
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(InputError, match=message) as caught:
        open_journal(tmp_path / name)
    assert caught.value.hint


def test_a_full_disk_loses_nothing(path, open_journal):
    """The line that did not fit is taken back; the rows before it are whole. (A limit on the file's size stands for it.)"""
    journal = open_journal()
    journal.write(record(0))
    room = path.stat().st_size + 30
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(WorkflowComposerError, match="cannot write") as caught:
            journal.write(record(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)

    assert "goes on where it stopped" in caught.value.hint
    assert indices(path) == [0]
    journal.write(record(1))
    assert indices(path) == [0, 1]


def test_a_line_is_json_whatever_is_in_it():
    """Lone surrogates, infinities; text is readable as it is."""
    assert "größer".encode() in encoded({"text": "größer"})
    assert json.loads(encoded({"text": "\ud800"})) == {"text": "\ud800"}
    assert json.loads(encoded({"logprobs": [["a", float("-inf")], ["b", -1.5]]})) == {"logprobs": [["a", None], ["b", -1.5]]}
    assert encoded({"text": "a\nb"}).count(b"\n") == 1
