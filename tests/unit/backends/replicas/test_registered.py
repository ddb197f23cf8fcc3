"""The registry as a client sees it: files that come, go, change, are half written, or are none."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time

import pytest

from workflow_composer.backends.replicas import registry
from workflow_composer.backends.replicas.discovery import Finder
from workflow_composer.backends.replicas.registry import (
    KEY_VARIABLE,
    LARGEST,
    LIFETIME,
    REGISTRY_VARIABLE,
    SHORTEST_KEY,
    Entry,
    RegistryView,
    ServerRegistry,
    SigningKey,
    view_of,
)
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.errors import ConfigError
from workflow_composer.fleet.file import load_fleet


class Clock:
    """A clock that is set by hand."""

    now = 1000.0

    def __call__(self):
        return self.now


class SlowView(RegistryView):
    """A registry whose file system hangs until it is let go."""

    hanging = None
    readings = 0

    def read(self):
        self.readings += 1
        if self.hanging is not None:
            self.hanging.wait(30)
        super().read()


def entry(server="coder", **fields):
    """A ready server on this machine."""
    defaults = {"role": "coder", "host": "127.0.0.1", "port": 8002, "model": "m", "state": "ready"}
    return Entry(**{"server": server, **defaults, "started": time.time(), "updated": 0.0, **fields})


def names(picture):
    """The servers in a picture."""
    return {found.server for found in picture.entries}


@pytest.fixture
def view(tmp_path):
    """A view of an empty folder, on a machine called `here`, with a clock."""
    return RegistryView(tmp_path, clock=Clock(), node="here.cluster")


async def until_read(view):
    """The reading behind the caller's back has ended."""
    ends = time.monotonic() + 60
    while not view._reading[0].done():
        assert time.monotonic() < ends
        await asyncio.sleep(0.001)


async def test_the_first_look_waits_for_the_reading(view):
    """Otherwise the first request would find no server."""
    ServerRegistry(view.directory).publish(entry())
    assert names(await view.picture()) == {"coder"}


async def test_a_change_is_seen_a_second_later_and_nobody_waits_for_it(tmp_path):
    """What is known is used while it is read again."""
    view = SlowView(tmp_path, clock=Clock())
    await view.picture()
    ServerRegistry(tmp_path).publish(entry())
    view.hanging = threading.Event()
    view._clock.now += 0.9
    assert names(await view.picture()) == set()
    assert view.readings == 1
    view._clock.now += 0.2
    assert names(await view.picture()) == set()
    view.hanging.set()
    await until_read(view)
    assert view.readings == 2
    assert names(await view.picture()) == {"coder"}


async def test_after_a_pause_the_next_request_waits_for_a_new_reading(view):
    """What was known minutes ago says nothing of now."""
    await view.picture()
    ServerRegistry(view.directory).publish(entry())
    view._clock.now += 60
    assert names(await view.picture()) == {"coder"}


async def test_a_file_system_that_hangs_blocks_neither_the_loop_nor_a_second_request(tmp_path, monkeypatch):
    """The first request waits for a moment, the next not at all; what was known goes on counting for five minutes."""
    monkeypatch.setattr(registry, "PATIENCE", 0.2)
    view = SlowView(tmp_path, clock=Clock())
    ServerRegistry(tmp_path).publish(entry())
    assert names(await view.picture()) == {"coder"}
    view.hanging = threading.Event()
    try:
        view._clock.now += 10
        started = time.monotonic()
        assert names(await view.picture()) == {"coder"}
        assert time.monotonic() - started < 5
        view._clock.now += 10
        assert names(await view.picture()) == {"coder"}
        assert view.readings == 2  # no third thread waits behind the second
        view._clock.now += registry.BELIEVED
        found = await view.picture()
        assert (found.entries, "slow" in found.fault) == ((), True)
    finally:
        view.hanging.set()
    await until_read(view)


def test_a_program_ends_while_the_file_system_hangs(tmp_path):
    """The reading thread keeps nobody."""
    view = SlowView(tmp_path)
    view.hanging = threading.Event()
    try:
        asyncio.run(asyncio.wait_for(view.picture(), 60))
        assert view.readings == 1
    finally:
        view.hanging.set()
    view._reading[0].result(60)


