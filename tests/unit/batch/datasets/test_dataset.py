"""Data sets are found by name, read in order and in constant memory, and every fault names its place."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workflow_composer.batch.datasets.columns import Columns
from workflow_composer.batch.datasets.dataset import Row, find
from workflow_composer.errors import InputError

ROWS = [{"question": f"What is {n} + 1?", "answer": f"It is one more.\n#### {n + 1}"} for n in range(5)]


def jsonl(path, rows=ROWS):
    """Write rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def csv_file(path, text):
    """Write a CSV file as it is."""
    path.write_bytes(text.encode())
    return path


def parquet(path, rows=ROWS, **options):
    """Write rows as Parquet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


def questions(data, start=0):
    """The questions, in order."""
    return [row.question for row in data.rows(start)]


def table(data, size=2):
    """What `chunks` gives, as rows of question and label."""
    return [(row["question"], row["label"]) for chunk in data.chunks(size) for row in chunk.to_pylist()]


def fault(name, folder, **options):
    """The message and hint of the fault that finding or reading raises."""
    with pytest.raises(InputError) as caught:
        for _ in find(name, folder, **options).rows():
            pass
    return str(caught.value)


class TestFinding:
    @pytest.mark.parametrize(
        "path",
        [
            "openai_gsm8k.jsonl",
            "openai_gsm8k/test.jsonl",
            "openai_gsm8k_test.jsonl",
            "openai_gsm8k/train.jsonl",
            "openai_gsm8k/anything.jsonl",
            "openai_gsm8k/main/test-00000-of-00001.jsonl",
        ],
    )
    def test_every_documented_place_is_found(self, tmp_path, path):
        jsonl(tmp_path / path)

        assert questions(find("openai_gsm8k", tmp_path)) == [row["question"] for row in ROWS]

    @pytest.mark.parametrize("end", [".jsonl", ".jsonl.gz", ".csv", ".parquet"])
    def test_every_format_gives_the_same_rows(self, tmp_path, end):
        path = tmp_path / f"d{end}"
        if end == ".jsonl":
            jsonl(path)
        elif end == ".jsonl.gz":
            path.write_bytes(gzip.compress(jsonl(tmp_path / "plain").read_bytes()))
        elif end == ".csv":
            csv_file(path, "question,answer\r\n" + "".join(f'"{r["question"]}","{r["answer"]}"\r\n' for r in ROWS))
        else:
            parquet(path)
        data = find("d", tmp_path)

        assert list(data.rows()) == [Row(n, str(n), r["question"], r["answer"]) for n, r in enumerate(ROWS)]
        assert table(data) == [(r["question"], r["answer"]) for r in ROWS]
        assert data.count() == 5

    def test_the_test_split_comes_first_and_a_name_may_ask_for_another(self, tmp_path):
        for split in ("train", "test", "validation"):
            jsonl(tmp_path / "d" / f"{split}.jsonl", [{"question": split}])

        assert [questions(find(name, tmp_path)) for name in ("d", "d:train", "d:validation")] == [
            ["test"],
            ["train"],
            ["validation"],
        ]
        assert find("d", tmp_path, "train").split == "train"

    def test_a_missing_one_names_what_is_near_and_not_all_that_was_looked_for(self, tmp_path):
        jsonl(tmp_path / "openai_gsm8k.jsonl")
        told = fault("openai_gsm8", tmp_path)

        assert "did you mean openai_gsm8k?" in told
        assert len(told) < 200 + len(str(tmp_path))

    def test_the_name_that_is_meant_is_guessed_from_files_with_a_split_too(self, tmp_path):
        jsonl(tmp_path / "openai_gsm8k_test.jsonl")

        assert "did you mean openai_gsm8k?" in fault("openai_gsmk", tmp_path)
        assert "did you mean openai_gsm8k?" in fault("openai/gsmk", tmp_path)

    def test_the_hubs_own_name_is_a_name_too(self, tmp_path):
        jsonl(tmp_path / "openai_gsm8k_test.jsonl")

        assert len(questions(find("openai/gsm8k", tmp_path))) == 5

    def test_a_missing_split_names_those_that_are_there(self, tmp_path):
        jsonl(tmp_path / "d.jsonl")
        jsonl(tmp_path / "e" / "train.jsonl")
        jsonl(tmp_path / "e" / "dev.jsonl")

        assert "omit the split" in fault("d:train", tmp_path)
        assert "it has the splits train, validation" in fault("e:test", tmp_path)

    def test_shards_are_read_in_order(self, tmp_path):
        for shard in (2, 0, 1):
            parquet(tmp_path / "d" / "data" / f"train-0000{shard}-of-00003.parquet", [{"question": f"shard {shard}"}])
        data = find("d:train", tmp_path)

        assert questions(data) == ["shard 0", "shard 1", "shard 2"]
        assert [(row.row, row.question) for row in data.rows(1)] == [(1, "shard 1"), (2, "shard 2")]

    def test_a_missing_shard_is_a_fault_and_not_fewer_rows(self, tmp_path):
        for shard in (0, 2):
            parquet(tmp_path / "d" / f"test-0000{shard}-of-00003.parquet")

        assert "test-00001-of-00003.parquet is missing" in fault("d", tmp_path)

    def test_of_several_configurations_the_usual_one_is_read_or_one_must_be_named(self, tmp_path):
        parquet(tmp_path / "openai_gsm8k/main/test-00000-of-00001.parquet", [{"question": "main"}])
        parquet(tmp_path / "openai_gsm8k/socratic/test-00000-of-00001.parquet", [{"question": "socratic"}])
        parquet(tmp_path / "d/algebra/test-00000-of-00001.parquet")
        parquet(tmp_path / "d/geometry/test-00000-of-00001.parquet", [{"question": "geometry"}])

        assert questions(find("openai_gsm8k", tmp_path)) == ["main"]
        assert "choose one: d/algebra, d/geometry" in fault("d", tmp_path)
        assert questions(find("d/geometry", tmp_path)) == ["geometry"]

    @pytest.mark.parametrize("name", ["", "d/../e", "a b", "d\0", "d:te/st"])
    def test_what_is_no_name_leads_nowhere_else(self, tmp_path, name):
        assert "invalid data set name" in fault(name, tmp_path)

    def test_a_folder_that_is_not_there_is_named(self, tmp_path):
        assert "nowhere" in fault("d", tmp_path / "nowhere")

    def test_two_splits_contradict_each_other(self, tmp_path):
        assert "contradict" in fault("d:train", tmp_path, split="test")


class TestColumns:
    @pytest.mark.parametrize(
        ("name", "row", "expected"),
        [
            ("openai_gsm8k", {"question": "q", "answer": "a"}, ("0", "q", "a")),
            (
                "DigitalLearningGmbH_MATH-lighteval",
                {"problem": "q", "level": "Level 5", "type": "Algebra", "solution": "\\boxed{2}"},
                ("0", "q", "\\boxed{2}"),
            ),
            (
                "gneubig_aime-1983-2024",
                {"ID": "1983-1", "Year": 1983, "Problem Number": 1, "Question": "q", "Answer": 60, "Part": None},
                ("1983-1", "q", "60"),
            ),
            (
                "HuggingFaceH4_MATH-500",
                {"problem": "q", "solution": "s", "answer": "a", "unique_id": "test/1.json"},
                ("test/1.json", "q", "a"),
            ),
            ("other", {"input": "q", "target": 0.5, "id": 7}, ("7", "q", "0.5")),
            ("other", {"Prompt": "q", "Label": True}, ("0", "q", "true")),
            ("other", {"prompt": "q"}, ("0", "q", None)),
        ],
    )
    def test_the_usual_names_are_found(self, tmp_path, name, row, expected):
        for data in (jsonl(tmp_path / f"{name}.jsonl", [row]), parquet(tmp_path / f"{name}.parquet", [row])):
            found = find(name, tmp_path)
            (only,) = found.rows()
            assert (only.id, only.question, only.label) == expected
            assert table(found) == [expected[1:]]
            data.unlink()

    def test_columns_can_be_named(self, tmp_path):
        jsonl(tmp_path / "d.jsonl", [{"question": "q", "answer": "a", "text": "t", "gold": "g", "key": "k"}])
        (row,) = find("d", tmp_path, columns=Columns("text", "gold", "key")).rows()
        (bare,) = find("d", tmp_path, columns=Columns(label="", id="")).rows()

        assert (row.id, row.question, row.label) == ("k", "t", "g")
        assert (bare.id, bare.question, bare.label) == ("0", "q", None)

    def test_a_named_column_that_is_not_there_is_a_fault_that_lists_those_that_are(self, tmp_path):
        jsonl(tmp_path / "d.jsonl")

        assert "no column 'gold'; found 'question', 'answer'" in fault("d", tmp_path, columns=Columns(label="gold"))

    def test_data_without_a_question_are_a_fault(self, tmp_path):
        jsonl(tmp_path / "d.jsonl", [{"title": "t", "answer": "a"}])

        assert "no question column; found 'title', 'answer'" in fault("d", tmp_path)
        assert "--question-column" in fault("d", tmp_path)

    def test_a_parquet_column_that_holds_no_text_is_not_taken_for_a_question_or_label(self, tmp_path):
        parquet(tmp_path / "d.parquet", [{"question": 1, "prompt": "q", "answer": {"a": 1}, "label": 3}])
        (row,) = find("d", tmp_path).rows()

        assert (row.question, row.label) == ("q", "3")
        assert "column 'answer' has type struct" in fault("d", tmp_path, columns=Columns(label="answer"))
        assert "column 'question' has type number" in fault("d", tmp_path, columns=Columns("question"))

    def test_a_missing_label_is_no_label(self, tmp_path):
        rows = [{"question": "q", "answer": a} for a in (None, "", " ", float("nan"), "x")] + [{"question": "q"}]
        jsonl(tmp_path / "d.jsonl", rows)
        data = find("d", tmp_path)

        assert [row.label for row in data.rows()] == [None, None, None, None, "x", None]
        assert [label for _, label in table(data)] == [None, None, None, None, "x", None]


def test_a_file_as_windows_writes_it_is_read(tmp_path):
    """UTF-16 with its mark, from PowerShell; by rows and as tables."""
    (tmp_path / "d.jsonl").write_bytes('{"question": "q\u2028\u00fc", "answer": "a"}\r\n'.encode("utf-16"))
    data = find("d", tmp_path)
    assert [(row.question, row.label) for row in data.rows()] == [("q\u2028\u00fc", "a")]
    assert data.count() == sum(map(len, data.chunks())) == 1


class TestFaults:
    """Each names file and line."""

    @pytest.mark.parametrize(
        ("content", "told"),
        [
            (b"", "has no rows"),
            (b"\n \n", "has no rows"),
            (b'{"question": "q"}\n{"question": "q"\n', "d.jsonl:2: not valid JSON"),
            (b'{"question": "q"}\n\n["q"]\n', "d.jsonl:3: expected an object, found a list"),
            (b'{"question": "q"}\n{"problem": "q"}\n', "d.jsonl:2: no 'question' in this row"),
            (b'{"question": 5}\n', "d.jsonl:1: 'question' is a number; it must be a non-empty string"),
            (b'{"question": "q"}\n{"question": " "}\n', "d.jsonl:2: 'question' is empty"),
            (b'{"question": null}\n', "d.jsonl:1: 'question' is null"),
            (b'{"question": "q", "answer": 1}\n{"question": "q", "answer": {"a": 1}}\n', "d.jsonl:2: 'answer' is an object"),
            (b'{"question": "\\ud800"}\n', "d.jsonl:1: 'question' contains the lone surrogate \\ud800"),
            (b'{"question": "q"}\n{"question": "\xe9"}\n', "d.jsonl:2: not UTF-8: byte 15 of the line is 0xe9"),
            ('{"question": "q"}\n'.encode("utf-16")[:-1], "damaged"),
            (b'{"question": "q", "n": ' + b"9" * 5000 + b"}\n", "d.jsonl:1: not valid JSON"),
            (b"[" * 100_000 + b"\n", "d.jsonl:1: not valid JSON"),
        ],
    )
    def test_json_lines(self, tmp_path, content, told):
        """Place and remedy are named."""
        (tmp_path / "d.jsonl").write_bytes(content)

        assert told in fault("d", tmp_path)

    @pytest.mark.parametrize(
        ("line", "told"),
        [
            (b'{"question": "q"', "not valid JSON"),
            (b'{"question": "a"} {"question": "b"}', "not valid JSON: Extra data"),
            (b'{"question": "\xe9"}', "not UTF-8"),
            (b'{"question": "\xed\xa0\x80"}', "lone surrogate"),
            (b'{"question": 5}', "'question' is a number"),
            (b'{"problem": "q"}', "no 'question' in this row"),
            (b'{"question": "q", "answer": {}}', "'answer' is an object"),
        ],
    )
    @pytest.mark.parametrize("label", ['"x"', "3", "0.5"])
    def test_far_down_in_the_file_both_ways_of_reading_tell_the_same_line(self, tmp_path, line, told, label):
        """Whether labels are texts, whole numbers, or what is read row by row anyway."""
        rows = b'{"question": "q", "answer": %s}\n' % label.encode() * 100
        (tmp_path / "d.jsonl").write_bytes(rows + line + b"\n" + rows)
        data = find("d", tmp_path)

        for read in (data.rows, data.chunks):
            with pytest.raises(InputError, match=f"d.jsonl:101: .*{told}"):
                list(read())

    @pytest.mark.parametrize(
        ("content", "told"),
        [
            ("", "has no rows"),
            ("question,answer\n", "has no rows"),
            ('question,answer\n"two\nlines",1\nq,2,3\n', "d.csv:4: 3 fields, but the header has 2"),
            ('question,answer\nq,1\n"never closed,2\nq,3\n', "d.csv:3: not valid CSV"),
            ('question,answer\n"q"x,1\n', "d.csv:2: not valid CSV"),
            ('question,answer\n"a\nb",1\n,2\n', "d.csv:4: 'question' is empty"),
            ("question;answer\nq;1\nq;2;3\n", "d.csv:3: 3 fields, but the header has 2"),
        ],
    )
    def test_csv(self, tmp_path, content, told):
        csv_file(tmp_path / "d.csv", content)

        assert told in fault("d", tmp_path)

    def test_csv_in_an_unknown_encoding(self, tmp_path):
        """Chinese in GB18030; and a byte that no Western encoding has."""
        for data in ("question\nq\n\u4e2d\u6587\u95ee\u9898\n".encode("gb18030"), b"question\nq\nplain \x81 text\n"):
            (tmp_path / "d.csv").write_bytes(data)

            assert "d.csv:3: neither UTF-8 nor Windows-1252" in fault("d", tmp_path)

    def test_a_csv_field_may_span_lines_hold_quotes_and_be_long(self, tmp_path):
        text = 'say ""two, \r\n' + "x" * 200_000 + '\n""'
        csv_file(tmp_path / "d.csv", f'\ufeffquestion,answer\r\n"{text}",1\r\n\r\nnext,2\r\n')
        data = find("d", tmp_path)

        assert questions(data) == [text.replace('""', '"'), "next"]
        assert data.count() == 2

    def test_a_byte_order_mark_is_no_part_of_the_first_row(self, tmp_path):
        (tmp_path / "d.jsonl").write_bytes(b'\xef\xbb\xbf{"question": "q"}\n')

        assert questions(find("d", tmp_path)) == ["q"]
        assert table(find("d", tmp_path)) == [("q", None)]

    @pytest.mark.parametrize("end", [".jsonl", ".csv", ".parquet"])
    def test_a_folder_of_a_files_name(self, tmp_path, end):
        (tmp_path / f"d{end}").mkdir()

        assert f"cannot read {tmp_path}/d{end}" in fault("d", tmp_path)

    def test_a_link_that_leads_nowhere(self, tmp_path):
        (tmp_path / "d.jsonl").symlink_to("d.jsonl")

        assert "cannot read" in fault("d", tmp_path)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_a_file_that_may_not_be_read(self, tmp_path):
        jsonl(tmp_path / "d.jsonl").chmod(0)

        assert "chmod u+r" in fault("d", tmp_path)

    def test_a_truncated_gzip_file(self, tmp_path):
        whole = gzip.compress(jsonl(tmp_path / "plain", ROWS * 1000).read_bytes())
        (tmp_path / "d.jsonl.gz").write_bytes(whole[: len(whole) // 2])

        assert "d.jsonl.gz is damaged" in fault("d", tmp_path)

    @pytest.mark.parametrize("cut", [0, 3, 200, -9])
    def test_a_truncated_parquet_file(self, tmp_path, cut):
        path = parquet(tmp_path / "d.parquet")
        path.write_bytes(path.read_bytes()[:cut])

        assert "d.parquet is not a Parquet file or is damaged" in fault("d", tmp_path)

    def test_a_parquet_row_without_question_is_named_by_its_number(self, tmp_path):
        parquet(tmp_path / "d.parquet", [*ROWS, {"question": None, "answer": "1"}], row_group_size=2)

        assert "row 5: 'question' is null" in fault("d", tmp_path)
        with pytest.raises(InputError, match="row 5: 'question' is null"):
            table(find("d", tmp_path))

    def test_a_line_without_end_does_not_fill_the_memory(self, tmp_path):
        """A file of zeros, larger than the process may have, ends in an error."""
        with (tmp_path / "d.jsonl").open("wb") as file:
            file.truncate(8 << 30)
        code = f"""
