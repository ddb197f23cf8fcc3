"""An orchestrator in a forked child, and its end while other threads use it."""

import asyncio
import json
import os
import signal
import threading
import warnings

import pytest

from tests.integration.stub_server import Reply
from workflow_composer import ModelOrchestrator, StrategyConfig
from workflow_composer.backends.embedded import engine
from workflow_composer.errors import StreamInterrupted, WorkflowComposerError
from workflow_composer.metrics.sink import JsonlSink, MemorySink
from workflow_composer.plugins.host import plugin_host
from workflow_composer.support.loop_thread import LoopThread

LONGEST = 60
"""Seconds after which a child that hangs is killed."""


def profile(url, name="forked"):
    models = {"m": {"backend": "vllm", "base_url": url, "model": "stub-model"}}
    return StrategyConfig(
        profile_name=name, allow_cloud=False, models=models, task_routing={"*": "m"}, retries={"attempts": 1}
    )


@pytest.fixture
def opened():
    """Make an orchestrator; closed at the end of the test."""
    made = []

    def build(config, metrics=None):
        host = plugin_host(discover=False)
        made.append(ModelOrchestrator(config, plugins=host, metrics=metrics or MemorySink(), environ={}))
        return made[-1]

    yield build
    for orchestrator in made:
        orchestrator.close()


def in_child(work):
    """Run a function in a forked child; return what it returned, or the name and the text of its error."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the point of these tests: there are threads
        child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(LONGEST)
        try:
            found = work()
        except BaseException as error:  # reported to the parent
            found = f"{type(error).__name__}: {error}"
        os.write(writing, json.dumps(found).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        said = answer.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child ended with {status}"
    return json.loads(said)


def echo(request):
    text = request.json["messages"][-1]["content"]
    return Reply.stream(*text.split(" ")) if request.json.get("stream") else Reply.chat(text)


class TestForked:
    def test_an_orchestrator_that_was_used_before_the_fork_answers_in_the_child(self, server, opened):
        """Whole, streamed, in an event loop and after a second fork, over connections of its own; the parent goes on."""
        server.answer = echo
        orchestrator = opened(profile(server.url))
        assert orchestrator.generate("parent").text == "parent"

        def everything():
            found = [orchestrator.generate("child").text]
            found.append("".join(chunk.text for chunk in orchestrator.stream("a b")))
            found.append(asyncio.run(orchestrator.agenerate("loop")).text)
            found.append(in_child(lambda: orchestrator.generate("grandchild").text))
            orchestrator.close()
            return found

        assert in_child(everything) == ["child", "ab", "loop", "grandchild"]
        assert orchestrator.generate("again").text == "again"
        used = {request.json["messages"][0]["content"]: request.connection for request in server.requests if request.body}
        assert used["again"] == used["parent"]
        assert used["child"] != used["parent"]

    def test_a_fork_while_another_thread_waits_for_an_answer(self, server, opened):
        """The call in progress stays the parent's, which gets its answer; the child has neither its locks nor its count."""
        begun, go = threading.Event(), threading.Event()

        def answer(request):
            if request.json["messages"][0]["content"] == "slow":
                begun.set()
                assert go.wait(LONGEST)
            return echo(request)

        server.answer = answer
        orchestrator = opened(profile(server.url))
        answers = []
        waiting = threading.Thread(target=lambda: answers.append(orchestrator.generate("slow").text))
        waiting.start()
        assert begun.wait(LONGEST)
        with orchestrator._active._lock:  # as if another thread held it at the moment of the fork
            child = in_child(lambda: [go.set(), orchestrator.close(), "closed"][2])
        assert child == "closed"
        go.set()
        waiting.join(LONGEST)
        assert answers == ["slow"]

    def test_a_stream_of_the_parent_is_an_error_in_the_child(self, server, opened):
        """Its connection is the parent's, which reads it to the end."""
        server.answer = echo
        orchestrator = opened(profile(server.url))
        stream = orchestrator.stream("a b c")
        first = next(stream).text
        assert "before this process was forked" in in_child(lambda: [chunk.text for chunk in stream])
        assert first + "".join(chunk.text for chunk in stream) == "abc"

    def test_a_closed_orchestrator_stays_closed_in_the_child(self, server, opened):
        """A fork opens nothing again."""
        orchestrator = opened(profile(server.url))
        orchestrator.close()
        assert "the orchestrator is closed" in in_child(lambda: orchestrator.generate("late").text)

    def test_each_line_of_metrics_is_written_once(self, server, opened, tmp_path):
        """Lines that wait at the fork are the parent's."""
        server.answer = echo
        file = tmp_path / "metrics.jsonl"
        sink = JsonlSink(file, together=3600.0)
        orchestrator = opened(profile(server.url), sink)
        for text in ("first", "second"):  # the second waits
            orchestrator.generate(text)

        def child():
            orchestrator.generate("third")
            orchestrator.close()

        with sink._lock:
            in_child(child)
        orchestrator.close()
        lines = [json.loads(line)["request_id"] for line in file.read_text().splitlines()]
        assert len(lines) == len(set(lines)) == 3

    def test_the_embedded_engine_says_that_it_does_not_survive_a_fork(self, monkeypatch, opened):
        """Its threads are not in the child, where a call would wait for ever; without a model loaded before, it may load."""
        models = {"small": {"backend": "embedded", "path": "small"}}
        config = StrategyConfig(profile_name="embedded", models=models, task_routing={"*": "small"})
        orchestrator = opened(config)
        monkeypatch.setattr(engine, "_began", "here")
        said = in_child(lambda: orchestrator.generate("x").text)
        assert "loaded before this process was forked" in said
        monkeypatch.setattr(engine, "_began", "no")
        assert in_child(lambda: engine._began) == "no"


