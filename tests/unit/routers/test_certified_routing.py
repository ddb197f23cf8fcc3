"""The execution-feedback router with a certificate: what it refuses, what it covers, and what an alarm does."""

from __future__ import annotations

import json

import pytest

from tests.unit.calibration.certificates import certificate, group
from tests.unit.routers.scripted import CONFIDENT, DOUBTFUL, HOPELESS, MODELS, NAMES, identified, names, suspend
from workflow_composer.errors import CertificateMismatch, ConfigError, ServerUnreachable
from workflow_composer.types import Sample


class TestLoading:
    def test_a_certificate_that_matches_decides(self, certified):
        with certified(s=[CONFIDENT]) as o:
            plan, response = o.plan("x"), o.generate("x")
        assert plan.reason == "task *: from tier small up, by certificate"
        assert plan.gapless
        assert (names(response), response.accepted, response.confidence) == (["small"], True, pytest.approx(0.475, abs=1e-3))
        assert response.tiers[0].verdict.reason == "score 0.475 >= 0.4"

    @pytest.mark.parametrize(
        ("identity", "field"),
        [
            ({"model": "another"}, "model"),
            ({"backend": "vllm"}, "backend"),
            ({"logprobs": "processed"}, "logprobs"),
            ({"name": "tiny"}, "name"),
        ],
    )
    def test_one_that_differs_in_any_field_is_refused_when_the_profile_loads(self, certified, tmp_path, identity, field):
        data = identified(certificate(NAMES)).to_dict()
        data["tiers"][1]["identity"] |= identity
        (tmp_path / "other.json").write_text(json.dumps(data))
        with pytest.raises(CertificateMismatch, match=f"routers.*tier medium, {field}: "):
            certified(settings={"certificate": str(tmp_path / "other.json")})

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"temperature": 0.7}, "tier small, temperature: 0 in the certificate, 0.7 here"),
            ({"top_logprobs": 3}, "tier small, top_logprobs: 5 in the certificate, 3 here"),
            ({"tiers": ["small", "large"]}, "tiers: small, medium, large in the certificate, small, large here"),
            ({"tiers": ["medium", "small", "large"]}, "tier small, name: 'small' in the certificate, 'medium' here"),
            ({"task_floors": {"math": "medium"}}, "task math, floor: small in the certificate, medium here"),
        ],
    )
    def test_settings_that_differ_from_it_are_refused(self, certified, settings, said):
        with pytest.raises(CertificateMismatch, match=said):
            certified(settings=settings)

    def test_another_log_probability_mode_is_refused(self, certified):
        models = {name: {"backend": "scripted"} for name in "sml"} | {"m": {"backend": "scripted", "logprobs_mode": "raw"}}
        with pytest.raises(CertificateMismatch, match="tier medium, logprobs: none in the certificate, 'raw' here"):
            certified(fields={"models": models})

    @pytest.mark.parametrize("unknown", ["accept", "vote"])
    def test_answers_without_a_score_are_in_no_certificate(self, certified, unknown):
        with pytest.raises(ConfigError, match="unknown must be `escalate`"):
            certified(settings={"unknown": unknown})

    @pytest.mark.parametrize("text", [None, "{", '{"format": "other"}'])
    def test_a_file_that_is_none_is_a_fault_of_the_profile(self, certified, tmp_path, text):
        path = tmp_path / "none.json"
        if text is not None:
            path.write_text(text)
        with pytest.raises(ConfigError, match=r"routers.*none\.json"):
            certified(settings={"certificate": str(path)})

    def test_the_tiers_are_called_as_the_profile_calls_them(self, certified):
        with certified() as o:
            assert [tier.name for tier in o.plan("x").tiers] == list(NAMES)

    def test_a_certificate_of_surprisals_only_asks_for_no_alternatives(self, certified):
        with certified(certificate(NAMES, identity={"top_logprobs": None}), s=[CONFIDENT]) as o:
            assert o.generate("x").accepted
            request = o.calls("s")[0].request
        assert (request.logprobs, request.top_logprobs) == (True, 0)


