"""Workflows as models: whose key pays for the steps, what is told of them, and what ends with the client."""

from __future__ import annotations

import asyncio
import json
import textwrap

import pytest

from tests.unit.server.examples import Sent
from tests.unit.server.test_app import Parted
from workflow_composer.errors import ProfileError, ServerFailed, TooManyCalls
from workflow_composer.server.api import workflow_answers
from workflow_composer.types import Chunk
from workflow_composer.workflows.serving import CallAllowance

FLOWS = {
    "skipping": """
        workflow: skipping
        inputs: {t: text}
        steps:
          a: {prompt: "one {{ t }}", on_error: skip}
        output: {a: "{{ a | default('nothing') }}"}
        stream: a
    """,
    "chain": """
        workflow: chain
        inputs: {t: text}
        steps:
          a: {prompt: "one {{ t }}", tokens: 20}
          b: {prompt: "two {{ a }}", tokens: 20}
        output: {b: "{{ b }}"}
        stream: b
    """,
    "judged": """
        workflow: judged
        inputs: {t: text}
        steps:
          a: {prompt: "say yes {{ t }}", accept: {judge: m, ask: "yes"}, retries: 0}
        output: {a: "{{ a }}"}
    """,
    "part": """
        workflow: part
        inputs: {t: text}
        steps:
          a: {prompt: "one {{ t }}"}
          b: {prompt: "no {{ t }}", answer: number, retries: 0, on_error: skip}
        output: {a: "{{ a }}", b: "{{ b | default(null) }}"}
    """,
}


@pytest.fixture
async def service(tmp_path):
    """Makes the service with keys over these workflows."""
    made = []
    for name, text in FLOWS.items():
        (tmp_path / f"{name}.yaml").write_text(textwrap.dedent(text))

    def make(**fields):
        profile = {"workflows": [str(tmp_path / f"{name}.yaml") for name in FLOWS], "retries": {"attempts": 1}}
        made.append(Parted(tmp_path, **{"keys": True, "profile": profile, **fields}))
        return made[-1]

    yield make
    for one in made:
        await one.close()


async def asked(one, key, model="workflow:chain", **fields):
    """Status, body and headers; of a stream the exchange."""
    exchange = made(key, model, **fields)
    reply = await one.app.serve(exchange)
    if reply is None:
        return exchange
    return reply.status, json.loads(reply.body), dict(reply.headers)


def made(key, model="workflow:chain", **fields):
    body = {"model": model, "messages": [{"role": "user", "content": "x"}], **fields}
    return Sent("POST", "/v1/chat/completions", body, headers={"authorization": f"Bearer {key}"})


async def test_the_key_pays_for_every_step_once(service):
    one = service()
    secret = one.key(budget=1000.0)
    status, body, headers = await asked(one, secret)
    assert (status, body["choices"][0]["message"]["content"]) == (200, "two one x")
    assert float(headers["x-workflow-composer-cost"]) == body["usage"]["total_tokens"]
    key = one.accounts.keys.identify(secret)
    budget = one.accounts.ledger.admit(key, one.now)
    one.accounts.ledger.write(one.now)
    assert one.accounts.ledger.account(key, one.now).spent == pytest.approx(body["usage"]["total_tokens"])
    assert budget.held == 0
    assert one.accounts.under_way == {}
    assert len({metric.request_id for metric in one.sink.metrics}) == 2


async def test_a_key_without_money_begins_no_step_and_one_that_has_run_out_none_more(service):
    one = service()
    status, body, _ = await asked(one, one.key("poor", budget=1e-9))
    assert (status, body["error"]["code"], one.sink.metrics) == (429, "insufficient_quota", [])
    some = one.key("some", budget=24.0)
    found = [await asked(one, some) for _ in range(4)]
    assert [status for status, _, _ in found[:2]] == [200, 200]  # ten dollars each
    assert {status for status, _, _ in found[2:]} <= {402, 429}
    assert sum(metric.cost for metric in one.sink.metrics) <= 24.0


async def test_a_judge_within_a_step_does_not_wait_for_the_money_that_the_step_holds(service):
    one = service()
    status, body, _ = await asyncio.wait_for(asked(one, one.key(budget=700.0), "workflow:judged"), 60)
    assert status == 200, body
    assert [metric.cost > 0 for metric in one.sink.metrics] == [True, True]


async def test_a_key_with_a_list_of_models_must_have_the_workflow_in_it(service):
    one = service()
    status, body, _ = await asked(one, one.key(models=("m",)))
    assert (status, body["error"]["code"]) == (403, "model_not_allowed")
    secret = one.key("own", models=("workflow:chain",))
    assert (await asked(one, secret))[0] == 200
    listing = Sent("GET", "/v1/models", b"", headers={"authorization": f"Bearer {secret}"})
    assert [row["id"] for row in json.loads((await one.app.serve(listing)).body)["data"]] == ["workflow:chain"]


