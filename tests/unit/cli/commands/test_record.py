"""``record``: every tier asked once, graded, kept with log-probabilities; resumed, and honest about what failed."""

import json

import pytest

from workflow_composer.backends.recordings import Recording
from workflow_composer.types import Sample, TokenLogprob

SURE = Sample("1 + 2 = 3. #### 3", "stop", logprobs=(TokenLogprob("#### 3", -0.25, (("#### 3", -0.25), ("#### 4", -1.8))),))
ARGUMENTS = ("record", "--datasets", "sums", "--data-dir", ".", "-o", "answers.jsonl")


@pytest.fixture
def sums(command):
    """Two tiers and three labelled questions."""
    command.profile = {"tiers": {"cheap": {"model": "small"}, "strong": {"model": "remote"}}, "routers": ["provider"]}
    command.script = (SURE,)
    command.remote = (Sample("#### 5", "stop"),)
    command.write("sums.jsonl", *({"question": f"{n} and 2?", "answer": f"#### {n + 2}"} for n in (1, 2, 3)))
    return command


def test_every_tier_s_answer_to_every_question_is_kept_and_graded(sums):
    done = sums("--json", *ARGUMENTS)
    assert (done.code, done.json["answers"], done.json["errors"]) == (0, 6, 0)
    lines = sums.read("answers.jsonl")
    found = {(line["question"], line["model"]): line["correct"] for line in lines}
    assert found == {
        ("1 and 2?", "cheap"): True,
        ("2 and 2?", "cheap"): False,
        ("3 and 2?", "cheap"): False,
        ("1 and 2?", "strong"): False,
        ("2 and 2?", "strong"): False,
        ("3 and 2?", "strong"): True,
    }
    assert all(line["tokens"] > 0 for line in lines)
    assert all((line["cost"] or 0) > 0 if line["model"] == "cheap" else line["cost"] is None for line in lines), (
        "remote has no price"
    )


def test_what_could_not_be_read_is_told_and_so_is_what_was_cut_off(sums):
    """A recording to learn from must not hold them as wrong unnoticed."""
    sums.script, sums.remote = (Sample("I do not know.", "stop"),), (Sample("#### 3", "length"),)
    done = sums(*ARGUMENTS, "--no-logprobs")
    assert "6 of 6 answers could not be read" in done.err
    assert "3 of them reached the token limit: raise --max-tokens" in done.err
    assert not any(line["correct"] for line in sums.read("answers.jsonl"))


def test_a_recording_knows_what_was_cut_off_and_where_to_stop(sums):
    """So that a replay does not take half an answer for a whole one."""
    sums.script = (Sample("#### 3\n\nQuestion: And 5", "length"),)
    sums(*ARGUMENTS, "--no-logprobs", "--limit", "1", "--tiers", "cheap", "--stop", r"\n\nQuestion:")
    (line,) = sums.read("answers.jsonl")
    assert (line["finish_reason"], line["correct"]) == ("length", True)
    assert all(call.request.stop == ("\n\nQuestion:",) for backend in sums.made for call in backend.calls)


def test_log_probabilities_are_kept_with_their_alternatives(sums):
    sums(*ARGUMENTS, "--limit", "1", "--tiers", "cheap")
    (line,) = sums.read("answers.jsonl")
    assert line["logprobs"] == [{"token": "#### 3", "logprob": -0.25, "top": [["#### 3", -0.25], ["#### 4", -1.8]]}]


def test_what_comes_out_is_a_recording(sums):
    """As `execute --replay` and `calibrate` read it."""
    sums(*ARGUMENTS)
    recording = Recording(sums.folder / "answers.jsonl")
    assert recording.models == {"cheap": 3, "strong": 3}


def test_a_second_run_asks_only_for_what_is_missing(sums):
    sums(*ARGUMENTS, "--limit", "1")
    asked = sum(len(backend.calls) for backend in sums.made)
    done = sums("--json", *ARGUMENTS)
    assert (done.json["answers"], done.json["earlier"]) == (6, 2)
    assert sum(len(backend.calls) for backend in sums.made) == asked + 4
    assert len(sums.read("answers.jsonl")) == 6


