"""What clients make of entries that are stale, of another model, with another length or with a key; and of a full disk."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import time

import pytest

from tests.integration.replica_profile import asked, entry, orchestrator, profile, publish
from tests.integration.stub_server import Reply, StubServer
from workflow_composer.backends.replicas.registry import ServerRegistry, SigningKey
from workflow_composer.errors import AllCandidatesFailed
from workflow_composer.runtime.resources import ResourceDetector

OVERFLOW = Reply.error(400, "This model's maximum context length is 8 tokens. However, you requested 90 tokens.")


@pytest.fixture
def servers():
    with StubServer() as first, StubServer() as second:
        yield [first, second]


def registered(folder, **more):
    return orchestrator(profile("registry:coder", folder, **more))


async def fault_of(models):
    """What a request is told that no server can answer."""
    with pytest.raises(AllCandidatesFailed) as caught:
        await models.agenerate("Who is there?")
    return str(caught.value)


def write_aged(folder, server, seconds, **fields):
    """An entry that was renewed so many seconds ago (negative: by a clock that is ahead)."""
    found = publish(folder, server, node=os.uname().nodename, **fields)
    path = folder / found.file_name
    path.write_text(json.dumps({**json.loads(path.read_text()), "updated": time.time() - seconds}))


# ----------------------------------------------------------------------------------------------------------- stale entries


@pytest.mark.parametrize(("age", "said"), [(50.0, "renewed 5"), (-60.0, "s in the future")])
async def test_an_entry_that_is_too_old_or_from_the_future_is_named_with_age_and_clocks(tmp_path, servers, age, said):
    write_aged(tmp_path, servers[0], age)
    async with registered(tmp_path) as models:
        fault = await fault_of(models)
    assert f"coder on {os.uname().nodename}: its entry" in fault
    assert said in fault
    assert f"clocks of {os.uname().nodename} and of this machine differ" in fault
    assert "none is registered" not in fault


async def test_an_entry_whose_job_is_over_is_named(tmp_path, servers):
    publish(tmp_path, servers[0], expires=time.time() - 5)
    async with registered(tmp_path) as models:
        assert "its job has ended by its time limit" in await fault_of(models)


async def test_the_public_address_of_a_node_is_refused_with_the_key_that_admits_it(tmp_path):
    public = entry_at("129.132.10.5")
    ServerRegistry(tmp_path).publish(public)
    async with registered(tmp_path) as models:
        fault = await fault_of(models)
    assert "129.132.10.5" in fault
    assert "local_networks" in fault


def entry_at(host):
    class There:
        port = 8002

    There.host = host
    return entry(There)


async def test_a_server_that_only_its_own_machine_can_reach_is_named(tmp_path, servers):
    publish(tmp_path, servers[0], node="gpu3")
    async with registered(tmp_path) as models:
        assert "coder on gpu3: it listens on 127.0.0.1 there" in await fault_of(models)


# -------------------------------------------------------------------------------------------------------------- full disks


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 40 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=40k,mode=755", "tmpfs", str(place)]
    if os.getuid() or shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs root's rights")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(folder):
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            return


@pytest.mark.parametrize("signed", [False, True])
async def test_a_server_whose_registry_is_on_a_full_disk_keeps_its_entry_and_its_clients(small_disk, servers, signed):
    """Its heartbeat writes into the blocks that its entry has; a new entry has no room."""
    key = SigningKey(b"k" * 32) if signed else None
    registry = ServerRegistry(small_disk, key=key)
    found = registry.publish(entry(servers[0], state="starting"))
    fill(small_disk)
    with pytest.raises(Exception, match="No space left"):
        registry.publish(entry(servers[1], "coder-2"))
    before = found.updated
    for state in ("ready", "draining", "ready"):
        found = registry.publish(entry(servers[0], state=state))
        (seen,) = registry.entries()
        assert seen == found
    assert found.updated > before
    if not signed:
        async with registered(small_disk) as models:
            assert (await models.agenerate("Who is there?")).text


# ------------------------------------------------------------------------------------------------------- one role, one model


async def test_of_two_models_under_one_role_the_older_servers_answers(tmp_path, servers):
    """A certificate for one would cover the other. The newer takes over when the older one drains."""
    old, new = servers
    publish(tmp_path, old, model="one", started=time.time() - 90)
    publish(tmp_path, new, "coder-2", model="two")
    async with registered(tmp_path) as models:
        for _ in range(8):
            await models.agenerate("Who is there?")
        assert (len(asked(old)), len(asked(new))) == (8, 0)
        publish(tmp_path, old, model="one", state="draining", started=time.time() - 90)
        ends = time.monotonic() + 30
        while not asked(new):
            await models.agenerate("And now?")
            assert time.monotonic() < ends


async def test_a_server_of_another_model_is_named(tmp_path, servers):
    old, new = servers
    publish(tmp_path, old, model="one", started=time.time() - 90)
    publish(tmp_path, new, "coder-2", model="two")
    old.answer = lambda request: Reply.error(500, "broken")
    async with registered(tmp_path) as models:
        await fault_of(models)
        (endpoint,) = models._active.endpoints.values()
        assert "serves two, but the role's coder" in endpoint.backend._set.refused[0]
    assert asked(new) == []


# ------------------------------------------------------------------------------------------------------------- the length


@pytest.mark.parametrize("streams", [False, True])
async def test_a_prompt_too_long_for_one_server_goes_once_to_one_with_a_longer_context(tmp_path, servers, streams):
    short, long = servers
    publish(tmp_path, short, max_model_len=8)
    publish(tmp_path, long, "coder-2", max_model_len=4096)
    short.answer = lambda request: OVERFLOW
    async with registered(tmp_path) as models:
        for _ in range(12):
            if streams:
                assert [piece async for piece in models.astream("Long?")]
            else:
                assert (await models.agenerate("Long?")).text
        assert asked(short), "some went there first"
        assert len(asked(long)) == 12
        long.answer = lambda request: OVERFLOW
        before = len(asked(short)) + len(asked(long))
        with pytest.raises(Exception, match="maximum context length"):
            await models.agenerate("Longer?")
        assert len(asked(short)) + len(asked(long)) - before <= 2


@pytest.mark.parametrize("lengths", [(8, 8), (8, None), (4096, 8)])
async def test_a_prompt_too_long_is_not_tried_where_the_context_is_no_longer(tmp_path, servers, lengths):
    first, second = servers
    publish(tmp_path, first, max_model_len=lengths[0])
    publish(tmp_path, second, "coder-2", max_model_len=lengths[1])
    for server in servers:
        server.answer = lambda request: OVERFLOW
    async with registered(tmp_path) as models:
        with pytest.raises(Exception, match="maximum context length"):
            await models.agenerate("Long?")
    tried = len(asked(first)) + len(asked(second))
    assert tried == 1 or (lengths == (4096, 8) and asked(second))


# ---------------------------------------------------------------------------------------------------------------- the keys


def authorizations(server):
    return {request.headers.get("authorization") for request in server.requests if "completions" in request.path}


@pytest.mark.parametrize("signed", [False, True])
async def test_a_servers_own_key_travels_to_its_clients_and_nowhere_else(tmp_path, servers, signed, monkeypatch):
    registry, environ = ServerRegistry(tmp_path), {}
    if signed:
        secret = tmp_path / "secret"
        secret.write_text("s" * 40)
        secret.chmod(0o600)
        registry = ServerRegistry(tmp_path, key=SigningKey(b"s" * 40))
        environ = {"WORKFLOW_COMPOSER_REGISTRY_KEY": str(secret)}
    keyed, key = registry.new_key(entry(servers[0]))
    registry.publish(keyed, key)
    other, another = registry.new_key(entry(servers[1], "coder-2"))
    registry.publish(other, another)
    assert key != another
    for server, mine in ((servers[0], key), (servers[1], another)):
        server.answer = lambda request, mine=mine: (
            Reply.chat("well") if request.headers.get("authorization") == f"Bearer {mine}" else Reply.error(401, "no")
        )
    config = profile("registry:coder", tmp_path)
    from workflow_composer import ModelOrchestrator
    from workflow_composer.metrics.sink import MemorySink

    async with ModelOrchestrator(config, metrics=MemorySink(), environ=environ) as models:
        for number in range(12):
            assert (await models.agenerate(f"{number}?")).text == "well"
        shown = repr(models._active.endpoints) + repr([one.place for one in replicas(models)])
    assert [authorizations(server) for server in servers] == [{f"Bearer {key}"}, {f"Bearer {another}"}]
    assert key not in shown
    for path in tmp_path.iterdir():
        if key in path.read_text():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert not signed, "a derived key is in no file"
    registry.withdraw(keyed)
    assert not any(key in path.read_text() for path in tmp_path.iterdir())


def replicas(models):
    (endpoint,) = models._active.endpoints.values()
    return endpoint.backend._set.replicas


def test_the_key_of_another_users_server_is_not_believed(tmp_path, servers):
    registry = ServerRegistry(tmp_path)
    keyed, key = registry.new_key(entry(servers[0]))
    registry.publish(keyed, key)
    assert registry.key_of(keyed) == key
    assert ServerRegistry(tmp_path, frozenset({os.getuid() + 1})).key_of(keyed) == ""


async def test_status_and_doctor_ask_a_keyed_server_with_its_key(tmp_path, servers):
    registry = ServerRegistry(tmp_path)
    keyed, key = registry.new_key(entry(servers[0]))
    registry.publish(keyed, key)
    config = profile("registry:coder", tmp_path)
    status = await ResourceDetector(config, environ={}).adetect(slurm=False)
    assert status.endpoints["coder"].healthy
    listed = [request for request in servers[0].requests if request.path.endswith("/models")]
    assert {request.headers.get("authorization") for request in listed} == {f"Bearer {key}"}
    assert key not in repr(status)
