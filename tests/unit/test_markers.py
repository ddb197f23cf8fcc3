"""Routing strings: what they mean, how they print, and what is said about malformed ones."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from workflow_composer.errors import InputError, MarkerError
from workflow_composer.markers import (
    DEFAULT_TIERS,
    MOST_SAMPLES,
    KnownTier,
    can_name_tier,
    is_cascade_marker,
    is_routing_string,
    parse_cascade_marker,
    parse_route,
)
from workflow_composer.plan import Candidate, Voting

THREE = "mv_cascade_1.5B_k4_t0.7_7B_k4_t0.7_72B_k1_t0.0"


def test_a_models_name_is_one_greedy_call():
    plan = parse_route("Qwen/Qwen2.5-Math-7B-Instruct")
    (tier,) = plan.tiers
    assert (tier.candidates[0].name, tier.samples, tier.members[0].temperature) == ("Qwen/Qwen2.5-Math-7B-Instruct", 1, 0.0)
    assert tier.voting is None


def test_a_vote_is_one_tier_of_several_samples():
    (tier,) = parse_route("mv_7B_k8_t0.7").tiers
    assert (tier.candidates[0].name, tier.samples, tier.members[0].temperature) == ("Qwen/Qwen2.5-Math-7B-Instruct", 8, 0.7)
    assert tier.voting == Voting()


def test_a_cascade_is_its_tiers_in_order():
    assert parse_cascade_marker(THREE) == [
        ("Qwen/Qwen2.5-Math-1.5B-Instruct", 4, 0.7),
        ("Qwen/Qwen2.5-Math-7B-Instruct", 4, 0.7),
        ("Qwen/Qwen2.5-Math-72B-Instruct", 1, 0.0),
    ]
    assert parse_cascade_marker("mv_cascade_7B_k5_t0.7_72B_k1_t0.0")[0][1:] == (5, 0.7)


def test_an_entropy_cascade_may_draw_again_at_every_tier_but_the_last():
    plan = parse_route("mv_entropy_cascade_1.5B_k4_t0.7_7B_k3_t0.7_72B_k1_t0.0", draws=2)
    assert [tier.voting.explore for tier in plan.tiers] == [8, 6, 0]
    assert [tier.voting.explore for tier in parse_route(THREE).tiers] == [0, 0, 0]


@pytest.mark.parametrize("text", ["mv_cascade_", "mv_cascade_x", "mv_entropy_cascade_7B_k1", THREE])
def test_a_cascade_is_known_by_its_beginning(text):
    assert is_cascade_marker(text)
    assert is_routing_string(text)


@pytest.mark.parametrize("text", ["mv_7B_k8_t0.7", "mv_cascade", "7B", "", "xmv_cascade_7B_k1"])
def test_what_begins_otherwise_is_no_cascade(text):
    assert not is_cascade_marker(text)
    with pytest.raises(MarkerError, match="cascade"):
        parse_cascade_marker(text)


def test_one_sample_is_greedy_whatever_the_string_says_and_the_plan_records_it():
    plan = parse_route("mv_cascade_1.5B_k1_t0.9_7B_k4_t0.7")
    assert (plan.tiers[0].samples, plan.tiers[0].members[0].temperature) == (1, 0.0)
    assert plan.notes == ("1.5B: one sample is always greedy; temperature 0 instead of 0.9",)


def test_several_samples_are_sampled_at_0_7_where_none_is_given_or_it_is_zero():
    given_none, zero = parse_route("mv_7B_k4"), parse_route("mv_7B_k4_t0.0")
    assert given_none.tiers[0].members[0].temperature == zero.tiers[0].members[0].temperature == 0.7
    assert given_none.notes == ()
    assert "would be identical" in zero.notes[0]


def test_a_greedy_only_tier_gives_one_greedy_answer_and_the_plan_records_it():
    plan = parse_route("mv_cascade_7B_k4_t0.7_72B_k8_t0.7")
    assert (plan.tiers[1].samples, plan.tiers[1].members[0].temperature) == (1, 0.0)
    assert plan.notes == ("72B is greedy-only: one sample at temperature 0 instead of 8",)
    assert str(plan) == "mv_cascade_7B_k4_t0.7_72B_k1_t0.0"


def test_what_a_tier_means_comes_from_the_lookup():
    known = KnownTier((Candidate("qwen-small", local=True),), temperature=0.5, target=0.9, deadline=3.0, budget=0.01)
    plan = parse_route("mv_cascade_small_k3_large_k2", lambda name: known, voting=Voting("posterior", 0.6))
    tier = plan.tiers[0]
    assert tier.candidates == known.candidates
    assert (tier.members[0].temperature, tier.deadline, tier.budget) == (0.5, 3.0, 0.01)
    assert (tier.voting.measure, tier.voting.target) == ("posterior", 0.9)
    assert [tier.name for tier in plan.tiers] == ["small", "large"]


@pytest.mark.parametrize(
    ("text", "part", "reason"),
    [
        ("mv_7B", "7B", "number of samples is missing"),
        ("mv_", "", "number of samples is missing"),
        ("mv_7B_k0", "k0", "k must be 1 to"),
        ("mv_7B_k1025", "k1025", "k must be 1 to"),
        (f"mv_7B_k{'9' * 9000}", f"k{'9' * 9000}", "k must be 1 to"),
        ("mv_7B_k4_t9", "t9", "0 to 2"),
        ("mv_7B_k4_t0.7x", "t0.7x", "such as t0.7"),
        ("mv_7B_k4_t-1", "t-1", "such as t0.7"),
        ("mv_cascade_7B_k4x_t0.7_72B_k1", "k4x", "neither a tier's name"),
        ("mv_cascade_7B_k-4_t0.7_72B_k1", "k-4", "neither a tier's name"),
        ("mv_cascade_7B_t0.7_72B_k1", "t0.7", "neither a tier's name"),
        ("mv_cascade_7B_k4_t0.7_72B", "72B", "number of samples is missing"),
        ("mv_cascade__k4", "k4", "no tier's name"),
        ("mv_cascade_k4_t0.7", "k4", "no tier's name"),
        ("mv_7B_k4_72B_k1", "72B_k1", "a vote has only one tier"),
        ("7B with a space", " ", "character not allowed"),
        ("mv_7B\x00_k4", "\x00", "character not allowed"),
        ("", "", "empty"),
    ],
)
def test_a_malformed_string_is_an_error_that_points_at_the_part(text, part, reason):
    with pytest.raises(MarkerError, match=reason) as caught:
        parse_route(text)
    assert caught.value.part == part == text[caught.value.start : caught.value.end]
    assert isinstance(caught.value, InputError)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("value", [None, b"mv_7B_k4", 7, ["mv_7B_k4"]])
def test_what_is_no_text_is_an_error_of_the_same_kind(value):
    with pytest.raises(MarkerError):
        parse_route(value)
    assert not is_cascade_marker(value)


@pytest.mark.parametrize("name", ["small", "1.5B", "Qwen/Qwen2.5-7B", "flan_t5", "a__b", "x-k4"])
def test_ordinary_names_can_name_a_tier(name):
    assert can_name_tier(name)


@pytest.mark.parametrize(
    "name", ["mv_small", "k4", "k8s", "a_k4", "a_k4_b", "a_t0.7", "_", "", "a b", "mv_cascade_x", "cascade_x"]
)
def test_names_that_mean_something_else_cannot(name):
    assert not can_name_tier(name)


words = st.text("abcxyz0123456789.-/BQ", min_size=1, max_size=8)
names = st.lists(words, min_size=1, max_size=3).map("_".join).filter(can_name_tier).filter(lambda n: n not in DEFAULT_TIERS)


@st.composite
def steps(draw):
    samples = draw(st.integers(1, MOST_SAMPLES))
    temperature = 0.0 if samples == 1 else draw(st.integers(1, 2000)) / 1000
    return f"{draw(names)}_k{samples}_t{temperature}"


@given(st.lists(steps(), min_size=2, max_size=5), st.booleans())
def test_a_cascade_prints_as_the_string_that_made_it(parts, entropy):
    samples = [part.rsplit("_k", 1)[1].split("_")[0] for part in parts]
    entropy = entropy and any(k != "1" for k in samples[:-1])  # with single samples there is nothing to draw again
    text = f"mv_{'entropy_' if entropy else ''}cascade_{'_'.join(parts)}"
    plan = parse_route(text)
    assert str(plan) == text
    assert parse_route(str(plan)) == plan


@given(steps().filter(lambda step: "_k1_" not in step) | names)
def test_votes_and_names_print_as_the_string_that_made_them(step):
    text = f"mv_{step}" if "_t" in step and "_k" in step else step
    assert str(parse_route(text)) == text


@given(st.text() | st.text("mv_cascadek0123t.7B ").map(lambda text: f"mv_cascade_{text}"))
@example("mv_cascade_" + "_" * 50)
@example("\ud800")
def test_no_text_makes_the_parser_raise_anything_but_a_marker_error(text):
    try:
        plan = parse_route(text)
    except MarkerError as error:
        fault: MarkerError | None = error
    else:
        fault = None
        assert parse_route(str(plan)) == parse_route(str(parse_route(str(plan))))
    assert fault is None or fault.part == text[fault.start : fault.end]


@pytest.mark.parametrize("unit", ["_", "a_", "k4_", "a_k4_", "t0.7_", "k" * 10, "9", "a_k9_t0.7_", "."])
def test_time_grows_no_faster_than_the_text(unit):
    def seconds(length):
        text = "mv_cascade_" + unit * (length // len(unit))
        best = float("inf")
        for _ in range(5):
            started = time.thread_time()  # of this thread alone: others may be at work
            with contextlib.suppress(MarkerError):
                parse_route(text)
            best = min(best, time.thread_time() - started)
        return best

    # Sixteen times the text: linear time is sixteenfold, quadratic 256-fold; the bound lies far from both.
    assert seconds(128_000) < 80 * max(seconds(8_000), 1e-4)
