"""Tables written as CSV, JSON lines and Parquet."""

from __future__ import annotations

import csv
import json
import stat
from datetime import date, datetime
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workflow_composer.batch.asking.table_output import TableOutput
from workflow_composer.errors import InputError, WorkflowComposerError

ROWS = [
    {"id": "0042", "n": 1, "x": 1, "flag": True, "tags": ["a", "b"], "meta": {"k": 1}, "mixed": 1, "day": date(2024, 2, 29)},
    {"id": "1.10", "n": 2, "x": 2.5, "flag": None, "tags": [], "meta": {}, "mixed": "one", "day": None},
    {"id": 'a "b",\nc\rd é', "n": None, "x": None, "flag": False, "tags": None, "meta": None, "mixed": [1], "day": None},
]


def table(rows=ROWS, columns=None, **options):
    return TableOutput(list(columns or rows[0]), lambda: rows, **options)


def test_csv_is_read_back(tmp_path):
    """Null is empty, what is no text is JSON, and quotes, line breaks and accents stay."""
    assert table().write(tmp_path / "t.csv") == 3
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert [row["id"] for row in found] == [row["id"] for row in ROWS]
    assert found[0] | {} == {
        "id": "0042",
        "n": "1",
        "x": "1",
        "flag": "true",
        "tags": '["a", "b"]',
        "meta": '{"k": 1}',
        "mixed": "1",
        "day": "2024-02-29",
    }
    assert list(found[2].values())[1:6] == ["", "", "false", "", ""]


def test_json_lines_keep_types_and_missing_fields(tmp_path):
    """A field that a row lacks stays missing."""
    rows = [{"a": "0042", "b": 1.5, "c": None}, {"a": True}]
    table(rows).write(tmp_path / "t.jsonl")
    assert [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()] == rows


def test_parquet_finds_the_type_that_holds_all_values(tmp_path):
    """Whole and other numbers are numbers, "0042" is text, and what does not fit together is text."""
    table().write(tmp_path / "t.parquet")
    found = pq.read_table(tmp_path / "t.parquet")
    kinds = {field.name: field.type for field in found.schema}
    assert (kinds["id"], kinds["n"], kinds["x"]) == (pa.string(), pa.int64(), pa.float64())
    assert (kinds["flag"], kinds["mixed"], kinds["day"]) == (pa.bool_(), pa.string(), pa.date32())
    assert found["id"].to_pylist() == [row["id"] for row in ROWS]
    assert found["mixed"].to_pylist() == ["1", "one", "[1]"]
    assert found["tags"].to_pylist() == [["a", "b"], [], None]


def test_parquet_keeps_known_types(tmp_path):
    """A table that was Parquet stays what it was, also where no value shows it."""
    types = {"t": pa.timestamp("us", tz="UTC"), "d": pa.decimal128(10, 2), "i": pa.int8(), "e": pa.list_(pa.float32())}
    rows = [{"t": None, "d": Decimal("1.10"), "i": 3, "e": None}, {"t": None, "d": None, "i": None, "e": [0.5]}]
    table(rows, types=types).write(tmp_path / "t.parquet")
    found = pq.read_table(tmp_path / "t.parquet")
    assert {field.name: field.type for field in found.schema} == types
    assert found.to_pylist() == rows


@pytest.mark.parametrize(
    "values",
    [
        [{}],
        [[]],
        [None],
        [[{}], [{"a": 1}]],
        [10**30],
        [float("nan")],
        ["\ud800"],
        [b"\xff"],
        [[1], ["a"]],
        [datetime(2024, 1, 1)],
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".tsv"])
def test_every_value_can_be_written(tmp_path, values, suffix):
    """Whatever a table or a model's JSON holds."""
    table([{"a": value} for value in values]).write(tmp_path / f"t{suffix}")


def test_types_are_found_over_many_rows(tmp_path):
    """A float after thousands of integers; read in batches."""
    rows = [{"a": n} for n in range(3000)] + [{"a": 0.5}]
    assert table(rows).write(tmp_path / "t.parquet") == 3001
    assert pq.read_table(tmp_path / "t.parquet")["a"].to_pylist() == [float(n) for n in range(3000)] + [0.5]


FORMULAS = ["=HYPERLINK(1)", "@SUM(1)", "+cmd|' /C calc'!A0", "-2+3+cmd", "\t=1", "- an item"]


@pytest.mark.parametrize("value", FORMULAS)
def test_a_models_cell_is_no_formula(tmp_path, value):
    """In CSV, where a spreadsheet would run it; the table's own cells are left alone."""
    output = table([{"own": value, "answer": value}], answers=frozenset({"answer"}))
    output.write(tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(newline="") as file:
        assert list(csv.reader(file))[1] == [value, f"'{value}"]
    assert output.formulas == 1


@pytest.mark.parametrize("value", ["-5", "+1.5e3", -5, "plain", "'=x"])
def test_numbers_and_plain_texts_get_no_apostrophe(tmp_path, value):
    """A negative number is no formula."""
    output = table([{"answer": value}], answers=frozenset({"answer"}))
    output.write(tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text().splitlines()[1] == str(value)


@pytest.mark.parametrize("options", [{"answers": frozenset({"a"}), "keep_formulas": True}, {}])
def test_formulas_are_kept_where_that_is_wanted(tmp_path, options):
    """By option; JSON lines and Parquet are never changed."""
    table([{"a": "=1+1"}], **options).write(tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == "a\n=1+1\n"
    table([{"a": "=1+1"}], answers=frozenset({"a"})).write(tmp_path / "t.jsonl")
    assert (tmp_path / "t.jsonl").read_text() == '{"a":"=1+1"}\n'


def test_a_new_table_is_the_owners_only(tmp_path):
    """It holds answers; a table that is replaced keeps its permissions."""
    table().write(tmp_path / "t.csv")
    assert stat.S_IMODE((tmp_path / "t.csv").stat().st_mode) == 0o600
    (tmp_path / "t.csv").chmod(0o644)
    table().write(tmp_path / "t.csv")
    assert stat.S_IMODE((tmp_path / "t.csv").stat().st_mode) == 0o644


def test_a_fault_leaves_the_old_table(tmp_path):
    """Nothing is half written."""
    (tmp_path / "t.csv").write_text("old")

    def rows():
        yield {"a": 1}
        raise InputError("the table has changed")

    with pytest.raises(InputError, match="changed"):
        TableOutput(["a"], rows).write(tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_other_formats_and_folders_are_errors(tmp_path):
    """With the formats that exist, or the cause."""
    with pytest.raises(InputError, match="format"):
        table().write(tmp_path / "t.xlsx")
    with pytest.raises(WorkflowComposerError, match=r"no/t\.csv"):
        table().write(tmp_path / "no" / "t.csv")
