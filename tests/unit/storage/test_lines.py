"""Lines of JSON as people, programs and operating systems write them."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tempfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflow_composer.errors import InputError
from workflow_composer.storage.lines import LONGEST, blocks, encoded, encoded_fast, lines, lines_after, objects, parsed


def zipped(data):
    """An archive of one file, with what the Finder of a Mac adds."""
    with zipfile.ZipFile(packed := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rows.jsonl", data)
        archive.writestr("__MACOSX/._rows.jsonl", b"\0\5\x16\7")
    return packed.getvalue()


ROWS = [{"q": "a\u2028b\u0085c\x0cd\x1ee"}, {"q": "\u00fc \U0001f600"}, {"q": 'line\nend "quoted"'}]
PLAIN = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
MARK = "\ufeff"

ENCODINGS = {
    "plain": PLAIN.encode(),
    "with a byte order mark": (MARK + PLAIN).encode(),
    "UTF-16, little": (MARK + PLAIN).encode("utf-16-le"),
    "UTF-16, big": (MARK + PLAIN).encode("utf-16-be"),
    "ends of lines of Windows": PLAIN.replace("\n", "\r\n").encode(),
    "without a last end": PLAIN.rstrip("\n").encode(),
    "blank lines": PLAIN.replace("\n", "\n\n \n").encode(),
    "escapes": "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
    "UTF-16 without a mark": PLAIN.encode("utf-16-le"),
    "surrogates one by one": PLAIN.replace("\U0001f600", "\ud83d\ude00").encode("utf-8", "surrogatepass"),
}
PACKERS = {"": bytes, "gzip": gzip.compress, "gzip, two members": lambda d: gzip.compress(d[:9]) + gzip.compress(d[9:])}
PACKERS |= {"bzip2": bz2.compress, "xz": lzma.compress}
PACKERS |= {"Zstandard": lambda d: pa.compress(d, "zstd", asbytes=True), "a ZIP archive": zipped}


@pytest.mark.parametrize("packed", PACKERS.values(), ids=PACKERS)
@pytest.mark.parametrize("data", ENCODINGS.values(), ids=ENCODINGS)
def test_the_same_rows_are_read_however_a_file_was_written(tmp_path, data, packed):
    """Whatever the name says; a line ends at a line feed only."""
    (tmp_path / "rows.txt").write_bytes(packed(data))
    assert [row for _, row in objects(tmp_path / "rows.txt")] == ROWS
    assert b"".join(blocks(tmp_path / "rows.txt")) == b"".join(lines(tmp_path / "rows.txt"))


@pytest.mark.parametrize("coding", ["utf-16-le", "utf-16-be"])
def test_a_character_of_two_units_is_one_wherever_a_block_of_the_file_ends(tmp_path, coding):
    """UTF-16 writes it in four bytes; lines are UTF-8, in which its halves cannot stand."""
    line = "x" * (2**15 - 2) + "\U0001f600" * 3 + "\n"  # behind the mark, the first block ends within the first of them
    (tmp_path / "f").write_bytes((MARK + "y" + line).encode(coding))
    assert b"".join(lines(tmp_path / "f")) == ("y" + line).encode()
    (tmp_path / "f").write_bytes((MARK + line).encode(coding))
    assert b"".join(lines(tmp_path / "f")) == line.encode()


@given(st.lists(st.dictionaries(st.text(), st.one_of(st.text(), st.integers(), st.floats(allow_nan=False)), min_size=1)))
def test_what_is_written_is_read_again(tmp_path_factory, rows):
    """Any text, half surrogate pairs too."""
    path = tmp_path_factory.mktemp("lines") / "f"
    told = [{key: None if value in (float("inf"), float("-inf")) else value for key, value in row.items()} for row in rows]
    for write in (encoded, encoded_fast):
        path.write_bytes(b"".join(map(write, rows)))
        assert [row for _, row in objects(path)] == told


def test_half_a_surrogate_pair_is_written_as_an_escape():
    """UTF-8 cannot say it, JSON can; what has no word in JSON is null."""
    assert encoded({"a": "\ud83d"}) == b'{"a":"\\ud83d"}\n'
    assert encoded({"a": "\ud83d", "b": float("nan")}) == b'{"a":"\\ud83d","b":null}\n'
    assert parsed(encoded({"a": "\ud83d"}), "here") == {"a": "\ud83d"}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"a": 1}\n{"a": \xe9}\n', r":2: not UTF-8: byte 7 of the line is 0xe9"),
        (b'{"a": 1}\n[1]\n', r":2: expected an object, found a list"),
        (b'{"a": 1}\n{"a"\n', r":2: not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}\n", r":1: not valid JSON"),
        (b'{"a": ' + b"[" * 100_000 + b"}\n", r":1: not valid JSON"),
        (b"\x28\xb5\x2f\xfd....", r"is damaged"),
        (b"PK\x03\x04....", r"is damaged"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", r"is an Excel workbook .*CSV UTF-8"),
        (gzip.compress(b'{"a": 1}\n' * 100, mtime=0)[:-12], r"is damaged"),
        (b"\xff\xfea\x00\x00", r"is damaged: .*UTF-16-LE"),
    ],
)
def test_a_fault_names_place_and_remedy(tmp_path, data, said):
    """In the first line of the error, without a traceback of a library."""
    (tmp_path / "f").write_bytes(data)
    with pytest.raises(InputError, match=said) as failure:
        list(objects(tmp_path / "f"))
    assert failure.value.hint


def test_a_line_without_an_end_is_refused_before_it_fills_the_memory(tmp_path):
    """As rows and in blocks."""
    with (tmp_path / "f").open("wb") as file:
        file.truncate(LONGEST + 2)
    for read in (lines, blocks):
        with pytest.raises(InputError, match="longer than 64 MiB"):
            list(read(tmp_path / "f"))


@given(st.lists(st.integers(0, 99_999), max_size=400), st.integers(-1, 100_001), st.sets(st.integers(0, 400), max_size=40))
def test_the_end_of_an_ordered_file_begins_where_it_should(numbers, point, damaged):
    """No line from the point on is missing, whatever lies between; lines that say nothing are in their places."""
    written = [b"?\n" if index in damaged else b"%d %s\n" % (n, b"x" * 999) for index, n in enumerate(sorted(numbers))]

    def is_before(line):
        return None if line.startswith(b"?") else int(line.split()[0]) < point

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ordered"
        path.write_bytes(b"".join(written))
        found = list(lines_after(path, is_before))

    assert found == written[len(written) - len(found) :]
    wanted = [line for line in written if is_before(line) is False]
    assert [line for line in found if is_before(line) is False] == wanted


def test_the_end_of_a_long_file_is_found_by_reading_little_of_it(tmp_path):
    """The lines looked at before the first one that is wanted: some for each halving, and one block."""
    path = tmp_path / "long"
    path.write_bytes(b"".join(b"%07d %s\n" % (n, b"x" * 500) for n in range(60_000)))
    looked_at = []

    def is_before(line):
        looked_at.append(line)
        return int(line.split()[0]) < 59_990

    found = list(lines_after(path, is_before))
    assert found[-1].startswith(b"0059999 ")
    assert len(looked_at) < 40
    assert 10 <= len(found) < 400
