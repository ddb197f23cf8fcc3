"""What one client asks, or one server answers, is no trouble of the other clients'."""

from __future__ import annotations

import itertools
import json
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from subprocess import run

import pytest

from tests.integration.service import Service, chat, echo, echoing, serving, write_profile
from tests.integration.stub_server import Reply, Request, StubServer
from workflow_composer.server.auth.keys import Key, change_keys
from workflow_composer.server.auth.ledger import Ledger

TEXT = "What is 12 + 7?"
FORMS = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": TEXT}]}),
    "completion": ("/v1/completions", {"prompt": TEXT}),
    "embedding": ("/v1/embeddings", {"input": [TEXT]}),
    "responses": ("/v1/responses", {"input": TEXT}),
    "messages": ("/v1/messages", {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 9}),
}
"""A request in each form of API."""

CANNOT_BE = (-1000, -1, 2**40 + 1, 2**64, 10**400, 1e308, 1.5, "abc", "12", True, [], {"a": 1})
"""What no count of tokens is."""


def ask_as(service: Service, form: str, model: str, task: str = "any") -> tuple[int, str | None]:
    """The status, and the number of calls that were made for the answer."""
    path, body = FORMS[form]
    headers = {"Content-Type": "application/json", "x-workflow-composer-task": task}
    status, told, _ = service.request("POST", path, {**body, "model": model}, headers)
    return status, told.get("x-workflow-composer-attempts")


@pytest.mark.parametrize("route", ["named", "by task"])
def test_the_order_in_which_forms_of_api_are_used_changes_no_route(tmp_path, route):
    """Each form of request has the route that it has alone, whatever was asked before it: all orders of the five."""
    tasks = {"task_routing": {"*": "cascade"}, "tiers": {"low": {"model": "p-0", "samples": 3}, "high": {"model": "p-1"}}}
    more = tasks if route == "by task" else {}
    routers = ["cascade", "cascading_provider"]
    with echoing() as one, echoing() as other, serving(tmp_path, one, other, routers=routers, **more) as service:

        def asked(form: str, number: int) -> tuple[int, str | None]:
            """By a route that nobody has asked for yet where the number is new."""
            if route == "by task":
                return ask_as(service, form, "auto", f"task-{number}")
            return ask_as(service, form, f"mv_p-0_k3_t0.{number}")

        alone = {form: asked(form, number) for number, form in enumerate(FORMS, 1)}
        for number, order in enumerate(itertools.permutations(FORMS), 10):
            assert {form: asked(form, number) for form in order} == alone, order
    votes = (200, alone["chat"][1])
    assert alone["chat"] == alone["responses"] == alone["messages"] == votes
    assert int(votes[1] or 0) > 1
    assert alone["completion"][1] != votes[1]


def claiming(request: Request) -> Reply:
    """Usage as the question says; a sensible answer to whoever asks anything else."""
    said = request.json["messages"][-1]["content"]
    if not said.startswith("claim "):
        return echo(request)
    count = json.loads(said.removeprefix("claim "))
    usage = {"prompt_tokens": count, "completion_tokens": count, "total_tokens": 1}
    if request.json.get("stream"):
        *events, last = Reply.stream("an answer").events or ()
        return Reply(events=(*events, json.dumps({**json.loads(last), "usage": usage}).encode()))
    return Reply.of({**json.loads(Reply.chat("an answer").body), "usage": usage})


def test_a_server_that_claims_an_impossible_usage_stops_nobody(tmp_path):
    """Answers, later requests, charges, metrics and accounts go on, whatever a server says it has used."""
    limited, secret = Key.new("ann", now=time.time(), budget=1e9, tokens_per_minute=10**9)
    other, others_secret = Key.new("bob", now=time.time(), budget=1e9)
    change_keys(tmp_path / "keys.json", lambda known: known.update({limited.id: limited, other.id: other}))
    asked = 0
    with StubServer() as stub:
        stub.answer = claiming
        models = {"p-0": {"backend": "vllm", "base_url": stub.url, "input_price": 1.0, "output_price": 1.0}}
        profile = write_profile(tmp_path, "p", stub.url, models=models, routers=["cascade", "cascading_provider"])
        with Service(profile, "--keys", str(tmp_path / "keys.json")) as service:

            def ask(text: str, whose: str = secret, **fields: object) -> int:
                headers = {"Authorization": f"Bearer {whose}", "Content-Type": "application/json"}
                return service.request("POST", "/v1/chat/completions", chat(text, **fields), headers)[0]

            for claim in CANNOT_BE:
                for model, stream in itertools.product(("auto", "mv_p-0_k2_t0.7"), (False, True)):
                    assert ask(f"claim {json.dumps(claim)}", model=model, stream=stream) == 200, (claim, model, stream)
                assert ask("hello") == ask("hello", others_secret) == 200, claim
                asked += 5
            figures = service.request("GET", "/metrics")[2].decode()
    values = [float(value) for value in re.findall(r"^workflow_composer_\S+ (\S+)$", figures, re.MULTILINE)]
    assert values
    assert all(0.0 <= value < 2**40 for value in values)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == asked + len(CANNOT_BE)
    # An unknown usage is estimated by the prompt, of which the longest claim has 407 characters, twice in a vote.
    assert all(0 <= line["prompt_tokens"] < 1000 and 0.0 <= line["cost"] < 1.0 for line in lines)
    ledger = Ledger(tmp_path / "state" / "ledger.bin")
    try:
        account = ledger.account(limited, time.time())
    finally:
        ledger.close()
    assert account.requests == asked
    assert 0.0 < account.spent < 1.0


