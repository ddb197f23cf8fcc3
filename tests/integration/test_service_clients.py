"""The clients that people use, unmodified, against the service over the embedded models."""

from __future__ import annotations

import shutil

import pytest

from tests.integration.client_calls import MESSAGES, QUESTION
from tests.integration.clients import VARIABLE, call, clients_python, curl, llm_command, serving

pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(clients_python() is None, reason=f"{VARIABLE} names no Python with the clients"),
]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """The URL and a key of a service."""
    with serving(tmp_path_factory.mktemp("service"), "development") as found:
        yield found


@pytest.fixture(scope="module")
def openai(service):
    """What OpenAI's client got."""
    return call("openai", *service, "large", "large")


@pytest.fixture(scope="module")
def answer(openai):
    """The answer to the question at temperature 0, the same for every client."""
    return openai["chat"]["texts"][0]


def test_the_openai_client_chats(openai):
    chat = openai["chat"]
    assert chat["object"] == "chat.completion"
    assert "7" in chat["texts"][0]
    assert chat["finish"] == "stop"
    assert chat["tokens"] > 0


def test_every_answer_says_how_it_was_made(openai):
    told = {name.removeprefix("x-workflow-composer-") for name in openai["headers"]}
    assert told >= {"request-id", "strategy", "router", "model", "tier", "fallback-depth", "attempts", "escalated", "cost"}
    assert float(openai["headers"]["x-workflow-composer-overhead-ms"]) >= 0.0
    assert openai["headers"]["x-workflow-composer-model"] == "large"
    assert "x-workflow-composer-path" not in openai["headers"]  # only with --explain


def test_what_can_be_asked_for_is_listed(openai):
    assert {"auto", "task:code_generation", "small", "medium", "large"} <= set(openai["models"])


def test_n_answers_come_as_so_many_choices(openai):
    assert len(openai["two"]["texts"]) == 2


def test_log_probabilities_come_with_alternatives(openai, answer):
    found = openai["logprobs"]["logprobs"]
    assert found
    assert all(value <= 0.0 and count == 3 for _, value, count in found)
    assert "".join(token for token, _, _ in found).strip().startswith(answer[:1])


def test_a_stop_word_ends_the_answer_before_it(openai, answer):
    assert openai["stop"]["texts"][0].strip() == answer.split("=")[0].strip()


@pytest.mark.parametrize(
    ("name", "word"),
    [("tools", "tools"), ("json", "response_format"), ("seed", "seed"), ("embeddings", "embeddings")],
)
def test_what_the_engine_cannot_do_is_refused_by_name_and_never_dropped(openai, name, word):
    found = openai[name]
    assert found["error"] == "BadRequestError"
    assert word in found["text"]


def test_fields_that_openai_does_not_know_reach_the_engine(openai, answer):
    """With `ignore_eos` the answer goes on to its limit; a bias changes it."""
    assert (openai["extra"]["finish"], openai["extra"]["tokens"]) == ("length", 9)
    assert openai["bias"]["texts"][0] != answer


def test_a_stream_is_the_same_answer_in_pieces_and_tells_its_usage_when_asked(openai, answer):
    assert openai["stream"]["text"] == answer
    assert openai["stream"]["chunks"] > 3
    assert openai["stream"]["finish"] == "stop"
    assert openai["stream"]["usage"] is None
    assert openai["stream_with_usage"]["usage"] == openai["chat"]["tokens"]


def test_the_asynchronous_client_gets_the_same_answer_many_times_at_once(openai, answer):
    assert openai["together"] == [answer] * 8


def test_a_task_is_a_model_s_name_too(openai):
    assert openai["task"]["object"] == "chat.completion"


def test_plain_completions_are_answered_or_refused_by_name(openai):
    found = openai["completions"]
    assert isinstance(found, str) or found["error"] == "BadRequestError", found


def test_the_responses_api_answers_and_streams(openai, answer):
    assert openai["responses"]["text"] == answer
    assert openai["responses"]["status"] == "completed"
    assert openai["response_stream"] == {"text": answer, "last": "response.completed"}


def test_errors_are_the_client_s_own(openai):
    assert (openai["no_model"]["error"], openai["no_model"]["code"]) == ("NotFoundError", "model_not_found")
    assert openai["no_messages"]["error"] == "BadRequestError"
    assert openai["wrong_key"]["error"] == "AuthenticationError"


def test_a_rate_limit_and_a_field_left_out_are_told_to_the_client(tmp_path):
    with serving(tmp_path, "development", limits=("--requests-per-minute", "1")) as found:
        told = call("limited", *found, "large", "large")
    assert "service_tier" in told["warning"]
    assert told["second"]["error"] == "RateLimitError"
    assert int(told["second"]["retry_after"]) >= 1


def test_anthropic_s_client_gets_the_same_answer(service, answer):
    found = call("anthropic", *service, "large", "large")
    assert found["message"]["text"] == answer
    assert found["message"]["stop"] == "end_turn"
    assert found["stream"] == {"text": answer, "stop": "end_turn"}
    assert found["no_model"]["error"] == "NotFoundError"


def test_langchain_s_chat_gets_the_same_answer(service, answer):
    found = call("langchain", *service, "large", "large")
    assert found["chat"]["text"] == found["stream"] == answer
    assert found["chat"]["tokens"] > 0
    assert found["batch"] == [answer] * 3


def test_litellm_s_client_gets_the_same_answer(service, answer):
    found = call("litellm", *service, "large", "large")
    assert found["chat"] == found["stream"] == answer
    assert found["no_model"]["error"] == "NotFoundError"


def test_the_llm_command_gets_the_same_answer(service, answer, tmp_path):
    options = ("-o", "temperature", "0", "-o", "max_tokens", "40")
    assert llm_command(tmp_path, *service, "large", *options, QUESTION) == answer.strip()
    assert llm_command(tmp_path, *service, "large", *options, "--no-stream", QUESTION) == answer.strip()


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl_gets_a_stream_with_its_cost_behind_its_end(service):
    url, key = service
    headers, body = curl(url, key, {"model": "auto", "messages": MESSAGES, "stream": True, "max_tokens": 20})
    assert headers["content-type"].startswith("text/event-stream")
    assert headers["x-workflow-composer-strategy"] == "development"
    assert headers["trailer"].startswith("x-workflow-composer-cost")
    assert body.rstrip().splitlines()[-1].startswith(("data: [DONE]", "x-workflow-composer-"))


def test_a_routing_string_is_a_model_s_name(service):
    url, key = service
    routing = "mv_cascade_small_k2_t0.7_large_k1_t0.0"
    headers, body = curl(url, key, {"model": routing, "messages": MESSAGES, "max_tokens": 40})
    assert headers["x-workflow-composer-router"] == "cascade"
    assert headers["x-workflow-composer-escalated"] in {"true", "false"}
    assert '"chat.completion"' in body
