"""docs/calibration.md says what the code does."""

from __future__ import annotations

import json
import re

from tests.paths import ROOT
from tests.unit.calibration.certify.test_pairs import pairs  # noqa: F401  # a fixture
from workflow_composer.calibration.certify.pairs import KEYS
from workflow_composer.cli.commands.calibrate import calibrate

DOCS = (ROOT / "docs" / "calibration.md").read_text()


def fenced(language):
    """The blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", DOCS, re.MULTILINE | re.DOTALL)


def test_every_option_is_explained_and_every_explained_one_exists():
    options = {name for parameter in calibrate.params for name in parameter.opts if name.startswith("--")}
    common = {"--json", "--debug", "--strategy", "--output", "--seed"}
    table = DOCS[DOCS.index("| option | effect |") : DOCS.index("Exit codes:")]
    of_record = {"--datasets", "--data-dir", "--limit"}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", DOCS)) - of_record - {"--pairs", "--replay"}
    assert named <= options
    assert options - common - {"--pairs", "--replay", "--fit-share"} <= set(re.findall(r"--[a-z][a-z-]+", table))


def test_every_key_of_a_pairs_file_is_explained():
    table = DOCS[DOCS.index("| key | | meaning |") : DOCS.index("**Every tier")]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(KEYS)


def test_the_pairs_in_the_text_can_be_read(pairs):  # noqa: F811  # the fixture
    (lines,) = fenced("json")
    table = pairs(lines)
    assert table.names == ("small", "large")
    assert table.groups == ("legal",)
    assert table.costs.tolist() == [[0.0004, 0.0121]]


def test_the_example_in_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with (tmp_path / "answers.jsonl").open("w") as file:
        for row in range(200):
            for at, model in enumerate(("small", "large")):
                tokens = [{"token": "x", "logprob": -0.01 - (row % 10) / (5 + 5 * at)} for _ in range(3)]
                line = {"question": f"q{row}", "model": model, "sample": 0, "answer": "4", "tokens": 3}
                file.write(json.dumps(line | {"correct": row % 10 < 7 + 2 * at, "logprobs": tokens}) + "\n")
    (code,) = fenced("python")
    exec(compile(code, "docs/calibration.md", "exec"), {})
    assert "of the answers that the cascade accepts at most 0.1 are wrong" in capsys.readouterr().out
    assert (tmp_path / "certificate.json").exists()
