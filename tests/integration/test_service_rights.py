"""The service as a process: web pages, grades of one's own requests over several workers, and errors without places."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.integration.service import Service, chat, echoing, post, serving, write_profile
from tests.integration.stub_server import Reply
from workflow_composer.server.auth.keys import Key, change_keys

SAY = [{"role": "user", "content": "one two three"}]
FORMS = {
    "/v1/chat/completions": {"messages": SAY},
    "/v1/completions": {"prompt": "one two three"},
    "/v1/responses": {"input": "one two three"},
    "/v1/messages": {"messages": SAY, "max_tokens": 9},
}
WAYS = [
    (path, model) for path in FORMS for model in ("auto", "mv_one_k2_t0.5") if (path, model[:2]) != ("/v1/completions", "mv")
]
PAGE = "https://chat.example"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A service without keys over one stub, whose pages may be those of `PAGE`."""
    folder = tmp_path_factory.mktemp("rights")
    more = {
        "tiers": {"one": {"model": "p-0"}},
        "routers": ["cascade", "cascading_provider"],
        "circuit_breaker": {"failures": 999},
    }
    with echoing() as stub, serving(folder, stub, options=("--cors", PAGE), **more) as service:
        yield service, stub


@pytest.fixture
def failing(served):
    """Makes the stub answer in one way."""
    service, stub = served
    real = stub.answer

    def fail(reply):
        stub.answer = lambda request: reply
        return service

    yield fail
    stub.answer = real


PLACES = "see http://gpu7.cluster.local:8001/docs, 10.0.0.3 and /srv/models/llama"
SECRETS = ("gpu7", "10.0.0.3", "/srv", "127.0.0.1", "forbids", "curl ")
EVENT = b'{"error": {"message": "%b", "code": 500}}' % PLACES.encode()
BEGUN = Reply.stream("one ", "two ", "three")
FAULTS = {
    "a server's failure": Reply.error(500, PLACES),
    "a wrong request": Reply.error(400, f"temperature is too high; {PLACES}"),
    "a lost key": Reply.error(401, PLACES),
    "an unknown model": Reply.error(404, f"the model `/srv/models/llama` does not exist; {PLACES}"),
    "a redirect": Reply.redirect("http://gpu7.cluster.local:8001/"),
    "no JSON": Reply(body=PLACES.encode()),
    "a stream that breaks": replace(BEGUN, die_after=3),
    "a stream that tells": replace(BEGUN, events=(*BEGUN.events[:3], EVENT)),
    "a stream that tells with a space": replace(BEGUN, events=(*BEGUN.events[:3], EVENT.replace(b'"error":', b'"error" :'))),
    "a stream that tells in vLLM's old form": replace(
        BEGUN, events=(*BEGUN.events[:3], b'{"object":"error","message":"%b","code":500}' % PLACES.encode())
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("stream", [False, True])
def test_no_client_is_told_of_hosts_files_or_rules(failing, fault, stream):
    """In every form of API, relayed and translated."""
    service = failing(FAULTS[fault])
    port = str(service.port)
    for path, model in WAYS:
        status, headers, body = service.request("POST", path, {**FORMS[path], "model": model, "stream": stream})
        text = body.decode()
        if status == 200 and "error" not in text:
            continue  # a stream that is no fault where a whole answer was asked for
        told = f"{text}{headers}".replace(f"localhost:{port}", "")
        assert not [secret for secret in SECRETS if secret in told], (path, model, text)
        assert "p-0" in text or "stream_interrupted" in text, (path, model, text)
        if fault == "a wrong request":
            assert "temperature is too high" in text, (path, model, text)
    assert "127.0.0.1" in service.log  # the operator can see it


def asked(service, *headers, host="localhost", body=None, method="POST", path="/v1/chat/completions"):
    """The status and the headers of one request, as bytes on a connection of its own."""
    data = post(chat("hi") if body is None else body, *headers, "Connection: close", path=path)
    data = data.replace(b"POST", method.encode(), 1).replace(b"Host: localhost", b"Host: " + host.encode(), 1)
    with service.connect() as sock, sock.makefile("rb") as file:
        sock.sendall(data)
        head = file.read().partition(b"\r\n\r\n")[0].decode().lower()
    return int(head.split()[1]), head


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "OPTIONS", "HEAD"])
@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/feedback", "/admin/strategy", "/dashboard/data", "/metrics", "/nowhere"]
)
def test_a_page_of_a_stranger_reaches_nothing_and_nothing_is_asked(served, method, path):
    service, stub = served
    before = len(stub.requests)
    for headers, host in (
        (("Origin: https://evil.example",), "localhost"),
        (("Origin: null",), "localhost"),
        ((), "rebound.example:8080"),
        (("Origin: http://rebound.example:8080",), "rebound.example:8080"),
    ):
        status, head = asked(service, *headers, host=host, method=method, path=path)
        assert status == 403
        assert "access-control-allow-origin" not in head
    assert len(stub.requests) == before


