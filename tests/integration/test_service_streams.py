"""Streams of the service pass proxies piece by piece, in every form of API."""

from __future__ import annotations

import http.client
import json
import queue
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from tests.integration.service import PATIENCE, echoing, serving
from tests.integration.stub_server import MODEL, Reply

QUESTION = [{"role": "user", "content": "one two three"}]
FORMS = {
    "/v1/chat/completions": {"messages": QUESTION},
    "/v1/completions": {"prompt": "one two three"},
    "/v1/responses": {"input": "one two three"},
    "/v1/messages": {"messages": QUESTION, "max_tokens": 9},
}
VOTE = "mv_one_k2_t0.5"
"""Asks twice, so that no server's stream can be handed on; a bare text cannot be voted on."""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streams")
    more = {"tiers": {"one": {"model": "p-0"}}, "routers": ["cascade", "cascading_provider"]}
    with echoing() as stub, serving(folder, stub, **more) as service:
        yield service, stub


@pytest.mark.parametrize(
    ("path", "model"),
    [(path, model) for path in FORMS for model in ("auto", VOTE) if (path, model) != ("/v1/completions", VOTE)],
)
def test_a_stream_tells_proxies_not_to_gather_it(served, path, model):
    """Handed on as it comes (`auto`, in the two forms that servers speak) or written here."""
    service, stub = served
    status, headers, body = service.request("POST", path, {"model": model, "stream": True, **FORMS[path]})
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8"), body
    assert bool(stub.requests[-1].json.get("stream")) == (model == "auto")
    assert b'"id":"' in body or b'"id": "' in body
    assert headers.get_all("cache-control") == ["no-cache"]
    assert headers.get_all("x-accel-buffering") == ["no"]


@pytest.mark.parametrize("path", FORMS)
def test_a_whole_answer_says_nothing_of_that(served, path):
    """It is gathered anyway."""
    _, headers, _ = served[0].request("POST", path, {"model": "auto", **FORMS[path]})
    assert headers["x-accel-buffering"] is None


@contextmanager
def nginx(folder, port):
    """A proxy before a port, with nothing set but where to go; yields the port that it listens at."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        own = free.getsockname()[1]
    bodies = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    site = f"server {{ listen 127.0.0.1:{own}; location / {{ proxy_pass http://127.0.0.1:{port}; }} }}"
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log stderr;\nevents {{}}\nhttp {{ access_log off; {bodies} {site} }}\n"
    )
    process = subprocess.Popen([program(), "-p", str(folder), "-c", str(folder / "nginx.conf")])
    try:
        ends = time.monotonic() + PATIENCE
        while time.monotonic() < ends:
            try:
                socket.create_connection(("127.0.0.1", own)).close()
                break
            except OSError:
                time.sleep(0.02)
        yield own
    finally:
        process.terminate()
        process.wait(PATIENCE)


def program():
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


def framed(event):
    """An event as it is sent."""
    return b"data: " + event + b"\n\n"


class Waiting(BaseHTTPRequestHandler):
    """A model's server whose streams go on only when the client says that it has what came before."""

    protocol_version = "HTTP/1.1"
    words: Sequence[str] = ()
    seen: queue.Queue[str]

    def do_GET(self):
        """Name the model."""
        told = json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    def do_POST(self):
        """Send a word, and wait until the client has got it, before the next."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        first, *events, end, usage = Reply.stream(*self.words).events
        self.wfile.write(framed(first))
        for event, word in zip(events, self.words, strict=True):
            self.wfile.write(framed(event))
            self.wfile.flush()
            if self.seen.get(timeout=PATIENCE) != word:
                return  # without an end: the client sees a stream that broke off
        self.wfile.write(framed(end) + framed(usage) + framed(b"[DONE]"))

    def log_message(self, *_):
        """Say nothing."""


@contextmanager
def waiting(*words):
    """Such a server; yields it, and where to tell what the client has got."""
    handler = type("Handler", (Waiting,), {"words": words, "seen": queue.Queue()})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_address[1]}/v1"), handler.seen
        finally:
            server.shutdown()
            thread.join(PATIENCE)


@pytest.mark.skipif(program() is None, reason="nginx is not installed")
@pytest.mark.parametrize("path", [path for path in FORMS if path != "/v1/completions"])
def test_a_stream_comes_through_nginx_as_it_is_set_by_default_piece_by_piece(tmp_path, path):
    """The model writes a word only once the client has got the one before."""
    words = ["first", "second", "third", "fourth"]
    with waiting(*words) as (server, got), serving(tmp_path, server) as service, nginx(tmp_path, service.port) as port:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        kind = {"Content-Type": "application/json"}
        client.request("POST", path, json.dumps({"model": "auto", "stream": True, **FORMS[path]}), kind)
        reply = client.getresponse()
        assert reply.status == 200
        seen = b""
        for number, word in enumerate(words):
            while word.encode() not in seen:
                piece = reply.read1()
                assert piece, seen
                seen += piece
            assert not any(later.encode() in seen for later in words[number + 1 :])
            got.put(word)
        while piece := reply.read1():
            seen += piece
        assert b"stream_interrupted" not in seen
        client.close()
