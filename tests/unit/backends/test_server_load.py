"""A vLLM server's own count of its requests."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.integration.stub_backends import local_backend
from workflow_composer.backends.http.connection import TooLong
from workflow_composer.backends.server_load import METRICS, ServerLoad, metrics_url, parse

VLLM = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="small"} 3.0
vllm:num_requests_waiting{engine="0",model_name="small"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 9.0
vllm:num_requests_running{engine="1",model_name="small"} 1.0
vllm:kv_cache_usage_perc{engine="0",model_name="small"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="small"} 0.75
"""


def test_running_and_waiting_requests_of_all_engines_are_added_up():
    """The fullest cache counts; metrics with longer names are others."""
    assert parse(VLLM) == ServerLoad(6.0, 0.75)


def test_the_former_name_of_the_cache_is_known():
    """That of vLLM before 0.10."""
    assert parse('vllm:gpu_cache_usage_perc{model_name="m"} 0.5').cache == 0.5


@pytest.mark.parametrize("value", ["NaN", "-1", "+Inf", "many", "1e99", ""])
def test_a_value_that_cannot_be_is_left_out(value):
    """A server's word is not believed blindly."""
    assert parse(f'vllm:num_requests_running{{a="b"}} {value}') == ServerLoad()


@given(st.text())
def test_whatever_a_server_says_can_be_read(text):
    """It says nothing of the load then, or numbers that can be."""
    found = parse(text)
    assert found.requests is None or found.requests >= 0


@pytest.mark.parametrize("api", ["http://h:1/v1", "http://h:1/v1/"])
def test_metrics_lie_beside_the_api(api):
    """Not below /v1, where vLLM wants the key."""
    assert metrics_url(api) == "http://h:1/metrics"


async def test_a_server_is_asked_over_the_guarded_client(server):
    """And answers with its load; one without metrics has an empty one."""
    backend = local_backend(server.url)
    assert await backend.load() == ServerLoad()
    server.metrics = VLLM
    assert await backend.load() == ServerLoad(6.0, 0.75)
    assert [request.path for request in server.requests] == ["/metrics", "/metrics"]
    assert "authorization" not in server.requests[0].headers
    await backend.close()


async def test_metrics_are_read_up_to_a_limit(server):
    """A server that never ends is left after a megabyte."""
    backend = local_backend(server.url)
    server.metrics = VLLM + "x" * (METRICS.answer * 2) + "\n" + VLLM
    with pytest.raises(TooLong):
        await backend.load()
    await backend.close()


async def test_a_server_that_is_not_there_is_an_error(unused_tcp_port):
    """Whoever asks must know that it cannot be reached."""
    backend = local_backend(f"http://127.0.0.1:{unused_tcp_port}/v1")
    with pytest.raises(ConnectionRefusedError):
        await backend.load()
    await backend.close()
