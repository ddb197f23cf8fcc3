"""What a request is charged that was broken off, or whose server does not say what it has used."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from tests.integration.service import PATIENCE, Service, post, serving
from tests.integration.stub_server import Reply, Request, StubServer

PIECES = 100
PROMPT = "What costs how much? " * 8
FORMS = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": PROMPT}]}),
    "completions": ("/v1/completions", {"prompt": PROMPT}),
    "messages": ("/v1/messages", {"max_tokens": 500, "messages": [{"role": "user", "content": PROMPT}]}),
    "responses": ("/v1/responses", {"input": PROMPT}),
}
PRICES = {"input_price": 1.0, "output_price": 1000.0}


def event(request: Request, text: str, finish: str | None = None) -> bytes:
    """One piece of an answer in the upstream's form."""
    said = {"text": text} if request.path.endswith("/v1/completions") else {"delta": {"content": text} if text else {}}
    return json.dumps({"model": "stub-model", "choices": [{"index": 0, **said, "finish_reason": finish}]}).encode()


def upstream(stop: dict[str, int | None], *, usage: bool = True) -> StubServer:
    """A server that streams a token per piece, stops after ``stop["after"]`` of them or ends, and counts if it ends."""
    counts = {"prompt_tokens": 40, "completion_tokens": PIECES, "total_tokens": 40 + PIECES}

    def answer(request: Request) -> Reply:
        if not request.json.get("stream"):
            text = "tok " * PIECES
            choice = {"text": text} if request.path.endswith("/v1/completions") else {"message": {"content": text}}
            whole = {"model": "stub-model", "choices": [{"index": 0, **choice, "finish_reason": "stop"}]}
            return Reply.of(whole | ({"usage": counts} if usage else {}))
        events = [event(request, "tok ") for _ in range(PIECES)] + [event(request, "", "stop")]
        if usage:
            events.append(json.dumps({"model": "stub-model", "choices": [], "usage": counts}).encode())
        return Reply(events=tuple(events), hang_after=stop["hang"], die_after=stop["die"])

    stub = StubServer()
    stub.answer = answer
    return stub


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[tuple[Service, StubServer, dict[str, int | None]]]:
    """The service over such a server, with a price."""
    stop: dict[str, int | None] = {"hang": None, "die": None}
    folder = tmp_path_factory.mktemp("charges")
    with upstream(stop) as stub, serving(folder, stub, models=priced(stub, "stub-model")) as service:
        yield service, stub, stop


def priced(stub: StubServer, model: str, **more) -> dict:
    return {"p-0": {"backend": "vllm", "base_url": stub.url, "model": model, **PRICES, **more}}


def lines(service: Service) -> list[dict]:
    """All metric lines so far."""
    return [json.loads(line) for line in service.metrics.read_text().splitlines()] if service.metrics.exists() else []


def charged(service: Service, before: int) -> dict:
    """The metric of the next request."""
    ends = time.monotonic() + PATIENCE
    while len(found := lines(service)) <= before:
        assert time.monotonic() < ends, service.log
        time.sleep(0.01)
    return found[before]


def cost_of(prompt: int, completion: int) -> float:
    return (prompt * PRICES["input_price"] + completion * PRICES["output_price"]) / 1e6


@pytest.mark.parametrize("share", [0, 10, 50, 99, 100])
@pytest.mark.parametrize("form", FORMS)
def test_a_stream_that_the_client_leaves_is_charged_by_what_was_delivered(world, form, share):
    """Relayed (chat, completions) and translated (messages, responses); before the first token, the prompt only."""
    service, stub, stop = world
    path, body = FORMS[form]
    pieces, before, asked = PIECES * share // 100, len(lines(service)), len(stub.requests)
    stop["hang"], stop["die"] = (None if share == 100 else pieces), None
    with service.connect() as line:
        line.sendall(post({"model": "p-0", "stream": True, **body}, path=path))
        got = b""
        while got.count(b"tok ") < pieces:
            got += line.recv(65536)
        stub.wait_for(lambda stub: len(stub.requests) > asked)
    metric = charged(service, before)
    prompt, completion = metric["prompt_tokens"], metric["completion_tokens"]
    assert 0.9 * pieces <= completion <= 1.15 * pieces
    assert 0.9 * 40 <= prompt <= 1.15 * 42
    assert metric["cost"] == pytest.approx(cost_of(prompt, completion))
    assert metric.get("estimated", False) is (share < 100)


@pytest.mark.parametrize("form", FORMS)
def test_a_stream_that_the_server_breaks_off_is_charged_by_what_was_delivered(world, form):
    service, _, stop = world
    path, body = FORMS[form]
    before = len(lines(service))
    stop["hang"], stop["die"] = None, 60
    service.request("POST", path, {"model": "p-0", "stream": True, **body})
    metric = charged(service, before)
    assert metric["success"] is False
    assert 54 <= metric["completion_tokens"] <= 69
    assert metric["estimated"] is True
    assert metric["cost"] == pytest.approx(cost_of(metric["prompt_tokens"], metric["completion_tokens"]))


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_does_not_count_is_counted_for(tmp_path, stream):
    """In every form of API; the operator is told once, the client by a header."""
    stop: dict[str, int | None] = {"hang": None, "die": None}
    with upstream(stop, usage=False) as stub, serving(tmp_path, stub, models=priced(stub, "stub-model")) as service:
        for number, (path, body) in enumerate(FORMS.values()):
            _, headers, _ = service.request("POST", path, {"model": "p-0", "stream": stream, **body})
            metric = charged(service, number)
            assert 0.9 * PIECES <= metric["completion_tokens"] <= 1.15 * PIECES
            assert metric["estimated"] is True
            if not stream:
                assert headers["x-workflow-composer-cost-estimated"] == "true"
                assert float(headers["x-workflow-composer-cost"]) == pytest.approx(metric["cost"])
        log, scraped = service.log, service.request("GET", "/metrics")[2].decode()
    assert log.count("reports no valid count") == 1
    assert "requests_cost_estimated_total" in scraped


def test_a_model_without_a_price_costs_nobody_knows_what(tmp_path):
    """It is not free of charge."""
    with StubServer() as stub, serving(tmp_path, stub) as service:
        _, headers, _ = service.ask("q")
        assert headers["x-workflow-composer-cost"] == "unknown"
        assert headers["x-workflow-composer-cost-known"] == "false"
        assert charged(service, 0)["cost_known"] is False


def test_another_model_than_was_asked_for_is_charged_by_its_own_price_and_told(tmp_path):
    with StubServer() as stub:
        stub.answer = lambda request: Reply.chat("4", model="small-2025-01-01" if "big" in request.json["model"] else "big")
        models = {
            "p-0": {"backend": "vllm", "base_url": stub.url, "model": "big", "input_price": 1e6, "output_price": 1e6},
            "other": {"backend": "vllm", "base_url": stub.url, "model": "small", "input_price": 1.0, "output_price": 1.0},
        }
        with serving(tmp_path, stub, models=models) as service:
            costs = [float(service.ask("q", model="p-0")[1]["x-workflow-composer-cost"]) for _ in range(2)]
            log = service.log
    assert costs == pytest.approx([8e-6, 8e-6])
    assert log.count("was asked for") == 1
