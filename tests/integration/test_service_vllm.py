"""The clients that people use, unmodified, against the service over real vLLM servers on the CPU."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from tests.integration.client_calls import MESSAGES, QUESTION
from tests.integration.clients import VARIABLE, call, clients_python, curl, llm_command, serving
from tests.integration.fleet_commands import free_ports
from tests.integration.vllm_server import VARIABLE as VLLM_VARIABLE
from tests.integration.vllm_server import VLLMServer, vllm_python
from tests.paths import CHECKPOINTS, ROOT

pytestmark = [
    pytest.mark.clients,
    pytest.mark.slow,
    pytest.mark.skipif(vllm_python() is None, reason=f"{VLLM_VARIABLE} names no Python with vLLM"),
    pytest.mark.skipif(clients_python() is None, reason=f"{VARIABLE} names no Python with the clients"),
]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """The URL and a key of a service over two vLLM servers: one chats, one embeds."""
    folder = tmp_path_factory.mktemp("service")
    script = ROOT / "tests" / "integration" / "tiny_embeddings.py"
    subprocess.run([vllm_python() or "python", script, folder / "tiny"], check=True, capture_output=True)
    tools = ("--enable-auto-tool-choice", "--tool-call-parser=hermes")
    ports = free_ports(2)
    chats = VLLMServer(CHECKPOINTS / "large", ports[0], folder / "chats.log", name="numbers", options=tools)
    # Of two options of one name the last counts: this model knows fewer positions than the chatting one.
    pooling = ("--runner=pooling", "--max-model-len=128")
    embeds = VLLMServer(folder / "tiny", ports[1], folder / "embeds.log", name="words", options=pooling)
    profile = folder / "served.yaml"
    profile.write_text(
        json.dumps(
            {
                "profile_name": "served",
                "allow_cloud": False,
                "vllm_endpoints": {"chats": f"{chats.url}/v1", "embeds": f"{embeds.url}/v1"},
                "task_routing": {"embeddings": "embeds", "*": "chats"},
                "routers": ["cascade", "t4_model"],
            }
        )
    )
    try:
        for server in (chats, embeds):
            server.launch()
        for server in (chats, embeds):
            server.wait()
        with serving(folder, str(profile)) as found:
            yield found
    finally:
        for server in (chats, embeds):
            server.kill()


@pytest.fixture(scope="module")
def openai(service):
    """What OpenAI's client got."""
    return call("openai", *service, "auto", "embeds")


@pytest.fixture(scope="module")
def answer(openai):
    """The answer to the question at temperature 0, the same for every client."""
    return openai["chat"]["texts"][0]


def test_the_openai_client_chats_streams_and_completes(openai, answer):
    assert "7" in answer
    assert openai["stream"]["text"] == answer
    assert openai["stream"]["usage"] is None
    assert openai["stream_with_usage"]["usage"] == openai["chat"]["tokens"]
    assert openai["together"] == [answer] * 8
    assert isinstance(openai["completions"], str)


def test_what_vllm_understands_is_carried_through(openai, answer):
    """Answers, log-probabilities, stop words, seeds, biases, JSON mode, and fields that only vLLM knows."""
    assert len(openai["two"]["texts"]) == 2
    assert all(value <= 0.0 and count == 3 for _, value, count in openai["logprobs"]["logprobs"])
    assert openai["stop"]["texts"][0].strip() == answer.split("=")[0].strip()
    assert openai["seed"]["texts"] == openai["same_seed"]["texts"]
    assert openai["bias"]["object"] == "chat.completion"
    assert (openai["extra"]["finish"], openai["extra"]["tokens"]) == ("length", 9)


@pytest.mark.parametrize("name", ["tools", "named_tool", "json"])
def test_tools_and_json_mode_reach_vllm(openai, name):
    """This model's vocabulary cannot write JSON: vLLM answers, or says so itself; the service adds nothing to that."""
    found = openai[name]
    assert "error" not in found or found["error"] in {"BadRequestError", "InternalServerError"}, found


def test_vectors_are_the_same_in_both_encodings(openai):
    assert openai["embeddings"]["lengths"] == [64, 64]
    assert openai["embeddings_base64"]["first"] == pytest.approx(openai["embeddings"]["first"], abs=1e-6)


def test_other_forms_of_the_api_give_the_same_answer(service, openai, answer):
    assert openai["responses"]["text"] == answer
    assert openai["response_stream"] == {"text": answer, "last": "response.completed"}
    found = call("anthropic", *service, "auto", "embeds")
    assert found["message"]["text"] == found["stream"]["text"] == answer


def test_other_clients_get_the_same_answer(service, answer, tmp_path):
    found = call("langchain", *service, "auto", "embeds")
    assert found["chat"]["text"] == found["stream"] == answer
    assert found["batch"] == [answer] * 3
    assert found["embeddings"] == 64
    found = call("litellm", *service, "auto", "embeds")
    assert found["chat"] == found["stream"] == answer
    options = ("-o", "temperature", "0", "-o", "max_tokens", "40")
    assert llm_command(tmp_path, *service, "auto", *options, QUESTION) == answer.strip()


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl_gets_the_server_s_own_events(service):
    """They are handed on as they are: the ID is vLLM's."""
    url, key = service
    headers, body = curl(url, key, {"model": "auto", "messages": MESSAGES, "stream": True, "max_tokens": 5})
    assert headers["x-workflow-composer-model"] == "chats"
    assert '"id":"chatcmpl-' in body
    assert '"system_fingerprint"' in body or '"created"' in body
    assert "data: [DONE]" in body


def test_errors_of_the_service_and_of_vllm_are_the_client_s_own(openai):
    assert (openai["no_model"]["error"], openai["no_model"]["code"]) == ("NotFoundError", "model_not_found")
    assert openai["no_messages"]["error"] == "BadRequestError"
    assert openai["wrong_key"]["error"] == "AuthenticationError"
