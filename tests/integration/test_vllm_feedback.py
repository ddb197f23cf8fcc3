"""The execution-feedback router with a real vLLM server's log-probabilities, in front of the embedded fleet's best model."""

import pytest

from tests.integration.certified_run import ALPHA, CertifiedRun, error_of_accepted
from tests.integration.vllm_server import VARIABLE, VLLMServer, vllm_python
from tests.paths import CHECKPOINTS
from workflow_composer import ModelOrchestrator
from workflow_composer.metrics.sink import NullSink

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.embedded,
    pytest.mark.slow,
    pytest.mark.skipif(vllm_python() is None, reason=f"{VARIABLE} names no Python with vLLM"),
]

ROUTE = "execution_feedback"
ROWS = 200
LENGTH = 400  # tokens of an answer that nobody leaves: far more than a server generates while its client makes up its mind
HARD = "Clara has 6 trays with 7 apples in each. Then she finds 23 more. How many apples are there in the end?"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = VLLMServer(CHECKPOINTS / "medium", 8004, tmp_path_factory.mktemp("vllm") / "server.log", name="medium")
    made.start()
    yield made
    made.kill()


@pytest.fixture(scope="module")
def run(server, tmp_path_factory):
    models = {
        "medium": {"backend": "vllm", "base_url": f"{server.url}/v1", "model": "medium"},
        "large": {"backend": "embedded", "path": "large"},
    }
    tiers = {"medium": {"model": "medium", "cost": 0.10}, "large": {"model": "large", "cost": 0.40}}
    made = CertifiedRun(tmp_path_factory.mktemp("feedback"), models, tiers, ROWS)
    certificate = made.certify()
    profile = made.profile("certified", certificate="certificate.json", audit={"rate": 0})
    return made, certificate, *made.execute(profile, ROUTE, "large")


def test_of_the_accepted_answers_no_more_than_alpha_are_wrong_and_it_costs_less(run):
    _, _, summaries, rows = run
    accepted, wrong = error_of_accepted(rows[ROUTE])
    assert accepted > ROWS / 3
    assert wrong <= ALPHA * accepted
    assert summaries[ROUTE]["cost"] < 0.75 * summaries["large"]["cost"]


def test_the_certificate_says_that_the_log_probabilities_were_the_model_s_own(run):
    _, certificate, _, _ = run
    medium = certificate["tiers"][0]["identity"]
    assert (medium["backend"], medium["model"], medium["logprobs"]) == ("vllm", "medium", "raw")


def test_the_certificate_is_refused_for_a_server_with_processed_log_probabilities(run):
    made, *_ = run
    before = made.models["medium"]
    made.models["medium"] = before | {"logprobs_mode": "processed"}
    try:
        error = made.command(made.profile("processed", certificate="certificate.json"), "route", "hello", code=2)["error"]
    finally:
        made.models["medium"] = before
    assert error["type"] == "CertificateMismatch"
    assert "tier medium, logprobs: 'raw' in the certificate, 'processed' here" in error["message"]


async def test_a_doubtful_answer_is_abandoned_at_the_server_before_its_end(run, server):
    """A rule that no answer can keep: the stream is left at the first token that breaks it."""
    made, *_ = run
    profile = made.profile("strict", min_logprob=-1e-9, abandon="always")
    before = server.metric("vllm:generation_tokens_total")
    async with ModelOrchestrator(profile, metrics=NullSink(), environ={}) as orchestrator:
        stream = orchestrator.astream(HARD, temperature=0.0, max_tokens=LENGTH, extra={"ignore_eos": True})
        pieces = [chunk.text async for chunk in stream]
    assert stream.response is not None
    abandoned, final = stream.response.tiers
    assert abandoned.verdict.reason.startswith("abandoned after ")
    assert final.name == "large"
    assert "".join(pieces) == stream.response.text == final.samples[0].text
    assert server.metric("vllm:generation_tokens_total") - before < LENGTH
