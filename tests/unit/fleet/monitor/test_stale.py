"""Entries of the registry are taken away only when their server is surely dead."""

from __future__ import annotations

import os
import socket
import threading
import time

import pytest

from tests.integration.fleet_commands import free_ports
from workflow_composer.backends.replicas.registry import LIFETIME, Entry, ServerRegistry
from workflow_composer.fleet.monitor.survey import LONG_GONE, withdraw_dead
from workflow_composer.storage.replacing import replace_file

NODE = os.uname().nodename


@pytest.fixture
def registry(tmp_path):
    return ServerRegistry(tmp_path)


def put(registry, *, age, **fields):
    """An entry that was renewed so many seconds ago."""
    now = time.time()
    given = {"server": "coder", "role": "coder", "host": "127.0.0.1", "port": free_ports(1)[0], "model": "m", "pid": 1}
    entry = Entry(**(given | {"node": "elsewhere", "started": now - 9999, "updated": now - age} | fields))
    replace_file(registry.directory / entry.file_name, entry.text())
    return entry


def test_what_is_renewed_stays(registry):
    put(registry, age=LIFETIME - 5, node=NODE)
    assert withdraw_dead(registry, NODE, time.time()) == []


def test_what_ran_here_and_is_gone_is_taken_away(registry):
    put(registry, age=LIFETIME + 5, node=NODE)
    assert len(withdraw_dead(registry, NODE, time.time())) == 1
    assert list(registry.all()) == []


def test_what_refuses_connections_long_after_is_taken_away(registry):
    put(registry, age=LONG_GONE + 5)
    assert len(withdraw_dead(registry, NODE, time.time())) == 1


def test_what_refuses_connections_for_a_while_may_come_back(registry):
    put(registry, age=LONG_GONE - 60)
    assert withdraw_dead(registry, NODE, time.time()) == []


def test_what_still_listens_stays(registry):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(1)
        put(registry, age=LONG_GONE + 5, port=listening.getsockname()[1])
        assert withdraw_dead(registry, NODE, time.time()) == []


def test_a_node_that_cannot_be_reached_may_come_back(registry):
    put(registry, age=LONG_GONE + 5, host="no-such-host.invalid")
    assert withdraw_dead(registry, NODE, time.time()) == []
    assert len(list(registry.all())) == 1


def test_a_name_server_that_hangs_holds_up_no_other_entry(registry, monkeypatch):
    """Twenty names that nobody resolves take as long as one, and the port that refuses is taken away."""
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait(60) or [])
    for index in range(20):
        put(registry, age=LONG_GONE + 5, server=f"slow-{index}", host=f"slow-{index}.example")
    gone = put(registry, age=LONG_GONE + 5)
    begun = time.monotonic()
    assert withdraw_dead(registry, NODE, time.time()) == [gone]
    assert time.monotonic() - begun < 15
    released.set()
