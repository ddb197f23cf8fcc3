"""Rounds of the monitor, over stub servers and a runner that only takes notes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace

import pytest

from tests.unit.fleet.stub_vllm import StubVLLM, serving
from workflow_composer.backends.replicas.registry import LIFETIME, Entry
from workflow_composer.errors import FleetError, WorkflowComposerError
from workflow_composer.fleet.file import load_fleet
from workflow_composer.fleet.monitor.alerts import AlertFailed
from workflow_composer.fleet.monitor.history import DAY, CheckRecord
from workflow_composer.fleet.monitor.incident_store import Remembered
from workflow_composer.fleet.monitor.monitor import Monitor, history, judge, monitor_files
from workflow_composer.fleet.monitor.survey import known_servers
from workflow_composer.fleet.state import Look, ServerState

NODE = os.uname().nodename


@dataclass
class NotedRunner:
    """Starts nothing; ``then`` is called in place of a start."""

    looks: dict[str, Look] = field(default_factory=dict)
    restarted: list[str] = field(default_factory=list)
    served: list[bool] = field(default_factory=list)
    fails: str = ""

    def look(self, state):
        return self.looks.get(state.server, Look(alive=True))

    def restart(self, state, *, serves=False):
        self.restarted.append(state.server)
        self.served.append(serves)
        if self.fails:
            raise FleetError(self.fails)


@dataclass
class NotedChannel:
    """Keeps what it is sent; fails as often as it is told to."""

    name: str = "command"
    sent: list = field(default_factory=list)
    failures: int = 0

    def send(self, alert):
        if self.failures:
            self.failures -= 1
            raise AlertFailed("no route")
        self.sent.append(alert)


class World:
    """A fleet with one server, coder, on a stub; the clock goes as told."""

    def __init__(self, folder, port, **monitor):
        settings = {"answer_seconds": 2.0, "interval": 300.0} | monitor
        role = {"model": "small", "port": port, "start_seconds": 100.0}
        content = {"registry": "registry", "state": "state", "roles": {"coder": role}, "monitor": settings}
        (folder / "fleet.yaml").write_text(json.dumps(content))
        self.fleet = load_fleet(folder / "fleet.yaml", {"HOME": str(folder)})
        self.runner, self.channel, self.said = NotedRunner(), NotedChannel(), []
        self.now = time.time()
        self.state = ServerState(
            server="coder", role="coder", status="ready", node=NODE, pid=1, port=port, started=self.now - 5000
        )
        self.fleet.states.put(self.state)
        self.entry = Entry(
            server="coder", role="coder", host="127.0.0.1", port=port, model="small", state="ready", node=NODE, pid=1,
            started=self.now - 5000, updated=self.now,
        )  # fmt: skip
        self.beats, self.patience = True, 0.0

    def beat(self):
        """What the supervisor does every ten seconds, by this clock."""
        self.fleet.registry.directory.mkdir(exist_ok=True)
        path = self.fleet.registry.directory / self.entry.file_name
        path.write_text(replace(self.entry, updated=self.now).text())
        path.chmod(0o644)

    def monitor(self):
        return Monitor(
            fleet=self.fleet,
            runners={"process": self.runner},
            channels=(self.channel,),
            say=self.said.append,
            node=NODE,
            clock=lambda: self.now,
            patience=self.patience,
        )

    def round(self, after=300.0):
        """A round of a monitor that has just been started, so that it knows only what is on disk."""
        self.now += after
        if self.beats:
            self.beat()
        return self.monitor().round()

    @property
    def kinds(self):
        return [alert.kind for alert in self.channel.sent]


@pytest.fixture
def stub():
    with serving(StubVLLM()) as made:
        yield made


@pytest.fixture
def world(tmp_path, stub):
    return World(tmp_path, stub.port)


def test_when_all_is_well_nothing_is_said(world):
    found = world.round()
    assert found.well
    assert [watched.seen for watched in found.servers] == ["up"]
    assert (world.said, world.channel.sent, world.runner.restarted) == ([], [], [])


def test_entries_are_judged_as_they_are_after_the_checks(world):
    """A server that hangs holds up the round; the others have renewed their entries meanwhile."""
    looked, world.patience = world.runner.look, 30.0

    def look(state):
        world.now += 2 * LIFETIME
        world.beat()
        return looked(state)

    world.runner.look = look
    assert world.round().well
    assert world.runner.restarted == []


def test_one_alert_and_one_recovery_over_many_monitors(world, stub):
    """Each round is a new process's: what is known is on disk."""
    stub.models = ["other"]
    assert not world.round().well
    world.round()
    world.round()
    stub.models = ["small"]
    world.round()
    world.round()
    assert world.kinds == ["down", "recovered"]
    assert world.runner.restarted == ["coder"] * 3
    down = world.channel.sent[0]
    assert down.reason == f"127.0.0.1:{stub.port} serves other, not small"
    assert down.action == "restarting"
    assert down.where == f"127.0.0.1:{stub.port}"


