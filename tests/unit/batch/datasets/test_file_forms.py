"""Tables in the forms in which public data sets and bug reports show them; each test names its source."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import subprocess
import sys
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workflow_composer.batch.datasets.table import read_table
from workflow_composer.errors import InputError

GSM8K = [
    {
        "question": "Natalia sold clips to 48 of her friends in April, and half as many in May. How many?",
        "answer": "#### 72",
    },
    {"question": 'He said: "half, or more"\nHow much is that?', "answer": "#### 10"},
]
"""openai/gsm8k: the columns of its card; a question with commas, quotes and a line break, as Excel and pandas export it."""


def zipped(**members):
    """A ZIP archive; of several files, or of one with what a Mac's Finder adds."""
    with zipfile.ZipFile(packed := io.BytesIO(), "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/"), data)
        archive.writestr("__MACOSX/._train.csv", b"\0\5\x16\7")
    return packed.getvalue()


@pytest.fixture
def opened(tmp_path):
    """Opens a table from raw bytes; gives the table."""

    def read(name, data, **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return read_table(path, **options)

    return read


@pytest.fixture
def fault(opened):
    """The message of the fault that opening or reading raises."""

    def told(name, data, **options):
        with pytest.raises(InputError) as caught:
            list(opened(name, data, **options).asked())
        return str(caught.value)

    return told


def rows(table):
    """Question and right answers of every row."""
    return [(content.question, content.labels) for _, content in table.asked()]


EXPECTED = [(row["question"], (row["answer"],)) for row in GSM8K]
LINES = "".join(json.dumps(row) + "\n" for row in GSM8K)
CSV = "question,answer\r\n" + "".join(
    '"{}","{}"\r\n'.format(*(value.replace('"', '""') for value in row.values())) for row in GSM8K
)
TEXTS = {
    "lines.jsonl": LINES,
    # huggingface/datasets issue 2573 and lil-lab/nlvr issue 1: one object per line in a file called .json.
    "lines.json": LINES,
    # TencentCloudADP/youtu-agent issue 195: DAPO-Math-17k.jsonl holds something else than lines.
    "array.jsonl": json.dumps(GSM8K),
    "array.json": json.dumps(GSM8K, indent=2),
    # SQuAD and AlpacaEval: {"version": ..., "data": [...]}.
    "data.json": json.dumps({"version": "v2.0", "about": {"by": ["a"]}, "data": GSM8K}),
    # The data sets' server of Hugging Face: /rows answers {"features": [...], "rows": [{"row_idx": 0, "row": {...}}]}.
    "rows.json": json.dumps(
        {"features": [{"name": "question"}], "rows": [{"row_idx": n, "row": row} for n, row in enumerate(GSM8K)]}
    ),
    # pandas' DataFrame.to_json: orient columns (its default), index, split and table; datasets' to_dict.
    "columns.json": json.dumps({name: {str(n): row[name] for n, row in enumerate(GSM8K)} for name in GSM8K[0]}),
    "index.json": json.dumps({str(n): row for n, row in enumerate(GSM8K)}),
    "split.json": json.dumps({"columns": list(GSM8K[0]), "index": [0, 1], "data": [list(r.values()) for r in GSM8K]}),
    "table.json": json.dumps({"schema": {"fields": [{"name": "question"}]}, "data": GSM8K}),
    "lists.json": json.dumps({name: [row[name] for row in GSM8K] for name in GSM8K[0]}),
    # jq without -c writes objects one after the other, over several lines.
    "pretty.json": "\n".join(json.dumps(row, indent=4) for row in GSM8K),
    "table.csv": CSV,
    # SheetJS issue 2239, BodenmillerGroup/steinbock issue 28: Excel in Europe.
    "semicolons.csv": CSV.replace('","', '";"').replace("question,", "question;"),
    # zimmerman-team/IATI.cloud issue 1622: the line that tells Excel the separator.
    "told.csv": "sep=;\r\n" + CSV.replace('","', '";"').replace("question,", "question;"),
    "table.tsv": CSV.replace('","', '"\t"').replace("question,", "question\t"),
    "bars.csv": CSV.replace('","', '"|"').replace("question,", "question|"),
    "mark.csv": "\ufeff" + CSV,
}
"""What each file holds: the two rows."""


@pytest.mark.parametrize("name", TEXTS)
def test_the_same_rows_are_read_from_every_form_of_text(opened, name):
    """Whatever the name says; counted, streamed, from the middle, and as tables for planning."""
    table = opened(name, TEXTS[name])

    assert rows(table) == EXPECTED
    assert table.count() == 2
    assert [row.values["question"] for row in table.rows(1)] == [GSM8K[1]["question"]]
    assert [row["label"] for part in table.arrow_tables() for row in part.to_pylist()] == ["#### 72", "#### 10"]


PACKED = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}


