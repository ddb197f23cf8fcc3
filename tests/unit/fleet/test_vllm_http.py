"""What a server says of itself, and that nothing that listens on its port can hold up who asks."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager

import pytest

from workflow_composer.fleet.vllm_http import LARGEST, Api

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n"


@contextmanager
def saying(*parts, pause=0.0):
    """A server that sends these parts to whoever comes, whatever is asked; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            try:
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(65536)
                        for part in parts:
                            connection.sendall(part)
                            time.sleep(pause)
            except OSError:
                return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield Api("127.0.0.1", listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(60)


def answer(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


def test_requests_that_run_and_wait_are_counted_over_all_engines():
    text = (
        b"# HELP vllm:num_requests_running x\n"
        b'vllm:num_requests_running{engine="0",model_name="m"} 2.0\nvllm:num_requests_running{engine="1"} 1.0\n'
        b'vllm:num_requests_waiting{engine="0"} 4.0\nvllm:num_requests_swapped 9.0\n'
    )
    with saying(answer(text)) as api:
        assert api.busy() == 7


@pytest.mark.parametrize("body", [b"", b"nonsense", b"vllm:num_requests_running ...\n", b"\xff\xfe"])
def test_what_tells_no_number_is_unknown_and_not_idle(body):
    with saying(answer(body)) as api:
        assert api.busy() is None


@pytest.mark.parametrize("body", [b"", b"[]", b'{"data": 3}', b'{"data": [{}]}', b"{", b"\xff"])
def test_what_is_no_list_of_models_is_unknown(body):
    with saying(answer(body)) as api:
        assert api.models() is None


def test_another_status_than_200_is_not_healthy_and_no_redirect_is_followed():
    with saying(answer(b"", b"503 Busy")) as api:
        assert not api.healthy()
    with saying(b"HTTP/1.1 302 Found\r\nLocation: /health\r\nContent-Length: 0\r\n\r\n", answer(b"")) as api:
        assert not api.healthy()


def test_an_answer_is_read_up_to_its_limit_only():
    with saying(HEAD, b"x" * (LARGEST + 100_000)) as api:
        assert len(api.ask("/", timeout=20)) == LARGEST


@pytest.mark.parametrize("parts", [[b"H"] * 100, [HEAD, *[b"x"] * 100], [answer(b"")[:9]]])
def test_an_answer_that_comes_as_a_trickle_is_given_up_in_time(parts):
    with saying(*parts, pause=0.2) as api:
        begun = time.monotonic()
        api.ask("/health", timeout=1)
        assert time.monotonic() - begun < 8


def test_where_nothing_listens_nothing_is_healthy():
    assert not Api("127.0.0.1", 1).healthy()
