"""Votes through the service, a process of its own: over tool calls and JSON, in every form of API, whole and streamed.

The model's server is a stand-in that answers the n-th call with the n-th sample, whatever order the calls come in.
"""

from __future__ import annotations

import json
import threading

import pytest

from tests.integration.service import serving
from tests.integration.stub_server import MODEL, Reply, StubServer

VOTE, CASCADE = "mv_one_k3_t0.7", "mv_cascade_one_k3_t0.7_two_k1_t0.0"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
MESSAGES = [{"role": "user", "content": "Which city, and for how many days?"}]
FORMS = ("chat", "messages", "responses")
EITHER = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


def tool_call(arguments, name="weather"):
    """A sample that calls a tool."""
    function = {"name": name, "arguments": arguments}
    call = {"id": "call_1", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}, "tool_calls"


def text(content, **more):
    return {"role": "assistant", "content": content, **more}, "stop"


class Samples:
    """The stand-in's answers, one per call; the last one is repeated."""

    def __init__(self):
        self.given = []
        self.asked = 0
        self._lock = threading.Lock()

    def set(self, *samples):
        with self._lock:
            self.given, self.asked = samples, 0

    def __call__(self, request):
        with self._lock:
            message, finish = self.given[min(self.asked, len(self.given) - 1)]
            self.asked += 1
        if request.json.get("stream"):
            deltas = [
                {"index": 0, "delta": message, "finish_reason": None},
                {"index": 0, "delta": {}, "finish_reason": finish},
            ]
            return Reply(events=tuple(json.dumps({"id": "c", "model": MODEL, "choices": [one]}).encode() for one in deltas))
        choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
        usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
        return Reply.of({"id": "c", "object": "chat.completion", "model": MODEL, "choices": [choice], "usage": usage})


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    cheap, strong = Samples(), Samples()
    with StubServer() as one, StubServer() as two:
        one.answer, two.answer = cheap, strong
        tiers = {"one": {"model": "p-0"}, "two": {"model": "p-1"}}
        cascade = {"cascade": {"draw": "as_needed", "stopping": "fixed", "target": 0.6}}
        more = {"tiers": tiers, "routers": [cascade, "cascading_provider"], "fallback": []}
        with serving(tmp_path_factory.mktemp("votes"), one, two, **more) as service:
            yield service, cheap, strong


def asked(form, model, *, stream, tools=False, json_answer=False):
    """The path and body of a request."""
    body = {"model": model, "stream": stream}
    function = {"name": "weather", "description": "The weather.", "parameters": SCHEMA}
    if form == "chat":
        body |= {"messages": MESSAGES}
        body |= {"tools": [{"type": "function", "function": function}]} if tools else {}
        body |= {"response_format": {"type": "json_object"}} if json_answer else {}
        return "/v1/chat/completions", body
    if form == "messages":
        own = {"name": "weather", "description": "The weather.", "input_schema": SCHEMA}
        return "/v1/messages", body | {"messages": MESSAGES, "max_tokens": 50} | ({"tools": [own]} if tools else {})
    body |= {"input": "Which city, and for how many days?"}
    body |= {"tools": [{"type": "function", **function}]} if tools else {}
    wanted = {"type": "json_schema", "name": "trip", "schema": SCHEMA}
    return "/v1/responses", body | ({"text": {"format": wanted}} if json_answer else {})


def events(body):
    """The data of a stream's events."""
    lines = (line.removeprefix(b"data: ") for line in body.split(b"\n") if line.startswith(b"data: "))
    return [json.loads(line) for line in lines if line != b"[DONE]"]


def answer_of(form, body, *, stream):
    """The text, and the name and arguments of each tool call, of a response."""
    if not stream:
        return WHOLE[form](json.loads(body))
    return STREAMED[form](events(body))


def _chat(data):
    message = data["choices"][0]["message"]
    calls = [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in message.get("tool_calls", ())]
    return message["content"] or "", calls


