"""ModelOrchestrator: requests, streams, embeddings, metrics, hooks, and switching under load."""

import asyncio
import gc
import io
import threading
from dataclasses import replace

import pytest
from pydantic import BaseModel

from workflow_composer import LLMRequest, ModelOrchestrator, StrategyConfig, hookimpl
from workflow_composer.backends.fake import Delay, FakeBackend, Interrupted
from workflow_composer.errors import (
    AllCandidatesFailed,
    ConfigError,
    LocalModelUnavailable,
    ProfileError,
    RoutingError,
    ServerFailed,
    ServerUnreachable,
    StreamInterrupted,
    WorkflowComposerError,
)
from workflow_composer.metrics.sink import MemorySink
from workflow_composer.plan import Plan, Tier
from workflow_composer.plugins.host import plugin_host
from workflow_composer.routers.base import Router


class Scripted:
    """A plugin whose backend ``scripted`` gives each model the script of its name, and keeps the backends made."""

    def __init__(self, **scripts):
        self.scripts = scripts
        self.made = []

    @hookimpl
    def register_backends(self, register):
        register("scripted", self.make)

    def make(self, spec, context):
        script = self.scripts.get(spec.name.replace("-", "_"), (f"answer of {spec.name}",))
        backend = FakeBackend(*script, name=spec.name, local=not spec.name.startswith("cloud"))
        self.made.append(backend)
        return backend


def profile(name="test", **fields):
    defaults = {
        "models": {"small": {"backend": "scripted"}, "large": {"backend": "scripted"}},
        "task_routing": {"*": "small"},
        "fallback": ["large"],
        "routers": ["cascading_provider"],
        "retries": {"attempts": 1, "base_delay": 0.001},
    }
    return StrategyConfig(profile_name=name, **(defaults | fields))


@pytest.fixture
def make():
    """Make an orchestrator over scripted models; closed at the end of the test."""
    made = []

    def build(config=None, *, hooks=(), environ=None, log=None, **scripts):
        scripted = Scripted(**scripts)
        host = plugin_host(discover=False)
        host.add(scripted, name="scripted")
        for index, hook in enumerate(hooks):
            host.add(hook, name=f"hook{index}")
        orchestrator = ModelOrchestrator(
            config or profile(), plugins=host, metrics=MemorySink(), environ=environ or {}, log=log
        )
        made.append(orchestrator)
        return orchestrator, scripted

    yield build
    for orchestrator in made:
        orchestrator.close()


class Listening(Router):
    """Hears of its answers, and cannot bear it."""

    name = "listening"

    def plan(self, request, resources):
        return Plan((Tier.of(self.context.candidates("small")),), self.name)

    def answered(self, request, response):
        raise ValueError("too loud")


class ListeningPlugin:
    @hookimpl
    def register_routers(self, register):
        register("listening", Listening)