def test_what_a_page_can_send_without_asking_is_refused(served):
    service, stub = served
    before = len(stub.requests)
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/plain;application/json",
    ):
        assert service.request("POST", "/v1/chat/completions", chat("hi"), {"Content-Type": kind})[0] == 415
    headers = {"Sec-Fetch-Site": "cross-site"}
    assert service.request("POST", "/v1/chat/completions", chat("hi"), headers)[0] == 403
    assert len(stub.requests) == before
    assert service.request("POST", "/v1/chat/completions", chat("hi"))[0] == 200


def test_it_is_refused_before_its_body_has_come(served):
    head = post(b"", "Origin: https://evil.example").replace(b"Content-Length: 0", b"Content-Length: 1000000")
    with served[0].connect() as sock, sock.makefile("rb") as file:
        sock.sendall(head + b" " * 1000)
        assert b" 403 " in file.readline()


def test_the_pages_of_an_allowed_origin_can_read_what_they_asked_for(served):
    service, _ = served
    origin = {"Origin": PAGE, "Sec-Fetch-Site": "cross-site"}
    wanted = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, content-type"}
    status, headers, _ = service.request("OPTIONS", "/v1/chat/completions", None, {**origin, **wanted})
    assert (status, headers["access-control-allow-origin"]) == (204, PAGE)
    assert headers["access-control-allow-headers"] == "authorization, content-type"
    for path, body in FORMS.items():
        for stream in (False, True):
            status, headers, _ = service.request("POST", path, {**body, "model": "auto", "stream": stream}, origin)
            assert (status, headers["access-control-allow-origin"]) == (200, PAGE)
    status, headers, _ = service.request("POST", "/v1/chat/completions", {"messages": 1}, origin)
    assert (status, headers["access-control-allow-origin"]) == (400, PAGE)


def test_a_grade_is_for_one_s_own_requests_whichever_worker_is_asked(tmp_path):
    path, secrets = tmp_path / "keys.json", {}
    for name, rights in (("ann", ("feedback",)), ("bob", ("feedback",)), ("mute", ()), ("chief", ("admin",))):
        key, secrets[name] = Key.new(name, rights=rights)
        change_keys(path, lambda known, key=key: known.update({key.id: key}))
    audits = {"WORKFLOW_COMPOSER_AUDITS": str(tmp_path / "audits.jsonl")}

    def grade(service, name, identity):
        headers = {"Authorization": f"Bearer {secrets[name]}"}
        status, _, body = service.request("POST", "/v1/feedback", {"id": identity, "correct": True}, headers)
        return status, json.loads(body).get("error", {}).get("code")

    with echoing() as stub:
        profile = write_profile(tmp_path, "p", stub.url)
        with Service(profile, "--keys", str(path), "--workers", "2", environ=audits) as service:
            made = {}
            for name in ("ann", "bob"):
                headers = {"Authorization": f"Bearer {secrets[name]}"}
                found = service.request("POST", "/v1/chat/completions", chat("hi"), headers)[1]
                made[name] = found["x-workflow-composer-request-id"]
            for _ in range(8):  # connections go to both workers
                assert grade(service, "ann", made["ann"]) == (200, None)
                assert grade(service, "ann", made["bob"]) == (403, "not_own_request")
                assert grade(service, "mute", made["ann"]) == (403, "feedback_not_allowed")
                assert grade(service, "chief", made["bob"]) == (200, None)
            assert set(json.loads(service.request("GET", "/ready")[2])) == {"ready", "draining"}
        with Service(profile, "--keys", str(path), environ=audits) as service:  # and after a restart
            assert grade(service, "bob", made["bob"]) == (200, None)
            assert grade(service, "bob", made["ann"]) == (403, "not_own_request")
    lines = [json.loads(line) for line in (tmp_path / "audits.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [made["ann"], made["bob"]]  # the same again is not written again
    assert all(line["by"] == f"key {line['key']}" for line in lines)
