"""The output file: what is in it stays, whatever happens."""

from __future__ import annotations

import json
import os
import resource
import signal

import pytest

from workflow_composer.batch.datasets.prompt_rows import InputRow
from workflow_composer.batch.run.answer_file import AnswerFile, AnswerLine, answers_in
from workflow_composer.errors import InputError, WorkflowComposerError
from workflow_composer.storage.lines import encoded


def row(index, key=None):
    """A row of the input."""
    return InputRow(index, f"in.jsonl:{index + 1}", key or f"{index + 1:016x}", "prompt")


def record(index, **fields):
    """The answer to it."""
    return {"index": index, "key": f"{index + 1:016x}", "text": "t", "cost": 0.0, **fields}


def failed(index, cost=0.0):
    """It has failed."""
    return record(index, cost=cost, error={"type": "CallTimeout", "message": "late"})


@pytest.fixture
def path(tmp_path):
    """Where the output goes."""
    return tmp_path / "out.jsonl"


@pytest.fixture
def open_file(path):
    """Opens the file; what was opened is closed in the end."""
    opened = []

    class Opened(AnswerFile):
        earlier = ()

        def write(self, fields):
            self.append(AnswerLine(fields))

    def open_it(target=None, source=None):
        earlier = []
        source = source or path.parent / "in.jsonl"
        file = Opened.open(target or path, source=source, each=earlier.append, other="another --output")
        opened.append(file)
        file.earlier = earlier
        return file

    yield open_it
    for file in opened:
        file.close()


def indices(path):
    """The rows of the file, in order."""
    return [json.loads(line)["index"] for line in path.read_bytes().splitlines()]


def test_a_row_is_in_the_file_at_once(path, open_file):
    """Nothing is lost with the process."""
    open_file().write(record(0))

    assert indices(path) == [0]


def test_a_later_run_knows_what_is_done(path, open_file):
    """By index and key; the rows are handed over to be counted."""
    first = open_file()
    first.write(record(4))
    first.write(record(1))
    first.close()
    second = open_file()

    assert [second.is_done(row(i)) for i in range(6)] == [False, True, False, False, True, False]
    assert [head.row for head in second.earlier] == [4, 1]
    assert second.rows == 5


def test_an_answer_to_another_row_is_an_error(path, open_file):
    """Input or options have changed; the message says which row shows it."""
    first = open_file()
    first.write(record(0))
    first.close()

    with pytest.raises(InputError, match=r"the answer to row 0 does not match in\.jsonl:1"):
        open_file().is_done(row(0, key="f" * 16))


def test_a_row_with_an_error_is_tried_again_and_its_last_line_is_left(path, open_file):
    """The file of a run that has ended keeps one line per row, in the order in which rows ended."""
    first = open_file()
    first.write(record(0))
    first.write(failed(1))
    first.write(failed(3))
    first.write(record(2))
    first.close()
    second = open_file()

    assert [second.is_done(row(i)) for i in range(4)] == [True, False, True, False]
    assert [(head.row, bool(head.error)) for head in second.earlier] == [(0, False), (2, False), (1, True), (3, True)]
    second.write(record(1))
    assert indices(path) == [0, 1, 3, 2, 1]
    second.close()
    assert indices(path) == [0, 3, 2, 1]
    assert [found["index"] for found in answers_in(path) if "error" not in found] == [0, 1, 2]


def test_the_cost_of_tries_that_failed_is_in_the_rows_last_line(path, open_file):
    """Whoever adds up the file's costs has what was paid, however often it was tried, and killed in between."""
    for cost in (1.0, 2.0):
        file = open_file()
        file.write(failed(0, cost))
        file.close()
    file = open_file()
    assert [head.cost for head in file.earlier] == [3.0]
    file.write(failed(0, 0.5))
    file.write(record(0, cost=0.25))
    before_closing = path.read_bytes()
    file.close()
    assert [line["cost"] for line in answers_in(path)] == [3.75]

    path.write_bytes(before_closing)  # a kill has left the lines of all tries
    file = open_file()
    assert sum(head.cost for head in file.earlier) == 3.75
    file.close()
    assert indices(path) == [0]


def test_an_error_behind_an_answer_does_not_count(path, open_file):
    """What is answered stays answered; the line is taken out."""
    path.write_bytes(encoded(record(0)) + encoded(failed(0)) + encoded(record(1)))
    file = open_file()
    assert file.is_done(row(0))
    file.close()
    assert [json.loads(line).get("error") for line in path.read_bytes().splitlines()] == [None, None]


def test_answers_are_read_in_the_order_of_the_rows(path, open_file):
    """Each row's last line; a line that is being written is left out."""
    file = open_file()
    for fields in (record(2), failed(0), record(5), record(0, text="later")):
        file.write(fields)
    with path.open("ab") as torn:
        torn.write(encoded(record(1))[:20])
    assert [(found["index"], found["text"]) for found in answers_in(path)] == [(0, "later"), (2, "t"), (5, "t")]


