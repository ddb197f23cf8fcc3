"""The kit for plugin authors: the package's own parts conform, and what does not is found and named."""

import asyncio
import json

import pytest

from workflow_composer import LLMRequest, Plan, Tier, hookimpl
from workflow_composer.backends.base import BackendContext
from workflow_composer.backends.http.egress import EgressPolicy
from workflow_composer.backends.openai.backend import OpenAICompatibleBackend
from workflow_composer.batch.planning.policies import Predictor
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.errors import ServerFailed, WorkflowComposerError
from workflow_composer.plugins.builtin import BATCH_STRATEGIES, ROUTERS
from workflow_composer.plugins.host import plugin_host
from workflow_composer.routers import Router
from workflow_composer.testing import (
    FakeBackend,
    NotConforming,
    RecordedServer,
    ask,
    check_backend,
    check_policy,
    check_router,
    orchestrator_with,
)
from workflow_composer.types import Chunk, Completion, Sample, Usage

PARTS = plugin_host(discover=False).registry


SERVER = {"vllm_endpoints": {"generalist": "http://127.0.0.1:9/v1"}, "task_routing": {"*": "generalist"}}


@pytest.mark.parametrize("name", sorted(set(ROUTERS) - {"adaptive"}))  # which needs a table that was measured
def test_the_packages_own_routers_conform(name):
    """Over the kit's profile; one of them plans for servers only."""
    check_router(PARTS.routers[name].value, **(SERVER if name == "t4_model" else {}))


def routed(plan):
    """A router with this method."""
    return type("Bad", (Router,), {"name": "bad", "plan": plan})


@pytest.mark.parametrize(
    ("plan", "found"),
    [
        (lambda self, request, resources: "small", "not a Plan"),
        (lambda self, request, resources: None, "no plan for any request"),
        (lambda self, request, resources: request.messages[0] and None, "a request without messages: .*IndexError"),
        (lambda self, request, resources: Plan((), "x", ""), "not a tuple with at least one"),
        (
            lambda self, request, resources: Plan((Tier.of(self.context.candidates("small")),), "bad", "always"),
            "names a model .*its plan has small",
        ),
        (
            lambda self, request, resources: [asyncio.run(self.context.execute(plan_of(self), request)), plan_of(self)][1],
            "called models|names a model",
        ),
    ],
)
def test_a_router_that_does_not_conform_is_named(plan, found):
    """With the kind of request, and what it did."""
    with pytest.raises(NotConforming, match=found):
        check_router(routed(plan))


def plan_of(router):
    return Plan((Tier.of(router.context.candidates("small")),), "bad", "always")


def test_a_factory_that_raises_is_named():
    """The program is not blamed."""
    with pytest.raises((NotConforming, Exception), match="ZeroDivisionError"):
        check_router(lambda context, settings: 1 / 0)


def test_the_fake_backend_conforms():
    """It is what authors compare with."""
    check_backend(FakeBackend)


def test_the_backend_of_openais_api_conforms_over_recorded_answers():
    """A server that was recorded, and the egress rule in front of it."""
    usage = {"prompt_tokens": 9, "completion_tokens": 1}
    whole = {"model": "m", "choices": [{"message": {"content": "42"}, "finish_reason": "stop"}], "usage": usage}
    vectors = [{"index": number, "embedding": [0.5, 0.5]} for number in range(2)]
    start = {"model": "m", "choices": [{"index": 0, "delta": {"content": "42"}}]}
    end = {"model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": usage}
    stream = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in (start, end)] + [b"data: [DONE]\n\n"]

    def chat(received):
        asked = received.json()
        return stream if asked.get("stream") else {**whole, "choices": whole["choices"] * asked.get("n", 1)}

    recorded = {
        "/v1/chat/completions": chat,
        "/v1/embeddings": {"model": "m", "data": vectors, "usage": {"prompt_tokens": 2}},
        "/v1/models": {"data": [{"id": "m"}]},
    }
    with RecordedServer(recorded) as server:

        def make():
            config = StrategyConfig(
                profile_name="p",
                allow_cloud=False,
                models={"m": {"backend": "vllm", "base_url": f"{server.url}/v1", "model": "m"}},
            )
            context = BackendContext(config, EgressPolicy.of(config), {})
            return OpenAICompatibleBackend(config.models["m"], context)

        check_backend(make)
        assert {received.path for received in server.received} >= {"/v1/chat/completions"}
        assert json.loads(server.received[0].body)["model"] == "m"