@pytest.mark.parametrize("end", PACKED)
@pytest.mark.parametrize("name", ["lines.jsonl", "array.json", "table.csv", "table.tsv"])
def test_every_text_may_be_compressed(opened, name, end):
    """The Pile and RedPajama come as .jsonl.zst, C4 as .json.gz, Wikidata as .json.bz2."""
    assert rows(opened(name + end, PACKED[end](TEXTS[name].encode()))) == EXPECTED


@pytest.mark.parametrize("member", ["train.csv", "data__train.csv", "train.tsv", "train.json"])
def test_an_archive_of_one_table_is_that_table(opened, member):
    """Kaggle: train.csv.zip, or archive.zip around it."""
    text = {"csv": CSV, "tsv": TEXTS["table.tsv"], "json": TEXTS["array.json"]}[member.rpartition(".")[2]]

    assert rows(opened("archive.zip", zipped(**{member: text}))) == EXPECTED


def test_an_archive_of_several_files_is_refused_by_name(fault):
    assert "with 2 files, not one: test.csv, train.csv" in fault("all.zip", zipped(**{"test.csv": CSV, "train.csv": CSV}))
    workbook = zipped(**{"[Content_Types].xml": "<Types/>", "xl__workbook.xml": "<workbook/>"})
    assert "CSV UTF-8" in fault("cases.xlsx", workbook)


@pytest.mark.parametrize("name", ["train.parquet", "train.jsonl", "train.csv"])
@pytest.mark.parametrize(
    ("data", "told"),
    [
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 9\n",
            "a pointer of Git LFS, not the data (fetch the data: git lfs pull)",
        ),
        ("<!DOCTYPE html><html>", "a web page (download the file itself"),
    ],
)
def test_what_is_downloaded_by_mistake_is_named(fault, name, data, told):
    """A clone of a data set without git-lfs; the page of a file on the hub instead of the file."""
    assert told in fault(name, data)


