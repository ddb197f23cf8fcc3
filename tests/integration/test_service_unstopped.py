"""Nobody stops the service by not reading its log, by locking its files, or by stopping one of its workers."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from http.client import HTTPException

import pytest

from tests.integration.service import PATIENCE, Service, echoing, serving, write_profile
from tests.paths import ROOT


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


BLOCKER = """
import time

def block(text):
    while "sleep" in text:
        time.sleep(1)
    while "spin" in text:
        pass
    return text
"""


@pytest.mark.parametrize("how", ["sleep", "spin"])
def test_a_worker_whose_loop_is_blocked_is_replaced(tmp_path, how):
    """By a function of the profile that never returns, whether it lets other threads run or not."""
    (tmp_path / "blocker.py").write_text(BLOCKER)
    reading = [{"cascade": {"extract": ["python:blocker:block"]}}, "cascading_provider"]
    environ = {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    with echoing() as stub:
        profile = write_profile(tmp_path, "p", stub.url, routers=reading, task_routing={"*": "mv_p-0_k2_t0.7"})
        with Service(profile, "--workers", "2", environ=environ) as service:
            assert service.ask("first")[0] == 200
            before = set(service.workers)

            def ask() -> None:
                with contextlib.suppress(OSError, HTTPException):  # the worker is killed
                    service.ask(how)

            asking = threading.Thread(target=ask)
            asking.start()
            until(lambda: len(before & set(service.workers)) < 2, "the blocked worker is noticed")
            until(lambda: len(service.workers) == 2, "it is replaced")
            asking.join(PATIENCE)
            for number in range(20):
                assert service.ask(f"after {number}")[0] == 200
            told = [json.loads(line)["event"] for line in service.log.splitlines()]
            assert "a worker does not respond and is being replaced" in told


def test_one_worker_alone_says_that_nothing_replaces_it(tmp_path):
    with echoing() as stub, serving(tmp_path, stub) as service:
        until(lambda: "unwatched" in service.log, "it says so")
        assert [line for line in map(json.loads, service.log.splitlines()) if "--workers" in line.get("hint", "")]
    with echoing() as stub, serving(tmp_path, stub, options=("--workers", "2")) as service:
        assert not [line for line in map(json.loads, service.log.splitlines()) if "--workers" in line.get("hint", "")]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_metrics_of_every_worker_require_their_token(tmp_path, workers):
    """Each request has a connection of its own, so that both workers are asked. The token is in no line of the log."""
    token = "the-scraper-s-own-token"
    with echoing() as stub:
        profile = write_profile(tmp_path, "p", stub.url)
        environ = {"WORKFLOW_COMPOSER_METRICS_TOKEN": token}
        with Service(profile, "--workers", workers, "--access-log", environ=environ) as service:
            for given, expected in ((None, 401), ("wrong", 401), (token, 200)):
                headers = {} if given is None else {"Authorization": f"Bearer {given}"}
                statuses = {service.request("GET", "/metrics", headers=headers)[0] for _ in range(12)}
                assert statuses == {expected}
            assert service.ask("hello")[0] == 200  # nothing else requires it
            assert token not in service.log
