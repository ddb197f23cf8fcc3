"""Switching: everybody or nobody, what would change, versions and the way back, and who says what is on record."""

from __future__ import annotations

import asyncio
import json

import pytest

from workflow_composer import ModelOrchestrator
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.errors import ChannelClosed, ConfigError, EgressProofFailed, WorkflowComposerError
from workflow_composer.metrics.sink import MemorySink
from workflow_composer.server.admin.strategy_switcher import (
    MOST_VERSIONS,
    Local,
    Strategies,
    SwitchAudit,
    available,
    difference,
    reload,
    watch,
)
from workflow_composer.server.admin.switching import Admin
from workflow_composer.server.api.completion_handler import Accounts
from workflow_composer.server.auth.callers import Callers
from workflow_composer.server.failures import HttpFailure
from workflow_composer.server.service import callers_of
from workflow_composer.server.settings import ServerSettings

PROFILE = """profile_name: {name}
allow_cloud: false
vllm_endpoints: {{{role}: http://localhost:8001/v1}}
task_routing: {{"*": {role}}}
routers: [t4_model]
"""
TOKEN = {"x-admin-token": "secret"}


class Worker:
    """A participant that remembers what it was told; ``fails`` when it is to prepare."""

    def __init__(self, fails=None):
        self.fails = fails
        self.active = None
        self.prepared = None

    async def prepare(self, config, plugins):
        if self.fails:
            raise self.fails
        self.prepared = config

    async def commit(self):
        self.active, self.prepared = self.prepared, None

    async def discard(self):
        self.prepared = None


@pytest.fixture
def folder(tmp_path):
    """A folder with two profiles."""
    for name, role in (("one", "a"), ("two", "b")):
        (tmp_path / f"{name}.yaml").write_text(PROFILE.format(name=name, role=role))
    return tmp_path


def switchboard(folder, *workers):
    """Strategies that begin with profile one."""
    config = StrategyConfig.load(folder / "one.yaml", environ={})
    return Strategies(config, lambda: workers, SwitchAudit(folder / "audit.jsonl"), environ={})


class Told:
    """A log that keeps what it is told."""

    def __init__(self, kept):
        self.event = self.refusal = kept.append


def audited(folder):
    """The audit log."""
    path = folder / "audit.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


async def test_all_workers_go_over_and_the_log_says_who_and_when(folder):
    workers = [Worker(), Worker()]
    version = await switchboard(folder, *workers).switch("two", who="ann", why="try")
    assert [worker.active.profile_name for worker in workers] == ["two", "two"]
    assert (version.number, version.strategy, version.who) == (2, "two", "ann")
    line = audited(folder)[-1]
    assert (line["what"], line["who"], line["before"], line["after"], line["why"]) == ("switch", "ann", "one", "two", "try")
    assert line["at"].startswith("20")


@pytest.mark.parametrize("fault", [ConfigError("no room"), RuntimeError("broken"), TimeoutError()])
async def test_where_one_worker_cannot_nobody_goes_over(folder, fault):
    workers = [Worker(), Worker(fails=fault), Worker()]
    strategies = switchboard(folder, *workers)
    with pytest.raises(ConfigError):
        await strategies.switch("two", who="ann")
    assert [worker.active for worker in workers] == [None] * 3
    assert [worker.prepared for worker in workers] == [None] * 3
    assert strategies.active.profile_name == "one"
    assert audited(folder)[-1]["outcome"].startswith("refused")


async def test_a_worker_that_is_never_ready_is_not_waited_for_for_ever(folder, monkeypatch):
    monkeypatch.setattr("workflow_composer.server.admin.strategy_switcher.PREPARE_SECONDS", 0.05)

    class Stuck(Worker):
        async def prepare(self, config, plugins):
            await asyncio.Event().wait()

    with pytest.raises(ConfigError, match="did not prepare"):
        await switchboard(folder, Stuck()).switch("two", who="ann")


async def test_a_switch_that_has_begun_is_finished_and_written_down_though_nobody_waits_for_it(folder):
    """Who asked went away while the workers went over."""
    going = asyncio.Event()

    class Slow(Worker):
        async def commit(self):
            await going.wait()
            await super().commit()

    worker = Slow()
    strategies = switchboard(folder, worker)
    asked = asyncio.create_task(strategies.switch("two", who="ann"))
    while worker.prepared is None:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    going.set()
    assert (await strategies.switch("one", who="bob")).number == 3  # behind the other one
    assert [version.strategy for version in await strategies.versions()] == ["one", "two", "one"]
    assert [line["who"] for line in audited(folder)] == ["ann", "bob"]


