"""A fleet whose servers die, hang and are replaced, watched by monitors as cron starts them.

The servers are a package that is started like vLLM and answers like it; supervisors, guards, signals, ports, locks and
alerts are real; `test_fleet_live` does the same with real vLLM.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.fake_vllm import make_fake_vllm
from tests.integration.fleet_commands import Fleet, alerting, alerts, free_ports, until
from tests.paths import ROOT
from tests.unit.fleet.stub_vllm import StubVLLM, serving
from workflow_composer.fleet.processes import find

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hook():
    """Where webhooks go."""
    with serving(StubVLLM(answers={"/hook": (200, b"")})) as made:
        yield made


@pytest.fixture(scope="module")
def running(tmp_path_factory, hook):
    """Two servers, up; what is told is kept."""
    folder = tmp_path_factory.mktemp("fleet")
    fake = make_fake_vllm(folder / "fake")
    ports = zip("ab", free_ports(2), strict=True)
    roles = {name: {"model": f"org/{name}", "port": port, "drain_seconds": 5.0} for name, port in ports}
    told = {"command": alerting(folder), "webhook": f"http://127.0.0.1:{hook.port}/hook"}
    watched = {"answer_seconds": 3.0, "interval": 0.5, "backoff": 0.1, "alerts": told}
    settings = {"python": sys.executable, "roles": roles, "monitor": watched}
    made = Fleet(folder, settings, {"PYTHONPATH": f"{fake}:{ROOT}", "HOME": str(folder)})
    try:
        yield made
    finally:
        made.end()
    assert made.processes() == []


@pytest.fixture
def fleet(running, hook):
    """The same two servers, up, with nothing remembered of earlier accidents."""
    running.up()
    running.forget()
    hook.asked.clear()
    assert well(running)
    return running


def well(fleet):
    """Whether all is well, by a round."""
    return fleet.monitor().returncode == 0


def posted(hook):
    return [(given["server"], given["kind"]) for _, _, given in hook.asked]


def test_a_killed_server_is_started_again_with_one_alert_and_one_recovery(fleet, hook):
    assert alerts(fleet.folder) == []
    fleet.kill("a")

    done = fleet.monitor()
    assert done.returncode == 1
    assert "a is down" in done.stderr
    assert "SIGKILL" in done.stderr
    fleet.rounds_until(lambda: fleet.status()["a"]["state"] == "ready" and well(fleet), 60)
    assert well(fleet)
    assert alerts(fleet.folder) == [("a", "down"), ("a", "recovered")]
    assert posted(hook) == alerts(fleet.folder)
    assert fleet.state("a")["restarts"]
    assert fleet.state("b")["restarts"] == []
    log = (fleet.folder / "logs" / "fleet" / "monitor.log").read_text()
    assert [line.split(" ", 1)[1][:14] for line in log.splitlines() if " a is " in line or " a has " in line] == [
        "a is down (org",
        "a has recovere",
    ]


def test_a_server_that_hangs_is_noticed_within_the_limit_and_replaced(fleet):
    """SIGSTOP: the port stays open."""
    fleet.freeze("a")
    before = fleet.vllm("a")
    begun = time.monotonic()
    done = fleet.monitor()
    assert time.monotonic() - begun < 40
    assert f"port {fleet.state('a')['port']} is open, but no response within 3 s: it hangs" in done.stderr
    assert find(before) is None
    fleet.rounds_until(lambda: fleet.status()["a"]["state"] == "ready" and well(fleet), 60)
    assert alerts(fleet.folder) == [("a", "down"), ("a", "recovered")]


def test_a_supervisor_that_was_killed_is_replaced_and_leaves_no_vllm_behind(fleet):
    vllm, supervisor = fleet.vllm("a"), fleet.state("a")["pid"]
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: find(vllm) is None, "the guard ends vLLM", 20)
    fleet.rounds_until(lambda: fleet.status()["a"]["state"] == "ready" and well(fleet), 60)
    assert fleet.state("a")["pid"] != supervisor
    assert alerts(fleet.folder) == [("a", "down"), ("a", "recovered")]


def test_another_model_on_the_port_is_said_and_not_killed(fleet):
    """What took the port is not the fleet's: starting fails with the port's line, and a person is asked in the end."""
    port = fleet.state("a")["port"]
    fleet.kill("a")
    with serving(StubVLLM(models=["their-model"]), port) as theirs:
        done = fleet.monitor()
        assert done.returncode == 1
        assert f"port {port} is in use: a server there serves their-model" in done.stderr
        second = fleet.monitor()
        assert "their-model" in second.stdout
        assert theirs.asked
    fleet.rounds_until(lambda: fleet.status()["a"]["state"] == "ready" and well(fleet), 60)


def test_what_was_stopped_on_purpose_stays_stopped(fleet):
    assert fleet.run("down", "a").returncode == 0
    assert well(fleet)
    assert well(fleet)
    assert fleet.status()["a"]["state"] == "stopped"
    assert alerts(fleet.folder) == []


def test_two_monitors_at_once_do_no_harm(fleet):
    """One acts, the other says so and ends with 0; together they tell once."""
    fleet.freeze("a")
    both = [fleet.start("monitor") for _ in range(2)]
    done = [process.communicate(timeout=120) for process in both]
    assert sorted(process.returncode for process in both) == [0, 1]
    (idle,) = [out for (out, _), process in zip(done, both, strict=True) if process.returncode == 0]
    assert idle.startswith("another monitor is running")
    assert idle.count("\n") == 1
    assert alerts(fleet.folder) == [("a", "down")]
    assert len(fleet.state("a")["restarts"]) == 1

    fleet.up()
    assert fleet.state("a")["restarts"] == [], "a person who starts it has looked"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_watching_goes_on_until_a_signal(fleet, number):
    watching = fleet.start("monitor", "--watch")
    history = fleet.folder / "state" / "monitor" / "history.jsonl"
    until(lambda: history.exists() and len(history.read_text().splitlines()) >= 6, "three rounds", 60)
    watching.send_signal(number)
    out, err = watching.communicate(timeout=60)
    assert (watching.returncode, out, err) == (0, "", "")


def test_the_script_for_cron_is_quiet_when_all_is_well(fleet):
    script = ROOT / "scripts" / "llm" / "monitor_vllm_health.py"
    command = [sys.executable, str(script), "--fleet", str(fleet.file)]
    done = subprocess.run(command, cwd=fleet.folder, env=fleet.environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_status_shows_queue_speed_and_uptime(fleet):
    for _ in range(2):
        assert well(fleet)
    line = fleet.status("--check")["a"]
    assert (line["state"], line["running"], line["waiting"]) == ("ready", 0, 0)
    assert line["uptime"] == 1.0
    assert line["uptime_checked_seconds"] > 0
    shown = fleet.run("status").stdout
    assert shown.startswith("server ")
    assert "100.0% of" in shown


def test_no_prompt_and_no_key_is_in_what_monitors_write(fleet):
    fleet.kill("a")
    fleet.monitor()
    written = [path for path in fleet.folder.rglob("*") if path.is_file() and "fake" not in path.parts]
    assert any(path.name == "history.jsonl" for path in written)
    for path in written:
        assert b"Bearer" not in Path(path).read_bytes()
