"""Clients that announce large bodies, with and without a key: three hundred at once cost little memory, and no one else an
answer.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import time
from collections.abc import Iterator

import pytest

from tests.integration.service import PATIENCE, Service, chat, echoing, serving
from workflow_composer.server.auth.keys import Key, change_keys

SIZE = 31_000_000
PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses", "/v1/embeddings"]
MOST = 200 * 2**20


def announced(path: str = PATHS[0], **headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", f"Content-Length: {SIZE}"]
    return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode()


@contextlib.contextmanager
def crowd(service: Service, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(service.connect()) for _ in range(count)]


@pytest.fixture
def keyed(tmp_path):
    """A service that requires a key, and one."""
    key, secret = Key.new("ann", now=time.time())
    change_keys(tmp_path / "keys.json", lambda known: known.update({key.id: key}))
    with echoing() as stub, serving(tmp_path, stub, options=("--keys", str(tmp_path / "keys.json"))) as service:
        yield service, secret


def test_without_a_key_no_body_is_waited_for(keyed):
    """Each is refused at the end of its headers, in every form of API; with the key, the body may come."""
    service, secret = keyed
    before = service.resident()
    with crowd(service, 300) as clients:
        for number, client in enumerate(clients):
            client.sendall(announced(PATHS[number % len(PATHS)]))
        for client in clients:
            client.settimeout(PATIENCE)
            assert client.recv(12) == b"HTTP/1.1 401"
        assert service.resident() - before < MOST
    body = json.dumps(chat("x" * 2_000_000)).encode()
    status, _, _ = service.request("POST", PATHS[0], body, {"Authorization": f"Bearer {secret}"})
    assert status == 200


def test_three_hundred_large_bodies_that_never_end_take_little_memory_and_others_get_their_answers(tmp_path):
    """Without keys anybody on the machine may send; each sends all that is taken, but for the end."""
    with echoing() as stub, serving(tmp_path, stub) as service:
        assert service.ask("warm")[0] == 200
        before = service.resident()
        with crowd(service, 300) as clients, selectors.DefaultSelector() as selector:
            for client in clients:
                client.sendall(announced())
                client.setblocking(False)
                selector.register(client, selectors.EVENT_WRITE, [SIZE - 1])
            ends, most, asked, sent = time.monotonic() + 3 * PATIENCE, 0, 0, 0
            while asked < 20:
                assert time.monotonic() < ends
                for key, _ in selector.select(0.1):
                    left = key.data
                    try:
                        taken = key.fileobj.send(b"x" * min(2**18, left[0]))
                        left[0] -= taken
                        sent += taken
                    except BlockingIOError:
                        continue
                    except OSError:
                        left[0] = 0  # refused
                    if not left[0]:
                        selector.unregister(key.fileobj)
                most = max(most, service.resident())
                asked += service.ask(f"beside {asked}")[0] == 200
        assert sent > 2 * MOST
        assert most - before < MOST
