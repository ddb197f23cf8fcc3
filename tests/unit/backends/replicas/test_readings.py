"""What a vLLM server says of itself: one parser for the monitor, for supervisors and for sets of replicas."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.paths import ROOT
from workflow_composer.backends.replicas.observer import Readings, read_metrics

PAGES = ROOT / "tests" / "unit" / "backends" / "pages"

ENGINES = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="small"} 3.0
vllm:num_requests_waiting{engine="0",model_name="small"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 9.0
vllm:num_requests_running{engine="1",model_name="small"} 1.0
vllm:kv_cache_usage_perc{engine="0",model_name="small"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="small"} 0.75
"""


def test_the_page_of_a_current_server_is_read():
    """A whole page of vLLM 0.32.0 (its build for the CPU), taken after two requests."""
    found = read_metrics((PAGES / "vllm-0.32.0.txt").read_text())
    assert found == Readings(requests=0, running=0, waiting=0, cache=0.0, tokens=8.0, work=22.0, started=1.79598873812e09)


def test_the_page_of_a_server_before_0_10_is_read():
    """Its cache has another name, its engines have no number, and a third count of requests stands beside the two."""
    found = read_metrics((PAGES / "vllm-0.6.txt").read_text())
    assert found == Readings(requests=5, running=3, waiting=2, cache=0.4375, tokens=4096.0, work=6155.0, started=1.7e9)


def test_engines_are_added_up_and_the_fullest_cache_counts():
    """Metrics with longer names are others."""
    assert read_metrics(ENGINES) == Readings(requests=6, running=4, waiting=2, cache=0.75)


def test_what_stands_in_a_label_or_behind_a_value_is_no_value():
    """A model's name may have a brace in it, and a sample may have its time."""
    text = "\n".join(
        [
            'vllm:num_requests_waiting{model_name="a} 9"} 1.0',
            "process_start_time_seconds 1.7e9 1700000000000",
            'vllm:generation_tokens_total_of_another{engine="0"} 5',
        ]
    )
    assert read_metrics(text) == Readings(requests=1, waiting=1, started=1.7e9)


@pytest.mark.parametrize("value", ["NaN", "-1", "+Inf", "many", "1e99", ""])
def test_a_value_that_cannot_be_is_not_believed(value):
    """A server's word is a claim."""
    assert read_metrics(f'vllm:num_requests_running{{a="b"}} {value}') == Readings()


@pytest.mark.parametrize("value", ["NaN", "-1", "many", ""])
def test_a_count_of_which_one_engine_is_unknown_is_unknown(value):
    """A server that drains is not taken for idle because the other engine says 0."""
    text = f'vllm:num_requests_running{{engine="0"}} 0.0\nvllm:num_requests_running{{engine="1"}} {value}\n'
    found = read_metrics(text + 'vllm:num_requests_waiting{engine="0"} 0.0\n')
    assert (found.running, found.waiting, found.requests) == (None, 0, None)


@pytest.mark.parametrize(
    "text", ["", "vllm:num_requests_running", "vllm:num_requests_running{", "vllm:num_requests_running{} x", "\0" * 99]
)
def test_a_page_without_metrics_says_nothing(text):
    """Which is not the same as an idle server."""
    assert read_metrics(text) == Readings()


@given(st.text())
def test_whatever_a_server_says_can_be_read(text):
    """It says nothing then, or numbers that can be."""
    found = read_metrics(text)
    assert found.requests is None or found.requests >= 0