async def test_a_stream_ends_with_the_steps_and_the_cost(service):
    one = service()
    exchange = await asked(one, one.key(), stream=True)
    assert dict(exchange.begun)["x-workflow-composer-model"] == "workflow:chain"
    trailers = dict(exchange.trailers)
    assert trailers["x-workflow-composer-steps"] == "a;state=done;calls=1, b;state=done;calls=1"
    assert trailers["x-workflow-composer-attempts"] == "2"
    assert exchange.written.endswith(b"data: [DONE]\n\n")


async def test_a_stream_that_breaks_off_does_not_end_as_if_it_were_whole(service):
    one = service()
    backend = one.orchestrator._active.endpoints["m"].backend

    async def broken(*arguments, **options):
        yield Chunk("on")
        raise ServerFailed("it broke off")

    backend.stream = broken
    exchange = await asked(one, one.key(), "workflow:skipping", stream=True)
    assert b'"content":"on"' in exchange.written
    assert b'"error"' in exchange.written
    assert b"[DONE]" not in exchange.written


async def test_a_row_that_is_partial_is_answered_with_a_warning(service):
    one = service()
    status, body, headers = await asked(one, one.key(), "workflow:part")
    assert (status, json.loads(body["choices"][0]["message"]["content"])) == (200, {"a": "one x", "b": None})
    assert headers["x-workflow-composer-warning"].startswith("b: ")


async def test_a_stream_that_is_silent_for_long_shows_that_it_is_alive(service, monkeypatch):
    monkeypatch.setattr(workflow_answers, "SILENT", 0.02)
    one = service()
    backend = one.orchestrator._active.endpoints["m"].backend
    complete, exchange = backend.complete, made(one.key(), stream=True)

    async def slow(call):
        while b"\n\n" not in exchange.written:
            await asyncio.sleep(0.01)
        return await complete(call)

    backend.complete = slow
    assert await asyncio.wait_for(one.app.serve(exchange), 60) is None
    lines = exchange.written.split(b"\n\n")
    assert lines[0].startswith(b": ")
    told = [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]
    assert "".join(one["choices"][0]["delta"].get("content") or "" for one in told) == "two one x"
    assert lines[-2:] == [b"data: [DONE]", b""]
    assert dict(exchange.trailers)["x-workflow-composer-steps"].endswith("b;state=done;calls=1")


async def test_a_stream_that_fails_after_it_showed_that_it_is_alive_ends_with_the_error(service, monkeypatch):
    monkeypatch.setattr(workflow_answers, "SILENT", 0.02)
    one = service()
    exchange = made(one.key(), stream=True)

    async def failing(call):
        while not exchange.written:
            await asyncio.sleep(0.01)
        raise ServerFailed("no")

    one.orchestrator._active.endpoints["m"].backend.complete = failing
    assert await asyncio.wait_for(one.app.serve(exchange), 60) is None
    assert b'"error"' in exchange.written
    assert b"[DONE]" not in exchange.written
    assert dict(exchange.trailers)["x-workflow-composer-steps"].startswith("a;state=failed;calls=1")


async def test_the_tokens_of_a_message_to_a_workflow_are_estimated(service):
    one = service()
    body = {"model": "workflow:chain", "messages": [{"role": "user", "content": "x" * 400}]}
    for model, status in (("workflow:chain", 200), ("workflow:none", 404)):
        headers = {"authorization": f"Bearer {one.key()}"}
        reply = await one.app.serve(Sent("POST", "/v1/messages/count_tokens", {**body, "model": model}, headers=headers))
        assert reply.status == status, reply.body
        assert model.endswith("none") or 50 < json.loads(reply.body)["input_tokens"] < 400


async def test_what_the_client_does_not_wait_for_is_not_asked(service):
    one = service()
    backend = one.orchestrator._active.endpoints["m"].backend
    begun, calls = asyncio.Event(), []

    async def held(call):
        calls.append(call)
        begun.set()
        await asyncio.Event().wait()

    backend.complete = held
    task = asyncio.create_task(one.app.serve(made(one.key(budget=1000.0))))
    await begun.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (len(calls), one.admission.in_flight, one.accounts.under_way) == (1, 0, {})


async def test_a_faulty_workflow_leaves_the_active_profile_as_it_is(service, tmp_path):
    one = service()
    (tmp_path / "chain.yaml").write_text("workflow: chain\ninputs: {n: number}\nsteps: {}\noutput: {}\n")
    with pytest.raises(ProfileError, match=r"chain\.yaml"):
        one.orchestrator.prepare_strategy(one.orchestrator.config)
    assert (await asked(one, one.key()))[0] == 200


async def test_calls_that_others_hold_are_waited_for_and_never_exceeded():
    allowance = CallAllowance(3)
    first = await allowance.take(1, 2, what="a")
    waiting = asyncio.create_task(allowance.take(2, 5, what="b"))
    await asyncio.sleep(0)
    assert (first, waiting.done()) == (3, False)
    with pytest.raises(TooManyCalls, match="c needs up to 1 calls"):
        await allowance.take(1, 0, what="c", waits=False)
    allowance.give_back(first, 1)
    assert await waiting == 2
    allowance.give_back(2, 2)
    with pytest.raises(TooManyCalls, match="d needs up to 1 calls; a request may make 3"):
        await allowance.take(1, 0, what="d")
