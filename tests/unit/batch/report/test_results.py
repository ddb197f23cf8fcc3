"""Result files: every row of the journal once, in the order of the data set, the same in both forms, whole or not at all."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.paths import ROOT
from tests.unit.batch.records import TIER, failed, record, records
from workflow_composer.batch.report.results import COLUMNS, JSONL, PARQUET, Written, write_results
from workflow_composer.batch.report.results import records as records_of
from workflow_composer.batch.run.journal import RowJournal
from workflow_composer.errors import InputError, WorkflowComposerError

ROWS = 100


def journal_of(folder, *found):
    """A journal of records, as several runs would write it: none goes on after all is done."""
    path = folder / "journal"
    for each in found:
        with RowJournal.open(path, {}, rows=ROWS) as journal:
            journal.append(each)
    return path


def results(folder, *found):
    """The rows of both files."""
    write_results(journal_of(folder, *found), folder)
    lines = [json.loads(line) for line in (folder / JSONL).read_bytes().splitlines()]
    return lines, pq.read_table(folder / PARQUET).to_pylist()


def test_rows_stand_in_the_order_of_the_data_set(tmp_path):
    """However they finished."""
    lines, table = results(tmp_path, *map(record, (5, 0, 99, 7)))

    assert [row["row"] for row in lines] == [row["row"] for row in table] == [0, 5, 7, 99]


def test_a_row_has_all_documented_columns(tmp_path):
    (row,), table = results(tmp_path, record(0))

    assert tuple(row) == COLUMNS
    assert row == table[0]
    assert (row["id"], row["answer"], row["tier"], row["correct"], row["error"]) == ("id-0", "18", "7B", True, None)
    assert row["tiers"] == [
        {
            "name": "7B",
            "model": "Qwen2.5-Math-7B",
            "samples": 4,
            "votes": [{"answer": "18", "count": 3}, {"answer": "17", "count": 1}],
            "unreadable": 0,
            "confidence": 0.75,
            "accepted": True,
            "reason": "0.75",
            "prompt_tokens": 90,
            "completion_tokens": 812,
            "cost": 4e-4,
            "seconds": 2.5,
            "right": [],
            "texts": [],
            "cut_off": 0,
            "fixed": False,
            "cost_known": True,
        }
    ]


def test_of_a_row_that_was_tried_again_the_last_record_counts(tmp_path):
    lines, table = results(tmp_path, failed(1), failed(0), record(1))

    assert [(row["row"], row["error"]) for row in lines] == [
        (0, {"type": "CallTimeout", "message": "no answer in 60 s"}),
        (1, None),
    ]
    assert lines == table
    assert lines[0]["tier"] is None


@settings(deadline=None)
@given(st.lists(records(rows=st.integers(0, ROWS - 1)), max_size=5, unique_by=lambda each: each.row))
def test_both_files_hold_what_the_records_hold(tmp_path_factory, found):
    """Any record. Half surrogate pairs, which Parquet cannot hold, become question marks there."""
    folder = tmp_path_factory.mktemp("r")
    lines, table = results(folder, *found) if found else ([], [])

    assert plain(lines) == plain(table)
    if found:
        assert list(records_of(folder / "journal")) == sorted(found, key=lambda each: each.row)


def plain(value):
    """The same with texts as Parquet holds them."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list) else value


def test_what_is_no_number_is_null(tmp_path):
    """JSON has no NaN."""
    (row,), _ = results(tmp_path, record(0, confidence=math.nan, tiers=(replace(TIER, confidence=math.inf),)))

    assert row["confidence"] is None
    assert row["tiers"][0]["confidence"] is None


def test_texts_are_there_where_they_were_asked_for(tmp_path):
    texts = ("so 18", "#### 17")
    (row,), table = results(tmp_path, record(0, tiers=(replace(TIER, texts=texts, right=(True, False)),)))

    assert row["tiers"][0]["texts"] == table[0]["tiers"][0]["texts"] == list(texts)


def test_the_count_of_rows_and_errors_is_returned(tmp_path):
    found = write_results(journal_of(tmp_path, record(0), failed(1), failed(2), record(2)), tmp_path)

    assert (found.rows, found.errors) == (3, 1)


