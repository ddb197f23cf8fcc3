"""The script that starts a server, with a real vLLM on the CPU and the shipped checkpoint, as a user would use it.

One life of a server is lived once for the module, and written down; the tests read what was written.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.integration.vllm_server import VARIABLE, vllm_python
from tests.paths import ROOT
from tests.unit.fleet.conftest import alive, free_port, until

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.skipif(vllm_python() is None, reason=f"{VARIABLE} is not set")]

SCRIPT = ROOT / "scripts" / "llm" / "start_vllm_server.sh"
CHECKPOINT = ROOT / "workflow_composer" / "checkpoints" / "small"
START_LIMIT = 400.0


class Place:
    """A folder with a fleet file; runs the script there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.port = free_port()
        self.environ = os.environ | {"WORKFLOW_COMPOSER_PYTHON": sys.executable, "PYTHONPATH": ""}
        role = {
            "model": str(CHECKPOINT),
            "served_name": "small",
            "aliases": ["little"],
            "port": self.port,
            "memory_gb": 1.5,
            "max_model_len": 512,
            "arguments": ["--max-num-seqs=16"],
            "start_seconds": START_LIMIT,
            "drain_seconds": 30,
        }
        roles = {
            "small": role,
            "on_a_gpu": role | {"device": "cuda", "port": free_port()},
            "wrong": role | {"quantization": "nonsense", "port": free_port()},
        }
        tree = {"state": "state", "registry": "registry", "logs": str(path / "logs"), "roles": roles}
        (path / "fleet.yaml").write_text(json.dumps(tree))  # JSON is YAML, without the aliases that a dump would have

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [str(SCRIPT), *arguments, "--fleet", str(self.path / "fleet.yaml")]
        return subprocess.Popen(
            command,
            env=self.environ,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def fails(self, *arguments: str) -> list[str]:
        """Start a server that cannot start; what the script prints, by lines."""
        with self.start(*arguments) as script:
            out, err = script.communicate(timeout=START_LIMIT)
        assert script.returncode == 1
        assert "Traceback" not in out + err
        return (out + err).splitlines()

    def state(self, server: str = "small") -> dict[str, object]:
        return json.loads((self.path / "state" / f"{server}.json").read_text())

    def entries(self) -> list[dict[str, object]]:
        return [json.loads(path.read_text()) for path in (self.path / "registry").glob("*.json")]


def processes_of(root: int) -> set[int]:
    """A process and everything that it has started."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents.setdefault(int(path.read_text().rpartition(")")[2].split()[1]), []).append(int(path.parent.name))
        except OSError:
            continue
    found, waiting = set(), [root]
    while waiting:
        pid = waiting.pop()
        found.add(pid)
        waiting += parents.get(pid, [])
    return found


def curl(command: str) -> str:
    return subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120, check=False).stdout


@dataclass
class Life:
    """What was seen of one server, from its start to its end."""

    first_line: str = ""
    state: dict[str, object] = field(default_factory=dict)
    entries: list[dict[str, object]] = field(default_factory=list)
    health: str = ""
    completion: str = ""
    by_its_alias: str = ""
    second_start: list[str] = field(default_factory=list)
    other_on_the_port: list[str] = field(default_factory=list)
    processes: set[int] = field(default_factory=set)
    code: int | None = None
    left: list[int] = field(default_factory=list)
    entries_after: list[dict[str, object]] = field(default_factory=list)
    state_after: dict[str, object] = field(default_factory=dict)
    log: str = ""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    return Place(tmp_path_factory.mktemp("fleet"))


@pytest.fixture(scope="module")
def life(place) -> Life:
    """The server is started, asked, started again, asked for its port by another, and ended by SIGTERM."""
    seen = Life()
    with place.start("small") as script:
        try:
            seen.first_line = script.stdout.readline()
            seen.state, seen.entries = place.state(), place.entries()
            seen.health = curl(f"curl -s -o /dev/null -w '%{{http_code}}' localhost:{place.port}/health")
            seen.completion = curl(
                f"curl -s localhost:{place.port}/v1/completions -H 'Content-Type: application/json' "
                """-d '{"model": "small", "prompt": "Ann has 3 apples", "max_tokens": 5}'"""
            )
            seen.by_its_alias = curl(
                f"curl -s localhost:{place.port}/v1/completions -H 'Content-Type: application/json' "
                """-d '{"model": "little", "prompt": "Ann has 3 apples", "max_tokens": 5}'"""
            )
            seen.second_start = place.fails("small")
            seen.other_on_the_port = place.fails(str(CHECKPOINT.parent / "medium"), "--port", str(place.port))
            seen.processes = processes_of(script.pid)
            script.send_signal(signal.SIGTERM)
            seen.code = script.wait(90)
        finally:
            if script.poll() is None:
                script.kill()
    seen.left = [pid for pid in seen.processes if alive(pid)]
    seen.entries_after, seen.state_after = place.entries(), place.state()
    seen.log = (place.path / "logs" / "small.log").read_text()
    return seen


def test_the_url_is_printed_once_the_server_answers(life, place):
    assert f"http://127.0.0.1:{place.port}/v1  model small" in life.first_line


def test_state_and_registry_say_where_it_is(life, place):
    (entry,) = life.entries
    assert (entry["server"], entry["state"], entry["port"], entry["model"]) == ("small", "ready", place.port, "small")
    assert (life.state["status"], life.state["port"], life.state["pid"]) == ("ready", place.port, entry["pid"])


def test_the_checks_that_a_user_types_work(life):
    assert life.health == "200"
    assert json.loads(life.completion)["choices"][0]["text"]


def test_a_model_answers_to_its_alias_and_under_its_own_name(life):
    found = json.loads(life.by_its_alias)
    assert found["choices"][0]["text"]
    assert found["model"] == "small"


def test_a_second_start_says_that_it_runs(life):
    assert f"small is already running: process {life.state['pid']}" in life.second_start[0]


def test_a_taken_port_says_what_answers_there(life, place):
    assert f"port {place.port} is in use: a server there serves small, little (process " in life.other_on_the_port[0]


def test_sigterm_leaves_no_process_and_no_entry(life):
    assert len(life.processes) >= 4  # the supervisor, its guard, vLLM and its engine
    assert (life.code, life.left, life.entries_after) == (0, [], [])
    assert (life.state_after["status"], life.state_after["wanted"]) == ("stopped", False)


def test_the_log_has_the_command_and_vllms_words(life):
    assert "[fleet] starting small: " in life.log
    assert "vllm.entrypoints.openai.api_server" in life.log
    assert "Application startup complete" in life.log


def test_no_gpu_is_one_line(place):
    lines = place.fails("on_a_gpu")

    assert "role 'on_a_gpu' sets device: cuda, but the vLLM of" in lines[0]
    assert "is built for the CPU" in lines[0]


def test_a_model_that_is_not_there_is_one_line(place):
    assert "no such folder: /nix" in place.fails("/nix", "--port", str(free_port()))[0]


def test_a_start_that_vllm_refuses_gives_vllms_reason(place):
    lines = place.fails("wrong")

    assert "wrong has failed: " in lines[-1]
    assert "nonsense" in lines[-1]
    assert place.state("wrong")["status"] == "failed"


def test_nothing_is_left_of_vllm_when_its_supervisor_is_killed(tmp_path):
    place = Place(tmp_path)
    with place.start("small") as script:
        try:
            # Killed once the engine is there, which is vLLM's second process and loads the weights.
            started = until(lambda: _engine_of(script.pid), "vLLM's engine", seconds=START_LIMIT)
        finally:
            script.kill()
    until(lambda: not [pid for pid in started if alive(pid)], "the end of vLLM", seconds=60)


def _engine_of(supervisor: int) -> set[int]:
    time.sleep(0.2)  # between two looks through all processes
    found = processes_of(supervisor)
    names = []
    for pid in found:
        try:
            names.append(Path(f"/proc/{pid}/cmdline").read_text())
        except OSError:
            continue
    return found if any("EngineCore" in name for name in names) else set()