async def test_a_profile_of_the_working_folder_has_neighbours_too(folder, monkeypatch):
    monkeypatch.chdir(folder)
    config = StrategyConfig.load("./one.yaml", environ={})
    strategies = Strategies(config, lambda: (Worker(),), SwitchAudit(folder / "audit.jsonl"), environ={})
    assert (await strategies.switch("two", who="x")).strategy == "two"


async def test_a_profile_is_named_by_its_name_its_file_or_its_path(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for source in ("two", "two.yaml", str(folder / "two.yaml"), "./two.yaml"):
        strategies = switchboard(folder, Worker())
        assert (await strategies.switch(source, who="x")).strategy == "two"


@pytest.mark.parametrize(
    "source", ["", "three", "../two", "/etc/passwd", "/etc/passwd.yaml", "../x/two.yaml", "\0", "/x\0/two.yaml", "a" * 5000]
)
async def test_no_file_elsewhere_can_be_named(folder, source):
    """A profile of the same name in another folder is not the one that was offered."""
    (folder.parent / "x").mkdir(exist_ok=True)
    (folder.parent / "x" / "two.yaml").write_text(PROFILE.format(name="two", role="z"))
    with pytest.raises(ConfigError):
        await switchboard(folder, Worker()).switch(source, who="x")


async def test_shipped_profiles_and_those_beside_the_first_are_offered(folder):
    found = available(switchboard(folder).active, {})
    assert {"one", "two", "development", "t4_hybrid"} <= set(found)


async def test_a_preview_says_what_would_change_and_changes_nothing(folder):
    worker = Worker()
    strategies = switchboard(folder, worker)
    found = await strategies.preview("two")
    assert (found["from"], found["to"]) == ("one", "two")
    assert found["changes"]["vllm_endpoints"] == {"added": ["b"], "removed": ["a"], "changed": {}}
    assert found["changes"]["task_routing"]["changed"] == {"*": {"from": "a", "to": "b"}}
    assert worker.prepared is None
    assert worker.active is None
    assert len(await strategies.versions()) == 1
    assert difference(strategies.active, strategies.active)["changes"] == {}


@pytest.mark.parametrize("fault", [ConfigError("no room"), EgressProofFailed("a way out"), RuntimeError("broken")])
async def test_a_preview_refuses_what_the_switch_would_refuse_in_any_worker(folder, fault):
    workers = [Worker(), Worker(fails=fault)]
    strategies = switchboard(folder, *workers)
    said = []
    for attempt in (strategies.preview("two"), strategies.switch("two", who="ann")):
        with pytest.raises(ConfigError) as caught:
            await attempt
        said.append((type(caught.value), caught.value.message))
    assert said[0] == said[1]
    assert [worker.prepared for worker in workers] == [None, None]
    assert [line["what"] for line in audited(folder)] == ["switch"]


async def test_a_preview_builds_the_profile_with_its_plugins_as_the_switch_does(folder):
    """A router that no plugin has, and a plugin's file that is not there, show only then."""
    (folder / "router.yaml").write_text(PROFILE.format(name="router", role="a").replace("t4_model", "of_nobody"))
    (folder / "plugin.yaml").write_text(PROFILE.format(name="plugin", role="a") + "plugins: [absent.py]\n")
    config = StrategyConfig.load(folder / "one.yaml", environ={})
    async with ModelOrchestrator(config, metrics=MemorySink(), environ={}) as orchestrator:
        local = Local(orchestrator)
        strategies = Strategies(config, lambda: (local,), SwitchAudit(folder / "audit.jsonl"), environ={})
        for name in ("router", "plugin"):
            said = []
            for attempt in (strategies.preview(name), strategies.switch(name, who="ann")):
                with pytest.raises(WorkflowComposerError) as caught:
                    await attempt
                said.append((type(caught.value), caught.value.message))
            assert said[0] == said[1]
        assert (await strategies.preview("two"))["to"] == "two"
        assert orchestrator.config.profile_name == "one"


async def test_one_goes_back_to_a_version_as_it_was_then(folder):
    worker = Worker()
    strategies = switchboard(folder, worker)
    await strategies.switch("two", who="x")
    (folder / "one.yaml").write_text(PROFILE.format(name="one", role="changed"))
    version = await strategies.rollback(None, who="x")
    assert version.strategy == "one"
    assert dict(worker.active.task_routing) == {"*": "a"}
    assert (await strategies.rollback(2, who="x")).strategy == "two"
    with pytest.raises(ConfigError, match="unknown version 9"):
        await strategies.rollback(9, who="x")
    with pytest.raises(ConfigError, match="no earlier"):
        await switchboard(folder, worker).rollback(None, who="x")


async def test_versions_are_numbered_on_and_their_number_is_bounded(folder):
    strategies = switchboard(folder, Worker())
    for number in range(MOST_VERSIONS + 20):
        await strategies.switch("two" if number % 2 else "one", who="x")
    found = await strategies.versions()
    assert len(found) == MOST_VERSIONS
    assert found[-1].number == MOST_VERSIONS + 21


async def test_reading_the_file_again_switches_only_where_it_has_changed(folder):
    strategies = switchboard(folder, Worker())
    assert await strategies.reload(who="SIGHUP") is None
    (folder / "one.yaml").write_text(PROFILE.format(name="one", role="c"))
    assert (await strategies.reload(who="SIGHUP")).number == 2
    (folder / "one.yaml").write_text("profile_name: [")
    told = []
    await reload(strategies, "SIGHUP", Told(told))
    assert "reload failed" in told[0]
    assert dict(strategies.active.task_routing) == {"*": "c"}


@pytest.mark.parametrize("early", [True, False])
async def test_a_saved_file_is_switched_to_once_it_is_whole(folder, early):
    """Also where it was saved before the first look."""
    strategies, told = switchboard(folder, Worker()), []
    watching = asyncio.create_task(watch(strategies, Told(told), every=0.01))
    await asyncio.sleep(0 if early else 0.05)
    path = folder / "one.yaml"
    with path.open("w") as file:  # half of it, and then the rest
        file.write(PROFILE.format(name="one", role="d")[:40])
        file.flush()
        file.seek(0)
        file.write(PROFILE.format(name="one", role="d"))
    async with asyncio.timeout(60):
        while dict(strategies.active.task_routing) != {"*": "d"}:
            await asyncio.sleep(0.01)
    path.write_text("nonsense: [")
    async with asyncio.timeout(60):
        while not any("reload failed" in line for line in told):
            await asyncio.sleep(0.01)
    assert dict(strategies.active.task_routing) == {"*": "d"}
    watching.cancel()


# ------------------------------------------------------------------------------------------------------ over the network


@pytest.fixture
def admin(folder):
    """The handlers over the network."""
    audit = SwitchAudit(folder / "audit.jsonl")
    return Admin(switchboard(folder, Worker()), callers_of(ServerSettings(admin_token="secret"), Accounts(), audit))


async def answer(handler, exchange):
    """What a handler says, read."""
    return json.loads((await handler(exchange)).body)


async def test_only_the_token_opens_and_guesses_are_written_down_and_limited(folder, admin, given):
    for headers in ({}, {"x-admin-token": "wrong"}, {"authorization": "Bearer \udcff"}):
        with pytest.raises(HttpFailure) as caught:
            await admin.show(given(headers=headers))
        assert caught.value.status == 401
    assert audited(folder)[-1]["outcome"] == "refused: wrong token"
    assert "wrong" not in json.dumps(audited(folder)).replace("wrong token", "")
    assert (await answer(admin.show, given(headers={"authorization": "Bearer secret"})))["strategy"] == "one"
    for _ in range(40):
        with pytest.raises(HttpFailure) as caught:
            await admin.show(given(headers={"x-admin-token": "guess"}))
    assert caught.value.status == 429
    assert len(audited(folder)) == 30  # guesses beyond the limit fill no log
    assert (await answer(admin.show, given(headers=TOKEN)))["strategy"] == "one"  # who guesses shuts out no operator


async def test_without_a_token_switching_over_the_network_is_off(folder, given):
    closed = Admin(switchboard(folder, Worker()), Callers(None))
    with pytest.raises(HttpFailure) as caught:
        await closed.switch(given("PUT", body={"strategy": "two"}, headers=TOKEN))
    assert caught.value.status == 403


@pytest.mark.parametrize(("query", "body"), [("dry_run=true", {}), ("", {"dry_run": True})])
async def test_a_dry_run_is_asked_for_in_the_query_or_in_the_body(admin, given, query, body):
    found = await answer(admin.switch, given("PUT", query=query, body={"strategy": "two", **body}, headers=TOKEN))
    assert found["dry_run"] is True
    assert found["to"] == "two"
    assert (await answer(admin.show, given(headers=TOKEN)))["strategy"] == "one"


async def test_it_switches_lists_and_goes_back(admin, given):
    assert (await answer(admin.switch, given("PUT", body={"strategy": "two"}, headers=TOKEN)))["number"] == 2
    found = await answer(admin.versions, given(headers=TOKEN))
    assert [one["strategy"] for one in found["versions"]] == ["one", "two"]
    assert found["active"] == 2
    assert (await answer(admin.rollback, given("POST", headers=TOKEN, body=b"")))["strategy"] == "one"
    assert "10.0.0.7" in (await answer(admin.show, given(headers=TOKEN)))["who"]


@pytest.mark.parametrize("body", [{}, {"strategy": 3}, {"strategy": "two", "colour": 1}, {"strategy": "nowhere"}, []])
async def test_a_wrong_order_is_a_bad_request(admin, given, body):
    with pytest.raises(HttpFailure) as caught:
        await admin.switch(given("PUT", body=body, headers=TOKEN))
    assert caught.value.status == 400


async def test_a_reload_that_is_refused_is_on_record_and_one_that_changes_nothing_is_not(folder):
    strategies = switchboard(folder, Worker())
    await strategies.reload(who="SIGHUP")
    assert audited(folder) == []
    (folder / "one.yaml").write_text("profile_name: [")
    with pytest.raises(ConfigError):
        await strategies.reload(who="SIGHUP")
    line = audited(folder)[-1]
    assert (line["what"], line["who"]) == ("reload", "SIGHUP")
    assert line["outcome"].startswith("refused: ")


async def test_a_preparation_that_was_given_up_does_not_end_behind_a_later_one(folder, monkeypatch):
    """Its worker goes on with it; what is published is what was asked for last."""
    slow, first = asyncio.Event(), []

    async def proof(snapshot, *, collector):
        if not first:
            first.append(snapshot)
            await slow.wait()

    monkeypatch.setattr("workflow_composer.server.admin.strategy_switcher.prove_egress", proof)
    one, two = (StrategyConfig.load(folder / f"{name}.yaml", environ={}) for name in ("one", "two"))
    async with ModelOrchestrator(one, metrics=MemorySink(), environ={}) as orchestrator:
        local = Local(orchestrator)
        late = asyncio.create_task(local.prepare(one, ()))
        while not first:
            await asyncio.sleep(0)
        given_up, later = asyncio.create_task(local.discard()), asyncio.create_task(local.prepare(two, ()))
        await asyncio.sleep(0.01)
        slow.set()
        await asyncio.gather(late, given_up, later)
        await local.commit()
        assert orchestrator.strategy == "two"
        assert not first[0].acquire()  # the one that was given up is closed
        with pytest.raises(ConfigError, match="no prepared strategy to publish"):
            await local.commit()


async def test_a_strategy_whose_egress_rule_does_not_hold_is_not_prepared(folder, monkeypatch):
    async def proof(snapshot, *, collector):
        raise EgressProofFailed("something gets out")

    monkeypatch.setattr("workflow_composer.server.admin.strategy_switcher.prove_egress", proof)
    config = StrategyConfig.load(folder / "one.yaml", environ={})
    async with ModelOrchestrator(config, metrics=MemorySink(), environ={}) as orchestrator:
        local = Local(orchestrator)
        with pytest.raises(EgressProofFailed):
            await local.prepare(config, ())
        with pytest.raises(ConfigError, match="no prepared strategy to publish"):
            await local.commit()


async def test_switches_asked_for_at_once_come_one_after_the_other(folder):
    class Slow(Worker):
        going = 0

        async def prepare(self, config, plugins):
            Slow.going += 1
            assert Slow.going == 1
            await asyncio.sleep(0.001)
            await super().prepare(config, plugins)

        async def commit(self):
            await super().commit()
            Slow.going -= 1

    worker = Slow()
    strategies = switchboard(folder, worker)
    found = await asyncio.gather(*(strategies.switch("two" if n % 2 else "one", who="x") for n in range(10)))
    assert [version.number for version in found] == list(range(2, 12))
    assert worker.active.profile_name == strategies.active.profile_name == found[-1].strategy


async def test_a_worker_that_dies_in_the_last_step_keeps_nobody_from_switching(folder):
    """Its successor begins with what is active then."""

    class Dying(Worker):
        async def commit(self):
            raise ChannelClosed("gone")

    whole = Worker()
    await switchboard(folder, Dying(), whole).switch("two", who="x")
    assert whole.active.profile_name == "two"