def test_a_journal_without_rows_gives_files_without_rows(tmp_path):
    RowJournal.open(tmp_path / "journal", {}, rows=5).close()
    write_results(tmp_path / "journal", tmp_path)

    assert (tmp_path / JSONL).read_bytes() == b""
    assert pq.read_table(tmp_path / PARQUET).num_rows == 0


def test_who_reads_older_results_goes_on_reading_them(tmp_path):
    """The file is put in the place of the old one, which is never written to."""
    path = journal_of(tmp_path, record(0))
    write_results(path, tmp_path)
    before = (tmp_path / JSONL).read_bytes()
    with (tmp_path / JSONL).open("rb") as file:
        write_results(journal_of(tmp_path, record(1)), tmp_path)
        assert file.read() == before
    assert (tmp_path / JSONL).read_bytes() != before


def test_a_damaged_journal_leaves_older_results_as_they_are(tmp_path):
    path = journal_of(tmp_path, record(0), record(1))
    write_results(path, tmp_path)
    before = (tmp_path / JSONL).read_bytes(), (tmp_path / PARQUET).read_bytes()
    path.write_bytes(path.read_bytes().replace(b'"id-0"', b'"id-X"'))

    with pytest.raises(InputError, match="journal:2: damaged line"):
        write_results(path, tmp_path)
    assert ((tmp_path / JSONL).read_bytes(), (tmp_path / PARQUET).read_bytes()) == before
    assert not list(tmp_path.glob(".*partial"))


def test_a_run_may_go_on_while_results_are_read(tmp_path):
    """The journal needs no lock for that, and a row that is being written is left out."""
    path = tmp_path / "journal"
    with RowJournal.open(path, {}, rows=ROWS) as journal:
        journal.append(record(0))
        with path.open("ab") as file:
            file.write(b'["0123')
        assert [each.row for each in records_of(path)] == [0]


@pytest.mark.parametrize("content", [None, b"", b"precious\n"])
def test_what_is_no_journal_is_refused(tmp_path, content):
    path = tmp_path / "journal"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(InputError, match="journal"):
        write_results(path, tmp_path)
    assert not (tmp_path / JSONL).exists()


def test_a_full_disk_is_told_and_leaves_older_results_as_they_are(tmp_path):
    path = journal_of(tmp_path, *map(record, range(50)))
    (tmp_path / JSONL).write_text("older")
    code = """
import resource, signal, sys
from pathlib import Path
from workflow_composer.batch.report.results import write_results
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
write_results(Path(sys.argv[1]), Path(sys.argv[2]))
"""
    arguments = [sys.executable, "-c", code, str(path), str(tmp_path)]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)

    assert "WorkflowComposerError: cannot write" in done.stderr
    assert (tmp_path / JSONL).read_text() == "older"
    assert not (tmp_path / PARQUET).exists()
    assert not list(tmp_path.glob(".*partial"))


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(WorkflowComposerError, match="No such file"):
        write_results(journal_of(tmp_path, record(0)), tmp_path / "no")


def test_an_unknown_cost_is_null_and_a_partly_known_one_a_lower_bound(tmp_path):
    rows, table = results(
        tmp_path, record(0, cost=0.0, priced=False), record(1, cost=0.5, priced=False), record(2, cost=0.0)
    )

    assert [(row["cost"], row["cost_known"]) for row in rows] == [(None, False), (0.5, False), (0.0, True)]
    assert rows == table


def test_rows_are_counted_as_they_stand_in_the_files(tmp_path):
    rows = [
        record(0),
        failed(1, correct=False),
        record(2, answer=None, correct=False),
        record(3, correct=None, priced=False),
    ]
    with RowJournal.open(tmp_path / "journal", {}, rows=4) as journal:
        for each in rows:
            journal.append(each)
    written = write_results(tmp_path / "journal", tmp_path)

    assert written == Written(rows=4, errors=1, unreadable=1, cut_off=0, graded=3, correct=1, unpriced=1)
