"""How the fleet asks: one server for callers that wait, and many at once, none of which holds up the others."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from contextlib import contextmanager

import pytest

from tests.unit.fleet.stub_vllm import StubVLLM, serving
from workflow_composer.backends.replicas.observer import METRICS
from workflow_composer.errors import EgressDenied
from workflow_composer.fleet.monitor.observers import Api, all_at_once, answer_to, observing
from workflow_composer.support.loop_thread import in_own_thread

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n"


@contextmanager
def saying(*parts, pause=0.0):
    """A server that sends these parts to whoever comes, whatever is asked; asks it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                try:
                    with connection:
                        connection.recv(65536)
                        for part in parts:
                            connection.sendall(part)
                            time.sleep(pause)
                except OSError:
                    continue

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield Api("127.0.0.1", listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(60)


def answer(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


# ------------------------------------------------------------------------------------------- one server, for who waits


def test_requests_that_run_and_wait_are_counted_over_all_engines():
    """And none of the counts beside them."""
    text = (
        b"# HELP vllm:num_requests_running x\n"
        b'vllm:num_requests_running{engine="0",model_name="m"} 2.0\nvllm:num_requests_running{engine="1"} 1.0\n'
        b'vllm:num_requests_waiting{engine="0"} 4.0\nvllm:num_requests_swapped 9.0\n'
    )
    with saying(answer(text)) as api:
        assert api.busy() == 7


@pytest.mark.parametrize("body", [b"", b"nonsense", b"vllm:num_requests_running ...\n", b"\xff\xfe"])
def test_what_tells_no_number_is_unknown_and_not_idle(body):
    """A server that drains is not ended for it."""
    with saying(answer(body)) as api:
        assert api.busy() is None


@pytest.mark.parametrize("body", [b"", b"[]", b'{"data": 3}', b'{"data": [{}]}', b"{", b"\xff"])
def test_what_is_no_list_of_models_is_unknown(body):
    """Nothing is concluded from it."""
    with saying(answer(body)) as api:
        assert api.models() is None


def test_another_status_than_200_is_not_healthy_and_no_redirect_is_followed():
    """A server that still loads says 503."""
    with saying(answer(b"", b"503 Busy")) as api:
        assert not api.healthy()
    with saying(b"HTTP/1.1 302 Found\r\nLocation: /health\r\nContent-Length: 0\r\n\r\n", answer(b"")) as api:
        assert not api.healthy()


def test_an_answer_beyond_its_limit_says_nothing():
    """Not what its first bytes say, either."""
    start = b'vllm:num_requests_running{engine="0"} 0.0\n'
    with saying(answer(start + b"#" * METRICS.answer)) as api:
        assert api.busy(timeout=20) is None


@pytest.mark.parametrize("parts", [[b"H"] * 100, [HEAD, *[b"x"] * 100], [answer(b"")[:9]]])
def test_an_answer_that_comes_as_a_trickle_is_given_up_in_time(parts):
    """Its limit is for the whole."""
    with saying(*parts, pause=0.2) as api:
        begun = time.monotonic()
        assert not api.healthy(timeout=1)
        assert time.monotonic() - begun < 8


def test_where_nothing_listens_nothing_is_healthy():
    """Nor does it serve models, or have requests."""
    api = Api("127.0.0.1", 1)
    assert (api.healthy(), api.models(api_key="no\nkey"), api.busy()) == (False, None, None)


async def test_an_event_loop_may_stand_still_for_an_answer():
    """A notebook's cell has one."""
    with serving(StubVLLM()) as stub:
        assert Api("127.0.0.1", stub.port).models() == ["small"]


# ------------------------------------------------------------------------------------------------- which server it asks


async def test_the_fleets_observer_reaches_its_own_server_wherever_that_is_and_no_other(monkeypatch):
    """A node may have a public address; what answers there cannot send the observer elsewhere."""
    connected = []

    async def refuse(self, protocol, host, port, **_):
        connected.append((host, port))
        raise ConnectionRefusedError

    monkeypatch.setattr(asyncio.BaseEventLoop, "create_connection", refuse)
    for host in ("192.0.2.7", "2001:db8::7"):
        async with observing(host, 8000) as observer:
            with pytest.raises(ConnectionRefusedError):
                await observer.health(5)
    assert connected == [("192.0.2.7", 8000), ("2001:db8::7", 8000)]

    async with observing("192.0.2.7", 8000) as observer:
        for url in ("http://192.0.2.8:8000/", "http://192.0.2.7:8001/", "http://169.254.169.254/"):
            with pytest.raises(EgressDenied):
                await observer._ask(url, None, connect=1.0, sink=None, bounds=METRICS)
    assert len(connected) == 2


@pytest.mark.parametrize("host", ["h/x", "user@h", "h?x", "h#x", "h x", "h:x", "", "a\\b"])
async def test_what_is_no_host_is_refused_before_anything_is_sent(host):
    """Whoever can write to the registry or to the state could lead the observer elsewhere by it."""
    with pytest.raises(EgressDenied):
        async with observing(host, 8000):
            pass


# --------------------------------------------------------------------------------------------------------- many at once


async def test_what_hangs_or_fails_is_missing_and_the_others_count(caplog):
    """Late is late, and a fault of ours is told and not hidden."""

    async def fails():
        raise ZeroDivisionError

    async def says(what):
        return what

    begun = time.monotonic()
    found = await all_at_once({"late": asyncio.sleep(60), "fails": fails(), "a": says(1), "b": says(2)}, 0.3)
    assert found == {"a": 1, "b": 2}
    assert time.monotonic() - begun < 20
    assert "the query to fails failed" in caplog.text
    assert "late" not in caplog.text


async def test_a_thread_that_hangs_holds_nobody_up():
    """A name server has no time limit of its own; nor has a file system."""
    released = threading.Event()
    looking = {"hangs": in_own_thread(released.wait, "hangs"), "a": in_own_thread(lambda: True, "a")}
    begun = time.monotonic()
    assert await all_at_once(looking, 0.3) == {"a": True}
    assert time.monotonic() - begun < 20
    released.set()


def test_an_interrupt_ends_a_question():
    """Ctrl-C is raised at once, and the question is cancelled with it."""
    ended = threading.Event()

    async def hangs():
        asyncio.get_running_loop().call_later(0.2, os.kill, os.getpid(), signal.SIGINT)
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        answer_to(hangs())
    assert ended.is_set()
    assert time.monotonic() - begun < 20


def test_a_signals_handler_runs_while_a_question_waits():
    """A monitor that is told to end hears it in the middle of a round."""
    heard = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: heard.set())
    try:

        async def until_heard():
            os.kill(os.getpid(), signal.SIGTERM)
            async with asyncio.timeout(20):
                while not heard.is_set():
                    await asyncio.sleep(0.01)
            return True

        assert answer_to(until_heard())
    finally:
        signal.signal(signal.SIGTERM, before)
