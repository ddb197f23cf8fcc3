"""``execute`` and its report: the same figures in both, unknown costs, unreadable answers, all runs of the folder."""

from __future__ import annotations

import csv
import json
import re

import pytest

from tests.paths import DATA
from workflow_composer.errors import ServerFailed
from workflow_composer.types import Sample

ROUTELLM = DATA / "lm-sys+RouteLLM" / "routellm" / "evals" / "gsm8k" / "gsm8k_responses.csv"
GSM8K = DATA / "openai+grade-school-math" / "grade_school_math" / "data"
UNREADABLE = "..."
PROGRAM = "def shout(text):\n    return ' '.join(word.upper() for word in text.split() if word.isalpha() and word)\n"
PRICE = {"backend": "scripted", "input_price": 1000.0, "output_price": 1000.0}


@pytest.fixture
def data(command):
    """Forty questions; ``small`` and ``remote`` answer by scripts and have prices."""
    (command.folder / "data").mkdir()
    command.write("data/sums.jsonl", *({"question": f"What is {n}", "answer": f"#### {n}"} for n in range(40)))
    command.profile = {"models": {"small": PRICE, "remote": PRICE}}
    return command


def number(call):
    return int(call.request.messages[-1]["content"].split()[-1])


def knows(call):
    return f"#### {number(call)}"


def report(data):
    return (data.folder / "results/sums/report.md").read_text().replace("\\", "")


def run(data, *routes, **options):
    extra = [part for name, value in options.items() for part in (f"--{name}", value)]
    return data("execute", "--routes", *routes, "--datasets", "sums", *extra)


def test_terminal_results_and_report_give_the_same_accuracy(data):
    """Failed rows and unreadable answers count as wrong in each of them."""

    def some(call):
        n = number(call)
        if n < 4:
            raise ServerFailed("500")
        return UNREADABLE if n == 4 else f"#### {n + (n > 35)}"

    data.script = (some,)
    done = run(data, "small")
    assert "accuracy 77.5%" in done.out  # 4 failed, 1 unreadable, 4 wrong
    assert "| 77.5% (" in report(data)
    rows = data.read("results/sums/small/results.jsonl")
    assert sum(row["correct"] is True for row in rows) / sum(row["correct"] is not None for row in rows) == 0.775
    again = run(data, "small")
    assert "accuracy 77.5%" in again.out


def test_the_exit_code_tells_of_unreadable_answers(data):
    """More than five of a hundred; failed rows come first."""
    data.script = (lambda call: UNREADABLE if number(call) < 3 else knows(call),)
    done = run(data, "small")
    assert done.code == 7
    assert "sums, small: 3 of 40 answers could not be read" in done.err
    assert "small is not ranked" in report(data)
    data.script = (lambda call: UNREADABLE if number(call) < 2 else knows(call),)
    assert run(data, "small", output="few").code == 0

    def breaks(call):
        if number(call) == 39:
            raise ServerFailed("500")
        return UNREADABLE

    data.script = (breaks,)
    assert run(data, "small", output="both").code == 1


@pytest.mark.parametrize("text", ["", PROGRAM], ids=["no text", "a program"])
def test_an_answer_that_a_recording_has_graded_needs_no_reading(command, text):
    """Recorded verdicts on programs, or without the texts, make a whole run: nothing of it was to be read."""
    answers = [
        {"question": f"Program {n}", "model": "m", "sample": 0, "answer": text, "correct": n > 9, "tokens": 2}
        for n in range(40)
    ]
    path = command.write("graded.jsonl", *answers)
    done = command("--json", "execute", "--replay", path, "--routes", "m")
    (found,) = done.json
    assert (done.code, found["accuracy"], found["unreadable"]) == (0, 0.75, 0)
    assert "could not be read" not in done.err


def test_a_run_of_unreadable_answers_warns_once_where_nobody_can_be_asked(data):
    data.script = (UNREADABLE,)
    done = data("execute", "--routes", "small", "--datasets", "sums", "--in-flight", "1")
    assert done.err.count("the last 20 answers in a row could not be read") == 1
    assert len(data.read("results/sums/small/results.jsonl")) == 40