import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
from pathlib import Path
from workflow_composer.batch.datasets.dataset import find
find("d", Path({str(tmp_path)!r}))
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

        assert "d.jsonl:1: the line is longer than 64 MiB" in done.stderr

    def test_a_file_that_changes_after_planning_is_a_fault(self, tmp_path):
        path = jsonl(tmp_path / "d.jsonl")
        data = find("d", tmp_path)
        jsonl(path, ROWS[::-1])
        os.utime(path, ns=(1, 1))

        for read in (data.rows, data.chunks):
            with pytest.raises(InputError, match="has changed since the run began"):
                list(read())
        with pytest.raises(InputError, match="has changed"):
            data.check()

    def test_a_file_that_grows_while_it_is_read_is_a_fault(self, tmp_path):
        path = jsonl(tmp_path / "d.jsonl")
        rows = find("d", tmp_path).rows()
        next(rows)
        with path.open("a") as file:
            file.write('{"question": "late"}\n')

        with pytest.raises(InputError, match="has changed"):
            list(rows)


class TestDigests:
    def test_equal_files_have_one_content_and_another_digest(self, tmp_path):
        """What the rows are does not depend on where they lie, how they are packed and when they were copied."""
        first, second = tmp_path / "a", tmp_path / "b"
        jsonl(first / "d.jsonl")
        (second).mkdir()
        (second / "d.jsonl.gz").write_bytes(gzip.compress((first / "d.jsonl").read_bytes()))
        a, b = find("d", first), find("d", second)

        assert a.sha256() == b.sha256()
        assert a.digest != b.digest
        assert a.digest == find("d", first).digest

    def test_another_label_column_is_other_content(self, tmp_path):
        jsonl(tmp_path / "d.jsonl")

        assert find("d", tmp_path).sha256() != find("d", tmp_path, columns=Columns(label="")).sha256()

    def test_another_row_is_other_content(self, tmp_path):
        path = jsonl(tmp_path / "d.jsonl")
        before = find("d", tmp_path).sha256()
        jsonl(path, ROWS[:-1])

        assert find("d", tmp_path).sha256() != before


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUES = st.one_of(
    TEXTS,
    st.none(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_infinity=False),
    st.booleans(),
    st.lists(st.integers(), max_size=2),
)
JSON_ROWS = st.lists(
    st.one_of(
        st.fixed_dictionaries({"question": TEXTS}, optional={"answer": TEXTS, "n": VALUES}),
        st.fixed_dictionaries({"question": TEXTS, "answer": st.integers(-(2**40), 2**40)}),
        st.fixed_dictionaries({}, optional={"question": VALUES, "answer": VALUES}),
    ),
    min_size=1,
    max_size=6,
)


