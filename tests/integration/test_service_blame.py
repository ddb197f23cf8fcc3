"""What clients do, and what this process lacks, takes a model from nobody: breakers stay closed, nothing falls back."""

from __future__ import annotations

import http.client
import json
import re
import resource
import sys
import threading
import time

import pytest

from tests.integration.service import PATIENCE, Crowd, Service, chat, echo, echoing, serving
from tests.integration.stub_server import Reply, Request, StubServer

TEXT = "hopeless"
FORMS = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": TEXT}]}),
    "completion": ("/v1/completions", {"prompt": TEXT}),
    "responses": ("/v1/responses", {"input": TEXT}),
    "messages": ("/v1/messages", {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 9}),
}
ROUTERS = ["cascade", "cascading_provider"]


def role_of(*stubs: StubServer) -> dict:
    """A profile's role with these servers; the first model of the profile is its fallback."""
    where = [stub.url for stub in stubs]
    endpoints = {"coder": where[0] if len(where) == 1 else where}
    return {"vllm_endpoints": endpoints, "fallback": ["p-0"], "task_routing": {"*": "coder"}, "routers": ROUTERS}


def assert_nobody_is_kept_away(service: Service, fallback: StubServer) -> None:
    """The model answers the next requests itself; no other one has been asked for anything."""
    answers = [service.ask("hello") for _ in range(3)]
    assert [status for status, _, _ in answers] == [200] * 3
    assert {headers["x-workflow-composer-fallback-depth"] for _, headers, _ in answers} == {"0"}
    assert [request for request in fallback.requests if request.method == "POST"] == []
    states = re.findall(r"breaker_state\{[^}]*\} (\S+)", service.request("GET", "/metrics")[2].decode())
    assert states
    assert set(states) == {"0.0"}


def endless(request: Request) -> Reply:
    """A stream that goes on and on for whoever is hopeless; an echo for the others."""
    if TEXT.encode() not in request.body:
        return echo(request)
    if request.path.endswith("/v1/completions"):
        event = json.dumps({"model": "m", "choices": [{"index": 0, "text": "more ", "finish_reason": None}]}).encode()
        return Reply(events=(event,) * 2000, gap=0.02)
    return Reply.stream(*["more "] * 2000, gap=0.02)


@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_answers_too_long_for_the_profiles_limit_are_not_the_servers_fault(tmp_path, form, servers):
    """Tokens came until the end, relayed or translated: it is the request that asks for too much."""
    path, body = FORMS[form]
    with StubServer() as one, StubServer() as two, echoing() as fallback:
        one.answer = two.answer = endless
        limits = {"connect": 5.0, "first_token": 2.0, "total": 2.5}
        with serving(tmp_path, fallback, timeouts=limits, **role_of(*(one, two)[:servers])) as service:

            def ask() -> None:
                headers = {"Content-Type": "application/json"}
                service.request("POST", path, {**body, "model": "auto", "stream": True}, headers)

            asking = [threading.Thread(target=ask) for _ in range(7)]
            for thread in asking:
                thread.start()
            for thread in asking:
                thread.join(PATIENCE)
            assert_nobody_is_kept_away(service, fallback)


@pytest.mark.parametrize("form", ["chat", "messages"])
def test_readers_too_slow_for_the_profiles_limit_are_not_the_servers_fault(tmp_path, form):
    """Clients that ask for a long stream and do not take it, relayed or translated."""
    path, body = FORMS[form]
    much = Reply.stream(*["x" * 60_000] * 400)

    def long(request: Request) -> Reply:
        return much if TEXT.encode() in request.body else echo(request)

    with StubServer() as stub, echoing() as fallback:
        stub.answer = long
        limits = {"connect": 5.0, "first_token": 3.0, "total": 3.0}
        with serving(tmp_path, fallback, timeouts=limits, **role_of(stub)) as service:
            clients = [http.client.HTTPConnection(service.host, service.port, timeout=PATIENCE) for _ in range(7)]
            for client in clients:
                data = json.dumps({**body, "model": "auto", "stream": True})
                client.request("POST", path, data, {"Content-Type": "application/json"})
            time.sleep(limits["total"] + 0.5)  # what it is about: nobody reads until the limit has passed
            for client in clients:
                assert client.getresponse().read()
                client.close()
            assert_nobody_is_kept_away(service, fallback)


def test_fifty_impatient_requests_harm_no_request_beside_them(tmp_path):
    """Limits of 5 ms, in all forms, streamed and whole, against eight clients that ask without a pause."""
    with echoing() as stub, echoing() as fallback, serving(tmp_path, fallback, **role_of(stub)) as service:

        def impatient(number: int) -> None:
            path, body = list(FORMS.values())[number % len(FORMS)]
            headers = {"Content-Type": "application/json", "x-workflow-composer-timeout": "0.005"}
            model = "mv_coder_k3_t0.5" if number % 5 == 0 and "completions" not in path else "auto"
            service.request("POST", path, {**body, "model": model, "stream": number % 2 == 0}, headers)

        with Crowd(service) as crowd:
            asking = [threading.Thread(target=impatient, args=(number,)) for number in range(50)]
            for thread in asking:
                thread.start()
            for thread in asking:
                thread.join(PATIENCE)
        assert crowd.answers
        assert [answer for answer in crowd.answers if answer.lost] == []
        assert_nobody_is_kept_away(service, fallback)


@pytest.mark.skipif(sys.platform != "linux", reason="sets another process's limit")
def test_without_descriptors_nothing_is_held_against_a_server_and_nothing_falls_back(tmp_path):
    """503 with a code of its own; as soon as there are descriptors again, the same model answers."""

    def closing(request: Request) -> Reply:
        found = echo(request)
        return Reply(body=found.body, headers={"Connection": "close"})

    with StubServer() as stub, echoing() as fallback:
        stub.answer = closing
        more = {"retries": {"attempts": 2, "base_delay": 0.001, "max_delay": 0.001}}
        with serving(tmp_path, fallback, **role_of(stub), **more) as service:
            client = http.client.HTTPConnection(service.host, service.port, timeout=PATIENCE)

            def asked() -> tuple[int, dict]:
                client.request(
                    "POST", "/v1/chat/completions", json.dumps(chat("hello")), {"Content-Type": "application/json"}
                )
                reply = client.getresponse()
                return reply.status, json.loads(reply.read())

            assert asked()[0] == 200
            pid = service.process.pid
            usual = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, usual[1]))  # what is open stays open
            refused = [asked() for _ in range(8)]
            resource.prlimit(pid, resource.RLIMIT_NOFILE, usual)
            assert {(status, said["error"]["code"]) for status, said in refused} == {(503, "overloaded")}
            assert asked()[0] == 200
            client.close()
            assert_nobody_is_kept_away(service, fallback)


def test_metrics_say_whose_fault_a_failed_request_is(tmp_path):
    """In the line of a request and in the counters, for each of the three."""

    def failing(request: Request) -> Reply:
        said = request.json["messages"][-1]["content"]
        replies = {"server": Reply.error(500), "caller": Reply.error(400, "no"), "ours": Reply.error(401)}
        return replies.get(said) or echo(request)

    with StubServer() as stub:
        stub.answer = failing
        with serving(tmp_path, stub) as service:
            for fault in ("server", "caller", "ours"):
                assert service.ask(fault)[0] >= 400
            assert service.ask("hello")[0] == 200
            page = service.request("GET", "/metrics")[2].decode()
    assert set(re.findall(r'errors_by_fault_total\{fault="(\w+)"\} 1.0', page)) == {"server", "caller", "ours"}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("fault") for line in lines] == ["server", "caller", "ours", None]
