"""What a notebook shows of a value: short, without secrets, and enough to go on."""

from __future__ import annotations

from workflow_composer import LLMRequest, ModelOrchestrator, StrategyConfig
from workflow_composer.metrics.sink import MemorySink
from workflow_composer.types import Sample, TokenLogprob

PROFILE = {"profile_name": "mine", "allow_cloud": False, "models": {"a": {"backend": "fake"}}, "task_routing": {"*": "a"}}


def test_values_show_themselves_shortly():
    """A response of a thousand words has one line, and so have plan, profile and stream."""
    with ModelOrchestrator(StrategyConfig(**PROFILE), metrics=MemorySink(), environ={}) as orchestrator:
        response = orchestrator.generate("word " * 1000)
        stream = orchestrator.stream("hello")
        before = repr(stream)
        list(stream)
        shown = [repr(one) for one in (response, orchestrator, orchestrator.config, orchestrator.plan("hello"), stream)]
    assert max(map(len, shown)) < 400
    assert "model='a'" in shown[0]
    assert all("mine" in one for one in shown[1:3])
    assert "task * is routed to a" in shown[3]
    assert "under way" in before
    assert "LLMResponse(" in shown[4]
    assert "closed" in repr(orchestrator)


def test_a_request_shows_what_was_asked_for():
    """Not its twenty defaults, and not its identity."""
    assert repr(LLMRequest.of("hi", temperature=0.2)) == (
        "LLMRequest(messages=({'role': 'user', 'content': 'hi'},), temperature=0.2)"
    )


def test_a_sample_counts_its_tokens():
    """Instead of listing them."""
    sample = Sample("4", "stop", logprobs=(TokenLogprob("4", -0.1),) * 9)
    assert repr(sample) == "Sample('4', finish_reason='stop', logprobs=<9 tokens>)"
