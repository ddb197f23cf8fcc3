"""The service as a real process, over stub servers or any profile, and clients that ask it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from tests.integration.stub_server import Reply, Request, StubServer
from tests.paths import ROOT

ADMIN = "an-operator's-token-of-some-length"
PATIENCE = 20.0
"""Seconds after which a test gives up on what should take less than one."""


def write_profile(folder: Path, name: str, *urls: str, **more: Any) -> Path:
    """A profile over stub servers: the first one answers, the others are its fallbacks, in order."""
    names = [f"{name}-{number}" for number in range(len(urls))]
    profile = {
        "profile_name": name,
        "allow_cloud": False,
        "models": {model: {"backend": "vllm", "base_url": url} for model, url in zip(names, urls, strict=True)},
        "task_routing": {"*": names[0]},
        "fallback": names[1:],
        "routers": ["cascading_provider"],
        "retries": {"attempts": 1},
        **more,
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(profile))  # JSON is YAML, too
    return path


class Service:
    """``serve`` over a profile, from its "serving" line to its end by SIGTERM; a context manager.

    ``strategy`` is a profile's path or name; None: the service finds one. ``folder``, for all that is written, is that of
    the profile unless it is named.
    ``options`` are the command's; ``environ`` is added to an environment that names nothing else of the service's.
    ``stderr`` is a descriptor for what it says, instead of its log's file. ``program`` is the module that runs, and its own
    arguments.
    """

    program: tuple[str, ...] = ("workflow_composer",)

    def __init__(
        self,
        strategy: Path | str | None,
        *options: str,
        folder: Path | None = None,
        environ: Mapping[str, str] | None = None,
        stderr: int | None = None,
    ) -> None:
        folder = folder or Path(strategy or "").parent
        self.metrics = folder / "metrics.jsonl"
        own = {
            "WORKFLOW_COMPOSER_METRICS": str(self.metrics),
            "WORKFLOW_COMPOSER_SERVE_STATE": str(folder / "state"),
            "WORKFLOW_COMPOSER_ADMIN_TOKEN": ADMIN,
            "XDG_STATE_HOME": str(folder / "xdg"),
        }
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH", "LANG") if name in os.environ}
        command = [
            sys.executable,
            "-m",
            *self.program,
            *(() if strategy is None else ("-s", str(strategy))),
            "serve",
            "--port",
            "0",
            "--json",
            *options,
        ]
        self._log_path = folder / f"log-{time.monotonic_ns()}.txt"
        with self._log_path.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env={**kept, **own, **(environ or {})}, stdout=subprocess.PIPE, stderr=stderr or log
            )
        self.url = self._serving()
        place = urlsplit(self.url)
        assert place.hostname is not None
        assert place.port is not None
        self.host, self.port = place.hostname, place.port

    def _serving(self) -> str:
        lines: queue.Queue[bytes] = queue.Queue()

        def read() -> None:
            assert self.process.stdout is not None
            for line in self.process.stdout:
                lines.put(line)
            lines.put(b"")

        self._reader = threading.Thread(target=read, daemon=True)
        self._reader.start()
        try:
            said = json.loads(lines.get(timeout=PATIENCE))
        except (queue.Empty, ValueError):
            self.kill()
            raise AssertionError(f"the service did not start: {self.log}") from None
        assert said["event"] == "serving", said
        return said["url"]

    @property
    def log(self) -> str:
        """What it has written to standard error so far."""
        return self._log_path.read_text()

    @property
    def workers(self) -> list[int]:
        """Process IDs of the workers that a supervisor has started."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(child) for child in children.split()]

    def resident(self) -> int:
        """Bytes of memory of all its processes."""
        pages = 0
        for pid in (self.process.pid, *self.workers):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def connect(self) -> socket.socket:
        """A connection, by hand."""
        return socket.create_connection((self.host, self.port), timeout=PATIENCE)

    def request(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """One request over a connection of its own; a body is JSON unless the headers say otherwise."""
        client = http.client.HTTPConnection(self.host, self.port, timeout=PATIENCE)
        try:
            data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
            kind = {} if data is None else {"Content-Type": "application/json"}
            client.request(method, path, data, {**kind, **(headers or {})})
            reply = client.getresponse()
            return reply.status, reply.headers, reply.read()
        finally:
            client.close()

    def ask(self, text: str, **fields: Any) -> tuple[int, http.client.HTTPMessage, bytes]:
        """One chat request."""
        return self.request("POST", "/v1/chat/completions", chat(text, **fields))

    def switch(self, strategy: str) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Switch over the network."""
        headers = {"Authorization": f"Bearer {ADMIN}"}
        return self.request("PUT", "/admin/strategy", {"strategy": strategy}, headers)

    def gauge(self, name: str) -> float:
        """A gauge of ``/metrics``."""
        found = re.search(rf"^\w*{name} (\S+)$", self.request("GET", "/metrics")[2].decode(), re.MULTILINE)
        assert found is not None, name
        return float(found[1])

    def terminate(self) -> None:
        """Ask it to end."""
        self.process.send_signal(signal.SIGTERM)

    def ended(self) -> int:
        """Wait for its end; the exit code."""
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def kill(self) -> None:
        """End it at once, where it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.ended()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.kill()
            return
        if self.process.poll() is None:
            self.terminate()
        try:
            code = self.ended()
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        assert code == 0, self.log
        assert "Traceback" not in self.log, self.log


@contextlib.contextmanager
def serving(folder: Path, *stubs: StubServer, options: tuple[str, ...] = (), **more: Any) -> Iterator[Service]:
    """The service over stub servers, the first one first; ``more`` goes into the profile."""
    with Service(write_profile(folder, "p", *(stub.url for stub in stubs), **more), *options) as service:
        yield service


@dataclass(frozen=True)
class Answer:
    """What became of one request: ``text`` of the answer, ``errors`` that a stream told of or that kept it from coming."""

    mark: str
    status: int = 0
    text: str = ""
    errors: tuple[Any, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def lost(self) -> bool:
        """Whether the client did not get the whole answer to its own question."""
        return self.status != 200 or self.text != self.mark or bool(self.errors)


def ask(service: Service, mark: str, **fields: Any) -> Answer:
    """Ask for an echo of a mark, as a stream or not; whatever happens is an `Answer`."""
    began = time.monotonic()
    try:
        status, headers, body = service.ask(mark, **fields)
        if status != 200:
            text, errors = "", [json.loads(body)["error"]]
        else:
            text, errors = streamed(body) if fields.get("stream") else (said(body), [])
    except (OSError, http.client.HTTPException) as error:
        return Answer(mark, errors=(repr(error),), seconds=time.monotonic() - began)
    return Answer(mark, status, text, tuple(errors), dict(headers), time.monotonic() - began)


class Crowd:
    """Clients that ask without a pause, every other time for a stream, until told to stop or ``each`` is reached.

    A context manager; ``answers`` is what became of their requests.
    """

    def __init__(self, service: Service, clients: int = 8, *, each: int | None = None, pause: float = 0.0) -> None:
        self.answers: list[Answer] = []
        self._service = service
        self._each = each
        self._pause = pause
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(clients)]

    def _ask(self, number: int) -> None:
        turn = 0
        while not self._over.is_set() and turn != self._each:
            turn += 1
            self.answers.append(ask(self._service, f"client {number} in turn {turn}", stream=bool(turn % 2)))
            self._over.wait(self._pause)

    def wait_for(self, count: int) -> None:
        """Until so many answers are there."""
        ends = time.monotonic() + PATIENCE
        while len(self.answers) < count:
            assert time.monotonic() < ends, self.answers[-5:]
            time.sleep(0.002)

    @property
    def lost(self) -> list[Answer]:
        """The requests that did not get what they asked for."""
        return [answer for answer in self.answers if answer.lost]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None or self._each is None:
            self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a request is stuck"


def chat(text: str, **fields: Any) -> dict[str, Any]:
    """The body of a chat request."""
    return {"model": "auto", "messages": [{"role": "user", "content": text}], **fields}


def post(body: bytes | Mapping[str, Any], *headers: str, path: str = "/v1/chat/completions") -> bytes:
    """A POST request, as bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(data)}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + data


def said(body: bytes) -> str:
    """The text of a whole chat answer."""
    return json.loads(body)["choices"][0]["message"]["content"]


def streamed(body: bytes) -> tuple[str, list[Any]]:
    """The text of a streamed chat answer, and the errors that it tells of."""
    text, errors = "", []
    for event in body.split(b"\n\n"):
        payload = event.removeprefix(b"data: ").strip()
        if not payload or payload == b"[DONE]":
            continue
        data = json.loads(payload)
        if "error" in data:
            errors.append(data["error"])
        for choice in data.get("choices", ()):
            text += choice["delta"].get("content") or ""
    return text, errors


def echo(request: Request) -> Reply:
    """Answer with the last message, so that every answer shows whose it is."""
    data = {} if "/audio/" in request.path else request.json
    if request.path.endswith("/embeddings"):
        rows = [{"index": at, "embedding": [1.0, 0.5]} for at in range(len(data["input"]))]
        return Reply.of({"model": "m", "data": rows, "usage": {"prompt_tokens": 1, "total_tokens": 1}})
    older = request.path.endswith("/v1/completions")
    if not older and "messages" not in data:
        return Reply.of({"model": "m"})
    text = written(data["prompt"]) if older else written(data["messages"][-1].get("content") if data["messages"] else "")
    if older:
        choice = {"index": 0, "text": text, "finish_reason": "stop"}
        whole = {"id": "c", "object": "text_completion", "model": "m", "choices": [choice]}
        return Reply(events=(json.dumps(whole).encode(),)) if data.get("stream") else Reply.of(whole)
    if data.get("stream"):
        return Reply.stream(*(text[at : at + 8] for at in range(0, len(text), 8)))
    return Reply.chat(*[text] * data.get("n", 1))


def written(content: Any) -> str:
    """A message's content as a text."""
    return content if isinstance(content, str) else json.dumps(content)


def echoing(**options: Any) -> StubServer:
    """A stub server that answers so."""
    stub = StubServer(**options)
    stub.answer = echo
    return stub
