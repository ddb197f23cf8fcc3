"""Commands read the tables that people have, and say in one line what they take."""

from __future__ import annotations

import csv
import datetime
import decimal
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workflow_composer.errors import ServerFailed
from workflow_composer.types import Sample

CASES = [{"Fall": n, "Problem": f"What is {n} + 1?", "Gold": str(n + 1)} for n in range(4)]


@pytest.fixture
def cases(command):
    """A semicolon-separated file from a German Excel, in its old encoding."""
    with (command.folder / "cases.csv").open("w", encoding="cp1252", newline="") as file:
        writer = csv.DictWriter(file, ["Fall", "Problem", "Gold", "Prüfer"], delimiter=";")
        writer.writeheader()
        writer.writerows({**case, "Prüfer": "Müller"} for case in CASES)
    command.script = (lambda call: f"#### {int(call.request.messages[-1]['content'].split()[2]) + 1}",)
    command.profile = {"tiers": {"small": {"model": "small"}, "remote": {"model": "remote"}}}
    return command


def test_generate_says_what_it_takes(cases):
    done = cases("generate", "--input", "cases.csv", "--id-column", "Fall", "-o", "out.jsonl")

    assert done.code == 0, done.err
    first, *_ = done.err.splitlines()
    taken = "question: Problem, label: Gold, id: Fall"
    assert first.startswith(f"cases.csv: {taken}; fields are separated by semicolons; not UTF-8")
    assert [(line["id"], line["correct"]) for line in cases.read("out.jsonl")] == [(n, True) for n in range(4)]


def test_the_same_rows_in_another_format_are_the_same_answers(cases):
    """Ids and what was answered do not depend on the format: nothing is asked again."""
    rows = [{"id": n, "question": case["Problem"], "answer": case["Gold"]} for n, case in enumerate(CASES)]
    cases.write("rows.jsonl", *rows)
    pq.write_table(pa.Table.from_pylist(rows), cases.folder / "rows.parquet")
    (cases.folder / "rows.csv").write_text(
        "id,question,answer\n" + "".join(f"{','.join(map(str, r.values()))}\n" for r in rows)
    )
    assert cases("generate", "--input", "rows.jsonl", "-o", "out.jsonl").code == 0
    ids = [line["id"] for line in cases.read("out.jsonl")]

    for name in ("rows.csv", "rows.parquet"):
        done = cases("--json", "generate", "--input", name, "-o", "out.jsonl")
        assert (done.code, done.json["earlier"]) == (0, 4), done.err
        assert [line["id"] for line in cases.read("out.jsonl")] == ids == [0, 1, 2, 3]


def test_any_right_answer_counts(command):
    """google-research-datasets/nq_open."""
    command.script = (lambda call: "The answer is 18." if "a?" in str(call.request.messages) else "The answer is twelve.",)
    command.write("nq.jsonl", {"question": "a?", "answer": ["17", "18"]}, {"question": "b?", "answer": ["one", "two"]})
    done = command("generate", "--input", "nq.jsonl", "-o", "out.jsonl")

    assert [line["correct"] for line in command.read("out.jsonl")] == [True, False], done.err


def test_own_fields_reach_the_model_of_generate(command):
    command.script = ("ok",)
    own = {"max_tokens": 7, "temperature": 0.25, "seed": 3, "stop": ["END"], "response_format": {"type": "json_object"}}
    command.write("rows.jsonl", {"question": "q", **own})
    assert command("generate", "--input", "rows.jsonl", "--max-tokens", "99", "-o", "out.jsonl").code == 0
    (call,) = next(backend.calls for backend in command.made if backend.calls)

    request = call.request
    assert (request.max_tokens, request.temperature, request.seed, request.stop) == (7, 0.25, 3, ("END",))
    assert request.response_format == {"type": "json_object"}


def test_columns_of_a_table_may_be_empty_and_of_any_type(command):
    """An empty cell of CSV is no task type, model or context; dates and decimals of Parquet do no harm."""
    command.script = ("2",)
    (command.folder / "rows.csv").write_text("question,task_type,model,context\nq,,,\n")
    data = {
        "question": ["q"],
        "task_type": ["math"],
        "day": [datetime.date(2024, 5, 17)],
        "price": [decimal.Decimal("1.10")],
    }
    pq.write_table(pa.table(data), command.folder / "rows.parquet")

    for name in ("rows.csv", "rows.parquet"):
        done = command("generate", "--input", name, "-o", f"{name}.out")
        assert done.code == 0, done.err
    assert command.metrics.metrics[-1].task_type == "math"


def test_execute_takes_a_path_and_columns(cases):
    done = cases("execute", "--routes", "small", "--datasets", "cases.csv", "--id-column", "Fall", "--data-dir", "nowhere")

    assert done.code == 0, done.err
    assert "cases: question: Problem, label: Gold, id: Fall" in done.err
    rows = [json.loads(line) for line in (cases.folder / "results/cases/small/results.jsonl").read_text().splitlines()]
    assert [(row["id"], row["correct"]) for row in rows] == [(str(n), True) for n in range(4)]


def test_execute_honours_own_fields_or_refuses_them_by_name(cases):
    """A routing string says how its tiers sample."""
    cases.write("rows.jsonl", {"question": "What is 1 + 1?", "answer": "2", "max_tokens": 5, "temperature": 0.5})
    assert cases("execute", "--routes", "small", "--datasets", "rows.jsonl").code == 0
    (call,) = next(backend.calls for backend in cases.made if backend.calls)
    assert (call.request.max_tokens, call.temperature) == (5, 0.5)
    done = cases("execute", "--routes", "mv_small_k3_t0.7", "--datasets", "rows.jsonl")
    assert done.code == 1
    assert "row 0: 'temperature' cannot be honoured: the route mv_small_k3_t0.7 sets it" in done.err


