"""HTTP that is not as it should be, by hand: refused with the right status, and no other request is disturbed.

While every test runs, other clients ask the same service without a pause, each with a text of its own, and every answer must
be the asker's.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator

import pytest

from tests.integration.service import Service, chat, echoing, post, said, serving, streamed
from tests.integration.stub_server import StubServer

GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
SMUGGLED = post(chat("smuggled"))
BODY = json.dumps(chat("a question")).encode()
LENGTH = f"Content-Length: {len(BODY)}"
CHUNKED = "Transfer-Encoding: chunked"
UPGRADE = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")


class Bystanders:
    """Clients that do nothing wrong; ``faults`` says what went wrong for them."""

    def __init__(self, service: Service, count: int = 4) -> None:
        self.answers = 0
        self.faults: list[str] = []
        self._service = service
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(count)]

    def __enter__(self) -> Bystanders:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(20)

    def _ask(self, number: int) -> None:
        turn = 0
        while not self._over.is_set():
            turn += 1
            mark = f"the mark of client {number} in turn {turn}"
            try:
                status, _, body = self._service.ask(mark, stream=bool(turn % 2))
                text = streamed(body)[0] if turn % 2 else said(body)
                if (status, text) != (200, mark):
                    self.faults.append(f"{mark}: {status} {text}")
            except Exception as error:
                self.faults.append(f"{mark}: {error!r}")
            self.answers += 1
            self._over.wait(0.005)


@pytest.fixture(scope="module")
def stub() -> Iterator[StubServer]:
    with echoing() as server:
        yield server


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, stub: StubServer) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("malformed"), stub) as found:
        found.ask("warm")
        yield found


@pytest.fixture(autouse=True)
def bystanders(service: Service) -> Iterator[Bystanders]:
    with Bystanders(service) as others:
        yield others
    assert others.faults == []
    assert others.answers > 0


def request(*headers: str, body: bytes = b"", line: str = "POST /v1/chat/completions HTTP/1.1") -> bytes:
    return (
        "\r\n".join([line, "Host: localhost", "Content-Type: application/json", *headers, "", ""]).encode("latin-1") + body
    )


def chunks(body: bytes, size: int = 7) -> bytes:
    pieces = (body[at : at + size] for at in range(0, len(body), size))
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


def talk(service: Service, data: bytes) -> bytes:
    """Send, and return what comes until the service closes. A reset is a failure: it could swallow the answer."""
    with service.connect() as sock:
        sender = threading.Thread(target=sock.sendall, args=(data,))
        sender.start()
        found = b""
        while piece := sock.recv(65536):
            found += piece
        sender.join(60)
    return found


def statuses(answer: bytes) -> list[int]:
    return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


REFUSED = {
    "a header of 1 MB": (request("X: " + "a" * 1_000_000), 431),
    "5000 headers": (request(*[f"X{number}: 1" for number in range(5000)]), 431),
    "a target of 1 MB": (request(line="GET /" + "a" * 1_000_000 + " HTTP/1.1"), 414),
    "a header without a colon": (request("nonsense"), 400),
    "a header without a name": (request(": a"), 400),
    "a space in front of the colon": (request("Content-Length : 3", body=b"abc"), 400),
    "a folded header": (request("X: a\r\n b"), 400),
    "a folded header with a tab": (request("X: a\r\n\tb"), 400),
    "a space in front of the first header": (b"GET /health HTTP/1.1\r\n Host: localhost\r\n\r\n", 400),
    "bare line feeds": (b"GET /health HTTP/1.1\nHost: localhost\n\n", 400),
    "one bare line feed": (b"GET /health HTTP/1.1\r\nHost: localhost\nX: 1\r\n\r\n", 400),
    "a bare carriage return": (b"GET /health HTTP/1.1\r\nHost: localhost\rX: 1\r\n\r\n", 400),
    "a null byte in a header": (request("X: a\0b"), 400),
    "a null byte in a header's name": (request("X\0: a"), 400),
    "a null byte in the path": (request(line="GET /hea\0lth HTTP/1.1"), 400),
    "an escaped null byte in the path": (request(line="GET /hea%00lth HTTP/1.1"), 400),
    "bytes in the path that are no text": (request(line="GET /h\xff HTTP/1.1"), 400),
    "escaped bytes in the path that are no text": (request(line="GET /h%ff HTTP/1.1"), 400),
    "a space in the path": (request(line="GET /a b HTTP/1.1"), 400),
    "a method that is no word": (request(line="G@T /health HTTP/1.1"), 400),
    "a method in small letters": (request(line="get /health HTTP/1.1"), 400),
    "HTTP/0.9": (b"GET /health\r\n\r\n", 505),
    "HTTP/2 by its name": (request(line="GET /health HTTP/2.0"), 505),
    "HTTP/2's preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300), 400),
    "CONNECT": (b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n", 501),
    "CONNECT to a path": (request(line="CONNECT /health HTTP/1.1"), 501),
    "CONNECT with a body": (request(LENGTH, line="CONNECT example.com:443 HTTP/1.1", body=BODY), 501),
    "an absolute target of another scheme": (request(line="GET ftp://h/health HTTP/1.1"), 400),
    "a target that is only an authority": (request(line="GET h:80 HTTP/1.1"), 400),
    "no host": (b"GET /health HTTP/1.1\r\n\r\n", 400),
    "no host, but an upgrade": (b"GET /health HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 400),
    "two hosts": (request("Host: i"), 400),
    "two authorizations": (request("Authorization: Bearer a", "Authorization: Bearer b"), 400),
    "two lengths": (request("Content-Length: 3", "Content-Length: 4", body=b"abcd"), 400),
    "the same length twice": (request(LENGTH, LENGTH, body=BODY), 400),
    "a list of lengths": (request("Content-Length: 3, 3", body=b"abc"), 400),
    "a length with a sign": (request("Content-Length: +3", body=b"abc"), 400),
    "a length below zero": (request("Content-Length: -3", body=b"abc"), 400),
    "a length in two parts": (request("Content-Length: 3 4", body=b"abc"), 400),
    "a length beyond all numbers": (request("Content-Length: 99999999999999999999999"), 400),
    "a length beyond the limit": (request("Content-Length: 40000000", body=b"x" * 4_000_000), 413),
    "a length, then chunks": (request("Content-Length: 3", CHUNKED, body=b"0\r\n\r\n"), 400),
    "chunks, then a length": (request(CHUNKED, "Content-Length: 3", body=b"0\r\n\r\n"), 400),
    "chunks twice": (request(CHUNKED, CHUNKED, body=b"0\r\n\r\n"), 400),
    "chunks, then gzip": (request("Transfer-Encoding: chunked, gzip", body=b"0\r\n\r\n"), 400),
    "gzip, then chunks": (request("Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"), 501),
    "chunks by another name": (request("Transfer-Encoding: xchunked", body=b"0\r\n\r\n"), 501),
    "chunks behind a comma": (request("Transfer-Encoding: , chunked", body=b"0\r\n\r\n"), 501),
    "chunks behind a tab": (request("Transfer-Encoding:\tchunked \t", body=b"0\r\n\r\n"), 400),
    "chunks behind a vertical tab": (request("Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n"), 400),
    "the identity coding and a length": (request("Transfer-Encoding: identity", LENGTH, body=BODY), 400),
    "the identity coding": (request("Transfer-Encoding: identity", body=BODY), 501),
    "an empty coding and a length": (request("Transfer-Encoding: ", LENGTH, body=BODY), 400),
    "chunks in HTTP/1.0": (request(CHUNKED, line="POST /v1/chat/completions HTTP/1.0", body=b"0\r\n\r\n"), 501),
    "a size that is no number": (request(CHUNKED, body=b"zz\r\nabc\r\n0\r\n\r\n"), 400),
    "a size below zero": (request(CHUNKED, body=b"-1\r\nabc\r\n0\r\n\r\n"), 400),
    "a size with a prefix": (request(CHUNKED, body=b"0x3\r\nabc\r\n0\r\n\r\n"), 400),
    "a size beyond all numbers": (request(CHUNKED, body=b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n"), 400),
    "a chunk longer than its size": (request(CHUNKED, body=b"3\r\nabcX0\r\n\r\n"), 400),
    "chunks with bare line feeds": (request(CHUNKED, body=b"3\nabc\n0\n\n"), 400),
    "a line feed in a chunk's extension": (request(CHUNKED, body=b"3;a\nb\r\nabc\r\n0\r\n\r\n"), 400),
    "a chunk's extension of 1 MB": (request(CHUNKED, body=b"3;" + b"a" * 1_000_000), 431),
    "a trailer of 1 MB": (request(CHUNKED, body=b"0\r\nx: " + b"a" * 1_000_000), 431),
    "a trailer with a length": (request(CHUNKED, body=chunks(BODY) + b"0\r\nContent-Length: 5\r\n\r\n"), 400),
    "an expectation that nobody knows": (request("Expect: a-miracle", LENGTH, body=BODY), 417),
}


@pytest.mark.parametrize(("data", "status"), REFUSED.values(), ids=REFUSED)
def test_what_is_in_doubt_is_refused_and_nothing_behind_it_is_read(service, stub, data, status):
    """The connection is closed, and the answer can be read in full, whatever was still being sent."""
    answer = talk(service, data + SMUGGLED + GET)
    assert statuses(answer) == [status]
    assert b"connection: close" in answer
    assert "smuggled" not in asked(stub)


WELL_FORMED = {
    "chunks": (request(CHUNKED, body=chunks(BODY) + b"0\r\n\r\n"), 200),
    "chunks, oddly written": (request("tRANSFER-encoding: cHUNKED", body=chunks(BODY) + b"000\r\n\r\n"), 200),
    "chunks with extensions": (
        request(CHUNKED, body=b'%x;a=b;c="d;e"\r\n%b\r\n0;x\r\n\r\n' % (len(BODY), BODY)),
        200,
    ),
    "a trailer": (request(CHUNKED, body=chunks(BODY) + b"0\r\nHost: other\r\nX-Api-Key: k\r\n\r\n"), 200),
    "an upgrade": (request(*UPGRADE, line="GET /health HTTP/1.1"), 200),
    "an upgrade with a body": (request(*UPGRADE, LENGTH, body=BODY), 200),
    "an upgrade with chunks": (request(*UPGRADE, CHUNKED, body=chunks(BODY) + b"0\r\n\r\n"), 200),
    "an upgrade whose body is a request": (request(*UPGRADE, f"Content-Length: {len(SMUGGLED)}", body=SMUGGLED), 400),
    "a GET whose body is a request": (
        request(f"Content-Length: {len(SMUGGLED)}", body=SMUGGLED, line="GET /health HTTP/1.1"),
        200,
    ),
    "an absolute target": (request(line="GET http://elsewhere/health HTTP/1.1"), 200),
    "empty lines in front": (b"\r\n\r\n" + GET, 200),
    "an unknown path": (request(line="GET /h%c3%a9%0d%0aX:1 HTTP/1.1"), 404),
    "an escape that is none": (request(line="GET /h%f HTTP/1.1"), 404),
    "a method that the path has not": (request(line="PROPFIND /health HTTP/1.1"), 405),
    "TRACE": (request(line="TRACE /health HTTP/1.1"), 405),
    "a task that is no text": (request("X-Workflow-Composer-Task: \xff\xfe", LENGTH, body=BODY), 200),
    "a key that is no text": (request("Authorization: Bearer \xff\xfe", LENGTH, body=BODY), 200),
    "an operator's token that is no text": (request("Authorization: Bearer \xff", line="GET /admin/strategy HTTP/1.1"), 401),
}


@pytest.mark.parametrize(("data", "status"), WELL_FORMED.values(), ids=WELL_FORMED)
def test_what_is_odd_but_clear_is_answered_and_the_connection_serves_on(service, stub, data, status):
    """Nothing of a body is ever taken for a request: the next answer is the next request's."""
    answer = talk(service, data + LAST)
    assert statuses(answer) == [status, 200]
    assert answer.endswith(b'{"status":"ok"}')
    assert "smuggled" not in asked(stub)


