"""The handlers together, without a network: answers, keys, budgets, admission, health, models, feedback."""

from __future__ import annotations

import asyncio
import json

import pytest

from workflow_composer import ModelOrchestrator
from workflow_composer.calibration.monitoring.audits import AuditLog
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.metrics.escalation import EscalationStats
from workflow_composer.metrics.live import LiveMetrics, SharedMetrics
from workflow_composer.metrics.sink import MemorySink
from workflow_composer.server.admin.health import Observing, acceptance_gauges
from workflow_composer.server.admin.strategy_switcher import Local, Strategies, SwitchAudit
from workflow_composer.server.api.completion_handler import Accounts, Admission
from workflow_composer.server.auth.history import UsageHistory
from workflow_composer.server.auth.keys import Key, KeyRing, change_keys
from workflow_composer.server.auth.ledger import Ledger
from workflow_composer.server.logs import ServiceLog
from workflow_composer.server.service import Parts, app_of, callers_of
from workflow_composer.server.settings import ServerSettings

CHAT = {"model": "auto", "messages": [{"role": "user", "content": "What is two and two?"}]}


class Parted:
    """An app over one model that repeats the question, and what it is made of."""

    def __init__(
        self,
        folder,
        *,
        keys=False,
        concurrency=8,
        queue=8,
        models=("m",),
        routers=("cascading_provider",),
        profile=None,
        **settings,
    ):
        model = {"backend": "fake", "input_price": 1e6, "output_price": 1e6}  # a dollar a token
        fields = {"models": dict.fromkeys(models, model), "task_routing": {"*": "m", "t": "m"}, "routers": routers}
        config = StrategyConfig(profile_name="p", allow_cloud=False, **{**fields, **(profile or {})})
        self.settings = ServerSettings(state_directory=folder, admin_token="secret", **settings)
        self.accounts = Accounts()
        if keys:
            self.path = folder / "keys.json"
            change_keys(self.path, lambda known: None)
            self.accounts = Accounts(KeyRing(self.path, clock=self.clock), Ledger(folder / "ledger.bin"))
        self.sink, live = MemorySink(), LiveMetrics()
        self.orchestrator = ModelOrchestrator(config, metrics=(self.accounts, self.sink, live), environ={})
        self.admission = Admission(concurrency, queue, 5.0)
        shared, self.audits = SharedMetrics(live), AuditLog(folder / "audits.jsonl")
        audit = SwitchAudit(folder / "audit.jsonl")
        callers = callers_of(self.settings, self.accounts, audit)
        self.observing = Observing(self.orchestrator, shared, self.admission, audits=self.audits, callers=callers)
        local = Local(self.orchestrator)
        strategies = Strategies(config, lambda: (local,), audit, environ={})
        parts = Parts(
            self.orchestrator, self.accounts, self.admission, self.observing, shared, self.audits, strategies, callers
        )
        self.app = app_of(parts, self.settings, {}, ServiceLog())

    now = 1_000_000.0

    def clock(self):
        self.now += 2.0
        return self.now

    def key(self, name="ann", **limits):
        """A new key, known to the service."""
        key, secret = Key.new(name, **limits)
        change_keys(self.path, lambda known: known.update({key.id: key}))
        return secret

    async def close(self):
        await self.orchestrator.aclose()
        if self.accounts.ledger is not None:
            self.accounts.ledger.close()


@pytest.fixture
async def parted(tmp_path):
    """Makes apps."""
    made = []

    def make(**settings):
        made.append(Parted(tmp_path, **settings))
        return made[-1]

    yield make
    for one in made:
        await one.close()


@pytest.fixture
def ask(given):
    """Asks an app; status, body and headers, and the exchange where it was a stream."""

    async def asked(parted, method="POST", path="/v1/chat/completions", body=CHAT, key=None, query="", **headers):
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        exchange = given(method, path, b"" if method == "GET" else body, headers, query)
        reply = await parted.app.serve(exchange)
        if reply is None:
            return 200, exchange.written, {}
        return reply.status, json.loads(reply.body) if reply.body[:1] in {b"{", b"["} else reply.body, dict(reply.headers)

    return asked