class TestClosing:
    def test_it_waits_for_the_answer_of_another_thread(self, server, opened):
        """Which gets it; what begins after the call of `close` is refused."""
        begun, closing, go = threading.Event(), threading.Event(), threading.Event()

        def answer(request):
            begun.set()
            assert go.wait(LONGEST)
            return echo(request)

        server.answer = answer
        orchestrator = opened(profile(server.url))
        answers = []
        asking = threading.Thread(target=lambda: answers.append(orchestrator.generate("slow").text))
        asking.start()
        assert begun.wait(LONGEST)

        def end():
            closing.set()
            orchestrator.close()

        ending = threading.Thread(target=end)
        ending.start()
        assert closing.wait(LONGEST)
        while not orchestrator._closed:
            pass
        with pytest.raises(WorkflowComposerError, match="closed"):
            orchestrator.generate("late")
        with pytest.raises(WorkflowComposerError, match="closed"):
            orchestrator.switch_strategy(profile(server.url, "other"))
        assert ending.is_alive()
        go.set()
        ending.join(LONGEST)
        asking.join(LONGEST)
        assert answers == ["slow"]
        assert not ending.is_alive()

    def test_a_stream_between_two_chunks_is_an_error_and_no_short_answer(self, server, opened):
        """Nobody may take its beginning for the whole. A stream that its reader closed just ends."""
        server.answer = echo
        orchestrator = opened(profile(server.url))
        stream, left = orchestrator.stream("a b c"), orchestrator.stream("a b c")
        next(stream), next(left)
        left.close()
        assert list(left) == []
        orchestrator.close()
        with pytest.raises(StreamInterrupted, match="closed"):
            list(stream)

    def test_ctrl_c_ends_the_wait(self, server, opened):
        """The other thread's call is then cancelled; it does not hang."""
        begun, go, ended = threading.Event(), threading.Event(), threading.Event()

        def answer(request):
            begun.set()
            go.wait(LONGEST)
            return echo(request)

        server.answer = answer
        orchestrator = opened(profile(server.url))

        def ask():
            try:
                orchestrator.generate("slow")
            except BaseException:
                ended.set()

        def interrupt():
            while not orchestrator._closed:
                pass
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

        for work in (ask, interrupt):
            threading.Thread(target=work).start()
        assert begun.wait(LONGEST)
        with pytest.raises(KeyboardInterrupt):
            orchestrator.close()
        assert ended.wait(LONGEST)
        go.set()

    def test_no_call_is_lost_between_a_thread_and_its_end(self):
        """Each ends, with its result or cancelled, however starting and stopping meet."""
        thread, ended = LoopThread(), []

        def ask():
            try:
                ended.append(thread.run(asyncio.sleep(0, "a")))
            except BaseException as error:
                ended.append(type(error).__name__)

        for _ in range(100):
            asking = [threading.Thread(target=ask) for _ in range(3)]
            for one in asking:
                one.start()
            thread.stop()
            for one in asking:
                one.join(LONGEST)
                assert not one.is_alive()
        thread.stop()
        assert len(ended) == 300
