"""The example that needs no GPU, no key and no network, as a stranger runs it."""

import csv
import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest

from tests.paths import ROOT

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="functions run without a network, which needs Linux"),
    # looked for, not imported: it reads its log level when it is, and other tests of this process set that first
    pytest.mark.skipif(importlib.util.find_spec("mistralrs") is None, reason="pip install '.[embedded]'"),
]

FLOW = ROOT / "examples" / "workflows" / "word_problems.yaml"
PROBLEMS = ROOT / "examples" / "workflows" / "problems.csv"


def run(output, *more):
    return called("run", "-o", output, *more)


def called(command, *more, table=PROBLEMS, code=0):
    words = [sys.executable, "-m", "workflow_composer", "-s", "development", "workflow", command, FLOW]
    given = [] if table is None else ["--input", table]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    found = subprocess.run([*words, *given, *more, "--json"], env=environ, capture_output=True, text=True, check=False)
    assert found.returncode == code, found.stderr
    return json.loads(found.stdout)


def test_the_word_problems(tmp_path):
    """Every answer has passed its check, some from the large model; a second run asks for nothing."""
    output = tmp_path / "solved.csv"
    first = run(output)
    assert (first["state"], first["rows"], first["done"]) == ("done", 12, 12)
    with output.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    models = {row["model"] for row in rows}
    assert models == {"small", "large"}
    assert first["calls"] == 12 + sum(row["model"] == "large" for row in rows)
    for row in rows:
        assert re.findall(r"\d+", row["explanation"])[-1] == row["answer"]
    written = output.read_bytes()
    second = run(output)
    assert (second["calls"], second["kept"]) == (0, 36)
    assert output.read_bytes() == written


def test_a_dry_run_calls_and_writes_nothing(tmp_path):
    """The prices are those of the small model alone, and of both."""
    told = run(tmp_path / "solved.csv", "--dry-run")
    assert (told["rows"], told["steps"]["solve"]["calls"]) == (12, 12)
    assert 0 < told["least"] < told["most"]
    assert list(tmp_path.iterdir()) == []


def test_a_try_shows_rows_and_forecasts_the_whole_table():
    """Two rows spread over twelve; what they used, times six."""
    told = called("try", "--rows", "2")
    assert (told["tried"], told["of"], [row["_state"] for row in told["rows"]]) == (2, 12, ["done", "done"])
    solve = told["forecast"]["solve"]
    assert solve["calls"]["mean"] == 6 * told["run"]["calls"]
    assert solve["dollars"]["mean"] == pytest.approx(6 * told["run"]["cost"])
    assert solve["calls"]["least"] <= solve["calls"]["mean"] <= solve["calls"]["most"]
    assert told["forecast"]["(all)"]["calls"]["mean"] == solve["calls"]["mean"]


def test_the_workflow_has_a_test_of_its_own(tmp_path):
    """As it is, and with a wrong expectation."""
    test = FLOW.with_name("word_problems.test.yaml")
    assert called("test", "--answers", test, table=None)["passed"]
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(test.read_text().replace("answer: 42", "answer: 43"))
    told = called("test", "--answers", wrong, table=None, code=1)
    assert told["differences"] == ["row 1: answer is 42, expected 43"]
