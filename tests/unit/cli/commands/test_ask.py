"""ask: a prompt over the columns of a table, and the table with the answers."""

from __future__ import annotations

import csv
import json
import stat

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workflow_composer.cli.commands.ask import spread_fields
from workflow_composer.errors import ServerUnreachable
from workflow_composer.types import Sample, texts


@pytest.fixture
def table(command):
    """Three abstracts; the last has no label."""
    rows = [["id", "title", "abstract", "kind"]]
    rows += [["007", "One", 'A case, of "fever".\nAnd more.', "case"], ["008", "Two", "A trial.", "trial"]]
    rows += [["009", "Three", "Neither: naïve.", ""]]
    with (command.folder / "t.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return "t.csv"


def read(command, name="o.csv"):
    with (command.folder / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def prompt_of(call):
    return texts(call.request.messages[-1])[0]


def kind(call):
    """Say what the abstract is, as a model would."""
    text = prompt_of(call)
    return "**Case.**" if "A case" in text else "trial" if "A trial" in text else "Neither"


def seen(command):
    """The prompts that the models were asked."""
    return [prompt_of(call) for backend in command.made for call in backend.calls]


LABELS = ("--prompt", "Classify: {{ title }}\\n{{ abstract }}", "--choices", "case,trial,neither", "-o", "o.csv")


class TestChoices:
    def test_the_table_comes_back_with_the_labels(self, command, table):
        """All columns and rows in their order, texts untouched, one call per row."""
        command.script = (kind,)
        done = command("ask", table, *LABELS)

        assert done.code == 0, done.err
        rows = read(command)
        assert list(rows[0]) == ["id", "title", "abstract", "kind", "answer", "_error"]
        assert [row["id"] for row in rows] == ["007", "008", "009"]
        assert [row["answer"] for row in rows] == ["case", "trial", "neither"]
        assert rows[0]["abstract"] == 'A case, of "fever".\nAnd more.'
        assert len(seen(command)) == 3
        assert any(text.startswith('Classify: One\nA case, of "fever".\nAnd more.') for text in seen(command))
        assert all("case, trial, neither" in text for text in seen(command))
        assert "mended" in done.err

    @pytest.mark.parametrize("name", ["o.jsonl", "o.parquet", "o.tsv"])
    def test_other_formats(self, command, table, name):
        """By the name of the output."""
        command.script = (kind,)
        assert command("ask", table, *LABELS[:-1], name).code == 0
        path = command.folder / name
        if name == "o.parquet":
            rows = pq.read_table(path).to_pylist()
        elif name == "o.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
        else:
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file, delimiter="\t"))
        assert [row["answer"] for row in rows] == ["case", "trial", "neither"]
        assert [row["id"] for row in rows] == ["007", "008", "009"]
        assert {row["_error"] for row in rows} == ({""} if name == "o.tsv" else {None})

    def test_columns_may_be_left_out_and_renamed(self, command, table):
        """The prompt may use columns that are not written."""
        command.script = (kind,)
        assert command("ask", table, *LABELS, "--keep", "id,kind", "--column", "label", "--prefix", "m_").code == 0
        assert list(read(command)[0]) == ["id", "kind", "m_label", "m__error"]

    def test_a_table_may_be_a_name_or_a_pattern(self, command):
        """A name is looked for in the data folder; the parts of a pattern are one table."""
        (command.folder / "data").mkdir()
        for number in range(2):
            command.write(f"data/part-{number}.jsonl", {"a": f"x{number}"})
        command.write("data/named.jsonl", {"a": "y"})
        command.script = ("ok",)
        assert command("ask", "data/part-*.jsonl", "--prompt", "{{ a }}", "-o", "o.csv").code == 0
        assert [row["a"] for row in read(command)] == ["x0", "x1"]
        assert command("ask", "named", "--prompt", "{{ a }}", "-o", "n.csv").code == 0
        assert [row["a"] for row in read(command, "n.csv")] == ["y"]

    def test_a_column_to_keep_may_have_a_comma_in_its_name(self, command):
        """Then it is no list."""
        command.write("t.jsonl", {"a": "x", "b": 1, "a,b": 2})
        command.script = ("ok",)
        assert command("ask", "t.jsonl", "--prompt", "{{ a }}", "-o", "o.csv", "--keep", "a,b").code == 0
        assert list(read(command)[0]) == ["a,b", "answer", "_error"]

    def test_a_choice_may_hold_a_comma(self, command, table):
        """If the option is repeated."""
        command.script = ("yes, surely",)
        done = command("ask", table, *LABELS[:2], "--choices", "yes, surely", "--choices", "no", "-o", "o.csv")
        assert done.code == 0, done.err
        assert {row["answer"] for row in read(command)} == {"yes, surely"}

    def test_parquet_keeps_its_types(self, command):
        """Every column of the input has the type that it had."""
        given = pa.table({"n": pa.array([1, None], pa.int16()), "t": pa.array([["a"], []], pa.list_(pa.large_string()))})
        pq.write_table(given, command.folder / "t.parquet")
        command.script = ("odd",)
        assert command("ask", "t.parquet", "--prompt", "{{ t }}", "--choices", "odd,even", "-o", "o.parquet").code == 0
        found = pq.read_table(command.folder / "o.parquet")
        assert found.select(["n", "t"]).equals(given)


