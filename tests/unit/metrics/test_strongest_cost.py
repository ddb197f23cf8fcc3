"""What always asking the strongest tier would have cost, in each request's metric."""

from __future__ import annotations

import pytest

from workflow_composer import ModelOrchestrator
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.metrics.sink import MemorySink

CASCADE = "mv_cascade_a_k2_t0.7_b_k1_t0.0"


@pytest.fixture
async def asked():
    """Asks a cascade of two models that repeat the question; the metrics."""
    made = []

    def with_prices(**prices):
        models = {name: {"backend": "fake", **prices[name]} for name in "ab"}
        tiers = {name: {"model": name, "cost": cost} for name, cost in (("a", 0.1), ("b", 1.0))}
        config = StrategyConfig(
            profile_name="p", models=models, tiers=tiers, task_routing={"*": "a"}, routers=["cascade", "provider"]
        )
        sink = MemorySink()
        made.append(ModelOrchestrator(config, metrics=sink, environ={}))
        return made[-1], sink

    yield with_prices
    for orchestrator in made:
        await orchestrator.aclose()


def dollars_a_token(price):
    """A price of so many dollars for each token, in and out."""
    return {"input_price": price * 1e6, "output_price": price * 1e6}


async def test_an_accepted_vote_is_compared_with_one_answer_of_the_strongest(asked):
    """Two samples of the cheap tier, one of the strong: to the same prompt, of as many tokens as one sample."""
    orchestrator, sink = asked(a=dollars_a_token(1), b=dollars_a_token(10))
    response = await orchestrator.agenerate("one and three: #### 4", model=CASCADE)
    assert response.decision.candidate == "a"
    tokens = response.usage
    one = tokens.prompt_tokens / len(response.attempts) + tokens.completion_tokens / 2
    assert sink.metrics[-1].strongest_cost == pytest.approx(10 * one)


async def test_where_the_strongest_answered_it_is_what_that_cost(asked):
    orchestrator, sink = asked(a=dollars_a_token(1), b=dollars_a_token(10))
    response = await orchestrator.agenerate("12", model="mv_cascade_a_k1_t0.0_b_k1_t0.0")
    metric = sink.metrics[-1]
    strong = [attempt.cost for attempt in response.attempts if attempt.name == "b"]
    assert metric.strongest_cost == (pytest.approx(sum(strong)) if strong else pytest.approx(10 * metric.cost))


async def test_a_price_by_gpu_time_is_unknown_until_an_answer_has_shown_it(asked):
    """Nothing is compared with a cost of nothing."""
    orchestrator, sink = asked(a=dollars_a_token(1), b={"gpu_hour_price": 3600.0})
    await orchestrator.agenerate("one and three: #### 4", model=CASCADE)
    assert sink.metrics[-1].strongest_cost is None
    await orchestrator.agenerate("one and three: #### 4", model="b")
    await orchestrator.agenerate("one and three: #### 4", model=CASCADE)
    assert sink.metrics[-1].strongest_cost > 0


async def test_a_plan_of_one_tier_has_nothing_to_compare(asked):
    orchestrator, sink = asked(a=dollars_a_token(1), b=dollars_a_token(10))
    await orchestrator.agenerate("one", model="a")
    assert sink.metrics[-1].strongest_cost is None
