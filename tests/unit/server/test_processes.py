"""What processes of the service share: a channel, an address, and metrics."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys

import pytest

from tests.unit.metrics.examples import metric
from workflow_composer.errors import ChannelClosed, ConfigError, WorkflowComposerError
from workflow_composer.metrics.live import LiveMetrics, SharedMetrics, forget
from workflow_composer.server.workers.control import WorkerChannel
from workflow_composer.server.workers.listeners import close, listen
from workflow_composer.server.workers.supervisor import WorkerProcess


@pytest.fixture
async def ends():
    """Both ends of a channel; one answers ``double``, ``refuse``, ``break`` and ``hang``."""

    async def double(data):
        return {"twice": data["number"] * 2}

    async def refuse(data):
        raise ConfigError("no", hint="do otherwise")

    async def broken(data):
        raise RuntimeError("a fault")

    async def hang(data):
        await asyncio.Event().wait()

    left, right = socket.socketpair()
    one, two = WorkerChannel({}), WorkerChannel({"double": double, "refuse": refuse, "broken": broken, "hang": hang})
    await one.open(left)
    await two.open(right)
    yield one, two
    one.close()
    two.close()


async def test_many_questions_at_once_get_their_own_answers(ends):
    found = await asyncio.gather(*(ends[0].ask("double", number=number) for number in range(50)))
    assert [one["twice"] for one in found] == [2 * number for number in range(50)]


async def test_a_refusal_and_a_fault_come_back_as_errors(ends):
    with pytest.raises(ConfigError, match="no") as caught:
        await ends[0].ask("refuse")
    assert caught.value.hint == "do otherwise"
    with pytest.raises(ConfigError, match="RuntimeError: a fault"):
        await ends[0].ask("broken")
    with pytest.raises(ConfigError, match="KeyError"):
        await ends[0].ask("unheard")


async def test_who_asks_is_told_that_the_other_is_gone_or_late(ends):
    with pytest.raises(TimeoutError):
        await ends[0].ask("hang", limit=0.02)
    waiting = asyncio.create_task(ends[0].ask("hang"))
    await asyncio.sleep(0)
    ends[1].close()
    with pytest.raises(ChannelClosed):
        await waiting
    assert ends[0].closed.is_set()
    with pytest.raises(ChannelClosed):
        await ends[0].ask("double", number=1)
    assert issubclass(ChannelClosed, WorkflowComposerError)


async def test_a_worker_that_cannot_publish_a_strategy_is_ended_so_that_its_successor_does():
    """It would go on serving another one than the rest."""

    async def cannot(data):
        raise ConfigError("no prepared strategy to publish")

    left, right = socket.socketpair()
    ours, theirs = WorkerChannel({}), WorkerChannel({"commit": cannot})
    await ours.open(left)
    await theirs.open(right)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])  # noqa: ASYNC220  # returns at once
    with pytest.raises(ConfigError, match="no prepared strategy to publish"):
        await WorkerProcess(0, process, ours).commit()
    assert process.wait(60) == -9
    ours.close()
    theirs.close()


def connected(port, count):
    """So many connections."""
    return [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]


def accepted(sock):
    """How many connections wait at a listening socket; they are closed."""
    count = 0
    while True:
        try:
            one, _ = sock.accept()
        except BlockingIOError:
            return count
        one.close()
        count += 1


def test_connections_are_spread_over_the_workers_sockets():
    """Of 200 connections to four sockets each gets some (a fair spread misses that once in 10^24)."""
    sockets = listen("127.0.0.1", 0, 4)
    ports = {sock.getsockname()[1] for sock in sockets}
    assert len(ports) == 1
    clients = connected(ports.pop(), 200)
    counts = [accepted(sock) for sock in sockets]
    assert sum(counts) == 200
    assert min(counts) > 0
    for client in clients:
        client.close()
    close(sockets)


@pytest.mark.parametrize("shares", [1, 3])
def test_a_port_that_somebody_listens_on_is_refused_even_if_he_shares_it(shares):
    taken = listen("127.0.0.1", 0, 2)
    with pytest.raises(ConfigError, match="choose another --port"):
        listen("127.0.0.1", taken[0].getsockname()[1], shares)
    close(taken)
    close(listen("127.0.0.1", taken[0].getsockname()[1] if taken[0].fileno() >= 0 else 0, shares))


@pytest.mark.parametrize("host", ["no.such.host.invalid", "256.1.1.1", "", "\ud800", "a" * 300])
def test_an_address_that_is_none_is_refused(host):
    if host == "":
        close(listen(host, 0))  # all addresses, as everywhere
        return
    with pytest.raises(ConfigError, match=r"cannot resolve|cannot listen"):
        listen(host, 0)


def test_several_workers_counts_add_up_and_a_successor_goes_on(tmp_path):
    one, two = (SharedMetrics(LiveMetrics(), tmp_path, number) for number in range(2))
    one._live.write(metric())
    two._live.write(metric())
    two._live.write(metric())
    two.save()
    assert total(one) == 3
    again = SharedMetrics(LiveMetrics(), tmp_path, 1)  # in the place of one that died
    again._live.write(metric())
    assert total(again) == 3
    again.save()
    assert total(one) == 4
    (tmp_path / "metrics-5.json").write_text("{half")
    assert total(one) == 4
    forget(tmp_path)
    assert total(SharedMetrics(LiveMetrics(), tmp_path, 0)) == 0


def total(shared):
    """Requests of all workers."""
    return sum(one["requests"] for one in shared.all()["series"])


def test_a_service_of_several_workers_that_cannot_start_says_why_and_ends(tmp_path):
    """The supervisor does not try for ever."""
    profile = tmp_path / "p.yaml"
    profile.write_text(
        "profile_name: p\nallow_cloud: false\nvllm_endpoints: {a: http://localhost:1/v1}\nrouters: [t4_model]\n"
    )
    keys = tmp_path / "keys.json"
    keys.write_text("{}")
    options = ["--workers", "2", "--port", "0", "--keys", str(keys)]
    command = [sys.executable, "-m", "workflow_composer", "-s", str(profile), "serve", *options]
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=120, check=False)
    assert done.returncode not in {0, 1}
    assert "keys file" in done.stderr
    assert "Traceback" not in done.stderr
