"""A model server whose answers hold arbitrary JSON: it may spoil its own answer, and nothing else.

Every form of API, whole and streamed, relayed (one plain model) and translated (another form than the server's, or votes).
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.service import Service, write_profile
from tests.integration.stub_server import Reply, Request, StubServer
from workflow_composer import ModelOrchestrator, StrategyConfig
from workflow_composer.metrics.sink import MemorySink
from workflow_composer.plugins.host import plugin_host
from workflow_composer.server.auth.keys import Key, change_keys

REFUSALS = {502, 503, 504}
"""What a client may be told if no model's answer can be read."""
CALL = {"id": "a", "type": "function", "index": 0, "function": {"name": "f", "arguments": '{"a": 1}'}}
LOGPROBS = {"content": [{"token": "a", "logprob": -0.1, "top_logprobs": [{"token": "a", "logprob": -0.1}]}]}
MESSAGE = {"role": "assistant", "content": "42", "reasoning_content": "hm", "tool_calls": [CALL]}
CHOICE = {"index": 0, "message": MESSAGE, "finish_reason": "stop", "logprobs": LOGPROBS}
EVENT = {"index": 0, "delta": MESSAGE, "finish_reason": None, "logprobs": LOGPROBS}
TEXT = {"index": 0, "text": "42", "finish_reason": "stop", "logprobs": None}
USAGE = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8, "prompt_tokens_details": {"cached_tokens": 1}}

FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "q"}]}),
    "completions": ("/v1/completions", {"prompt": "q"}),
    "messages": ("/v1/messages", {"max_tokens": 50, "messages": [{"role": "user", "content": "q"}]}),
    "responses": ("/v1/responses", {"input": "q"}),
    "embeddings": ("/v1/embeddings", {"input": ["q"]}),
}
ASKED = [
    (form, model, stream)
    for form in FORMS
    for model in ("p-0", "mv_p-0_k3_t0.7")
    for stream in (False, True)
    if form != "embeddings" or (model == "p-0" and not stream)
    if form != "completions" or model == "p-0"
]

numbers = st.integers() | st.sampled_from([-1, -1000, 2**40 + 1, 2**64, -(2**63), 10**400]) | st.floats()
words = st.text(max_size=12) | st.sampled_from(["\ud800", "a\r\nSet-Cookie: b=c", "stop", "length", "x" * 5000])
values = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place within a value, the value itself first."""
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from places(inner, (*path, index))


def spoiled(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The value with another one at a place."""
    if not path:
        return new
    if isinstance(value, dict):
        return {key: spoiled(inner, path[1:], new) if key == path[0] else inner for key, inner in value.items()}
    return [spoiled(inner, path[1:], new) if index == path[0] else inner for index, inner in enumerate(value)]


@dataclass(frozen=True)
class Lie:
    """What a server puts in place of a true field: anywhere in a choice, and as usage, model and finish reason."""

    at: int
    choices: Any
    usage: Any
    model: Any
    finish_reason: Any

    def choice(self, true: dict[str, Any]) -> list[Any]:
        found = {**true, "finish_reason": self.finish_reason} if self.finish_reason != "true" else true
        if self.choices == "true":
            return [found]
        every = list(places([found]))
        return spoiled([found], every[self.at % len(every)], self.choices)

    def told(self, request: Request) -> Reply:
        """The server's answer to a request, in every form that it may be asked in."""
        rest = {
            "id": "c",
            "created": 1,
            "usage": USAGE if self.usage == "true" else self.usage,
            "model": "stub-model" if self.model == "true" else self.model,
        }
        if request.path.endswith("/embeddings"):
            rows = self.choice({"index": 0, "embedding": [1.0, 0.5]})
            return Reply.of({**rest, "object": "list", "data": rows})
        older = request.path.endswith("/v1/completions")
        if not request.json.get("stream"):
            choices = self.choice(TEXT if older else CHOICE)
            several = choices * (request.json.get("n") or 1) if isinstance(choices, list) else choices
            return Reply.of({**rest, "choices": several})
        first, last = (TEXT, TEXT) if older else (EVENT, {**EVENT, "delta": {}, "finish_reason": "stop"})
        events = [
            {**rest, "usage": None, "choices": [{**first, "finish_reason": None}]},
            {**rest, "choices": self.choice(first)},
            {**rest, "choices": [last]},
        ]
        return Reply(events=tuple(json.dumps(event).encode() for event in events))


