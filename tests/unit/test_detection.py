"""Which strategy is used where none is named."""

import pytest

from tests.integration.stub_server import MODEL, StubServer
from workflow_composer.detection import detect_strategy
from workflow_composer.errors import NoStrategy
from workflow_composer.fleet.places import REGISTRY_VARIABLE
from workflow_composer.fleet.registry import Entry, Registry
from workflow_composer.strategy import StrategyConfig


def servers(url):
    """The profile of local servers, all of them at one address."""
    return StrategyConfig(profile_name="local", vllm_endpoints={"coder": url})


DEAD = servers("http://127.0.0.1:9/v1")


async def test_a_healthy_local_server_comes_first():
    """Also where keys are set: local servers are paid for, and data stays."""
    with StubServer() as stub:
        found = await detect_strategy({"DEEPSEEK_API_KEY": "x"}, hybrid=servers(stub.url), embedded=lambda: True)
    assert found == "t4_hybrid"


async def test_a_registered_server_counts_as_a_local_one(tmp_path):
    """Wherever the scheduler put it; without one, a registry is nothing."""
    hybrid = StrategyConfig(profile_name="p", vllm_endpoints={"coder": ["http://127.0.0.1:9/v1", "registry:coder"]})
    environ = {REGISTRY_VARIABLE: str(tmp_path)}
    with StubServer() as stub:
        assert await detect_strategy(environ, hybrid=hybrid, embedded=lambda: True) == "development"
        Registry(tmp_path).publish(
            Entry(
                server="coder",
                role="coder",
                host=stub.host,
                port=stub.port,
                model=MODEL,
                state="ready",
                started=1.0,
                updated=0.0,
            )
        )
        assert await detect_strategy(environ, hybrid=hybrid, embedded=lambda: True) == "t4_hybrid"


async def test_a_cloud_key_comes_next():
    """Any key that the shipped cloud profile names."""
    assert await detect_strategy({"ANTHROPIC_API_KEY": "x"}, hybrid=DEAD, embedded=lambda: True) == "cloud_only"


async def test_an_empty_key_is_none():
    """A variable that is set to nothing does not count."""
    assert await detect_strategy({"ANTHROPIC_API_KEY": ""}, hybrid=DEAD, embedded=lambda: True) == "development"


async def test_the_embedded_engine_is_the_last_resort():
    """A machine without a server and without a key still answers."""
    assert await detect_strategy({}, hybrid=DEAD, embedded=lambda: True) == "development"


async def test_with_nothing_the_error_says_what_was_looked_for_and_what_to_do():
    """Places, variables, and the extra to install."""
    with pytest.raises(NoStrategy) as caught:
        await detect_strategy({}, hybrid=DEAD, embedded=lambda: False)
    for word in ("127.0.0.1:9", "DEEPSEEK_API_KEY", "BIOPIPELINES_STRATEGY", "workflow-composer[embedded]"):
        assert word in str(caught.value)
