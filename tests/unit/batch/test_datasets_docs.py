"""docs/datasets.md says what the code does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from tests.paths import ROOT
from tests.unit.batch.records import record
from workflow_composer.batch.datasets.columns import CHOICES, IDS, LABELS, QUESTIONS, SPREAD
from workflow_composer.batch.datasets.formats import SUFFIXES, TEXTS
from workflow_composer.batch.datasets.locating import KNOWN, SPLITS
from workflow_composer.batch.report.results import COLUMNS, schema, write_results
from workflow_composer.batch.run import runner
from workflow_composer.batch.run.journal import RowJournal
from workflow_composer.storage.packing import ENDINGS

DOCS = (ROOT / "docs" / "datasets.md").read_text()


def table_rows(first):
    """The rows of the table whose head begins with a cell, as lists of cells."""
    table = DOCS.split(f"| {first} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in table]


def quoted(text):
    """What stands in backquotes."""
    return re.findall(r"`([^`]+)`", text)


def test_the_names_of_columns_are_the_codes_in_their_order():
    found = {row[0]: [tuple(quoted(group)) for group in row[1].split(";")] for row in table_rows("content")}

    assert found == {"question": [*QUESTIONS], "label": [*LABELS], "choices": [CHOICES], "id": [IDS]}
    spread = DOCS.split("one column for each choice", 1)[1].split("\n\n", 1)[0]
    assert tuple(quoted(spread)) == tuple(name for names in SPREAD for name in names)


def test_the_known_data_sets_are_the_codes():
    found = {quoted(row[0])[0]: tuple((quoted(cell) or [None])[0] for cell in row[1:]) for row in table_rows("data set")}

    assert found == {name: (known.question, known.label, known.id) for name, known in KNOWN.items()}


def test_the_columns_of_results_are_the_codes_in_their_order():
    assert tuple(name for row in table_rows("column") for name in quoted(row[0])) == COLUMNS
    tier = DOCS.split("Each of `tiers` has", 1)[1].split("\n\n", 1)[0]
    for name in schema().field("tiers").type.value_type:
        assert f"`{name.name}`" in tier


def test_formats_and_splits_are_the_codes_in_their_order():
    listed = DOCS.split("`EXT` is one of", 1)[1].split("\n\n", 1)[0]
    texts, packed, rest = listed.split(";", 2)

    assert tuple(quoted(texts)) == TEXTS
    assert tuple(quoted(packed)) == ENDINGS
    assert tuple(quoted(rest)) == (".parquet", ".arrow", *SPLITS)
    assert tuple(end + pack for end in TEXTS for pack in ("", *ENDINGS)) == SUFFIXES[:-2]


def test_the_file_is_synced_as_often_as_it_says():
    assert runner.SYNC_EVERY == 5.0
    assert "Every five seconds" in DOCS


EXAMPLES = re.findall(r"```python\n(.*?)```", DOCS, re.S)


@pytest.mark.embedded
def test_the_script_with_rows_from_python_runs_as_it_is_and_goes_on_when_it_is_run_again(tmp_path):
    """In a process of its own, as a notebook's cell: the second time nothing is asked, and the results are the same."""
    (code,) = [example for example in EXAMPLES if "run_batch" in example]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "WORKFLOW_COMPOSER_METRICS": str(tmp_path / "metrics.jsonl")}

    def run():
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    told, *rows = run()
    assert told.startswith("20 answered (0 before), 0 failed, $0.")
    assert [line.split()[0] for line in rows] == [str(n) for n in range(20)]
    asked = (tmp_path / "metrics.jsonl").read_bytes()
    assert run() == [told.replace("(0 before)", "(20 before)"), *rows]
    assert (tmp_path / "metrics.jsonl").read_bytes() == asked

    journal = tmp_path / "runs" / "first.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:7]) + lines[7][:40])  # as a kill leaves it
    assert run()[0].startswith("20 answered (7 before), 0 failed, $0.")
    assert len((tmp_path / "metrics.jsonl").read_bytes().splitlines()) == 20 + 13


@pytest.mark.parametrize("code", [example for example in EXAMPLES if "run_batch" not in example])
def test_the_examples_run(code, tmp_path, monkeypatch):
    """In a folder with a data set and results."""
    (tmp_path / "data" / "openai_gsm8k").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "data" / "openai_gsm8k" / "train.jsonl").write_text(json.dumps({"question": "q", "answer": "a"}) + "\n")
    with RowJournal.open(tmp_path / "out" / "journal.jsonl", {}, rows=1) as journal:
        journal.append(record(0))
    write_results(tmp_path / "out" / "journal.jsonl", tmp_path / "out")
    monkeypatch.chdir(tmp_path)

    exec(compile(code, "docs/datasets.md", "exec"), {})
