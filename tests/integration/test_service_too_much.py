"""Model servers that send too much cost little memory, and no one else an answer."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration import hostile_server
from tests.integration.service import PATIENCE, Service
from tests.paths import ROOT

KINDS = ("gzip", "endless", "comments", "event", "heads", "interim", "error")
FORMS = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "q"}]}),
    "completions": ("/v1/completions", {"prompt": "q"}),
    "messages": ("/v1/messages", {"messages": [{"role": "user", "content": "q"}], "max_tokens": 100}),
    "responses": ("/v1/responses", {"input": "q"}),
}
MOST = 150 * 2**20


@contextlib.contextmanager
def over_hostile(folder: Path, kind_of_service: type[Service] = Service) -> Iterator[Service]:
    """The service over a server of all kinds, each of which is a model."""
    place = folder / "port"
    server = subprocess.Popen([sys.executable, hostile_server.__file__, str(place)], cwd=ROOT)
    try:
        ends = time.monotonic() + 3 * PATIENCE
        while not (place.exists() and place.read_text()):
            assert time.monotonic() < ends
            time.sleep(0.05)
        url = f"http://127.0.0.1:{place.read_text()}/v1"
        models = {kind: {"backend": "vllm", "base_url": url, "model": kind} for kind in (*KINDS, "fine")}
        profile = {
            "profile_name": "hostile",
            "allow_cloud": False,
            "models": models,
            "task_routing": {"*": "fine"},
            "routers": ["cascade", "cascading_provider"],
            "retries": {"attempts": 1},
            "timeouts": {"first_token": 8, "total": 8},
            "circuit_breaker": {"failures": 1000},
        }
        (folder / "hostile.yaml").write_text(json.dumps(profile))
        with kind_of_service(folder / "hostile.yaml") as service:
            yield service
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Iterator[Service]:
    with over_hostile(tmp_path_factory.mktemp("hostile")) as service:
        yield service


def peak(service: Service, *, reset: bool = False) -> int:
    """The most memory in bytes since the last reset."""
    if reset:
        Path(f"/proc/{service.process.pid}/clear_refs").write_text("5")
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{service.process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def asked(service: Service, form: str, model: str, *, stream: bool) -> int:
    """Ask, and read the answer to its end; the number of bytes."""
    path, fields = FORMS[form]
    client = http.client.HTTPConnection(service.host, service.port, timeout=6 * PATIENCE)
    client.request(
        "POST", path, json.dumps({"model": model, "stream": stream, **fields}), {"Content-Type": "application/json"}
    )
    reply, size = client.getresponse(), 0
    try:
        while data := reply.read(2**16):
            size += len(data)
    except (http.client.HTTPException, OSError):
        pass
    client.close()
    return size


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_too_much_takes_little_memory_and_others_get_their_answers(hostile, kind, form, stream):
    for _ in range(3):
        asked(hostile, form, "fine", stream=False)
    before = peak(hostile, reset=True)
    attack = threading.Thread(target=asked, args=(hostile, form, kind), kwargs={"stream": stream})
    attack.start()
    served = 0
    while attack.is_alive():
        assert hostile.request("POST", "/v1/chat/completions", {"model": "fine", **FORMS["chat"][1]})[0] == 200
        served += 1
        attack.join(0.01)
    assert served > 0
    assert peak(hostile) - before <= MOST
