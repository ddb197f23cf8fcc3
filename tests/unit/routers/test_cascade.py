"""The cascade router: which requests it takes, what its settings and the profile's tiers change, and what is refused."""

from __future__ import annotations

import pytest

from workflow_composer import ModelOrchestrator, StrategyConfig
from workflow_composer.errors import CapabilityMissing, ConfigError, MarkerError, ProfileError, RoutingError
from workflow_composer.metrics.sink import NullSink
from workflow_composer.plan import Voting

TIERS = {"small": {"model": "s"}, "large": {"model": "l"}}
MODELS = {name: {"backend": "fake"} for name in ("s", "l", "Qwen/Qwen2.5-Math-72B-Instruct")}
ROUTE = "mv_cascade_small_k4_t0.7_large_k1_t0.0"


def profile(settings=None, **more):
    data = {
        "profile_name": "p",
        "models": MODELS,
        "tiers": TIERS,
        "task_routing": {"*": "s"},
        "routers": [{"cascade": settings or {}}, "provider"],
    }
    return StrategyConfig(**{**data, **more})


def plan(config, model=None, task="*", **fields):
    with ModelOrchestrator(config, metrics=NullSink(), environ={}) as orchestrator:
        return orchestrator.plan("What is 2 + 2?", model=model, task_type=task, **fields)


def test_a_routing_string_becomes_its_plan_over_the_profiles_tiers():
    found = plan(profile(), ROUTE)
    assert str(found) == ROUTE
    assert [tier.candidates[0].name for tier in found.tiers] == ["s", "l"]
    assert (found.router, found.reason) == ("cascade", f"the caller named {ROUTE}")


def test_any_other_request_is_left_to_the_next_router():
    assert plan(profile()).router == "provider"
    assert plan(profile(), "l").router == "provider"


def test_a_task_may_be_routed_to_a_routing_string():
    found = plan(profile(task_routing={"math": ROUTE, "*": "s"}), task="math")
    assert str(found) == ROUTE
    assert "task math is routed to" in found.reason


def test_cascade_stands_for_all_tiers_with_their_own_samples():
    tiers = {"small": {"model": "s", "samples": 6, "temperature": 0.9}, "large": {"model": "l", "samples": 9}}
    assert str(plan(profile(tiers=tiers), "cascade")) == "mv_cascade_small_k6_t0.9_large_k1_t0.0"
    assert str(plan(profile(tiers=tiers, task_routing={"*": "cascade"}))) == "mv_cascade_small_k6_t0.9_large_k1_t0.0"


def test_default_sizes_stand_for_their_models_and_72b_is_greedy_only():
    found = plan(profile(), "mv_72B_k8_t0.7")
    assert found.tiers[0].candidates[0].name == "Qwen/Qwen2.5-Math-72B-Instruct"
    assert (found.tiers[0].samples, found.notes) == (1, ("72B is greedy-only: one sample at temperature 0 instead of 8",))


def test_a_tier_marked_greedy_only_answers_once():
    tiers = {"small": {"model": "s", "greedy_only": True}, "large": {"model": "l"}}
    found = plan(profile(tiers=tiers), "mv_cascade_small_k4_t0.7_large_k4_t0.7")
    assert [tier.samples for tier in found.tiers] == [1, 4]
    assert "greedy-only" in found.notes[0]


def test_a_tiers_own_settings_go_before_the_routers():
    own = {"model": "s", "target": 0.9, "deadline": 2.5, "budget": 0.01}
    found = plan(profile({"target": 0.6}, tiers={"small": own, "large": {"model": "l"}}), ROUTE)
    small, large = found.tiers
    assert (small.voting.target, small.deadline, small.budget) == (0.9, 2.5, 0.01)
    assert (large.voting.target, large.deadline, large.budget) == (0.6, None, None)


@pytest.mark.parametrize(
    ("setting", "seen"),
    [
        ({"measure": "posterior"}, lambda tier: tier.voting.measure == "posterior"),
        ({"target": 0.5}, lambda tier: tier.voting.target == 0.5),
        ({"stopping": "beta"}, lambda tier: tier.voting.stopping == "beta"),
        ({"stopping": "beta", "level": 0.9}, lambda tier: tier.voting.level == 0.9),
        ({"draw": "as_needed"}, lambda tier: tier.voting.draw == "as_needed"),
        ({"extract": ["boxed", "line"]}, lambda tier: tier.voting.form.extract == ("boxed", "line")),
        ({"compare": "text"}, lambda tier: tier.voting.form.compare == "text"),
        ({"compare_seconds": 0.5}, lambda tier: tier.voting.form.limit == 0.5),
    ],
)
def test_every_setting_reaches_the_vote(setting, seen):
    assert seen(plan(profile(setting), ROUTE).tiers[0])
    assert not seen(plan(profile(), ROUTE).tiers[0])