class TestLabels:
    def test_a_confusion_matrix_and_the_wrong_rows(self, command, table):
        """Rows without a label are not counted; the label may be written otherwise than the choice."""
        command.script = ("trial",)
        done = command("ask", table, *LABELS, "--label-column", "kind", "--json")

        assert done.code == 0, done.err
        assert (done.json["graded"], done.json["accuracy"]) == (2, 0.5)
        assert sorted(map(tuple, done.json["confusion"])) == [("case", "trial", 1), ("trial", "trial", 1)]
        report = (command.folder / "o.csv.report.md").read_text()
        assert "| 1 | case | trial |" in report
        assert "1 of 2" in report

    def test_labels_may_come_later(self, command, table):
        """They are those of today's table: a second run with a label column asks nothing and grades all rows."""
        command.script = (kind,)
        assert command("ask", table, *LABELS).code == 0
        command.made.clear()
        done = command("ask", table, *LABELS, "--label-column", "kind", "--json")
        assert (done.json["graded"], done.json["accuracy"]) == (2, 1.0)
        assert not seen(command)

    def test_a_text_is_graded_by_its_final_answer(self, command):
        """As `generate` grades it."""
        command.write("q.jsonl", {"q": "30 + 12", "a": "42"}, {"q": "1 + 1", "a": "2"})
        command.script = ("Let me see: the answer is 42.",)
        done = command("ask", "q.jsonl", "--prompt", "{{ q }}", "-o", "o.csv", "--label-column", "a", "--json")
        assert (done.json["graded"], done.json["accuracy"]) == (2, 0.5)

    def test_the_matrix_is_printed(self, command, table):
        """Labels by row, answers by column."""
        command.script = (kind,)
        lines = command("ask", table, *LABELS, "--label-column", "kind").out.splitlines()
        assert lines[0].split()[-2:] == ["case", "trial"]
        assert {tuple(line.split()) for line in lines[1:]} == {("case", "1", "·"), ("trial", "·", "1")}

    def test_labels_that_no_answer_can_equal_are_named_before_the_start(self, command, table):
        """The usual cause is a choice that was forgotten."""
        command.script = ("case",)
        done = command("ask", table, *LABELS[:2], "--choices", "case,other", "-o", "o.csv", "--label-column", "kind")
        assert "'trial'" in done.err
        assert done.code == 0

    def test_labels_of_a_numeric_column(self, command):
        """A column of whole numbers with gaps holds 1.0 and NaN."""
        pq.write_table(pa.table({"t": ["a", "b"], "k": pa.array([1.0, float("nan")])}), command.folder / "t.parquet")
        command.script = ("1",)
        done = command("ask", "t.parquet", "--prompt", "{{ t }}", "--choices", "1,2", "-o", "o.csv", "--label-column", "k")
        assert "accuracy 100.0% of 1" in done.err

    def test_several_fields_have_no_single_label(self, command, table):
        """Which field would it be?"""
        done = command("ask", table, "--prompt", "{{ title }}", "--json", "a", "b", "-o", "o.csv", "--label-column", "kind")
        assert done.code == 2


