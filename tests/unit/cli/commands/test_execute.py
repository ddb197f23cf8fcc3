"""``execute``: planning, dry runs, resuming, grading, and what is said about wrong options and data."""

from __future__ import annotations

import json

import pytest

from tests.paths import ROOT
from workflow_composer.batch.run.planned_run import slug
from workflow_composer.cli.commands.execute import spread
from workflow_composer.errors import ServerFailed
from workflow_composer.types import Sample

ROUTE = "mv_cascade_small_k3_t0.7_remote_k1_t0.0"
ROUTE_OF_OLD = "mv_cascade_a_k3_t0.7_b_k1_t0.0"
TIERS = {"tiers": {"small": {"model": "small", "cost": 1.0}, "remote": {"model": "remote", "cost": 20.0}}}


def says(call):
    """Right about even sums, of three minds about odd ones."""
    number = int(call.request.messages[-1]["content"].split()[-1])
    numbers = range(call.first_sample, call.first_sample + call.samples)
    return [f"#### {number if number % 2 == 0 else number + n}" for n in numbers]


def knows(call):
    return "#### " + call.request.messages[-1]["content"].split()[-1]


@pytest.fixture
def data(command):
    """A data set of ten questions, and tiers of which the second always knows the answer."""
    (command.folder / "data").mkdir()
    command.write("data/sums.jsonl", *({"question": f"What is {n}", "answer": f"#### {n}"} for n in range(1, 11)))
    command.script, command.remote, command.profile = (says,), (knows,), TIERS
    return command


def results(command, *parts):
    place = command.folder.joinpath("results", *parts, "results.jsonl")
    return [json.loads(line) for line in place.read_text().splitlines()]


def test_rows_go_through_the_cascade_and_are_graded(data):
    done = data("--json", "execute", "--routes", ROUTE, "--datasets", "sums")
    assert done.code == 0, done.err
    (run,) = done.json
    assert (run["rows"], run["errors"], run["accuracy"]) == (10, 0, 1.0)
    assert run["shares"] == {"small": 0.5, "remote": 0.5}
    rows = results(data, "sums", ROUTE)
    assert [row["row"] for row in rows] == list(range(10))
    assert [len(row["tiers"]) for row in rows] == [2, 1] * 5
    assert rows[0]["tiers"][0]["confidence"] == pytest.approx(1 / 2)
    assert sum(row["cost"] for row in rows) == pytest.approx(run["cost"])


def test_a_dry_run_plans_and_calls_no_model(data):
    done = data("execute", "--routes", ROUTE, "remote", "--datasets", "sums", "--dry-run")
    assert done.code == 0, done.err
    assert "sums: 10 questions" in done.out
    assert "small" in done.out
    assert all(not backend.calls for backend in data.made)
    assert not (data.folder / "results").exists()


def test_a_dry_run_without_a_probe_says_that_nothing_is_known(data):
    policies = ["adaptive_k_sampling", "cost_aware_escalation", "entropy_aware_escalation"]
    options = ["--probing-dataset", "sums", "--datasets", "sums", "--dry-run"]
    done = data("--json", "execute", "--policies", *policies, *options)
    assert done.code == 0, done.err
    assert set(done.json["sums"]) == set(policies)
    assert "no probe has been trained on sums" in done.err
    assert all(not backend.calls for backend in data.made)


def test_the_old_name_of_the_policies_works_the_same_and_is_shown_nowhere(data):
    """Mixed with the new one, too, in the order of the command line."""
    rest = ["--datasets", "sums", "--dry-run"]
    found = {
        data("--json", "execute", *options, *rest).out
        for options in (
            ["--policies", "cascade", "plain:small", "plain"],
            ["--strategies", "cascade", "plain:small", "plain"],
            ["--strategies", "cascade", "plain:small", "--policies=plain"],
            ["--policies", "cascade", "--strategies=plain:small", "--policies", "plain"],
        )
    }
    assert [list(json.loads(out)["sums"]) for out in found] == [["cascade", "plain:small", "plain"]]
    shown = data("execute", "--help").out
    assert ("--policies" in shown, "--strategies" in shown) == (True, False)


