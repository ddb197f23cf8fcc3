"""The shipped `t4_hybrid` profile against a real vLLM server that dies in mid-request and comes back."""

import asyncio
import time

import pytest

from tests.integration.shipped_profile import t4_hybrid
from tests.integration.stub_server import StubServer
from tests.integration.vllm_server import VARIABLE, VLLMServer, vllm_python
from tests.paths import CHECKPOINTS
from workflow_composer import ModelOrchestrator
from workflow_composer.metrics.sink import MemorySink

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(vllm_python() is None, reason=f"{VARIABLE} names no Python with vLLM"),
]

QUESTION = "Anna has 12 pens. Then she finds 7 more. How many pens does Anna have now?"
LONG = {"max_tokens": 400, "extra": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A vLLM server with the `small` checkpoint on the port of the role `coder`."""
    made = VLLMServer(CHECKPOINTS / "small", 8002, tmp_path_factory.mktemp("vllm") / "server.log")
    made.start()
    yield made
    made.kill()


@pytest.fixture
def cloud():
    """A stand-in for the first cloud provider of the profile."""
    with StubServer() as stub:
        yield stub


@pytest.fixture
def profile(tmp_path, cloud):
    """`t4_hybrid` as it is shipped, its two cloud addresses pointed to the stand-in."""
    path = tmp_path / "t4_hybrid.yaml"
    path.write_text(t4_hybrid(cloud.url))
    return path


async def interrupted(ask, server, limit=60.0):
    """A request in whose midst the server is stopped (SIGSTOP), and how many ended before that could be done."""
    early = 0
    ends = time.monotonic() + limit
    asked = asyncio.ensure_future(ask())
    while time.monotonic() < ends:
        if await asyncio.to_thread(server.running_requests):
            server.freeze()
            ended, _ = await asyncio.wait({asked}, timeout=0.5)  # an answer that had left already arrives
            if not ended:
                return asked, early
            server.resume()
        if asked.done():
            await asked  # an error is the test's to see
            early += 1
            asked = asyncio.ensure_future(ask())
    raise AssertionError("the server was never met at work")


async def until_local(orchestrator, limit=120.0):
    """Ask until the local server answers again; its circuit breaker lets a probe pass after the cooldown."""
    ends = time.monotonic() + limit
    while time.monotonic() < ends:
        response = await orchestrator.agenerate(QUESTION, task_type="code_generation")
        if response.decision.local:
            return response
        await asyncio.sleep(0.5)
    raise AssertionError("the local server was not used again")


async def test_a_task_goes_to_its_server_falls_back_when_it_is_killed_and_returns(server, profile):
    """code_generation runs on port 8002; when that dies in mid-request the profile's fallback answers; then it is back."""
    sink = MemorySink()
    environ = {"DEEPSEEK_API_KEY": "not-a-real-key", "ANTHROPIC_API_KEY": "not-a-real-key"}
    async with ModelOrchestrator(profile, metrics=sink, environ=environ) as orchestrator:
        first = await orchestrator.agenerate(QUESTION, task_type="code_generation", timeout=120)
        assert first.decision.local
        assert (first.decision.model, first.decision.fallback_depth) == ("small", 0)
        assert "####" in first.text
        assert first.cost > 0  # a local server costs its GPU's time

        asked, early = await interrupted(
            lambda: orchestrator.agenerate(QUESTION, task_type="code_generation", **LONG), server
        )
        await asyncio.to_thread(server.kill)
        second = await asked
        assert not second.decision.local
        assert (second.decision.candidate, second.decision.fallback_depth, second.decision.tier) == ("deepseek-flash", 1, 0)
        assert {a.error_type for a in second.attempts if a.local} == {"ServerUnreachable"}

        await asyncio.to_thread(server.start)
        third = await until_local(orchestrator)
        assert (third.decision.model, third.decision.fallback_depth) == ("small", 0)
    assert [m.fallback_depth for m in sink.metrics][: early + 2] == [0] * (early + 1) + [1]
    assert all(m.success for m in sink.metrics)


async def test_cancelling_a_request_makes_the_server_stop_generating(server, profile):
    """Shown by vLLM's own count of running requests."""
    async with ModelOrchestrator(profile, metrics=MemorySink(), environ={}) as orchestrator:
        before = server.finished_requests("length")
        asked, early = await interrupted(
            lambda: orchestrator.agenerate(QUESTION, task_type="code_generation", **LONG), server
        )
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        server.resume()
        ends = time.monotonic() + 30
        while await asyncio.to_thread(server.running_requests):
            assert time.monotonic() < ends, "the server went on generating"
        assert server.finished_requests("length") == before + early


async def test_samples_logprobs_and_streams_come_through(server, profile):
    """Several samples, log-probabilities with alternatives, and a stream with its usage, from the real server."""
    async with ModelOrchestrator(profile, metrics=MemorySink(), environ={}) as orchestrator:
        fields = {"task_type": "code_generation", "temperature": 0.0}
        response = await orchestrator.agenerate(QUESTION, logprobs=True, top_logprobs=3, **fields)
        tokens = response.samples[0].logprobs
        assert tokens
        assert all(token.logprob <= 0 and len(token.top) >= 3 for token in tokens)
        assert response.usage.completion_tokens >= len(tokens) - 1
        stream = orchestrator.astream(QUESTION, **fields)
        pieces = [chunk.text async for chunk in stream]
        assert "".join(pieces) == response.text
        assert len([piece for piece in pieces if piece]) > 1  # a server that is short of time sends several tokens at once
        assert stream.response.usage.prompt_tokens == response.usage.prompt_tokens