fields = st.just("true") | values
lies = st.builds(Lie, st.integers(0, 50), fields, fields, fields, fields)


@dataclass
class Attacked:
    """The service with two keys, and the server behind it."""

    service: Service
    stub: StubServer
    secrets: tuple[str, str]

    def ask(self, form: str, model: str, *, stream: bool, whose: int = 0) -> tuple[int, Any, bytes]:
        path, body = FORMS[form]
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.secrets[whose]}"}
        return self.service.request("POST", path, {**body, "model": model, **({"stream": True} if stream else {})}, headers)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    keys, secrets = zip(*(Key.new(name, now=time.time(), budget=1e9) for name in ("ann", "bob")), strict=True)
    change_keys(folder / "keys.json", lambda known: known.update({key.id: key for key in keys}))
    with StubServer() as stub:
        models = {"p-0": {"backend": "vllm", "base_url": stub.url, "model": "stub-model", "output_price": 1.0}}
        more = {"models": models, "routers": ["cascade", "cascading_provider"], "circuit_breaker": {"failures": 10**6}}
        profile = write_profile(folder, "p", stub.url, **more)
        with Service(profile, "--keys", str(folder / "keys.json")) as service:
            yield Attacked(service, stub, secrets)
            figures = service.request("GET", "/metrics")[2].decode()
        lines = [json.loads(line, parse_constant=not_a_number) for line in service.metrics.read_text().splitlines()]
    found = [float(value) for value in re.findall(r"^\w+(?:\{[^}]*\})? (\S+)$", figures, re.MULTILINE)]
    assert found
    assert all(map(math.isfinite, found))
    assert lines
    assert all(math.isfinite(number) for line in lines for number in line.values() if isinstance(number, (int, float)))


def not_a_number(name: str) -> float:
    raise AssertionError(f"{name} is no JSON")


def strictly(body: bytes) -> Any:
    """JSON as other languages read it."""
    return json.loads(body, parse_constant=not_a_number)


@pytest.mark.parametrize(("form", "model", "stream"), ASKED, ids=[f"{f}-{m}-{'stream' * s or 'whole'}" for f, m, s in ASKED])
@given(lie=lies)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_a_server_puts_into_its_answer_spoils_that_answer_at_most(attacked, form, model, stream, lie):
    """Never 500, no Python error's name, JSON that every client reads; the next requests of both keys are answered."""
    attacked.stub.answer = lie.told
    status, headers, body = attacked.ask(form, model, stream=stream)
    assert status == 200 or status in REFUSALS, body
    assert headers.get("Set-Cookie") is None
    assert not re.search(
        rb"\b(?:Type|Value|Key|Index|Attribute|Recursion|Overflow|Unicode\w+|Decode|Validation)Error\b", body
    )
    if status != 200 or not stream:
        strictly(body)
    elif form != "chat" and form != "completions":  # those are relayed byte for byte
        for payload in re.findall(rb"^data: (.*)$", body, re.MULTILINE):
            strictly(payload)
    attacked.stub.answer = None
    for whose in (0, 1):
        assert attacked.ask("chat", "auto", stream=False, whose=whose)[0] == 200


@given(told=st.lists(lies, min_size=1, max_size=6))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_batch_ends_with_results_and_so_does_the_next_run_of_its_journal(tmp_path_factory, told):
    """Rows that could be read are done, the others failed with a reason; no figure is infinite."""
    folder = tmp_path_factory.mktemp("batch")
    with StubServer() as stub:
        stub.answer = lambda request: told[int(request.json["messages"][-1]["content"]) % len(told)].told(request)
        models = {"m": {"backend": "vllm", "base_url": stub.url, "model": "stub-model", "output_price": 1.0}}
        config = StrategyConfig(
            profile_name="p", allow_cloud=False, models=models, task_routing={"*": "m"},
            retries={"attempts": 1}, circuit_breaker={"failures": 10**6},
        )  # fmt: skip
        metrics = MemorySink()
        with ModelOrchestrator(config, plugins=plugin_host(discover=False), metrics=metrics, environ={}) as o:
            rows = [str(number) for number in range(len(told))]
            first = o.run_batch(rows, journal=folder / "rows.jsonl", retries=0)
            again = o.run_batch(rows, journal=folder / "rows.jsonl", retries=0)
    for run in (first, again):
        assert run.done + run.failed == len(list(run)) == len(told)
        assert math.isfinite(run.cost)
    assert again.earlier == first.done
    assert all(math.isfinite(metric.cost) for metric in metrics.metrics)