def test_run_again_it_answers_no_row_twice(data):
    arguments = ["--json", "execute", "--routes", ROUTE, "--datasets", "sums"]
    first = data(*arguments)
    calls = sum(len(backend.calls) for backend in data.made)
    again = data(*arguments)
    assert again.json[0]["earlier"] == again.json[0]["answered"] == 10
    assert again.json[0]["accuracy"] == first.json[0]["accuracy"]
    assert again.json[0]["cost"] == pytest.approx(first.json[0]["cost"])
    assert sum(len(backend.calls) for backend in data.made) == calls


def test_a_row_that_fails_is_a_row_with_an_error_and_is_tried_again(data):
    data.script = data.remote = (ServerFailed("500"),)
    failed = data("--json", "execute", "--routes", ROUTE, "--datasets", "sums")
    assert failed.code == 1
    assert failed.json[0]["errors"] == 10
    assert failed.json[0]["first_error"]["type"] == "AllCandidatesFailed"
    assert "row 0 failed: no model answered" in failed.err
    assert results(data, "sums", ROUTE)[0]["error"]["type"] == "AllCandidatesFailed"
    data.script, data.remote = (says,), (knows,)
    mended = data("--json", "execute", "--routes", ROUTE, "--datasets", "sums")
    assert (mended.code, mended.json[0]["errors"], mended.json[0]["answered"]) == (0, 0, 10)


def test_another_run_in_the_same_folder_is_refused_and_named(data):
    data("execute", "--routes", ROUTE, "--datasets", "sums")
    done = data("execute", "--routes", ROUTE, "--datasets", "sums", "--accept", "0.9")
    assert done.code == 2
    assert "target" in done.err


def test_the_runs_budget_is_that_of_all_policies_and_counts_what_was_spent_before(data):
    """It stops with its own exit code, its answers are in the results, and with more money it goes on."""
    prices = {"backend": "scripted", "input_price": 0.0, "output_price": 125_000.0}
    data.profile = {**TIERS, "models": {"small": prices, "remote": prices}}
    data.script = data.remote = ("#### 1",)  # two tokens: a quarter of a dollar
    arguments = ["execute", "--routes", "small", "remote", "--datasets", "sums", "--run-budget"]
    stopped = data(*arguments, "3.5", "--json")
    assert stopped.code == 6
    assert [(run["policy"], run["answered"]) for run in stopped.json] == [("small", 10), ("remote", 4)]
    assert (
        "the run budget of $3.50 is used up: $3.50 spent, 4 of 10 rows done" in json.loads(stopped.err)["error"]["message"]
    )
    assert len(results(data, "sums", "remote")) == 4

    assert data(*arguments, "3.5").code == 6
    done = data(*arguments, "5.0")
    assert done.code == 0
    assert "earlier runs have spent $3.50 of the run budget of $5.00" in done.err
    assert len(results(data, "sums", "remote")) == 10