def test_a_batch_ends_although_a_server_claims_an_impossible_usage(tmp_path, monkeypatch):
    """Every row is answered once, and the summary's figures are finite."""
    rows = [{"prompt": f"claim {json.dumps(claim)}"} for claim in CANNOT_BE]
    source, target = tmp_path / "rows.jsonl", tmp_path / "answers.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with StubServer() as stub:
        stub.answer = claiming
        profile = write_profile(tmp_path, "p", stub.url)
        monkeypatch.setenv("WORKFLOW_COMPOSER_METRICS", "off")
        done = run(
            [sys.executable, "-m", "workflow_composer", "-s", profile, "generate", "--input", source, "--output", target],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in target.read_text().splitlines()]
    assert sorted(answer["index"] for answer in answers) == list(range(len(rows)))
    assert "nan" not in done.stderr
    assert "inf" not in done.stderr


def refusing(request: Request) -> Reply:
    """A strict server: it names the first field that it does not know."""
    unknown = sorted(request.json.keys() - {"model", "messages", "stream", "stream_options", "max_tokens", "n"})
    return Reply.error(400, f"Unrecognized request argument supplied: {unknown[0]}") if unknown else echo(request)


@pytest.mark.parametrize("field", ["my_stream_options", "stream_options!", "a stream_options", "my_max_completion_tokens"])
def test_a_field_that_a_server_refuses_makes_no_other_stream_free(tmp_path, field):
    """A name that a client wrote, repeated in a refusal, teaches nothing about the server."""
    with StubServer() as stub:
        stub.answer = refusing
        with serving(tmp_path, stub) as service:
            for stream in (True, False):
                assert service.ask("hello", stream=stream, max_tokens=5, **{field: 1})[0] == 400
            assert service.ask("hello", stream=True, max_tokens=5)[0] == 200
        sent = stub.requests[-1].json
    assert sent["stream_options"] == {"include_usage": True}
    assert sent["max_tokens"] == 5
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["completion_tokens"] > 0


@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize("form", ["chat", "stream", "embedding", "responses", "vote"])
def test_impatient_requests_take_no_model_away_from_the_others(tmp_path, form, servers):
    """A request's own time limit, however short, speaks against no server: the next one is still asked."""

    def slow(request: Request) -> Reply:
        return Reply(hang=True) if b"impatient" in request.body else echo(request)

    with StubServer() as one, StubServer() as two, echoing() as fallback:
        one.answer = two.answer = slow
        where = one.url if servers == 1 else [one.url, two.url]
        endpoints = {"vllm_endpoints": {"coder": where}, "fallback": ["p-0"], "task_routing": {"*": "coder"}}
        with serving(tmp_path, fallback, routers=["cascade", "cascading_provider"], **endpoints) as service:
            for _ in range(12):
                path, body = FORMS["chat" if form in ("stream", "vote") else form]
                body = json.loads(json.dumps(body).replace(TEXT, "impatient"))
                more = {"stream": {"stream": True}, "vote": {"model": "mv_coder_k3_t0.5"}}.get(form, {})
                headers = {"Content-Type": "application/json", "x-workflow-composer-timeout": "0.005"}
                assert service.request("POST", path, {"model": "auto", **body, **more}, headers)[0] >= 400
            answers = [service.ask("hello") for _ in range(4)]
    assert [status for status, _, _ in answers] == [200] * 4
    assert {headers["x-workflow-composer-model"] for _, headers, _ in answers} != {"p-0"}
    assert {headers["x-workflow-composer-fallback-depth"] for _, headers, _ in answers} == {"0"}


