"""Plugins replaced while an orchestrator runs: routers, backends and hooks change together, or nothing does."""

import asyncio
import gc
import sys
import threading
import weakref

import pytest

from workflow_composer import ModelOrchestrator, Plan, StrategyConfig, Tier
from workflow_composer.backends import FakeBackend
from workflow_composer.errors import PluginError, ProfileError, WorkflowComposerError
from workflow_composer.metrics.sink import MemorySink
from workflow_composer.plugins.hookspecs import hookimpl
from workflow_composer.plugins.host import plugin_host
from workflow_composer.routers import Router

FILE = """
from workflow_composer import Plan, Tier, hookimpl
from workflow_composer.backends import FakeBackend
from workflow_composer.routers import Router

class Mine(Router):
    name = "mine"
    def plan(self, request, resources):
        {first}
        return Plan((Tier.of(self.context.candidates("m")),), self.name, {mark!r})

@hookimpl
def register_routers(register):
    register("mine", Mine)

@hookimpl
def register_backends(register):
    register("echo", lambda spec, context: FakeBackend({mark!r}, name=spec.name))
"""
PROFILE = "profile_name: p\nallow_cloud: false\nmodels: {m: {backend: echo}}\nrouters: [mine]\nplugins: [./mine.py]\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "p.yaml").write_text(PROFILE)
    return tmp_path


def write(folder, mark, first="pass"):
    (folder / "mine.py").write_text(FILE.format(mark=mark, first=first))


def orchestrator(strategy, **more):
    return ModelOrchestrator(strategy, metrics=MemorySink(), environ={}, **more)


def marking(mark):
    """A plugin whose router, backend and hooks say who they are."""

    class Marked(Router):
        name = "marked"

        def plan(self, request, resources):
            return Plan((Tier.of(self.context.candidates("m")),), self.name, mark)

    class Plugin:
        heard = []

        @hookimpl
        def register_routers(self, register):
            register("marked", Marked)

        @hookimpl
        def register_backends(self, register):
            register("echo", lambda spec, context: FakeBackend(mark, name=spec.name))

        @hookimpl
        def after_answer(self, response):
            self.heard.append((mark, response.decision.reason, response.text))

    return Plugin()


CONFIG = StrategyConfig(profile_name="p", allow_cloud=False, models={"m": {"backend": "echo"}}, routers=["marked"])


def test_a_plugin_is_replaced_at_once_for_routers_backends_and_hooks():
    """The next answer is the new one's in every part."""
    host = plugin_host(discover=False)
    host.add(marking("one"), name="mine")
    with orchestrator(CONFIG, plugins=host) as o:
        assert o.generate("hello").text == "one"
        o.plugins.replace("mine", new := marking("two"))
        answer = o.generate("hello")
    assert (answer.text, answer.decision.reason) == ("two", "two")
    assert new.heard[-1] == ("two", "two", "two")


async def test_a_request_in_progress_finishes_with_the_plugins_with_which_it_began():
    """Also its hooks."""
    gate, began = asyncio.Event(), asyncio.Event()

    async def slow(call):
        began.set()
        await gate.wait()
        return "old"

    old = marking("one")
    old_register = hookimpl(lambda register: register("echo", lambda spec, context: FakeBackend(slow, name=spec.name)))
    type(old).register_backends = staticmethod(old_register)
    host = plugin_host(discover=False)
    host.add(old, name="mine")
    async with orchestrator(CONFIG, plugins=host) as o:
        asked = asyncio.create_task(o.agenerate("hello"))
        await began.wait()
        o.plugins.replace("mine", new := marking("two"))
        assert (await o.agenerate("hello")).text == "two"
        gate.set()
        assert (await asked).text == "old"
    assert old.heard == [("one", "one", "old")]
    assert new.heard == [("two", "two", "two")]


def unfit(**hooks):
    """A plugin with the backend that the profile needs, and with these hooks."""
    backends = marking("bad").register_backends
    functions = {name: staticmethod(hookimpl(function)) for name, function in hooks.items()}
    return type("P", (), {"register_backends": staticmethod(backends), **functions})()


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (object(), "unknown backend 'echo'"),
        (unfit(), "unknown router 'marked'"),
        (unfit(register_routers=lambda register: register("marked", lambda c, s: 1 / 0)), "'mine'.*ZeroDivisionError"),
        (unfit(register_routers=lambda register: register("marked", lambda c, s: 7)), "'mine'.*int 7"),
        (unfit(register_routers=lambda register: register(7, print)), "'mine'.*7"),
        (unfit(register_routers=lambda register: register("marked")), "'mine'.*not callable"),
        (unfit(before_route=lambda nonsense: None), "nonsense"),
    ],
)
def test_an_unfit_plugin_leaves_the_old_one_serving(bad, named):
    """Whatever is wrong with it; the error names it."""
    host = plugin_host(discover=False)
    host.add(marking("one"), name="mine")
    with orchestrator(CONFIG, plugins=host) as o:
        before = o.plugins.registry
        with pytest.raises(WorkflowComposerError, match=named):
            o.plugins.replace("mine", bad)
        assert o.plugins.registry is before
        assert o.generate("hello").text == "one"


