"""The service's own ends: SIGTERM with work under way, workers that are killed, disks that are full."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.integration.service import PATIENCE, Answer, Crowd, Service, ask, echo, echoing, post, serving, write_profile
from tests.integration.stub_server import Reply, Request, StubServer
from workflow_composer.server.auth.keys import Key, change_keys

WORKERS = pytest.mark.parametrize("workers", ["1", "2"])


def slowly(request: Request) -> Reply:
    """An echo that takes about a second."""
    reply = echo(request)
    return replace(reply, delay=1.0) if reply.events is None else replace(reply, gap=1.0 / len(reply.events))


def posts(stub: StubServer) -> int:
    """How many requests a model's server was sent."""
    return sum(request.method == "POST" for request in list(stub.requests))


class Wave:
    """Requests sent at once, every other one a stream; a context manager that waits for their answers."""

    def __init__(self, service: Service, count: int) -> None:
        self.answers: list[Answer] = []
        self._threads = [threading.Thread(target=self._ask, args=(service, number)) for number in range(count)]

    def _ask(self, service: Service, number: int) -> None:
        self.answers.append(ask(service, f"the mark of request {number} of the wave", stream=bool(number % 2)))

    def __enter__(self) -> Wave:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.join(PATIENCE)


@WORKERS
def test_sigterm_lets_what_is_under_way_end_and_refuses_what_comes_then(tmp_path, workers):
    """Forty requests under way, none lost; the exit code is 0 and the log says that nothing was cut off."""
    with echoing() as stub, serving(tmp_path, stub, options=("--workers", workers)) as service:
        ask(service, "warm")
        stub.answer = slowly
        before = posts(stub)
        with Wave(service, 40) as wave:
            assert stub.wait_for(lambda found: posts(found) == before + 40)
            service.terminate()
            deadline = time.monotonic() + PATIENCE
            while not refused(service):
                assert time.monotonic() < deadline
            assert service.process.poll() is None  # still at work for those that came before
        assert service.ended() == 0
    assert [answer for answer in wave.answers if answer.lost] == []
    assert len(wave.answers) == 40
    ends = [json.loads(line) for line in service.log.splitlines() if '"stopped"' in line]
    assert [end["cut_off"] for end in ends] == [0] * int(workers)


def refused(service: Service) -> bool:
    """Whether no connection can be made any more."""
    try:
        service.connect().close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # made in the very moment
        return False
    return False


@WORKERS
def test_sigterm_lets_a_slow_client_ask_once_more_on_its_kept_connection(tmp_path, workers):
    """It had an answer before the signal, and sends its next request well after it; that is answered, and is the last."""
    request = chat_of("once more")
    with echoing() as stub, serving(tmp_path, stub, options=("--workers", workers)) as service:
        with service.connect() as sock, sock.makefile("rb") as file:
            sock.sendall(request)
            assert b"connection: close" not in answer_on(file)
            service.terminate()
            deadline = time.monotonic() + PATIENCE
            while not refused(service):
                assert time.monotonic() < deadline
            time.sleep(0.8)  # what is tested: a client that takes its time
            sock.sendall(request)
            assert b"connection: close" in answer_on(file)
            assert file.read() == b""
        assert service.ended() == 0


def chat_of(text: str) -> bytes:
    """A request, as it is sent."""
    return post({"messages": [{"role": "user", "content": text}]})


def answer_on(file: BinaryIO) -> bytes:
    """A whole answer of 200 in lower case: status line, headers and body."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = file.readline()
        assert line, f"lost after {head!r}"
        head += line.lower()
    assert b" 200 " in head, head
    return head + file.read(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])).lower()


@WORKERS
def test_sigterm_under_load_loses_nothing_that_a_kept_connection_had_sent(tmp_path, workers):
    """Clients on kept connections ask as fast as they can; each is told with an answer that it was the last one."""
    with echoing() as stub, serving(tmp_path, stub, options=("--workers", workers)) as service:
        ask(service, "warm")
        ends: list[str] = []

        def client(number: int) -> None:
            try:
                with service.connect() as sock, sock.makefile("rb") as file:
                    answer = b""
                    while b"connection: close" not in answer:
                        sock.sendall(chat_of(f"mark {number}"))
                        answer = answer_on(file)
                        assert f'"mark {number}"'.encode() in answer
                ends.append("told")
            except (OSError, AssertionError) as error:
                ends.append(f"lost: {error!r}")

        threads = [threading.Thread(target=client, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        assert stub.wait_for(lambda found: len(found.requests) > 300)
        service.terminate()
        for thread in threads:
            thread.join(PATIENCE)
        assert service.ended() == 0
    assert ends == ["told"] * 16, service.log


def test_what_does_not_end_is_cut_off_when_the_time_for_it_is_over(tmp_path):
    with echoing() as stub, serving(tmp_path, stub, options=("--drain", "0.5")) as service:
        ask(service, "warm")
        before = posts(stub)
        stub.answer = lambda request: Reply(hang=True)
        with Wave(service, 4) as wave:
            assert stub.wait_for(lambda found: posts(found) == before + 4)
            service.terminate()
            began = time.monotonic()
            assert service.ended() == 0
            assert time.monotonic() - began < 20  # without the option it would be thirty
    assert all(answer.lost for answer in wave.answers)
    assert '"cut_off": 4' in service.log


def test_a_worker_that_is_killed_loses_what_was_under_way_on_it_and_nothing_else(tmp_path):
    """The other worker's requests end well, whoever comes waits for the new worker, and afterwards none is lost."""
    with echoing() as stub, serving(tmp_path, stub, options=("--workers", "2")) as service:
        for number in range(8):
            ask(service, f"warm {number}")
        stub.answer = slowly
        before, victims = posts(stub), service.workers
        with Wave(service, 40) as wave:
            assert stub.wait_for(lambda found: posts(found) == before + 40)
            on_victim = established(victims[0], service.port)
            assert 0 < on_victim < 40  # both have some
            stub.answer = echo
            os.kill(victims[0], signal.SIGKILL)
            with Crowd(service, 8) as crowd:
                crowd.wait_for(200)
        assert sum(answer.lost for answer in wave.answers) == on_victim
        assert crowd.lost == []
        assert len(service.workers) == 2
        assert victims[0] not in service.workers
        started = [line for line in service.log.splitlines() if '"started"' in line]
        assert len(started) == 3


