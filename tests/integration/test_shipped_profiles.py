"""Every task of every shipped profile is called: over stand-ins for its servers and clouds, and on the embedded engine."""

from __future__ import annotations

import importlib.util
import itertools
import json
from collections.abc import Iterator

import pytest

from tests.integration.stub_server import Reply, Request, StubServer
from tests.paths import PROFILES
from workflow_composer import ModelOrchestrator
from workflow_composer.config.strategy import PRESETS, StrategyConfig
from workflow_composer.errors import CapabilityMissing
from workflow_composer.metrics.sink import MemorySink

ENGINE = importlib.util.find_spec("mistralrs") is not None
SURE, DOUBTFUL = -0.01, -6.0
PLAN = "mv_cascade_1.5B_k4_t0.7_7B_k4_t0.7_72B_k1_t0.0"
KIN = [
    PLAN,
    "mv_cascade_1.5B_k4_t0.7_72B_k1_t0.0",
    "mv_entropy_cascade_1.5B_k4_t0.7_7B_k4_t0.7_72B_k1_t0.0",
    "mv_7B_k8_t0.7",
    "mv_72B_k8_t0.7",
    "Qwen/Qwen2.5-Math-7B-Instruct",
    "7B",
    "cascade",
]
"""Routing strings of the plan, and their kin."""


def answering(texts: list[str], logprob: float | None = None) -> object:
    """A server's answers: its samples are these texts in turn, with log-probabilities if they are asked for."""
    turn = itertools.cycle(texts)

    def answer(request: Request) -> Reply:
        body = request.json
        if request.path.endswith("/embeddings"):
            return Reply.of(
                {"model": body["model"], "data": [{"index": 0, "embedding": [1.0, 0.0]}], "usage": {"prompt_tokens": 1}}
            )
        count = body.get("n", 1)
        reply = json.loads(Reply.chat(*itertools.islice(turn, count), model=body["model"]).body)
        if logprob is not None and body.get("logprobs"):
            tokens = [{"token": "4", "logprob": logprob, "top_logprobs": [{"token": "4", "logprob": logprob}]}]
            for choice in reply["choices"]:
                choice["logprobs"] = {"content": tokens}
        return Reply.of(reply)

    return answer


class Stand:
    """A shipped profile whose roles and clouds are served from this machine; ``servers`` by role or cloud model."""

    def __init__(self, name: str, answers: dict[str, object], *, down: tuple[str, ...] = ()) -> None:
        config = StrategyConfig.load(name, search=[PROFILES], environ={})
        clouds = {model: spec for model, spec in config.models.items() if not spec.local}
        self.servers = {place: StubServer() for place in (*config.vllm_endpoints, *clouds) if place not in down}
        for place, server in self.servers.items():
            server.answer = answers.get(place, answering(["#### 4"], SURE))
        urls = {place: server.url for place, server in self.servers.items()}
        gone = "http://127.0.0.1:9/v1"
        models = config.to_dict()["models"]
        for model in clouds:
            models[model]["base_url"] = urls.get(model, gone)
        self.config = config.replaced(
            vllm_endpoints={role: urls.get(role, gone) for role in config.vllm_endpoints},
            models=models,
            retries={"attempts": 1},
        )
        self.environ = {spec.api_key_env: "key" for spec in clouds.values() if spec.api_key_env}
        self.metrics = MemorySink()

    def __enter__(self) -> ModelOrchestrator:
        self.orchestrator = ModelOrchestrator(self.config, metrics=self.metrics, environ=self.environ)
        return self.orchestrator

    def __exit__(self, *_: object) -> None:
        self.orchestrator.close()
        for server in self.servers.values():
            server.close()

    def asked(self) -> set[str]:
        """The roles and clouds that got a prompt."""
        return {place for place, server in self.servers.items() if any(one.method == "POST" for one in server.requests)}


def routes() -> Iterator[tuple[str, str]]:
    """Every task of every shipped profile."""
    for name in PRESETS:
        config = StrategyConfig.load(name, search=[PROFILES], environ={})
        yield from ((name, task) for task in config.task_routing)


@pytest.mark.parametrize(("name", "task"), [route for route in routes() if route[0] != "development"])
def test_each_task_of_a_shipped_profile_is_answered(name, task):
    """By a model of its route, and no prompt is written down."""
    stand = Stand(name, {})
    with stand as orchestrator:
        if task == "embeddings":
            assert orchestrator.embed(["a"]).vectors == ((1.0, 0.0),)
        else:
            response = orchestrator.generate("What is 2 + 2?", task_type=task)
            assert response.text == "#### 4"
            assert response.accepted
    assert all(record.prompt is None for record in stand.metrics.metrics)