def test_several_answers_to_a_vote_are_refused_by_name(tmp_path):
    """400 for ``n``, in whole answers and streams, and nothing is asked of a model."""
    with echoing() as stub, serving(tmp_path, stub, routers=["cascade", "cascading_provider"]) as service:
        for stream in (False, True):
            status, headers, body = service.ask("hello", model="mv_p-0_k3_t0.7", n=2, stream=stream)
            error = json.loads(body)["error"]
            assert (status, error["param"], error["code"]) == (400, "n", "unsupported_parameter")
            assert headers["retry-after"] is None
        assert service.ask("hello", n=2)[0] == 200
    assert len([request for request in stub.requests if request.method == "POST"]) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("form", ["chat", "responses", "messages"])
def test_a_vote_of_more_samples_than_a_request_may_make_calls_is_refused_by_name(tmp_path, form, stream):
    """Before anything is asked of a model; a key may have a limit of its own, and other requests are answered."""
    usual, usual_secret = Key.new("ann", now=time.time())
    more, more_secret = Key.new("bob", now=time.time(), most_calls=6)
    keys = tmp_path / "keys.json"
    change_keys(keys, lambda known: known.update({usual.id: usual, more.id: more}))
    path, body = FORMS[form]
    options, routers = ("--keys", str(keys), "--most-calls", "4"), ["cascade", "cascading_provider"]
    with echoing() as stub, serving(tmp_path, stub, options=options, routers=routers) as service:

        def asked(secret: str, model: str) -> tuple[int, bytes]:
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {secret}"}
            status, _, said = service.request("POST", path, {**body, "model": model, "stream": stream}, headers)
            return status, said

        for secret, samples in ((usual_secret, 5), (more_secret, 7), (usual_secret, 1000)):
            status, said = asked(secret, f"mv_p-0_k{samples}_t0.7")
            assert status == 400
            assert f"mv_p-0_k{samples}_t0.7" in json.loads(said)["error"]["message"]
        assert [request for request in stub.requests if request.method == "POST"] == []
        assert asked(more_secret, "mv_p-0_k6_t0.7")[0] == 200
        assert asked(usual_secret, "mv_p-0_k4_t0.7")[0] == asked(usual_secret, "p-0")[0] == 200


def test_the_calls_of_a_request_end_at_its_limit(tmp_path):
    """Retries of a vote on a server that fails: the error has a code of its own, and the next request is answered."""

    def failing(request: Request) -> Reply:
        return Reply.error(500, "out of order") if b"hopeless" in request.body else echo(request)

    with StubServer() as stub:
        stub.answer = failing
        retries = {"attempts": 100, "base_delay": 0.001, "max_delay": 0.001}
        more = {"retries": retries, "routers": ["cascade", "cascading_provider"], "circuit_breaker": {"failures": 2}}
        with serving(tmp_path, stub, options=("--most-calls", "7"), **more) as service:
            status, _, said = service.ask("hopeless", model="mv_p-0_k3_t0.7")
            assert (status, json.loads(said)["error"]["code"]) == (400, "too_many_calls")
            assert len([request for request in stub.requests if request.method == "POST"]) == 7
            assert service.ask("hello")[0] == 200


def test_a_thousand_made_up_tasks_leave_the_metrics_short(tmp_path):
    """The tasks of the profile have series of their own, and all others share one."""
    with echoing() as stub, serving(tmp_path, stub, task_routing={"*": "p-0", "sums": "p-0"}) as service:

        def ask(number: int) -> int:
            headers = {"Content-Type": "application/json", "x-workflow-composer-task": f"made-up-{number}"}
            return service.request("POST", "/v1/chat/completions", chat("q", model="auto"), headers)[0]

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(ask, range(1000))) == {200}
        sums = {"Content-Type": "application/json", "x-workflow-composer-task": "sums"}
        assert service.request("POST", "/v1/chat/completions", chat("q", model="auto"), sums)[0] == 200
        page = service.request("GET", "/metrics")[2]
    assert len(page) < 500_000
    assert b"made-up" not in page
    found = {
        name: float(line.rpartition(b" ")[2])
        for line in page.splitlines()
        for name in ("other", "sums")
        if line.startswith(b"workflow_composer_requests_total{") and f'task="{name}"'.encode() in line
    }
    assert found == {"other": 1000, "sums": 1}
