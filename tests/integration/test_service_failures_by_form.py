"""What a server's failure becomes in each form of the API, whole and streamed: judged once, told in its own way."""

from __future__ import annotations

import http.client
import json
import time
from email.utils import formatdate
from typing import Any, NamedTuple

import pytest

from tests.integration.service import PATIENCE, echo, echoing, serving
from tests.integration.stub_server import Reply

TOOL = {"name": "add", "parameters": {"type": "object", "properties": {}}}
FORMS: dict[str, dict[str, Any]] = {
    "chat/completions": {"messages": [{"role": "user", "content": "four"}]},
    "completions": {"prompt": "four"},
    "messages": {"messages": [{"role": "user", "content": "four"}], "max_tokens": 9},
    "responses": {"input": "four"},
}
WAYS = [(form, stream) for form in FORMS for stream in (False, True)]
IDS = [f"{form.partition('/')[0]}-{'stream' if stream else 'whole'}" for form, stream in WAYS]


class Told(NamedTuple):
    """What a client was told: the answer's text, whether it failed, and the headers."""

    status: int
    text: str
    failed: bool
    headers: http.client.HTTPMessage
    body: bytes


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A service with a model and its fallback, and their servers."""
    more = {
        "routers": ["cascade", "cascading_provider"],
        "circuit_breaker": {"failures": 100_000},
        "tiers": {"low": {"model": "p-0"}, "high": {"model": "p-1"}},
    }
    folder = tmp_path_factory.mktemp("failures")
    with echoing() as first, echoing() as second, serving(folder, first, second, **more) as service:
        yield service, first, second


@pytest.fixture
def ask(served):
    """Ask in a form while the servers answer so; a server without an answer echoes."""
    service, first, second = served

    def asked(way, answer=None, other=None, *, model="auto", **fields) -> Told:
        form, stream = way
        first.answer, second.answer = answer or echo, other or echo
        client = http.client.HTTPConnection(service.host, service.port, timeout=PATIENCE)
        body = json.dumps({"model": model, "stream": stream, **FORMS[form], **fields})
        client.request("POST", f"/v1/{form}", body, {"Content-Type": "application/json"})
        reply = client.getresponse()
        data = reply.read()
        client.close()
        text, failed = _said(form, data) if stream and reply.status == 200 else (_text(form, json.loads(data)), False)
        return Told(reply.status, text, failed or reply.status != 200, reply.headers, data)

    yield asked
    first.answer = second.answer = echo


def _said(form: str, body: bytes) -> tuple[str, bool]:
    """The text of a stream, and whether it tells of a failure in the form's way, at its end."""
    events = [json.loads(line[6:]) for line in body.split(b"\n") if line.startswith(b"data: {")]
    if form == "messages":
        text = "".join(one["delta"].get("text", "") for one in events if one["type"] == "content_block_delta")
        return text, events[-1]["type"] == "error"
    if form == "responses":
        text = "".join(one["delta"] for one in events if one["type"] == "response.output_text.delta")
        return text, events[-1]["type"] == "response.failed"
    choices = [one["choices"][0] for one in events if one.get("choices")]
    text = "".join(one["delta"].get("content") or "" if "delta" in one else one["text"] for one in choices)
    return text, "error" in events[-1]


def _text(form: str, data: dict[str, Any]) -> str:
    """The text of a whole answer; none of an error."""
    if data.get("error"):
        return ""
    if form == "messages":
        return "".join(part["text"] for part in data["content"])
    if form == "responses":
        return "".join(part["text"] for item in data["output"] for part in item.get("content", ()))
    choice = data["choices"][0]
    return choice["message"]["content"] if "message" in choice else choice["text"]