class TestOneRequest:
    async def test_a_router_that_fails_when_it_hears_of_an_answer_costs_nobody_the_answer(self, make):
        """It is reported by name."""
        log = io.StringIO()
        orchestrator, _ = make(profile(routers=["listening"]), hooks=[ListeningPlugin()], log=log, small=["4"])
        assert (await orchestrator.agenerate("2 + 2?")).text == "4"
        assert "listening" in log.getvalue()
        assert "answered failed: ValueError: too loud" in log.getvalue()

    async def test_the_response_says_what_happened(self, make):
        """Text, model, decision, attempts and identifiers are all there."""
        orchestrator, _ = make()
        response = await orchestrator.agenerate("hello", task_type="code")
        assert (response.text, response.model) == ("answer of small", "small")
        decision = response.decision
        assert (decision.strategy, decision.router, decision.task_type) == ("test", "cascading_provider", "code")
        assert "routed to small" in decision.reason
        assert [attempt.name for attempt in response.attempts] == ["small"]
        assert 0 <= response.overhead_ms <= response.latency_ms
        assert response.confidence is None

    async def test_one_metric_line_is_written_for_an_answer(self, make):
        """It agrees with the response, and holds no prompt."""
        orchestrator, _ = make(small=[ServerUnreachable("down")])
        response = await orchestrator.agenerate("a secret question")
        (metric,) = orchestrator._sinks[0].metrics
        assert (metric.candidate, metric.fallback_depth, metric.success, metric.attempts) == ("large", 1, True, 2)
        assert (metric.request_id, metric.query_length) == (response.request_id, len("a secret question"))
        assert b"secret" not in metric.to_json()

    async def test_one_metric_line_is_written_for_a_failure(self, make):
        """With the error's type and the attempts that were made."""
        orchestrator, _ = make(small=[ServerUnreachable("x")], large=[ServerUnreachable("x")])
        with pytest.raises(AllCandidatesFailed):
            await orchestrator.agenerate("hello")
        (metric,) = orchestrator._sinks[0].metrics
        assert (metric.success, metric.error, metric.attempts) == (False, "AllCandidatesFailed", 2)

    @pytest.mark.parametrize("how", ["profile", "environment"])
    async def test_with_debugging_the_metric_quotes_the_prompt(self, make, how):
        """Asked for by the profile or by the environment."""
        environ = {"BIOPIPELINES_DEBUG_ROUTING": "1"} if how == "environment" else {}
        orchestrator, _ = make(profile(debug_routing=how == "profile"), environ=environ)
        await orchestrator.agenerate("a question")
        assert b"a question" in orchestrator._sinks[0].metrics[0].to_json()

    async def test_with_debugging_the_decision_is_explained(self, make):
        """Plan, reason and every attempt, in one line of the log; nothing without debugging."""
        log = io.StringIO()
        orchestrator, _ = make(profile(debug_routing=True), log=log, small=[ServerUnreachable("down")])
        await orchestrator.agenerate("a question")
        (line,) = log.getvalue().splitlines()
        assert 'plan="small -> large"' in line
        assert "small: ServerUnreachable in" in line
        assert 'reason="task * is routed to small; fallback: large"' in line
        quiet = io.StringIO()
        await make(log=quiet)[0].agenerate("a question")
        assert quiet.getvalue() == ""

    async def test_messages_and_requests_are_taken_as_they_are(self, make):
        """A list of messages, a system text and a ready request reach the backend unchanged."""
        orchestrator, scripted = make()
        await orchestrator.agenerate([{"role": "user", "content": "hi"}], system="be brief", seed=7)
        await orchestrator.agenerate(LLMRequest.of("ho", request_id="mine"), max_tokens=5)
        first, second = (call.request for call in scripted.made[0].calls)
        assert [m["role"] for m in first.messages] == ["system", "user"]
        assert first.seed == 7
        assert (second.request_id, second.max_tokens) == ("mine", 5)

    async def test_an_unknown_task_without_a_wildcard_names_the_nearest(self, make):
        """The error says which tasks there are."""
        orchestrator, _ = make(profile(task_routing={"code_generation": "small"}))
        with pytest.raises(RoutingError, match="did you mean 'code_generation'"):
            await orchestrator.agenerate("x", task_type="code_generatoin")

    async def test_an_unknown_model_names_the_nearest(self, make):
        """A model that the profile does not know is never replaced by another."""
        orchestrator, _ = make()
        with pytest.raises(RoutingError, match="did you mean 'large'"):
            await orchestrator.agenerate("x", model="lerge")

    async def test_a_named_model_has_no_fallback(self, make):
        """Who names a model gets that model or an error."""
        orchestrator, scripted = make(small=[ServerUnreachable("down")])
        with pytest.raises(AllCandidatesFailed):
            await orchestrator.agenerate("x", model="small")
        assert scripted.made[1].calls == []

    async def test_cancelling_is_written_down_and_releases_the_snapshot(self, make):
        """A cancelled request leaves nothing behind that would keep a strategy alive."""
        orchestrator, scripted = make(small=[Delay(60, "x")])
        task = asyncio.ensure_future(orchestrator.agenerate("x"))
        while not scripted.made[0].in_flight:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert orchestrator._sinks[0].metrics[0].error == "CancelledError"
        await orchestrator.aswitch_strategy(profile("other"))
        assert scripted.made[0].closed

    def test_the_synchronous_methods_give_the_same(self, make):
        """generate, stream, embed and status for callers that do not await; in a notebook, see `test_notebook`."""
        orchestrator, _ = make()
        assert orchestrator.generate("x").text == "answer of small"
        stream = orchestrator.stream("x")
        assert "".join(chunk.text for chunk in stream) == "answer of small" == stream.response.text
        assert len(orchestrator.embed(["a", "b"]).vectors) == 2
        assert orchestrator.status().strategy == "test"

    def test_after_closing_nothing_is_answered(self, make):
        """A closed orchestrator says so."""
        orchestrator, scripted = make()
        orchestrator.close()
        assert all(backend.closed for backend in scripted.made)
        with pytest.raises(WorkflowComposerError, match="closed"):
            orchestrator.generate("x")