class TestFields:
    def test_fields_become_columns(self, command, table):
        """Of any type, or of a given form."""
        command.script = (
            'Sure! Here is the JSON:\n```json\n{"gene": "BRCA1", "year": "2020", "tags": ["a"]}\n```\nThanks!',
        )
        done = command("ask", table, "--prompt", "{{ title }}", "--json", "gene", "year:number", "tags", "-o", "o.jsonl")
        assert done.code == 0, done.err
        rows = [json.loads(line) for line in (command.folder / "o.jsonl").read_text().splitlines()]
        assert [(row["gene"], row["year"], row["tags"]) for row in rows] == [("BRCA1", 2020, ["a"])] * 3

    def test_json_without_fields_is_the_summary(self, command, table):
        """As for other commands."""
        command.script = ("free text",)
        done = command("ask", table, "--prompt", "{{ title }}", "-o", "o.csv", "--json")
        assert done.json["rows"] == 3
        assert done.json["calls"] == 3

    def test_a_schema(self, command, table):
        """Its properties become columns; a field that is missing is empty."""
        schema = {"type": "object", "properties": {"n": {"type": "integer"}, "why": {"type": "string"}}, "required": ["n"]}
        (command.folder / "s.json").write_text(json.dumps(schema))
        command.script = ('{"n": 3}',)
        assert command("ask", table, "--prompt", "{{ title }}", "--schema", "s.json", "-o", "o.csv").code == 0
        assert [(row["n"], row["why"]) for row in read(command)] == [("3", "")] * 3

    def test_an_error_is_no_json_because_fields_were_named(self, command, table):
        """`--json gene` asks for fields, not for JSON output."""
        done = command("ask", table, "--prompt", "{{ tilte }}", "--json", "gene", "-o", "o.csv")
        assert done.code == 2
        assert done.err.startswith("error: ")

    def test_a_file_after_the_fields_is_the_table(self):
        """People write the table last, too."""
        found = spread_fields(["--json", "a", "b", "t.csv", "-o", "o.csv"], is_file=lambda name: name == "t.csv")
        assert found == ["--json", "a", "--json", "b", "t.csv", "-o", "o.csv"]