def test_half_a_line_that_a_kill_has_left_is_written_anew(sums):
    sums(*ARGUMENTS)
    path = sums.folder / "answers.jsonl"
    path.write_bytes(path.read_bytes()[:-10])
    sums(*ARGUMENTS)
    assert len({(line["question"], line["model"]) for line in sums.read("answers.jsonl")}) == 6
    assert len(path.read_bytes().splitlines()) == 6


def test_a_foreign_line_is_refused_by_its_number_and_nothing_is_lost(sums):
    sums.write("answers.jsonl", {"other": 1})
    done = sums(*ARGUMENTS)
    assert done.code == 2
    assert "answers.jsonl:1: unknown key 'other'" in done.err
    assert sums.read("answers.jsonl") == [{"other": 1}]


def test_answers_that_fail_are_counted_and_tried_again_by_the_next_run(sums):
    from workflow_composer.errors import BadRequest

    sums.remote = (BadRequest("no such thing"),)
    done = sums("--json", *ARGUMENTS)
    assert (done.code, done.json["answers"], done.json["errors"]) == (1, 3, 3)
    assert "no such thing" in done.json["first_error"]
    sums.remote = (Sample("#### 5", "stop"),)
    assert sums("--json", *ARGUMENTS).json["answers"] == 6


def test_a_question_without_a_label_is_refused_before_anything_is_asked(sums):
    sums.write("sums.jsonl", {"question": "1 and 2?", "answer": "#### 3"}, {"question": "2 and 2?"})
    done = sums(*ARGUMENTS)
    assert done.code == 2
    assert "row 1 has no label" in done.err
    assert not any(backend.calls for backend in sums.made)


def test_the_same_question_twice_is_asked_once(sums):
    row = {"question": "1 and 2?", "answer": "#### 3"}
    sums.write("sums.jsonl", row, row)
    assert sums("--json", *ARGUMENTS).json["answers"] == 2


def test_skip_and_limit_choose_rows(sums):
    sums(*ARGUMENTS, "--skip", "1", "--limit", "1", "--tiers", "cheap")
    assert [line["question"] for line in sums.read("answers.jsonl")] == ["2 and 2?"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--datasets", "none"), "none"),
        (("--tiers", "nobody"), "nobody"),
        (("--skip", "9"), "no rows to record"),
        (("-o", "missing/answers.jsonl"), "missing/answers.jsonl"),
        (("-o", "."), "cannot write"),
    ],
)
def test_wrong_usage_is_told_in_a_sentence(sums, arguments, message):
    done = sums(*ARGUMENTS, *arguments)
    assert done.code in (2, 3)
    assert message in done.err
    assert "Traceback" not in done.err


def test_infinite_log_probabilities_become_what_servers_write_for_them(sums):
    sums.script = (Sample("#### 3", "stop", logprobs=(TokenLogprob("x", float("-inf")),)),)
    sums(*ARGUMENTS, "--limit", "1", "--tiers", "cheap")
    assert json.loads((sums.folder / "answers.jsonl").read_text())["logprobs"][0]["logprob"] == -9999.0


def test_at_the_runs_budget_it_stops_and_goes_on_with_a_higher_one(sums):
    """What the answers in the recording have cost counts, and is said."""
    prices = {"backend": "scripted", "input_price": 0.0, "output_price": 250_000.0}
    sums.profile["models"] = {"small": prices, "remote": prices}
    sums.script = sums.remote = (Sample("3", "stop"),)
    stopped = sums(*ARGUMENTS, "--run-budget", "1.0")
    assert stopped.code == 6
    assert "the run budget of $1.00 is used up: $1.00 spent, 4 of 6 rows done" in stopped.err
    assert len(sums.read("answers.jsonl")) == 4
    assert sums(*ARGUMENTS, "--run-budget", "1.0").code == 6
    done = sums(*ARGUMENTS, "--run-budget", "2.0")
    assert done.code == 0
    assert "earlier runs have spent $1.00 of the run budget of $2.00" in done.err
    assert len(sums.read("answers.jsonl")) == 6


def test_the_budget_of_an_answer_reaches_the_request(sums):
    sums(*ARGUMENTS, "--budget", "900")
    assert {call.request.budget for backend in sums.made for call in backend.calls} == {900}
