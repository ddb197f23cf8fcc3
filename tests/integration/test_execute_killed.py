"""`execute` stopped by Ctrl-C: it says how to go on, and goes on where it stopped."""

from __future__ import annotations

import json
import os
import random
import sys

import pytest

from tests.integration.killing import PATIENCE, Killer, finished_rows

ROWS = 2000
ROUTE = "mv_cascade_a_k3_t0.7_b_k1_t0.0"


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Two models; the first is of one mind about every second question."""
    path = tmp_path_factory.mktemp("executed") / "own.jsonl"
    with path.open("w") as file:
        for q in range(ROWS):
            for model, samples in (("a", [q, q, q if q % 2 else q + 1]), ("b", [q])):
                for n, said in enumerate(samples):
                    line = {"question": f"q{q}", "model": model, "sample": n, "answer": f"#### {said}"}
                    file.write(json.dumps(line | {"correct": said == q, "tokens": 3}) + "\n")
    return path


def killer(recording, name):
    output = recording.parent / name
    metrics = recording.parent / f"{name}-metrics.jsonl"
    argv = [sys.executable, "-m", "workflow_composer", "--json", "execute", "--replay", str(recording), "--routes", ROUTE]
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environ["WORKFLOW_COMPOSER_METRICS"] = str(metrics)
    return Killer(
        [*argv, "--output", str(output), "--in-flight", "16"],
        journal=output / "own" / ROUTE / "journal.jsonl",
        asked=list,  # whether a finished row is asked again is seen in the journal: it would stand there twice
        calls=lambda: metrics.stat().st_size if metrics.exists() else 0,
        chance=random.Random(3),
        environ=environ,
    )


@pytest.mark.slow
def test_ctrl_c_stops_it_and_says_how_to_go_on(recording):
    """What was finished stays; the second run takes it from there."""
    stopped = killer(recording, "interrupted")
    process = stopped.start()
    stopped.wait_for_call(process, 0)
    process.send_signal(2)
    _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, told
    assert "run the same command again to resume" in told
    done = finished_rows(stopped.journal)
    assert 0 < len(done) < ROWS
    with stopped.start() as again:
        _, told = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0, told
    assert finished_rows(stopped.journal)[: len(done)] == done
    assert sorted(finished_rows(stopped.journal)) == list(range(ROWS))