def test_restarts_are_counted_in_the_state_up_to_the_cap(tmp_path, stub):
    stub.models = ["other"]
    world = World(tmp_path, stub.port, restarts=2, backoff=1.0)
    for _ in range(5):
        world.round()
    assert len(world.runner.restarted) == 2
    assert len(world.fleet.states.get("coder").restarts) == 2
    assert world.kinds == ["down", "person"]


def test_the_backoff_of_the_fleet_file_is_kept(tmp_path, stub):
    stub.models = ["other"]
    world = World(tmp_path, stub.port, backoff=1000.0)
    for _ in range(4):
        world.round(after=300.0)
    assert len(world.runner.restarted) == 1
    world.round(after=300.0)
    assert len(world.runner.restarted) == 2


def test_a_person_who_starts_it_again_starts_the_count_again(tmp_path, stub):
    stub.models = ["other"]
    world = World(tmp_path, stub.port, restarts=1)
    world.round()
    world.round()
    assert len(world.runner.restarted) == 1
    world.fleet.states.update("coder", restarts=())
    world.round()
    assert len(world.runner.restarted) == 2


def test_what_was_stopped_on_purpose_is_left_alone(world, stub):
    stub.answers["/health"] = (503, b"")
    world.fleet.states.update("coder", wanted=False, status="stopped")
    found = world.round()
    assert found.well
    assert (world.runner.restarted, world.kinds, stub.asked) == ([], [], [])


def test_what_is_stopped_during_an_incident_ends_it(world, stub):
    stub.answers["/health"] = (503, b"")
    world.round()
    world.fleet.states.update("coder", wanted=False, status="stopped")
    world.round()
    world.round()
    assert world.kinds == ["down", "ended"]


def test_an_incident_of_a_server_whose_state_is_gone_ends(world, stub):
    stub.answers["/health"] = (503, b"")
    world.round()
    (world.fleet.states.directory / "coder.json").unlink()
    world.round()
    world.round()
    assert world.kinds == ["down", "ended"]


def test_a_server_that_starts_has_its_start_seconds(world, stub):
    stub.answers["/health"] = (503, b"")
    world.fleet.states.update("coder", status="starting", started=world.now + 300 - 99)
    assert [watched.seen for watched in world.round().servers] == ["waiting"]
    assert world.runner.restarted == []
    world.round(after=2)
    assert world.runner.restarted == ["coder"]


def test_a_server_that_has_just_become_ready_may_be_slow_with_its_first_token(world, stub):
    """Until a round has seen it up once; from then on, what hangs is down at once."""
    stub.hang.add("/v1/completions")
    world.fleet.states.update("coder", started=world.now)
    assert [watched.seen for watched in world.round(after=50).servers] == ["waiting"]
    stub.hang.clear()
    assert [watched.seen for watched in world.round(after=1).servers] == ["up"]
    stub.hang.add("/v1/completions")
    assert [watched.seen for watched in world.round(after=1).servers] == ["down"]


def test_a_start_that_fails_is_told_with_its_reason(world, stub):
    stub.models = ["other"]
    world.runner.fails = "port 8002 is in use: a server there serves other"
    found = world.round()
    assert world.channel.sent[0].action.startswith("restart failed: port 8002 is in use")
    assert found.servers[0].action == world.channel.sent[0].action