def test_execute_asks_multiple_choice_and_chats(cases):
    """MMLU's choices are put to the model; system messages of a chat are sent."""
    cases.script = (lambda call: "Answer: B",)
    cases.write(
        "mmlu.jsonl",
        {"question": "Capital?", "choices": ["Rome", "Paris"], "answer": 1},
        {"question": "River?", "choices": ["Po", "Seine"], "answer": 0},
    )
    cases.write("chat.jsonl", {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]})
    done = cases("--json", "execute", "--routes", "small", "--datasets", "mmlu.jsonl", "chat.jsonl")

    assert [run["accuracy"] for run in done.json] == [0.5, None], done.err
    asked = [call.request.messages for backend in cases.made for call in backend.calls]
    assert any("A. Rome\nB. Paris" in messages[-1]["content"] for messages in asked)
    assert ({"role": "system", "content": "s"}, {"role": "user", "content": "q"}) in asked


def test_record_takes_a_path_and_columns(cases):
    done = cases("record", "--datasets", "cases.csv", "--label-column", "Gold", "--tiers", "small", "-o", "r.jsonl")

    assert done.code == 0, done.err
    assert "cases: question: Problem, label: Gold" in done.err
    assert [line["correct"] for line in cases.read("r.jsonl")] == [True] * 4


class TestBatchRequests:
    """OpenAI Batch lines in, its output form out."""

    @pytest.fixture
    def requests(self, command):
        body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9}
        line = {"method": "POST", "url": "/v1/chat/completions", "body": body}
        command.write("in.jsonl", *({"custom_id": f"request-{n}", **line} for n in range(2)))
        command.script = (lambda call: Sample("hello", "stop"),)
        return command

    def test_answers_have_the_form_that_openais_guide_shows(self, requests):
        done = requests("generate", "--input", "in.jsonl", "--model", "small", "-o", "out.jsonl")

        assert done.code == 0, done.err
        assert "OpenAI Batch requests" in done.err
        first, second = requests.read("out.jsonl")
        assert (first["custom_id"], second["custom_id"]) == ("request-0", "request-1")
        assert first["error"] is None
        answered = first["response"]
        assert answered["status_code"] == 200
        assert answered["body"]["object"] == "chat.completion"
        assert answered["body"]["choices"][0]["message"] == {"role": "assistant", "content": "hello"}
        assert answered["body"]["usage"]["total_tokens"] > 0
        assert (
            requests("--json", "generate", "--input", "in.jsonl", "--model", "small", "-o", "out.jsonl").json["earlier"] == 2
        )

    def test_a_failed_request_has_an_error_and_is_tried_again(self, requests):
        requests.script, requests.remote = (ServerFailed("down"),), (ServerFailed("down"),)
        arguments = ("generate", "--input", "in.jsonl", "--model", "small", "-o", "out.jsonl")
        assert requests(*arguments).code == 1
        line = requests.read("out.jsonl")[0]
        assert (line["custom_id"], line["response"]) == ("request-0", None)
        assert line["error"]["code"] == line["error"]["type"]
        assert "down" in line["error"]["message"]
        requests.script = ("better",)
        assert requests(*arguments).code == 0
        assert [line["error"] for line in requests.read("out.jsonl")] == [None, None]

    def test_an_own_model_counts_without_the_option(self, requests):
        done = requests("generate", "--input", "in.jsonl", "-o", "out.jsonl")

        assert done.code == 1
        assert "gpt-4o-mini" in requests.read("out.jsonl")[0]["error"]["message"]


class TestPairs:
    ROWS = [{"question": f"q{n}", "confidence": n / 200, "is_correct": n % 7 > 0, "note": "x"} for n in range(200)]

    @pytest.mark.parametrize("name", ["p.parquet", "p.csv", "p.json", "p.jsonl"])
    def test_any_table_with_usual_names(self, command, name):
        """Only the values count: the certificate is the same in every format."""
        path = command.folder / name
        if name == "p.parquet":
            pq.write_table(pa.Table.from_pylist(self.ROWS), path)
        elif name == "p.csv":
            text = "".join(f"{r['question']};{r['confidence']};{r['is_correct']};x\n" for r in self.ROWS)
            path.write_text("question;confidence;is_correct;note\n" + text)
        elif name == "p.json":
            path.write_text(json.dumps(self.ROWS))
        else:
            command.write(name, *self.ROWS)
        arguments = ("calibrate", "--pairs", name, "--alpha", "0.3", "--id-column", "question")
        done = command(*arguments)

        assert done.code == 0, done.err
        assert "score: confidence, correct: is_correct, id: question" in done.err
        assert "200 calibration rows" in done.out or "calibration rows" in done.out

    def test_the_column_of_grades_may_be_named(self, command):
        command.write("p.jsonl", *({"score": n / 200, "verdict": n % 7 > 0} for n in range(200)))

        assert "no column 'correct'" in command("calibrate", "--pairs", "p.jsonl").err
        assert command("calibrate", "--pairs", "p.jsonl", "--alpha", "0.3", "--label-column", "verdict").code == 0
        assert "did you mean 'verdict'" in command("calibrate", "--pairs", "p.jsonl", "--label-column", "verdikt").err

    def test_a_misspelt_column_is_not_ignored(self, command):
        command.write("p.jsonl", {"score": 0.5, "correct": True, "teir": "small", "id": "1"})

        assert "did you mean 'tier'?" in command("calibrate", "--pairs", "p.jsonl").err