class TestStreams:
    async def test_a_stream_ends_with_the_whole_response(self, make):
        """The same response and metric as without streaming."""
        orchestrator, _ = make(small=[ServerUnreachable("down")], large=["one two"])
        stream = orchestrator.astream("x")
        assert stream.response is None
        assert "".join([chunk.text async for chunk in stream]) == "one two"
        assert (stream.response.text, stream.response.decision.fallback_depth) == ("one two", 1)
        assert orchestrator._sinks[0].metrics[0].success

    async def test_leaving_a_stream_early_stops_the_work(self, make):
        """And is written down as not completed."""
        orchestrator, scripted = make(small=["one two three"])
        async with orchestrator.astream("x") as stream:
            await anext(stream)
        assert scripted.made[0].cancelled == 1
        assert orchestrator._sinks[0].metrics[0].success is False

    async def test_a_broken_stream_raises(self, make):
        """Nothing replaces what was delivered."""
        orchestrator, _ = make(small=[Interrupted("one", ServerFailed("died"))])
        with pytest.raises(StreamInterrupted):
            async for _ in orchestrator.astream("x"):
                pass
        assert orchestrator._sinks[0].metrics[0].error == "StreamInterrupted"


class TestGovernance:
    CLOUD = {"small": {"backend": "scripted"}, "cloud-a": {"backend": "scripted"}}

    async def test_where_the_cloud_is_forbidden_a_down_server_is_an_error(self, make):
        """The pitfall of 'try local, then fall back': the answer is `LocalModelUnavailable`, whatever fails."""
        for error in (ServerUnreachable("x"), ServerFailed("x"), KeyError("x")):
            config = profile(allow_cloud=False, models={"small": {"backend": "scripted"}}, fallback=[])
            orchestrator, _ = make(config, small=[error])
            with pytest.raises(LocalModelUnavailable):
                await orchestrator.agenerate("patient data")

    def test_a_plugins_cloud_backend_is_refused_when_the_profile_loads(self, make):
        """Whether a plugin's backend sends data out is known only when it is made."""
        with pytest.raises(ProfileError, match=r"cloud-a.*allow_cloud: false"):
            make(profile(allow_cloud=False, models=self.CLOUD, fallback=[]))

    async def test_where_it_is_allowed_the_cloud_takes_over(self, make):
        """The same failure with the cloud allowed falls back."""
        orchestrator, _ = make(profile(models=self.CLOUD, fallback=["cloud-a"]), small=[ServerUnreachable("x")])
        response = await orchestrator.agenerate("x")
        assert (response.decision.candidate, response.decision.local) == ("cloud-a", False)


class TestHooks:
    async def test_every_moment_is_told(self, make):
        """before_route, on_fallback, after_answer and on_strategy_switch, with what they are about."""
        told = []

        class Plugin:
            @hookimpl
            def before_route(self, request, strategy):
                told.append(("before", strategy))
                return replace(request, metadata={"seen": True})

            @hookimpl
            def on_fallback(self, failed, candidate):
                told.append(("fallback", failed.name, candidate.name))

            @hookimpl
            def after_answer(self, request, response):
                told.append(("after", request.metadata["seen"], response.text))

            @hookimpl
            def on_strategy_switch(self, old, new):
                told.append(("switch", old["profile_name"], new["profile_name"]))

        orchestrator, _ = make(hooks=[Plugin()], small=[ServerUnreachable("x")])
        await orchestrator.agenerate("x")
        await orchestrator.aswitch_strategy(profile("other"))
        assert told == [
            ("before", "test"),
            ("fallback", "small", "large"),
            ("after", True, "answer of large"),
            ("switch", "test", "other"),
        ]


