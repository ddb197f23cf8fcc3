"""JSON that is not as it should be, and requests made to cost more than they are worth."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.integration.service import Service, chat, echoing, post, said, serving, write_profile
from workflow_composer.server.auth.keys import Key, change_keys

PATHS = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}]},
    "/v1/completions": {"prompt": "hello"},
    "/v1/responses": {"input": "hello"},
    "/v1/messages": {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 9},
    "/v1/embeddings": {"input": "hello"},
    "/v1/feedback": {"id": "req-1", "correct": True},
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with echoing() as stub, serving(tmp_path_factory.mktemp("bodies"), stub) as found:
        found.ask("warm")
        yield found


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"null",
        b"[]",
        b"{",
        b'{"model": "\xff"}',
        b'{"model": "\xed\xa0\x80"}',  # a surrogate, as UTF-8 must not write it
        b"\xff\xfe{\x00}\x00",  # UTF-16
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"temperature": NaN}',
        b'{"temperature": -Infinity}',
        b'{"temperature": 1e999}',
        b'{"seed": ' + b"9" * 100_000 + b"}",
        b'{"model": "\\ud800"}',
        b'{"\\udc00": 1}',
        b"{'model': 'auto'}",
        b'{"model": "auto",}',
        b'{"model": "a\nb"}',
    ],
    ids=lambda body: repr(body[:24]),
)
def test_what_is_no_json_object_is_refused(service, path, body):
    status, _, found = service.request("POST", path, body)
    assert status == 400
    assert json.loads(found)["error"]["message"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("value", [b"9" * 400, b"-" + b"9" * 400, b"1e30", b"-0.0", b"{}", b"[[]]", b'"\\u0000"', b"true"])
def test_an_extreme_value_of_any_field_is_a_refusal_or_an_answer_and_never_a_fault(service, path, value):
    names = (
        "temperature",
        "top_p",
        "max_tokens",
        "n",
        "seed",
        "stop",
        "stream",
        "logprobs",
        "top_logprobs",
        "tools",
        "metadata",
    )
    more = (
        "messages",
        "input",
        "prompt",
        "system",
        "model",
        "dimensions",
        "max_output_tokens",
        "stop_sequences",
        "id",
        "correct",
    )
    for name in (*names, *more, "tool_choice", "response_format", "stream_options", "instructions", "reasoning", "thinking"):
        body = json.dumps({key: held for key, held in PATHS[path].items() if key != name}).encode()
        status, _, found = service.request("POST", path, body[:-1] + b', "%b": %b}' % (name.encode(), value))
        assert status < 500, (name, status, found)


@pytest.mark.parametrize("path", PATHS)
def test_nesting_is_an_answer_or_a_refusal_at_every_depth(service, path):
    """Between what can be read and what can be written again there is no gap to fall into."""
    inner = PATHS[path]
    for depth in (50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 950, 980, 1000, 1100, 5000):
        for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
            deep = opening * depth + b"1" + closing * depth
            for name in (b"anything", b"metadata", b"tools", b"response_format", b"messages", b"input"):
                body = json.dumps({key: held for key, held in inner.items() if key.encode() != name}).encode()
                status, _, found = service.request("POST", path, body[:-1] + b', "%b": %b}' % (name, deep))
                assert status < 500, (name, depth, status, found)


def test_of_a_key_that_stands_twice_the_last_is_meant_here_and_by_the_model(service):
    status, _, found = service.request(
        "POST",
        "/v1/chat/completions",
        b'{"messages": [{"role": "user", "content": "first"}], "messages": [{"role": "user", "content": "last"}]}',
    )
    assert (status, said(found)) == (200, "last")


def test_every_character_arrives_as_it_was_sent(service):
    text = "".join(map(chr, (*range(0x800), 0xFFFD, 0xFFFF, 0x1F600, 0x10FFFF)))
    assert said(service.ask(text)[2]) == text


def test_a_key_in_a_trailer_is_none(tmp_path):
    key, secret = Key.new("alice")
    keys = tmp_path / "keys.json"
    change_keys(keys, lambda known: known.update({key.id: key}))
    body = json.dumps(chat("hello")).encode()
    chunked = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n%bTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    )
    end = b"%x\r\n%b\r\n0\r\n%b\r\n"
    shown = b"Authorization: Bearer %b\r\n" % secret.encode()
    with echoing() as stub, Service(write_profile(tmp_path, "p", stub.url), "--keys", str(keys)) as service:

        def status(head: bytes, trailer: bytes) -> int:
            with service.connect() as sock, sock.makefile("rb") as file:
                sock.sendall(chunked % head + end % (len(body), body, trailer))
                return int(file.read().split()[1])

        assert status(shown, b"") == 200
        assert status(b"", shown) == 401
        assert status(shown, b"Authorization: Bearer other\r\n") == 200


# ------------------------------------------------------------------------------------------------- costly requests


def test_a_body_in_pieces_of_two_bytes_takes_no_more_memory_than_its_size(service):
    text = "x" * 2_000_000
    body = json.dumps(chat(text)).encode()
    pieces = b"".join(b"2\r\n%b\r\n" % body[at : at + 2] for at in range(0, len(body) - len(body) % 2, 2))
    rest = b"%b0\r\n\r\n" % (b"1\r\n%b\r\n" % body[-1:] if len(body) % 2 else b"")
    before = service.resident()
    with service.connect() as sock, sock.makefile("rb") as file:
        sock.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        )
        sock.sendall(pieces[:-1])
        assert service.request("GET", "/health")[0] == 200  # which comes behind what was sent before
        grown = service.resident() - before
        sock.sendall(pieces[-1:] + rest)
        assert b"200 OK" in file.readline()
        file.read()
    assert grown < 24 * 2**20


def test_answers_that_nobody_reads_do_not_pile_up(service):
    """Twenty thousand requests on one connection whose answers are not read are held back, not answered into memory."""
    before = service.resident()
    with service.connect() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(1.0)
        with pytest.raises(TimeoutError):
            sock.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200_000)
        assert service.resident() - before < 24 * 2**20
        assert service.request("GET", "/health")[0] == 200


HALF = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Le"


def test_a_thousand_idle_connections_keep_nobody_out(service):
    sockets = [service.connect() for _ in range(900)]
    try:
        for sock in sockets[::2]:
            sock.sendall(HALF)
        threads_answers: list[int] = []
        threads = [threading.Thread(target=lambda: threads_answers.append(service.ask("hi")[0])) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert threads_answers == [200] * 16
        rest = post(chat("late"))
        sockets[0].sendall(b"ngth: %d\r\n\r\n" % len(rest[rest.index(b"{") :]) + rest[rest.index(b"{") :])
        assert b"200 OK" in sockets[0].recv(65536)
    finally:
        for sock in sockets:
            sock.close()
