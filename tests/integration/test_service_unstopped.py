"""Nobody stops the service by not reading its log, by locking its files, or by stopping one of its workers."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections.abc import Callable

from tests.integration.service import PATIENCE, Service, echoing, serving, write_profile


def until(holds: Callable[[], bool], what: str) -> None:
    """Wait for something that takes seconds at the most."""
    ends = time.monotonic() + 3 * PATIENCE
    while not holds():
        assert time.monotonic() < ends, what
        time.sleep(0.05)


def test_a_log_that_nobody_reads_stops_no_request(tmp_path):
    """The lines of a hundred requests are more than its pipe holds; they come when it is read."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, 1031, 4096)  # F_SETPIPE_SZ
    with echoing() as stub:
        profile = write_profile(tmp_path, "unread", stub.url)
        with Service(profile, "--access-log", stderr=writing) as service:
            os.close(writing)
            for number in range(100):
                assert service.ask(f"request {number} " + "x" * 200)[0] == 200
            held = os.read(reading, 100_000)
            assert held.count(b'"request"') < 100  # so it was full
            while held.count(b'"request"') < 100:
                held += os.read(reading, 100_000)  # none is lost
    os.close(reading)


def test_a_stranger_s_lock_on_the_metrics_stops_no_request_and_loses_no_line(tmp_path):
    """As a backup's or an editor's; the lines come when it is gone."""
    with echoing() as stub, serving(tmp_path, stub) as service:
        service.ask("first")
        until(service.metrics.exists, "the first line is written")
        lock = service.metrics.with_name(f".{service.metrics.name}.lock")
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT)
        fcntl.lockf(descriptor, fcntl.LOCK_EX)
        for number in range(20):
            assert service.ask(f"locked {number}")[0] == 200
        time.sleep(1.2)  # longer than the service buffers lines
        assert len(service.metrics.read_bytes().splitlines()) == 1
        os.close(descriptor)
        until(lambda: len(service.metrics.read_bytes().splitlines()) == 21, "the lines are written")


def test_a_worker_that_is_stopped_is_replaced(tmp_path):
    """It is alive for the system, and holds the connections that the system gives it."""
    with echoing() as stub, serving(tmp_path, stub, options=("--workers", "2")) as service:
        stopped = service.workers[0]
        os.kill(stopped, signal.SIGSTOP)
        until(lambda: stopped not in service.workers, "the stopped worker is noticed")
        until(lambda: len(service.workers) == 2, "it is replaced")
        for number in range(20):
            assert service.ask(f"after {number}")[0] == 200
        told = [json.loads(line)["event"] for line in service.log.splitlines()]
        assert "a worker does not respond and is being replaced" in told
