"""What clients ask for beyond text, by a real vLLM on the CPU: its own answers prove that it got it in a form it takes."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import pytest

from tests.integration.fleet_commands import free_ports
from tests.integration.service import Service, write_profile
from tests.integration.vllm_server import VARIABLE, VLLMServer, vllm_python
from tests.paths import CHECKPOINTS

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(vllm_python() is None, reason=f"{VARIABLE} names no Python with vLLM"),
]

QUESTION = "Clara has 6 trays with 7 apples in each. How many apples are there?"
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 99, "minimum": 0}}, "required": ["n"]}
USER = {"role": "user", "content": QUESTION}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A vLLM server that calls tools."""
    (port,) = free_ports(1)
    options = ("--enable-auto-tool-choice", "--tool-call-parser=hermes")
    made = VLLMServer(CHECKPOINTS / "large", port, tmp_path_factory.mktemp("vllm") / "log", name="large", options=options)
    made.start()
    yield made
    made.kill()


@pytest.fixture(scope="module")
def service(server, tmp_path_factory):
    """The service in front of it."""
    folder = tmp_path_factory.mktemp("service")
    profile = write_profile(folder, "p", f"{server.url}/v1", routers=["cascade", "cascading_provider"])
    with Service(profile) as found:
        yield found


def ask(service: Service, path: str, **fields: Any) -> dict[str, Any]:
    """A whole answer."""
    body = {"model": "auto", "temperature": 0, **fields}
    status, _, data = service.request("POST", f"/v1/{path}", body)
    assert status == 200, data
    return json.loads(data)


def prompt_tokens(server: VLLMServer, messages: list[dict[str, Any]]) -> int:
    """How long vLLM finds a prompt that it gets directly."""
    body = json.dumps({"model": "large", "messages": messages, "max_tokens": 1}).encode()
    request = urllib.request.Request(f"{server.url}/v1/chat/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)["usage"]["prompt_tokens"]


def test_tools_are_called_in_every_form(service):
    """A choice of one function makes vLLM write arguments of its schema, whatever the model would say."""
    function = {"name": "count", "description": "Count.", "parameters": SCHEMA}
    chosen = {"type": "function", "function": {"name": "count"}}
    tools = [{"type": "function", "function": function}]
    chat = ask(service, "chat/completions", messages=[USER], tools=tools, tool_choice=chosen, max_tokens=40)
    (call,) = chat["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "count"
    assert set(json.loads(call["function"]["arguments"])) == {"n"}
    named = {"type": "tool", "name": "count"}
    tool = {"name": "count", "description": "Count.", "input_schema": SCHEMA}
    message = ask(service, "messages", messages=[USER], tools=[tool], tool_choice=named, max_tokens=40)
    (use,) = [part for part in message["content"] if part["type"] == "tool_use"]
    assert set(use["input"]) == {"n"}
    assert message["stop_reason"] == "tool_use"
    named = {"type": "function", "name": "count"}
    tools = [{"type": "function", **function}]
    response = ask(service, "responses", input=QUESTION, tools=tools, tool_choice=named, max_output_tokens=40)
    (item,) = [one for one in response["output"] if one["type"] == "function_call"]
    assert set(json.loads(item["arguments"])) == {"n"}


@pytest.mark.parametrize("vote", [False, True])
def test_forms_of_answers_hold_by_every_name(service, vote):
    model = "mv_p-0_k2_t0.7" if vote else "auto"
    for fields in ({"structured_outputs": {"choice": ["yes", "no"]}}, {"guided_choice": ["yes", "no"]}):
        found = ask(service, "chat/completions", model=model, messages=[USER], max_tokens=9, **fields)
        assert found["choices"][0]["message"]["content"] in ("yes", "no"), fields
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
    found = ask(service, "chat/completions", model=model, messages=[USER], max_tokens=40, response_format=form)
    assert set(json.loads(found["choices"][0]["message"]["content"])) == {"n"}
    form = {"format": {"type": "json_schema", "schema": SCHEMA}}
    found = ask(service, "messages", model=model, messages=[USER], max_tokens=40, output_config=form)
    assert set(json.loads(found["content"][0]["text"])) == {"n"}
    form = {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}}
    found = ask(service, "responses", model=model, input=QUESTION, max_output_tokens=40, text=form)
    assert set(json.loads(found["output"][-1]["content"][0]["text"])) == {"n"}


def test_log_probabilities_come_back_in_every_form_that_has_them(service):
    chat = ask(service, "chat/completions", messages=[USER], max_tokens=3, logprobs=True, top_logprobs=2)
    tokens = chat["choices"][0]["logprobs"]["content"]
    assert len(tokens) == 3
    assert all(one["logprob"] <= 0.0 and len(one["top_logprobs"]) == 2 and one["bytes"] for one in tokens)
    text = ask(service, "completions", prompt=QUESTION, max_tokens=3, logprobs=2)
    assert len(text["choices"][0]["logprobs"]["token_logprobs"]) == 3
    echo = ask(service, "completions", prompt=QUESTION, max_tokens=0, echo=True, logprobs=1)["choices"][0]
    assert echo["text"] == QUESTION
    assert echo["logprobs"]["token_logprobs"][0] is None
    include = ["message.output_text.logprobs"]
    response = ask(service, "responses", input=QUESTION, max_output_tokens=16, include=include, top_logprobs=2)
    assert all(one["logprob"] <= 0.0 for one in response["output"][-1]["content"][0]["logprobs"])
    assert response["output"][-1]["content"][0]["logprobs"]


def test_what_a_developer_says_is_the_system_s_word(service, server):
    """The server finds the prompt as long as with one system message of both texts."""
    said = [{"role": "system", "content": "Be brief."}, {"role": "developer", "content": "Only numbers."}]
    expected = prompt_tokens(server, [{"role": "system", "content": "Be brief.\n\nOnly numbers."}, USER])
    assert expected > prompt_tokens(server, [USER])
    chat = ask(service, "chat/completions", messages=[*said, USER], max_tokens=1)
    assert chat["usage"]["prompt_tokens"] == expected
    items = [{"type": "message", **one} for one in (*said, USER)]
    response = ask(service, "responses", input=items, max_output_tokens=16)
    assert response["usage"]["input_tokens"] == expected
    late = ask(service, "chat/completions", messages=[USER, said[0], said[1]], max_tokens=1)
    assert late["usage"]["prompt_tokens"] == expected
