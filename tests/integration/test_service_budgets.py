"""Budgets, limits and accounts of keys over two workers of a real service."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integration.service import Service, write_profile
from tests.integration.stub_server import Reply, Request, StubServer
from tests.integration.test_service_neighbours import FORMS, TEXT
from workflow_composer.server.auth.history import read_rows
from workflow_composer.server.auth.keys import Key, change_keys

PRICES = {"input_price": 1000.0, "output_price": 1000.0}
"""A dollar for a thousand tokens."""
FREE = {"input_price": 0.0, "output_price": 0.0}


class Counted:
    """Answers after ``delay`` seconds, for a dollar per thousand tokens; counts calls and how many there were at a time.

    It bills ``prompt`` tokens (default: as many as of the answer) and ``tokens`` of the answer, whatever was asked for.
    """

    def __init__(self, delay: float = 0.2, tokens: int = 500, prompt: int | None = None) -> None:
        self.began: list[float] = []
        self.most = 0
        self._delay = delay
        prompt = tokens if prompt is None else prompt
        self._usage = {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}

    @property
    def calls(self) -> int:
        return len(self.began)

    @property
    def billed(self) -> float:
        """Dollars of all calls."""
        return self.calls * self._usage["total_tokens"] / 1000

    def __call__(self, request: Request) -> Reply:
        now = time.monotonic()
        self.began.append(now)
        self.most = max(self.most, sum(now - began < 0.8 * self._delay for began in self.began))
        if request.path.endswith("/embeddings"):
            data = [{"object": "embedding", "index": 0, "embedding": [0.5]}]
            return self._reply({"object": "list", "data": data})
        if request.json.get("stream"):
            choice = {"index": 0, "text": "19", "delta": {"content": "19"}, "finish_reason": None, "logprobs": None}
            said = [{"choices": [choice]}, {"choices": [choice | {"text": "", "delta": {}, "finish_reason": "stop"}]}]
            events = [*said, {"choices": [], "usage": self._usage}]
            return Reply(
                events=tuple(json.dumps({"id": "c", "model": "m", **one}).encode() for one in events), delay=self._delay
            )
        message = {"message": {"role": "assistant", "content": "19"}, "text": "19"}
        return self._reply({"id": "c", "choices": [{"index": 0, "finish_reason": "stop", "logprobs": None, **message}]})

    def _reply(self, told: dict[str, object]) -> Reply:
        return Reply(200, json.dumps({**told, "model": "m", "usage": self._usage}).encode(), delay=self._delay)


@pytest.fixture
def priced(tmp_path):
    """Starts a server and a service with two workers over it and a key; returns the service and a function that asks.

    With ``before``, the server is the fallback of another one, the model ``first``, which answers so. ``more`` goes into
    the profile.
    """
    started = []

    def start(server, prices=PRICES, before=None, before_prices=FREE, more=None, **limits):
        stubs = []
        for answer in (server,) if before is None else (server, before):
            stub = StubServer(models=["m"]).__enter__()
            stub.answer = answer
            started.append(stub)
            stubs.append(stub)
        models = {"p-0": {"backend": "vllm", "base_url": stubs[0].url, "model": "m", **prices}}
        routes = dict(more or {})
        if before is not None:
            models["first"] = {"backend": "vllm", "base_url": stubs[1].url, "model": "m", **before_prices}
            routes = {"task_routing": {"*": "first"}, "fallback": ["p-0"], **routes}
        path = write_profile(tmp_path, "p", stubs[0].url, models=models, **routes)
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


@pytest.mark.parametrize("form", [form for form in FORMS if form != "embedding"])
def test_64_streams_of_a_dollar_on_a_budget_of_one(priced, form):
    """A stream reserves before its first byte and settles after its last one."""
    server = Counted()
    _, ask = priced(server, budget=1.0, period="total")
    found = at_once(ask, form, 64, stream=True, **({} if form == "responses" else {"max_tokens": 500}))
    assert 1 <= server.calls <= 2
    assert found.count(200) == server.calls
    assert set(found) <= {200, 402, 429}


@pytest.mark.parametrize("form", [form for form in FORMS if form != "embedding"])
def test_a_fallback_that_costs_a_dollar_is_reserved_before_it_is_called(priced, form):
    """Whole answers and streams, whose first candidate is free and down: two dollars and a half pay for two of sixteen."""
    server = Counted(tokens=985, prompt=len(TEXT))
    _, ask = priced(server, before=lambda request: Reply.error(500), budget=2.5, period="total")
    limit = "max_output_tokens" if form == "responses" else "max_tokens"
    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(ask, form, model="auto", stream=bool(number % 2), **{limit: 985}) for number in range(16)]
    found = [each.result() for each in asked]
    assert (server.calls, found.count(200)) == (2, 2)
    assert set(found) <= {200, 402, 429}


def test_a_later_tier_that_costs_a_dollar_is_reserved_before_it_is_called(priced):
    """The first tier bills five times what it may have, so that what was reserved for both does not pay for the second."""
    first, last = Counted(delay=0.05, tokens=5 * 985, prompt=0), Counted(tokens=985, prompt=len(TEXT))
    tiers = {"low": {"model": "first", "samples": 1, "accept": ["yes", "no"], "retries": 0}, "high": {"model": "p-0"}}
    more = {"tiers": tiers, "routers": ["cascade", "cascading_provider"], "task_routing": {"*": "cascade"}}
    cheap = {"input_price": 100.0, "output_price": 100.0}
    _, ask = priced(last, before=first, before_prices=cheap, more=more, budget=2.5, period="total")
    found = at_once(ask, "chat", 12, model="auto", max_tokens=985)
    assert last.calls == 1
    assert found.count(200) == first.calls >= 2
    assert 0.1 * first.billed + last.billed <= 2.5 + 0.5


@pytest.mark.parametrize("form", ["chat", "messages"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_bills_beyond_max_tokens_costs_no_more_than_the_calls_under_way(priced, form, stream):
    """It bills forty cents where less than one was asked for, to four requests at a time: what a worker learns of it may
    reach the other one when that has begun four more; all thirty-two would cost $12.80.
    """
    server = Counted(tokens=400, prompt=0)
    _, ask = priced(server, budget=1.0, period="total", concurrent=4)
    assert ask(form, stream=stream, max_tokens=4) == 200
    before = server.calls
    found = at_once(ask, form, 32, stream=stream, max_tokens=4)
    assert server.billed <= 1.0 + 0.4 * 8
    assert found.count(200) + before == server.calls
    began = server.calls
    at_once(ask, form, 8, stream=stream, max_tokens=4)
    assert server.calls == began


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


@pytest.mark.parametrize(
    ("prices", "limits", "warned"), [({}, {"budget": 1.0}, 1), ({}, {}, 0), (PRICES, {"budget": 1.0}, 0)]
)
def test_a_budget_over_models_without_prices_is_warned_of_once(priced, prices, limits, warned):
    service, ask = priced(Counted(delay=0.0), prices=prices, **limits)
    assert ask("chat") == 200
    assert service.log.count("budgets of keys do not limit") == warned
