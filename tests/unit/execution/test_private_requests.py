"""A private request reaches the profile's own machines only, whatever routes or falls back, and leaves no text behind."""

from __future__ import annotations

import inspect
import io
import json
from dataclasses import replace

import pytest

from tests.integration.stub_server import Reply, StubServer
from tests.paths import ROOT
from workflow_composer import ModelOrchestrator, Plan, Tier, hookimpl
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.errors import AllCandidatesFailed, EgressDenied, ModelError, WorkflowComposerError
from workflow_composer.execution.readers import DataReader
from workflow_composer.plugins import hookspecs
from workflow_composer.plugins.host import plugin_host
from workflow_composer.routers.base import Router
from workflow_composer.types import Verdict

NOTE = "SSN 123-45-6789 Ann Lee"


@pytest.fixture
def cloud():
    with StubServer() as stub:
        yield stub


class Sink:
    """Keeps the metrics."""

    def __init__(self):
        self.seen = []

    def write(self, metric):
        self.seen.append(metric)

    def close(self):
        pass


@pytest.fixture
def sink():
    return Sink()


@pytest.fixture
def make(server, cloud, sink):
    made = []

    def orchestrator(environ=None, **keys):
        config = StrategyConfig(
            profile_name="mixed",
            **{
                "models": {
                    "small": {"backend": "vllm", "base_url": server.url},
                    "remote": {"backend": "openai", "base_url": cloud.url, "api_key_env": "KEY", "model": "test-model"},
                },
                "task_routing": {"*": "small", "far": "remote"},
                "fallback": ["remote"],
                "retries": {"attempts": 1},
                "routers": ["cascade", "cascading_provider"],
                **keys,
            },
        )
        log = io.StringIO()
        made.append(ModelOrchestrator(config, metrics=sink, environ={"KEY": "k", **(environ or {})}, log=log))
        return made[-1], log

    yield orchestrator
    for one in made:
        one.close()


def posts(stub):
    return [one for one in stub.requests if one.method == "POST"]


def test_it_never_falls_back_to_the_cloud(make, server, cloud):
    orchestrator, _ = make()
    server.answer = lambda request: Reply.error(500)
    with pytest.raises(AllCandidatesFailed):
        orchestrator.generate(NOTE, private=True)
    assert posts(server)
    assert not cloud.requests
    assert orchestrator.generate("public").text == "an answer"  # the control: the same profile does fall back
    assert len(posts(cloud)) == 1


@pytest.mark.parametrize("fields", [{"model": "remote"}, {"task_type": "far"}, {"model": "mv_cascade_small_k2_remote_k1"}])
@pytest.mark.parametrize("way", ["generate", "stream"])
def test_a_route_that_needs_the_cloud_is_refused(make, server, cloud, fields, way):
    orchestrator, _ = make(fallback=[])
    with pytest.raises((EgressDenied, WorkflowComposerError)) as caught:
        found = getattr(orchestrator, way)(NOTE, private=True, **fields)
        for _ in found if way == "stream" else ():
            pass
    assert isinstance(caught.value, EgressDenied)
    assert NOTE not in str(caught.value)
    assert not cloud.requests
    assert not posts(server)


def test_a_plan_made_elsewhere_is_refused_at_the_call(make, cloud):
    """As that of a router's audit, which does not go through the planning."""
    orchestrator, _ = make()
    request, plan = orchestrator.prepare(NOTE, model="remote")
    from workflow_composer.support.fast_dataclass import changed

    async def run():
        active = orchestrator._active
        return await orchestrator._execute(active, plan, changed(request, private=True))

    import asyncio

    with pytest.raises(EgressDenied):
        asyncio.run(run())
    assert not cloud.requests


def test_embeddings_stay_too(make, server, cloud):
    orchestrator, _ = make(task_routing={"*": "small", "embeddings": "remote"}, fallback=[])
    with pytest.raises(EgressDenied):
        orchestrator.embed([NOTE], private=True)
    assert not cloud.requests
    orchestrator, _ = make(task_routing={"*": "small", "embeddings": "small"}, fallback=[])
    assert orchestrator.embed([NOTE], private=True).vectors
    assert len(posts(server)) == 1


def test_no_proxy_is_used(make, server, cloud):
    """The proxy would see the text."""
    proxy = {"http_proxy": cloud.url.removesuffix("/v1"), "HTTP_PROXY": cloud.url.removesuffix("/v1")}
    orchestrator, _ = make(proxy, fallback=[])
    orchestrator.generate(NOTE, private=True)
    assert len(posts(server)) == 1
    assert not posts(cloud)