def outcome(read):
    """Rows, or the fault."""
    try:
        return read()
    except InputError as error:
        return str(error)


@settings(deadline=None)
@given(rows=JSON_ROWS, ascii_only=st.booleans(), glue=st.sampled_from(["\n", "\r\n", "\n\n", "\n \t\n", " "]))
def test_tables_for_planning_hold_what_the_rows_hold(tmp_path_factory, rows, ascii_only, glue):
    """For any rows, also faulty ones: the quick way and the slow way agree to the letter."""
    folder = tmp_path_factory.mktemp("data")
    text = glue.join(json.dumps(row, ensure_ascii=ascii_only) for row in rows)
    (folder / "d.jsonl").write_bytes(text.encode())
    wanted = Columns("question", "answer")
    try:
        data = find("d", folder, columns=wanted)
    except InputError:
        return

    slow = outcome(lambda: [(row.question, row.label) for row in data.rows()])
    assert outcome(lambda: table(data)) == slow
    if isinstance(slow, list):
        assert data.count() == len(slow)


@settings(deadline=None)
@given(rows=st.lists(st.tuples(TEXTS.filter(str.strip), TEXTS), min_size=1, max_size=6), start=st.integers(0, 8))
def test_reading_from_the_middle_gives_the_tail(tmp_path_factory, rows, start):
    """In every format and with any row groups."""
    folder = tmp_path_factory.mktemp("data")
    found = [{"question": q, "answer": a} for q, a in rows]
    jsonl(folder / "j.jsonl", found)
    parquet(folder / "p.parquet", found, row_group_size=2)
    for name in "jp":
        data = find(name, folder)
        assert list(data.rows(start)) == list(data.rows())[start:]
        assert [row.row for row in data.rows(start)] == list(range(start, len(rows)))


