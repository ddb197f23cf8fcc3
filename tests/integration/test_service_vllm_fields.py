"""What clients ask for beyond text, by a real vLLM on the CPU: its own answers prove that it got it in a form it takes."""

from __future__ import annotations

import json
import string
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.integration.fleet_commands import free_ports
from tests.integration.prompt_model import LOAD, make
from tests.integration.service import Service, write_profile
from tests.integration.vllm_server import VARIABLE, VLLMServer, vllm_python

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(vllm_python() is None, reason=f"{VARIABLE} names no Python with vLLM"),
]

QUESTION = "Clara has 6 trays with 7 apples in each. How many apples are there?"
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 99, "minimum": 0}}, "required": ["n"]}
WORDS = (QUESTION, "Be brief. Only numbers. system developer user assistant yes no")
USER = {"role": "user", "content": QUESTION}


def letters(folder: Path) -> Path:
    """A model of random weights with a token for each letter and blank, so that it can write any JSON that it must."""
    make(folder, [" ".join(string.printable), *WORDS], hidden=64, layers=1)
    paths = {name: folder / f"{name}.json" for name in ("tokenizer", "config")}
    tokenizer, config = (json.loads(path.read_text()) for path in paths.values())
    for blank in (" ", "\n"):
        tokenizer["model"]["vocab"][blank] = len(tokenizer["model"]["vocab"])
    tokenizer["decoder"] = {"type": "Fuse"}
    config["vocab_size"] = len(tokenizer["model"]["vocab"])
    for path, made in zip(paths.values(), (tokenizer, config), strict=True):
        path.write_text(json.dumps(made))
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A vLLM server that calls tools."""
    folder = letters(tmp_path_factory.mktemp("model"))
    (port,) = free_ports(1)
    # Without blanks in JSON: else it may write them until its limit.
    tight = '--structured-outputs-config={"backend":"xgrammar","disable_any_whitespace":true}'
    options = ("--enable-auto-tool-choice", "--tool-call-parser=hermes", tight, *LOAD)
    made = VLLMServer(folder, port, tmp_path_factory.mktemp("vllm") / "log", name="large", options=options)
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


CALL = '<tool_call>{"name": "count", "arguments": '


def test_tools_reach_the_server_in_every_form(service):
    """A choice of one function makes vLLM begin a call of that name, whatever the model would say.

    This model's numbers never end, so that the call is cut off: it comes as the text that it is.
    """
    function = {"name": "count", "description": "Count.", "parameters": SCHEMA}
    chosen = {"type": "function", "function": {"name": "count"}}
    tools = [{"type": "function", "function": function}]
    chat = ask(service, "chat/completions", messages=[USER], tools=tools, tool_choice=chosen, max_tokens=60)
    assert chat["choices"][0]["message"]["content"].startswith(CALL)
    named = {"type": "tool", "name": "count"}
    tool = {"name": "count", "description": "Count.", "input_schema": SCHEMA}
    message = ask(service, "messages", messages=[USER], tools=[tool], tool_choice=named, max_tokens=60)
    assert message["content"][0]["text"].startswith(CALL)
    named = {"type": "function", "name": "count"}
    response = ask(
        service,
        "responses",
        input=QUESTION,
        tools=[{"type": "function", **function}],
        tool_choice=named,
        max_output_tokens=60,
    )
    assert response["output"][-1]["content"][0]["text"].startswith(CALL)


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
