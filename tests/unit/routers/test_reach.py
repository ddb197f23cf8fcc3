"""Targets that votes cannot reach, and measures that models cannot give: errors when the profile loads, with what can be."""

from __future__ import annotations

import itertools

import pytest

from tests.unit.routers.test_cascade import MODELS, plan, profile
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.errors import ProfileError
from workflow_composer.execution.voting.confidence import confidence, fewest, highest

UNREACHABLE = "reach a posterior of at most"


def problems(*given, **more):
    """The faults of loading this profile."""
    with pytest.raises(ProfileError) as caught:
        plan(profile(*given, **more))
    return caught.value.problems


@pytest.mark.parametrize("measure", ["share", "entropy", "posterior"])
@pytest.mark.parametrize("votes", range(2, 7))
def test_the_highest_value_is_that_of_votes_for_one_answer(measure, votes):
    """No other pattern of votes reaches more."""
    every = itertools.product(range(-1, 4), repeat=votes)
    assert highest(measure, votes) == pytest.approx(max(confidence(measure, found) or 0.0 for found in every), abs=1e-8)


@pytest.mark.parametrize(
    ("measure", "target", "votes"),
    [("share", 1.0, 2), ("entropy", 0.9, 2), ("posterior", 0.875, 2), ("posterior", 0.876, 3), ("posterior", 0.99, 6)],
)
def test_the_fewest_votes_reach_the_target_and_one_less_does_not(measure, target, votes):
    """That number is what the error recommends."""
    assert fewest(measure, target) == votes
    assert (highest(measure, votes) or 0) >= target
    assert (highest(measure, votes - 1) or 0) < target or votes == 2


@pytest.mark.parametrize("target", [1.01, 2.0, float("inf"), float("nan")])
def test_no_number_of_votes_reaches_more_than_one(target):
    """Nor what is no number."""
    assert fewest("share", target) is None
    assert fewest("posterior", target) is None


def test_a_target_of_the_router_that_a_tiers_votes_cannot_reach():
    """Place, tier, largest value, and what would do."""
    tiers = {"small": {"model": "s", "samples": 3}, "large": {"model": "l"}}
    (problem,) = problems({"measure": "posterior", "target": 0.95}, tiers=tiers)
    assert problem.startswith(
        "<StrategyConfig>: routers[0].cascade.target: tier 'small': 3 votes reach a posterior of 0.937 "
    )
    assert "at least 4 votes, or a target of at most 0.937" in problem
    assert plan(profile({"measure": "posterior", "target": 0.937}, tiers=tiers), "cascade").notes == ()
    tiers["small"]["samples"] = 4
    assert plan(profile({"measure": "posterior", "target": 0.95}, tiers=tiers), "cascade").notes == ()


def test_a_target_of_its_own_is_named_at_its_own_place(tmp_path):
    """With the line in the file."""
    path = tmp_path / "p.yaml"
    path.write_text(
        "profile_name: p\nmodels: {s: {backend: fake}, l: {backend: fake}}\ntiers:\n  small:\n    model: s\n"
        "    target: 1.5\n  large: {model: l, target: 9}\ntask_routing: {'*': s}\nrouters: [cascade]\n"
    )
    with pytest.raises(ProfileError) as caught:
        plan(StrategyConfig.load(path))
    (problem,) = caught.value.problems  # the last tier of a cascade takes one sample, whose target nobody asks for
    assert problem.startswith(f"{path}:6: tiers.small.target: tier 'small': 4 votes reach a share of 1 at most")
    assert "take a target of at most 1" in problem


def test_a_routing_string_of_a_task_is_checked_too():
    """Without any tiers in the profile, and with a vote's only tier."""
    more = {"tiers": {}, "task_routing": {"math": "mv_s_k2_t0.7", "*": "s"}}
    (problem,) = problems({"measure": "posterior", "target": 0.9}, **more)
    assert "tier 's': 2 votes reach a posterior of 0.875 at most" in problem


def test_further_draws_of_an_entropy_cascade_count():
    """They are votes, too."""
    routing = {"math": "mv_entropy_cascade_s_k2_l_k1", "*": "s"}
    settings = {"measure": "posterior", "target": 0.9, "draws": 1}
    assert plan(profile(settings, tiers={}, task_routing=routing), task="math").notes == ()
    assert len(problems(settings | {"draws": 0}, tiers={}, task_routing=routing)) == 1


def test_a_callers_own_routing_string_is_run_with_a_note():
    """A request's answer is returned as not accepted; the plan says that it could not be."""
    (note,) = plan(profile({"measure": "posterior", "target": 0.9}), "mv_small_k2_t0.7").notes
    assert "tier 'small': 2 votes reach a posterior of 0.875 at most" in note


@pytest.mark.parametrize("backend", ["vllm", "openai", "embedded"])
def test_a_score_needs_a_model_that_gives_one(backend):
    """Servers and the embedded engine give none; recordings and plugins may."""
    own = {
        "vllm": {"base_url": "http://localhost:1/v1"},
        "openai": {"base_url": "https://x.example/v1"},
        "embedded": {"path": "small"},
    }
    models = {**MODELS, "s": {"backend": backend, **own[backend]}}
    (problem,) = problems({"measure": "score"}, models=models)
    assert problem.startswith("<StrategyConfig>: routers[0].cascade.measure: tier 'small': no model of it gives")
    assert plan(profile({"measure": "score"}), "cascade").notes == ()


def test_log_probabilities_need_a_model_that_returns_them():
    """Each tier of the profile once; a model that does not say what it can do is tried."""
    models = {**MODELS, "l": {"backend": "fake", "capabilities": ["chat", "tools"]}}
    (problem,) = problems({"measure": "logprob"}, models=models, task_routing={"a": "mv_large_k3", "*": "s"})
    assert "tier 'large': no model of it returns log-probabilities" in problem
    assert plan(profile({"measure": "logprob"}), "cascade").notes == ()


def test_the_place_of_a_cascade_router_behind_others_is_its_own():
    """Its index in the list."""
    routers = ["provider", {"cascade": {"target": 2}}]
    (problem,) = problems(routers=routers)
    assert problem.startswith("<StrategyConfig>: routers[1].cascade.target:")
