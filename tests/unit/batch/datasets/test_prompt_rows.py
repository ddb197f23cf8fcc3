"""Reading rows: every fault names file, line and remedy."""

from __future__ import annotations

import gzip
import hashlib
import json
import os

import pytest

from workflow_composer.batch.datasets.prompt_rows import PythonRows, RowFile
from workflow_composer.errors import InputError
from workflow_composer.types import LLMRequest


@pytest.fixture
def rows_of(tmp_path):
    """Reads rows from raw bytes."""

    def read(data, name="in.jsonl", **options):
        path = tmp_path / name
        path.write_bytes(data)
        return list(RowFile(path, **options))

    return read


def fault_of(action):
    """The message and hint of an `InputError`."""
    with pytest.raises(InputError) as caught:
        action()
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"question": "q"}, "q"),
        ({"prompt": "p"}, "p"),
        ({"question": "q", "prompt": "p"}, "q"),
        ({"question": None, "prompt": "p"}, "p"),
        ({"messages": [{"role": "user", "content": "m"}]}, ({"role": "user", "content": "m"},)),
    ],
)
def test_the_prompt_is_question_prompt_or_messages(rows_of, row, prompt):
    """Data sets call it differently."""
    assert rows_of(json.dumps(row).encode())[0].prompt == prompt


def test_id_task_model_and_label_are_taken_along(rows_of):
    """And other fields of a data set do no harm."""
    (row,) = rows_of(
        b'{"question": "q", "id": 7, "task_type": "math", "model": "small", "answer": 12, "difficulty": "easy"}'
    )

    assert (row.id, row.task_type, row.model, row.label) == (7, "math", "small", "12")


def test_a_list_of_labels_is_several_right_answers(rows_of):
    """Any of them counts; null is no label."""
    rows = rows_of(b'{"prompt":"a","answer":["x", 2]}\n{"prompt":"b","answer":null}\n')
    assert [row.labels for row in rows] == [("x", "2"), ()]


def test_rows_are_counted_without_blank_lines_and_lines_with_them(rows_of):
    """An error names the line that an editor shows."""
    rows = rows_of(b'\xef\xbb\xbf{"prompt":"a"}\r\n\n   \n{"prompt":"b"}')

    assert [(row.index, row.where.rpartition(":")[2], row.prompt) for row in rows] == [(0, "1", "a"), (1, "4", "b")]


def test_a_line_ends_at_a_line_end_only(rows_of):
    """Not at the other characters that Python takes for one."""
    assert rows_of('{"prompt":"a\u2028b\x85c"}\n'.encode())[0].prompt == "a\u2028b\x85c"


def test_gzip_is_read_whatever_the_name(rows_of):
    """By its first bytes."""
    packed = gzip.compress(b'{"prompt":"a"}\n{"prompt":"b"}\n')

    assert [row.prompt for row in rows_of(packed, "in.jsonl.gz")] == ["a", "b"]
    assert [row.prompt for row in rows_of(packed, "in.jsonl")] == ["a", "b"]


def test_the_limit_keeps_what_follows_from_being_read(rows_of):
    """Not even to be checked."""
    assert len(rows_of(b'{"prompt":"a"}\n{"prompt":"b"}\n{broken', limit=2)) == 2


def test_the_key_stands_for_the_row_and_the_options(rows_of):
    """Another text or another salt: another key. Where the row stands plays no part."""
    one, two, other = rows_of(b'{"prompt":"a"}\n  {"prompt":"a"}  \n{"prompt":"b"}')

    assert one.key == two.key != other.key
    assert rows_of(b'{"prompt":"a"}', salt="x")[0].key != one.key


