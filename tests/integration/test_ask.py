"""``ask`` as a person runs it: a process of its own, a table of abstracts, a server that answers as ollama does."""

from __future__ import annotations

import csv
import json
import random
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.integration.ollama_answers import WORD_HABITS, ollama_reply, text_of
from tests.integration.stub_server import StubServer
from tests.paths import ROOT

KINDS = ("case", "trial", "review")
OPENINGS = {
    "case": 'We report a {age}-year-old patient, admitted with fever; "no infection" was found.',
    "trial": "In this double-blind trial, {age} patients were randomised (p < 0.05), 1:1.",
    "review": "This review summarises {age} studies; naïve comparisons, e.g. by name, are avoided.",
}
ROWS = 200


@pytest.fixture
def abstracts(tmp_path):
    """200 abstracts with commas, quotes, line breaks and accents, each with its kind."""
    chance = random.Random(16)
    path = tmp_path / "abstracts.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["pmid", "title", "abstract", "kind"])
        for number in range(ROWS):
            kind = chance.choice(KINDS)
            abstract = OPENINGS[kind].format(age=number + 20) + "\n{{ title }} is not filled in twice."
            writer.writerow([f"{number:07d}", f"Abstract {number}, on genes", abstract, kind])
    return path


@pytest.fixture
def server():
    with StubServer(models=["llama3.1:8b", "qwen2.5:72b"]) as running:
        yield running


@pytest.fixture
def profile(tmp_path, server):
    """Two models of the stand-in: a cheap one, and one to escalate to."""
    path = tmp_path / "profile.yaml"
    models = {
        "small": {
            "backend": "vllm",
            "base_url": server.url,
            "model": "llama3.1:8b",
            "input_price": 1.0,
            "output_price": 2.0,
        },
        "large": {
            "backend": "vllm",
            "base_url": server.url,
            "model": "qwen2.5:72b",
            "input_price": 9.0,
            "output_price": 9.0,
        },
    }
    path.write_text(
        json.dumps(
            {
                "profile_name": "ollama",
                "models": models,
                "tiers": {"small": {"model": "small", "cost": 1.0}, "large": {"model": "large", "cost": 9.0}},
                "task_routing": {"*": "small"},
                "routers": ["cascade", "provider"],
            }
        )
    )
    return path


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def number_of(text: str) -> int:
    return int(re.search(r"Abstract (\d+),", text)[1])


def kind_of(text: str) -> str:
    return "case" if "We report" in text else "trial" if "double-blind" in text else "review"


def started(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "workflow_composer", "ask", *arguments]
    environ = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    return subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(tmp_path: Path, *arguments: str) -> tuple[int, str, str]:
    process = started(tmp_path, *arguments)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


LABELS = ["--prompt", "Classify:\\n{{ title }}\\n{{ abstract }}", "--choices", ",".join(KINDS), "--concurrency", "8"]


def test_labels_killed_at_row_90_and_resumed(tmp_path, abstracts, server, profile):
    """SIGKILL after the ninetieth answer; the second run asks for the rest only: no row is asked again, but for those that
    were in flight, and the table has all rows in the order of the input.
    """
    process: subprocess.Popen[str] | None = None
    asked: list[int] = []
    hold = {"at": 90}

    def answer(request):
        number = number_of(text_of(request))
        asked.append(number)
        if len(asked) > hold["at"]:
            return ollama_reply("", hang=True)  # in flight when the process is killed
        kind = kind_of(text_of(request))
        return ollama_reply(WORD_HABITS[number % len(WORD_HABITS)](kind), reasoning="Let me see." * (number % 3 == 0))

    server.answer = answer
    output = tmp_path / "labelled.csv"
    arguments = [str(abstracts), "-s", str(profile), *LABELS, "-o", str(output), "--label-column", "kind"]
    process = started(tmp_path, *arguments)
    journal = output.with_name("labelled.csv.journal")
    while not journal.exists() or journal.read_bytes().count(b"\n") < 90:
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert not output.exists()
    done = {json.loads(line)["index"] for line in journal.read_text().splitlines()}
    assert len(done) == 90
    first, hold["at"] = list(asked), 10_000
    asked.clear()

    code, _, err = run(tmp_path, *arguments)

    assert code == 0, err
    assert not set(asked) & done
    assert sorted(asked) == sorted(set(range(ROWS)) - done)
    assert Counter(n for n in first if n in done) == Counter(done)
    given, found = read(abstracts), read(output)
    assert [row["pmid"] for row in found] == [row["pmid"] for row in given]
    assert [{name: row[name] for name in given[0]} for row in found] == given
    assert [row["answer"] for row in found] == [row["kind"] for row in given]
    assert {row["_error"] for row in found} == {""}
    assert "90 answered earlier" in err
    assert "accuracy 100.0% of 200" in err
