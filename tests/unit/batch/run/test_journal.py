"""The journal: what was written stays and is not done again; what is damaged is found; nothing else is ever overwritten."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.paths import ROOT
from tests.unit.batch.records import failed, record, records
from workflow_composer.batch.run.journal import RowJournal, fingerprint
from workflow_composer.batch.run.lines import Line, head_of, record_line, record_of
from workflow_composer.errors import InputError, WorkflowComposerError

RUN = {"data": "d1", "routes": "r1", "settings": {"temperature": 0.7, "tiers": ["1.5B", "7B"]}, "version": "1"}
ROWS = 20


@pytest.fixture
def path(tmp_path):
    """Where the journal goes."""
    return tmp_path / "journal.jsonl"


def opened(path, *, run=RUN, rows=ROWS):
    """A journal, and the heads of what it held."""
    heads = []
    journal = RowJournal.open(path, run, rows=rows, each=heads.append)
    return journal, heads


def written(path, *found):
    """Append records in a run of their own."""
    with opened(path)[0] as journal:
        for each in found:
            journal.append(each)


def refused(path, **options):
    """The message with which opening is refused."""
    with pytest.raises(InputError) as caught:
        opened(path, **options)
    return str(caught.value)


def test_a_later_run_knows_what_is_done(path):
    written(path, record(4), record(1, correct=False, cost=0.5))
    journal, heads = opened(path)

    assert [row for row in range(ROWS) if journal.is_done(row)] == [1, 4]
    assert [(h.row, h.deciding, h.correct, h.cost) for h in heads] == [(4, "7B", True, 4e-4), (1, "7B", False, 0.5)]
    assert (journal.done, journal.failed) == (2, 0)
    journal.close()


def test_a_row_is_in_the_file_when_append_returns(path):
    journal, _ = opened(path)
    journal.append(record(0))

    assert record_of(path.read_bytes().splitlines()[-1]) == record(0)
    journal.close()


def test_a_row_with_an_error_is_tried_again_and_the_later_record_counts(path):
    written(path, failed(0), failed(1))
    journal, heads = opened(path)
    assert [h.error for h in heads] == [("CallTimeout", "no answer in 60 s")] * 2
    assert (journal.done, journal.failed, journal.is_done(0)) == (0, 2, False)
    journal.append(record(0))
    journal.close()
    journal, _ = opened(path)

    assert (journal.done, journal.failed) == (1, 1)
    journal.close()


def test_no_row_is_finished_twice(path):
    journal, _ = opened(path)
    journal.append(record(3))
    for row in (3, ROWS, -1):
        with pytest.raises(ValueError, match=f"row {row}"):
            journal.append(record(row))

    assert len(path.read_bytes().splitlines()) == 2
    journal.close()


@settings(deadline=None)
@given(records())
def test_a_record_is_read_back_as_it_was_written(found):
    """Any text, any number, to the last bit."""
    line = record_line(found)

    assert record_of(line) == found
    head = head_of(Line(2, 0, line))
    assert head == found.head
    assert line.count(b"\n") == 1


def test_every_line_is_json_with_the_documented_checksum(path):
    """Others can read it without this program."""
    written(path, record(0), failed(1))
    for line in path.read_bytes().splitlines():
        crc = json.loads(line)[0]
        assert int(crc, 16) == zlib.crc32(line[12:])


@settings(deadline=None)
@given(cut=st.integers(0, 10_000))
def test_cut_off_anywhere_it_goes_on_with_what_is_whole(tmp_path_factory, cut):
    """As after a crash: no whole row is lost, the half row is forgotten, and the file can be appended to."""
    path = tmp_path_factory.mktemp("j") / "journal"
    written(path, *map(record, range(5)))
    whole = path.read_bytes()
    cut %= len(whole) + 1
    path.write_bytes(whole[:cut])
    journal, _ = opened(path)

    assert journal.done == max(whole[:cut].count(b"\n") - 1, 0)
    for row in range(journal.done, 5):
        journal.append(record(row))
    journal.close()
    assert path.read_bytes() == whole


@settings(deadline=None)
@given(place=st.integers(0, 10_000), change=st.integers(1, 255))
def test_a_changed_byte_is_found_wherever_it_is(tmp_path_factory, place, change):
    """Except where it makes the last line look half written: then that row is answered again."""
    path = tmp_path_factory.mktemp("j") / "journal"
    written(path, *map(record, range(3)))
    damaged = bytearray(path.read_bytes())
    place %= len(damaged)
    damaged[place] ^= change
    path.write_bytes(damaged)
    if place == len(damaged) - 1:
        journal, heads = opened(path)
        assert [head.row for head in heads] == [0, 1]
        journal.close()
    else:
        line = damaged[:place].count(b"\n") + 1
        told = refused(path)
        assert f"journal:{line}: the line is damaged" in told or (line == 1 and "is no journal" in told)


def test_a_damaged_line_can_be_taken_out_as_the_message_says(path):
    """Its row is answered again; the others stay."""
    written(path, *map(record, range(4)))
    path.write_bytes(path.read_bytes().replace(b'"id-1"', b'"id-X"'))
    told = refused(path)
    assert "sed -i 3d" in told
    subprocess.run(["sed", "-i", "3d", str(path)], check=True)
    journal, _ = opened(path)

    assert [row for row in range(4) if journal.is_done(row)] == [0, 2, 3]
    journal.close()


def test_zeros_of_a_block_that_never_came_are_dropped(path):
    """After a loss of power a file may be longer than what was written to it."""
    written(path, record(0))
    whole = path.read_bytes()
    for tail in (b"\0" * 100, b'["12ab' + b"\0" * 100):
        path.write_bytes(whole + tail)
        journal, _ = opened(path)
        assert journal.done == 1
        journal.close()
        assert path.read_bytes() == whole


def test_a_line_that_is_there_twice_is_found(path):
    written(path, record(0))
    path.write_bytes(path.read_bytes() + record_line(record(0)))

    assert "journal.jsonl:3: row 0 is there before" in refused(path)


@pytest.mark.parametrize(
    "content", [b"precious\n", b"precious", b'{"row": 0}\n', b"[]\n", b"\n", b'["00000000",{}]\n', b"\xff"]
)
def test_no_other_file_is_touched(path, content):
    path.write_bytes(content)

    assert "is no journal of a batch" in refused(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"data": "d2"}, "data was 'd1' and is 'd2'"),
        ({"settings": {"temperature": 0.5, "tiers": ["1.5B", "7B"]}}, "settings.temperature was 0.7 and is 0.5"),
        ({"settings": {"temperature": 0.7, "tiers": ["7B"]}}, "settings.tiers was ['1.5B', '7B'] and is ['7B']"),
        ({"seed": 1}, "seed was missing and is 1"),
        ({"data": "d2", "version": "2"}, "data was 'd1' and is 'd2'; version was '1' and is '2'"),
    ],
)
def test_another_run_is_refused_and_the_difference_named(path, change, told):
    written(path, record(0))
    before = path.read_bytes()

    assert told in refused(path, run={**RUN, **change})
    assert path.read_bytes() == before


def test_another_number_of_rows_is_another_run(path):
    written(path, record(0))

    assert "rows was 20 and is 21" in refused(path, rows=21)


def test_settings_are_compared_by_value(path):
    """A tuple or an order of keys is nothing that JSON keeps."""
    written(path, record(0))
    same = {"version": "1", "settings": {"tiers": ("1.5B", "7B"), "temperature": 0.7}, "routes": "r1", "data": "d1"}
    journal, _ = opened(path, run=same)

    assert journal.done == 1
    journal.close()


def test_a_second_run_is_refused_while_the_first_lives(path):
    journal, _ = opened(path)
    assert "another run is writing to" in refused(path)
    journal.close()

    opened(path)[0].close()


def test_a_worker_that_outlives_the_run_does_not_keep_it_locked(path):
    """Worker processes made by fork inherit open files, and with them locks."""
    journal, _ = opened(path)
    read, write = os.pipe()
    ready, started = os.pipe()
    child = os.fork()
    if not child:
        os.close(write)
        os.write(started, b".")
        os.read(read, 1)  # until the test is over
        os._exit(0)
    os.read(ready, 1)
    for each in (read, ready, started):
        os.close(each)
    journal.close()
    try:
        opened(path)[0].close()
    finally:
        os.close(write)
        os.waitpid(child, 0)


def test_a_full_disk_is_told_and_leaves_a_journal_that_goes_on(path, tmp_path):
    """At whatever byte the room ends."""
    code = """