class Odd(FakeBackend):
    """A backend with one method replaced."""


@pytest.mark.parametrize(
    ("methods", "found"),
    [
        ({"complete": lambda self, call: _value("42")}, "not a Completion"),
        (
            {"complete": lambda self, call: _value(Completion(samples=(Sample("42"),), usage=Usage(1, 1), model="m"))},
            "1 samples, not 3",
        ),
        (
            {
                "complete": lambda self, call: _value(
                    Completion(samples=("42",) * call.samples, usage=Usage(1, 1), model="m")
                )
            },
            "not a Sample",
        ),
        ({"complete": lambda self, call: _failing(KeyError("x"))}, "KeyError"),
        ({"stream": lambda self, call: _chunks(Chunk("42"))}, "0 finish reasons"),
        ({"stream": lambda self, call: _chunks("42")}, "not a Chunk"),
        ({"stream": lambda self, call: _chunks(Chunk("4", finish_reason="stop"), Chunk("2"))}, "after the finish reason"),
        ({"health": lambda self, timeout: _failing(ServerFailed("down"))}, "health raised"),
        ({"embed": lambda self, texts, timeout: _value([[1.0]])}, "not Embeddings"),
        ({"close": lambda self: _failing(OSError("twice"))}, "close raised OSError"),
        ({"local": "yes"}, "local"),
    ],
)
def test_a_backend_that_does_not_conform_is_named(methods, found):
    """Each method, each type."""
    made = type("Odd", (FakeBackend,), {name: value for name, value in methods.items() if name != "local"})

    def make():
        backend = made()
        backend.local = methods.get("local", True)
        return backend

    with pytest.raises(NotConforming, match=found):
        check_backend(make)


async def _value(value):
    return value


async def _failing(error):
    raise error


async def _chunks(*chunks):
    for chunk in chunks:
        yield chunk


class Even(Predictor):
    """Every tier is right half of the time."""

    def success(self, questions, tier):
        import numpy as np

        return np.full(len(questions), 0.5)


@pytest.mark.parametrize("name", sorted(BATCH_STRATEGIES))
def test_the_packages_own_policies_conform(name):
    """With a probe for those that need one."""
    check_policy(PARTS.batch_strategies[name].value, predictor=Even())


@pytest.mark.parametrize(
    ("routes", "found"),
    [
        (lambda self, questions, context: ["small"], "1 routing strings for 0"),
        (lambda self, questions, context: ["mv_small_k"] * len(questions), "mv_small_k"),
        (lambda self, questions, context: ["huge"] * len(questions), "huge"),
        (lambda self, questions, context: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_policy_that_does_not_conform_is_named(routes, found):
    """Its count, its strings, its tiers."""
    with pytest.raises((NotConforming, WorkflowComposerError), match=found):
        check_policy(type("Bad", (), {"routes": routes}))


def test_a_request_runs_through_a_plugin():
    """Its hooks and routers, over fakes that remember what they were asked."""

    class Shouting:
        @hookimpl
        def before_route(self, request):
            return LLMRequest.of(request.messages[-1]["content"].upper())

    with orchestrator_with(Shouting(), routers=["provider"]) as orchestrator:
        assert orchestrator.generate("hello").text == "small answers"
        assert orchestrator.fakes["small"].calls[0].request.messages[-1]["content"] == "HELLO"
    assert ask(None, "hello", profile={"routers": ["provider"]}, model="large").text == "large answers"
