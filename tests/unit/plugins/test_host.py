"""The plugin host: discovery, blocking, clashes, broken plugins, and removal without a trace."""

import doctest
import inspect
from dataclasses import replace
from importlib.metadata import EntryPoint

import pytest

from tests.paths import ROOT
from workflow_composer.batch.planning.plan_table import plan
from workflow_composer.batch.planning.policies import PlanningContext, PlanningTier
from workflow_composer.errors import BadRequest, PluginError
from workflow_composer.plugins import hookspecs
from workflow_composer.plugins.builtin import BACKENDS, BATCH_STRATEGIES, ROUTERS
from workflow_composer.plugins.hookspecs import hookimpl
from workflow_composer.plugins.host import BUILTIN, PluginHost, plugin_host
from workflow_composer.types import LLMRequest

ASK = LLMRequest.of("hello")
HOOKS = [name for name, value in vars(hookspecs).items() if hasattr(value, "workflow_composer_spec")]


def routers(*names):
    class Plugin:
        @hookimpl
        def register_routers(self, register):
            for name in names:
                register(name, lambda context, settings: None)

    return Plugin()


def own_routers(host):
    """The routers of plugins other than the package's own."""
    return {name for name, provided in host.registry.routers.items() if provided.plugin != BUILTIN}


def others(host):
    return [info for info in host.plugins if info.name != BUILTIN]


class Entry:
    """An installed distribution's entry point, as far as the host looks at it."""

    dist = None

    def __init__(self, name, value):
        self.name = name
        self.value = f"module:{name}"
        self._value = value

    def load(self):
        if isinstance(self._value, Exception):
            raise self._value
        return self._value


class TestRegistration:
    def test_the_packages_own_parts_are_there(self):
        """Without any plugin, every built-in router, backend and batch strategy is registered."""
        registry = plugin_host(discover=False).registry
        assert set(registry.routers) == set(ROUTERS)
        assert set(registry.backends) == set(BACKENDS)
        assert set(registry.batch_strategies) == set(BATCH_STRATEGIES)

    def test_an_example_strategy_plans_as_its_docstring_says(self):
        """The hook's example is a batch strategy that works."""
        space = {}
        for example in doctest.DocTestParser().get_examples(inspect.getdoc(hookspecs.register_batch_strategies)):
            exec(example.source, space)
        host = PluginHost()
        host.add(space["Plugin"](), name="example")
        context = PlanningContext((PlanningTier("small"), PlanningTier("large")))
        strategy = host.registry.batch_strategies["short_ones_cheap"].value()
        assert plan([["short", "long" * 50]], strategy, context).frame.route_to.tolist() == ["small", "large"]

    def test_what_a_plugin_registers_is_known_by_its_name(self):
        """The registry says who brought it."""
        host = PluginHost()
        host.add(routers("x"), name="mine")
        assert host.registry.routers["x"].plugin == "mine"
        assert others(host)[0].provides == ("router:x",)

    def test_a_removed_plugin_leaves_nothing_behind(self):
        """Its names are free again, and may be taken again."""
        host = PluginHost()
        host.add(routers("x"), name="mine")
        host.remove("mine")
        assert own_routers(host) == set()
        assert others(host) == []
        host.add(routers("x"), name="mine")

    def test_readers_see_one_consistent_picture(self):
        """A registry that was read before a change does not change."""
        host = PluginHost()
        before = host.registry
        host.add(routers("x"), name="mine")
        assert "x" not in before.routers
        assert before is not host.registry

    def test_a_name_clash_names_both_and_changes_nothing(self):
        """The first keeps the name; the second is not half registered."""
        host = PluginHost()
        host.add(routers("x"), name="one")
        with pytest.raises(PluginError, match="'x' among routers is provided by both 'one' and 'two'"):
            host.add(routers("y", "x"), name="two")
        assert own_routers(host) == {"x"}
        assert [info.name for info in others(host)] == ["one"]

    def test_a_plugin_cannot_replace_a_built_in_router(self):
        """The package's own names are taken."""
        with pytest.raises(PluginError, match="both 'workflow_composer' and 'mine'"):
            plugin_host(discover=False).add(routers("provider"), name="mine")

    @pytest.mark.parametrize("name", ["", "two words", None, 3, "-x"])
    def test_names_must_be_words(self, name):
        """A name that no profile could write is an error that names the plugin."""
        with pytest.raises(PluginError, match="mine"):
            PluginHost().add(routers(name), name="mine")

    def test_a_misspelt_hook_is_an_error(self):
        """A hook that does not exist would otherwise never be called, silently."""

        class Plugin:
            @hookimpl
            def after_anser(self, response):
                """Never called."""

        with pytest.raises(PluginError, match="after_anser"):
            PluginHost().add(Plugin(), name="mine")

    def test_a_wrong_argument_is_an_error_that_names_it(self):
        """Hooks may leave arguments out, but not invent any."""

        class Plugin:
            @hookimpl
            def after_answer(self, answer):
                """Asks for what there is not."""

        host = PluginHost()
        with pytest.raises(PluginError, match="answer"):
            host.add(Plugin(), name="mine")
        host.add(routers("x"), name="mine")

    def test_commands_are_registered_by_their_own_name(self):
        """A click command carries its name."""
        import click

        class Plugin:
            @hookimpl
            def register_commands(self, register):
                register(click.Command("greet"))

        host = PluginHost()
        host.add(Plugin(), name="mine")
        assert set(host.registry.commands) == {"greet"}