class TestBeforeTheStart:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("--prompt", "{{ tilte }}"), "title"),
            (("--prompt", "{% if false %}{{ tilte }}{% endif %}{{ title }}"), "title"),
            (("--prompt", "no column"), "column"),
            (("--prompt", "{{ title"), "--prompt:1"),
            (("--prompt", "{{ title }}", "--keep", "id,titel"), "title"),
            (("--prompt", "{{ title }}", "--label-column", "knid"), "kind"),
            (("--prompt", "{{ title }}", "--column", "title"), "title"),
            (("--prompt", "{{ title }}", "--json", "title"), "title"),
            (("--prompt", "{{ title }}", "--choices", "one"), "one"),
            (("--prompt", "{{ title }}", "--choices", "a,b", "--json", "x"), "--choices"),
            (("--prompt", "{{ title }}", "--schema", "missing.json"), "missing.json"),
            (("--prompt", "{{ title }}", "--system", "{{ title }}"), "--system"),
            (("--prompt-file", "missing.txt"), "missing.txt"),
            ((), "--prompt"),
            (("--prompt", "{{ title }}", "--prompt-file", "p.txt"), "--prompt"),
        ],
    )
    def test_a_fault_costs_no_call(self, command, table, arguments, said):
        """And names the option or the column."""
        done = command("ask", table, *arguments, "-o", "o.csv")
        assert done.code == 2
        assert said in done.err
        assert not seen(command)
        assert not (command.folder / "o.csv").exists()

    @pytest.mark.parametrize("output", ["o.xlsx", "t.csv", "no/o.csv", "other.csv"])
    def test_an_output_that_cannot_be_written_costs_no_call(self, command, table, output):
        """Of no known format; the table itself; in no folder; a file that is not ours."""
        (command.folder / "other.csv").write_text("mine\n1\n")
        assert command("ask", table, *LABELS[:-1], output).code == 2
        assert not seen(command)
        assert (command.folder / "other.csv").read_text() == "mine\n1\n"
        assert (command.folder / "t.csv").read_bytes().startswith(b"id,title")

    def test_half_a_character_names_the_row(self, command):
        """JSON can hold one; no server can be sent one."""
        command.write("t.jsonl", b'{"a": "fine"}\n', b'{"a": "\\ud83d"}\n')
        done = command("ask", "t.jsonl", "--prompt", "{{ a }}", "-o", "o.csv")
        assert done.code == 2
        assert "ud83d" in done.err
        assert not seen(command)

    def test_a_misspelt_table_is_told_with_near_names(self, command, table):
        """As for data sets."""
        done = command("ask", "tt.csv", *LABELS)
        assert done.code == 2
        assert "t.csv" in done.err.replace("tt.csv", "")

    def test_null_names_the_expression_and_the_row(self, command):
        """All rows are filled in before the first call."""
        command.write("t.jsonl", {"a": "x", "b": "y"}, {"a": "x", "b": None}, {"a": "x"})
        done = command("ask", "t.jsonl", "--prompt", "{{ a }} {{ b }}", "-o", "o.csv")
        assert done.code == 2
        assert "{{ b }}" in done.err
        assert "1 more" in done.err
        assert not seen(command)

    def test_a_column_that_only_later_rows_have(self, command):
        """It is used and written, too."""
        command.write("t.jsonl", *({"a": n} for n in range(100)), {"a": 100, "late": "x"})
        command.script = ("ok",)
        done = command("ask", "t.jsonl", "--prompt", "{{ a }}{{ late | default('') }}", "-o", "o.csv")
        assert done.code == 0, done.err
        assert read(command)[-1]["late"] == "x"

    def test_the_price_is_told(self, command, table):
        """For the rows that are left."""
        command.script = (kind,)
        assert "price: about $" in command("ask", table, *LABELS).err

    def test_the_time_is_told_by_earlier_requests(self, command, table):
        """Of the same model, by its tokens; damaged lines tell nothing."""
        command.script = (kind,)
        lines = [{"candidate": "small", "success": True, "latency_ms": 120_000.0, "completion_tokens": 10}]
        lines += [{"candidate": "remote", "success": True, "latency_ms": 1.0, "completion_tokens": 10}]
        lines += [{"candidate": "small", "success": False, "latency_ms": 9e9, "completion_tokens": 1}]
        command.environ["WORKFLOW_COMPOSER_METRICS"] = "before.jsonl"
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (command.folder / "before.jsonl").write_text('{"cut": \n[]\n' + text)
        assert "time: about 96 s by earlier requests, 3 rows at a time" in command("ask", table, *LABELS).err

    def test_a_model_without_a_price_is_named(self, command, table):
        """Unknown is not free."""
        command.script = (kind,)
        command.profile = {"models": {"small": {"backend": "scripted"}, "remote": {"backend": "scripted"}}}
        assert "price unknown: the profile has no price for small" in command("ask", table, *LABELS).err


