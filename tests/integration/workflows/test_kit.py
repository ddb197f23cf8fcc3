"""The scripted models by themselves."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest

from tests.integration.workflows.scripted import Model, Said


@pytest.fixture
def model():
    with Model("small-1b") as made:
        yield made


def ask(model, prompt, **more):
    body = {"model": model.name, "messages": [{"role": "user", "content": prompt}], **more}
    request = urllib.request.Request(f"{model.url}/chat/completions", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.loads(reply.read())


def text(reply):
    return reply["choices"][0]["message"]["content"]


def test_replies_go_by_content_and_by_count(model):
    model.says("a", "first", "later").says("b", {"value": "ü"}).says("", lambda call: call.prompt.upper())
    assert [text(ask(model, "a")) for _ in range(3)] == ["first", "later", "later"]
    assert text(ask(model, "b")) == '{"value": "ü"}'
    assert text(ask(model, "x")) == "X"
    assert model.prompts("a") == ["a"] * 3
    assert model.count() == 5


def test_a_reply_tells_its_end_its_tokens_and_its_samples(model):
    model.says("", Said("cut", finish="length", tokens=7))
    reply = ask(model, "long", n=3, max_tokens=7)
    assert [choice["finish_reason"] for choice in reply["choices"]] == ["length"] * 3
    assert reply["usage"]["completion_tokens"] == 21
    assert model.draws() == 3
    assert model.calls[0].limit == 7


def test_a_busy_server_refuses(model):
    """The second call comes while the first is under way: it is told when to come again."""
    model.most, model.delay = 0, 0.01
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(model, "x")
    refused.value.close()
    assert (refused.value.code, refused.value.headers["Retry-After"]) == (429, "1")
    assert model.refused == [0]