class TestDiscovery:
    def test_a_broken_plugin_is_reported_and_skipped(self):
        """The others load; the reason can be read."""
        host = PluginHost()
        host.discover([Entry("bad", ImportError("no such thing")), Entry("good", routers("x"))], blocked="")
        assert {info.name: info.status for info in others(host)} == {"bad": "broken", "good": "loaded"}
        assert host.broken[0].detail == "ImportError: no such thing"
        assert own_routers(host) == {"x"}

    def test_a_plugin_whose_registration_fails_is_broken(self):
        """An exception inside a register hook is the plugin's fault, not the caller's."""

        class Plugin:
            @hookimpl
            def register_routers(self, register):
                raise RuntimeError("boom")

        host = PluginHost()
        host.discover([Entry("bad", Plugin()), Entry("good", routers("x"))], blocked="")
        assert host.broken[0].detail == "RuntimeError: boom"
        assert own_routers(host) == {"x"}

    @pytest.mark.parametrize("blocked", ["one", " one , other", "*"])
    def test_blocked_plugins_are_not_even_imported(self, blocked):
        """The environment can keep a plugin out."""
        host = PluginHost()
        host.discover([Entry("one", AssertionError("was imported"))], blocked=blocked)
        assert others(host)[0].status == "blocked"

    def test_two_plugins_of_one_name_are_an_error(self):
        """Which of them would be meant cannot be known."""
        with pytest.raises(PluginError, match="two plugins are named 'one'"):
            PluginHost().discover([Entry("one", routers("x")), Entry("one", routers("y"))], blocked="")

    def test_a_clash_among_discovered_plugins_is_an_error(self):
        """It names both, and how to block one."""
        with pytest.raises(PluginError, match=r"both 'one' and 'two'.*WORKFLOW_COMPOSER_BLOCK_PLUGINS=two"):
            PluginHost().discover([Entry("two", routers("x")), Entry("one", routers("x"))], blocked="")

    def test_the_entry_point_is_loaded_by_its_real_form(self):
        """What the standard library hands out works as it is."""
        point = EntryPoint("built", "workflow_composer.plugins.builtin:BuiltinPlugin", hookspecs.ENTRY_POINT_GROUP)
        host = PluginHost()
        host.discover([point], blocked="")
        assert others(host)[0].name == "built"