async def test_a_folder_that_cannot_be_read_keeps_what_was_known(view, monkeypatch):
    """A stale handle is no sign that servers have died."""
    ServerRegistry(view.directory).publish(entry())
    await view.picture()

    def stale(*_):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(ServerRegistry, "entries", stale)
    view._clock.now += 10
    found = await view.picture()
    assert names(found) == {"coder"}
    assert "Stale file handle" in found.fault


async def test_a_folder_that_is_not_there_is_empty(tmp_path):
    """Nothing has been registered yet."""
    found = await RegistryView(tmp_path / "none").picture()
    assert (found.entries, "no folder" in found.fault) == ((), True)


async def test_a_folder_that_anyone_may_write_to_is_not_believed(view):
    """Whoever can name a server there would get the prompts."""
    ServerRegistry(view.directory).publish(entry())
    view.directory.chmod(0o777)
    found = await view.picture()
    assert (found.entries, "any user may write" in found.fault) == ((), True)


async def test_an_entry_is_believed_from_ones_own_users_only(tmp_path):
    """Its file says whose it is. The reason is there to be shown."""
    ServerRegistry(tmp_path).publish(entry())
    stranger = RegistryView(tmp_path, clock=Clock(), node="here", users=frozenset({os.geteuid() + 1}))
    found = await stranger.picture()
    assert (found.entries, "are ignored" in found.fault) == ((), True)
    assert not list(ServerRegistry(tmp_path, frozenset()).all())
    friend = RegistryView(tmp_path, clock=Clock(), node="here", users=frozenset({os.geteuid()}))
    assert (names(await friend.picture()), friend.known.fault) == ({"coder"}, "")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
async def test_another_users_entry_gets_no_prompts_until_the_profile_names_the_user(tmp_path):
    """Beside one's own entry of the same role, in a folder that both may write to."""
    for server, port, owner in (("mine", 1, 0), ("theirs", 2, 65534)):
        published = ServerRegistry(tmp_path).publish(entry(server, port=port))
        os.chown(tmp_path / published.file_name, owner, owner)

    def finder(**more):
        config = StrategyConfig(profile_name="p", vllm_endpoints={"coder": "registry:coder"}, registry=str(tmp_path), **more)
        return Finder(config, "coder", {})

    assert [place.url for place in finder().places_now()] == ["http://127.0.0.1:1/v1"]
    assert len(finder(local_users=["65534"]).places_now()) == 2
    os.chown(tmp_path / entry("mine", port=1).file_name, 65534, 65534)
    found = finder()
    assert found.places_now() == ()
    assert "local_users" in found.nobody(())


def a_key(path, content=b"k" * SHORTEST_KEY, mode=0o600):
    """A key's file, as the environment names it."""
    path.write_bytes(content)
    path.chmod(mode)
    return {KEY_VARIABLE: str(path)}


async def test_with_a_key_the_signature_says_who_is_believed_and_not_the_owner(tmp_path):
    """For folders whose files all seem to belong to one user, or to which everybody may write."""
    key = SigningKey.read(a_key(tmp_path / "key", b"ours" * 16 + b"\n"))
    other = SigningKey.read(a_key(tmp_path / "other", b"theirs" * 16))
    folder = tmp_path / "registry"
    signed = ServerRegistry(folder, key=key).publish(entry("signed", port=1))
    ServerRegistry(folder).publish(entry("unsigned", port=2))
    ServerRegistry(folder, key=other).publish(entry("another", port=3))
    folder.chmod(0o777)
    nobody = frozenset({os.geteuid() + 1})
    view = RegistryView(folder, clock=Clock(), node="here", users=nobody, key=key)
    found = await view.picture()
    assert names(found) == {"signed"}
    assert found.entries[0] == signed
    assert "2 entries are ignored, not signed" in found.fault
    assert names(await RegistryView(folder, clock=Clock(), node="here", users=nobody, key=other).picture()) == {"another"}


@pytest.mark.parametrize(
    ("field", "value"), [("port", 9), ("host", "10.0.0.9"), ("updated", 2e9), ("model", "x"), ("new", 1)]
)
async def test_a_signature_holds_for_every_field(tmp_path, field, value):
    key = SigningKey(b"k" * SHORTEST_KEY)
    path = tmp_path / ServerRegistry(tmp_path, key=key).publish(entry()).file_name
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    assert list(ServerRegistry(tmp_path, key=key).all()) == []