def test_the_runs_budget_counts_a_policy_that_comes_later(data):
    """Where the first has rows to try again, the second's money is spent all the same."""
    prices = {"backend": "scripted", "input_price": 0.0, "output_price": 125_000.0}
    data.profile = {**TIERS, "models": {"small": prices, "remote": prices}}
    data.script, data.remote = (ServerFailed("500"),), ("#### 1",)
    assert data("execute", "--routes", "small", "remote", "--datasets", "sums").code == 1
    data.script = ("#### 1",)
    stopped = data("execute", "--routes", "small", "remote", "--datasets", "sums", "--run-budget", "3.0")
    assert stopped.code == 6
    assert "$3.00 spent, 2 of 10 rows done" in stopped.err


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        (["--accept", "0.3"], lambda row: len(row["tiers"]) == 1),
        (["--no-texts"], lambda row: row["tiers"][0]["texts"] == []),
        (["--stopping", "fixed"], lambda row: row["tiers"][0]["samples"] == 3),
        (["--measure", "score"], lambda row: row["tiers"][0]["confidence"] is None),
        (["--budget", "0.000001"], lambda row: (row["error"] or {}).get("type") == "BudgetExceeded"),
        (["--extract", "boxed"], lambda row: row["answer"] is None),
        (["--draw", "at_once", "--stopping", "fixed"], lambda row: row["tiers"][0]["samples"] == 3),
    ],
)
def test_every_option_changes_the_run(data, options, seen):
    data("execute", "--routes", ROUTE, "--datasets", "sums", "--output", "plain/results", "--limit", "1")
    plain = json.loads((data.folder / "plain/results/sums" / ROUTE / "results.jsonl").read_text())
    data("execute", "--routes", ROUTE, "--datasets", "sums", "--limit", "1", *options)
    (row,) = results(data, "sums", ROUTE)
    assert seen(row), row
    assert options[0] == "--draw" or not seen(plain)


def test_texts_are_kept_unless_they_are_left_out(data):
    """The option of old that asked for them is still taken."""
    for number, option in enumerate(([], ["--texts"], ["--no-texts"])):
        folder = f"run{number}"
        data("execute", "--routes", "remote", "--datasets", "sums", "--limit", "1", "--output", folder, *option)
        row = json.loads((data.folder / folder / "sums" / "remote" / "results.jsonl").read_text())
        assert row["tiers"][0]["texts"] == ([] if option == ["--no-texts"] else ["#### 1"])


def test_labels_in_words_are_graded_by_short_texts(data):
    """Where a model answers in a sentence, that is told, and what to do about it."""
    pairs = [
        ("Paris.", "Paris"),
        ("Everybody who has been there knows the city of the seven hills, and so do I, by now.", "Rome"),
        ("Oslo", "Bergen"),
    ]
    data.write("data/capitals.jsonl", *({"question": text, "answer": label} for text, label in pairs))
    data.remote = (lambda call: call.request.messages[-1]["content"],)
    done = data("execute", "--routes", "remote", "--datasets", "capitals")
    assert "accuracy 33.3%" in done.out
    assert "capitals, remote: 1 of 3 answers could not be read; they count as wrong" in done.err
    assert "--extract" in done.err
    assert "The answer is 18." in done.err
    assert "max-tokens" not in done.err
    rows = results(data, "capitals", "remote")
    assert [row["answer"] for row in rows] == ["Paris", None, "Oslo"]
    assert rows[1]["tiers"][0]["texts"] == [pairs[1][0]]


def test_answers_that_were_cut_off_are_told_apart_with_their_own_remedy(data):
    """They count as wrong, whatever could be read in them."""
    data.remote = (Sample("#### 1", "length"),)
    done = data("execute", "--routes", "remote", "--datasets", "sums", "--limit", "2")
    assert "2 of 2 answers could not be read" in done.err
    assert "2 of them reached the token limit: raise --max-tokens" in done.err
    assert "--extract" not in done.err
    (run,) = data("--json", "execute", "--routes", "remote", "--datasets", "sums", "--limit", "2").json
    assert (run["accuracy"], run["unreadable"], run["cut_off"]) == (0.0, 2, 2)
    row = results(data, "sums", "remote")[0]
    assert (row["answer"], row["accepted"], row["tiers"][0]["cut_off"]) == (None, False, 1)


def test_an_accuracy_of_zero_is_explained(data):
    """By what was read first, and where the texts are."""
    data.remote = ("So it is 999.",)
    done = data("execute", "--routes", "remote", "--datasets", "sums")
    assert "none of 10 answers is right; the first one extracted is '999'" in done.err
    assert "results.jsonl" in done.err
    assert "none of" not in data("execute", "--routes", "small", "--datasets", "sums").err


