"""Orchestrators of one process, and a stranger, that write to one file of metrics."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.orchestrator import ModelOrchestrator
from workflow_composer.storage import appending
from workflow_composer.storage.locks import lock_beside

PROFILE = StrategyConfig(profile_name="p", allow_cloud=False, models={"m": {"backend": "fake"}}, task_routing={"*": "m"})
REQUESTS = 25
STRANGER = """
import fcntl, sys, time
path, lock = sys.argv[1:]
for number in range(25):
    with open(lock, "a") as held, open(path, "a") as file:
        fcntl.lockf(held, fcntl.LOCK_EX)
        for piece in ('{"stranger":', f"{number}", "}\\n"):
            file.write(piece)
            file.flush()
            time.sleep(0.0005)
"""


def test_two_orchestrators_of_one_process_and_a_stranger_do_not_mix_their_lines(tmp_path, monkeypatch):
    """Also where a line goes to the disk in pieces; and the one that closes takes no lock from the other."""
    write = os.write

    def in_pieces(descriptor, data):
        return sum(write(descriptor, data[at : at + 100]) for at in range(0, len(data), 100))

    monkeypatch.setattr(appending.os, "write", in_pieces)
    path = tmp_path / "metrics.jsonl"
    path.touch()
    made = [ModelOrchestrator(PROFILE, environ={"WORKFLOW_COMPOSER_METRICS": str(path)}) for _ in range(2)]
    stranger = subprocess.Popen([sys.executable, "-c", STRANGER, path, lock_beside(path)])

    def ask(orchestrator):
        for number in range(REQUESTS):
            orchestrator.generate(f"{number}")

    threads = [threading.Thread(target=ask, args=(one,)) for one in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stranger.wait(60) == 0
    for one in made:
        one.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["stranger"] for row in rows if "stranger" in row] == list(range(REQUESTS))
    assert len(rows) == 3 * REQUESTS