def test_a_plugin_that_the_profile_needs_cannot_be_removed():
    """Nothing would serve; the error names what is missing."""
    host = plugin_host(discover=False)
    host.add(marking("one"), name="mine")
    with orchestrator(CONFIG, plugins=host) as o:
        with pytest.raises(ProfileError, match="echo"):
            o.plugins.remove("mine")
        assert o.generate("hello").text == "one"


def test_two_orchestrators_of_one_host_change_together_or_not_at_all():
    """The second one needs what the new plugin has not."""
    host = plugin_host(discover=False)
    host.add(marking("one"), name="mine")
    other = CONFIG.replaced(profile_name="q", routers=["provider"], task_routing={"*": "m"})
    with orchestrator(CONFIG, plugins=host) as first, orchestrator(other, plugins=host) as second:
        host.replace("mine", marking("two"))
        assert (first.generate("hello").text, second.generate("hello").text) == ("two", "two")
        without = type("P", (), {"register_routers": marking("three").register_routers})()
        with pytest.raises(ProfileError):
            host.replace("mine", without)
        assert (first.generate("hello").text, second.generate("hello").text) == ("two", "two")


def test_a_plugin_file_of_the_profile_is_read_again(folder):
    """Its name in the profile is all that it needs."""
    write(folder, "one")
    with orchestrator(folder / "p.yaml") as o:
        assert o.generate("hello").text == "one"
        write(folder, "two")
        assert o.generate("hello").text == "one"
        o.reload_plugins()
        assert o.generate("hello").text == "two"


def test_a_file_that_has_not_changed_keeps_its_objects(folder):
    """What a router remembers survives reloads and switches."""
    write(folder, "one")
    with orchestrator(folder / "p.yaml") as o:
        before = type(o.routers["mine"])
        o.reload_plugins()
        o.switch_strategy(folder / "p.yaml")
        assert type(o.routers["mine"]) is before


@pytest.mark.parametrize(
    ("first", "named"),
    [
        ("raise ValueError('plans')", "ValueError: plans"),
        ("return 'm'", "str 'm', not a Plan"),
        ("return Plan((), 'mine', '')", "not a tuple"),
        ("return Plan(('m',), 'mine', '')", "in the place of a Tier"),
        ("import nonsense_module", "nonsense_module"),
    ],
)
def test_a_file_whose_router_plans_wrongly_is_refused(folder, first, named):
    """Asked before it serves, as at its first request; the error names router, plugin and value."""
    write(folder, "one")
    with orchestrator(folder / "p.yaml") as o:
        write(folder, "two", first)
        with pytest.raises(PluginError, match=named) as raised:
            o.reload_plugins()
        assert "'mine'" in str(raised.value)
        assert o.generate("hello").text == "one"


def test_a_router_that_fails_later_fails_the_request_by_name(folder):
    """The program is not blamed."""
    write(folder, "one", "assert request.task_type != 'rare'")
    with orchestrator(folder / "p.yaml") as o:
        with pytest.raises(PluginError, match="router 'mine' of plugin 'mine' failed: AssertionError"):
            o.generate("hello", task_type="rare")
        assert o.generate("hello").text == "one"


def test_reloads_leave_nothing_behind(folder):
    """Fifty of them: no module, thread or task more than after the first; no old router lives."""
    write(folder, "0")
    with orchestrator(folder / "p.yaml") as o:
        o.generate("hello")
        old = [weakref.ref(o.routers["mine"])]
        modules, threads = len(sys.modules), threading.active_count()
        for turn in range(1, 51):
            write(folder, str(turn))
            o.reload_plugins()
            assert o.generate("hello").text == str(turn)
            old.append(weakref.ref(o.routers["mine"]))
        gc.collect()
        assert (len(sys.modules), threading.active_count()) == (modules, threads)
        assert [router() for router in old[:-1]] == [None] * 50


def test_a_switch_and_a_change_of_plugins_at_once_wait_for_each_other_but_not_for_ever():
    """From two threads, both through the synchronous methods."""
    host = plugin_host(discover=False)
    host.add(marking("0"), name="mine")
    with orchestrator(CONFIG, plugins=host) as o:
        o.generate("hello")

        def replace():
            for turn in range(20):
                o.plugins.replace("mine", marking(str(turn)))

        def switch():
            for turn in range(20):
                o.switch_strategy(CONFIG.replaced(profile_name=f"p{turn}"))

        threads = [threading.Thread(target=work, daemon=True) for work in (replace, switch)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert [thread.is_alive() for thread in threads] == [False, False]
        assert (o.generate("hello").text, o.strategy) == ("19", "p19")
