"""Budgets, limits and accounts of keys over two workers of a real service."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integration.service import Service, write_profile
from tests.integration.stub_server import Reply, Request, StubServer
from tests.integration.test_service_neighbours import FORMS
from workflow_composer.server.auth.history import read_rows
from workflow_composer.server.auth.keys import Key, change_keys

PRICES = {"input_price": 1000.0, "output_price": 1000.0}
"""A dollar for a thousand tokens."""


class Counted:
    """Answers after ``delay`` seconds, for a dollar per thousand tokens; counts calls and how many there were at a time."""

    def __init__(self, delay: float = 0.2, tokens: int = 500) -> None:
        self.began: list[float] = []
        self.most = 0
        self._delay = delay
        self._usage = {"prompt_tokens": tokens, "completion_tokens": tokens, "total_tokens": 2 * tokens}

    @property
    def calls(self) -> int:
        return len(self.began)

    def __call__(self, request: Request) -> Reply:
        now = time.monotonic()
        self.began.append(now)
        self.most = max(self.most, sum(now - began < 0.8 * self._delay for began in self.began))
        if request.path.endswith("/embeddings"):
            data = [{"object": "embedding", "index": 0, "embedding": [0.5]}]
            return self._reply({"object": "list", "data": data})
        message = {"message": {"role": "assistant", "content": "19"}, "text": "19"}
        return self._reply({"id": "c", "choices": [{"index": 0, "finish_reason": "stop", "logprobs": None, **message}]})

    def _reply(self, told: dict[str, object]) -> Reply:
        return Reply(200, json.dumps({**told, "model": "m", "usage": self._usage}).encode(), delay=self._delay)


@pytest.fixture
def priced(tmp_path):
    """Starts a server and a service with two workers over it and a key; returns both and a function that asks."""
    started = []

    def start(server, **limits):
        stub = StubServer(models=["m"]).__enter__()
        stub.answer = server
        started.append(stub)
        models = {"p-0": {"backend": "vllm", "base_url": stub.url, "model": "m", **PRICES}}
        path = write_profile(tmp_path, "p", stub.url, models=models)
        key, secret = Key.new("ann", team="genomics", **limits)
        change_keys(tmp_path / "keys.json", lambda known: known.update({key.id: key}))
        service = Service(path, "--workers", "2", "--keys", str(tmp_path / "keys.json"))
        service.__enter__()
        started.append(service)

        def ask(form: str, **more: object) -> int:
            place, body = FORMS[form]
            headers = {"Authorization": f"Bearer {secret}", "x-openwebui-user-email": "ann@example.org"}
            return service.request("POST", place, {"model": "p-0", **body, **more}, headers)[0]

        return service, ask

    yield start
    for each in reversed(started):
        each.__exit__(None, None, None)


def at_once(ask, form: str, number: int, **more: object) -> list[int]:
    """Status codes of so many requests that are sent at the same time."""
    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(lambda _: ask(form, **more), range(number)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bounded", [True, False])
def test_64_requests_of_a_dollar_on_a_budget_of_one(priced, form, bounded):
    server = Counted()
    _, ask = priced(server, budget=1.0, period="total")
    needs_limit = form == "messages"
    more: dict[str, object] = {"input": ["word " * 200]} if form == "embedding" else {}
    if form in {"chat", "completion", "messages"} and (bounded or needs_limit):
        more["max_tokens"] = 500
    found = at_once(ask, form, 64, **more)
    assert 1 <= server.calls <= 2
    assert found.count(200) == server.calls
    assert set(found) <= {200, 402, 429}


def test_what_was_reserved_and_not_spent_lets_the_next_go_on(priced):
    """Every request reserves a dollar and costs two cents: all are answered, none is refused."""
    server = Counted(delay=0.02, tokens=10)
    _, ask = priced(server, budget=2.0, period="total")
    assert at_once(ask, "chat", 32, max_tokens=1000) == [200] * 32


def test_a_key_has_no_more_requests_in_progress_than_it_may(priced):
    server = Counted(delay=0.05, tokens=1)
    _, ask = priced(server, concurrent=2)
    assert at_once(ask, "chat", 24) == [200] * 24
    assert server.most <= 2


def test_who_used_what_is_kept_when_the_service_ends(priced, tmp_path):
    service, ask = priced(Counted(delay=0.0, tokens=10), budget=100.0)
    assert at_once(ask, "chat", 4) == [200] * 4
    assert at_once(ask, "embedding", 2) == [200] * 2
    service.__exit__(None, None, None)
    rows = read_rows(tmp_path / "state" / "usage.jsonl")
    assert {(row.name, row.team, row.user) for row in rows} == {("ann", "genomics", "ann@example.org")}
    assert sum(row.requests for row in rows) == 6
    assert sum(row.cost for row in rows) == pytest.approx(6 * 0.02)
