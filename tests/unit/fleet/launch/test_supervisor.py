"""One server from its start to its end, over a vLLM that is a fake."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from tests.unit.fleet.conftest import alive, until
from workflow_composer.errors import FleetError
from workflow_composer.fleet.held import FILE_NAME, HeldLog
from workflow_composer.fleet.launch.supervisor import NOTICE, Ended, ListenPlace, ServerSupervisor
from workflow_composer.fleet.launch.supervisor_lock import Holding


class Running:
    """A supervisor in a thread, and what it has said."""

    def __init__(self, folder, role=None, *, place=None, settings=None, **more):
        self.folder = folder
        self.fleet = folder.fleet({"small": role or {}}, **settings or {})
        self.said = []
        self.ended = None
        self.error = None
        spec, port = self.fleet.find("small")
        self.supervisor = ServerSupervisor(
            self.fleet, "small", spec, place or ListenPlace(port=port), say=self.said.append, **more
        )
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        try:
            self.ended = self.supervisor.run()
        except FleetError as error:
            self.error = error

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exc):
        self.supervisor.ask("stopped")
        self.supervisor.ask("stopped")
        self._thread.join(60)
        assert not self._thread.is_alive()

    @property
    def state(self):
        return self.fleet.states.get("small")

    @property
    def entries(self):
        return self.fleet.registry.entries()

    def until(self, status):
        return until(lambda: (state := self.state) and state.status == status and state, status)

    def wait(self):
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.ended


def complete(port, **body):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", json.dumps({"model": "./model", **body}).encode(), method="POST"
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)["choices"][0]["text"]


def broken_off(port):
    """A long request whose server ends before it does."""
    with pytest.raises(OSError):  # noqa: PT011  # how the connection breaks is the system's to say
        complete(port, seconds=60)


def test_a_server_that_is_ready_is_published_remembered_and_told_of(folder):
    with Running(folder, {"served_name": "sums"}) as running:
        state = running.until("ready")
        (entry,) = running.entries

    assert (entry.server, entry.role, entry.url, entry.model) == (
        "small",
        "small",
        f"http://127.0.0.1:{folder.port}/v1",
        "sums",
    )
    assert (entry.state, entry.node, entry.pid) == ("ready", os.uname().nodename, os.getpid())
    assert (state.how, state.wanted, state.pid, state.port) == ("process", True, os.getpid(), folder.port)
    assert state.fleet_file == str(folder.path / "fleet.yaml")
    assert state.log == str(folder.path / "logs" / "small.log")
    assert any(f"http://127.0.0.1:{folder.port}/v1" in line and "model sums" in line for line in running.said)


def test_a_server_that_starts_is_published_as_starting(folder):
    folder.environ["FAKE_VLLM"] = "hang"
    with Running(folder) as running:
        running.until("starting")
        (entry,) = until(lambda: running.entries, "an entry")
        assert entry.state == "starting"


def test_nothing_is_left_of_a_server_that_is_stopped(folder):
    with Running(folder) as running:
        running.until("ready")
        running.supervisor.ask("stopped")
        assert running.wait() == Ended("stopped")

    assert (running.state.status, running.state.wanted, running.state.pid) == ("stopped", False, 0)
    assert running.entries == []
    assert len(folder.processes) == 2
    assert not [pid for pid in folder.processes if alive(pid)]
    assert Holding(running.fleet.states.directory, "small").holder() is None


def test_the_time_for_which_a_server_holds_its_gpus_is_on_record(folder):
    """From its start to its end, with the fleet file's price."""
    before = time.time()
    with Running(folder, {"gpu_hour_price": 0.5, "gpus": 1}) as running:
        ready = running.until("ready")
        log = HeldLog(running.fleet.states.directory / FILE_NAME)
        (under_way,) = log.spans()
        running.supervisor.ask("stopped")
        running.wait()
    (span,) = log.spans()
    assert (span.server, span.role, span.gpus, span.price) == ("small", "small", 1, 0.5)
    assert before <= ready.started <= under_way.began == span.began <= under_way.until < span.until <= time.time()