class TestClimbing:
    def test_rejected_answers_go_up_one_tier_at_a_time(self, certified):
        with certified(s=[DOUBTFUL], m=[DOUBTFUL], l=[CONFIDENT]) as o:
            response = o.generate("x")
        assert (names(response), response.accepted) == (list(NAMES), True)

    def test_a_last_answer_that_is_rejected_is_returned_and_not_accepted(self, certified):
        with certified(s=[DOUBTFUL], m=[DOUBTFUL], l=[DOUBTFUL]) as o:
            response = o.generate("x")
        assert (response.text, response.accepted) == (DOUBTFUL.text, False)

    def test_by_predicted_need_a_hopeless_answer_skips_the_tiers_between(self, certified):
        made = certificate(NAMES, {"*": group(0.4, 0.4, 0.4, straight_up=0.2)})
        with certified(made, s=[HOPELESS], l=[CONFIDENT]) as o:
            response = o.generate("x")
            assert o.calls("m") == []
        assert (names(response), response.accepted) == (["small", "large"], True)

    def test_a_tier_that_accepts_nothing_is_left_out(self, certified):
        with certified(certificate(NAMES, {"*": group(None, 0.4, 0.4)}), m=[CONFIDENT]) as o:
            plan = o.plan("x")
            assert names(o.generate("x")) == ["medium"]
        assert plan.left_out == ("small: the certificate accepts none of its answers",)

    def test_a_tier_that_accepts_nothing_but_tells_who_is_next_is_asked(self, certified):
        """The tiers behind were certified on what it lets through to them."""
        made = certificate(NAMES, {"*": group(None, 0.4, 0.4, straight_up=0.2)})
        with certified(made, s=[HOPELESS, CONFIDENT], m=[CONFIDENT], l=[CONFIDENT]) as o:
            assert names(o.generate("x")) == ["small", "large"]
            assert names(o.generate("x")) == ["small", "medium"]

    def test_a_task_starts_at_its_groups_floor(self, certified):
        made = certificate(NAMES, {"*": group(0.4, 0.4, 0.4), "math": group(0.4, 0.4, first=1)})
        with certified(made, {"task_floors": {"math": "medium"}}, s=[CONFIDENT], m=[CONFIDENT]) as o:
            assert names(o.generate("x", task_type="math")) == ["medium"]
            assert names(o.generate("x", task_type="code")) == ["small"]

    def test_an_unknown_score_is_never_accepted(self, certified):
        silent = Sample("#### 4", logprobs=())
        with certified(s=[silent], m=[silent], l=[silent]) as o:
            response = o.generate("x")
        assert (names(response), response.accepted, response.confidence) == (list(NAMES), False, None)

    def test_no_other_model_stands_in_for_a_certified_one(self, certified):
        with certified(fields={"fallback": ["s"]}) as o:
            assert [[one.name for one in tier.candidates] for tier in o.plan("x").tiers] == [["s"], ["m"], ["l"]]


class TestGaps:
    def test_behind_a_tier_that_failed_nothing_is_accepted(self, certified):
        """Later tiers were certified on requests that earlier ones had rejected."""
        with certified(s=[ServerUnreachable("down")], m=[CONFIDENT], l=[CONFIDENT]) as o:
            response = o.generate("x")
        assert (names(response), response.accepted) == (list(NAMES), False)
        assert "but an earlier tier has not answered" in response.tiers[-1].verdict.reason

    def test_behind_a_tier_that_was_too_expensive_nothing_is_accepted(self, certified):
        models = {name: {"backend": "scripted", "output_price": 1.0} for name in "sl"}
        models["m"] = {"backend": "scripted", "output_price": 1e6}
        tiers = {tier: {"model": model} for tier, model in MODELS.items()}
        with certified(fields={"models": models, "tiers": tiers}, s=[DOUBTFUL], l=[CONFIDENT]) as o:
            response = o.generate("x", budget=1.0)
            assert o.calls("m") == []
        assert (names(response), response.text, response.accepted) == (["small", "large"], CONFIDENT.text, False)
        assert "medium would probably cost" in response.tiers[-1].verdict.reason

    def test_a_tier_that_cannot_be_asked_sends_all_to_the_strongest(self, certified):
        models = {name: {"backend": "scripted"} for name in "sml"}
        models["m"] = {"backend": "scripted", "capabilities": ["embeddings"]}
        with certified(fields={"models": models}) as o:
            plan, response = o.plan("x"), o.generate("x")
        assert "tier medium has no usable model" in plan.reason
        assert (names(response), response.accepted) == (["large"], False)