def events(request, *texts: str, finish: str | None = "stop") -> list[bytes]:
    """A stream's events in the form of the path that was asked."""
    older = request.path.endswith("/v1/completions")
    chunks = [{"text": text} if older else {"delta": {"content": text}} for text in texts]
    ends = [{"text": ""} if older else {"delta": {}}] if finish else []
    rows = [*({**one, "finish_reason": None} for one in chunks), *({**one, "finish_reason": finish} for one in ends)]
    return [json.dumps({"id": "c", "model": "m", "choices": [{"index": 0, **one}]}).encode() for one in rows]


ERRORS = {
    "openai": {"error": {"message": "boom", "type": "server_error", "code": 500}},
    "vllm": {"object": "error", "message": "boom", "type": "InternalServerError", "code": 500},
    "text": {"error": "boom"},
    "anthropic": {"type": "error", "error": {"type": "api_error", "message": "boom"}},
    "bare code": {"error": {"code": 503, "message": "boom"}},
}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("way", WAYS, ids=IDS)
def test_an_error_of_any_shape_before_the_answer_falls_back(ask, way, error):
    """With status 200, whole or as the first event of a stream."""

    def answer(request):
        return Reply(events=(json.dumps(error).encode(),)) if request.json.get("stream") else Reply.of(error)

    found = ask(way, answer)
    assert (found.status, found.text, found.failed) == (200, "four", False)
    assert found.headers["x-workflow-composer-model"] == "p-1"


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("form", FORMS)
def test_an_error_of_any_shape_within_a_stream_is_told_as_a_failure(ask, form, error):
    found = ask(
        (form, True), lambda request: Reply(events=(*events(request, "fo", finish=None), json.dumps(error).encode()))
    )
    assert (found.status, found.text, found.failed) == (200, "fo", True)
    assert b"[DONE]" not in found.body


@pytest.mark.parametrize("form", FORMS)
def test_a_stream_that_breaks_off_is_a_failure_and_one_with_a_finish_reason_is_none(ask, form):
    cut = ask((form, True), lambda request: Reply(events=tuple(events(request, "fo", finish=None)), done=False))
    assert (cut.text, cut.failed) == ("fo", True)
    ended = ask((form, True), lambda request: Reply(events=tuple(events(request, "fo", "ur")), done=False))
    assert (ended.text, ended.failed) == ("four", False)


@pytest.mark.parametrize("form", FORMS)
def test_a_whole_answer_in_place_of_a_stream_is_passed_on(ask, form):
    def answer(request):
        older = request.path.endswith("/v1/completions")
        said = {"text": "four"} if older else {"message": {"role": "assistant", "content": "four"}}
        return Reply.of({"id": "c", "model": "m", "choices": [{"index": 0, "finish_reason": "stop", **said}]})

    found = ask((form, True), answer)
    assert (found.status, found.text, found.failed) == (200, "four", False)


@pytest.mark.parametrize("status", [201, 202, 206])
@pytest.mark.parametrize("way", WAYS, ids=IDS)
def test_any_status_of_success_with_an_answer_is_an_answer(ask, way, status):
    def answer(request):
        usual = echo(request)
        return Reply(status=status, body=usual.body, events=usual.events)

    found = ask(way, answer)
    assert (found.status, found.text, found.failed) == (200, "four", False)
    assert found.headers["x-workflow-composer-model"] == "p-0"


@pytest.mark.parametrize("way", WAYS, ids=IDS)
def test_a_success_without_an_answer_falls_back(ask, way):
    for body in (b"", b"{}", b"null", b"<html>", b'{"choices": []}', b'{"choices": null}'):
        found = ask(way, lambda request, body=body: Reply(body=body))
        assert (found.status, found.text, found.failed) == (200, "four", False), body
        assert found.headers["x-workflow-composer-model"] == "p-1", body


@pytest.mark.parametrize("way", WAYS, ids=IDS)
def test_what_a_server_asks_to_wait_reaches_the_client(ask, way):
    for after, least in (("37", 37), (lambda: formatdate(time.time() + 90, usegmt=True), 60)):
        told = after if isinstance(after, str) else after()
        slow = Reply.error(429, "slow down", headers={"Retry-After": told})
        found = ask(way, lambda request, slow=slow: slow, lambda request, slow=slow: slow)
        assert found.status == 429
        assert least <= int(found.headers["retry-after"]) <= 90


