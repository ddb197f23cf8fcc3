"""A stream whose model or vote takes long: signs of life in every form, then the answer or the failure, as an event."""

from __future__ import annotations

import http.client
import json
import threading

import pytest

from tests.integration.service import PATIENCE, Service, echo, echoing, write_profile
from tests.integration.stub_server import Reply

FORMS = {
    "chat/completions": {"messages": [{"role": "user", "content": "four"}]},
    "completions": {"prompt": "four"},
    "messages": {"messages": [{"role": "user", "content": "four"}], "max_tokens": 9},
    "responses": {"input": "four"},
}
FAILED = {
    "chat/completions": b'data: {"error":',
    "completions": b'data: {"error":',
    "messages": b"event: error",
    "responses": b"event: response.failed",
}
MORE = {"routers": ["cascade", "cascading_provider"], "circuit_breaker": {"failures": 1000}}
VOTE = "mv_p-0_k3_t0.7"


class Hasty(Service):
    """A service whose streams are alive a hundred times as often."""

    program = ("tests.integration.hasty_service",)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A service, and the server behind it."""
    folder = tmp_path_factory.mktemp("waiting")
    with (
        echoing() as stub,
        Hasty(write_profile(folder, "p", stub.url, **MORE)) as service,
    ):
        yield service, stub


def streamed(served, form: str, model: str, answer) -> tuple[http.client.HTTPResponse, bytes, bytes]:
    """A stream whose model answers once two signs of life have come; what came before the answer, and all."""
    service, stub = served
    go, usual = threading.Event(), stub.answer

    def late(request):
        assert go.wait(PATIENCE)
        return answer(request)

    stub.answer = late
    client = http.client.HTTPConnection(service.host, service.port, timeout=PATIENCE)
    try:
        body = json.dumps({"model": model, "stream": True, **FORMS[form]})
        client.request("POST", f"/v1/{form}", body, {"Content-Type": "application/json"})
        reply = client.getresponse()
        before = b""
        while before.count(b": waiting") + before.count(b"event: ping") < 2:
            line = reply.readline()
            assert line, before
            before += line
        go.set()
        return reply, before, before + reply.read()
    finally:
        go.set()
        stub.answer = usual
        client.close()


@pytest.mark.parametrize("model", ["auto", VOTE])
@pytest.mark.parametrize("form", FORMS)
def test_a_stream_that_waits_is_alive_and_then_answers(served, form, model):
    if (form, model) == ("completions", VOTE):
        pytest.skip("completions are not voted on")
    reply, before, whole = streamed(served, form, model, echo)
    assert reply.status == 200
    assert reply.headers["x-accel-buffering"] == "no"
    assert b"four" not in before
    assert b"four" in whole
    assert b'"error":{' not in whole
    events = [json.loads(line[6:]) for line in whole.split(b"\n") if line.startswith(b"data: {")]
    if form == "messages":
        assert [event["type"] for event in events].count("message_start") == 1
        assert events[0]["type"] == "message_start"
        assert events[-1]["type"] == "message_stop"
    elif form == "responses":
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert (events[0]["type"], events[-1]["type"]) == ("response.created", "response.completed")
    else:
        assert whole.rstrip().endswith(b"data: [DONE]")


@pytest.mark.parametrize("model", ["auto", VOTE])
@pytest.mark.parametrize("form", FORMS)
def test_a_stream_that_waited_in_vain_says_so_in_an_event(served, form, model):
    if (form, model) == ("completions", VOTE):
        pytest.skip("completions are not voted on")
    _, _, whole = streamed(served, form, model, lambda request: Reply.error(500, "boom"))
    assert FAILED[form] in whole
    assert b"boom" not in whole


def test_a_quick_stream_has_no_sign_of_life(served):
    service, _ = served
    for form, fields in FORMS.items():
        _, headers, body = service.request("POST", f"/v1/{form}", {"model": "auto", "stream": True, **fields})
        assert headers["x-workflow-composer-model"] == "p-0"
        assert b"four" in body