def test_a_server_that_is_to_go_on_stays_wanted_when_a_signal_stops_it(folder):
    with Running(folder, resigns=False) as running:
        running.until("ready")
        running.supervisor.ask("stopped")
        running.wait()

    assert running.state.wanted


def test_a_server_whose_time_is_over_says_so_and_stays_wanted(folder):
    with Running(folder) as running:
        running.until("ready")
        running.supervisor.ask("expiring")
        assert running.wait() == Ended("expiring")

    assert (running.state.status, running.state.wanted) == ("stopped", True)


def test_requests_under_way_are_finished_before_it_stops(folder):
    answers = []
    with Running(folder, {"drain_seconds": 30}) as running:
        running.until("ready")
        request = threading.Thread(target=lambda: answers.append(complete(folder.port, seconds=NOTICE + 3)))
        request.start()
        until(lambda: running.supervisor._api.busy() == 1, "a request that runs")
        running.supervisor.ask("stopped")
        running.until("draining")
        assert [entry.state for entry in running.entries] == ["draining"]
        assert running.wait() == Ended("stopped")
        request.join()

    assert answers == [" four"]


def test_draining_ends_after_its_time_and_at_a_second_request(folder):
    for role, asked in (({"drain_seconds": 0.5}, 1), ({"drain_seconds": 300}, 2)):
        with Running(folder, role) as running:
            running.until("ready")
            request = threading.Thread(target=broken_off, args=(folder.port,))
            request.start()
            until(lambda: running.supervisor._api.busy() == 1, "a request that runs")
            begun = time.monotonic()
            for _ in range(asked):
                running.supervisor.ask("stopped")
            running.wait()
            request.join()
        assert time.monotonic() - begun < 20


@pytest.mark.parametrize(
    ("mode", "detail"),
    [
        ("crash", "ValueError: the weights are of another shape"),
        ("memory", "not enough GPU memory: ValueError: Free memory on device (3.1/15.6 GiB)"),
        ("dies", "RuntimeError: CUDA error: an illegal memory access was encountered"),
        ("other", "serves another, not ./model"),
    ],
)
def test_a_server_that_fails_says_why_in_one_line(folder, mode, detail):
    folder.environ["FAKE_VLLM"] = mode
    with Running(folder) as running:
        ended = running.wait()

    assert ended.reason == "failed"
    assert detail in ended.detail
    assert (running.state.status, running.state.detail, running.state.wanted) == ("failed", ended.detail, True)
    assert running.entries == []
    assert running.said[-1] == f"small has failed: {ended.detail}"
    assert not [pid for pid in folder.processes if alive(pid)]


def test_a_server_that_is_killed_says_so(folder):
    with Running(folder) as running:
        running.until("ready")
        os.kill(folder.processes[0], signal.SIGKILL)
        ended = running.wait()

    assert ended.reason == "failed"
    assert "killed by SIGKILL" in ended.detail
    assert not [pid for pid in folder.processes if alive(pid)]


def test_a_server_that_is_never_healthy_is_given_up(folder):
    folder.environ["FAKE_VLLM"] = "hang"
    with Running(folder, {"start_seconds": 1.5}) as running:
        ended = running.wait()

    assert ended == Ended("failed", "not healthy within 1.5 s; last log line: loading the model")
    assert not [pid for pid in folder.processes if alive(pid)]


def test_a_server_that_is_asked_to_stop_while_it_starts_stops(folder):
    folder.environ["FAKE_VLLM"] = "hang"
    with Running(folder) as running:
        until(lambda: folder.processes, "vLLM's processes")
        running.supervisor.ask("stopped")
        assert running.wait() == Ended("stopped")

    assert not [pid for pid in folder.processes if alive(pid)]