def test_fields_reach_the_models(data):
    options = ("--system", "Be brief.", "--max-tokens", "9", "--stop", "Question:")
    data("execute", "--routes", "small", "--datasets", "sums", "--limit", "1", *options)
    (call,) = [call for backend in data.made for call in backend.calls]
    assert call.request.messages[0] == {"role": "system", "content": "Be brief."}
    assert (call.request.max_tokens, call.request.temperature, call.request.stop) == (9, 0.0, ("Question:",))


def test_limit_takes_the_first_rows_and_baselines_add_every_tier(data):
    done = data("--json", "execute", "--baselines", "--datasets", "sums", "--limit", "4", "--k", "3")
    assert {run["policy"]: run["rows"] for run in done.json} == {
        "small": 4, "remote": 4, "mv_small_k3_t0.7": 4, "mv_remote_k3_t0.7": 4
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--datasets", "sums"], "--policies or --routes"),
        (["--routes", ROUTE], "--datasets"),
        (["--routes", "mv_small_k0", "--datasets", "sums"], "at 'k0'"),
        (["--routes", "mv_smal_k3", "--datasets", "sums"], "did you mean 'small'"),
        (["--routes", ROUTE, "--datasets", "sumz"], "did you mean sums?"),
        (["--policies", "adaptive_k", "--datasets", "sums"], "adaptive_k_sampling"),
        (["--policies", "adaptive_k_sampling", "--datasets", "sums"], "--probing-dataset"),
        (["--routes", ROUTE, "--replay", "none.jsonl"], "none.jsonl"),
        (["--routes", ROUTE, "--datasets", "sums", "--stopping", "beta", "--level", "7"], "level"),
        (["--routes", ROUTE, "--datasets", "sums", "sums:test"], "sums"),
        (["--policies", "cascade", "--datasets", "sums", "--probe", "none.json"], "none.json"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_paid_for(data, arguments, said):
    done = data("execute", *arguments)
    assert done.code in (2, 3), done
    assert said in done.err
    assert "Traceback" not in done.err
    assert all(not backend.calls for backend in data.made)


def test_lists_may_be_written_both_ways():
    assert spread(["--datasets", "a", "b", "--json"]) == ["--datasets", "a", "--datasets", "b", "--json"]
    assert spread(["--datasets", "a", "--datasets", "b"]) == ["--datasets", "a", "--datasets", "b"]
    assert spread(["--datasets=a", "--k", "3", "--", "--routes", "x", "y"]) == [
        "--datasets=a", "--k", "3", "--", "--routes", "x", "y"
    ]  # fmt: skip


def test_folders_are_named_readably_and_apart():
    assert slug(ROUTE) == ROUTE
    assert slug("a/b") != slug("a_b")
    assert slug("Qwen/Qwen2.5").startswith("Qwen_Qwen2.5-")
    assert len(slug("x" * 300)) < 120
    assert slug("..") not in {"", ".", ".."}


def test_the_samples_of_a_probe_are_paid_from_the_runs_budget(data):
    """Where it does not pay for them, no probe is made of the few there are."""
    prices = {"backend": "scripted", "input_price": 0.0, "output_price": 125_000.0}
    data.profile = {**TIERS, "models": {"small": prices, "remote": prices}}
    options = ["--policies", "adaptive_k_sampling", "--probing-dataset", "sums", "--datasets", "sums"]
    done = data("execute", *options, "--run-budget", "2.0")
    assert done.code == 6
    assert "2 of 10 rows done" in done.err
    assert not list((data.folder / "results" / "probes").glob("*.json"))


ADAPTIVE = ["adaptive_k_sampling", "cost_aware_escalation", "entropy_aware_escalation"]


@pytest.fixture
def long(data):
    """A data set long enough for a probe to learn from."""
    data.write("data/many.jsonl", *({"question": f"What is {n}", "answer": f"#### {n}"} for n in range(1, 81)))
    return data


def test_a_probe_is_trained_once_and_used_by_adaptive_policies(long):
    options = ["--probing-dataset", "many", "--datasets", "sums", "--probing-rows", "60"]
    done = long("--json", "execute", "--policies", *ADAPTIVE, *options)
    assert done.code == 0, done.err
    assert [run["policy"] for run in done.json] == ADAPTIVE
    assert "trained on 60 rows of many" in done.err
    (probe,) = (long.folder / "results" / "probes").glob("*.json")
    calls = sum(len(backend.calls) for backend in long.made)
    again = long("execute", "--policies", *ADAPTIVE, *options, "--dry-run")
    assert (again.code, sum(len(backend.calls) for backend in long.made)) == (0, calls)
    saved = long("execute", "--policies", *ADAPTIVE, "--probe", str(probe), "--datasets", "many", "--dry-run")
    assert saved.code == 0, saved.err
    assert "no probe" not in saved.err


def test_a_recording_trains_its_probe_without_any_model(command):
    lines = [
        {"question": f"q{q}", "model": model, "sample": n, "answer": f"#### {q % 3}", "correct": good, "tokens": 3}
        for q in range(80)
        for model, good in (("small", q % 2 == 0), ("large", True))
        for n in range(9)
    ]
    path = command.write("own.jsonl", *lines)
    options = ["--replay", path, "--probing-dataset", "own", "--probing-rows", "60"]
    done = command("--json", "execute", "--policies", *ADAPTIVE, *options, "--dry-run")
    assert done.code == 0, done.err
    assert set(done.json["own"]) == set(ADAPTIVE)
    assert "trained on" in done.err


def test_a_profile_gives_a_recording_its_tiers_and_prices(command):
    lines = [
        {"question": f"q{q}", "model": model, "sample": n, "answer": "#### 1", "correct": True, "tokens": 1000}
        for q in range(3)
        for model in ("big", "tiny")
        for n in range(2)
    ]
    path = command.write("own.jsonl", *lines)
    (command.folder / "mine.yaml").write_text(
        "profile_name: mine\nmodels:\n  tiny: {backend: fake}\n  b: {backend: fake, model: big}\n"
        "tiers:\n  t: {model: tiny, cost: 1.0}\n  b: {model: b, cost: 5.0}\n"
    )
    route = "mv_cascade_t_k2_t0.7_b_k1_t0.0"
    arguments = ["--json", "-s", "mine.yaml", "execute", "--replay", path, "--routes", route, "b", "tiny"]
    done = command(*arguments)
    assert done.code == 0, done.err
    costs = {run["policy"]: run["cost"] for run in done.json}
    assert costs["b"] == pytest.approx(3 * 1000 * 5.0 / 1e6)
    assert costs["tiny"] == pytest.approx(3 * 1000 * 1.0 / 1e6)
    assert costs[route] == pytest.approx(2 * costs["tiny"])


def test_a_recording_without_any_of_the_profiles_tiers_is_an_error(command):
    line = {"question": "q", "model": "other", "sample": 0, "answer": "#### 1", "correct": True, "tokens": 1}
    path = command.write("own.jsonl", line)
    done = command("-s", "development", "execute", "--replay", path, "--routes", "other")
    assert done.code == 2
    assert "has no answers of the tiers of 'development', only of other" in done.err


def test_more_samples_than_were_recorded_is_a_row_with_an_error(command):
    line = {"question": "q", "model": "m", "sample": 0, "answer": "#### 1", "correct": True, "tokens": 1}
    path = command.write("own.jsonl", line)
    done = command("--json", "execute", "--replay", path, "--routes", "mv_m_k5_t0.7")
    assert (done.code, done.json[0]["errors"]) == (1, 1)
    (row,) = results(command, "own", "mv_m_k5_t0.7")
    assert "has 1 answers of 'm'" in row["error"]["message"]


def test_a_journal_of_an_earlier_version_is_gone_on_with(command):
    """What a run is has the same words as before, and so have its rows."""
    old = ROOT / "tests" / "unit" / "storage" / "written_before" / "executed"
    command.write("own.jsonl", (old / "own.jsonl").read_bytes())
    place = command.folder / "results" / "own" / ROUTE_OF_OLD
    place.mkdir(parents=True)
    before = (old / "journal.jsonl").read_bytes()
    (place / "journal.jsonl").write_bytes(before)
    options = ["--replay", "own.jsonl", "--routes", ROUTE_OF_OLD, "--budget", "1", "--system", "Be brief."]
    done = command("--json", "execute", *options)
    assert done.code == 0, done.err
    assert (done.json[0]["earlier"], done.json[0]["answered"]) == (3, 6)
    assert (place / "journal.jsonl").read_bytes().startswith(before)


def asked(data):
    """How many calls all models were sent so far."""
    return sum(len(backend.calls) for backend in data.made)


def test_a_pilot_grows_and_pays_only_for_the_rows_that_are_new(data):
    arguments = ["--json", "execute", "--routes", "remote", "--datasets", "sums"]
    assert data(*arguments, "--limit", "3").json[0]["answered"] == 3
    assert asked(data) == 3
    grown = data(*arguments, "--limit", "6").json[0]
    assert (grown["earlier"], grown["answered"], asked(data)) == (3, 6, 6)
    whole = data(*arguments).json[0]
    assert (whole["rows"], whole["earlier"], asked(data)) == (10, 6, 10)
    assert [row["answer"] for row in results(data, "sums", "remote")] == [str(n) for n in range(1, 11)]
    lower = data(*arguments, "--limit", "2").json[0]
    assert (lower["rows"], lower["answered"], asked(data)) == (2, 2, 10)
    assert len(results(data, "sums", "remote")) == 2


def test_rows_that_were_added_and_have_changed_their_order_are_not_paid_for_again(data):
    arguments = ["--json", "execute", "--routes", "remote", "--datasets", "sums"]
    data(*arguments)
    order = [12, 7, 3, 3, 10, 1, 2, 4, 5, 6, 8, 9, 11]
    data.write("data/sums.jsonl", *({"question": f"What is {n}", "answer": f"#### {n}"} for n in order))
    again = data(*arguments)
    assert again.code == 0, again.err
    assert (again.json[0]["earlier"], again.json[0]["answered"], again.json[0]["accuracy"]) == (10, 13, 1.0)
    assert asked(data) == 13
    rows = results(data, "sums", "remote")
    assert [row["answer"] for row in rows] == [str(n) for n in order]
    assert [row["question"] for row in rows] == [f"What is {n}" for n in order]
    assert data(*arguments).json[0]["earlier"] == 13


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"question": "What is 1", "answer": "#### 1"}], "rows that the data set no longer has"),
        ([{"question": f"What is {n}", "answer": "#### 0"} for n in range(1, 11)], "the label of row 0 has changed"),
    ],
)
def test_rows_that_were_taken_away_or_have_other_labels_are_refused(data, rows, said):
    arguments = ["execute", "--routes", "remote", "--datasets", "sums"]
    data(*arguments)
    data.write("data/sums.jsonl", *rows)
    done = data(*arguments)
    assert (done.code, asked(data)) == (2, 10)
    assert said in done.err