def test_one_white_space_for_both_ways_of_reading(tmp_path):
    """A question of one character is blank for both or for none."""
    for code in (*range(0x100), 0x1680, 0x180E, *range(0x2000, 0x2070), 0x3000, 0xFEFF):
        jsonl(tmp_path / "d.jsonl", [{"question": "q"}, {"question": chr(code)}])
        data = find("d", tmp_path)

        assert outcome(lambda d=data: [q for q, _ in table(d)]) == outcome(lambda d=data: questions(d)), hex(code)


def test_memory_does_not_grow_with_the_rows(tmp_path):
    """However many rows there are: 200 MB would not fit."""
    row = json.dumps({"question": "q" * 1000, "answer": "a" * 1000}) + "\n"
    with (tmp_path / "d.jsonl").open("w") as file:
        for _ in range(100):
            file.write(row * 1000)
    code = f"""
import resource; resource.setrlimit(resource.RLIMIT_DATA, (1 << 27, 1 << 27))
from pathlib import Path
from workflow_composer.batch.datasets.dataset import find
data = find("d", Path({str(tmp_path)!r}))
print(data.count(), sum(1 for _ in data.rows()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.stdout.split() == ["100000", "100000"], done.stderr


def test_rows_of_lines_need_no_heavy_library(tmp_path):
    """JSON lines and CSV are read by the standard library."""
    jsonl(tmp_path / "d.jsonl")
    code = f"""
import sys
from pathlib import Path
from workflow_composer.batch.datasets.dataset import find
list(find("d", Path({str(tmp_path)!r})).rows())
assert not {{"pyarrow", "numpy", "pandas"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
