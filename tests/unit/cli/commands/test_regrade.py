"""``regrade``: kept answers are read, compared and voted over again; nothing is asked, and the run's files stay."""

from __future__ import annotations

import json

import pytest

from workflow_composer.types import Sample

UNREADABLE = 7
CASCADE = "mv_cascade_small_k3_t0.7_remote_k1_t0.0"
TIERS = {"tiers": {"small": {"model": "small", "cost": 1.0}, "remote": {"model": "remote", "cost": 20.0}}}


@pytest.fixture
def batch(command):
    """A data set of six sums."""
    (command.folder / "data").mkdir()
    command.write("data/sums.jsonl", *({"question": f"What is {n}", "answer": str(n), "id": f"s{n}"} for n in range(1, 7)))
    command.profile = TIERS
    return command


def number_of(call):
    return int(call.request.messages[-1]["content"].split()[-1])


def files_of(folder):
    """The bytes of a folder's files, without those of `regrade`."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "regraded" not in str(path)}


def calls(command):
    return sum(len(backend.calls) for backend in command.made)


def execute(command, *options):
    done = command("--json", "execute", "--datasets", "sums", *options)
    assert done.code in {0, UNREADABLE}, done.err
    return done.json[0]


def regrade(command, *arguments, code=0):
    before, asked = files_of(command.folder), calls(command)
    done = command("regrade", *arguments, "--json")
    assert done.code == code, done.err
    assert calls(command) == asked
    assert {path: found for path, found in files_of(command.folder).items() if path in before} == before
    return done


def results(command, *parts):
    place = command.folder.joinpath(*parts, "results.jsonl")
    return [json.loads(line) for line in place.read_text().splitlines()]


def test_another_extraction_finds_the_answers_that_were_there(batch):
    batch.remote = (lambda call: [f"~{number_of(call)}~ (1 of 9 tries)"],)
    assert execute(batch, "--routes", "remote", "--extract", "boxed")["accuracy"] == 0.0
    (found,) = regrade(batch, "results", "--extract", "python:tests.unit.cli.commands.test_regrade:of_result").json
    assert (found["rows"], found["changed"], found["further"]) == (6, 6, 0)
    assert found["before"] == {"graded": 6, "accuracy": 0.0, "unreadable": 6}
    assert found["after"] == {"graded": 6, "accuracy": 1.0, "unreadable": 0}
    rows = results(batch, "results", "regraded", "sums", "remote")
    assert [(row["row"], row["id"], row["answer"], row["label"]) for row in rows] == [
        (n - 1, f"s{n}", str(n), str(n)) for n in range(1, 7)
    ]
    assert (batch.folder / "results" / "regraded" / "sums" / "report.html").exists()


def of_result(text):
    """Read what stands between tildes."""
    found = text.partition("~")[2].partition("~")[0]
    return found or None


def test_a_vote_is_taken_again_and_decides_which_tier_answers(batch):
    """Three answers that are one number in two writings: text finds two, and the cascade went on; numbers find one."""
    batch.script = (lambda call: [f"#### {number_of(call)}{'.0' if n % 2 else ''}" for n in range(call.samples)],)
    batch.remote = (lambda call: ["#### 0"],)
    options = ["--compare", "text", "--accept", "0.9"]
    assert execute(batch, "--routes", CASCADE, *options)["shares"] == {"remote": 1.0}
    (found,) = regrade(batch, "results/sums", "--compare", "number").json
    assert (found["before"]["accuracy"], found["after"]["accuracy"], found["further"]) == (0.0, 1.0, 0)
    (row, *_) = results(batch, "results", "sums", "regraded", CASCADE)
    assert (row["tier"], row["accepted"], row["confidence"], len(row["tiers"])) == ("small", True, 1.0, 2)
    assert row["cost"] == results(batch, "results", "sums", CASCADE)[0]["cost"]


def test_rows_that_would_ask_a_further_tier_are_counted_and_keep_the_best_there_is(batch):
    batch.script = (lambda call: [f"#### {number_of(call)}{'.0' if n % 2 else ''}" for n in range(call.samples)],)
    assert execute(batch, "--routes", CASCADE)["shares"] == {"small": 1.0}
    (found,) = regrade(batch, "results", "--compare", "text", "--accept", "0.99").json
    assert found["further"] == 6
    assert not any(row["accepted"] for row in results(batch, "results", "regraded", "sums", CASCADE))


def test_what_is_not_changed_stays_the_same(batch):
    """Reading again as the run read gives its results; and what was read again can be read again."""
    batch.script = (lambda call: [f"#### {number_of(call) + n % 2 * (number_of(call) % 3)}" for n in range(call.samples)],)
    batch.remote = (lambda call: ["I do not know." if number_of(call) == 4 else f"#### {number_of(call)}"],)
    execute(batch, "--routes", CASCADE, "remote")
    found = regrade(batch, "results").json
    assert [each["changed"] for each in found] == [0, 0]
    for name in (CASCADE, "remote"):
        again = results(batch, "results", "regraded", "sums", name)
        assert again == results(batch, "results", "sums", name)
    (once_more,) = regrade(batch, "results/regraded/sums/remote", "-o", "more").json
    assert once_more["changed"] == 0


def test_an_answer_that_was_cut_off_stays_unreadable(batch):
    batch.remote = (Sample("so far 12", "length"),)
    execute(batch, "--routes", "remote")
    (found,) = regrade(batch, "results").json
    assert found["after"]["unreadable"] == 6


@pytest.mark.parametrize("model", ["small", CASCADE])
def test_the_answers_of_generate_are_read_again(batch, model):
    batch.profile = {**TIERS, "routers": ["cascade", "provider"]}
    batch.script = (lambda call: [f"~{number_of(call)}~ The answer is 99."] * call.samples,)
    options = ["--input", "data/sums.jsonl", "--output", "out.jsonl", "--model", model, "--json"]
    assert batch("generate", *options).json["accuracy"] == 0.0
    (found,) = regrade(batch, "out.jsonl", "--extract", "python:tests.unit.cli.commands.test_regrade:of_result").json
    assert (found["before"]["accuracy"], found["after"]["accuracy"]) == (0.0, 1.0)
    lines = batch.read("out.regraded/out.jsonl")
    assert [(line["index"], line["id"], line["answer"], line["correct"]) for line in lines] == [
        (n - 1, f"s{n}", str(n), True) for n in range(1, 7)
    ]


def test_a_recording_is_read_again_for_each_of_its_models(batch):
    batch.script = (lambda call: [f"~{number_of(call)}~ The answer is 99."],)
    batch.remote = (lambda call: [f"#### {number_of(call)}"],)
    done = batch("record", "--datasets", "sums", "-o", "answers.jsonl", "--no-logprobs")
    assert done.code == 0, done.err
    how = ["--extract", "python:tests.unit.cli.commands.test_regrade:of_result", "--extract", "hashes"]
    found = regrade(batch, "answers.jsonl", *how).json
    told = {each["name"]: (each["before"]["accuracy"], each["after"]["accuracy"]) for each in found}
    assert told == {"small": (0.0, 1.0), "remote": (1.0, 1.0)}
    assert all(line["correct"] for line in batch.read("answers.regraded/answers.jsonl"))
    assert (
        batch("execute", "--replay", "answers.regraded/answers.jsonl", "--routes", "small", "--json").json[0]["accuracy"]
        == 1
    )


def test_without_texts_it_says_what_to_do(batch):
    batch.remote = (lambda call: ["#### 1"],)
    execute(batch, "--routes", "remote", "--no-texts")
    done = regrade(batch, "results", code=2)
    assert "texts of row 0 were not kept" in json.loads(done.err)["error"]["message"]


def test_the_runs_own_folder_and_what_is_no_run_are_refused(batch):
    batch.remote = (lambda call: ["#### 1"],)
    execute(batch, "--routes", "remote")
    assert "holds the run itself" in regrade(batch, "results/sums/remote", "-o", "results/sums/remote", code=2).err
    assert "no run with kept answers" in regrade(batch, "data", code=2).err
    assert "holds no kept answers" in regrade(batch, "data/sums.jsonl", code=2).err


def test_the_answers_of_ask_are_read_by_their_form_or_in_another_way(batch):
    """Also those that did not have the form; the table that was written stays."""
    batch.write("texts.csv", b"title,label\none,yes\ntwo,no\nthree,no\n")
    said = {"one": "Yes.", "two": "yes", "three": "~no~ I would say"}
    batch.script = batch.remote = (lambda call: [said[call.request.messages[-1]["content"].split()[1]]] * call.samples,)
    batch.profile = {**TIERS, "task_routing": {"*": "remote"}}
    options = ["--prompt", "Judge {{ title }} now", "--choices", "yes,no", "--label-column", "label", "-o", "out.csv"]
    done = batch("ask", "texts.csv", *options)
    assert (batch.folder / "out.csv.journal").exists(), done.err
    (same,) = regrade(batch, "out.csv").json
    assert same["changed"] == 0
    assert same["before"]["accuracy"] == same["after"]["accuracy"]
    how = ["--extract", "python:tests.unit.cli.commands.test_regrade:of_result", "--extract", "whole"]
    (other,) = regrade(batch, "out.csv", *how, "-o", "other").json
    assert other["after"] == {"graded": 2, "accuracy": 0.5, "unreadable": 0}  # the third row was kept without its label