def _messages(data):
    content = data["content"]
    said = "".join(block["text"] for block in content if block["type"] == "text")
    return said, [(block["name"], block["input"]) for block in content if block["type"] == "tool_use"]


def _responses(data):
    output = data["output"]
    said = "".join(part["text"] for item in output if item["type"] == "message" for part in item["content"])
    return said, [(item["name"], json.loads(item["arguments"])) for item in output if item["type"] == "function_call"]


def _chat_stream(found):
    said, name, arguments = "", "", ""
    for delta in (choice["delta"] for event in found for choice in event["choices"]):
        said += delta.get("content") or ""
        for call in delta.get("tool_calls", ()):
            name += call["function"].get("name", "")
            arguments += call["function"]["arguments"]
    return said, [(name, json.loads(arguments))] if name else []


def _messages_stream(found):
    said, name, arguments = "", "", ""
    for event in found:
        if event["type"] == "content_block_start" and event["content_block"]["type"] == "tool_use":
            name = event["content_block"]["name"]
        delta = event.get("delta", {})
        said += delta.get("text", "")
        arguments += delta.get("partial_json", "")
    return said, [(name, json.loads(arguments))] if name else []


def _responses_stream(found):
    (end,) = [event["response"] for event in found if event["type"] == "response.completed"]
    return _responses(end)


WHOLE = {"chat": _chat, "messages": _messages, "responses": _responses}
STREAMED = {"chat": _chat_stream, "messages": _messages_stream, "responses": _responses_stream}
PARIS = '{"city": "Paris", "days": 3}'


def send(service, form, model, *, stream, **fields):
    path, body = asked(form, model, stream=stream, **fields)
    status, headers, answered = service.request("POST", path, body)
    assert status == 200, answered
    return headers, *answer_of(form, answered, stream=stream)


@EITHER
@pytest.mark.parametrize("form", FORMS)
def test_two_of_three_tool_calls_are_the_answer(served, form, stream):
    service, cheap, _ = served
    cheap.set(tool_call('{"city": "Rome"}'), tool_call(PARIS), tool_call('{ "days":3, "city":"Paris" }'))
    headers, said, calls = send(service, form, VOTE, stream=stream, tools=True)
    assert (said, calls) == ("", [("weather", {"city": "Paris", "days": 3})])
    assert (headers["x-workflow-composer-confidence"], cheap.asked) == ("0.666667", 3)


@EITHER
@pytest.mark.parametrize("form", FORMS)
def test_three_tool_calls_that_agree_are_accepted_at_the_first_tier(served, form, stream):
    service, cheap, strong = served
    cheap.set(tool_call(PARIS), tool_call('{"days": 3.0, "city": "Paris"}'), tool_call('{"days":3,"city":"Paris"}'))
    strong.set(tool_call('{"city": "Rome"}'))
    headers, _, calls = send(service, form, CASCADE, stream=stream, tools=True)
    assert calls == [("weather", {"city": "Paris", "days": 3})]
    assert (headers["x-workflow-composer-tier"], headers["x-workflow-composer-confidence"], strong.asked) == ("1", "1", 0)


@EITHER
@pytest.mark.parametrize("form", FORMS)
def test_tool_calls_that_differ_ask_the_next_tier(served, form, stream):
    service, cheap, strong = served
    cheap.set(*(tool_call(json.dumps({"city": name})) for name in ("Rome", "Paris", "Oslo")))
    strong.set(tool_call(PARIS))
    headers, _, calls = send(service, form, CASCADE, stream=stream, tools=True)
    assert (headers["x-workflow-composer-tier"], calls) == ("2", [("weather", {"city": "Paris", "days": 3})])


