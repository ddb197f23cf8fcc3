"""What decides a plan is in the key under which it is kept: no request changes the route of another."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workflow_composer import ModelOrchestrator, StrategyConfig
from workflow_composer.errors import WorkflowComposerError
from workflow_composer.metrics.sink import NullSink

ROUTE = "mv_cascade_small_k4_t0.7_large_k1_t0.0"
VOTE = "mv_small_k3_t0.7"
TOOLS = ({"type": "function", "function": {"name": "f"}},)


def profile(*routers, capabilities=(), star="cascade", math=ROUTE):
    more = {"capabilities": list(capabilities)} if capabilities else {}
    return StrategyConfig(
        profile_name="p",
        models={"s": {"backend": "fake", **more}, "l": {"backend": "fake"}},
        tiers={"small": {"model": "s"}, "large": {"model": "l"}},
        task_routing={"*": star, "math": math, "plain": "s"},
        routers=routers or ("cascade", "cascading_provider"),
    )


PROFILES = {
    "cascade": profile(),
    "a model": profile(star="s"),
    "capabilities": profile(capabilities=("chat", "json")),
    "without the cascade": profile("cascading_provider", star="s", math="l"),
    "feedback": profile("execution_feedback", "cascade", "cascading_provider", star="s"),
}
ASKED = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["chat", "completion", "embeddings", "other"]),
        "model": st.sampled_from([None, "s", "large", ROUTE, VOTE, "cascade"]),
        "task_type": st.sampled_from(["*", "math", "plain", "unknown"]),
        "tools": st.sampled_from([None, TOOLS]),
        "n": st.sampled_from([1, 2]),
    }
)


def outcome(orchestrator, asked):
    """The plan, or the error in its place."""
    try:
        return repr(orchestrator.plan("What is 2 + 2?", **asked).tiers)
    except WorkflowComposerError as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("name", PROFILES)
def test_a_plan_depends_on_nothing_that_was_asked_before(name):
    alone = {}

    def outcome_alone(asked):
        key = repr(asked)
        if key not in alone:
            with ModelOrchestrator(PROFILES[name], metrics=NullSink(), environ={}) as fresh:
                alone[key] = outcome(fresh, asked)
        return alone[key]

    with ModelOrchestrator(PROFILES[name], metrics=NullSink(), environ={}) as used:

        @settings(max_examples=10, deadline=None)
        @given(st.lists(ASKED, min_size=2, max_size=5))
        def check(requests):
            found = [outcome(used, asked) for asked in requests]
            assert found == [outcome_alone(asked) for asked in requests]

        check()


@pytest.mark.parametrize("first", ["chat", "completion"])
@pytest.mark.parametrize("model", [ROUTE, VOTE, "cascade"])
def test_a_route_that_a_caller_names_votes_on_chats_and_refuses_raw_completions_by_name(first, model):
    with ModelOrchestrator(PROFILES["cascade"], metrics=NullSink(), environ={}) as orchestrator:
        for kind in (first, "completion", "chat", "completion"):
            found = outcome(orchestrator, {"kind": kind, "model": model})
            assert ("Unsupported" in found) == (kind == "completion")
            assert ("raw completions" in found) == (kind == "completion")


@pytest.mark.parametrize("first", ["chat", "completion"])
@pytest.mark.parametrize("task", ["*", "math"])
def test_a_task_routed_to_a_cascade_answers_completions_by_its_first_model_that_can(first, task):
    with ModelOrchestrator(PROFILES["cascade"], metrics=NullSink(), environ={}) as orchestrator:
        for kind in (first, "completion", "chat"):
            found = orchestrator.plan("Once upon", kind=kind, task_type=task)
            if kind == "chat":
                assert len(found.tiers) == 2
            else:
                assert found.tiers[0].is_plain
                assert [candidate.name for candidate in found.tiers[0].candidates] == ["s", "l"]


@pytest.mark.parametrize(
    ("routers", "why"), [(["cascading_provider"], "cascade is not in it"), (["cascading_provider", "cascade"], "before")]
)
def test_the_error_for_a_routing_string_says_why_it_is_not_taken(routers, why):
    found = ModelOrchestrator(profile(*routers, star="s", math="l"), metrics=NullSink(), environ={})
    with found as orchestrator, pytest.raises(WorkflowComposerError) as caught:
        orchestrator.plan("x", model=VOTE)
    assert "routing strings" in caught.value.public
    assert why in caught.value.public