class TestRuns:
    def test_a_failed_row_has_its_reason_and_is_tried_again(self, command, table):
        """Exit code 1, an empty cell, the reason; the next run asks for that row only."""
        command.remote = (ServerUnreachable("down"),)

        command.script = (lambda call: kind(call) if "A trial" not in prompt_of(call) else ServerUnreachable("down"),)
        done = command("ask", table, *LABELS)
        assert done.code == 1
        rows = read(command)
        assert [row["answer"] for row in rows] == ["case", "", "neither"]
        assert "down" in rows[1]["_error"]
        assert not rows[0]["_error"]

        command.made.clear()
        command.script = (kind,)
        done = command("ask", table, *LABELS)
        assert done.code == 0
        assert [row["answer"] for row in read(command)] == ["case", "trial", "neither"]
        assert len(seen(command)) == 1

    def test_a_pilot_grows(self, command, table):
        """Twenty, then forty, pays for twenty; a finished run asks nothing."""
        command.script = (kind,)
        assert command("ask", table, *LABELS, "--limit", "2").code == 0
        assert len(read(command)) == 2
        command.made.clear()
        assert command("ask", table, *LABELS).code == 0
        assert len(read(command)) == 3
        assert len(seen(command)) == 1
        command.made.clear()
        assert command("ask", table, *LABELS).code == 0
        assert not seen(command)

    def test_rows_may_move_and_others_come(self, command):
        """A row is known by its prompt: whatever moves keeps its answer, and only new prompts are paid for."""
        command.script = (prompt_of,)
        command.write("t.jsonl", *({"n": n} for n in range(5)))
        assert command("ask", "t.jsonl", "--prompt", "{{ n }}", "-o", "o.csv").code == 0
        command.made.clear()
        command.write("t.jsonl", {"n": 9}, *({"n": n, "more": "x"} for n in (4, 2, 0, 1, 3)), {"n": 8})
        done = command("ask", "t.jsonl", "--prompt", "{{ n }}", "-o", "o.csv")
        assert done.code == 0, done.err
        assert sorted(seen(command)) == ["8", "9"]
        assert [line["text"] for line in command.read("o.csv.journal")] == list("9420138")
        assert [(row["n"], row["answer"], row["more"]) for row in read(command)] == [
            (n, n, "" if n in "98" else "x") for n in "9420138"
        ]

    def test_another_model_under_the_same_name_is_not_mixed(self, command, table):
        """The error names what has changed."""
        command.script = (kind,)
        models = {"small": {"backend": "scripted", "model": "one"}, "remote": {"backend": "scripted"}}
        command.profile = {"models": models}
        assert command("ask", table, *LABELS, "--limit", "1").code == 0
        models["small"]["model"] = "two"
        done = command("ask", table, *LABELS)
        assert done.code == 2
        assert "'one'" in done.err

    def test_a_larger_token_limit_is_no_other_question(self, command, table):
        """Rows that were cut off are asked again with it."""
        command.script = ("x",)
        assert command("ask", table, *LABELS[:2], "-o", "o.csv", "--max-tokens", "1", "--limit", "2").code == 0
        assert command("ask", table, *LABELS[:2], "-o", "o.csv", "--max-tokens", "9").code == 0

    def test_answers_that_never_have_the_form_are_noticed(self, command):
        """After twenty in a row a warning says so; the rows have no value, and their reason."""
        command.write("t.jsonl", *({"n": n} for n in range(30)))
        command.script = ("I do not know.",)
        few = ("--retries", "0", "--concurrency", "2")
        done = command("ask", "t.jsonl", "--prompt", "{{ n }}", "--choices", "a,b", "-o", "o.csv", *few)
        assert done.code == 1
        assert "in a row" in done.err
        assert {(row["answer"], row["_error"].startswith("InvalidAnswer")) for row in read(command)} == {("", True)}
        assert len(seen(command)) == 30

    def test_free_text_that_was_cut_off_is_no_answer(self, command, table):
        """Half a summary looks like a whole one."""
        command.script = (Sample("half of", finish_reason="length"),)
        assert command("ask", table, "--prompt", "{{ title }}", "-o", "o.csv").code == 1
        assert all("--max-tokens" in row["_error"] and not row["answer"] for row in read(command))

    @pytest.mark.parametrize(
        "change",
        [("--prompt", "Other: {{ title }}"), ("--choices", "case,trial,neither,unclear"), ("--system", "Be brief.")],
    )
    def test_other_questions_are_not_mixed(self, command, table, change):
        """Another prompt, form or system message needs another output."""
        command.script = (kind,)
        assert command("ask", table, *LABELS).code == 0
        before = (command.folder / "o.csv").read_bytes()
        arguments = list(LABELS)
        if change[0] in arguments:
            arguments[arguments.index(change[0]) + 1] = change[1]
        else:
            arguments += change
        command.made.clear()
        done = command("ask", table, *arguments)
        assert done.code == 2
        assert not seen(command)
        assert (command.folder / "o.csv").read_bytes() == before

    def test_the_run_budget_ends_the_run_and_the_table_says_what_is_missing(self, command, table):
        """Exit code 6; a higher budget resumes."""
        command.script = (kind,)
        budget = [*LABELS, "--run-budget", "0.02", "--concurrency", "1"]
        done = command("ask", table, *budget)
        assert done.code == 6
        rows = read(command)
        assert len(rows) == 3
        assert rows[-1]["answer"] == ""
        assert "not asked" in rows[-1]["_error"]
        assert command("ask", table, *LABELS, "--run-budget", "50").code == 0
        assert [row["answer"] for row in read(command)] == ["case", "trial", "neither"]

    def test_a_sample_without_a_terminal_stops(self, command, table):
        """Two rows are asked and printed; the same command without --try asks for the last one."""
        command.script = (kind,)
        done = command("ask", table, *LABELS, "--try", "2")
        assert done.code == 0, done.err
        assert len(seen(command)) == 2
        assert done.out.splitlines()[0].split() == ["title", "abstract", "answer", "_error"]
        assert len(done.out.splitlines()) == 3
        assert "forecast for the other 1 rows" in done.err
        assert not (command.folder / "o.csv").exists()
        command.made.clear()
        assert command("ask", table, *LABELS).code == 0
        assert len(seen(command)) == 1

    def test_a_prompt_may_be_changed_while_samples_are_tried(self, command, table):
        """Nothing is mixed or lost: answers to the other prompt are set aside. Once a table is written, that is refused."""
        command.script = (kind,)
        for number, prompt in enumerate(("A {{ abstract }}", "B {{ abstract }}", "C {{ abstract }}"), 0):
            done = command("ask", table, "--prompt", prompt, *LABELS[2:], "--try", "1")
            assert done.code == 0, done.err
            assert (f"o.csv.journal.{number}" in done.err) == (number > 0)
        assert sorted(path.name for path in command.folder.glob("o.csv.journal.?")) == ["o.csv.journal.1", "o.csv.journal.2"]
        command.made.clear()
        assert command("ask", table, "--prompt", "C {{ abstract }}", *LABELS[2:]).code == 0
        assert len(seen(command)) == 2
        done = command("ask", table, "--prompt", "D {{ abstract }}", *LABELS[2:], "--try", "1")
        assert done.code == 2
        assert "--again" in done.err
        command.made.clear()
        assert command("ask", table, "--prompt", "D {{ abstract }}", *LABELS[2:], "--again").code == 0
        assert len(seen(command)) == 3

    def test_the_first_rows_tell_the_time_of_the_others(self, command):
        """Once, while the run goes on."""
        command.write("t.jsonl", *({"a": n} for n in range(60)))
        command.script = ("ok",)
        done = command("ask", "t.jsonl", "--prompt", "row {{ a }}.", "-o", "o.jsonl")
        assert done.code == 0, done.err
        assert sorted(seen(command)) == sorted(f"row {n}." for n in range(60))
        assert done.err.count("forecast for the other 57 rows, by 3 answered") == 1

    def test_answers_are_the_owners_only(self, command, table):
        """The journal holds what models said."""
        command.script = (kind,)
        command("ask", table, *LABELS)
        assert stat.S_IMODE((command.folder / "o.csv.journal").stat().st_mode) == 0o600
        assert stat.S_IMODE((command.folder / "o.csv").stat().st_mode) == 0o600

    def test_a_prompt_file(self, command, table):
        """Its last line end is removed, and a backslash stays."""
        (command.folder / "p.txt").write_text("\ufeff{{ title }}: \\nabla\n")
        command.script = ("ok",)
        done = command("ask", table, "--prompt-file", "p.txt", "-o", "o.csv")
        assert done.code == 0, done.err
        assert sorted(seen(command)) == ["One: \\nabla", "Three: \\nabla", "Two: \\nabla"]

    def test_a_line_break_as_shells_pass_it_on(self, command, table):
        """But a LaTeX command is none."""
        command.script = ("ok",)
        command("ask", table, "--prompt", "{{ title }}\\nAbstract: \\nabla", "-o", "o.csv")
        assert "One\nAbstract: \\nabla" in seen(command)

    def test_your_own_servers_answer_greedily(self, command, table):
        """Unless a temperature is given; a cloud model's default is left alone, because some refuse 0."""
        command.script = ("ok",)
        command("ask", table, "--prompt", "{{ title }}", "-o", "a.csv")
        command.profile = {"fallback": []}
        command("ask", table, "--prompt", "{{ title }}", "-o", "b.csv")
        command("ask", table, "--prompt", "{{ title }}", "-o", "c.csv", "--temperature", "0.5")
        found = [{call.request.temperature for call in backend.calls} for backend in command.made if backend.calls]
        assert found == [{None}, {0.0}, {0.5}]