@EITHER
@pytest.mark.parametrize("form", FORMS)
def test_json_votes_by_value_whatever_the_order_of_its_keys(served, form, stream):
    """Anthropic's messages name no response format: there the texts themselves are JSON."""
    service, cheap, _ = served
    cheap.set(text(PARIS), text('{"days": 3, "city": "Paris"}'), text('```json\n{"days":3,"city":"Paris"}\n```'))
    headers, said, _ = send(service, form, CASCADE, stream=stream, json_answer=True)
    assert json.loads(said) == {"city": "Paris", "days": 3}
    assert (headers["x-workflow-composer-tier"], headers["x-workflow-composer-confidence"]) == ("1", "1")
    cheap.set(text('{"days": 4, "city": "Paris"}'), text(PARIS), text('{"days": 3, "city": "Paris"}'))
    headers, said, _ = send(service, form, VOTE, stream=stream, json_answer=True)
    assert json.loads(said) == {"city": "Paris", "days": 3}
    assert headers["x-workflow-composer-confidence"] == "0.666667"


@EITHER
@pytest.mark.parametrize("form", FORMS)
def test_free_text_is_not_accepted_and_comes_with_a_warning(served, form, stream):
    service, cheap, strong = served
    prose = [f"{name} is a town with a long and eventful history of its own." for name in ("Rome", "Paris", "Oslo", "Bern")]
    cheap.set(*map(text, prose[:3]))
    strong.set(text(prose[3]))
    headers, said, _ = send(service, form, CASCADE, stream=stream)
    assert (said, headers["x-workflow-composer-tier"], headers["x-workflow-composer-confidence"]) == (prose[3], "2", None)
    headers, said, _ = send(service, form, VOTE, stream=stream)
    assert said in prose
    assert "--vote-by embedding" in headers["x-workflow-composer-warning"]
    assert headers["x-workflow-composer-confidence"] is None


@EITHER
def test_reasoning_is_kept_apart_and_carried_through_a_vote(served, stream):
    service, cheap, _ = served
    thought = "Rome? No: #### Rome"
    cheap.set(*[text("The answer is Paris.", reasoning_content=thought)] * 3)
    path, body = asked("chat", VOTE, stream=stream)
    answered = service.request("POST", path, body)[2]
    if not stream:
        message = json.loads(answered)["choices"][0]["message"]
        assert (message["content"], message["reasoning_content"]) == ("The answer is Paris.", thought)
        return
    deltas = [choice["delta"] for event in events(answered) for choice in event["choices"]]
    assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == thought
    assert "".join(delta.get("content") or "" for delta in deltas) == "The answer is Paris."


@pytest.fixture(scope="module")
def choosy(tmp_path_factory):
    """A service whose first tier accepts one of two words only."""
    cheap, strong = Samples(), Samples()
    with StubServer() as one, StubServer() as two:
        one.answer, two.answer = cheap, strong
        tiers = {"one": {"model": "p-0", "accept": ["case", "trial"], "retries": 1}, "two": {"model": "p-1"}}
        more = {"tiers": tiers, "routers": ["cascade", "cascading_provider"], "fallback": []}
        with serving(tmp_path_factory.mktemp("forms"), one, two, **more) as service:
            yield service, cheap, strong


@EITHER
@pytest.mark.parametrize("form", FORMS)
def test_a_tiers_form_holds_in_every_form_of_api(choosy, form, stream):
    """Nothing of a refused reply reaches the client."""
    service, cheap, strong = choosy
    route = "mv_cascade_one_k1_two_k1"
    cheap.set(text("Hm, hard to say."), text("**Case.**"))
    strong.set(text("trial"))
    headers, said, _ = send(service, form, route, stream=stream)
    assert (said, headers["x-workflow-composer-tier"], cheap.asked) == ("**Case.**", "1", 2)
    cheap.set(text("Hm, hard to say."), text("I really cannot say."))
    headers, said, _ = send(service, form, route, stream=stream)
    assert (said, headers["x-workflow-composer-tier"], cheap.asked) == ("trial", "2", 2)
