"""The monitor and `fleet status` see a fleet as its clients do, and judge a server by what was started."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.unit.fleet.monitor.test_monitor import NODE, World, stub, world  # noqa: F401  # fixtures
from tests.unit.fleet.stub_vllm import StubVLLM, serving
from workflow_composer.fleet.file import load_fleet
from workflow_composer.fleet.monitor import disks
from workflow_composer.fleet.monitor.report import report
from workflow_composer.fleet.monitor.survey import known_servers
from workflow_composer.fleet.state import Look


def line(world):  # noqa: F811
    """What `fleet status` says of coder now."""
    (found,) = report(world.fleet, {"process": world.runner, "slurm": world.runner}, NODE)
    return found


def edit(world, **role):  # noqa: F811
    """Edit the fleet file under a running server."""
    path = world.fleet.path
    tree = json.loads(path.read_text())
    tree["roles"]["coder"] |= role
    path.write_text(json.dumps(tree))
    world.fleet = load_fleet(path, world.fleet.environ)


# ------------------------------------------------------------------------------------------------- as it was started


def test_a_server_is_judged_by_the_model_with_which_it_was_started(world, stub):  # noqa: F811
    """An edited file restarts nothing: a line says how the new model gets its server."""
    world.fleet.states.update("coder", model="small", task="generate")
    edit(world, served_name="large")
    found = world.round(after=0)
    assert found.well
    assert (world.runner.restarted, world.kinds) == ([], [])
    (watched,) = found.servers
    assert watched.seen == "up"
    assert "serves small" in watched.note
    assert "now says large" in watched.note
    assert "`fleet down coder` and `fleet up coder`" in watched.note
    assert line(world).state == "ready"
    assert line(world).reason == watched.note


def test_a_pooling_server_is_asked_for_vectors_although_the_file_now_says_otherwise(world, stub):  # noqa: F811
    world.fleet.states.update("coder", model="small", task="pooling")
    assert world.round().well
    assert [path for _, path, _ in stub.asked if path.startswith("/v1/") and path != "/v1/models"] == ["/v1/embeddings"]


def test_a_server_is_asked_with_the_key_of_its_entry(world, stub):  # noqa: F811
    world.entry, stub.key = world.fleet.registry.new_key(world.entry)
    world.fleet.registry.publish(world.entry, stub.key)
    found = world.round()
    assert found.well
    (watched,) = found.servers
    assert watched.seen == "up"
    assert stub.key not in repr(known_servers(world.fleet))


# ------------------------------------------------------------------------------------------------- by the registry


@pytest.mark.parametrize("entry", ["none", "old"])
def test_what_answers_and_cannot_be_found_is_down_and_is_not_restarted(world, stub, entry):  # noqa: F811
    """A disk that is full or a wrong clock: clients lose the server; a restart would lose its requests, too."""
    world.fleet.states.update("coder", how="slurm", job_id="7")
    world.entry = replace(world.entry, job_id="7")
    world.beats = False
    if entry == "old":
        world.beat()
        world.now += 60
        found = slurm_round(world)
        assert "renewed 60 s ago" in found.servers[0].reason
        assert line(world).state == "ready", "by the clock of this process the entry is fresh"
    else:
        with serving(StubVLLM()):
            found = world.monitor().round()
        assert line(world).state in ("down", "not started")
    assert not found.well
    assert world.runner.restarted == []


def slurm_round(world):  # noqa: F811
    return replace(world.monitor(), runners={"slurm": world.runner}).round()


def test_a_local_server_whose_supervisor_renews_nothing_is_restarted_with_time_to_drain(world, stub):  # noqa: F811
    world.beat()
    world.beats = False
    found = world.round(after=100)
    assert "clients do not use it" in found.servers[0].reason
    assert (world.runner.restarted, world.runner.served) == (["coder"], [True])


def test_a_job_that_renews_its_entry_lives_whatever_the_list_of_jobs_says(world, stub):  # noqa: F811
    world.fleet.states.update("coder", how="slurm", job_id="7")
    world.entry = replace(world.entry, job_id="7")
    world.runner.looks["coder"] = Look(alive=False)
    world.beat()
    found = slurm_round(world)
    assert found.well
    assert line(world).state == "ready"
    assert world.runner.restarted == []


def test_status_and_monitor_never_contradict_each_other(world, stub):  # noqa: F811
    """Over what a registry can say and what a server can answer."""
    healthy, hung = {}, {"/health": (503, b"")}
    for answers in (healthy, hung):
        for entry in ("fresh", "starting", "none"):
            for look in (Look(alive=True), Look(alive=False)):
                stub.answers = dict(answers)
                world.runner.looks["coder"] = look
                for path in world.fleet.registry.directory.glob("*.json"):
                    path.unlink()
                if entry != "none":
                    world.entry = replace(world.entry, state="starting" if entry == "starting" else "ready")
                    world.beat()
                world.beats = False
                seen = world.round(after=0).servers[0].seen
                assert (seen == "down") == (line(world).state == "down"), (answers, entry, look)


def test_a_server_that_is_healthy_and_has_no_token_yet_is_starting(world, stub):  # noqa: F811
    world.fleet.states.update("coder", status="starting", started=world.now)
    world.entry = replace(world.entry, state="starting")
    world.beat()
    assert line(world).state == "starting"


# ------------------------------------------------------------------------------------------------- restarts


@pytest.mark.parametrize(
    ("path", "answer", "serves"),
    [
        ("/v1/completions", (500, b""), True),
        ("/v1/completions", None, False),
        ("/health", (503, b""), False),
    ],
)
def test_what_still_serves_gets_time_to_drain_and_what_hangs_does_not(world, stub, path, answer, serves):  # noqa: F811
    if answer is None:
        stub.hang.add(path)
        world.round(after=0)
        stub.hang.clear()
        world.round(after=0)
        stub.hang.add(path)
    else:
        stub.answers[path] = answer
    world.runner.served.clear()
    world.round()
    assert world.runner.served == [serves]


# ------------------------------------------------------------------------------------------------- disks


def test_a_full_disk_is_reported_with_one_alert_and_one_recovery(world, stub, monkeypatch):  # noqa: F811
    full = [world.fleet.registry.directory]

    def try_to_write(folder):
        if folder in full:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(disks, "try_to_write", try_to_write)
    for _ in range(3):
        found = world.round()
        assert not found.well
        assert "(registry): no space left on device" in found.disks[0]
    full.clear()
    assert world.round().well
    assert world.kinds == ["down", "recovered"]
    assert {alert.server for alert in world.channel.sent} == {"disk"}
    assert world.runner.restarted == []
