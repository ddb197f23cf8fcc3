"""What of a call's time the GPU is paid for: from the request's first byte to the last one of its answer."""

from __future__ import annotations

import asyncio

import pytest

from tests.integration.stub_backends import local_backend
from tests.integration.stub_server import Reply, StubServer
from workflow_composer.backends.pricing import GpuMeter, Price
from workflow_composer.errors import ModelError
from workflow_composer.execution.breaker import CircuitBreaker
from workflow_composer.execution.call import Call, Endpoint, Trace
from workflow_composer.plan import Candidate
from workflow_composer.types import LLMRequest, ModelCall
from workflow_composer.usage import Sending


class CountedMeter(GpuMeter):
    """Says how often it was started and stopped."""

    def __init__(self) -> None:
        super().__init__()
        self.started = self.stopped = 0

    def start(self) -> float:
        self.started += 1
        return super().start()

    def stop(self, token: float) -> float:
        self.stopped += 1
        return super().stop(token)


@pytest.fixture
async def gpu():
    """An endpoint with a price per GPU-hour, and its server."""
    with StubServer() as server:
        backend, meter = local_backend(server.url), CountedMeter()
        yield server, Endpoint(Candidate("a", True), backend, Price(gpu_hour=3600.0), CircuitBreaker("a"), meter)
        await backend.close()


async def ask(endpoint, *, before=0.0):
    trace = Trace(None)
    asked = ModelCall(LLMRequest.of("q"), sending=Sending())
    with Call(endpoint, asked, trace) as call:
        await asyncio.sleep(before)
        assert endpoint.meter.in_flight == 0
        done = await endpoint.backend.complete(call.asked)
        assert endpoint.meter.in_flight == 0
        await asyncio.sleep(before)
        call.usage = done.usage
    return trace.attempts[0]


async def test_what_comes_before_the_first_byte_and_after_the_last_is_overhead(gpu):
    """A library that is imported, a queue of ours, JSON that is read."""
    _, endpoint = gpu
    attempt = await ask(endpoint, before=0.2)
    assert endpoint.meter.started == endpoint.meter.stopped == 1
    assert attempt.cost > 0
    assert attempt.cost < attempt.latency_ms / 1000.0 - 0.4 + 0.002


async def test_a_connection_that_is_refused_costs_nothing():
    with StubServer() as server:
        url = server.url
    backend, meter = local_backend(url, model="m"), CountedMeter()
    endpoint = Endpoint(Candidate("a", True), backend, Price(1.0, 1.0, 3600.0), CircuitBreaker("a"), meter)
    trace = Trace(None)
    with pytest.raises(ModelError), Call(endpoint, ModelCall(LLMRequest.of("q"), sending=Sending()), trace) as call:
        await backend.complete(call.asked)
    await backend.close()
    assert (meter.started, trace.attempts[0].cost, trace.attempts[0].priced) == (0, 0.0, True)


async def test_a_call_that_is_given_up_stops_the_clock(gpu):
    server, endpoint = gpu
    server.script(Reply(hang=True))
    asking = asyncio.ensure_future(ask(endpoint))
    while not endpoint.meter.in_flight:
        await asyncio.sleep(0.005)
    asking.cancel()
    await asyncio.wait([asking])
    assert (endpoint.meter.in_flight, endpoint.meter.started, endpoint.meter.stopped) == (0, 1, 1)


@pytest.mark.parametrize(("status", "prompts"), [(400, 0), (429, 0), (503, 0), (500, 1), (504, 1)])
async def test_a_request_that_was_refused_costs_nothing_and_one_that_failed_its_prompt(gpu, status, prompts):
    server, endpoint = gpu
    server.script(Reply.error(status))
    priced = Endpoint(endpoint.candidate, endpoint.backend, Price(1e6, 1e6), endpoint.breaker, endpoint.meter)
    trace = Trace(None)
    with pytest.raises(ModelError), Call(priced, ModelCall(LLMRequest.of("q" * 40), sending=Sending()), trace) as call:
        await priced.backend.complete(call.asked)
    attempt = trace.attempts[0]
    assert (attempt.usage.prompt_tokens, attempt.cost) == (10 * prompts, 10.0 * prompts)
    assert attempt.estimated is bool(prompts)