class TestCoverage:
    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            ({"temperature": 0.7}, "temperature: 0 in the certificate, 0.7 in the request"),
            ({"system": "Be brief."}, "system message: none in the certificate"),
            ({"max_tokens": 5}, "max_tokens: none in the certificate, 5 in the request"),
            ({"tools": ({"type": "function"},)}, "tools: none in the certificate"),
            ({"response_format": {"type": "json_object"}}, "response_format: none in the certificate"),
            ({"top_p": 0.5}, "top_p: none in the certificate, 0.5 in the request"),
            ({"top_logprobs": 20}, "top_logprobs: 5 in the certificate, 20 in the request"),
        ],
    )
    def test_a_request_that_is_not_covered_goes_to_the_strongest_and_is_not_accepted(self, certified, fields, said):
        with certified(s=[CONFIDENT], l=[CONFIDENT]) as o:
            plan, response = o.plan("x", **fields), o.generate("x", **fields)
            assert (o.calls("s"), o.calls("m")) == ([], [])
        assert (names(response), response.accepted, response.confidence) == (["large"], False, None)
        assert said in response.decision.reason
        assert said in response.tiers[0].verdict.reason
        assert plan.notes[0].startswith(said)

    def test_a_task_that_was_not_calibrated_is_not_covered(self, certified):
        with certified(certificate(NAMES, {"math": group(0.4, 0.4, 0.4)}), s=[CONFIDENT]) as o:
            assert not o.generate("x", task_type="code").accepted
            assert o.generate("x", task_type="math").accepted

    def test_what_is_not_covered_is_asked_as_it_was_asked_for(self, certified):
        """At the request's temperature where it names one, else at the certificate's."""
        with certified() as o:
            o.generate("x", temperature=0.7)
            o.generate("x", max_tokens=5)
            assert [call.temperature for call in o.calls("l")] == [0.7, 0.0]

    def test_streams_are_treated_alike(self, certified):
        with certified(l=[CONFIDENT]) as o:
            stream = o.stream("x", temperature=0.7)
            assert "".join(chunk.text for chunk in stream) == CONFIDENT.text
            assert not stream.response.accepted


class TestAlarm:
    def test_an_alarm_sends_every_request_to_the_strongest_tier(self, certified, tmp_path):
        suspend(tmp_path)
        with certified(s=[CONFIDENT], l=[CONFIDENT]) as o:
            response = o.generate("x")
            assert o.router.alarm == "9 of 20 audited answers were wrong"
            assert o.calls("s") == []
        assert (names(response), response.accepted) == (["large"], False)
        assert "alarm: 9 of 20" in response.decision.reason

    def test_the_alarm_has_its_key_in_the_metrics(self, certified, tmp_path):
        with certified(s=[CONFIDENT]) as o:
            o.generate("x")
            assert o.metrics[-1].alarm is None
        suspend(tmp_path)
        with certified() as o:
            o.generate("x")
            (line,) = o.metrics
        assert line.alarm == "9 of 20 audited answers were wrong"
        assert json.loads(line.to_json())["alarm"] == line.alarm

    def test_an_alarm_holds_where_nothing_is_drawn_any_more(self, certified, tmp_path):
        """Turning audits off is not a word on their findings."""
        suspend(tmp_path)
        with certified(audit={"rate": 0.0}) as o:
            assert o.router.alarm

    def test_another_certificate_is_not_suspended(self, certified, tmp_path):
        suspend(tmp_path, certificate(NAMES, alpha=0.2))
        with certified() as o:
            assert o.router.alarm == ""

    def test_wrong_answers_raise_it_in_mid_run_it_is_told_once_and_survives_a_restart(self, certified, audits):
        audit = {"rate": 1.0, "by": "strongest"}
        made = certificate(NAMES, {"*": group(0.4, 0.4, 0.4, last_wrong=0.01)})
        with certified(made, audit=audit, s=[CONFIDENT], l=["#### 5"]) as o:
            for _ in range(30):
                last = o.generate("x")
            o._thread.run(o.router.aclose())
            last = o.generate("x")
            told = o.log.getvalue()
        assert (names(last), last.accepted) == (["large"], False)
        assert told.count("is suspended, every request escalates") == 1
        assert sum(event["event"] == "alarm" for event in audits()) == 1
        with certified(made, audit=audit, s=[CONFIDENT]) as o:
            assert not o.generate("x").accepted
            assert "suspended" not in o.log.getvalue()
