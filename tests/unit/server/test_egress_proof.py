"""The proof that nothing can get out, and that it fails where something could."""

from __future__ import annotations

import pytest

from workflow_composer import ModelOrchestrator
from workflow_composer.backends.http.egress import EgressPolicy
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.errors import ConfigError, EgressProofFailed
from workflow_composer.metrics.sink import MemorySink
from workflow_composer.server.tracing import collector
from workflow_composer.server.workers.egress_check import prove_egress


@pytest.fixture
async def snapshot():
    """What would serve a profile that forbids the cloud; one server has a name, not an address."""
    endpoints = {"a": "http://localhost:8001/v1", "b": "http://gpu1.cluster.internal:8001/v1"}
    config = StrategyConfig(profile_name="p", allow_cloud=False, vllm_endpoints=endpoints, task_routing={"*": "a"})
    async with ModelOrchestrator(config, metrics=MemorySink(), environ={}) as orchestrator:
        made = orchestrator.prepare_strategy(config)
        yield made
        await made.retire()


async def test_requests_proxies_and_names_that_lead_out_are_really_tried(snapshot):
    tried = await prove_egress(snapshot)
    assert any("api.openai.com" in one for one in tried)
    assert any("through a proxy" in one for one in tried)
    assert any("gpu1.cluster.internal:8001 resolved to a public address" in one for one in tried)


async def test_a_rule_that_does_not_hold_is_found_out(snapshot, monkeypatch):
    """Each part of the rule is broken in turn: nothing is served."""
    monkeypatch.setattr(snapshot, "egress", EgressPolicy.of(StrategyConfig(profile_name="q", allow_cloud=True)))
    with pytest.raises(EgressProofFailed, match="its egress policy is not enforced"):
        await prove_egress(snapshot)


async def test_a_policy_that_lets_one_request_through_is_found_out(snapshot, monkeypatch):
    monkeypatch.setattr(EgressPolicy, "check_endpoint", lambda self, host, port: None)
    with pytest.raises(EgressProofFailed, match="attempted to resolve"):
        await prove_egress(snapshot)


async def test_a_name_that_may_lead_anywhere_is_found_out(snapshot, monkeypatch):
    monkeypatch.setattr(EgressPolicy, "admits", lambda self, address: True)
    with pytest.raises(EgressProofFailed, match="resolved to a public address"):
        await prove_egress(snapshot)


async def test_where_the_cloud_is_allowed_there_is_nothing_to_prove():
    config = StrategyConfig(profile_name="p", allow_cloud=True, vllm_endpoints={"a": "http://localhost:8001/v1"})
    async with ModelOrchestrator(config, metrics=MemorySink(), environ={}) as orchestrator:
        made = orchestrator.prepare_strategy(config)
        assert await prove_egress(made, collector="https://traces.example.com") == ()
        await made.retire()


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("http://localhost:4318", True),
        ("http://127.0.0.1:4318/v1/traces", True),
        ("http://[::1]:4318", True),
        ("https://traces.example.com", False),
        ("http://10.0.0.9:4318", False),
        ("http://8.8.8.8:4318", False),
        ("nonsense", False),
    ],
)
async def test_traces_go_to_this_machine_or_nowhere(snapshot, url, allowed):
    if allowed:
        assert await prove_egress(snapshot, collector=url)
        return
    with pytest.raises(ConfigError, match="traces would go to"):
        await prove_egress(snapshot, collector=url)


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a"}, "http://a"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://b"}, "http://b"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a", "OTEL_SDK_DISABLED": "true"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, None),
    ],
)
def test_traces_are_off_until_a_collector_is_named(environ, url):
    assert collector(environ) == url
