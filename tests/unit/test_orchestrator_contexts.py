"""Contexts in the flow of a request: applied once, before routing, and told in the metrics."""

import json

import pytest

from tests.unit.calibration.certificates import certificate
from tests.unit.contexts.writing import write
from workflow_composer import LLMRequest, ModelOrchestrator, StrategyConfig, hookimpl
from workflow_composer.backends.fake import FakeBackend
from workflow_composer.calibration.certify.certificate import digest_of, uncovered
from workflow_composer.contexts.library import Library
from workflow_composer.errors import ContextError, ProfileError
from workflow_composer.metrics.sink import MemorySink
from workflow_composer.plugins.host import plugin_host


class Plugin:
    """A model that remembers its calls, and a hook that puts a system message of its own in front."""

    def __init__(self, system=None):
        self.backend = FakeBackend("yes")
        self.system = system
        self.seen = []

    @hookimpl
    def register_backends(self, register):
        register("scripted", lambda spec, context: self.backend)

    @hookimpl
    def before_route(self, request, strategy):
        self.seen.append(request)
        if self.system is None:
            return None
        return LLMRequest.of(request.messages, system=self.system, context=request.context)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("alpha", "beta"):
        write(tmp_path / "config" / "contexts", name, f"About {name}.")
    return tmp_path


def profile(**fields):
    return StrategyConfig(profile_name="test", models={"m": {"backend": "scripted"}}, task_routing={"*": "m"}, **fields)


def opened(plugin, **fields):
    host = plugin_host(discover=False)
    host.add(plugin, name="plugin")
    return ModelOrchestrator(profile(**fields), plugins=host, metrics=MemorySink(), environ={})


def sent(plugin):
    return [list(call.request.messages) for call in plugin.backend.calls]


SYSTEM = {"role": "system", "content": "About alpha."}
USER = {"role": "user", "content": "Why?"}


async def test_every_way_of_asking_sends_the_context_first(folder):
    """One answer, a stream, and the plan alone see the same request; vectors have none."""
    plugin = Plugin()
    async with opened(plugin) as orchestrator:
        await orchestrator.agenerate("Why?", context=("alpha",))
        async for _ in orchestrator.astream("Why?", context=("alpha",)):
            pass
        request, _ = orchestrator.prepare("Why?", context=("alpha",))
        await orchestrator.aembed(["Why?"])
    assert sent(plugin) == [[SYSTEM, USER]] * 2
    assert list(request.messages) == [SYSTEM, USER]
    assert plugin.backend.embedded == ["Why?"]


async def test_a_profile_gives_tasks_their_contexts(folder):
    """A name or a list; the request's own goes before it, an empty one is none."""
    plugin = Plugin()
    async with opened(plugin, task_contexts={"code": "alpha", "*": ["beta", "alpha"]}) as orchestrator:
        for fields in ({"task_type": "code"}, {}, {"task_type": "code", "context": ()}):
            await orchestrator.agenerate("Why?", **fields)
        await orchestrator.aembed(["Why?"])
    assert sent(plugin) == [[SYSTEM, USER], [{**SYSTEM, "content": "About alpha.\n\nAbout beta."}, USER], [USER]]
    assert plugin.backend.embedded == ["Why?"]


async def test_the_metric_names_the_context_and_counts_its_characters(folder):
    """Name, version and digest; no word of its text."""
    plugin = Plugin()
    async with opened(plugin) as orchestrator:
        for context in (("beta", "alpha"), ()):
            await orchestrator.agenerate("Why?", context=context)
        first, second = orchestrator._sinks[0].metrics
    pins = [Library(environ={}).get(name).pin for name in ("alpha", "beta")]
    assert first.context == " ".join(pins)
    assert first.query_length == len("About alpha.\n\nAbout beta.") + len("Why?")
    assert b"About" not in first.to_json()
    assert (second.context, second.query_length) == (None, 4)


