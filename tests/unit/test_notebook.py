"""The synchronous methods where an event loop runs already: in a notebook, and wherever a cell's code may stand."""

import asyncio
import threading

import pytest

from tests.integration.stub_server import Reply, StubServer
from workflow_composer import ModelOrchestrator, StrategyConfig, hookimpl
from workflow_composer.errors import AllCandidatesFailed, WorkflowComposerError
from workflow_composer.metrics.sink import MemorySink
from workflow_composer.plugins.host import plugin_host


def profile(url, name="notebook"):
    """One server of one's own, reached over real connections."""
    models = {"m": {"backend": "vllm", "base_url": url}}
    return StrategyConfig(
        profile_name=name, allow_cloud=False, models=models, task_routing={"*": "m"}, retries={"attempts": 1}
    )


def opened(url, *hooks):
    host = plugin_host(discover=False)
    for hook in hooks:
        host.add(hook, name=type(hook).__name__)
    return ModelOrchestrator(profile(url), plugins=host, metrics=MemorySink(), environ={})


def echo(request):
    """Answers with the question, piece by piece where a stream is wanted."""
    if request.path.endswith("/embeddings"):
        return Reply.of({"model": "m", "data": [{"index": 0, "embedding": [1.0]}], "usage": {"prompt_tokens": 1}})
    text = request.json["messages"][-1]["content"]
    return Reply.stream(*text.split(" ")) if request.json.get("stream") else Reply.chat(text)


@pytest.fixture
def stub(server):
    server.answer = echo
    return server


def test_every_synchronous_method_works_inside_a_running_loop(stub, tmp_path):
    """Opening, asking, streaming, embedding, planning, rows, status, switching, closing: a cell needs no await."""

    async def cell():
        with opened(stub.url) as o:
            assert o.generate("hello").text == "hello"
            assert o.plan("hello").tiers[0].candidates[0].name == "m"
            assert o.embed(["a"]).vectors == ((1.0,),)
            stream = o.stream("a b c")
            assert [chunk.text for chunk in stream if chunk.text] == ["a", "b", "c"]
            assert stream.response.text == "abc"
            with o.stream("left early") as early:
                next(early)
            assert [row.text for row in o.run_batch(["a", "b"], journal=tmp_path / "rows.jsonl")] == ["a", "b"]
            assert o.status().resources.vllm_endpoints == {"m": True}
            o.switch_strategy(profile(stub.url, "other"))
            assert o.generate("again").decision.strategy == "other"
        with pytest.raises(WorkflowComposerError, match="is closed"):
            o.generate("late")
        o.close()
        return "done"

    before = threading.active_count()
    assert asyncio.run(cell()) == "done"
    assert threading.active_count() == before


def test_awaiting_and_waiting_go_side_by_side_on_one_orchestrator(stub):
    """Each event loop has connections of its own; what was awaited in this loop goes on when the waiting is over."""

    async def cells():
        o = opened(stub.url)
        assert (await o.agenerate("one")).text == "one"
        under_way = asyncio.ensure_future(o.agenerate("two"))
        await asyncio.sleep(0)
        assert o.generate("three").text == "three"
        words = []
        async for chunk in o.astream("four five"):
            words.append(chunk.text)
            assert o.generate("between").text == "between"
        assert "".join(words) == "fourfive"
        assert (await under_way).text == "two"
        o.close()

    asyncio.run(cells())
    assert stub.wait_for(lambda s: s.open == 0)


def test_closing_in_a_loop_that_has_work_under_way_waits_for_nothing_there(stub):
    """What was asked there ends later, and its connections close with it."""
    asked, released = threading.Event(), threading.Event()

    def late(request):
        asked.set()
        released.wait(20)
        return Reply.chat("late")

    async def cell():
        o = opened(stub.url)
        await o.agenerate("one")
        stub.answer = late
        under_way = asyncio.ensure_future(o.agenerate("two"))
        await asyncio.to_thread(asked.wait, 20)
        o.close()
        assert not under_way.done()
        released.set()
        return (await under_way).text

    assert asyncio.run(asyncio.wait_for(cell(), 20)) == "late"
    assert stub.wait_for(lambda s: s.open == 0)


async def test_errors_come_as_they_are(server):
    """With every attempt, as without a loop."""
    server.answer = lambda request: Reply.error(503)
    with opened(server.url) as o, pytest.raises(AllCandidatesFailed) as caught:
        o.generate("hello")
    assert [attempt.name for attempt in caught.value.attempts] == ["m"]


class Asking:
    """A plugin that asks, without awaiting, while it hears of an answer."""

    def __init__(self):
        self.orchestrator = None
        self.heard = []

    @hookimpl
    def after_answer(self, request, response):
        if request.task_type == "ask":
            try:
                self.heard.append(self.orchestrator.generate("from a hook").text)
            except WorkflowComposerError as error:
                self.heard.append(error)


def test_a_hook_on_the_orchestrators_own_loop_is_refused_and_on_the_callers_is_answered(stub):
    """The one would wait for itself for ever; the error says what to await instead."""
    hook = Asking()
    with opened(stub.url, hook) as o:
        hook.orchestrator = o
        o.generate("x", task_type="ask")
        asyncio.run(asyncio.wait_for(o.agenerate("x", task_type="ask"), 20))
    refused, answered = hook.heard
    assert "agenerate" in refused.hint
    assert answered == "from a hook"


async def test_detection_works_inside_a_running_loop(tmp_path, monkeypatch):
    """`ModelOrchestrator()` in a cell, and in the service, which makes its own in its loop."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "config" / "strategies"
    folder.mkdir(parents=True)
    with StubServer() as stub:
        text = (
            f"profile_name: mine\nallow_cloud: false\nvllm_endpoints: {{coder: {stub.url}}}\ntask_routing: {{'*': coder}}\n"
        )
        (folder / "t4_local_only.yaml").write_text(text)
        with ModelOrchestrator(metrics=MemorySink(), environ={}) as o:
            assert o.strategy == "mine"