def test_cut_off_answers_are_counted_apart_in_the_report(data):
    data.script = (lambda call: Sample("So 2 + 2 is", "length") if number(call) < 2 else knows(call),)
    done = run(data, "small")
    assert "2 of them reached the token limit: raise --max-tokens" in done.err
    assert "2 of them reached their token limit" in report(data)


def test_a_missing_price_is_unknown_everywhere(data):
    data.profile["models"]["small"] = {"backend": "scripted"}
    data.script = data.remote = (knows,)
    done = data("--json", "execute", "--routes", "small", "remote", "--datasets", "sums")
    assert [(each["cost"] is None, each["cost_unknown_rows"]) for each in done.json] == [(True, 40), (False, 0)]
    assert {row["cost"] for row in data.read("results/sums/small/results.jsonl")} == {None}
    assert "cost unknown" in run(data, "small").out
    text = report(data)
    assert "$0" not in text
    assert "tokens ratio" in text


def test_a_price_of_nothing_is_known(data):
    """A model that is free of charge is not one without a price."""
    data.profile["models"]["small"] = {**PRICE, "input_price": 0.0, "output_price": 0.0}
    data.script = (knows,)
    assert "cost $0.00" in run(data, "small").out
    assert "free of charge" in report(data)


def test_the_report_has_all_runs_of_the_folder_and_what_they_rest_on(data):
    """A later command adds to the comparison; a pilot with fewer rows is told of."""
    data.script, data.remote = (lambda call: f"#### {number(call) + (number(call) % 2)}",), (knows,)
    assert run(data, "small").code == 0
    assert run(data, "remote").code == 0
    text = report(data)
    assert "1. remote 100.0%; 2. small 50.0%" in text
    assert "Command: workflow-composer execute --routes small --datasets sums" in text
    assert "Command: workflow-composer execute --routes remote --datasets sums" in text
    assert re.search(r"Data: sums, SHA-256 [0-9a-f]{12}", text)
    date = json.loads((data.folder / "results/sums/small/about.json").read_text())["date"]
    assert date.replace("T", " ").removesuffix("+00:00") in text

    assert run(data, "mv_small_k3", limit="5").code == 0
    text = report(data)
    assert "5 questions, 3 runs" in text
    assert run(data, "small").code == 0
    text = report(data)
    assert "40 questions, 2 runs" in text
    assert "mv_small_k3" in text


def test_a_resumed_run_keeps_its_date(data):
    data.script = (knows,)
    run(data, "small")
    place = data.folder / "results/sums/small/about.json"
    place.write_text(place.read_text().replace('"date": "20', '"date": "19'))
    run(data, "small")
    assert json.loads(place.read_text())["date"].startswith("19")


# ---------------------------------------------------------------------------------- recorded answers of real models


@pytest.mark.skipif(not ROUTELLM.exists() or not GSM8K.exists(), reason="the recorded answers are not here")
def test_the_recorded_verdicts_on_gsm8k_are_reproduced(command):
    """RouteLLM's table of Mixtral's and GPT-4's answers, graded by GSM8K's labels, with default options."""
    with ROUTELLM.open(newline="") as file:
        recorded = {row["prompt"].strip(): row for row in csv.DictReader(file)}
    questions = [json.loads(line)["question"].strip() for line in (GSM8K / "test.jsonl").read_bytes().splitlines()]
    models = "mistralai/Mixtral-8x7B-Instruct-v0.1", "gpt-4-1106-preview"
    options = ["--replay", str(ROUTELLM), "--datasets", "test", "--data-dir", str(GSM8K)]
    done = command("--json", "execute", *options, "--routes", *models)
    assert done.code == 0, done.err
    for model, summary in zip(models, done.json, strict=True):
        rows = command.read(f"{summary['folder']}/results.jsonl")
        assert len(rows) == summary["rows"] == 1319
        same = sum((recorded[questions[row["row"]]][model] == "True") is row["correct"] for row in rows)
        assert same / 1319 >= 0.96
        assert sum(row["answer"] is None for row in rows) <= 13
        assert summary["unreadable"] <= 13
    text = (command.folder / "results/test/report.md").read_text()
    ranking = next(line for line in text.splitlines() if line.startswith("- By right answers"))
    assert ranking.index("gpt-4") < ranking.index("Mixtral")
    assert "not told apart" not in ranking
    assert text.count("of 1,319 grades are those of the recording") == 2