class TestEncodings:
    """As Excel, PowerShell and SQL Server write them."""

    @pytest.mark.parametrize("coding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
    def test_marks_and_utf_16(self, opened, coding):
        """Excel's "CSV UTF-8" and "Unicode text", the latter with tabs in a file that may be called .csv or .txt."""
        text = "question\tanswer\r\nWie groß ist Zoë?\t1,70 m\r\n"

        for name in ("a.csv", "a.txt"):
            assert rows(opened(name, text.encode(coding))) == [("Wie groß ist Zoë?", ("1,70 m",))]

    def test_excels_old_csv_is_read_with_a_note_that_shows_a_line(self, opened):
        """Safiullah-Rahu/CSV-AI issue 8, voxel51 pull 1066 and many others: byte 0x92 is a typographic apostrophe."""
        table = opened("a.csv", "question,answer\r\nWhat\u2019s 2+2 in Z\u00fcrich?,4 \u20ac\r\n".encode("cp1252"))

        assert rows(table) == [("What\u2019s 2+2 in Z\u00fcrich?", ("4 \u20ac",))]
        assert "Windows-1252; line 2: 'What\u2019s 2+2 in Z\u00fcrich?" in table.describe()

    def test_json_is_utf_8_or_an_error(self, fault):
        assert "a.jsonl:1: not UTF-8" in fault("a.jsonl", '{"question": "Z\u00fcrich"}\n'.encode("cp1252"))

    def test_lines_of_an_old_mac(self, opened):
        r"""Excel for Mac, "CSV (Macintosh)": lines end in \r."""
        assert rows(opened("a.csv", b"question,answer\rq,1\rr,2\r")) == [("q", ("1",)), ("r", ("2",))]


class TestCsv:
    def test_a_comma_within_a_field_does_not_hide_the_semicolon(self, opened):
        """SheetJS issue 2239: decimal commas."""
        table = opened("a.csv", "question;answer;points\nHow much is 1,5 + 1?;2,5;1,0\nAnd 1,5 + 2?;3,5;1,0\n")

        assert rows(table) == [("How much is 1,5 + 1?", ("2,5",)), ("And 1,5 + 2?", ("3,5",))]
        assert "separated by semicolons" in table.describe()

    def test_blanks_behind_commas(self, opened):
        assert rows(opened("a.csv", 'question, answer\n"q, r", "1"\n')) == [("q, r", ("1",))]

    def test_what_spreadsheets_append_is_ignored(self, opened):
        """Empty columns and rows: ",,," at the end of lines and of the file."""
        assert rows(opened("a.csv", "question,answer,\nq,1,\nr,2,,,\n,,\n,,\n")) == [("q", ("1",)), ("r", ("2",))]

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("question,answer\nWhat is 1, 2?,3\nq,4\n", "a.csv:2: 3 fields, but the header has 2"),
            ('question,answer\n"a\nb",1\nq\n', "a.csv:4: 1 field, but the header has 2"),
        ],
    )
    def test_ragged_rows_are_named_by_line(self, fault, text, told):
        assert told in fault("a.csv", text)

    def test_empty_and_repeated_names(self, opened, fault):
        """Pandas writes its index under an empty name; openai/MMMLU's CSV has it."""
        table = opened("a.csv", ",question,answer\n0,q,1\n")
        assert table.names == ("column 1", "question", "answer")
        assert rows(table) == [("q", ("1",))]
        assert "several columns could be the label: 'answer', 'answer.1'" in fault(
            "b.csv", "question,answer,answer\nq,1,2\n"
        )
        assert rows(opened("c.csv", "question,answer,answer\nq,1,1\n")) == [("q", ("1",))]

    def test_blank_lines_before_the_header(self, opened):
        assert rows(opened("a.csv", "\n\nquestion;answer\nq;1\n")) == [("q", ("1",))]

    def test_quotes_are_text_in_tables_of_glue(self, opened):
        """GLUE's and many corpora's .tsv files do not quote: a quote at the begin of a sentence is part of it."""
        text = 'question\tanswer\n"Yes, he said\t1\nthe "other" one\t0\n'

        assert rows(opened("dev.tsv", text)) == [('"Yes, he said', ("1",)), ('the "other" one', ("0",))]
        assert rows(opened("q.tsv", 'question\tanswer\n"a\tb"\t1\n')) == [("a\tb", ("1",))]

    def test_mmlus_own_files_have_no_header(self, opened):
        """hendrycks/test: data/test/abstract_algebra_test.csv."""
        text = '"Find the degree for the given field extension Q(sqrt(2), sqrt(3)) over Q.",0,4,2,6,B\nq,1,2,3,4,C\n'
        table = opened("abstract_algebra_test.csv", text)

        assert [labels for _, labels in rows(table)] == [("B",), ("C",)]
        assert rows(table)[0][0].splitlines()[1:5] == ["A. 0", "B. 4", "C. 2", "D. 6"]
        assert "no header" in table.describe()
        assert table.count() == 2