def established(pid: int, port: int) -> int:
    """Connections to a port that a process has accepted."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        target = str(descriptor.readlink())
        if target.startswith("socket:"):
            inodes.add(target[8:-1])
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[3] == "01" and row[9] in inodes and row[1].endswith(f":{port:04X}") for row in rows)


def test_workers_that_are_killed_again_and_again_are_started_again_each_time(tmp_path):
    with echoing() as stub, serving(tmp_path, stub, options=("--workers", "2")) as service:
        for _ in range(3):
            for victim in service.workers:
                os.kill(victim, signal.SIGKILL)
            with Crowd(service, 4, each=5) as crowd:
                pass
            assert crowd.lost == []


def test_workers_end_when_their_supervisor_is_killed(tmp_path):
    """No orphan goes on answering with a strategy that nobody can switch."""
    with echoing() as stub:
        service = Service(write_profile(tmp_path, "p", stub.url), "--workers", "2")
        try:
            workers = service.workers
            service.process.kill()
            service.process.wait(PATIENCE)
            ends = time.monotonic() + PATIENCE
            while any(Path(f"/proc/{pid}").exists() for pid in workers):
                assert time.monotonic() < ends
                time.sleep(0.02)
            assert refused(service)
        finally:
            service.kill()


# -------------------------------------------------------------------------------------------------------------- full disks


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 256 kB, with most of it taken."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path) -> None:
    """Take what is left."""
    with (place / "filler").open("ab", buffering=0) as file:
        for size in (4096, 1):
            while True:
                try:
                    file.write(bytes(size))
                except OSError:
                    break


def test_metrics_that_cannot_be_written_lose_no_request(tmp_path):
    """/dev/full takes nothing; it is said once, and requests go on."""
    environ = {"WORKFLOW_COMPOSER_METRICS": "/dev/full"}
    with echoing() as stub, Service(write_profile(tmp_path, "p", stub.url), environ=environ) as service:
        with Crowd(service, 8, each=10) as crowd:
            pass
        assert not ask(service, "served on").lost
    assert crowd.lost == []
    assert service.log.count("cannot write metrics") == 1


@WORKERS
def test_a_disk_that_fills_up_loses_no_request_and_no_switch(tmp_path, full_disk, workers):
    """Metrics, state and ledger are on it; the ledger has the room that it made at the start."""
    known, secret = Key.new("known", budget=100.0)
    late, late_secret = Key.new("late")
    keys = tmp_path / "keys.json"
    change_keys(keys, lambda held: held.update({known.id: known, late.id: late}))
    environ = {
        "WORKFLOW_COMPOSER_METRICS": str(full_disk / "metrics.jsonl"),
        "WORKFLOW_COMPOSER_SERVE_STATE": str(full_disk / "state"),
    }
    with echoing() as stub, echoing() as other:
        write_profile(tmp_path, "q", other.url)
        profile = write_profile(tmp_path, "p", stub.url)
        with Service(profile, "--workers", workers, "--keys", str(keys), environ=environ) as service:

            def status(shown: str) -> int:
                body = {"messages": [{"role": "user", "content": "hi"}]}
                headers = {"Authorization": f"Bearer {shown}"}
                return service.request("POST", "/v1/chat/completions", body, headers)[0]

            assert [status(secret) for _ in range(8)] == [200] * 8
            fill(full_disk)
            assert [status(secret) for _ in range(40)] == [200] * 40
            assert status(late_secret) == 200  # there is room in the ledger that was made at the start
            assert service.switch("q")[0] == 200
            assert [status(secret) for _ in range(8)] == [200] * 8
            assert len(other.requests) > 0
            assert service.request("GET", "/metrics")[0] == 200
            (full_disk / "filler").unlink()
            assert status(secret) == 200
            assert service.process.poll() is None