def test_a_server_of_ones_own_with_a_public_address_gets_nothing(make, cloud):
    models = {"small": {"backend": "vllm", "base_url": "http://8.8.8.8:9/v1"}}
    orchestrator, _ = make(models=models, task_routing={"*": "small"}, fallback=[], timeouts={"connect": 0.2})
    with pytest.raises(EgressDenied, match="public address"):
        orchestrator.generate(NOTE, private=True)


def test_what_a_server_says_of_it_is_not_repeated(make, server, sink):
    orchestrator, log = make({"BIOPIPELINES_DEBUG_ROUTING": "1"}, fallback=[])
    server.answer = lambda request: Reply.error(422, f"bad body: {json.dumps(request.json)} {NOTE[4:11]}.. {NOTE[::-1]}")
    with pytest.raises(ModelError) as caught:
        orchestrator.generate(NOTE, private=True)
    left = "\n".join([str(caught.value), repr(caught.value), log.getvalue(), *map(repr, sink.seen)])
    for part in ("123-45", "Ann", NOTE[::-1]):
        assert part not in left
    assert "422" in str(caught.value)
    assert len(sink.seen) == 1
    assert sink.seen[0].prompt is None


def test_with_debugging_its_text_is_not_logged(make, sink):
    orchestrator, log = make({"BIOPIPELINES_DEBUG_ROUTING": "1"})
    orchestrator.generate(NOTE, private=True)
    assert "Ann" not in log.getvalue() + repr(sink.seen)
    orchestrator.generate("Bo Ek")
    assert "Bo Ek" in repr(sink.seen)


class Listening:
    """A plugin with every hook that is told of requests, and a router that wants to learn from answers."""

    def __init__(self):
        self.told = []

    @hookimpl
    def before_route(self, request):
        self.told.append(("before_route", request))

    @hookimpl
    def after_answer(self, request, response):
        self.told.append(("after_answer", request))

    @hookimpl
    def on_fallback(self, request, failed):
        self.told.append(("on_fallback", request))

    @hookimpl
    def on_escalation(self, request, tier):
        self.told.append(("on_escalation", request))

    @hookimpl
    def register_routers(self, register):
        told = self.told

        class Learning(Router):
            name = "learning"

            def plan(self, request, resources):
                return None if request.task_type == "any" else self._of(request)

            def _of(self, request):
                tiers = [Tier.of(self.context.candidates(name)) for name in ("small", "second")]
                tiers[0] = replace(tiers[0], accept=lambda *_: Verdict(False, "not this one"))
                return Plan(tuple(tiers), self.name, "two tiers")

            def answered(self, request, response):
                told.append(("answered", request))

        register("learning", Learning)


@pytest.fixture
def listening(server, cloud):
    plugin = Listening()
    host = plugin_host(discover=False)
    host.add(plugin, name="listening")
    own = {"backend": "vllm", "base_url": server.url}
    config = StrategyConfig(
        profile_name="p",
        models={"small": own, "second": own, "gone": {**own, "base_url": "http://127.0.0.1:9/v1"}},
        task_routing={"*": "gone"},
        fallback=["small"],
        retries={"attempts": 1},
        routers=["learning", "cascading_provider"],
    )
    with ModelOrchestrator(config, plugins=host, metrics=None, environ={}) as orchestrator:
        yield plugin, orchestrator


HOOKS = {"before_route", "after_answer", "on_fallback", "on_escalation", "answered"}


def test_plugins_and_routers_that_learn_are_told_nothing(listening):
    """The control: of the same requests, if they are not private, each of them is told."""
    plugin, orchestrator = listening
    for task in ("any", "two"):
        orchestrator.generate(NOTE, task_type=task, private=True)
    assert plugin.told == []
    for task in ("any", "two"):
        orchestrator.generate("public", task_type=task)
    assert {name for name, _ in plugin.told} == HOOKS


def test_every_hook_that_is_told_of_requests_is_among_the_readers():
    """A hook that is added later gets a line there, and its place asks it."""
    hooks = {name: inspect.signature(hook) for name, hook in vars(hookspecs).items() if inspect.isfunction(hook)}
    told = {name for name, signature in hooks.items() if "request" in signature.parameters}
    listed = " ".join(reader.what for reader in DataReader if not reader.rule.texts)
    assert told == HOOKS - {"answered"}
    assert all(name in listed for name in told)


def test_every_reader_is_asked_somewhere():
    """Or its rule is kept by the place that the documentation names."""
    source = "\n".join(path.read_text("utf-8") for path in (ROOT / "workflow_composer").rglob("*.py"))
    page = (ROOT / "docs" / "workflow-privacy.md").read_text("utf-8")
    for reader in DataReader:
        if not reader.rule.texts and reader is not DataReader.RECORD:
            assert f"may_read(DataReader.{reader.name}," in source
        assert reader.what in " ".join(page.split()), reader