def asked(stub: StubServer) -> set[str]:
    """What the model's server was asked so far."""
    return {found.json["messages"][-1]["content"] for found in list(stub.requests) if found.method == "POST"}


def test_a_bad_request_among_pipelined_ones_ends_the_connection_behind_its_own_answer(service, stub):
    good = b"".join(post(chat(f"pipelined {number}")) for number in range(20))
    answer = talk(service, good + request("nonsense") + post(chat("behind the bad one")) + SMUGGLED)
    assert statuses(answer) == [200] * 20 + [400]
    assert re.findall(rb'"content": "pipelined (\d+)"', answer) == [b"%d" % number for number in range(20)]
    assert not {"smuggled", "behind the bad one"} & asked(stub)


@pytest.mark.parametrize("cut", [1, 20, 60, 150, len(post(BODY)) - 1])
def test_a_client_that_leaves_within_its_request_leaves_nothing_behind(service, stub, cut):
    """Half a request is none, and is not completed by the next connection's bytes."""
    data = post(BODY.replace(b"a question", b"never whole"))
    for _ in range(20):
        with service.connect() as sock:
            sock.sendall(data[:cut])
    assert statuses(talk(service, LAST)) == [200]
    assert "never whole" not in asked(stub)


def test_requests_that_come_a_byte_at_a_time_are_answered_each_with_its_own(service):
    """Forty at once, their bytes interleaved, so that every parser is left in mid-word again and again."""
    requests = [post(chat(f"slow mark {number}"), "Connection: close") for number in range(40)]
    sockets = [service.connect() for _ in requests]
    for at in range(max(map(len, requests))):
        for sock, data in zip(sockets, requests, strict=True):
            if at < len(data):
                sock.sendall(data[at : at + 1])
    for number, sock in enumerate(sockets):
        with sock, sock.makefile("rb") as file:
            answer = file.read()
        assert statuses(answer) == [200]
        assert f'"slow mark {number}"'.encode() in answer


