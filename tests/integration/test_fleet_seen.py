"""A fleet in the eyes of its clients: when a server is ready, what an edited file does, and what a full disk costs.

The servers are a package that is started like vLLM and answers as told; everything else is real.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.integration.fake_vllm import make_fake_vllm
from tests.integration.fleet_commands import Fleet, alerting, alerts, free_ports, until
from tests.paths import ROOT
from workflow_composer import ModelOrchestrator
from workflow_composer.backends.replicas.registry import ServerRegistry
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.metrics.sink import MemorySink

pytestmark = pytest.mark.slow


class SeenFleet(Fleet):
    """One server, a, whose stand-in can be told what to do."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.fake = make_fake_vllm(folder / "fake")
        self.port = free_ports(1)[0]
        role = {"model": "org/a", "port": self.port, "drain_seconds": 5.0, "start_seconds": 60.0, **settings.pop("role", {})}
        watched = {"answer_seconds": 3.0, "backoff": 0.1, "alerts": {"command": alerting(folder)}}
        tree = {"python": sys.executable, "roles": {"a": role}, "monitor": watched, **settings}
        super().__init__(folder, tree, {"PYTHONPATH": f"{self.fake}:{ROOT}", "HOME": str(folder)})

    def tell(self, **commands: object) -> None:
        """Command the stand-in."""
        beside = self.fake / "now.new"
        beside.write_text(json.dumps(commands))
        beside.replace(self.fake / "now.json")

    def edit(self, **role: object) -> None:
        """Edit the role in the fleet file."""
        tree = json.loads(self.file.read_text())
        tree["roles"]["a"].update(role)
        self.file.write_text(json.dumps(tree))

    def entry(self):
        """The registry's entry of a; None if there is none."""
        return next(iter(ServerRegistry(self.registry).all()), None)

    @property
    def registry(self) -> Path:
        return Path(json.loads(self.file.read_text())["registry"])

    def ask(self) -> str:
        """What a client gets that finds the server by the registry."""
        config = StrategyConfig(
            profile_name="p",
            vllm_endpoints={"a": "registry:a"},
            registry=str(self.registry),
            allow_cloud=False,
            task_routing={"*": "a"},
            retries={"attempts": 1},
        )

        async def ask() -> str:
            async with ModelOrchestrator(config, metrics=MemorySink(), environ={}) as models:
                return (await models.agenerate("Who is there?")).text

        return asyncio.run(ask())


@pytest.fixture
def made(tmp_path):
    """Makes a fleet; ends it."""
    fleets = []

    def make(**settings):
        fleets.append(SeenFleet(tmp_path, **settings))
        return fleets[-1]

    yield make
    for fleet in fleets:
        fleet.end()
        assert fleet.processes() == []


# ------------------------------------------------------------------------------------------------------------------ ready


@pytest.mark.parametrize("commands", [{"posts": 503}, {"models": 503}, {"page": "<html>warming up</html>"}])
def test_a_server_that_is_healthy_and_gives_no_token_starts_until_it_does(made, commands):
    fleet = made()
    fleet.tell(**commands)
    up = fleet.start("up")
    until(lambda: fleet.entry() is not None, "it is published")
    until(lambda: answers(fleet.port), "its port is open")
    assert fleet.status()["a"]["state"] == "starting"
    assert (fleet.entry().state, fleet.state("a")["status"]) == ("starting", "starting")
    fleet.tell()
    out, err = up.communicate(timeout=120)
    assert up.returncode == 0, out + err
    found = fleet.entry()
    assert (found.state, found.max_model_len, found.engine) == ("ready", 4096, "vllm 0.32.0")
    assert fleet.status()["a"]["state"] == "ready"


