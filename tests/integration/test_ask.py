"""``ask`` as a person runs it: a process of its own, a table of abstracts, a server that answers as ollama does."""

from __future__ import annotations

import csv
import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.integration.ollama_answers import JSON_HABITS, WORD_HABITS, ollama_reply, text_of
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


def start(tmp_path: Path, *arguments: str, **streams: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "workflow_composer", "ask", *arguments]
    environ = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "COLUMNS": "200", "TERM": "xterm"}
    return subprocess.Popen(command, cwd=tmp_path, env=environ, text=True, **streams)


def started(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    return start(tmp_path, *arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(tmp_path: Path, *arguments: str) -> tuple[int, str, str]:
    process = started(tmp_path, *arguments)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def wait_for_rows(process: subprocess.Popen[str], journal: Path, rows: int) -> None:
    """Until the journal has so many lines; fails if the process ends, or if it takes a minute."""
    until = time.monotonic() + 60
    while not journal.exists() or journal.read_bytes().count(b"\n") < rows:
        assert process.poll() is None, process.communicate()
        if time.monotonic() > until:
            process.kill()
            pytest.fail(f"{process.communicate()}")
        time.sleep(0.01)


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
    wait_for_rows(process, journal, 90)
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


SCHEMA = {
    "type": "object",
    "properties": {
        "gene": {"type": "string", "pattern": "^[A-Z0-9]+$"},
        "patients": {"type": "integer", "minimum": 1},
        "kind": {"enum": list(KINDS)},
    },
    "required": ["gene", "patients", "kind"],
    "additionalProperties": False,
}

MENDED = 10
ASKED_AGAIN = 10
ESCALATED = 10


def test_planted_violations_are_mended_or_escalated(tmp_path, abstracts, server, profile):
    """Thirty rows are answered against the schema: ten so that it costs no call to mend, ten so that the same model is asked
    once more, ten so that it never learns and the next tier is asked. The calls are counted.
    """
    chance = random.Random(7)
    planted = chance.sample(range(ROWS), MENDED + ASKED_AGAIN + ESCALATED)
    mended, again, escalated = planted[:10], planted[10:20], planted[20:]
    calls: Counter[tuple[str, int]] = Counter()

    def answer(request):
        text, model = text_of(request), request.json["model"]
        number = number_of(text)
        calls[model, number] += 1
        good = json.dumps({"gene": f"BRCA{number}", "patients": number + 20, "kind": kind_of(text)})
        if number in mended:
            return ollama_reply(JSON_HABITS[1 + mended.index(number) % (len(JSON_HABITS) - 1)](good), model=model)
        if number in again and calls[model, number] == 1:
            return ollama_reply(good.replace(f'"patients": {number + 20}', '"patients": "many"'), model=model)
        if number in escalated and model == "llama3.1:8b":
            return ollama_reply(f"I cannot tell (attempt {calls[model, number]}).", model=model)
        return ollama_reply(good, model=model)

    server.answer = answer
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    output = tmp_path / "variants.jsonl"
    route = "mv_cascade_small_k1_t0.0_large_k1_t0.0"
    code, out, err = run(
        tmp_path,
        *(str(abstracts), "-s", str(profile), "--prompt", "Read:\n{{ title }}\n{{ abstract }}", "--model", route),
        *("--schema", "schema.json", "--prefix", "model_", "-o", str(output), "--json"),
    )

    assert code == 0, err
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["pmid"] for row in rows] == [f"{n:07d}" for n in range(ROWS)]
    assert [row["model_gene"] for row in rows] == [f"BRCA{n}" for n in range(ROWS)]
    assert [row["model_patients"] for row in rows] == [n + 20 for n in range(ROWS)]
    assert [row["model_kind"] for row in rows] == [row["kind"] for row in rows]
    assert {row["model__error"] for row in rows} == {None}
    assert all(calls["llama3.1:8b", n] == 1 for n in range(ROWS) if n not in again + escalated)
    assert all(calls["llama3.1:8b", n] == 2 for n in again)
    assert all(calls["llama3.1:8b", n] == 3 and calls["qwen2.5:72b", n] == 1 for n in escalated)
    summary = json.loads(out)
    assert summary["calls"] == calls.total() == ROWS + ASKED_AGAIN + 3 * ESCALATED
    assert (summary["asked_again"], summary["escalated"], summary["errors"]) == (ASKED_AGAIN + 2 * ESCALATED, ESCALATED, 0)
    assert {"fences", "talk around", "writing of JSON"} <= summary["mended"].keys()


def on_terminal(tmp_path: Path, said: bytes, *arguments: str) -> tuple[int, str]:
    """Run on a terminal on which ``said`` is typed once the question is there; return the exit code and what is shown."""
    ours, theirs = pty.openpty()
    process = start(tmp_path, *arguments, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # the terminal ends with the process
        while part := os.read(ours, 4096):
            shown += part
            if b"[y/N]" in shown and said:
                os.write(ours, said)
                said = b""
    code = process.wait(60)
    os.close(ours)
    return code, shown.decode()


@pytest.mark.parametrize(("said", "asked"), [(b"n\n", 5), (b"y\n", ROWS)])
def test_a_sample_is_shown_and_one_question_asked(tmp_path, abstracts, server, profile, said, asked):
    """On a terminal: after no, five rows are paid for; after yes, all rows once."""
    server.answer = lambda request: ollama_reply(kind_of(text_of(request)))
    output = tmp_path / "labelled.csv"
    arguments = (str(abstracts), "-s", str(profile), *LABELS, "-o", str(output), "--try", "5")

    code, shown = on_terminal(tmp_path, said, *arguments)

    assert code == 0, shown
    assert shown.count("[y/N]") == 1
    assert "Abstract 40, on genes" in shown
    assert len([request for request in server.requests if request.method == "POST"]) == asked
    assert output.exists() == (asked == ROWS)


def test_ctrl_c_keeps_what_was_answered(tmp_path, abstracts, server, profile):
    """Exit code 130, a word on how to resume, no half table; the second run asks for the others."""

    def answer(request):
        number = number_of(text_of(request))
        return ollama_reply(kind_of(text_of(request)), hang=number >= 100 and hold["on"])  # in flight at Ctrl-C

    hold = {"on": True}
    server.answer = answer
    output = tmp_path / "labelled.csv"
    arguments = (str(abstracts), "-s", str(profile), *LABELS, "-o", str(output))
    process = started(tmp_path, *arguments)
    journal = output.with_name("labelled.csv.journal")
    wait_for_rows(process, journal, 100)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "run the same command again" in err
    assert not output.exists()
    hold["on"] = False
    assert run(tmp_path, *arguments)[0] == 0
    assert [row["answer"] for row in read(output)] == [row["kind"] for row in read(abstracts)]
