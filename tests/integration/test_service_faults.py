"""Models' servers that fail, in every way they can: how many requests are lost, and what the client is told."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.integration.service import Answer, Crowd, ask, chat, echo, echoing, post, serving, streamed
from tests.integration.stub_server import Reply, Request, StubServer

QUICK = {"connect": 2.0, "first_token": 2.0, "total": 4.0}
ROLE = Reply.stream().events[:1]

Fault = Callable[[Request], Reply]


def always(whole: Reply, stream: Reply | None = None) -> Fault:
    """This answer to whoever asks for a whole one, that to whoever asks for a stream."""
    return lambda request: stream if stream is not None and request.json.get("stream") else whole


def cut(request: Request) -> Reply:
    """Die in mid-body, or before the first token."""
    return replace(echo(request), die_after=1)


FAULTS: dict[str, tuple[Fault, set[int]]] = {
    "answers 500": (always(Reply.error(500)), {502, 503}),
    "answers 503": (always(Reply.error(503, headers={"Retry-After": "1"})), {502, 503}),
    "answers 429": (always(Reply.error(429, headers={"Retry-After": "7"})), {429}),
    "answers 401": (always(Reply.error(401)), {502, 503}),
    "answers 500 with a page": (always(Reply(500, b"<html>no</html>", headers={"Content-Type": "text/html"})), {502, 503}),
    "dies within the answer": (cut, {502, 503}),
    "is not there any more": (always(Reply(die_after=0)), {502, 503}),
    "hangs": (always(Reply(hang=True)), {504}),
    "answers too late": (always(Reply.chat("late", delay=6.0), Reply.stream("late", first=6.0)), {504}),
    "answers garbage": (always(Reply(body=bytes(range(256)))), {502, 503}),
    "answers half of the JSON": (always(Reply(body=Reply.chat("whole").body[:60])), {502, 503}),
    "answers another JSON": (always(Reply.of(["no", "object"])), {502, 503}),
    "answers without a choice": (always(Reply.of({"choices": []}), Reply(events=())), {502, 503}),
    "answers an error under 200": (
        always(Reply.of({"error": {"message": "no"}})),
        {502, 503},
    ),
    "streams nothing": (always(Reply(body=b""), Reply(events=(), done=False)), {502, 503}),
    "streams only the role": (always(Reply(body=b""), Reply(events=ROLE, done=False)), {502, 503}),
    "streams garbage": (always(Reply(body=b"\0"), Reply(events=(b"{no json", b"\xff"))), {502, 503}),
    "streams an error": (
        always(Reply.error(500), Reply(events=(b'{"error": {"message": "out of memory", "code": 500}}',))),
        {502, 503},
    ),
}


@pytest.mark.parametrize("name", [name for name in FAULTS if name != "answers 401"])  # which the operator must mend
def test_no_request_is_lost_where_another_model_can_answer(tmp_path, name):
    """32 requests, whole and streamed; the client notices nothing but a header."""
    with StubServer() as bad, echoing() as good:
        bad.answer = FAULTS[name][0]
        with serving(tmp_path, bad, good, timeouts=QUICK) as service, Crowd(service, 8, each=4) as crowd:
            pass
    assert len(crowd.answers) == 32
    assert crowd.lost == []
    assert {answer.headers["x-workflow-composer-model"] for answer in crowd.answers} == {"p-1"}


@pytest.mark.parametrize(("fault", "statuses"), FAULTS.values(), ids=FAULTS)
def test_where_no_other_model_is_there_the_client_is_told_in_its_own_terms(tmp_path, fault, statuses):
    """Never 200, never 500, and within the time that the profile allows; whoever may try again is told when."""
    with StubServer() as bad:
        bad.answer = fault
        with serving(tmp_path, bad, timeouts=QUICK) as service:
            found = [ask(service, "lost", stream=stream) for stream in (False, True)]
    for answer in found:
        assert answer.status in statuses, answer
        assert answer.errors[0]["message"]
        assert answer.errors[0]["type"]
        assert answer.seconds < QUICK["total"] + 20  # without the profile's limits: 60 for a stream, 300 for a whole answer
        if answer.status in {429, 503}:
            assert 1 <= int(answer.headers["retry-after"]) <= 7


def test_a_server_that_is_killed_under_load_loses_nothing_that_had_not_begun(tmp_path):
    """Streams that had begun end with an error event; every other request is answered by the next model."""
    with echoing() as first, echoing() as second, serving(tmp_path, first, second) as service, Crowd(service, 12) as crowd:
        crowd.wait_for(100)
        first.close()
        crowd.wait_for(len(crowd.answers) + 200)
    for answer in crowd.lost:
        assert (answer.status, answer.errors[0]["code"]) == (200, "stream_interrupted")
    assert len(crowd.lost) <= 12
    assert not any(answer.lost for answer in crowd.answers[-150:])


def test_a_server_that_is_frozen_under_load_loses_nothing_that_had_not_begun(tmp_path):
    with echoing() as first, echoing() as second, serving(tmp_path, first, second, timeouts=QUICK) as service:
        with Crowd(service, 12) as crowd:
            crowd.wait_for(100)
            first.freeze()
            crowd.wait_for(len(crowd.answers) + 200)
        for answer in crowd.lost:
            assert (answer.status, answer.errors[0]["code"]) == (200, "stream_interrupted")
        assert len(crowd.lost) <= 12
        first.thaw()


@pytest.mark.parametrize("fault", ["reset", "hung", "error"])
def test_a_stream_that_breaks_ends_with_a_typed_error_and_nothing_is_sent_twice(tmp_path, fault):
    """What was delivered stands, the second model is not asked, and the connection serves on."""
    whole = Reply.stream("one ", "two ", "three")
    broken = {
        "reset": replace(whole, die_after=3),
        "hung": replace(whole, events=(*whole.events[:3], *[b'{"choices": []}'] * 12), gap=0.5),
        "error": replace(whole, events=(*whole.events[:3], b'{"error": {"message": "out of memory", "code": 500}}')),
    }[fault]
    with echoing() as first, echoing() as second, serving(tmp_path, first, second, timeouts=QUICK) as service:
        ask(service, "warm")
        first.script(broken)
        with service.connect() as sock, sock.makefile("rb") as file:
            sock.sendall(post(chat("anything", stream=True)) + post(chat("behind it"), "Connection: close"))
            answer = file.read()
        assert second.requests == []
    stream, _, behind = answer.partition(b"HTTP/1.1 200 OK")[2].partition(b"HTTP/1.1 200 OK")
    body = unchunked(stream.partition(b"\r\n\r\n")[2])
    text, errors = streamed(body)
    assert text == "one two "
    assert [error["code"] for error in errors] == ["stream_interrupted"]
    assert body.count(b"data: [DONE]") == 0
    assert body.rstrip().rpartition(b"\n\n")[2].startswith(b'data: {"error"')
    assert b"behind it" in behind


def unchunked(data: bytes) -> bytes:
    """The body of a chunked answer, which must come to its end."""
    found, at = [], 0
    while True:
        end = data.index(b"\r\n", at)
        length = int(data[at:end], 16)
        if not length:
            return b"".join(found)
        found.append(data[end + 2 : end + 2 + length])
        at = end + 2 + length + 2


@pytest.mark.parametrize("host", ["no-such-host.invalid", "x" * 63 + ".invalid"])
def test_a_server_whose_name_has_no_address_loses_nothing(tmp_path, host):
    models = {"p-0": {"backend": "vllm", "base_url": f"http://{host}:8000/v1"}}
    with echoing() as good:
        models["p-1"] = {"backend": "vllm", "base_url": good.url}
        with serving(tmp_path, good, good, models=models) as service, Crowd(service, 8, each=4) as crowd:
            pass
    assert crowd.lost == []


def test_a_port_where_nobody_listens_and_one_where_nobody_accepts_lose_nothing(tmp_path):
    with socket.socket() as deaf, socket.create_server(("127.0.0.1", 0), backlog=0) as silent, echoing() as good:
        deaf.bind(("127.0.0.1", 0))  # held, so that nobody else gets it, and without listening
        filling = [socket.socket() for _ in range(4)]
        for sock in filling:
            sock.setblocking(False)
            sock.connect_ex(silent.getsockname())
        urls = [*(f"http://127.0.0.1:{one.getsockname()[1]}/v1" for one in (deaf, silent)), good.url]
        models = {f"p-{number}": {"backend": "vllm", "base_url": url} for number, url in enumerate(urls)}
        with (
            serving(tmp_path, good, good, good, models=models, timeouts=QUICK) as service,
            Crowd(service, 8, each=2) as crowd,
        ):
            pass
        for sock in filling:
            sock.close()
    assert crowd.lost == []


def test_a_kept_connection_that_the_server_has_closed_is_no_loss(tmp_path):
    """Servers close idle connections when they like, also in the moment in which the next request is sent."""
    with echoing() as stub:
        stub.answer = lambda request: replace(echo(request), headers={"Connection": "close"})

        def closing(request: Request) -> Reply:
            reply = echo(request)
            return replace(reply, die_after=len(reply.events) + 1) if reply.events is not None else reply

        with serving(tmp_path, stub) as service, Crowd(service, 8, each=10) as crowd:
            stub.answer = closing
    assert crowd.lost == []


def test_a_client_that_leaves_ends_the_work_at_the_model(tmp_path):
    """Whole answers and streams, before the first token and within the answer."""
    hanging = Reply(hang=True)
    slow = Reply.stream(*["word "] * 1000, gap=0.05)
    with echoing() as stub, serving(tmp_path, stub) as service:
        ask(service, "warm")
        for number, (reply, stream) in enumerate([(hanging, False), (hanging, True), (slow, True)]):
            asked = len(stub.requests)
            stub.script(reply)
            with service.connect() as sock:
                sock.sendall(post(chat("unwanted", stream=stream)))
                assert stub.wait_for(lambda found, asked=asked: len(found.requests) > asked)
                if reply is slow:
                    assert b"200 OK" in sock.recv(65536)
            assert stub.wait_for(lambda found, number=number: found.disconnects == number + 1)
        assert not ask(service, "served on").lost
        assert service.gauge("requests_in_flight") == 0


def test_beyond_the_queue_clients_are_told_at_once_when_to_come_back(tmp_path):
    """Two places and two that wait: of twelve requests four are answered and eight refused, before any place is free."""
    with echoing() as stub:
        options = ("--concurrency", "2", "--queue", "2")
        with serving(tmp_path, stub, options=options) as service:
            stub.freeze()
            with Crowd(service, 12, each=1) as crowd:
                crowd.wait_for(8)
                at_once = list(crowd.answers)
                stub.thaw()
    answered = [answer for answer in crowd.answers if answer.status == 200]
    refused = [answer for answer in crowd.answers if answer.status == 429]
    assert (len(answered), len(refused)) == (4, 8)
    assert not any(answer.lost for answer in answered)
    assert at_once == refused
    assert {answer.headers["retry-after"] for answer in refused} == {"1"}


def test_a_client_that_reads_slowly_holds_its_model_back_and_not_the_service_s_memory(tmp_path):
    """A stream of 64 MB to a client that reads nothing: the model's server is held up, and others are served meanwhile."""
    word = "x" * 64_000
    with echoing() as stub, serving(tmp_path, stub) as service:
        ask(service, "warm")
        before = service.resident()
        stub.script(Reply.stream(*[word] * 1000))
        with service.connect() as sock:
            sock.sendall(post(chat("much", stream=True), "Connection: close"))
            ends, most = time.monotonic() + 1.5, 0
            while time.monotonic() < ends:
                answer: Answer = ask(service, "meanwhile")
                assert not answer.lost
                most = max(most, service.resident() - before)
            with sock.makefile("rb") as file:
                text, errors = streamed(unchunked(file.read().partition(b"\r\n\r\n")[2]))
        assert most < 16 * 2**20
        assert (len(text), errors) == (64_000_000, [])
        assert service.resident() - before < 24 * 2**20