async def test_a_chat_is_answered_and_says_how(parted, ask):
    status, body, headers = await ask(parted())
    assert (status, body["object"]) == (200, "chat.completion")
    assert body["choices"][0]["message"]["content"] == "What is two and two?"
    assert headers["x-workflow-composer-model"] == "m"
    assert headers["x-workflow-composer-strategy"] == "p"
    assert float(headers["x-workflow-composer-cost"]) == body["usage"]["total_tokens"]
    assert "x-workflow-composer-reason" not in headers
    _, _, headers = await ask(parted(debug=True))
    assert headers["x-workflow-composer-reason"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("model", "tier", "escalated", "answers"),
    [("m", "1", "false", "m"), ("mv_cascade_m_k2_t0.7_strong_k1_t0.0", "2", "true", "strong")],
)
async def test_the_headers_count_tiers_from_one(parted, given, model, tier, escalated, answers, stream):
    """Nobody finds an answer in these words, so the second tier is asked. The metric lines go on counting from 0."""
    one = parted(models=("m", "strong"), routers=({"cascade": {"extract": ["boxed"]}}, "provider"))
    exchange = given("POST", "/v1/chat/completions", {**CHAT, "model": model, "stream": stream})
    reply = await one.app.serve(exchange)
    headers = dict(exchange.begun if reply is None else reply.headers)
    told = [headers[f"x-workflow-composer-{name}"] for name in ("tier", "escalated", "model")]
    assert told == [tier, escalated, answers]
    assert one.sink.metrics[-1].tier == int(tier) - 1


async def test_a_predicted_task_can_be_read_and_a_named_one_is_kept(parted, ask):
    one = parted()
    _, _, headers = await ask(one)
    assert "x-workflow-composer-task" in headers
    _, _, headers = await ask(one, body={**CHAT, "model": "task:t"})
    assert headers["x-workflow-composer-task"] == "t"
    assert one.sink.metrics[-1].task_type == "t"


async def test_a_stream_ends_with_its_mark_and_with_its_usage_where_asked(parted, ask):
    status, body, _ = await ask(parted(), body={**CHAT, "stream": True, "stream_options": {"include_usage": True}})
    assert status == 200
    assert body.endswith(b"data: [DONE]\n\n")
    assert b'"usage":{"prompt_tokens"' in body


async def test_several_answers_in_one_stream_are_refused_by_a_model_that_streams_one(parted, ask):
    """It is the request that cannot be honoured; asking again would not help."""
    status, body, _ = await ask(parted(), body={**CHAT, "stream": True, "n": 2})
    assert (status, body["error"]["code"]) == (400, "unsupported_parameter")
    assert "omit n or stream" in body["error"]["message"]


async def test_without_a_key_nobody_is_let_in_and_nothing_is_asked(parted, ask):
    one = parted(keys=True)
    for path, method in (("/v1/chat/completions", "POST"), ("/v1/models", "GET"), ("/v1/embeddings", "POST")):
        status, body, headers = await ask(one, method, path)
        assert (status, body["error"]["code"], headers["www-authenticate"]) == (401, "invalid_api_key", "Bearer")
    assert one.sink.metrics == []
    assert (await ask(one, "GET", "/health"))[0] == 200  # who only watches needs none


async def test_a_key_s_budget_stops_it_and_what_it_spent_is_what_the_metrics_say(parted, ask):
    one = parted(keys=True)
    key = one.key(budget=25.0, period="total")
    seen = [await ask(one, key=key, body={**CHAT, "max_tokens": 6}) for _ in range(6)]
    statuses = [status for status, _, _ in seen]
    assert statuses[0] == 200
    assert statuses[-1] in {402, 429}
    assert statuses == sorted(statuses)
    spent = sum(metric.cost for metric in one.sink.metrics)
    record = next(iter(one.accounts.keys._keys.values()))
    assert one.accounts.ledger.account(record, 0.0).spent == pytest.approx(spent)
    assert spent <= 25.0


