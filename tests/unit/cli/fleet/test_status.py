"""``fleet status`` and ``fleet monitor`` on fleets that are down, up, queued, or not there at all."""

from __future__ import annotations

import json
import os
import time

import pytest

from tests.integration.fleet_commands import free_ports
from tests.unit.fleet.stub_vllm import StubVLLM, serving
from tests.unit.test_imports import HEAVY, RUN, foreign, loaded_by, ours
from workflow_composer.backends.replicas.observer import Readings
from workflow_composer.backends.replicas.registry import Entry, ServerRegistry
from workflow_composer.cli.fleet.status import _row
from workflow_composer.fleet.monitor.history import CheckRecord, History, Uptime
from workflow_composer.fleet.monitor.report import StatusLine
from workflow_composer.fleet.state import ServerState, StateStore

NODE = os.uname().nodename


@pytest.fixture
def fleet(command):
    """A fleet file of two roles in the working directory, and a way to say what has happened to them."""
    ports = free_ports(2)
    roles = {"coder": {"model": "small", "port": ports[0]}, "math": {"model": "big", "port": ports[1]}}
    content = {"registry": "registry", "state": "state", "roles": roles, "monitor": {"answer_seconds": 2.0}}
    (command.folder / "fleet.yaml").write_text(json.dumps(content))
    command.environ |= {"HOME": str(command.folder), "PATH": "/nowhere"}
    return command


def put(command, **fields):
    given = {"server": "coder", "role": "coder", "node": NODE, "status": "ready", "started": time.time() - 5000}
    StateStore(command.folder / "state").put(ServerState(**(given | fields)))


def publish(command, **fields):
    now = time.time()
    given = {"server": "coder", "role": "coder", "host": "127.0.0.1", "model": "small", "started": now, "updated": now}
    ServerRegistry(command.folder / "registry").publish(Entry(**(given | fields)))


def status(command, *arguments):
    done = command("fleet", "status", "--fleet", "fleet.yaml", "--json", *arguments)
    assert done.code == 0, done.err
    return {line["server"]: line for line in done.json}


def ready(command, server):
    """Its line once it is ready; a quick look may come too early on a machine that is busy."""
    ends = time.monotonic() + 60
    while (line := status(command)[server])["state"] != "ready":
        assert time.monotonic() < ends, line
    return line


def test_a_fleet_that_was_never_started_is_shown(fleet):
    found = status(fleet)
    assert {name: line["state"] for name, line in found.items()} == {"coder": "not started", "math": "not started"}
    assert found["coder"]["uptime"] is None
    assert found["coder"]["tokens_per_second"] is None
    table = fleet("fleet", "status", "--fleet", "fleet.yaml").out.splitlines()
    assert table[0].split("  ")[0] == "server"
    assert "unknown" in table[1]


def test_a_server_of_the_registry_is_asked(fleet):
    with serving(StubVLLM(running=2.0, waiting=3.0)) as stub:
        publish(fleet, port=stub.port, job_id="12", expires=time.time() + 7300)
        line = ready(fleet, "coder")
        table = fleet("fleet", "status", "coder", "--fleet", "fleet.yaml").out
        assert {method for method, _, _ in stub.asked} == {"GET"}, "without --check no token is asked for"
    assert (line["state"], line["host"], line["port"], line["job_id"]) == ("ready", "127.0.0.1", stub.port, "12")
    assert (line["running"], line["waiting"]) == (2, 3)
    assert f"127.0.0.1:{stub.port}, job 12" in table
    assert "in 2 h" in table
    assert "math" not in table


def test_check_asks_for_a_token(fleet):
    with serving(StubVLLM(answers={"/v1/completions": (500, b"")})) as stub:
        publish(fleet, port=stub.port)
        ready(fleet, "coder")
        line = status(fleet, "--check")["coder"]
    assert (line["state"], line["reason"]) == (
        "down",
        f"127.0.0.1:{stub.port} returns status 500 to a request for one token",
    )


def test_servers_of_others_in_the_registry_are_shown(fleet):
    with serving(StubVLLM(models=["theirs"])) as stub:
        publish(fleet, server="biology", role="biology", model="theirs", port=stub.port)
        assert ready(fleet, "biology")["model"] == "theirs"


def test_dead_hosts_cost_two_seconds_together(fleet):
    """Thirty ports that are open and never answer, and an address that nobody has (TEST-NET-1)."""
    with serving(StubVLLM(hang={"/health"})) as stub:
        publish(fleet, port=stub.port)
        for number in range(29):
            publish(fleet, server=f"coder-{number}", port=stub.port)
        publish(fleet, server="math", role="math", model="big", host="192.0.2.1", port=8003)
        begun = time.monotonic()
        found = status(fleet)
        assert time.monotonic() - begun < 30  # one after the other would take a minute
    assert len(found) == 31
    assert {line["state"] for line in found.values()} == {"down"}
    assert "hangs" in found["coder"]["reason"] or "no complete response" in found["coder"]["reason"]


def test_a_server_that_was_stopped_on_purpose_is_not_asked(fleet):
    with serving(StubVLLM()) as stub:
        put(fleet, wanted=False, status="stopped", detail="by fleet down", port=stub.port)
        line = status(fleet)["coder"]
        assert stub.asked == []
    assert (line["state"], line["reason"]) == ("stopped", "by fleet down")


