"""Whose server takes a connection on this machine, and that another user's gets nothing."""

from __future__ import annotations

import asyncio
import os
import socket
import sys

import pytest

from tests.integration.stranger import UID, stranger
from tests.integration.stub_server import StubServer
from workflow_composer import ModelOrchestrator
from workflow_composer.backends.http import client, egress, listeners
from workflow_composer.backends.http.client import Client
from workflow_composer.backends.http.connection import Broken, Connection
from workflow_composer.backends.http.egress import EgressPolicy, endpoint_of
from workflow_composer.backends.http.listeners import owner, owners
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.errors import EgressDenied, LocalModelUnavailable
from workflow_composer.metrics.sink import MemorySink

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux lists sockets with their owners")
NOBODY = frozenset({-1})


def table(*rows):
    """A table of sockets as Linux writes it, from (address, port, far port, state, user, inode)."""
    lines = ["  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"]
    for number, (local, port, far, state, user, inode) in enumerate(rows):
        lines.append(
            f"{number:4}: {local}:{port:04X} {'0' * len(local)}:{far:04X} {state} 00000000:00000000 00:00000000 00000000"
            f" {user:5}        0 {inode} 1 0000000000000000 100 0 0 10 0                       "
        )
    return "\n".join(lines) + "\n"


LOOPBACK, ANY, ANOTHER = "0100007F", "00000000", "0200007F"
ANY_6, LOOPBACK_6, MAPPED = "0" * 32, "0" * 24 + "01000000", "0" * 16 + "FFFF0000" + LOOPBACK
LISTENS, ACCEPTED = "0A", "01"


@pytest.mark.skipif(sys.byteorder != "little", reason="the rows below are those of a little-endian machine")
@pytest.mark.parametrize(
    ("address", "v4", "v6", "found"),
    [
        ("127.0.0.1", [(LOOPBACK, 8001, 0, LISTENS, 7, 1)], [], {7}),
        ("127.0.0.1", [(ANY, 8001, 0, LISTENS, 7, 1)], [], {7}),
        ("127.0.0.1", [(ANOTHER, 8001, 0, LISTENS, 7, 1)], [], set()),
        ("127.0.0.1", [(LOOPBACK, 8002, 0, LISTENS, 7, 1)], [], set()),
        ("127.0.0.1", [], [(ANY_6, 8001, 0, LISTENS, 7, 1)], {7}),
        ("127.0.0.1", [], [(MAPPED, 8001, 0, LISTENS, 7, 1)], {7}),
        ("127.0.0.1", [], [(LOOPBACK_6, 8001, 0, LISTENS, 7, 1)], set()),
        ("127.0.0.1", [(LOOPBACK, 8001, 0, LISTENS, 7, 1)], [(ANY_6, 8001, 0, LISTENS, 8, 1)], {7}),
        ("::1", [(LOOPBACK, 8001, 0, LISTENS, 8, 1)], [(LOOPBACK_6, 8001, 0, LISTENS, 7, 1)], {7}),
        ("127.0.0.1", [(LOOPBACK, 8001, 5555, ACCEPTED, 7, 12)], [], {7}),
        ("127.0.0.1", [(LOOPBACK, 8001, 5555, ACCEPTED, 0, 0), (LOOPBACK, 8001, 0, LISTENS, 7, 1)], [], {7}),
        ("127.0.0.1", [(LOOPBACK, 8001, 0, LISTENS, 8, 1), (LOOPBACK, 8001, 5555, ACCEPTED, 7, 12)], [], {7}),
        ("127.0.0.1", [(LOOPBACK, 8001, 5556, ACCEPTED, 7, 12)], [], set()),
    ],
)
def test_the_owner_is_that_of_the_accepting_socket_else_of_the_listener(monkeypatch, tmp_path, address, v4, v6, found):
    """A socket that is not accepted yet has no owner, which the kernel writes as root; its listener has."""
    for name, rows in (("tcp", v4), ("tcp6", v6)):
        (tmp_path / name).write_text(table(*rows))
    monkeypatch.setattr(listeners, "TABLES", (tmp_path / "tcp", tmp_path / "tcp6"))
    assert owners(address, 8001, 5555) == found


def test_without_the_tables_nothing_is_known(monkeypatch, tmp_path):
    """Another operating system has none."""
    monkeypatch.setattr(listeners, "TABLES", (tmp_path / "none",))
    assert owners("127.0.0.1", 8001, 5555) == set()


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_one_finds_oneself(family, address):
    """By netlink and in the kernel's tables, before and after the connection is accepted."""

    def whose(made):
        own, own_port = made.getsockname()[:2]
        if (found := owner(address, port, own, own_port)) is not None:
            assert found == os.geteuid()
        return owners(address, port, own_port)

    with socket.socket(family) as listening:
        try:
            listening.bind((address, 0))
        except OSError:
            pytest.skip("no IPv6 here")
        listening.listen()
        port = listening.getsockname()[1]
        with socket.create_connection((address, port)) as made:
            assert whose(made) == {os.geteuid()}
            accepted, _ = listening.accept()
            with accepted:
                listening.close()
                assert whose(made) == {os.geteuid()}


def test_a_closed_port_has_no_owner():
    """Neither by netlink nor in the tables."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    assert (owner("127.0.0.1", port, "127.0.0.1", 1), owners("127.0.0.1", port, 1)) == (None, set())


@pytest.mark.parametrize("netlink", [True, False])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_of_nobody_whom_the_profile_names_gets_no_byte(monkeypatch, host, netlink):
    """The connection is closed before the request; with the cloud allowed, whoever listens may have it."""
    if not netlink:
        monkeypatch.setattr(egress, "owner", lambda *_: None)
    with StubServer() as stub:
        url = f"http://{host}:{stub.port}/v1"

        async def ask(policy):
            async with Client(policy) as client:
                return await client.ask(f"{url}/models")

        here = frozenset({endpoint_of(url)})
        with pytest.raises(EgressDenied, match="another user of this machine"):
            asyncio.run(ask(EgressPolicy(False, here, users=NOBODY)))
        assert not stub.requests
        for policy in (EgressPolicy(True, here, users=NOBODY), EgressPolicy(False, here)):
            assert asyncio.run(ask(policy)).status == 200


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_a_server_that_another_user_runs_is_refused_until_the_profile_names_the_user():
    """The user of the port, in the words of the error and of its remedy."""
    with stranger() as port:

        def answer(**more):
            config = StrategyConfig(
                profile_name="local",
                allow_cloud=False,
                vllm_endpoints={"a": f"http://127.0.0.1:{port}/v1"},
                task_routing={"*": "a"},
                **more,
            )
            with ModelOrchestrator(config, metrics=MemorySink(), environ={}) as models:
                return models.generate("hello").text

        with pytest.raises((LocalModelUnavailable, EgressDenied), match="another user of this machine"):
            answer()
        assert answer(local_users=[str(UID)])


def test_a_server_that_closes_at_once_is_a_broken_connection_and_no_endless_wait(monkeypatch):
    """Its end may come while the owner is looked up, when nobody waits for an answer yet."""

    async def ask():
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        closed = asyncio.Event()
        monkeypatch.setattr(Connection, "connection_lost", lambda self, error: (lost(self, error), closed.set()))
        monkeypatch.setattr(client, "check_owner", lambda *_: closed.wait())
        async with server, Client(EgressPolicy(False, frozenset({("127.0.0.1", port)}))) as asking:
            return await asking.ask(f"http://127.0.0.1:{port}/v1")

    lost = Connection.connection_lost
    with pytest.raises(Broken):
        asyncio.run(ask())