def test_a_signed_entry_counts_once_in_its_own_file_and_as_it_was_signed(tmp_path):
    """Not copied to another name, and not with a field before that another parser would read."""
    key = SigningKey(b"k" * SHORTEST_KEY)
    registry = ServerRegistry(tmp_path, key=key)
    path = tmp_path / registry.publish(entry(port=1)).file_name
    (tmp_path / "coder@127.0.0.1-2.json").write_bytes(path.read_bytes())
    assert [found.port for found in registry.all()] == [1]
    for doubled in ('"port": 1,\n "port": 1', '"port": 7,\n "port": 1'):
        path.write_text(path.read_text().replace('"port": 1', doubled))
        assert [found.port for found in registry.all()] == [1]  # the last, which is the one that was verified
    for wrong in ("null", "[]", '{"signature": 1}', '{"signature": "\\ud800"}', "[" * 10_000, "{", '"x"'):
        path.write_text(wrong)
        assert list(registry.all()) == []


def test_a_version_without_signatures_reads_a_signed_entry(tmp_path):
    """As it reads every file of a newer one: by the owner of its file."""
    published = ServerRegistry(tmp_path, key=SigningKey(b"k" * SHORTEST_KEY)).publish(entry())
    assert list(ServerRegistry(tmp_path).all()) == [published]


def test_a_profile_and_a_fleet_use_the_key_that_the_environment_names(tmp_path):
    environ = a_key(tmp_path / "key")
    fleet_file = tmp_path / "fleet.yaml"
    fleet_file.write_text(json.dumps({"registry": "registry", "roles": {"coder": {"model": "m", "port": 8002}}}))
    load_fleet(fleet_file, environ).registry.publish(entry(port=1))
    folder = tmp_path / "registry"
    ServerRegistry(folder).publish(entry("unsigned", port=2))
    config = StrategyConfig(profile_name="p", vllm_endpoints={"coder": "registry:coder"}, registry=str(folder))
    assert [place.url for place in Finder(config, "coder", environ).places_now()] == ["http://127.0.0.1:1/v1"]
    assert len(Finder(config, "coder", {}).places_now()) == 2


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (b"k" * 64, 0o640, "chmod 600"),
        (b"k" * 64, 0o602, "chmod 600"),
        (b"short\n", 0o600, "fewer than 32"),
        (None, 0, "openssl"),
    ],
)
def test_a_key_that_is_none_is_an_error_with_its_remedy(tmp_path, content, mode, said):
    place = tmp_path / "key"
    environ = {KEY_VARIABLE: str(place)} if content is None else a_key(place, content, mode)
    with pytest.raises(ConfigError) as caught:
        SigningKey.read(environ)
    assert said in caught.value.message + caught.value.hint
    assert str(place) in caught.value.message
    assert content is None or content.decode() not in caught.value.message + caught.value.hint
    assert SigningKey.read({}) is None