def test_a_model_that_means_something_else_is_refused_and_a_cheaper_server_is_not(data):
    """What answers depend on counts; prices, time limits and other models do not."""
    arguments = ["execute", "--routes", "remote", "--datasets", "sums", "--limit"]
    data(*arguments, "5")
    scripted = {"backend": "scripted"}
    data.profile = {**TIERS, "models": {"small": scripted, "remote": {**scripted, "model": "other-7B"}}}
    done = data(*arguments, "6")
    assert done.code == 2
    assert "profile.models.remote.model was 'remote' and is 'other-7B'" in done.err
    priced = {**scripted, "input_price": 1.0}
    data.profile = {**TIERS, "models": {"small": {**scripted, "model": "unused"}, "remote": priced, "more": scripted}}
    assert data(*arguments, "6", "--timeout", "60").code == 0


def test_what_answers_hold_is_for_their_owner_only(data):
    data("execute", "--routes", "remote", "--datasets", "sums")
    folder = data.folder / "results" / "sums" / "remote"
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir() if not path.name.startswith(".")} == {0o600}


def test_a_dry_run_without_policies_applies_all_that_can_plan(data):
    """Those that need a probe only where there is one."""
    done = data("--json", "execute", "--datasets", "sums", "--dry-run")
    assert done.code == 0, done.err
    assert set(done.json["sums"]) == {"plain", "majority_vote", "cascade"}
    untrained = data("--json", "execute", "--datasets", "sums", "--dry-run", "--probing-dataset", "sums")
    assert set(untrained.json["sums"]) == {"plain", "majority_vote", "cascade"}
    assert all(not backend.calls for backend in data.made)