@pytest.mark.parametrize("way", WAYS, ids=IDS)
def test_a_rate_limit_asks_the_next_candidate_first(served, ask, way):
    _, first, _ = served
    before = len(first.requests)
    found = ask(way, lambda request: Reply.error(429, "slow down", headers={"Retry-After": "600"}))
    assert (found.status, found.text) == (200, "four")
    assert found.headers["x-workflow-composer-model"] == "p-1"
    assert len(first.requests) == before + 1


@pytest.mark.parametrize("way", WAYS, ids=IDS)
def test_a_refused_key_is_no_fault_of_the_client_s(ask, way):
    for status in (401, 403):
        refused = Reply.error(status, "Incorrect API key provided: sk-secret")
        found = ask(way, lambda request, refused=refused: refused)
        assert (found.status, found.text) == (200, "four")
        both = ask(way, lambda request, refused=refused: refused, lambda request, refused=refused: refused)
        assert both.status >= 500
        assert b"sk-secret" not in both.body


@pytest.mark.parametrize("way", [way for way in WAYS if way[0] != "completions"], ids=lambda way: f"{way[0][:4]}-{way[1]}")
def test_a_field_that_the_request_does_not_have_is_left_out(ask, way):
    """A tier's temperature is the profile's; a server that takes none is asked again without it."""

    def answer(request):
        if request.json.get("temperature") not in (None, 1):
            message = "Unsupported value: 'temperature' does not support 0 with this model."
            return Reply.error(400, message, code="unsupported_value", param="temperature")
        return echo(request)

    found = ask(way, answer, model="mv_cascade_low_k2_t0.0_high_k1_t0.0")
    assert (found.status, found.text, found.failed) == (200, "four", False)


@pytest.mark.parametrize("way", [way for way in WAYS if way[0] != "completions"], ids=lambda way: f"{way[0][:4]}-{way[1]}")
def test_what_the_request_asks_for_is_asked_of_a_model_that_can(ask, way):
    tools = {
        "chat/completions": [{"type": "function", "function": TOOL}],
        "messages": [{"name": "add", "input_schema": TOOL["parameters"]}],
        "responses": [{"type": "function", **TOOL}],
    }

    def answer(request):
        if "tools" in request.json:
            message = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
            return Reply.of({"object": "error", "message": message, "code": 400}, status=400)
        return echo(request)

    found = ask(way, answer, tools=tools[way[0]])
    assert (found.status, found.text, found.failed) == (200, "four", False)
    assert found.headers["x-workflow-composer-model"] == "p-1"


@pytest.mark.parametrize("way", WAYS, ids=IDS)
def test_what_no_server_takes_is_told_with_its_code_and_field(ask, way):
    refused = Reply.error(400, "filtered", code="content_filter", param="prompt")
    found = ask(way, lambda request: refused, lambda request: refused)
    error = json.loads(found.body)["error"]
    assert (found.status, error["code"], error["param"]) == (400, "content_filter", "prompt")


@pytest.mark.parametrize("way", WAYS, ids=IDS)
def test_servers_that_all_fail_are_told_without_their_names(ask, way):
    failing = Reply.error(500, "boom at http://gpu7:8000")
    found = ask(way, lambda request: failing, lambda request: failing)
    assert found.status in (502, 503)
    assert b"gpu7" not in found.body
    assert found.headers["retry-after"]


@pytest.mark.parametrize("stream", [False, True])
def test_several_choices_of_a_vote_are_refused_by_name(ask, stream):
    found = ask(("chat/completions", stream), model="mv_p-0_k3_t0.7", n=2)
    assert found.status == 400
    assert json.loads(found.body)["error"]["param"] == "n"
