"""Four real vLLM servers on the CPU, as `fleet up` starts them: routed to by the shipped profile, killed, frozen, replaced.

The tests build on each other's servers, which take a minute or more to start; each leaves all four up.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from tests.integration.fleet_commands import Fleet, alerting, alerts, free_ports, until
from tests.integration.shipped_profile import t4_hybrid
from tests.integration.stub_server import StubServer
from tests.integration.vllm_server import VARIABLE, vllm_python
from tests.paths import CHECKPOINTS, ROOT
from tests.unit.fleet.stub_vllm import StubVLLM, serving
from workflow_composer import ModelOrchestrator
from workflow_composer.fleet.processes import find
from workflow_composer.metrics.sink import MemorySink

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(vllm_python() is None, reason=f"{VARIABLE} names no Python with vLLM"),
]

ROLES = {"generalist": "small", "coder": "medium", "math": "large", "embeddings": ""}
STARTING = 600.0
"""Seconds that four servers may take to start on two cores that others use, too; idle, it is one minute."""
LIMIT = 40.0
"""Seconds in which a server must give a token."""


@pytest.fixture(scope="module")
def hook():
    """Where webhooks go."""
    with serving(StubVLLM(answers={"/hook": (200, b"")})) as made:
        yield made


@pytest.fixture(scope="module")
def fleet(tmp_path_factory, hook):
    """The four servers, up."""
    folder = tmp_path_factory.mktemp("live")
    tiny = folder / "tiny-embeddings"
    made = subprocess.run(
        [vllm_python(), str(ROOT / "tests" / "integration" / "tiny_embeddings.py"), str(tiny)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    told = {"command": alerting(folder), "webhook": f"http://127.0.0.1:{hook.port}/hook"}
    settings = {
        "python": vllm_python(),
        "roles": {role: spec(role, port, tiny) for role, port in zip(ROLES, free_ports(len(ROLES)), strict=True)},
        "monitor": {"answer_seconds": LIMIT, "backoff": 1.0, "alerts": told},
    }
    fleet = Fleet(folder, settings, {"HOME": str(folder)})
    try:
        fleet.up(STARTING)
        yield fleet
    finally:
        fleet.end()


def spec(role, port, tiny):
    """A role with little memory: half a gigabyte of cache, one thread of work, few requests at once."""
    checkpoint = CHECKPOINTS / ROLES[role] if ROLES[role] else tiny
    return {
        "model": str(checkpoint),
        "served_name": f"the-{role}",
        "port": port,
        "task": "generate" if ROLES[role] else "pooling",
        "dtype": "float32",
        "max_model_len": 512 if ROLES[role] else 128,
        "start_seconds": STARTING,
        "drain_seconds": 10.0,
        "arguments": ["--max-num-seqs=4"],
        "environment": {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"},
    }


def answered(fleet):
    """How many requests each server has answered, by its own metrics."""
    counts = {}
    for server in ROLES:
        url = f"http://127.0.0.1:{fleet.state(server)['port']}/metrics"
        with urllib.request.urlopen(url, timeout=LIMIT) as answer:
            lines = answer.read().decode().splitlines()
        counts[server] = sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:request_success_total{"))
    return counts


@pytest.fixture
def profile(fleet, tmp_path):
    """`t4_hybrid` as it is shipped, its ports and its two cloud addresses replaced; and the stand-in for the cloud.

    It finds each server by its port and by the fleet's registry.
    """
    text = t4_hybrid("CLOUD")
    for role, usual in zip(ROLES, (8001, 8002, 8003, 8004), strict=True):
        text, changed = re.subn(rf"http://localhost:{usual}/v1", f"http://localhost:{fleet.state(role)['port']}/v1", text)
        assert changed >= 1
    with StubServer() as cloud:
        path = tmp_path / "t4_hybrid.yaml"
        path.write_text(text.replace("CLOUD", cloud.url))
        yield path, cloud


def test_every_row_of_the_shipped_routing_goes_where_it_says(fleet, profile):
    """By each server's own metrics, not by what the orchestrator says of itself."""
    path, cloud = profile
    routing = yaml.safe_load(path.read_text())["task_routing"]
    assert set(routing.values()) == {"generalist", "coder", "math", "embeddings", "cloud"}
    environ = {
        "DEEPSEEK_API_KEY": "k",
        "ANTHROPIC_API_KEY": "k",
        "WORKFLOW_COMPOSER_REGISTRY": str(fleet.folder / "registry"),
    }
    with ModelOrchestrator(path, metrics=MemorySink(), environ=environ) as orchestrator:
        for task, role in routing.items():
            before, asked = answered(fleet), len(cloud.requests)
            if role == "embeddings":
                found = orchestrator.embed(["what is a gene", "sort"], task_type=task)
                assert [len(vector) for vector in found.vectors] == [64, 64]
            else:
                kind = "anything_else" if task == "*" else task
                orchestrator.generate("What is 2 + 3?", task_type=kind, max_tokens=4, timeout=120.0)
            after = answered(fleet)
            gained = {server for server in ROLES if after[server] > before[server]}
            assert gained == ({role} - {"cloud"}), (task, before, after)
            assert (len(cloud.requests) > asked) == (role == "cloud"), task