async def test_a_key_is_held_to_its_models_and_strategies(parted, ask):
    one = parted(keys=True)
    key = one.key(models=("auto",), strategies=("p",))
    assert (await ask(one, key=key))[0] == 200
    status, body, _ = await ask(one, key=key, body={**CHAT, "model": "m"})
    assert (status, body["error"]["code"]) == (403, "model_not_allowed")
    other = one.key("bob", strategies=("q",))
    assert (await ask(one, key=other))[1]["error"]["code"] == "strategy_not_allowed"
    assert one.accounts.under_way == {}


async def test_beyond_places_and_queue_the_answer_is_429_and_places_come_back(parted, ask, monkeypatch):
    one, going = parted(concurrency=1, queue=1), asyncio.Event()
    real = one.orchestrator.agenerate

    async def slow(request):
        await going.wait()
        return await real(request)

    monkeypatch.setattr(one.orchestrator, "agenerate", slow)
    waiting = [asyncio.create_task(ask(one)) for _ in range(3)]
    done, rest = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    status, body, headers = done.pop().result()
    assert (status, body["error"]["code"], headers["retry-after"]) == (429, "overloaded", "1")
    going.set()
    assert [(await task)[0] for task in rest] == [200, 200]
    assert (one.admission.in_flight, one.admission.queued) == (0, 0)


async def test_a_client_that_goes_away_leaves_nothing_behind(parted, ask, monkeypatch):
    one = parted(keys=True)

    async def never(request):
        await asyncio.Event().wait()

    monkeypatch.setattr(one.orchestrator, "agenerate", never)
    task = asyncio.create_task(ask(one, key=one.key()))
    while not one.admission.in_flight:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert one.admission.in_flight == 0
    assert one.accounts.under_way == {}


async def test_the_operator_s_token_cannot_be_guessed_at_the_dashboard(parted, ask):
    """Guesses there count with those at the operator's own paths; a key opens it, too."""
    one = parted(keys=True)
    key = one.key()
    assert (await ask(one, "GET", "/dashboard/data", key=key))[0] == 200
    assert (await ask(one, "GET", "/dashboard/data", key="secret"))[0] == 200
    statuses = [(await ask(one, "GET", "/dashboard/data", key=f"guess{number}"))[0] for number in range(40)]
    assert statuses[0] == 401
    assert statuses[-1] == 429
    assert (await ask(one, "GET", "/dashboard/data", key=key))[0] == 200


async def test_audits_that_cannot_be_read_hide_nothing_else(parted, ask, tmp_path):
    one = parted()
    (tmp_path / "audits.jsonl").mkdir()
    assert (await ask(one, "GET", "/metrics"))[0] == 200
    assert (await ask(one, "GET", "/dashboard/data"))[0] == 200


async def test_the_dashboard_shows_a_key_what_its_own_users_have_used_and_an_operator_everything(parted, ask, tmp_path):
    one = parted(keys=True)
    one.accounts.history = UsageHistory(tmp_path / "usage.jsonl")
    ann, bob = one.key("ann", team="x", budget=1e6), one.key("bob")
    await ask(one, key=ann, x_openwebui_user_email="a@example.org")
    await ask(one, key=ann, body={**CHAT, "user": "someone"})
    await ask(one, key=bob)
    one.accounts.history.save(one.accounts.history.take(at_once=True))
    await ask(one, key=bob)  # not yet in the file
    own = (await ask(one, "GET", "/dashboard/data", key=ann))[1]["usage"]
    assert {(row["name"], row["team"], row["user"], row["requests"]) for row in own} == {
        ("ann", "x", "a@example.org", 1),
        ("ann", "x", "someone", 1),
    }
    assert all(row["cost"] == row["tokens"] > 0 for row in own)
    everything = (await ask(one, "GET", "/dashboard/data", key="secret"))[1]["usage"]
    assert sorted((row["name"], row["requests"]) for row in everything) == [("ann", 1), ("ann", 1), ("bob", 2)]


