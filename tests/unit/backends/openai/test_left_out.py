"""Fields that only some servers take: which backend sends them, and what the caller is told of the others."""

from __future__ import annotations

import pytest

from tests.integration.stub_backends import call, collect, local_backend, posts
from tests.integration.stub_server import Reply
from workflow_composer.backends.openai import backend as backend_module
from workflow_composer.backends.openai.adapting import OPTIONAL, OPTIONS

REFUSED = Reply.error(400, "The 'metadata' parameter is only allowed when 'store' is enabled.", param="metadata")


@pytest.fixture
async def local(server):
    backend = local_backend(server.url, model="m")
    yield backend
    await backend.close()


async def test_openai_takes_what_other_servers_do_not(server, monkeypatch):
    assert local_backend(server.url).takes.isdisjoint(OPTIONS)
    monkeypatch.setattr(backend_module, "_OPTIONS", ("127.0.0.1", "localhost"))
    assert local_backend(server.url).takes == OPTIONAL


@pytest.mark.parametrize("stream", [False, True])
async def test_labels_that_a_server_refuses_are_left_out_and_told_each_time(server, local, stream):
    for number in range(2):
        told = []
        server.script(*([REFUSED] * (number == 0)), Reply.stream("hi") if stream else Reply.chat("hi"))
        asked = call(extra={"metadata": {"team": "x"}, "top_k": 5}, left_out=told)
        assert await (collect(local, asked) if stream else local.complete(asked))
        assert [text.split()[0] for text in told] == ["metadata"]
        last = posts(server)[-1].json
        assert "metadata" not in last
        assert last["top_k"] == 5
    assert len(posts(server)) == 3  # it is known the second time


async def test_who_does_not_ask_what_was_left_out_gets_it_left_out_too(server, local):
    server.script(REFUSED, Reply.chat("hi"))
    await local.complete(call(extra={"metadata": {"team": "x"}}))
    assert "metadata" not in posts(server)[-1].json