async def test_what_is_no_entry_is_passed_over(view, tmp_path_factory):
    """Half written, garbage, huge, a link, a folder, a pipe, writable by all, or too old: the good ones are still found."""
    folder, registry = view.directory, ServerRegistry(view.directory)
    registry.publish(entry())
    good = (folder / entry().file_name).read_text()
    (folder / "half.json").write_text(good[: len(good) // 2])
    (folder / "garbage.json").write_bytes(bytes(range(256)))
    (folder / "list.json").write_text("[]")
    (folder / "deep.json").write_text("[" * 5000)
    (folder / "huge.json").write_text(good + " " * LARGEST)
    (folder / "folder.json").mkdir()
    os.mkfifo(folder / "pipe.json")
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "entry.json"
    elsewhere.write_text(good.replace('"coder"', '"linked"'))
    (folder / "link.json").symlink_to(elsewhere)
    (folder / "dangling.json").symlink_to(folder / "nothing")
    (folder / "open.json").write_text(good.replace('"coder"', '"open"'))
    (folder / "open.json").chmod(0o666)
    (folder / "group.json").write_text(good.replace('"coder"', '"group"'))
    (folder / "group.json").chmod(0o664)
    (folder / "beside.new").write_text(good.replace('"coder"', '"beside"'))
    (folder / "old.json").write_text(json.dumps({**json.loads(good), "server": "old", "updated": time.time() - LIFETIME}))
    (folder / "over.json").write_text(json.dumps({**json.loads(good), "server": "over", "expires": time.time() - 1}))
    assert names(await view.picture()) == {"coder"}


async def test_a_server_that_only_its_own_node_can_reach_is_found_there_only(view):
    """127.0.0.1 on another node is another machine's."""
    registry = ServerRegistry(view.directory)
    registry.publish(entry("mine", node="here", port=1))
    registry.publish(entry("unsaid", port=2))
    registry.publish(entry("theirs", node="there.cluster", port=3))
    registry.publish(entry("open", node="there", host="10.0.0.9", port=4))
    assert names(await view.picture()) == {"mine", "unsaid", "open"}


async def test_changes_while_files_are_replaced_never_show_half_a_fleet(view):
    """Two hundred renewals of three entries by another thread; every reading sees all three."""
    registry = ServerRegistry(view.directory)
    servers = [entry(f"coder-{n}", port=n) for n in (1, 2, 3)]
    for server in servers:
        registry.publish(server)
    renewing = threading.Thread(target=lambda: [registry.publish(servers[n % 3]) for n in range(200)])
    renewing.start()
    while renewing.is_alive():
        view._clock.now += 10
        assert names(await view.picture()) == {"coder-1", "coder-2", "coder-3"}
    renewing.join()


def test_roles_share_one_view_of_a_folder(tmp_path):
    """Four roles do not read it four times a second."""
    assert view_of(tmp_path) is view_of(tmp_path)
    assert view_of(tmp_path) is not view_of(tmp_path / "other")


# ------------------------------------------------------------------------------------------------- the places of a role


def finder(tmp_path, places, **profile):
    """Where the servers of `coder` are."""
    config = StrategyConfig(profile_name="p", vllm_endpoints={"coder": places}, registry=str(tmp_path), **profile)
    return Finder(config, "coder", {})


async def urls(found):
    """The places' addresses."""
    return [place.url for place in await found.places()]


async def test_only_ready_servers_of_the_role_are_given_work(tmp_path):
    """Not one that starts, drains, or belongs to another role."""
    registry = ServerRegistry(tmp_path)
    for number, (role, state) in enumerate(
        [("coder", "ready"), ("coder", "starting"), ("coder", "draining"), ("math", "ready")], 1
    ):
        registry.publish(entry(f"s{number}", role=role, state=state, port=number))
    assert await urls(finder(tmp_path, "registry:coder")) == ["http://127.0.0.1:1/v1"]


async def test_a_list_is_joined_with_the_registry(tmp_path):
    """Both kinds of places, several roles of the registry among them."""
    registry = ServerRegistry(tmp_path)
    registry.publish(entry("c", port=1))
    registry.publish(entry("g", role="generalist", port=2))
    places = ["http://node-7:8002", "registry:coder", "registry:generalist"]
    assert await urls(finder(tmp_path, places)) == [
        "http://node-7:8002/v1",
        "http://127.0.0.1:1/v1",
        "http://127.0.0.1:2/v1",
    ]


@pytest.mark.parametrize("listed", ["http://localhost:8002/v1", "http://127.0.0.1:8002", "http://LOCALHOST:8002/v1"])
@pytest.mark.parametrize(("state", "count"), [("ready", 1), ("draining", 0), ("starting", 0)])
async def test_what_the_registry_says_of_a_listed_server_counts(tmp_path, listed, state, count):
    """A server that drains gets no work by its other name."""
    ServerRegistry(tmp_path).publish(entry(state=state))
    assert len(await urls(finder(tmp_path, [listed, "registry:coder"]))) == count


async def test_the_environments_registry_goes_before_the_profiles(tmp_path):
    """As it does for the fleet."""
    ServerRegistry(tmp_path / "other").publish(entry())
    config = StrategyConfig(profile_name="p", vllm_endpoints={"coder": "registry:coder"}, registry=str(tmp_path))
    found = Finder(config, "coder", {REGISTRY_VARIABLE: str(tmp_path / "other")})
    assert await urls(found) == ["http://127.0.0.1:8002/v1"]


async def test_where_no_server_is_ready_the_reason_and_the_remedy_are_named(tmp_path):
    """The role, what its servers do instead, and the commands."""
    ServerRegistry(tmp_path).publish(entry(state="draining", node="n7", host="10.0.0.7"))
    found = finder(tmp_path, "registry:coder")
    await found.places()
    assert found.nobody([]) == "no server of coder is ready: coder on n7 is draining"
    assert "fleet status" in found.hint
    assert "fleet submit coder" in found.hint
