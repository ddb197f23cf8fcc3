"""A vote on a real vLLM server: once it is decided, the server stops generating what is no longer needed."""

import asyncio
import time

import pytest

from tests.integration.vllm_server import VARIABLE, VLLMServer, vllm_python
from tests.paths import CHECKPOINTS
from workflow_composer import ModelOrchestrator, StrategyConfig
from workflow_composer.metrics.sink import NullSink

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(vllm_python() is None, reason=f"{VARIABLE} names no Python with vLLM"),
]

QUESTION = "Clara has 6 trays with 7 apples in each. Then she finds 23 more. How many apples are there in the end?"
K = 128
"""Eight times what the server generates side by side, so that most of it has not begun when the vote is decided."""
ATTEMPTS = 8
"""On a busy machine the server's front may take in all requests before it hands out the first answer; its engine, another
process, may be done with most of them by then. One vote proves that samples are stopped, and not each has to."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = VLLMServer(CHECKPOINTS / "large", 8003, tmp_path_factory.mktemp("vllm") / "server.log", name="large")
    made.start()
    yield made
    made.kill()


def profile(server, **settings):
    model = {"backend": "vllm", "base_url": f"{server.url}/v1", "model": "large"}
    timeouts = {"connect": 60.0}  # of 128 calls at once the last may wait long
    return StrategyConfig(profile_name="votes", models={"m": model}, routers=[{"cascade": settings}], timeouts=timeouts)


async def until_idle(server, limit=20.0):
    """Wait until nothing runs or waits at the server."""
    ends = time.monotonic() + limit
    while server.running_requests() or server.metric("vllm:num_requests_waiting"):
        assert time.monotonic() < ends, "the server still works on samples that nobody wants"
        await asyncio.sleep(0.1)


async def ask(server, route, *, max_tokens=128, extra=None, stop=None, **settings):
    async with ModelOrchestrator(profile(server, **settings), metrics=NullSink(), environ={}) as orchestrator:
        response = await orchestrator.agenerate(QUESTION, model=route, max_tokens=max_tokens, stop=stop, extra=extra or {})
        await until_idle(server)
    return response


def finished_requests(server):
    return server.finished_requests("stop") + server.finished_requests("length")


async def test_a_decided_vote_stops_the_samples_that_are_under_way_and_waiting(server):
    """128 long samples are asked for; four that agree decide; the server finishes a fraction of the rest."""
    text = (await ask(server, "mv_m_k1_t0.0", max_tokens=400, extra={"ignore_eos": True})).text
    # An answer cut off by its length has no vote: what one long answer ends with is where those of the vote stop.
    end = next(text[-length:] for length in range(8, len(text)) if text.index(text[-length:]) == len(text) - length)
    for _ in range(ATTEMPTS):
        finished, tokens = finished_requests(server), server.metric("vllm:generation_tokens_total")
        long = {"max_tokens": 420, "stop": end, "extra": {"ignore_eos": True}}
        response = await ask(server, f"mv_m_k{K}_t0.01", stopping="beta", **long)
        ended = finished_requests(server) - finished
        generated = server.metric("vllm:generation_tokens_total") - tokens
        assert len(response.samples) <= ended
        cancelled = [attempt for attempt in response.attempts if attempt.error_type == "CancelledError"]
        assert len(cancelled) <= K - len(response.samples)  # calls that had not begun are not on record
        each = response.usage.completion_tokens / len(response.samples)
        if response.accepted and cancelled and ended < K / 2 and generated < K * each / 2:
            return
    pytest.fail(f"in each of {ATTEMPTS} votes the server generated half of the samples: {ended:.0f} in the last")


async def test_as_needed_asks_for_no_more_than_could_decide_so_that_nothing_is_cancelled(server):
    stopped = server.finished_requests("stop")
    response = await ask(server, f"mv_m_k{K}_t0.1", stopping="beta", draw="as_needed")
    assert server.finished_requests("stop") - stopped == len(response.samples) < 16
    assert all(attempt.error is None for attempt in response.attempts)


async def test_samples_of_a_seeded_vote_differ_and_come_again(server):
    """Later calls of a vote do not repeat the earlier ones' seeds, and the same seed gives the same samples."""
    config = profile(server, stopping="fixed")
    async with ModelOrchestrator(config, metrics=NullSink(), environ={}) as orchestrator:
        first, again = [
            await orchestrator.agenerate(QUESTION, model="mv_m_k6_t1.5", max_tokens=64, seed=7) for _ in range(2)
        ]
    apart = profile(server, stopping="martingale", measure="score")  # never decided, so each sample is a call of its own
    async with ModelOrchestrator(apart, metrics=NullSink(), environ={}) as orchestrator:
        singly = await orchestrator.agenerate(QUESTION, model="mv_m_k6_t1.5", max_tokens=64, seed=7)
    texts = [sorted(sample.text for sample in response.tiers[0].samples) for response in (first, again, singly)]
    assert texts[0] == texts[1] == texts[2]
    assert len(set(texts[0])) > 1