class TestChoosing:
    def test_the_environment_names_the_strategy(self, make, tmp_path):
        """BIOPIPELINES_STRATEGY takes a name or a path."""
        path = tmp_path / "mine.yaml"
        path.write_text("profile_name: mine\nmodels: {m: {backend: fake}}\ntask_routing: {'*': m}\n")
        environ = {"BIOPIPELINES_STRATEGY": str(path)}
        with ModelOrchestrator(metrics=MemorySink(), environ=environ) as orchestrator:
            assert (orchestrator.strategy, orchestrator.status().chosen_by) == ("mine", "environment")

    def test_an_argument_is_stronger_than_the_environment(self, make):
        """The most explicit wins."""
        with ModelOrchestrator("cloud_only", metrics=MemorySink(), environ={"BIOPIPELINES_STRATEGY": "no such"}) as o:
            assert o.status(probe=False).chosen_by == "argument"

    def test_a_router_that_does_not_exist_names_place_and_nearest(self, make):
        """The profile's line is named."""
        with pytest.raises(ProfileError, match=r"routers\[0\].*'providr'.*did you mean 'provider'"):
            make(profile(routers=["providr"]))

    def test_a_routers_unknown_setting_names_place_and_nearest(self, make):
        """Settings are checked when the profile is loaded."""
        with pytest.raises(ProfileError, match=r"max_fallback.*did you mean 'max_fallbacks'"):
            make(profile(routers=[{"cascading_provider": {"max_fallback": 1}}]))

    def test_a_backend_that_does_not_exist_names_place_and_nearest(self, make):
        """A plugin may be missing."""
        with pytest.raises(ProfileError, match=r"models.small.*'scriptd'.*did you mean 'scripted'"):
            make(profile(models={"small": {"backend": "scriptd"}}, fallback=[]))


class TestSwitching:
    async def test_a_profile_that_does_not_load_leaves_the_old_one_serving(self, make, tmp_path):
        """Whatever is wrong with it."""
        orchestrator, _ = make()
        bad = tmp_path / "bad.yaml"
        bad.write_text("profile_name: bad\nno_such_key: 1\n")
        for strategy in (bad, "no such profile", profile("x", routers=["nope"])):
            with pytest.raises(ConfigError):
                await orchestrator.aswitch_strategy(strategy)
        assert (await orchestrator.agenerate("x")).decision.strategy == "test"

    async def test_the_routers_are_those_of_the_active_profile(self, make):
        """By name, in the order in which they are asked."""
        orchestrator, _ = make(profile(routers=["cascade", "cascading_provider"]))
        assert list(orchestrator.routers) == ["cascade", "cascading_provider"]
        await orchestrator.aswitch_strategy(profile("other"))
        assert [(name, router.name) for name, router in orchestrator.routers.items()] == [("cascading_provider",) * 2]

    async def test_a_request_under_way_ends_under_the_old_profile(self, make):
        """Its backends close only when it has ended."""
        released = asyncio.Event()

        async def slow(call):
            await released.wait()
            return "late"

        orchestrator, scripted = make(small=[slow])
        task = asyncio.ensure_future(orchestrator.agenerate("x"))
        while not scripted.made[0].in_flight:
            await asyncio.sleep(0)
        await orchestrator.aswitch_strategy(profile("other"))
        assert not scripted.made[0].closed
        released.set()
        assert (await task).decision.strategy == "test"
        assert scripted.made[0].closed

    async def test_a_hundred_switches_under_load_lose_none_mix_none_and_leak_nothing(self, make):
        """Every response belongs wholly to one profile; no task, thread or open backend stays behind."""
        models = {
            name: {"one": {"backend": "scripted"}} if name == "a" else {"two": {"backend": "scripted"}} for name in "ab"
        }
        configs = [
            profile(name, models=models[name], task_routing={"*": next(iter(models[name]))}, fallback=[]) for name in "ab"
        ]
        orchestrator, scripted = make(configs[0])
        expected = {"a": "answer of one", "b": "answer of two"}
        stop, answered = asyncio.Event(), []

        async def client():
            while not stop.is_set():
                response = await orchestrator.agenerate("x")
                answered.append((response.decision.strategy, response.text))
                await asyncio.sleep(0)

        threads, tasks = threading.active_count(), len(asyncio.all_tasks())
        clients = [asyncio.ensure_future(client()) for _ in range(16)]
        for turn in range(100):
            before = len(answered)
            await orchestrator.aswitch_strategy(configs[(turn + 1) % 2])
            while len(answered) < before + 5:
                await asyncio.sleep(0)
        stop.set()
        await asyncio.gather(*clients)
        assert len(answered) >= 500
        assert all(text == expected[strategy] for strategy, text in answered)
        assert {strategy for strategy, _ in answered} == {"a", "b"}
        assert len(scripted.made) == 101
        assert [backend.closed for backend in scripted.made] == [True] * 100 + [False]
        assert (threading.active_count(), len(asyncio.all_tasks())) == (threads, tasks)
        assert all(metric.success for metric in orchestrator._sinks[0].metrics)
        gc.collect()

    def test_switching_from_many_threads_at_once_is_safe(self, make):
        """Synchronous callers share one orchestrator while another thread switches it."""
        orchestrator, scripted = make()
        answers, errors = [], []

        def ask():
            try:
                answers.extend(orchestrator.generate("x").text for _ in range(25))
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for turn in range(20):
            orchestrator.switch_strategy(profile(f"p{turn}"))
        for thread in threads:
            thread.join()
        assert errors == []
        assert answers == ["answer of small"] * 100
        assert sum(not backend.closed for backend in scripted.made) == 2


