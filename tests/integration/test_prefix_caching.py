"""A shared context on a real vLLM server: its prefix cache answers for it, and the first token comes sooner."""

import os
import socket

import pytest

from benchmarks.prefix_caching import HITS, WITH, WITHOUT, Arm, measure, profile, reader, summary, template
from tests.integration.prompt_model import LOAD
from tests.integration.vllm_server import VARIABLE, VLLMServer, vllm_python
from workflow_composer import ModelOrchestrator
from workflow_composer.metrics.sink import NullSink

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(vllm_python() is None, reason=f"{VARIABLE} names no Python with vLLM"),
]

CONTEXT = template("tool-conventions")
PAIRS = 6
LEAST = 1280
"""Tokens of the context that lie in whole blocks of the cache, on any machine: ten blocks of 128."""


def fresh_salt():
    """With a salt of its own a request shares nothing with any other: the server computes the whole of it."""
    return {"cache_salt": os.urandom(8).hex()}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One server, with caching: two would take the other tests' memory and time."""
    folder = tmp_path_factory.mktemp("vllm")
    model = reader(folder / "model", CONTEXT, hidden=384, layers=6)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = VLLMServer(model, port, folder / "server.log", "reader", [*LOAD, "--enable-prefix-caching"])
    made.start()
    yield made
    made.kill()


async def test_the_first_token_comes_at_least_a_fifth_sooner_with_a_shared_context(server):
    """Pairs of the same question, one of them with a salt that keeps the cache from it; who is first alternates."""
    arms = [Arm(WITH, server), Arm(WITHOUT, server, fresh_salt)]
    await measure(arms, CONTEXT, PAIRS)
    found = summary(arms)
    assert 1500 <= min(arms[0].prompt_tokens) <= max(arms[0].prompt_tokens) <= 1800
    assert found["ratio"] <= 0.8, found
    assert found["ratio_of_pairs"] <= 0.8, found
    assert PAIRS * LEAST <= server.metric(HITS) <= PAIRS * max(arms[0].prompt_tokens), "only the unsalted ones hit the cache"


async def test_callers_with_system_messages_of_their_own_share_the_context(server):
    """Their words stand behind it."""
    arm = Arm(WITH, server)
    async with ModelOrchestrator(profile([arm]), metrics=NullSink(), environ={}) as orchestrator:
        fields = {"model": WITH, "context": (CONTEXT,), "max_tokens": 1}
        await orchestrator.agenerate("which file ?", system="name the file", **fields)
        before = server.metric(HITS)
        await orchestrator.agenerate("which file ?", system="what must be checked ?", **fields)
        assert server.metric(HITS) - before >= LEAST
