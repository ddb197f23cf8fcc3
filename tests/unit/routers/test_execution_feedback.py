"""The execution-feedback router without a certificate: rules, floors, what is unknown, and what is counted."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.calibration.tokens import spread, sure
from tests.unit.routers.scripted import names, orchestrating, profile
from workflow_composer.backends.fake import Interrupted
from workflow_composer.calibration.scores.signals import FeedbackRules
from workflow_composer.errors import (
    AllCandidatesFailed,
    CapabilityMissing,
    ConfigError,
    ProfileError,
    RoutingError,
    ServerUnreachable,
    StreamInterrupted,
    Unsupported,
)
from workflow_composer.routers.execution_feedback import ExecutionFeedbackRouter
from workflow_composer.types import Completion, Sample, Usage

CONFIDENT = sure(*[-0.01] * 10, text="sure ")
DOUBTFUL = sure(-0.1, -8.0, *[-0.1] * 8, text="well ")


def silent(text="silent"):
    """A server that gives no log-probabilities though it was asked."""
    return lambda call: Completion(samples=(Sample(text, "stop"),) * call.samples, usage=Usage(1, call.samples), model="s")


SILENT = silent()
FINAL = "the last word"
DOWN = ServerUnreachable("down")

LAX = {"safety_threshold": 0.0, "entropy": 50.0, "binary_entropy": 1.0, "min_logprob": -1000.0, "low_confidence_ratio": 1.0}


def refusing(text):
    """A model that raises where log-probabilities are wanted, as a recording without them does."""
    return lambda call: Unsupported("no log-probabilities") if call.request.logprobs else text


class TestPlans:
    def test_the_tiers_are_asked_from_the_cheapest_up(self):
        with orchestrating(profile()) as o:
            plan = o.plan("x")
        assert [tier.name for tier in plan.tiers] == ["small", "medium", "large"]
        assert [[one.name for one in tier.candidates] for tier in plan.tiers] == [["s"], ["m"], ["l"]]
        assert (plan.router, plan.reason) == ("execution_feedback", "task *: from tier small up, by rules")
        assert [tier.logprobs for tier in plan.tiers] == [5, 5, 5]

    def test_other_requests_are_left_to_the_next_router(self):
        """Embeddings, requests that name a model, and tasks that the settings leave out."""
        with orchestrating(profile({"tasks": ["math"]})) as o:
            assert o.plan("x", task_type="math").router == "execution_feedback"
            assert o.plan("x", task_type="math", model="execution_feedback").router == "execution_feedback"
            assert o.plan("x", task_type="code").router == "provider"
            assert o.plan("x", task_type="math", model="l").router == "provider"
            assert o.plan("x", task_type="math", kind="embeddings").router == "provider"

    @pytest.mark.parametrize(("floor", "first"), [("medium", "medium"), (3, "large"), (1, "small")])
    def test_a_task_starts_at_its_floor(self, floor, first):
        with orchestrating(profile({"task_floors": {"math": floor}})) as o:
            assert o.plan("x", task_type="math").tiers[0].name == first
            assert o.plan("x", task_type="code").tiers[0].name == "small"

    def test_the_floor_of_any_task_holds_for_those_that_are_not_listed(self):
        with orchestrating(profile({"task_floors": {"*": "large", "math": "medium"}})) as o:
            assert o.plan("x", task_type="math").tiers[0].name == "medium"
            assert o.plan("x", task_type="code").tiers[0].name == "large"

    def test_tiers_may_be_named_and_may_be_models(self):
        with orchestrating(profile({"tiers": ["s", "large"]})) as o:
            assert [tier.name for tier in o.plan("x").tiers] == ["s", "large"]

    @pytest.mark.parametrize(
        ("settings", "error", "said"),
        [
            ({"tiers": ["smal"]}, ConfigError, "tiers: .*did you mean 'small'"),
            ({"tiers": ["small", "small"]}, ConfigError, "'small' is listed twice"),
            ({"task_floors": {"math": 4}}, ConfigError, "task_floors: unknown tier 4"),
            ({"task_floors": {"math": 0}}, ConfigError, "or 1 to 3"),
            ({"task_floors": {"math": "huge"}}, ConfigError, "tiers: small, medium, large"),
            ({"task_floors": {"math": True}}, ProfileError, "task_floors"),
            ({"min_logprob": 1.0}, ProfileError, "min_logprob"),
            ({"abandon": "sometimes"}, ProfileError, "abandon"),
            ({"audit": {"by": "somebody"}}, ProfileError, "audit"),
            ({"treshold": 1}, ProfileError, "treshold"),
        ],
    )
    def test_wrong_settings_are_refused_when_the_profile_loads(self, settings, error, said):
        with pytest.raises(error, match=said), orchestrating(profile(settings)):
            pass

    def test_a_name_that_stands_for_no_model_is_no_tier(self):
        local = {name: {"backend": "fake"} for name in "sml"}
        with pytest.raises(ConfigError, match="'cloud' has no model"):
            orchestrating(profile({"tiers": ["cloud"]}, models=local, allow_cloud=False))

    def test_a_profile_without_tiers_is_refused(self):
        with pytest.raises(ConfigError, match="needs tiers"), orchestrating(profile(tiers={})):
            pass

    def test_the_costs_of_the_tiers_are_known(self):
        with orchestrating(profile()) as o:
            assert o.router.tier_costs == {"small": 1.0, "medium": 4.0, "large": 16.0}

    def test_the_fallback_stands_behind_the_last_tier_only(self):
        with orchestrating(profile(fallback=["m"])) as o:
            assert [[one.name for one in tier.candidates] for tier in o.plan("x").tiers] == [["s"], ["m"], ["l", "m"]]

    @pytest.mark.parametrize(("written", "asked"), [(0, 0), (7, 7), (None, 5)])
    def test_as_many_alternatives_are_asked_for_as_the_settings_say(self, written, asked):
        """None at all, too: then surprisals are judged."""
        with orchestrating(profile({"top_logprobs": written}), s=[CONFIDENT]) as o:
            o.generate("x")
            request = o.calls("s")[0].request
        assert (request.logprobs, request.top_logprobs) == (True, asked)

    def test_where_nothing_can_be_asked_the_error_says_why(self):
        lacking = {name: {"backend": "scripted", "capabilities": ["embeddings"]} for name in "sml"}
        with orchestrating(profile(models=lacking)) as o, pytest.raises(RoutingError, match="s: it does not support chat"):
            o.plan("x")
        with (
            orchestrating(profile(models=lacking, allow_cloud=False)) as o,
            pytest.raises(CapabilityMissing, match="does not support chat"),
        ):
            o.plan("x")


class TestRules:
    def test_a_confident_answer_of_the_first_tier_is_the_answer(self):
        with orchestrating(profile(), s=[CONFIDENT]) as o:
            response = o.generate("x")
        assert (response.text, response.accepted, names(response)) == (CONFIDENT.text, True, ["small"])
        assert response.confidence == pytest.approx(0.99, abs=1e-3)

    @pytest.mark.parametrize(
        ("rule", "sample", "said"),
        [
            ({"safety_threshold": 0.3}, sure(-1.3, -1.3), "confidence per token 0.273 < 0.3"),
            ({"entropy": 2.5}, spread([0.5, 0.1], [0.5, 0.1]), "mean entropy 5.93 nats > 2.5"),
            ({"binary_entropy": 0.85}, sure(-0.6, -0.6), "mean binary entropy 0.993 bits > 0.85"),
            ({"min_logprob": -5.0}, sure(*[-0.01] * 30, -5.5), "lowest log-probability -5.5 < -5"),
            ({"low_confidence_ratio": 0.15}, sure(*[-0.1] * 4, -0.8), "share of low-confidence tokens 0.2 > 0.15"),
        ],
    )
    def test_each_rule_acts_alone(self, rule, sample, said):
        """An answer that breaks only this one goes up, and the reason names value and limit; without it, it is accepted."""
        with orchestrating(profile(LAX | rule), s=[sample], m=[CONFIDENT]) as o:
            response = o.generate("x")
            assert (names(response), response.tiers[0].verdict.reason) == (["small", "medium"], said)
        with orchestrating(profile(LAX), s=[sample]) as o:
            assert names(o.generate("x")) == ["small"]

    def test_the_defaults_are_those_of_the_rules(self):
        with orchestrating(profile()) as o:
            assert o.router._settings.rules == FeedbackRules(0.30, 2.5, 0.85, -5.0, 0.15)

    def test_escalation_goes_one_tier_at_a_time_and_ends_at_the_last_however_doubtful(self):
        with orchestrating(profile(), s=[DOUBTFUL], m=[DOUBTFUL], l=[DOUBTFUL]) as o:
            response = o.generate("x")
        assert (names(response), response.accepted) == (["small", "medium", "large"], True)
        assert "accepted by the last tier" in response.tiers[-1].verdict.reason

    @settings(deadline=None, max_examples=25)
    @given(
        st.sampled_from(["small", "medium", "large", 2, None]),
        st.lists(st.sampled_from([CONFIDENT, DOUBTFUL, SILENT, DOWN]), min_size=3, max_size=3),
        st.sampled_from(["escalate", "accept", "vote"]),
        st.booleans(),
    )
    def test_a_task_never_runs_below_its_floor(self, floor, answers, unknown, live):
        """Whatever its answers, whatever fails, live or not."""
        floors = {} if floor is None else {"math": floor}
        config = profile({"task_floors": floors, "unknown": unknown, "abandon": "always"})
        allowed = {None: "sml", "small": "sml", "medium": "ml", "large": "l", 2: "ml"}[floor]
        with orchestrating(config, **{name: [answer] for name, answer in zip("sml", answers, strict=True)}) as o:
            with contextlib.suppress(AllCandidatesFailed, StreamInterrupted):
                list(o.stream("x", task_type="math")) if live else o.generate("x", task_type="math")
            assert all(not o.calls(name) for name in "sml" if name not in allowed)
            assert o.calls(allowed[0])


class TestUnknown:
    @pytest.mark.parametrize("script", [[SILENT], [refusing("silent")]], ids=["returns none", "refuses"])
    def test_escalate_asks_the_next_tier(self, script):
        """Whether the server returns none or refuses to; the confidence is unknown, and nothing is taken for it."""
        with orchestrating(profile(), s=script, m=[CONFIDENT]) as o:
            response = o.generate("x")
        assert names(response) == ["small", "medium"]
        assert response.tiers[0].verdict.confidence is None
        assert "unknown" in response.tiers[0].verdict.reason

    @pytest.mark.parametrize("script", [[SILENT], [refusing("silent")]], ids=["returns none", "refuses"])
    def test_accept_takes_the_answer_and_its_confidence_stays_unknown(self, script):
        with orchestrating(profile({"unknown": "accept"}), s=script) as o:
            response = o.generate("x")
        assert (names(response), response.accepted, response.confidence) == (["small"], True, None)

    @pytest.mark.parametrize("first", [[SILENT], [refusing("x"), "x"]], ids=["returns none", "refuses"])
    @pytest.mark.parametrize(("votes", "tiers"), [("4", ["small"]), ("12345", ["small", "medium"])])
    def test_vote_samples_and_lets_the_agreement_decide(self, first, votes, tiers):
        settings = {"unknown": "vote", "votes": 5, "vote_target": 0.75, "vote_temperature": 0.9}
        with orchestrating(profile(settings), s=[*first, [f"#### {vote}" for vote in votes]], m=[CONFIDENT]) as o:
            response = o.generate("x")
            calls = o.calls("s")
        assert names(response) == tiers
        assert calls[-1].temperature == 0.9
        assert len(calls) > len(first)
        assert not calls[-1].request.logprobs
        assert response.tiers[0].verdict.confidence is not None

    def test_a_model_that_is_known_to_give_none_is_not_asked_in_vain(self):
        """By `escalate` its answer would be thrown away, so the plan leaves it out and says why."""
        blind = profile(capabilities={"s": ["chat"]})
        with orchestrating(blind, m=[CONFIDENT]) as o:
            plan, response = o.plan("x"), o.generate("x")
            assert o.calls("s") == []
        assert plan.left_out == ("small: does not return log-probabilities, so its answers would be escalated",)
        assert names(response) == ["medium"]

    def test_where_no_answer_can_ever_be_judged_the_profile_does_not_load(self):
        """Every request would go to the last tier; with votes it is judged."""
        blind = {"s": ["chat"], "m": ["chat"]}
        with pytest.raises(ConfigError, match="no model of the tiers small, medium returns log-probabilities") as caught:
            orchestrating(profile(capabilities=blind))
        assert "unknown: vote" in caught.value.hint
        for unknown in ("vote", "accept"):
            with orchestrating(profile({"unknown": unknown}, capabilities=blind)):
                pass

    def test_a_model_that_is_known_to_give_none_is_asked_by_the_other_policies(self):
        with orchestrating(profile({"unknown": "accept"}, capabilities={"s": ["chat"]}), s=["4"]) as o:
            assert (o.generate("x").confidence, o.calls("s")[0].request.logprobs) == (None, False)
        with orchestrating(profile({"unknown": "vote"}, capabilities={"s": ["chat"]}), s=["#### 4"]) as o:
            assert (o.generate("x").confidence, o.calls("s")[0].samples > 1) == (1.0, True)

    @pytest.mark.parametrize("live", [False, True])
    @pytest.mark.parametrize("known", [False, True])
    def test_the_last_tier_answers_without_log_probabilities_too(self, live, known):
        config = profile({"tiers": ["large"]}, capabilities={"l": ["chat"]} if known else {})
        with orchestrating(config, l=[refusing(FINAL)]) as o:
            response = o.generate("x")
            assert (response.text, response.accepted, response.confidence) == (FINAL, True, None)
            if live:
                assert "".join(chunk.text for chunk in o.stream("x")) == FINAL


class TestAbandoning:
    @pytest.mark.parametrize(
        ("abandon", "live", "cut"),
        [
            ("streams", True, True),
            ("streams", False, False),
            ("always", False, True),
            ("always", True, True),
            ("never", True, False),
        ],
    )
    def test_a_hopeless_answer_is_cut_short_where_the_settings_say_so(self, abandon, live, cut):
        with orchestrating(profile({"abandon": abandon}), s=[DOUBTFUL], m=[CONFIDENT]) as o:
            text = "".join(chunk.text for chunk in o.stream("x")) if live else o.generate("x").text
            assert text == CONFIDENT.text
            assert o.router.escalation_stats.abandoned == cut

    @settings(deadline=None, max_examples=25)
    @given(
        st.lists(
            st.sampled_from([CONFIDENT, DOUBTFUL, SILENT, DOWN, Interrupted("half an", ServerUnreachable("x"))]),
            min_size=3,
            max_size=3,
        ),
        st.sampled_from(["streams", "never"]),
    )
    def test_a_client_never_gets_a_byte_of_an_answer_that_is_not_returned(self, answers, abandon):
        """Only the last tier is live; if it breaks, what was sent stands and an error follows."""
        with orchestrating(profile({"abandon": abandon}), **{n: [a] for n, a in zip("sml", answers, strict=True)}) as o:
            stream, got = o.stream("x"), []
            try:
                for chunk in stream:
                    got.append(chunk.text)
            except StreamInterrupted:
                assert "".join(got) == "half an"
                assert isinstance(answers[2], Interrupted)
            except AllCandidatesFailed:
                assert got == []
            else:
                response = stream.response
                assert "".join(got) == response.text
                assert response.accepted or answers[2] is DOWN or isinstance(answers[2], Interrupted)


class TestResults:
    async def test_a_result_tells_the_first_and_the_last_answer(self):
        async with orchestrating(profile(), s=[DOUBTFUL], m=[CONFIDENT]) as o:
            found = await o.router.cascade(o.request("x"))
        assert (found.initial_tier, found.final_tier, found.escalated, found.accepted) == (1, 2, True, True)
        assert found.initial_response.samples[0] == DOUBTFUL
        assert found.final_response.samples[0] == CONFIDENT
        assert found.feedback_signal.min_logprob == -8.0
        assert found.total_cost == pytest.approx(found.initial_response.cost + found.final_response.cost)
        assert found.confidence == pytest.approx(0.99, abs=1e-3)

    async def test_without_escalation_both_are_the_same(self):
        async with orchestrating(profile({"task_floors": {"math": "large"}}), l=[CONFIDENT]) as o:
            found = await o.router.cascade(o.request("x", task_type="math"))
        assert (found.initial_tier, found.final_tier, found.escalated) == (3, 3, False)
        assert found.initial_response is found.final_response

    async def test_the_signal_is_judged_by_the_routers_own_rules(self):
        async with orchestrating(profile({"min_logprob": -1.0}), s=[sure(*[-0.01] * 9, -1.5)], m=[CONFIDENT]) as o:
            found = await o.router.cascade(o.request("x"))
        assert found.feedback_signal.escalation_reason == "lowest log-probability -1.5 < -1"

    async def test_a_first_tier_that_fails_has_no_signal(self):
        async with orchestrating(profile(), s=[DOWN], m=[CONFIDENT]) as o:
            found = await o.router.cascade(o.request("x"))
        assert (found.feedback_signal.kind, found.initial_response.samples) == ("unknown", ())

    def test_spent_is_kept_and_wasted_and_with_saved_it_is_always_the_strongest(self):
        with orchestrating(profile({"abandon": "always"}), s=[CONFIDENT, DOUBTFUL], m=[CONFIDENT], l=[FINAL]) as o:
            paid = [o.generate("x").cost, o.generate("x").cost, o.generate("x", task_type="hard").cost]
            stats = o.router.escalation_stats
        assert (stats.requests, stats.escalated, stats.accepted, stats.abandoned) == (3, 2, 3, 2)
        assert stats.by_tier == {"small": 1, "medium": 2}
        assert stats.spent == pytest.approx(sum(paid))
        assert stats.kept + stats.wasted == pytest.approx(stats.spent)
        assert stats.spent + stats.saved == pytest.approx(stats.always_strongest)

    @settings(deadline=None, max_examples=25)
    @given(
        st.lists(
            st.sampled_from([CONFIDENT, DOUBTFUL, SILENT, "4", DOWN, refusing("4")]),
            min_size=3,
            max_size=9,
        ),
        st.sampled_from(["escalate", "accept", "vote"]),
        st.sampled_from(["streams", "always"]),
    )
    def test_the_two_sums_add_up_whatever_fails(self, answers, unknown, abandon):
        scripts = {name: answers[at::3] for at, name in enumerate("sml")}
        paid = answered = 0
        with orchestrating(profile({"unknown": unknown, "abandon": abandon}), **scripts) as o:
            for _ in range(3):
                try:
                    paid += o.generate("x").cost
                    answered += 1
                except AllCandidatesFailed:
                    pass
            stats = o.router.escalation_stats
        assert stats.requests == answered == sum(stats.by_tier.values())
        assert stats.spent == pytest.approx(paid)
        assert stats.kept + stats.wasted == pytest.approx(stats.spent)
        assert stats.spent + stats.saved == pytest.approx(stats.always_strongest)


class TestSignals:
    def test_an_output_is_analysed_by_the_routers_rules(self):
        with orchestrating(profile({"min_logprob": -1.0})) as o:
            signal = o.router.analyze_output([-0.1, -1.5])
            assert (signal.kind, signal.should_escalate) == ("surprisal", True)
            known = o.router.analyze_output([-0.1, -0.1], [[0.9, 0.05], [0.9, 0.0]])
            assert (known.kind, known.token_count) == ("distribution", 2)

    def test_entropies_are_those_of_the_field(self):
        router = ExecutionFeedbackRouter
        assert router.compute_entropy([0.5, 0.5]) == pytest.approx(0.6931, abs=1e-4)
        assert router.compute_entropy([0.9, 0.05], vocabulary=4) == pytest.approx(0.429, abs=1e-3)
        assert router.compute_binary_entropy(0.5) == 1.0


async def test_one_router_serves_many_requests_at_once():
    async with orchestrating(profile(), s=[CONFIDENT]) as o:
        await asyncio.gather(*(o.agenerate("x") for _ in range(50)))
        assert o.router.escalation_stats.requests == 50