async def test_a_prompt_that_debugging_writes_down_is_without_keys():
    """The line may lie about in a file."""
    config = StrategyConfig(profile_name="p", models={"a": {"backend": "fake"}}, task_routing={"*": "a"}, debug_routing=True)
    sink = MemorySink()
    async with ModelOrchestrator(config, metrics=sink, environ={}, log=io.StringIO()) as orchestrator:
        await orchestrator.agenerate("my key is wfc-0123456789ab-c2VjcmV0LXNlY3JldA, is it good?")
    assert sink.metrics[0].prompt == "my key is <not shown>, is it good?"


async def test_a_sink_that_raises_fails_no_request(make):
    """Answers, streams, embeddings and errors come as they are, and the other sinks get their metrics.

    The fault is told once.
    """

    class Broken(MemorySink):
        def write(self, metric):
            raise OverflowError("int too large")

    log, before, behind = io.StringIO(), MemorySink(), MemorySink()
    config = profile(models={name: {"backend": "fake"} for name in ("small", "large")})
    sinks = (before, Broken(), behind)
    async with ModelOrchestrator(config, metrics=sinks, environ={}, log=log) as orchestrator:
        assert (await orchestrator.agenerate("hello")).text == "hello"
        async for _ in (stream := orchestrator.astream("hello")):
            pass
        assert stream.response.text == "hello"
        assert (await orchestrator.aembed(["a"])).vectors
        with pytest.raises(RoutingError):
            await orchestrator.agenerate("hello", model="nobody")
    assert log.getvalue().count("OverflowError") == 1
    assert len(before.metrics) == len(behind.metrics) == 4
    assert before.closed
    assert behind.closed


class TestPlansAreMadeOnce:
    """For requests of one kind, model and task, while nothing else counts."""

    async def test_what_a_request_needs_counts_where_models_list_what_they_can(self, make):
        models = {"small": {"backend": "scripted", "capabilities": ["chat"]}}
        models["large"] = {"backend": "scripted", "capabilities": ["chat", "tools"]}
        orchestrator, _ = make(profile(models=models))
        assert (await orchestrator.agenerate("hi")).decision.candidate == "small"
        tools = ({"type": "function", "function": {"name": "add"}},)
        assert (await orchestrator.agenerate("hi", tools=tools)).decision.candidate == "large"

    async def test_another_task_or_model_has_a_plan_of_its_own(self, make):
        orchestrator, _ = make(profile(task_routing={"*": "small", "hard": "large"}))
        asked = ({}, {"task_type": "hard"}, {"model": "large"}, {"model": "small"})
        found = [(await orchestrator.agenerate("hi", **fields)).decision.candidate for fields in asked * 2]
        assert found == ["small", "large", "large", "small"] * 2

    async def test_a_router_that_looks_at_the_words_is_asked_each_time(self, make):
        class ByLength(Router):
            name = "by_length"

            def plan(self, request, resources):
                target = "small" if request.query_length < 5 else "large"
                return Plan((Tier.of(self.context.candidates(target)),), self.name)

        class Plugin:
            @hookimpl
            def register_routers(self, register):
                register("by_length", ByLength)

        orchestrator, _ = make(profile(routers=["by_length"]), hooks=[Plugin()])
        found = [(await orchestrator.agenerate(text)).decision.candidate for text in ("hi", "hello there", "hi")]
        assert found == ["small", "large", "small"]


@pytest.mark.parametrize("prompt", [None, 3, ["What is 2 + 2?"], [{"role": "user", "content": "?"}, 3], b"bytes"])
def test_what_is_no_prompt_is_refused_by_name(prompt):
    """A notebook's first mistake is told as one, before anything is asked."""
    with pytest.raises(TypeError, match="a string or a list of messages"):
        LLMRequest.of(prompt)


class Finding(BaseModel):
    """A type of a user's."""

    gene: str
    found: bool