def test_overload_is_told_and_not_restarted(tmp_path, stub):
    stub.waiting = 5.0
    world = World(tmp_path, stub.port, queue_limit=5)
    assert world.round().well
    stub.waiting, stub.cache = 0.0, 0.5
    world.round()
    assert (world.kinds, world.runner.restarted) == (["overloaded", "recovered"], [])


def test_cache_limit_is_the_fleet_files(tmp_path, stub):
    stub.cache = 0.5
    world = World(tmp_path, stub.port, cache_limit=0.5)
    world.round()
    assert world.kinds == ["overloaded"]


@pytest.mark.parametrize(("days", "left"), [(1, 1), (30, 2)])
def test_history_days_is_the_fleet_files(tmp_path, stub, days, left):
    """A round cuts off what is older: of the check of ten days ago and its own, one or both are left."""
    world = World(tmp_path, stub.port, history_days=days)
    history(world.fleet).add([CheckRecord(time=world.now - 10 * DAY, server="coder", outcome="up")])
    world.round()
    assert len(list(history(world.fleet).records())) == left


def test_a_channel_that_fails_is_tried_once_more_and_stops_nothing(world, stub):
    stub.models = ["other"]
    world.channel.failures = 1
    world.round()
    assert (world.kinds, world.runner.restarted) == ([], ["coder"])
    assert "coder: alert by command failed: no route; retrying once in the next round" in world.said
    world.round()
    world.round()
    assert world.kinds == ["down"]


def test_a_channel_that_fails_twice_is_given_up(world, stub):
    stub.models = ["other"]
    world.channel.failures = 2
    for _ in range(4):
        world.round()
    assert world.kinds == []
    assert [line for line in world.said if "failed: no route" in line][-1].endswith("failed: no route")


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("where", ["restart", "send"])
def test_a_monitor_that_is_killed_in_mid_round_tells_nothing_twice(world, stub, where):
    """Killed before its alert went out, the next one sends it; killed while it went out, nobody sends it again."""
    stub.models = ["other"]

    def die_before(*_, **__):
        raise Killed

    def die_after(alert):
        world.channel.sent.append(alert)
        raise Killed

    working = world.runner.restart, world.channel.send
    if where == "restart":
        world.runner.restart = die_before
    else:
        world.channel.send = die_after
    with pytest.raises(Killed):
        world.round()
    world.runner.restart, world.channel.send = working
    world.round()
    world.round()
    assert world.kinds == ["down"]


def test_what_cannot_be_remembered_is_not_done(world, stub):
    """A disk that is full: a restart that is not counted would be made for ever, an alert sent every round."""
    stub.models = ["other"]
    folder = monitor_files(world.fleet).directory
    folder.mkdir(parents=True)
    blocked = folder / "coder.json"
    blocked.mkdir()
    with pytest.raises(WorkflowComposerError, match=r"state in .* cannot be written") as failed:
        world.round()
    assert "nothing was restarted or sent" in failed.value.hint
    assert (world.runner.restarted, world.kinds) == ([], [])


def test_a_damaged_memory_is_begun_anew(world, stub):
    folder = monitor_files(world.fleet).directory
    folder.mkdir(parents=True)
    for text in ("", "{", "[]", '{"memory": 5, "unsent": []}', '{"memory": {"phase": "down"}, "unsent": [{}]}'):
        (folder / "coder.json").write_text(text)
        assert monitor_files(world.fleet).load("coder") == Remembered()


HOLD = """
import sys
from pathlib import Path
from workflow_composer.fleet.monitor.incident_store import MonitorFiles
with MonitorFiles(Path(sys.argv[1])).turn() as mine:
    print(mine, flush=True)
    sys.stdin.read()
"""


def test_of_two_monitors_one_works(world, stub):
    stub.models = ["other"]
    folder = monitor_files(world.fleet).directory
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout.readline().strip() == "True"
        found = world.round()
        assert found.busy
        assert found.well
        assert (world.runner.restarted, stub.asked) == ([], [])
        holder.stdin.close()
        holder.wait(60)
    assert not world.round().busy