def test_a_server_that_failed_says_why(fleet):
    put(fleet, status="failed", detail="out of memory", port=free_ports(1)[0], restarts=(time.time(),))
    line = status(fleet)["coder"]
    assert (line["state"], line["reason"], line["restarts"]) == ("down", "out of memory", 1)
    assert "out of memory; restarted 1 time by the monitor" in fleet("fleet", "status", "--fleet", "fleet.yaml").out


def test_a_job_in_slurms_queue_is_shown_with_its_reason(fleet):
    """By a squeue that stands for SLURM's."""
    program = fleet.folder / "squeue"
    program.write_text("#!/bin/sh\necho '12|12|PENDING|N/A|N/A||Resources||wc-coder'\n")
    program.chmod(0o755)
    fleet.environ["PATH"] = f"{fleet.folder}:/usr/bin:/bin"
    put(fleet, how="slurm", job_id="12", status="starting")
    line = status(fleet)["coder"]
    assert (line["state"], line["job_id"], line["reason"]) == ("queued", "12", "job 12 waits for free resources")


def test_without_slurm_a_job_is_down_in_one_clear_line(fleet):
    put(fleet, how="slurm", job_id="12", status="ready")
    line = status(fleet)["coder"]
    assert (line["state"], line["reason"]) == ("down", "cannot query SLURM: SLURM is not available here: squeue not found")


def test_uptime_and_speed_come_from_the_history(fleet):
    now = time.time()
    rows = [CheckRecord(time=now - 300, server="coder", outcome="up", tokens=10.0, started=5.0)]
    rows += [
        CheckRecord(time=now - 100, server="coder", outcome="down"),
        CheckRecord(time=now - 50, server="coder", outcome="up"),
    ]
    History(fleet.folder / "state" / "monitor" / "history.jsonl", 7).add(rows)
    with serving(StubVLLM(tokens=310.0, started=5.0)) as stub:
        publish(fleet, port=stub.port)
        line = ready(fleet, "coder")
    assert line["uptime"] == pytest.approx(250 / 300, abs=0.02)
    assert line["tokens_per_second"] == pytest.approx(1.0, abs=0.05)


def test_an_unknown_fleet_file_is_one_line(fleet):
    done = fleet("fleet", "status", "--fleet", "nowhere.yaml")
    assert done.code in (1, 2)
    assert done.err.count("\n") <= 2
    assert "nowhere.yaml" in done.err


def test_a_round_without_servers_is_well_and_quiet(fleet):
    done = fleet("fleet", "monitor", "--fleet", "fleet.yaml")
    assert (done.code, done.out, done.err) == (0, "", "")


def test_a_round_with_a_dead_job_says_so_and_exits_with_1(fleet):
    put(fleet, how="slurm", job_id="12", status="ready")
    done = fleet("fleet", "monitor", "--fleet", "fleet.yaml")
    assert done.code == 1
    assert done.err == (
        "coder is down (small on job 12): cannot query SLURM: SLURM is not available here: squeue not found\n"
    )
    assert done.out.startswith("coder down: cannot query SLURM")
    again = fleet("fleet", "monitor", "--fleet", "fleet.yaml")
    assert (again.code, again.err) == (1, "")
    assert "coder is down" in (fleet.folder / "logs" / "fleet" / "monitor.log").read_text()


def test_a_round_can_be_read_by_programs(fleet):
    put(fleet, how="slurm", job_id="12", status="ready")
    done = fleet("fleet", "monitor", "--fleet", "fleet.yaml", "--json")
    assert done.code == 1
    assert [(one["server"], one["seen"], one["phase"]) for one in done.json["servers"]] == [("coder", "down", "down")]


def test_a_full_disk_is_one_line(fleet):
    """What stands for it: the monitor's folder is a file."""
    (fleet.folder / "state").mkdir()
    (fleet.folder / "state" / "monitor").write_text("")
    done = fleet("fleet", "monitor", "--fleet", "fleet.yaml")
    assert done.code == 1
    assert done.err.startswith("error: the monitor's state in ")
    assert "hint: nothing was restarted or sent; free disk space" in done.err


@pytest.mark.parametrize("name", ["status", "monitor"])
def test_help_loads_nothing_heavy(name):
    """Neither the commands' own machinery nor anyone's libraries but click."""
    found = loaded_by(RUN.format(arguments=["fleet", name, "--help"]))
    assert not foreign(found) & HEAVY
    assert not [module for module in ours(found) if module.startswith("fleet")]


def test_a_row_of_the_table_says_all_that_is_known():
    """And a dash where nothing is."""
    line = StatusLine(
        server="coder",
        role="coder",
        model="small",
        host="gpu3",
        port=8002,
        job_id="12",
        state="ready",
        readings=Readings(running=2, waiting=3),
        tokens_per_second=4.25,
        uptime=Uptime(0.5, 7300),
        expires=1000.0,
        restarts=2,
    )
    assert _row(line, 400.0) == (
        "coder",
        "small",
        "gpu3:8002, job 12",
        "ready",
        "2 + 3",
        "4.2",
        "50.0% of 2 h",
        "in 10 min",
        "restarted 2 times by the monitor",
    )
    assert _row(StatusLine(server="a", role="a", model="m"), 0.0) == (
        "a",
        "m",
        "-",
        "not started",
        "-",
        "-",
        "unknown",
        "-",
        "",
    )