import resource, signal, sys
sys.path.insert(0, sys.argv[4])
from pathlib import Path
from tests.unit.batch.records import record
from workflow_composer.batch.run.journal import RowJournal
from workflow_composer.errors import WorkflowComposerError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
journal = RowJournal.open(Path(sys.argv[1]), {}, rows=1000)
for row in range(journal.done, int(sys.argv[3])):
    try:
        journal.append(record(row))
    except WorkflowComposerError as error:
        print(row, error)
        again = error
        try:
            journal.append(record(row))
        except WorkflowComposerError as error:
            assert "not open any more" in str(error)
        break
"""

    def run(room, upto):
        arguments = [sys.executable, "-c", code, str(path), str(room), str(upto), str(ROOT)]
        return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout

    told = run(2000, 100)
    row = int(told.split()[0])
    assert "cannot write" in told
    assert "make room; then run the same command again" in told
    assert 0 < row < 10
    assert path.read_bytes().endswith(b"]\n")
    assert len(path.read_bytes().splitlines()) == row + 1
    assert run(100_000, 20) == ""
    journal, heads = RowJournal.open(path, {}, rows=1000), []
    assert journal.done == 20
    assert not heads
    journal.close()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: path.mkdir(), "Is a directory"),
        (os.mkfifo, "not a regular file"),
    ],
)
def test_what_is_no_file_is_refused(path, make, told):
    make(path)

    assert told in refused(path)


def test_a_folder_that_is_not_there_is_told(tmp_path):
    assert "make its folder first" in refused(tmp_path / "no" / "journal")


def test_a_closed_journal_takes_no_rows(path):
    journal, _ = opened(path)
    journal.close()
    journal.close()
    journal.sync()

    with pytest.raises(WorkflowComposerError, match="not open any more"):
        journal.append(record(0))


def test_another_layout_of_records_is_refused(path):
    """A journal of an older or newer program is not misread."""
    written(path, record(0))
    header = json.loads(path.read_bytes().splitlines()[0])[1]
    header["columns"]["rest"].append("mood")
    body = json.dumps([header], separators=(",", ":"))[1:].encode()
    path.write_bytes(b'["%08x",%s\n' % (zlib.crc32(body), body))

    assert "another version of this program" in refused(path)


def test_a_killed_process_loses_nothing_that_append_returned_from(path):
    """SIGKILL in the middle of writing: what it has reported is all there."""
    code = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from tests.unit.batch.records import record
from workflow_composer.batch.run.journal import RowJournal
journal = RowJournal.open(Path(sys.argv[1]), {}, rows=10**6)
for row in range(10**6):
    journal.append(record(row))
    print(row, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(path), str(ROOT)], stdout=subprocess.PIPE)
    for _ in range(200):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    reported = 200 + len(process.stdout.read().splitlines())
    process.wait()
    process.stdout.close()
    journal = RowJournal.open(path, {}, rows=10**6)

    assert reported <= journal.done <= reported + 1
    assert all(map(journal.is_done, range(journal.done)))
    journal.close()


def test_fingerprints_tell_routes_apart():
    """By their order and by where one ends."""
    assert len({fingerprint(parts) for parts in (["a", "b"], ["b", "a"], ["ab"], ["a", "", "b"], ["a", "b\ud800"])}) == 5
    assert fingerprint(iter(["a", "b"])) == fingerprint(["a", "b"])