def answers(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def test_a_server_without_a_token_within_start_seconds_has_failed(made):
    fleet = made(role={"start_seconds": 4.0})
    fleet.tell(posts=503)
    done = fleet.run("up")
    assert done.returncode == 1
    assert "no token: status 503 within 4 s" in done.stdout + done.stderr
    assert fleet.entry() is None


# ----------------------------------------------------------------------------------------------------------------- edited


def test_an_edited_fleet_file_ends_no_stream(made):
    """The new model is told of, and gets its server by the commands of that line."""
    fleet = made()
    fleet.up()
    fleet.tell(pieces=60, gap=0.25)
    heard: list[bytes] = []
    reader = threading.Thread(target=read_stream, args=(fleet.port, heard))
    reader.start()
    until(lambda: heard, "the stream has begun")
    pid = fleet.vllm("a")
    fleet.edit(served_name="org/new")
    done = fleet.monitor()
    assert (done.returncode, done.stderr) == (0, "")
    assert "a serves org/a, as it was started; the fleet file now says org/new" in done.stdout
    assert "`fleet down a` and `fleet up a`" in done.stdout
    assert fleet.status()["a"]["state"] == "ready"
    reader.join(60)
    assert (sum(b"delta" in line for line in heard), heard[-1]) == (60, b"data: [DONE]")
    assert fleet.vllm("a") == pid
    fleet.tell()
    assert fleet.run("down", "a").returncode == 0
    fleet.up()
    assert fleet.entry().model == "org/new"


def read_stream(port, heard):
    body = json.dumps({"model": "org/a", "messages": [], "stream": True}).encode()
    asked = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(asked, timeout=60) as answer:
        heard.extend(stripped for line in answer if (stripped := line.strip()))


# ------------------------------------------------------------------------------------------------------------------ disks


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 40 KiB."""
    place = tmp_path / "registry"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=40k,mode=755", "tmpfs", str(place)]
    if os.getuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs root's rights")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_under_the_registry_is_reported_and_costs_no_client_its_server(small_disk, made):
    fleet = made()
    fleet.up()
    pid = fleet.vllm("a")
    filler = small_disk / "filler"
    subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=1k", "count=1000"], capture_output=True, check=False)
    full = fleet.entry().updated
    until(lambda: fleet.entry().updated > full + 11, "two heartbeats on a full disk", 90)
    assert fleet.ask() == "#### 42"
    shown = fleet.run("status", "--json")
    assert json.loads(shown.stdout)[0]["state"] == "ready"
    assert f"{small_disk} (registry): no space left on device" in shown.stderr
    for _ in range(2):
        done = fleet.monitor()
        assert done.returncode == 1
        assert "(registry): no space left on device" in done.stdout
    filler.unlink()
    assert fleet.monitor().returncode == 0
    assert alerts(fleet.folder) == [("disk", "down"), ("disk", "recovered")]
    assert fleet.vllm("a") == pid, "nothing was restarted"


def test_an_entry_that_was_deleted_returns_and_no_monitor_restarts_its_server(made):
    """The registry's folder was removed by hand; the supervisor's next heartbeat brings the entry back."""
    fleet = made()
    fleet.up()
    pid = fleet.vllm("a")
    for path in fleet.registry.iterdir():
        path.unlink()
    fleet.registry.rmdir()
    done = fleet.monitor()
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert fleet.vllm("a") == pid
    assert fleet.ask() == "#### 42"


def test_a_server_whose_state_was_deleted_is_found_and_ended(made):
    """By its entry in the registry."""
    fleet = made()
    fleet.up()
    shutil.rmtree(fleet.folder / "state")
    assert fleet.status()["a"]["state"] == "ready"
    done = fleet.run("down")
    assert done.returncode == 0, done.stdout + done.stderr
    until(lambda: fleet.processes() == [], "it has ended")
    assert fleet.entry() is None


# ---------------------------------------------------------------------------------------------------------------- watched


def test_a_server_that_is_healthy_and_no_longer_returns_tokens_is_restarted(made):
    fleet = made()
    fleet.up()
    assert fleet.monitor().returncode == 0
    pid = fleet.vllm("a")
    fleet.tell(hang=600)
    done = fleet.monitor()
    assert done.returncode == 1
    assert "no token within 3 s: it hangs" in done.stderr
    fleet.tell()
    fleet.rounds_until(lambda: fleet.status()["a"]["state"] == "ready", 60)
    assert fleet.vllm("a") != pid


def test_what_answers_with_errors_finishes_its_requests_before_it_is_replaced(made):
    """Its supervisor drains: a request in progress is answered although the monitor replaces the server."""
    fleet = made(role={"drain_seconds": 30.0})
    fleet.up()
    assert fleet.monitor().returncode == 0
    answered: list[bytes] = []
    asking = threading.Thread(target=ask_slowly, args=(fleet.port, answered))
    asking.start()
    until(lambda: running(fleet.port) == 1, "the request is in progress")
    fleet.tell(posts=500)
    pid = fleet.vllm("a")
    done = fleet.monitor()
    assert "status 500" in done.stderr
    asking.join(60)
    assert answered == [b"500"], "an answer, of whatever status, and no broken connection"
    fleet.tell()
    fleet.rounds_until(lambda: fleet.status()["a"]["state"] == "ready", 60)
    assert fleet.vllm("a") != pid


def ask_slowly(port, answered):
    body = json.dumps({"model": "org/a", "prompt": "1", "seconds": 8}).encode()
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", body)
    try:
        urllib.request.urlopen(asked, timeout=60).close()
        answered.append(b"200")
    except urllib.error.HTTPError as error:
        answered.append(str(error.code).encode())
    except OSError as error:
        answered.append(repr(error).encode())


def running(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        line = next(line for line in answer if b"running" in line)
    return float(line.rpartition(b" ")[2])


# ------------------------------------------------------------------------------------------------------------------- keys


def test_a_server_that_other_machines_reach_has_a_key_that_only_its_owner_reads(made):
    fleet = made(listen="0.0.0.0")
    fleet.up()
    entry = fleet.entry()
    assert entry.key == "file"
    key = ServerRegistry(fleet.registry).key_of(entry)
    assert len(key) > 30
    environ = Path(f"/proc/{fleet.vllm('a')}/environ").read_bytes()
    assert f"VLLM_API_KEY={key}".encode() in environ
    assert key not in Path(f"/proc/{fleet.vllm('a')}/cmdline").read_text()
    assert fleet.status("--check")["a"]["state"] == "ready"
    for path in fleet.folder.rglob("*"):
        if path.is_file() and path.suffix != ".key" and "fake" not in path.parts:
            assert key.encode() not in path.read_bytes(), path
    assert fleet.run("down").returncode == 0
    assert list(fleet.registry.iterdir()) == []


def test_keyless_servers_have_none(made):
    fleet = made(listen="0.0.0.0", role={"keyless": True})
    fleet.up()
    assert fleet.entry().key == ""
    assert b"VLLM_API_KEY" not in Path(f"/proc/{fleet.vllm('a')}/environ").read_bytes()
    assert time.time() - fleet.entry().updated < 45