def test_a_requests_key_is_the_one_that_journals_have():
    """Another key for the same row would answer, and pay for, every row of a journal again."""
    assert [row.key for row in PythonRows([LLMRequest.of("What is 2 + 2?", seed=3)])] == ["8b09d47793dac038"]


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        (b'{"prompt": "a"', "not valid JSON", "one JSON object per line"),
        (b"[\n", "not valid JSON", "jq -c '.[]'"),
        (b'["a"]', "expected an object, found a list", "jq -c '.[]'"),
        (b'"a"', "expected an object, found a text", "one JSON object per line"),
        (b"3", "expected an object, found a number", "one JSON object per line"),
        (b'{"prompt": "caf\xe9"}', "not UTF-8: byte 16 of the line is 0xe9", "iconv -f LATIN1"),
        (b'{"text": "a"}', "no 'prompt' in this row", "every row needs a question"),
        (b"{}", "no 'prompt' in this row", "every row needs a question"),
        (b'{"prompt": ""}', "'prompt' is empty; it must be a non-empty string", "string"),
        (b'{"question": ["a"]}', "'question' is a list; it must be a non-empty string", "string"),
        (b'{"turns": ["a", "b"]}', "no 'prompt' in this row", "every row"),
        (b'{"messages": []}', "no 'prompt' in this row", "every row needs a question"),
        (b'{"messages": ["hello"]}', "'messages' is not a list of messages", '"role"'),
        (b'{"prompt": "a", "model": 3}', "'model' is a number, not a string", "string"),
        (b'{"prompt": "a", "task_type": false}', "'task_type' is false, not a string", "string"),
        (b'{"prompt": ' + b"[" * 100_000, "not valid JSON", "one JSON object per line"),
    ],
)
def test_a_fault_names_its_line_and_the_remedy(rows_of, line, message, hint):
    """Here the second line, after one that is right."""
    fault = fault_of(lambda: rows_of(b'{"prompt":"fine"}\n' + line))

    assert f"in.jsonl:2: {message}" in fault.message
    assert hint in fault.hint


def test_utf_16_is_read(rows_of):
    """What some spreadsheets export."""
    assert [row.prompt for row in rows_of('{"prompt":"a"}\n{"prompt":"ü"}\n'.encode("utf-16"))] == ["a", "ü"]


@pytest.mark.parametrize("data", [b"", b"\n\n  \n"])
def test_a_file_without_rows_is_a_fault(tmp_path, data):
    """A run of nothing is not what anyone wanted."""
    path = tmp_path / "in.jsonl"
    path.write_bytes(data)

    assert "has no rows" in fault_of(RowFile(path).count).message


def test_a_damaged_gzip_is_a_fault(rows_of):
    """Cut off by a full disk; or its bytes changed."""
    packed = gzip.compress(b'{"prompt":"a"}\n' * 1000)

    assert "is damaged" in fault_of(lambda: rows_of(packed[:-20])).message
    assert "is damaged" in fault_of(lambda: rows_of(packed[:15] + b"\xff\xff\xff" + packed[18:])).message


def test_what_is_no_file_is_a_fault(tmp_path):
    """A path that leads nowhere, a directory, a pipe."""
    os.mkfifo(tmp_path / "pipe")

    assert "No such file" in fault_of(RowFile(tmp_path / "none.jsonl").count).message
    assert "no table in" in fault_of(RowFile(tmp_path).count).message
    assert "not a regular file" in fault_of(RowFile(tmp_path / "pipe").count).message


def test_a_file_that_changes_between_the_check_and_the_run_is_a_fault(tmp_path):
    """Its rows would be others than those that were checked."""
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"prompt":"a"}\n{"prompt":"b"}\n')
    rows = RowFile(path)
    assert rows.count() == len(list(rows)) == 2
    path.write_bytes(b'{"prompt":"a"}\n')
    assert "has changed since" in fault_of(lambda: list(rows)).message
    rows = RowFile(path)
    rows.count()
    reading = iter(rows)
    next(reading)
    path.write_bytes(b'{"prompt":"a"}\n{"prompt":"b"}\n')
    assert "has changed since" in fault_of(lambda: list(reading)).message


def test_the_checksum_is_that_of_the_rows_that_are_read(tmp_path):
    """Packed or not, with blank lines or without; of the first rows only where there is a limit."""

    def checksum(data, **options):
        path = tmp_path / "in.jsonl"
        path.write_bytes(data)
        rows = RowFile(path, **options)
        rows.count()
        return rows.sha256

    text = b'{"prompt":"a"}\n{"prompt":"b"}\n'
    assert checksum(text) == hashlib.sha256(text).hexdigest()
    assert checksum(gzip.compress(b"\n" + text)) == checksum(text)
    assert checksum(text, limit=1) == checksum(b'{"prompt":"a"}')
    assert checksum(text.replace(b"b", b"c")) != checksum(text)