def test_the_monitor_finds_all_well_and_status_shows_them(fleet):
    fleet.rounds_until(lambda: fleet.monitor().returncode == 0 and not waiting(fleet), STARTING)
    lines = fleet.status()
    assert {server: (line["state"], line["model"]) for server, line in lines.items()} == {
        server: ("ready", f"the-{server}") for server in ROLES
    }
    assert all(line["running"] == 0 and line["waiting"] == 0 for line in lines.values())
    assert lines["math"]["tokens_per_second"] is not None
    assert lines["math"]["uptime"] is not None
    assert alerts(fleet.folder) == []


def waiting(fleet):
    """Servers of which the last round said that they still start."""
    done = json.loads(fleet.run("monitor", "--json", seconds=300.0).stdout)
    return [server for server in done["servers"] if server["seen"] != "up"]


def test_killed_and_frozen_servers_are_replaced_by_one_of_two_monitors(fleet, hook):
    """SIGKILL one, SIGSTOP another, and let two monitors loose on them at once."""
    fleet.kill("generalist")
    frozen = fleet.vllm("coder")
    fleet.freeze("coder")

    begun = time.monotonic()
    both = [fleet.start("monitor") for _ in range(2)]
    done = {process.returncode: (out, err) for process in both for out, err in [process.communicate(timeout=300)]}
    assert set(done) == {0, 1}
    assert done[0][0].startswith("another monitor is running")
    said = done[1][1]
    assert "generalist is down" in said
    assert f"port {fleet.state('coder')['port']} is open, but no response within {LIMIT:g} s: it hangs" in said
    assert time.monotonic() - begun < LIMIT + 120
    assert find(frozen) is None

    fleet.rounds_until(lambda: len(alerts(fleet.folder)) >= 4, STARTING)
    told = sorted(alerts(fleet.folder))
    assert told == [(server, kind) for server in ("coder", "generalist") for kind in ("down", "recovered")]
    assert sorted((given["server"], given["kind"]) for _, _, given in hook.asked) == told
    lines = fleet.status("--check")
    assert {line["state"] for line in lines.values()} == {"ready"}
    assert {server: line["restarts"] for server, line in lines.items()} == {
        "generalist": 1,
        "coder": 1,
        "math": 0,
        "embeddings": 0,
    }


def test_a_port_that_is_taken_is_one_clear_line(fleet, tmp_path):
    """Another fleet wants the port of this one's math server for another model."""
    port = fleet.state("math")["port"]
    role = spec("generalist", port, Path()) | {"served_name": "another"}
    other = Fleet(tmp_path, {"python": vllm_python(), "roles": {"mine": role}}, {"HOME": str(tmp_path)})
    try:
        up = other.run("up")
        assert up.returncode == 1
        assert f"port {port} is in use: a server there serves the-math" in up.stdout
        round_ = other.run("monitor")
        assert round_.returncode == 1
        (line,) = [line for line in round_.stderr.splitlines() if line.startswith("mine is down")]
        assert f"port {port} is in use: a server there serves the-math" in line
    finally:
        other.end()
    assert fleet.status("math")["math"]["state"] == "ready"


def test_a_server_is_judged_by_what_was_started_and_not_by_the_edited_file(fleet):
    """The fleet file was edited and wants another model than the server, which serves on, has."""
    before = fleet.file.read_text()
    settings = json.loads(before)
    settings["roles"]["math"]["served_name"] = "another"
    fleet.file.write_text(json.dumps(settings))
    try:
        line = fleet.status("math", "--check")["math"]
    finally:
        fleet.file.write_text(before)
    assert line["state"] == "ready"


def test_down_stops_all_and_leaves_no_process(fleet):
    pids = fleet.processes()
    assert len(pids) >= 3 * len(ROLES)
    done = fleet.run("down", seconds=120.0)
    assert done.returncode == 0, done.stderr
    until(lambda: not fleet.processes(), "every process has ended", 30)
    assert {line["state"] for line in fleet.status().values()} == {"stopped"}
    assert fleet.monitor().returncode == 0
    assert fleet.processes() == []
    assert all(find(pid) is None for pid in pids)