def test_a_probe_is_trained_alone_and_lets_a_dry_run_plan_with_every_policy(long):
    arguments = ["execute", "--probing-dataset", "many", "--probing-rows", "60"]
    trained = long(*arguments, "--train-probe")
    assert trained.code == 0, trained.err
    assert "probe: results/probes/many-" in trained.err
    assert [path.name for path in (long.folder / "results").iterdir()] == ["probes"]
    asked_before = asked(long)
    done = long(*arguments, "--datasets", "sums", "--dry-run")
    assert (done.code, asked(long)) == (0, asked_before), done.err
    for name in ("adaptive_k_sampling", "cost_aware_escalation", "entropy_aware_escalation", "majority vote", "greedy"):
        assert name in done.out
    assert "routes of adaptive_k_sampling:" in done.out
    shard = long(*arguments, "--datasets", "sums", "--policies", "adaptive_k_sampling", "--shard", "1/2")
    assert shard.code == 0, shard.err


def test_shards_do_not_each_train_a_probe(data):
    options = ["--policies", "adaptive_k_sampling", "--probing-dataset", "sums", "--datasets", "sums", "--shard", "1/2"]
    done = data("execute", *options)
    assert (done.code, asked(data)) == (2, 0)
    assert "--train-probe" in done.err


@pytest.mark.parametrize("wrong", [[], ["--probing-dataset", "sums", "--dry-run"], ["--probe", "p.json"]])
def test_training_a_probe_needs_its_data(data, wrong):
    assert data("execute", "--train-probe", *wrong).code == 2


def test_columns_that_are_named_are_kept_with_the_answers(data):
    data.write("data/more.jsonl", {"question": "What is 2", "answer": "2", "topic": ["sums"], "year": 2020, "other": "x"})
    for door in (["execute", "--routes", "remote"], ["record", "-o", "own.jsonl", "--tiers", "remote", "--no-logprobs"]):
        assert data(*door, "--datasets", "more", "--keep", "topic", "--keep", "year").code == 0
    kept = {"topic": ["sums"], "year": 2020}
    assert results(data, "more", "remote")[0]["columns"] == data.read("own.jsonl")[0]["columns"] == kept
    options = ["--input", "data/more.jsonl", "--output", "out.jsonl", "--model", "remote"]
    assert data("generate", *options, "--keep", "year").code == 0
    assert data.read("out.jsonl")[0]["columns"] == {"year": 2020}
    assert data("generate", *options, "--keep", "topic").code == 0
    assert data.read("out.jsonl")[0]["columns"] == {"topic": ["sums"]}
    done = data("execute", "--routes", "remote", "--datasets", "more", "--keep", "topics")
    assert (done.code, "did you mean 'topic'" in done.err) == (2, True)