class TestJson:
    def test_numbers_keep_their_writing(self, opened):
        """EleutherAI/lm-evaluation-harness compares texts: 1.10 is a version or a price, and 18.0 is not 18 there."""
        numbers = ["1.10", "18.0", "1e3", "-0.50", "123456789012345678901234567890", "0.1000000000000000055"]
        lines = "".join(f'{{"question": "q", "answer": {number}}}\n' for number in numbers)
        array = "[" + ",".join(lines.split("\n")[:-1]) + "]"

        for name, text in (("a.jsonl", lines), ("a.json", array)):
            assert [labels for _, labels in rows(opened(name, text))] == [(number,) for number in numbers]

    def test_an_object_with_two_lists_asks_which(self, fault):
        """As some releases put their splits into one file."""
        text = json.dumps({"train": GSM8K, "test": GSM8K})

        assert "several lists could be the rows: 'train', 'test'" in fault("a.json", text)
        assert "jq" in fault("a.json", text)

    def test_one_row_with_messages_is_a_row(self, opened):
        """Not the list of its messages."""
        row = {"messages": [{"role": "user", "content": "hi"}]}

        assert rows(opened("a.json", json.dumps(row))) == [("hi", ())]
        assert rows(opened("b.json", json.dumps(GSM8K[0], indent=1))) == EXPECTED[:1]

    def test_rows_by_id(self, opened):
        """pubmedqa/pubmedqa: data/ori_pqal.json is an object of articles by their PubMed ids."""
        row = {"QUESTION": "Do mitochondria play a role in remodelling lace plant leaves?", "final_decision": "yes"}
        table = opened("ori_pqal.json", json.dumps({"21645374": row, "16418930": row}))

        assert [(c.id, c.labels) for _, c in table.asked()] == [("21645374", ("yes",)), ("16418930", ("yes",))]

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ('[{"question": "q"},\n {"question": "r"\n', "a.json:3: not valid JSON"),
            ('[{"question": "q"},\n {"question" "r"}]', "a.json:2: not valid JSON"),
            ('[{"question": "q"},\n"r"]', "a.json:2: expected an object, found a text"),
            ('[{"question": "q"},\n{"question": 3}]', "a.json:2: 'question' is a number"),
            ("[]", "has no rows"),
        ],
    )
    def test_faults_name_the_line(self, fault, text, told):
        assert told in fault("a.json", text)


class TestColumnar:
    def test_messages_lists_and_numbers_of_parquet(self, opened, tmp_path):
        """BytedTsinghua-SIA/DAPO-Math-17k and verl's examples/data_preprocess/gsm8k.py: nested columns."""
        row = {
            "data_source": "math_dapo",
            "prompt": [{"content": "Solve: 2+2. Answer: $Answer", "role": "user"}],
            "ability": "MATH",
            "reward_model": {"ground_truth": "34", "style": "rule-lighteval/MATH_v2"},
            "extra_info": {"index": "9a9b6eb4-a1cb-49d1-8c1e-62eaf2f74079"},
        }
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / "dapo.parquet")
        table = read_table(tmp_path / "dapo.parquet")

        assert table.describe() == "question: prompt, label: reward_model.ground_truth"
        ((_, content),) = table.asked()
        assert content.messages == ({"content": "Solve: 2+2. Answer: $Answer", "role": "user"},)
        assert content.labels == ("34",)

    def test_numbers_of_single_precision_have_their_few_digits(self, tmp_path):
        """0.1 is not 0.10000000149011612."""
        data = pa.table({"question": ["q"], "answer": pa.array([0.1], pa.float32())})
        pq.write_table(data, tmp_path / "d.parquet")

        assert rows(read_table(tmp_path / "d.parquet")) == [("q", ("0.1",))]

    @pytest.mark.parametrize("is_file", [False, True])
    def test_arrow_files_of_a_cache(self, tmp_path, is_file):
        """Hugging Face's `datasets` writes streams; Arrow's own files are read as well."""
        data = pa.Table.from_pylist(GSM8K)
        path = tmp_path / "gsm8k-test.arrow"
        with (pa.ipc.new_file if is_file else pa.ipc.new_stream)(path, data.schema) as writer:
            writer.write_table(data, max_chunksize=1)
        table = read_table(path)

        assert rows(table) == EXPECTED
        assert table.count() == 2
        assert [row.values["answer"] for row in table.rows(1)] == ["#### 10"]


def test_a_large_array_or_csv_is_not_held_in_memory(tmp_path):
    """200 MB would not fit, in any of the forms that are streamed."""
    row = {"question": "q" * 1000, "answer": "a" * 1000}
    with (tmp_path / "d.json").open("w") as file:
        file.write('{"data": [' + ",\n".join([json.dumps(row)] * 50_000) + "]}")
    with (tmp_path / "d.csv").open("w") as file:
        file.write("question,answer\n" + f"{row['question']},{row['answer']}\n" * 50_000)
    code = f"""
import resource; resource.setrlimit(resource.RLIMIT_DATA, (1 << 26, 1 << 26))
from pathlib import Path
from workflow_composer.batch.datasets.table import read_table
for name in ("d.json", "d.csv"):
    table = read_table(Path({str(tmp_path)!r}) / name)
    print(table.count(), sum(1 for _ in table.asked()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.stdout.split() == ["50000"] * 4, done.stderr