class TestCalling:
    def test_requests_pass_through_plugins_in_the_order_of_their_names(self):
        """Not in the order of registration."""

        def adding(word):
            class Plugin:
                @hookimpl
                def before_route(self, request):
                    return replace(request, task_type=request.task_type + word)

            return Plugin()

        host = PluginHost()
        host.add(adding("b"), name="b")
        host.add(adding("a"), name="a")
        assert host.registry.before_route(ASK, "s").task_type == "*ab"

    def test_a_plugin_may_refuse_a_request(self):
        """Errors of the project's tree come through as they are."""

        class Guard:
            @hookimpl
            def before_route(self, request):
                raise BadRequest("not here")

        host = PluginHost()
        host.add(Guard(), name="guard")
        with pytest.raises(BadRequest):
            host.registry.before_route(ASK, "s")

    @pytest.mark.parametrize("fault", ["raise", "return"])
    def test_a_broken_guard_lets_nothing_pass(self, fault):
        """A before_route that fails ends the request, named."""

        class Guard:
            @hookimpl
            def before_route(self, request):
                if fault == "raise":
                    raise KeyError("oops")
                return "a string"

        host = PluginHost()
        host.add(Guard(), name="guard")
        with pytest.raises(PluginError, match="'guard'"):
            host.registry.before_route(ASK, "s")

    def test_a_failing_onlooker_is_reported_and_the_others_hear_all_the_same(self):
        """after_answer and its kin cannot break a request."""
        heard, reported = [], []

        class Bad:
            @hookimpl
            def after_answer(self):
                raise ValueError("oops")

        class Good:
            @hookimpl
            def after_answer(self, response):
                heard.append(response)

        host = PluginHost(on_broken=lambda plugin, reason: reported.append((plugin, reason)))
        host.add(Bad(), name="a")
        host.add(Good(), name="b")
        host.registry.notify("after_answer", request=ASK, response="r")
        assert heard == ["r"]
        assert reported == [("a", "after_answer failed: ValueError: oops")]

    def test_implements_says_whether_anyone_listens(self):
        """The hot path asks before it does any work."""
        host = plugin_host(discover=False)
        assert "after_answer" not in host.registry.hooks
        assert "register_routers" in host.registry.hooks


class TestDocumentation:
    @pytest.mark.parametrize("hook", HOOKS)
    def test_every_hook_has_an_example_that_runs(self, hook):
        """The examples in the docstrings are executed."""
        function = getattr(hookspecs, hook)
        tests = doctest.DocTestFinder().find(function, hook, globs={})
        assert any(test.examples for test in tests)
        for test in tests:
            result = doctest.DocTestRunner().run(test)
            assert result.failed == 0

    @pytest.mark.parametrize("hook", HOOKS)
    def test_every_example_is_a_valid_plugin(self, hook):
        """Each defines a class `Plugin` that the host accepts and that implements the hook it documents."""
        space = {"__name__": "example"}
        for example in doctest.DocTestParser().get_examples(inspect.getdoc(getattr(hookspecs, hook))):
            exec(example.source, space)
        host = PluginHost()
        host.add(space["Plugin"](), name="example")
        assert hook in host.registry.hooks

    def test_the_modules_own_example_runs(self):
        """The one at the top of the file."""
        results = [
            doctest.DocTestRunner().run(test)
            for test in doctest.DocTestFinder(recurse=False).find(hookspecs, "hookspecs", globs={})
        ]
        assert sum(result.attempted for result in results) >= 5
        assert sum(result.failed for result in results) == 0

    def test_the_package_is_the_first_of_the_plugins(self):
        """So that a listing begins with what is always there."""
        host = plugin_host(discover=False)
        host.add(routers("a"), name="aaa")
        assert [info.name for info in host.plugins] == [BUILTIN, "aaa"]

    @pytest.mark.parametrize("hook", HOOKS)
    def test_the_guide_lists_every_hook_with_its_arguments(self, hook):
        """docs/plugins.md and the specifications agree."""
        arguments = ", ".join(inspect.signature(getattr(hookspecs, hook)).parameters)
        assert f"`{hook}({arguments})`" in (ROOT / "docs" / "plugins.md").read_text()