@pytest.mark.parametrize("kept", [1, 5, 9, 20, len(encoded(record(1))) - 1])
def test_a_half_written_last_line_is_dropped(path, open_file, kept):
    """Wherever it was cut, also just before its end; the row is answered again."""
    path.write_bytes(encoded(record(0)) + encoded(record(1))[:kept])
    journal = open_file()

    assert [journal.is_done(row(i)) for i in range(2)] == [True, False]
    journal.write(record(1))
    assert indices(path) == [0, 1]


def test_zeros_that_a_crashed_machine_left_are_dropped(path, open_file):
    """Some file systems grow a file before its bytes arrive."""
    path.write_bytes(encoded(record(0)) + b"\0" * 300)
    open_file().write(record(1))

    assert indices(path) == [0, 1]


@pytest.mark.parametrize(
    "content",
    [
        b"important notes",
        b"important notes\n",
        b'{"question": "q"}\n',
        b'{"index":0}\n',
        b'{"index":0,"key":"1"}\n',
        b'{"index":0,"text":"of someone else"}\n',
        b'{"index":"0","key":"1"}\n',
        b'{"index":0,"key":"no hex"}\n',
        b'{"index":-1,"key":"1"}\n',
        b'{"index":999999999999,"key":"1"}\n',
        b"{half\n" + encoded(record(0)),
        encoded(record(0))[:20] + b"\n" + encoded(record(1)),
    ],
)
def test_a_file_that_holds_something_else_is_left_alone(path, open_file, content):
    """A slip of the finger must not cost anyone their data."""
    path.write_bytes(content)

    with pytest.raises(InputError, match=r"out.jsonl:1: not a line") as caught:
        open_file()
    assert "another --output" in caught.value.hint
    assert path.read_bytes() == content


def test_the_input_cannot_be_the_output(path, open_file, tmp_path):
    """Also not by another name."""
    path.write_bytes(b'{"prompt": "a"}\n')
    (tmp_path / "link").symlink_to(path)

    with pytest.raises(InputError, match="both the input and the output"):
        open_file(tmp_path / "link", source=path)


def test_two_runs_cannot_have_one_file(path, open_file):
    """Also not after the first has put a new file in its place."""
    first = open_file()
    with pytest.raises(InputError, match="another run is writing to"):
        open_file()
    first.write(failed(0))
    first.write(record(0))
    first.close()  # which rewrites the file
    assert indices(path) == [0]

    second = open_file()
    with pytest.raises(InputError, match="another run is writing to"):
        open_file()
    second.close()
    open_file()


def test_a_run_that_reads_the_file_meanwhile_does_not_let_another_in(path, open_file):
    """POSIX locks go with any descriptor of the file that the process closes; this one stands elsewhere."""
    first = open_file()
    first.write(record(0))
    path.read_bytes()
    with pytest.raises(InputError, match="another run is writing to"):
        open_file()
    first.write(record(1))
    assert indices(path) == [0, 1]


def test_a_link_stays_a_link(path, open_file, tmp_path):
    """The file behind it is rewritten, with its permissions."""
    path.write_bytes(encoded(failed(0)))
    path.chmod(0o640)
    link = tmp_path / "link.jsonl"
    link.symlink_to(path)
    file = open_file(link)
    file.write(record(0))
    file.close()

    assert link.is_symlink()
    assert indices(path) == [0]
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("name", "message"), [("", "Is a directory"), ("none/out.jsonl", "No such file"), ("pipe", "not a regular file")]
)
def test_what_cannot_be_written_is_an_error(name, message, tmp_path, open_file):
    """In the words of the system, with a remedy."""
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(InputError, match=message) as caught:
        open_file(tmp_path / name)
    assert caught.value.hint


def test_a_full_disk_loses_nothing(path, open_file):
    """The line that did not fit is taken back; the rows before it are whole. (A limit on the file's size stands for it.)"""
    journal = open_file()
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

    assert "it resumes" in caught.value.hint
    assert indices(path) == [0]
    journal.write(record(1))
    assert indices(path) == [0, 1]


def test_a_line_is_json_whatever_is_in_it():
    """Lone surrogates, infinities; text is readable as it is."""
    assert "größer".encode() in encoded({"text": "größer"})
    assert json.loads(encoded({"text": "\ud800"})) == {"text": "\ud800"}
    assert json.loads(encoded({"logprobs": [["a", float("-inf")], ["b", -1.5]]})) == {"logprobs": [["a", None], ["b", -1.5]]}
    assert encoded({"text": "a\nb"}).count(b"\n") == 1
