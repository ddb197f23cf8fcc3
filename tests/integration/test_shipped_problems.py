"""The shipped thousand problems through the command line: it finishes, with progress, as accurate as the model card says."""

import json
import re
import subprocess
import sys

import pytest

from tests.paths import CHECKPOINTS

PROBLEMS = CHECKPOINTS / "problems.jsonl"
ROW = re.compile(r"\| (\w+) \| [\d,]+ \| ([\d.]+)% \|")

pytestmark = [pytest.mark.embedded, pytest.mark.slow]


@pytest.mark.parametrize("model", ["small", "medium", "large"])
def test_the_accuracy_is_the_model_card_s(model, tmp_path):
    """All thousand rows, greedy. Up to two answers may differ: sums in another order may turn a tie of two tokens."""
    stated = dict(ROW.findall((CHECKPOINTS / "README.md").read_text()))
    command = [sys.executable, "-m", "workflow_composer", "-s", "development", "generate", "--concurrency", "64"]
    command += ["--input", str(PROBLEMS), "--output", "answers.jsonl", "--json"]
    if model != "large":  # which the profile routes every task to
        command += ["--model", model]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["rows"], summary["errors"], summary["graded"]) == (1000, 0, 1000)
    assert abs(summary["accuracy"] - float(stated[model]) / 100) <= 0.002
    assert re.search(r"^\d+/1000 rows, accuracy [\d.]+%", done.stderr, re.M)