async def test_nothing_that_a_plugin_adds_comes_to_stand_before_it(folder):
    """Plugins see the request as it was asked; what they change stands behind the context."""
    plugin = Plugin(system="From a plugin.")
    async with opened(plugin) as orchestrator:
        await orchestrator.agenerate("Why?", context=("alpha",))
    assert plugin.seen[0].messages == (USER,)
    assert sent(plugin) == [[{**SYSTEM, "content": "About alpha.\n\nFrom a plugin."}, USER]]


async def test_a_certificate_is_compared_with_the_whole_system_message(folder):
    """It covers requests with the context that it was made with, and no others."""
    plugin = Plugin()
    made = certificate(system=digest_of("About alpha.\n\nBe brief."))
    async with opened(plugin) as orchestrator:
        asked, other, without = (
            orchestrator.prepare("Why?", system="Be brief.", context=context)[0] for context in (("alpha",), ("beta",), ())
        )
    assert uncovered(made, asked, made.temperature) == ""
    for request in (other, without):
        assert uncovered(made, request, made.temperature) == "system message: differs from the certificate's"


async def test_an_unknown_context_is_an_error_before_anything_is_sent(folder):
    plugin = Plugin()
    async with opened(plugin) as orchestrator:
        with pytest.raises(ContextError, match="no context named 'alhpa'") as caught:
            await orchestrator.agenerate("Why?", context=("alhpa",))
        assert (await orchestrator.agenerate("Why?")).text == "yes", "the orchestrator goes on"
    assert caught.value.hint == "did you mean 'alpha'?"
    assert len(plugin.backend.calls) == 1


@pytest.mark.parametrize(
    ("contexts", "message"),
    [
        ({"code": "alhpa"}, "mine.yaml:4: task_contexts.code: no context named 'alhpa'"),
        ({"code": ["alpha", "alpha@2"]}, "task_contexts.code: context 'alpha@2' is pinned to version 2"),
        ({"code": 3}, "mine.yaml:4: task_contexts.code: "),
        ({"code": [""]}, "task_contexts.code"),
        ({"code ": "alpha"}, "the name is empty, unprintable or has surrounding spaces"),
    ],
)
def test_a_faulty_context_of_a_profile_is_told_with_its_line(folder, contexts, message):
    path = folder / "mine.yaml"
    path.write_text(
        f"profile_name: mine\nmodels: {{m: {{backend: fake}}}}\n"
        f"task_contexts:\n  {json.dumps(next(iter(contexts)))}: {json.dumps(next(iter(contexts.values())))}\n"
    )
    with pytest.raises(ProfileError) as caught:
        ModelOrchestrator(str(path), metrics=MemorySink(), environ={})
    assert message in str(caught.value)


def test_a_path_in_a_profile_is_relative_to_its_file(folder):
    write(folder / "profiles", "mine", "By path.")
    path = folder / "profiles" / "p.yaml"
    path.write_text(
        'profile_name: p\nmodels: {m: {backend: fake}}\ntask_routing: {"*": m}\ntask_contexts: {"*": ./mine.md}\n'
    )
    with ModelOrchestrator(str(path), metrics=MemorySink(), environ={}) as orchestrator:
        request, _ = orchestrator.prepare("Why?")
    assert request.messages[0]["content"] == "By path."
    assert orchestrator.config.to_dict()["task_contexts"] == {"*": ["./mine.md"]}


async def test_a_switch_of_strategy_reads_the_templates_again(folder):
    """Until then every request begins with the same bytes, whatever happens to the file."""
    plugin = Plugin()
    async with opened(plugin, task_contexts={"*": "alpha"}) as orchestrator:
        await orchestrator.agenerate("Why?")
        write(folder / "config" / "contexts", "alpha", "Changed.", version="2")
        await orchestrator.agenerate("Why?")
        await orchestrator.agenerate("Why?", context=("beta",))
        await orchestrator.aswitch_strategy(profile(task_contexts={"*": "alpha"}))
        await orchestrator.agenerate("Why?")
    contents = [messages[0]["content"] for messages in sent(plugin)]
    assert contents == ["About alpha.", "About alpha.", "About beta.", "Changed."]