@pytest.mark.embedded
@pytest.mark.skipif(not ENGINE, reason="needs the embedded engine")
def test_each_task_of_development_is_answered_in_this_process():
    """And what the three models cannot do is refused by name."""
    metrics = MemorySink()
    with ModelOrchestrator("development", metrics=metrics, environ={}) as orchestrator:
        for task in orchestrator.config.task_routing:
            assert orchestrator.generate("What is 30 + 12?", task_type=task, max_tokens=8).text, task
        with pytest.raises(CapabilityMissing, match="large: it does not support embeddings"):
            orchestrator.embed(["a"])
    assert metrics.metrics
    assert all(record.prompt is None for record in metrics.metrics)


# ---------------------------------------------------------------------------------------------------------- math_cascade


@pytest.mark.parametrize("route", KIN)
def test_the_plans_routing_strings_run_with_math_cascade(route):
    """Small and middle disagree with themselves, so the largest one answers wherever it is a tier."""
    split = answering(["#### 1", "#### 2", "#### 3", "#### 5", "#### 6", "#### 7", "#### 8", "#### 9"])
    stand = Stand("math_cascade", {"math-1.5b": split, "math": split, "math-72b": answering(["#### 4"])})
    with stand as orchestrator:
        response = orchestrator.generate("What is 2 + 2?", model=route)
        plan = orchestrator.plan("What is 2 + 2?", model=route)
    named = {"1.5B": "math-1.5b", "7B": "math", "72B": "math-72b"}
    tiers = list(named) if route == "cascade" else [tier for tier in named if tier in route.replace("-7B", "7B")]
    assert stand.asked() == {named[tier] for tier in tiers}
    assert (response.text == "#### 4") is ("72B" in tiers)
    greedy = [server for server in [stand.servers["math-72b"]] if server.requests]
    assert all(one.json["temperature"] == 0 for server in greedy for one in server.requests if one.method == "POST")
    assert not plan.left_out


def test_math_cascade_stops_at_the_first_tier_whose_votes_agree():
    """Three of four are enough."""
    stand = Stand("math_cascade", {"math-1.5b": answering(["#### 4", "#### 4", "#### 4", "#### 7"])})
    with stand as orchestrator:
        response = orchestrator.generate("What is 2 + 2?", task_type="math_statistics")
    assert (response.text, response.accepted, response.decision.tier) == ("#### 4", True, 0)
    assert stand.asked() == {"math-1.5b"}


# ----------------------------------------------------------------------------------------------------------- t4_feedback


def test_t4_feedback_keeps_a_sure_answer_at_home():
    """The cloud gets nothing."""
    stand = Stand("t4_feedback", {})
    with stand as orchestrator:
        response = orchestrator.generate("What is 2 + 2?", task_type="biomedical")
    assert (response.accepted, stand.asked()) == (True, {"generalist"})


def test_t4_feedback_asks_the_cloud_if_the_answer_is_doubtful():
    """The reason names the rule."""
    stand = Stand("t4_feedback", {"generalist": answering(["maybe 5"], DOUBTFUL)})
    with stand as orchestrator:
        response = orchestrator.generate("What is 2 + 2?", task_type="biomedical")
    assert response.text == "#### 4"
    assert stand.asked() >= {"generalist", "deepseek-flash"}
    assert not response.tiers[0].verdict.accepted
    assert response.tiers[0].verdict.reason


def test_a_floor_of_t4_feedback_keeps_a_task_from_the_local_model():
    """`orchestration` starts in the cloud."""
    stand = Stand("t4_feedback", {})
    with stand as orchestrator:
        assert orchestrator.generate("What is 2 + 2?", task_type="orchestration").text == "#### 4"
    assert "generalist" not in stand.asked()


def test_t4_feedback_works_without_keys():
    """Then its local answers are all there is, and the plan says why."""
    stand = Stand("t4_feedback", {"generalist": answering(["maybe 5"], DOUBTFUL)})
    stand.environ.clear()
    with stand as orchestrator:
        response = orchestrator.generate("What is 2 + 2?")
        left_out = orchestrator.plan("What is 2 + 2?").left_out
    assert (response.text, stand.asked()) == ("maybe 5", {"generalist"})
    assert any("deepseek-flash: its key is not set" in reason for reason in left_out)


# --------------------------------------------------------------------------------------------------------------- fallback


@pytest.mark.parametrize("name", ["t4_hybrid", "cloud_only"])
def test_the_fallbacks_of_a_shipped_profile_answer_one_after_the_other(name):
    """However many servers and clouds are down before them."""
    config = StrategyConfig.load(name, search=[PROFILES], environ={})
    for answers, last in enumerate(config.fallback):
        stand = Stand(name, {}, down=(*config.vllm_endpoints, *config.fallback[:answers]))
        with stand as orchestrator:
            assert orchestrator.generate("What is 2 + 2?", task_type="documentation").text == "#### 4"
        assert stand.asked() == {last}
