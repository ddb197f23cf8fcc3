"""Recorded answers of real models through `execute --replay`: the published figures come out."""

import json
import subprocess
import sys

import pytest

from tests.paths import DATA, ROOT

HAIKU, OPUS = "anthropic/claude-haiku-4-5", "anthropic/claude-opus-4-8"
GATE = f"mv_cascade_{HAIKU}_k1_t0.0_{OPUS}_k1_t0.0"
SYSTEMS = {"6b_finetuning": 0.2168, "6b_verification": 0.3904, "175b_finetuning": 0.3472, "175b_verification": 0.5625}
QWEN = "mv_Qwen2.5-Math-Instruct_k8_t0.7"

pytestmark = pytest.mark.skipif(not (DATA / "dshakes+firstpass").is_dir(), reason=f"no recorded answers in {DATA}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("replayed")


def replay(folder, collection, *arguments):
    """Convert a collection, run it, and return the summary of each run by its route."""
    recording = folder / f"{collection}.jsonl.gz"
    if not recording.exists():
        script = [sys.executable, str(ROOT / "scripts" / "convert_recordings.py"), collection]
        subprocess.run([*script, "--data", str(DATA), "--output", str(recording)], check=True, capture_output=True)
    command = [sys.executable, "-m", "workflow_composer", "execute", "--json", "--replay", str(recording), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {run["policy"]: run for run in json.loads(done.stdout)}


def test_gsm8k_s_four_systems_have_their_published_accuracies(folder):
    runs = replay(folder, "gsm8k", "--routes", *SYSTEMS, "--output", "gsm8k")
    assert {name: round(run["accuracy"], 4) for name, run in runs.items()} == SYSTEMS
    assert all((run["rows"], run["errors"], run["graded"]) == (1319, 0, 1319) for run in runs.values())


def test_the_majority_of_eight_qwen_samples_is_right_as_often_as_published(folder):
    """.93, graded as the collection graded; sequential stopping reads the samples in order and changes nothing here."""
    runs = replay(folder, "qwen-math", "--routes", QWEN, "--stopping", "fixed", "--output", "majority")
    assert runs[QWEN]["accuracy"] == 0.93


def test_the_best_of_eight_by_the_reward_model_is_right_as_often_as_published(folder):
    runs = replay(folder, "qwen-math", "--routes", QWEN, "--measure", "score", "--output", "best")
    assert runs[QWEN]["accuracy"] == 0.94


def test_the_gate_cascade_has_its_published_accuracy_and_cost(folder):
    """Always cheap .7834 at $1.34, always top .9435 at $7.28, the cascade .9333 at $3.00."""
    options = ["--measure", "score", "--accept", "1.0", "--output", "gate"]
    runs = replay(folder, "firstpass-opus", "--routes", HAIKU, OPUS, GATE, *options)
    found = {name: (round(run["accuracy"], 4), round(run["cost"], 2)) for name, run in runs.items()}
    assert found == {HAIKU: (0.7834, 1.34), OPUS: (0.9435, 7.28), GATE: (0.9333, 3.00)}


def test_a_recording_of_any_number_of_tiers_and_samples_is_replayed_in_order(folder):
    """A small recording in the documented form: three tiers, five samples each; the second decides."""
    lines = [
        {"question": f"q{q}", "model": model, "sample": n, "answer": f"#### {answer}", "correct": answer == 4, "tokens": 2}
        for q in range(30)
        for model, answers in (("a", [1, 2, 3, 1, 2]), ("b", [4, 4, 5, 4, 4]), ("c", [4] * 5))
        for n, answer in enumerate(answers)
    ]
    path = folder / "own.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    route = "mv_cascade_a_k5_t0.7_b_k5_t0.7_c_k5_t0.7"
    command = [sys.executable, "-m", "workflow_composer", "execute", "--json", "--replay", str(path), "--routes", route]
    done = subprocess.run(
        [*command, "--accept", "0.6", "--output", "own", "--texts"], cwd=folder, capture_output=True, text=True, check=True
    )
    (run,) = json.loads(done.stdout)
    assert (run["accuracy"], run["shares"]) == (1.0, {"b": 1.0})
    rows = [json.loads(line) for line in (folder / run["folder"] / "results.jsonl").read_text().splitlines()]
    first, second = rows[0]["tiers"]
    assert first["texts"] == ["#### 1", "#### 2", "#### 3", "#### 1", "#### 2"]
    assert second["texts"] == ["#### 4", "#### 4", "#### 5", "#### 4"]  # now three of five agree