def test_what_stands_in_the_way_is_remembered_and_nothing_is_started(folder):
    with Running(folder, {"device": "cuda"}) as running:
        running.wait()

    assert "device: cuda, but the vLLM of" in running.error.message
    assert (running.state.status, running.state.pid) == ("failed", 0)
    assert running.state.detail.startswith("role 'small' sets device: cuda")
    assert folder.processes == []


def test_a_second_supervisor_touches_nothing(folder):
    with Running(folder) as first:
        before = first.until("ready")
        with Running(folder) as second:
            second.wait()
            assert f"small is already running: process {os.getpid()}" in second.error.message
        assert first.state == before
        assert alive(folder.processes[0])


def test_an_entry_is_renewed_while_the_server_lives(folder):
    with Running(folder) as running:
        running.until("ready")
        (before,) = running.entries
        running.supervisor._beaten -= 100
        (after,) = until(lambda: [e for e in running.entries if e.updated > before.updated], "a beat")
        assert after.started == before.started


def test_a_registry_that_cannot_be_written_any_more_ends_no_server(folder):
    with Running(folder) as running:
        running.until("ready")
        registry = running.fleet.registry.directory
        registry.rename(registry.with_name("gone"))
        registry.write_text("no folder")
        running.supervisor._beaten -= 100
        until(lambda: any("cannot write to the registry" in line for line in running.said), "its complaint")
        assert complete(folder.port) == " four"
        registry.unlink()
        running.supervisor._beaten -= 100
        until(lambda: running.entries, "an entry")


def test_a_registry_that_cannot_be_written_at_the_start_is_why_it_fails(folder):
    (folder.path / "registry").write_text("no folder")
    with Running(folder) as running:
        ended = running.wait()

    assert ended.reason == "failed"
    assert f"cannot write to the registry {folder.path}/registry" in ended.detail
    assert not [pid for pid in folder.processes if alive(pid)]


def test_a_job_has_its_number_and_its_end_in_the_entry_and_needs_no_lock(folder):
    ends = time.time() + 3600
    place = ListenPlace(port=folder.port, host="node7", listen="0.0.0.0", job_id="42", expires=ends)
    with Running(folder, place=place) as running:
        state = running.until("ready")
        (entry,) = running.entries
        assert Holding(running.fleet.states.directory, "small").holder() is None

    assert (entry.host, entry.job_id, entry.expires) == ("node7", "42", ends)
    assert (state.how, state.job_id) == ("slurm", "42")


def test_the_key_reaches_vllm_and_not_its_command_line(folder):
    folder.environ["THE_KEY"] = "s3cret-of-ours"
    with Running(folder, {"api_key_env": "THE_KEY"}) as running:
        running.until("ready")
        shown = Path(f"/proc/{folder.processes[0]}/cmdline").read_text()
        assert "api_server" in shown
        assert "s3cret" not in shown
        assert running.supervisor._api.models() is None
        assert running.supervisor._api.models(api_key="s3cret-of-ours") == ["./model", "model"]
    assert "s3cret" not in (folder.path / "logs" / "small.log").read_text()


def test_further_options_reach_vllm_and_are_remembered(folder):
    with Running(folder, options=("--max-num-seqs=3",)) as running:
        assert running.until("ready").options == ("--max-num-seqs=3",)
    assert "--max-num-seqs=3" in (folder.path / "logs" / "small.log").read_text()


def test_a_disk_that_fills_up_with_logs_ends_no_server(folder, mount):
    disk = mount("40m")
    with Running(folder, settings={"logs": str(disk)}) as running:
        running.until("ready")
        with pytest.raises(OSError, match="No space"), (disk / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(65536))
        for _ in range(300):  # each is a line of its log
            assert complete(folder.port) == " four"
        running.supervisor.ask("stopped")
        assert running.wait() == Ended("stopped")


def test_a_server_is_not_started_where_the_disk_for_its_log_is_full(folder, small_disk):
    with Running(folder, settings={"logs": str(small_disk)}) as running:
        running.wait()

    assert f"the disk of {small_disk} is full" in running.error.message
    assert folder.processes == []