async def test_the_dashboard_shows_the_certificate_in_force_also_before_its_first_audit(parted, ask, monkeypatch):
    """And not one that only has audits in the file."""

    class Certificate:
        digest, statement = "0123456789abcdef", "at most 0.1 of the accepted answers are wrong"

    class Judging:
        certificate, alarm = Certificate(), "9 of 20 were wrong"

    one = parted()
    assert (await ask(one, "GET", "/dashboard/data"))[1]["certificates"] == []
    monkeypatch.setattr(type(one.orchestrator), "routers", property(lambda self: {"judge": Judging(), "plain": object()}))
    (shown,) = (await ask(one, "GET", "/dashboard/data"))[1]["certificates"]
    assert (shown["router"], shown["audits"], shown["error"]) == ("judge", 0, None)
    assert (shown["statement"], shown["alarm"]) == (Certificate.statement, Judging.alarm)


async def test_what_can_be_asked_for_is_listed(parted, ask):
    _, body, _ = await ask(parted(), "GET", "/v1/models")
    assert [row["id"] for row in body["data"]] == ["auto", "task:t", "m"]


async def test_it_is_ready_while_some_model_can_answer_and_it_is_not_about_to_end(parted, ask):
    one = parted()
    status, body, _ = await ask(one, "GET", "/ready")
    assert status == (200 if body["models"] else 503)
    one.observing.draining = True
    status, body, headers = await ask(one, "GET", "/ready")
    assert (status, body["ready"], headers["retry-after"]) == (503, False, "2")


async def test_a_scrape_counts_what_was_answered(parted, ask):
    one = parted()
    await ask(one)
    _, body, _ = await ask(one, "GET", "/metrics")
    assert b'workflow_composer_requests_total{model="m",router=' in body
    assert b"workflow_composer_requests_in_flight 0.0" in body


def test_a_scrape_says_what_share_of_judged_answers_was_accepted():
    """Routers that judge nothing, and those that have not judged yet, say nothing of it."""

    class Judging:
        def __init__(self, requests):
            numbers = {
                "escalated": 1,
                "accepted": 3,
                "abandoned": 0,
                "by_tier": {},
                "spent": 1.0,
                "kept": 1.0,
                "wasted": 0.0,
            }
            self.escalation_stats = EscalationStats(requests=requests, always_strongest=3.0, saved=2.0, **numbers)

    found = {gauge.name: gauge.values for gauge in acceptance_gauges({"a": Judging(4), "b": object(), "c": Judging(0)})}
    assert found["accepted_share"] == [({"router": "a"}, 0.75)]
    assert found["saved_dollars"][0] == ({"router": "a"}, 2.0)
    assert acceptance_gauges({"b": object()}) == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "id"),
        ({"id": "x"}, "correct"),
        ({"id": "x", "correct": "yes"}, "correct"),
        ({"id": "\n", "correct": True}, "id"),
        ({"id": "x", "correct": True, "colour": 1}, "colour"),
        ({"id": "x", "correct": True, "by": "a" * 300}, "by"),
    ],
)
async def test_a_grade_without_sense_is_refused_by_its_field(parted, ask, body, param):
    status, found, _ = await ask(parted(), path="/v1/feedback", body=body)
    assert (status, found["error"]["param"]) == (400, param)


async def test_a_grade_of_an_answer_that_was_not_drawn_is_noted(parted, ask):
    status, body, _ = await ask(parted(), path="/v1/feedback", body={"id": "req-1", "correct": True})
    assert (status, body["audited"]) == (200, False)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/health", 405),
        ("OPTIONS", "/health", 204),
    ],
)
async def test_paths_and_methods_that_are_none(parted, ask, method, path, status):
    found, _, headers = await ask(parted(), method, path)
    assert found == status
    if status in {204, 405}:
        assert "allow" in headers


async def test_a_fault_of_the_service_is_a_500_without_its_words(parted, ask, monkeypatch):
    one = parted()

    async def broken(request):
        raise RuntimeError("a secret")

    monkeypatch.setattr(one.orchestrator, "agenerate", broken)
    status, body, headers = await ask(one)
    assert status == 500
    assert "secret" not in json.dumps(body)
    assert headers["x-workflow-composer-request-id"]


async def test_the_description_of_the_api_names_every_path(parted, ask):
    one = parted()
    _, body, _ = await ask(one, "GET", "/openapi.json")
    served = {path for _, path in one.app._routes} - {"/openapi.json", "/dashboard", "/dashboard/data"}
    assert served <= set(body["paths"])