def test_a_process_on_another_node_is_told_of_and_not_started(world, stub):
    stub.models = ["other"]
    world.fleet.states.update("coder", node="gpu7")
    world.runner.looks["coder"] = Look(foreign="it runs on node gpu7")
    (watched,) = world.round().servers
    assert (world.kinds, world.runner.restarted) == (["down"], [])
    assert watched.action == "it runs on node gpu7"


def test_a_server_that_refuses_the_monitors_key_is_told_of_and_not_started(world, stub):
    """Cron has another environment than the person who started it; a restart would only lose requests."""
    stub.key = "sesame"
    (watched,) = world.round().servers
    assert (world.kinds, world.runner.restarted) == (["down"], [])
    assert watched.action == "a restart would not help"


def test_a_job_that_slurm_is_about_to_run_is_left_alone(world, stub):
    stub.models = ["other"]
    world.runner.looks["coder"] = Look(waiting="job 12 waits for free resources")
    (watched,) = world.round().servers
    assert (watched.seen, world.kinds, stub.asked) == ("waiting", [], [])


def test_a_server_whose_supervisor_is_gone_is_down_although_it_answers(world):
    world.runner.looks["coder"] = Look(alive=False)
    (watched,) = world.round().servers
    assert watched.reason == "it responds, but its supervisor (process 1) is gone"
    assert world.runner.restarted == ["coder"]


def test_a_server_that_drains_is_left_alone(world, stub):
    stub.answers["/health"] = (503, b"")
    world.fleet.states.update("coder", status="draining")
    assert world.round().servers[0].seen == "waiting"


def test_the_reason_that_the_supervisor_has_read_is_told(world, stub):
    stub.answers["/health"] = (503, b"")
    world.fleet.states.update("coder", status="failed", detail="vLLM was killed (SIGKILL)")
    world.runner.looks["coder"] = Look(alive=False)
    world.round()
    assert world.channel.sent[0].reason == "vLLM was killed (SIGKILL)"


def test_the_registry_says_where_a_job_runs(world, stub):
    with serving(StubVLLM(models=["small"])) as elsewhere:
        now = world.now + 300
        entry = Entry(
            server="coder", role="coder", host="127.0.0.1", port=elsewhere.port, model="small", state="ready",
            job_id="7", started=now, updated=now,
        )  # fmt: skip
        world.fleet.registry.publish(entry)
        world.fleet.states.update("coder", how="slurm", job_id="7", node="gpu3", port=0)
        world.now = time.time() - 300
        found = Monitor(
            fleet=world.fleet,
            runners={"slurm": world.runner},
            channels=(),
            say=world.said.append,
            node=NODE,
        ).round()
    assert [watched.seen for watched in found.servers] == ["up"]
    assert elsewhere.asked
    assert stub.asked == []


def test_checks_are_kept_and_a_history_that_cannot_be_written_stops_nothing(world):
    world.round()
    (record,) = history(world.fleet).records()
    assert (record.server, record.outcome, record.tokens) == ("coder", "up", 10.0)
    path = history(world.fleet).path
    path.unlink()
    path.mkdir()
    assert world.round().well
    assert world.said == ["the history of checks cannot be written: Is a directory; the uptime will have a gap"]


def test_servers_of_others_are_not_watched(world):
    """Their fleet's state is elsewhere: their owner's monitor does it."""
    now = time.time()
    world.fleet.registry.publish(
        Entry(server="theirs", role="theirs", host="127.0.0.1", port=1, model="m", started=now, updated=now)
    )
    assert [watched.server for watched in world.round().servers] == ["coder"]


def test_servers_of_another_fleet_file_are_left_to_its_own_monitor(world, stub):
    """Files may share a folder of states; an incident of the other's goes on."""
    stub.models = ["other"]
    world.round()
    world.fleet.states.update("coder", fleet_file="/elsewhere/fleet.yaml")
    assert world.round().servers == ()
    assert world.kinds == ["down"]
    assert monitor_files(world.fleet).load("coder").memory.phase == "down"
    (known,) = known_servers(world.fleet)
    assert known.spec is None


def test_a_judgement_without_a_check_has_a_reason(world):
    (known,) = known_servers(world.fleet)
    assert judge(known, Look(), None, world.now) == ("down", "its address is unknown")
