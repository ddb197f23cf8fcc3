"""What a job does with what SLURM tells it; whole jobs run in tests/integration/test_slurm_jobs.py."""

import socket
import time
from types import SimpleNamespace

import pytest

from workflow_composer.errors import FleetError
from workflow_composer.fleet.file import load_fleet
from workflow_composer.fleet.launch.supervisor import ListenPlace
from workflow_composer.fleet.slurm.commands import Slurm
from workflow_composer.fleet.slurm.job import Handover, ServerJob, free_port
from workflow_composer.fleet.state import ServerState


@pytest.fixture
def fleet(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    roles = f"roles:\n  coder: {{model: m, port: {port}}}\n  math: {{model: m, port: {port + 1}}}\n"
    (tmp_path / "fleet.yaml").write_text(f"registry: registry\nstate: state\nlogs: {tmp_path}/logs\n{roles}")
    return load_fleet(tmp_path / "fleet.yaml", {})


@pytest.fixture
def slurm(tmp_path):
    """A SLURM whose squeue prints what stands in a file."""
    program = tmp_path / "squeue"
    program.write_text(f"#!/bin/sh\ncat {tmp_path}/queue\n")
    program.chmod(0o755)
    return Slurm({"PATH": f"{tmp_path}:/usr/bin:/bin"})


def job(fleet, slurm, said):
    return ServerJob(fleet, "coder", environ={"SLURM_JOB_ID": "7"}, slurm=slurm, say=said.append)


def test_outside_of_a_job_it_says_how_to_make_one(fleet, slurm):
    with pytest.raises(FleetError, match="not running in a SLURM job") as caught:
        ServerJob(fleet, "coder", environ={}, slurm=slurm, say=print)
    assert "fleet submit coder" in caught.value.hint


def test_a_job_that_was_given_more_time_publishes_its_new_end(fleet, slurm, tmp_path):
    """Otherwise clients would leave it at its old end, although it serves on."""
    later = int(time.time()) + 90_000
    (tmp_path / "queue").write_text(f"7|7|RUNNING|{later}|1|node|None||wc-coder\n")
    supervisor = SimpleNamespace(place=ListenPlace(port=1, job_id="7", expires=1000.0))
    job(fleet, slurm, [])._refresh(supervisor)
    assert supervisor.place.expires == later


def test_a_controller_that_is_away_changes_nothing(fleet, tmp_path):
    said = []
    supervisor = SimpleNamespace(place=ListenPlace(port=1, job_id="7", expires=1000.0))
    job(fleet, Slurm({"PATH": str(tmp_path)}), said)._refresh(supervisor)
    assert supervisor.place.expires == 1000.0
    assert "SLURM is not available here" in said[0]


def test_the_clock_tells_a_job_of_its_end_where_no_signal_came(fleet, slurm):
    """`drain_before` is 600 seconds; the signal may have come before anybody heeded it."""
    now = time.time()
    late, early = (SimpleNamespace(place=ListenPlace(port=1, job_id="7", expires=now + left)) for left in (590, 700))
    assert not job(fleet, slurm, [])._is_expiring(early)
    assert job(fleet, slurm, [])._is_expiring(late)


def test_a_server_that_is_not_wanted_gets_no_successor(fleet, slurm):
    fleet.states.put(ServerState(server="coder", role="coder", wanted=False))
    handover = Handover(fleet, "coder", job_id="7", ends=time.time() + 900, slurm=slurm, say=print)
    handover.begin()
    assert handover.successor == ""
    assert handover.done()


@pytest.mark.parametrize(("time", "asked", "said"), [("12:00:00", "12:00:00", 1), ("[]", "24:00:00", 2)])
def test_a_successor_follows_the_fleet_file_as_it_is_by_then(fleet, slurm, tmp_path, time, asked, said):
    """Unless it has become invalid meanwhile."""
    (tmp_path / "queue").touch()
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(f'#!/bin/sh\necho "$*" > {tmp_path}/asked\necho 8\n')
    sbatch.chmod(0o755)
    text = fleet.path.read_text()
    fleet.path.write_text(f"{text}slurm: {{time: {time!r}}}\n".replace("'[]'", "[]"))
    lines = []
    handover = Handover(fleet, "coder", job_id="7", ends=None, slurm=slurm, say=lines.append)
    handover.begin()
    assert f"--time={asked} " in (tmp_path / "asked").read_text()
    assert handover.successor == "8"
    assert len(lines) == said


def test_its_own_port_is_taken_where_it_is_free(fleet):
    assert free_port(fleet, "coder", "127.0.0.1") == fleet.role("coder").port


def test_the_next_port_that_no_other_role_has_is_taken_otherwise(fleet):
    port = fleet.role("coder").port
    with socket.create_server(("127.0.0.1", port)):
        assert free_port(fleet, "coder", "127.0.0.1") > port + 1