async def test_a_form_may_be_written_in_every_way(make):
    orchestrator, scripted = make(small=('{"gene": "TP53", "found": "yes"}', "A."))
    assert (await orchestrator.agenerate("?", schema=Finding)).value == Finding(gene="TP53", found=True)
    response = await orchestrator.agenerate(LLMRequest.of("?"), form=["a", "b"])
    assert (response.value, response.mended, response.asked_again) == ("a", ("case and punctuation",), 0)
    with pytest.raises(TypeError, match="not both"):
        await orchestrator.agenerate("?", schema=Finding, form="text")
    with pytest.raises(ConfigError, match="unknown form"):
        await orchestrator.agenerate("?", form="txt")
    assert len(scripted.made[0].calls) == 2


async def test_an_answer_without_the_form_comes_with_a_warning(make):
    orchestrator, scripted = make(small=("hm", "ha", "ho"))
    response = await orchestrator.agenerate("?", form=["a", "b"])
    assert (response.text, response.value, response.accepted, response.asked_again) == ("ho", None, False, 2)
    assert "not one of: a, b" in response.warning
    assert len(response.attempts) == len(scripted.made[0].calls) == 3


class TestFormsAndVotesOfAProfile:
    """What a tier accepts, and how its votes are grouped, may stand in the profile."""

    CASCADE = {"routers": ["cascade", "cascading_provider"], "task_routing": {"*": "small", "embeddings": "vectors"}}
    MODELS = {name: {"backend": "scripted"} for name in ("small", "large", "vectors")}

    def config(self, *, tiers=None, settings=None):
        tiers = tiers or {"small": {"model": "small"}, "large": {"model": "large"}}
        routers = [{"cascade": settings}, "cascading_provider"] if settings else self.CASCADE["routers"]
        return profile(**self.CASCADE | {"models": self.MODELS, "tiers": tiers, "routers": routers, "fallback": []})

    async def test_a_tier_accepts_only_its_form(self, make):
        tiers = {"small": {"model": "small", "accept": ["case", "trial"], "retries": 1}, "large": {"model": "large"}}
        orchestrator, scripted = make(self.config(tiers=tiers), small=("hm", "ha"), large=("The answer is trial.",))
        response = await orchestrator.agenerate("Which?", model="mv_cascade_small_k1_large_k1")
        assert (response.decision.tier, response.text) == (1, "The answer is trial.")
        small, large, _ = scripted.made
        assert (len(small.calls), response.asked_again) == (2, 1)
        assert "case, trial" in small.calls[0].request.messages[-1]["content"]
        assert large.calls[0].request.messages[-1]["content"] == "Which?"

    async def test_a_form_with_a_file_is_read_beside_the_profile(self, make, tmp_path):
        (tmp_path / "p.yaml").write_text(
            "profile_name: p\nmodels: {small: {backend: scripted}}\nrouters: [cascade, cascading_provider]\n"
            "task_routing: {'*': small}\ntiers: {small: {model: small, accept: {json_schema: names.json}}}\n"
        )
        with pytest.raises(ProfileError, match=r"p\.yaml:5: tiers\.small\.accept: .*names\.json"):
            make(StrategyConfig.load(tmp_path / "p.yaml"))
        (tmp_path / "names.json").write_text('{"type": "array", "items": {"type": "string"}}')
        orchestrator, _ = make(StrategyConfig.load(tmp_path / "p.yaml"), small=("- a\n- b",))
        assert (await orchestrator.agenerate("?", model="mv_small_k1")).value == ["a", "b"]

    @pytest.mark.parametrize("accept", ["txt", ["one"], {}, {"a": "nmber"}, [True, False], 3])
    def test_a_wrong_form_is_reported_at_its_key(self, accept):
        with pytest.raises(ProfileError, match=r"tiers\.small\.accept"):
            self.config(tiers={"small": {"model": "small", "accept": accept}})

    async def test_votes_are_grouped_by_the_embedding_role(self, make):
        prose = ["Rome is a town with a long and eventful history.", "Oslo is a town with a long and eventful history."]
        config = self.config(settings={"vote_by": "embedding", "similarity": 0.999, "stopping": "fixed"})
        orchestrator, scripted = make(config, small=([prose[0], prose[0], prose[1]],))
        response = await orchestrator.agenerate("?", model="mv_small_k3_t0.7")
        assert (response.text, response.confidence, response.warning) == (prose[0], 2 / 3, "")
        assert sorted(scripted.made[2].embedded) == sorted(prose)
        assert response.tiers[0].verdict.votes == ((prose[0], 2), (prose[1], 1))

    def test_grouping_by_embedding_needs_a_model_for_it(self, make):
        config = profile(routers=[{"cascade": {"vote_by": "embedding"}}, "cascading_provider"])
        with pytest.raises(ConfigError, match="embeddings"):
            make(config)