@pytest.mark.slow
def test_what_never_comes_to_its_end_is_timed_out(service):
    """A head has ten seconds and a body thirty, however steadily single bytes come."""
    cases = {
        b"GET /health HTTP/1.1\r\nX: ": (10, b"a"),
        b"GET /hea": (10, b""),
        b"\r\n": (10, b"\r\n"),
        request("Content-Length: 999"): (30, b" "),
        request(CHUNKED): (30, b"1\r\n \r\n"),
        request(CHUNKED, body=b"1;"): (30, b"a"),
        request(CHUNKED, body=b"0\r\nx: "): (30, b"a"),
    }
    sockets = {head: service.connect() for head in cases}
    began, waiting, took = time.monotonic(), set(cases), {}
    for head, sock in sockets.items():
        sock.sendall(head)
        sock.setblocking(False)
    while waiting and time.monotonic() < began + 45:
        time.sleep(0.2)
        for head in list(waiting):
            try:
                answer = sockets[head].recv(65536)
            except BlockingIOError:
                sockets[head].send(cases[head][1])
                continue
            took[head] = time.monotonic() - began
            assert statuses(answer) == [408]
            waiting.discard(head)
    for sock in sockets.values():
        sock.close()
    assert not waiting
    assert {head: 0 < seconds - cases[head][0] + 1 < 10 for head, seconds in took.items()} == dict.fromkeys(cases, True)
