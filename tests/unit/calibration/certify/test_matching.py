"""Whether a certificate holds for what would run, and for what is asked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.calibration.certificates import certificate, group
from workflow_composer.calibration.certify.certificate import check, digest_of, floor_of, system_of, uncovered
from workflow_composer.errors import CertificateMismatch
from workflow_composer.types import LLMRequest

MADE = certificate()
IDENTITIES = [tier.identity for tier in MADE.tiers]
TOOL = {"type": "function", "function": {"name": "add"}}


def asked(**fields):
    return LLMRequest.of("What is 2 + 2?", **fields)


class TestModels:
    def test_a_certificate_holds_for_the_models_that_it_names(self):
        check(MADE, IDENTITIES, {})

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("name", "tiny"),
            ("model", "other/model"),
            ("backend", "vllm"),
            ("logprobs", "processed"),
            ("top_logprobs", 3),
            ("temperature", 0.7),
            ("model", None),
            ("temperature", None),
        ],
    )
    @pytest.mark.parametrize("at", [0, 1])
    def test_any_field_that_differs_is_refused_by_name(self, field, value, at):
        """Also where one of the two does not state it."""
        here = list(IDENTITIES)
        here[at] = replace(here[at], **{field: value})
        with pytest.raises(CertificateMismatch, match=f"^mine.yaml:3: .*tier {MADE.tiers[at].name}, {field}: .* here"):
            check(MADE, here, {}, where="mine.yaml:3")

    def test_every_difference_is_named_at_once(self):
        here = [replace(IDENTITIES[0], model="x", temperature=0.5), replace(IDENTITIES[1], backend="vllm")]
        with pytest.raises(CertificateMismatch) as caught:
            check(MADE, here, {})
        for part in ("small, model: 'small' in the certificate, 'x' here", "small, temperature: 0", "large, backend"):
            assert part in str(caught.value)

    def test_another_number_of_tiers_is_refused(self):
        with pytest.raises(CertificateMismatch, match="tiers: small, large in the certificate, small here"):
            check(MADE, IDENTITIES[:1], {"math": 0})

    def test_alternatives_do_not_matter_where_no_score_is_made_of_them(self):
        judged = certificate(score=None)
        check(judged, [replace(tier.identity, top_logprobs=None) for tier in judged.tiers], {})


class TestFloors:
    def test_a_floor_must_be_the_certificates(self):
        made = certificate(groups={"*": group(0.4, 0.4), "math": group(0.4, first=1)})
        check(made, IDENTITIES, {"math": 1})
        with pytest.raises(CertificateMismatch, match="task math, floor: large in the certificate, small here"):
            check(made, IDENTITIES, {})

    def test_a_task_with_a_floor_needs_a_group_of_its_own(self):
        """Else its requests would start below their floor, by the certificate's group for any task."""
        with pytest.raises(CertificateMismatch, match="task math, floor: small in the certificate, large here"):
            check(MADE, IDENTITIES, {"math": 1})

    def test_the_floor_of_any_task_holds_for_those_that_are_not_listed(self):
        assert (floor_of("code", {"*": 1, "math": 0}), floor_of("math", {"*": 1, "math": 0}), floor_of("code", {})) == (
            1,
            0,
            0,
        )
        check(certificate(groups={"*": group(0.4, first=1)}), IDENTITIES, {"*": 1})
        with pytest.raises(CertificateMismatch, match=r"task \*, floor"):
            check(MADE, IDENTITIES, {"*": 1})


class TestRequests:
    def test_a_request_like_the_calibrations_is_covered(self):
        assert uncovered(MADE, asked(), 0.0) == ""
        assert uncovered(MADE, asked(temperature=0.0, task_type="code", logprobs=True, top_logprobs=5), 0.0) == ""

    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            ({"temperature": 0.7}, "temperature: 0 in the certificate, 0.7 in the request"),
            ({"max_tokens": 10}, "max_tokens: none in the certificate, 10 in the request"),
            ({"top_p": 0.5}, "top_p: none in the certificate, 0.5 in the request"),
            ({"stop": "\n"}, "stop: none in the certificate"),
            ({"tools": (TOOL,)}, "tools: none in the certificate"),
            ({"response_format": {"type": "json_object"}}, "response_format: none in the certificate"),
            ({"extra": {"min_p": 0.1}}, "extra fields: none in the certificate, ('min_p',) in the request"),
            ({"system": "Be brief."}, "system message: none in the certificate"),
            ({"top_logprobs": 20}, "top_logprobs: 5 in the certificate, 20 in the request"),
        ],
    )
    def test_what_is_asked_otherwise_is_not_covered_and_the_field_is_named(self, fields, said):
        assert uncovered(MADE, asked(**fields), 0.0).startswith(said)

    def test_what_the_calibration_had_must_be_asked_for(self):
        made = certificate(system=digest_of("Be brief."), max_tokens=99, top_p=0.9, stop=("\n",))
        like = {"system": "Be brief.", "max_tokens": 99, "top_p": 0.9, "stop": "\n"}
        assert uncovered(made, asked(**like), 0.0) == ""
        assert uncovered(made, asked(**like | {"stop": ("\n",)}), 0.0) == ""
        assert uncovered(made, asked(**like | {"system": "Be long."}), 0.0).startswith("system message: differs")
        for field in like:
            without = {name: value for name, value in like.items() if name != field}
            assert uncovered(made, asked(**without), 0.0).startswith(field)

    def test_a_task_that_was_not_calibrated_is_not_covered(self):
        made = certificate(groups={"math": group(0.4, 0.4)})
        assert uncovered(made, asked(task_type="math"), 0.0) == ""
        assert uncovered(made, asked(task_type="code"), 0.0) == "task 'code' was not calibrated"

    def test_long_values_are_cut(self):
        assert len(uncovered(MADE, asked(tools=(TOOL,) * 50), 0.0)) < 150

    def test_a_developers_message_is_a_system_message(self):
        """Providers treat them alike."""
        request = LLMRequest(messages=({"role": "developer", "content": "Be brief."}, {"role": "user", "content": "x"}))
        assert system_of(request) == "Be brief."
        assert system_of(asked()) is None