def test_budget_and_draws_reach_the_plan():
    assert plan(profile({"budget": 0.02}), ROUTE).budget == 0.02
    entropy = "mv_entropy_cascade_small_k4_t0.7_large_k1_t0.0"
    assert plan(profile({"draws": 3}), entropy).tiers[0].voting.explore == 12
    assert plan(profile(), entropy).tiers[0].voting == Voting(explore=4)


def test_a_malformed_string_is_an_error_that_points_at_the_part():
    with pytest.raises(MarkerError, match="at 'k0'"):
        plan(profile(), "mv_small_k0")


def test_an_unknown_tier_is_an_error_that_names_the_nearest():
    with pytest.raises(RoutingError, match="did you mean 'small'"):
        plan(profile(), "mv_smal_k4")


def test_a_tier_in_the_cloud_is_refused_where_the_cloud_is_forbidden():
    far = {"s": {"backend": "fake"}, "far": {"backend": "openai", "base_url": "https://api.example.com/v1"}}
    base = {"models": far, "tiers": {"small": {"model": "s"}}}
    with pytest.raises(ProfileError, match="needs the cloud"):
        plan(profile(allow_cloud=False, **base), "mv_cascade_small_k2_far_k1")


def test_a_tier_without_anything_left_to_ask_is_an_error_that_says_why():
    lacking = {**MODELS, "s": {"backend": "fake", "capabilities": ["embeddings"]}}
    with pytest.raises(RoutingError, match="it does not support chat"):
        plan(profile(models=lacking), ROUTE)
    with pytest.raises(CapabilityMissing, match="it does not support chat"):
        plan(profile(models=lacking, allow_cloud=False), ROUTE)


def test_weighted_votes_need_a_model_that_gives_log_probabilities():
    models = {**MODELS, "s": {"backend": "fake", "capabilities": ["chat"]}}
    with pytest.raises(ProfileError, match=r"routers\[0\]\.cascade\.measure: tier 'small': .* log-probabilities"):
        plan(profile({"measure": "logprob"}, models=models), ROUTE)
    with pytest.raises(RoutingError, match="log-probabilities"):  # no tier of the profile, so nothing is known at load
        plan(profile({"measure": "logprob"}, models=models, tiers={}), "mv_s_k4")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"measure": "certainty"}, "measure"),
        ({"stoping": "beta"}, "did you mean 'stopping'"),
        ({"stopping": "beta", "level": 7.0}, "level"),
        ({"extract": ["boxes"]}, "boxes"),
        ({"draws": -1}, "draws"),
    ],
)
def test_settings_that_cannot_be_are_errors_when_the_profile_is_loaded(settings, said):
    with pytest.raises(ConfigError, match=said):
        plan(profile(settings), ROUTE)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task_routing": {"*": "mv_small_k0"}}, "at 'k0'"),
        ({"task_routing": {"*": "mv_smal_k4"}}, "did you mean 'small'"),
        ({"task_routing": {"*": ROUTE}, "routers": ["provider"]}, "add cascade to routers"),
        ({"task_routing": {"*": "cascade"}, "tiers": {}}, "no tiers"),
        ({"tiers": {"a_k4": {"model": "s"}}}, "cannot be used in a routing string"),
        ({"tiers": {"cascade": {"model": "s"}}}, "is a reserved word"),
    ],
)
def test_what_a_profile_says_about_cascades_is_checked_when_it_is_loaded(change, said):
    with pytest.raises(ProfileError, match=said):
        profile(**change)


def test_a_cascade_over_the_cloud_is_an_error_where_the_cloud_is_forbidden():
    far = {"s": {"backend": "fake"}, "far": {"backend": "openai", "base_url": "https://api.example.com/v1"}}
    with pytest.raises(ProfileError, match="needs the cloud"):
        profile(
            allow_cloud=False, models=far, tiers={"small": {"model": "s"}}, task_routing={"*": "mv_cascade_small_k2_far_k1"}
        )
