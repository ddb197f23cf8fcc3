"""Who may do what: keys with rights, operators, own requests, and models that a key reaches only by itself."""

from __future__ import annotations

import json

import pytest

from tests.unit.server.test_app import CHAT, Parted
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.errors import ServerFailed
from workflow_composer.server.auth.callers import is_own, reachable
from workflow_composer.server.auth.keys import Key
from workflow_composer.server.logs import ServiceLog
from workflow_composer.types import Chunk, LLMRequest

SAY = [{"role": "user", "content": "hello"}]
FORMS = {
    "/v1/chat/completions": {"messages": SAY},
    "/v1/completions": {"prompt": "hello"},
    "/v1/responses": {"input": "hello"},
    "/v1/messages": {"messages": SAY, "max_tokens": 9},
}


class Watched(Parted):
    """The app; ``called`` are the models that were called, those of ``failing`` in vain."""

    def __init__(self, folder, **fields):
        super().__init__(folder, **fields)
        self.called, self.failing = set(), set()
        for name, endpoint in self.orchestrator._active.endpoints.items():
            for method in ("complete", "stream", "embed"):
                setattr(endpoint.backend, method, self._watched(name, getattr(endpoint.backend, method)))

    def _watched(self, name, method):
        def call(*arguments, **options):
            self.called.add(name)
            if name in self.failing:
                raise ServerFailed("10.0.0.3:8001: 500: out of memory", hint="curl http://10.0.0.3:8001/v1/models")
            return method(*arguments, **options)

        return call


@pytest.fixture
async def service(tmp_path):
    """Makes the service with keys over models `m`, `big` and `vec`; `t` is routed to `big`, and `m` falls back to it."""
    made = []
    profile = {"task_routing": {"*": "m", "t": "big", "embeddings": "vec"}, "fallback": ["big"], "retries": {"attempts": 1}}
    usual = {"keys": True, "models": ("m", "big", "vec"), "routers": ("cascade", "cascading_provider"), "profile": profile}

    def make(**fields):
        one = Watched(tmp_path, **{**usual, **fields})
        made.append(one)
        return one

    yield make
    for one in made:
        await one.close()


@pytest.fixture
def ask(given):
    """Asks; status, what was answered, and headers."""

    async def asked(one, path="/v1/chat/completions", body=CHAT, key=None, method="POST", client="10.0.0.7", **headers):
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            sent["authorization"] = f"Bearer {key}"
        exchange = given(method, path, b"" if method == "GET" else body, sent)
        exchange.client = client
        reply = await one.app.serve(exchange)
        if reply is None:
            return 200, exchange.written, dict(exchange.begun)
        return reply.status, json.loads(reply.body), dict(reply.headers)

    return asked


# --------------------------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", FORMS)
async def test_a_key_reaches_no_model_but_its_own_by_any_way(service, ask, path, stream):
    one = service()
    key, body = one.key(models=("m",)), {**FORMS[path], "stream": stream}
    routing = ["mv_big_k2_t0.7", "mv_cascade_m_k2_t0.7_big_k1_t0.0"] if path != "/v1/completions" else []
    for named in ("big", "task:t", *routing):
        status, found, _ = await ask(one, path, {**body, "model": named}, key)
        assert (status, "big" in found["error"]["message"]) == (403, True), named
    assert (await ask(one, path, body, key, x_workflow_composer_task="t"))[0] == 403
    if path != "/v1/messages":
        assert (await ask(one, path, {**body, "metadata": {"task_type": "t"}}, key))[0] == 403
    assert one.called == set()
    for named in ("m", "auto", "mv_m_k2_t0.7" if routing else "m"):
        assert (await ask(one, path, {**body, "model": named}, key))[0] == 200
    assert one.called == {"m"}


async def test_embeddings_are_models_too(service, ask):
    one = service()
    body = {"input": "hello"}
    assert (await ask(one, "/v1/embeddings", body, one.key(models=("m",))))[0] == 403
    assert (await ask(one, "/v1/embeddings", {**body, "model": "vec"}, one.key(models=("m",))))[0] == 403
    for models in (("vec",), ("auto",), ("task:embeddings",), ()):
        assert (await ask(one, "/v1/embeddings", body, one.key(models=models)))[0] == 200


async def test_a_fallback_to_a_model_that_is_not_the_key_s_is_left_out(service, ask, monkeypatch):
    """Where its own model fails, the request does; for a key without such a limit another model answers."""
    one = service()
    one.failing.add("m")
    limited, free = one.key(models=("m",)), one.key("bob")
    status, found, _ = await ask(one, key=limited)
    assert (status, one.called) == (503, {"m"})
    assert "m: " in found["error"]["message"]
    status, _, headers = await ask(one, key=free)
    assert (status, headers["x-workflow-composer-model"]) == (200, "big")


@pytest.mark.parametrize(
    ("models", "model", "task", "found"),
    [
        ((), "big", None, None),
        (("auto",), None, None, None),
        (("auto",), None, "t", None),  # naming a task leaves the choice to the profile
        (("auto",), "big", None, set()),
        (("task:t",), None, "t", None),
        (("task:t",), None, "u", set()),
        (("m",), None, None, {"m"}),
        (("tier",), "tier", None, {"m"}),
        (("tier",), "m", None, {"m"}),  # it is the same model
        (("mv_m_k8_t0.7",), "mv_m_k8_t0.7", None, {"m"}),
        (("mv_cascade_tier_k4_t0.7_big_k1_t0.0",), "big", None, {"m", "big"}),
        (("cascade",), "cascade", None, None),  # whatever this router chooses
        (("cascade",), "big", None, set()),
        (("mv_broken",), "big", None, set()),
        (("nowhere",), "big", None, set()),
        (("auto", "m"), "m", None, {"m"}),
    ],
)
def test_what_a_list_of_models_allows(models, model, task, found):
    config = StrategyConfig(
        profile_name="p",
        allow_cloud=False,
        models={name: {"backend": "fake"} for name in ("m", "big")},
        tiers={"tier": {"model": "m"}},
        task_routing={"*": "m"},
    )
    key, _ = Key.new("ann", models=models)
    assert reachable(key, config, model, task) == found


async def test_a_vote_by_meaning_asks_no_model_for_vectors_that_is_not_the_key_s(service):
    one = service(routers=({"cascade": {"vote_by": "embedding"}}, "provider"))
    request = {"messages": tuple(SAY), "model": "mv_m_k3_t0.7"}
    allowed = LLMRequest(**request, allowed=frozenset({"m", "vec"}))
    assert (await one.orchestrator.agenerate(allowed)).text
    one.called.clear()
    with pytest.raises(Exception, match="vec"):
        await one.orchestrator.agenerate(LLMRequest(**request, allowed=frozenset({"m"})))
    assert "vec" not in one.called


async def test_a_key_is_shown_the_models_that_it_may_name(service, ask):
    one = service()

    async def listed(**limits):
        found = (await ask(one, "/v1/models", key=one.key(**limits), method="GET"))[1]
        return {row["id"] for row in found["data"]}

    assert await listed() >= {"auto", "task:t", "m", "big"}
    assert await listed(models=("m",)) == {"m"}
    assert await listed(models=("auto", "task:t")) == {"auto", "task:t"}


# ------------------------------------------------------------------------------------------------------- own requests


async def asked_by(one, ask, key):
    """The ID of a request that was made with this key."""
    return (await ask(one, key=key))[2]["x-workflow-composer-request-id"]


async def test_a_request_s_id_tells_whose_it_was_and_nobody_else_can_claim_it(service, ask):
    one = service()
    ann, bob = one.key("ann"), one.key("bob")
    first, second = [await asked_by(one, ask, ann) for _ in range(2)]
    records = {key.name: key for key in one.accounts.keys._keys.values()}
    assert first != second
    assert is_own(records["ann"], first)
    assert not is_own(records["bob"], first)
    assert not is_own(records["ann"], first[:-1] + ("0" if first[-1] != "0" else "1"))
    assert not any(is_own(records["ann"], text) for text in ("", "-", "req-1", first.rpartition("-")[0], "\ud800"))
    assert await asked_by(one, ask, bob) != first


async def test_a_key_grades_only_with_the_right_and_only_its_own_requests(service, ask):
    one = service()
    ann, bob, mute = one.key("ann", rights=("feedback",)), one.key("bob", rights=("feedback",)), one.key("mute")
    own, silent = await asked_by(one, ask, ann), await asked_by(one, ask, mute)
    for identity in (own, silent):
        one.audits.sampled(identity, certificate="abc", alpha=0.1, tier="m", group="g")

    async def grade(key, identity, **fields):
        return await ask(one, "/v1/feedback", {"id": identity, "correct": False, **fields}, key)

    assert (await grade(mute, silent))[1]["error"]["code"] == "feedback_not_allowed"
    assert (await grade(bob, own))[1]["error"]["code"] == "not_own_request"
    assert (await grade(None, own))[0] == 401
    assert len(one.audits.pending()) == 2
    status, found, _ = await grade(ann, own, by="somebody else")
    assert (status, found["audited"]) == (200, True)
    identity = next(key.id for key in one.accounts.keys._keys.values() if key.name == "ann")
    line = json.loads(one.audits.path.read_text().splitlines()[-1])
    assert (line["event"], line["by"], line["key"]) == ("graded", "somebody else", identity)
    assert (await grade("secret", silent))[0] == 200  # an operator grades any
    assert one.audits.pending() == []


async def test_a_grade_of_an_answer_that_was_not_drawn_carries_its_key(service, ask):
    one = service()
    key = one.key(rights=("feedback",))
    await ask(one, "/v1/feedback", {"id": await asked_by(one, ask, key), "correct": True}, key)
    line = json.loads(one.audits.path.read_text())
    assert line["by"] == f"key {line['key']}"


async def test_a_key_sees_only_its_own_answers_that_need_a_grade(service, ask):
    one = service()
    ann, bob = one.key("ann", rights=("feedback",)), one.key("bob", rights=("feedback",))
    for key in (ann, bob, bob):
        one.audits.sampled(await asked_by(one, ask, key), certificate="abc", alpha=0.1, tier="m", group="g")

    async def listed(key):
        return (await ask(one, "/v1/feedback", key=key, method="GET"))[1]

    assert [len((await listed(key))["data"]) for key in (ann, bob, "secret")] == [1, 2, 3]
    assert (await listed(one.key("mute")))["error"]["code"] == "feedback_not_allowed"


# ----------------------------------------------------------------------------------------------------------- operators


async def test_a_key_with_the_right_to_administer_is_an_operator(service, ask, tmp_path):
    one = service()
    chief, plain = one.key("chief", rights=("admin",)), one.key("plain", rights=("feedback",))
    for path in ("/admin/strategy", "/admin/strategy/versions"):
        assert (await ask(one, path, key=chief, method="GET"))[0] == 200
        assert (await ask(one, path, key=plain, method="GET"))[1]["error"]["code"] == "admin_not_allowed"
        assert (await ask(one, path, key="wfc-0-0", method="GET"))[0] == 401
        assert (await ask(one, path, method="GET"))[0] == 401
        assert (await ask(one, path, method="GET", x_admin_token=chief))[0] == 200  # as the dashboard sends it
    assert (await ask(one, "/dashboard/data", key=chief, method="GET"))[1]["switchable"] is True
    found = (await ask(one, "/dashboard/data", key=plain, method="GET"))[1]
    assert found["switchable"] is False


async def test_guesses_shut_out_no_operator_and_are_counted_by_the_address_that_a_trusted_proxy_tells(service, ask):
    one = service(trusted_proxies=("10.0.0.7",))

    async def tried(token, address):
        return (await ask(one, "/admin/strategy", method="GET", x_admin_token=token, x_forwarded_for=address))[0]

    assert [await tried("guess", "1.2.3.4") for _ in range(31)] == [401] * 30 + [429]
    assert await tried("guess", "9.9.9.9, 1.2.3.4") == 429  # what he writes himself does not help
    assert await tried("guess", "1.2.3.5") == 401  # another client of the same proxy
    assert await tried("secret", "1.2.3.4") == 200
    assert (await ask(one, "/dashboard/data", method="GET", key="secret", x_forwarded_for="1.2.3.4"))[0] == 200
    untrusted = service()
    found = [
        (await ask(untrusted, "/admin/strategy", method="GET", x_admin_token="x", x_forwarded_for=f"1.2.3.{n}"))[0]
        for n in range(31)
    ]
    assert found[-1] == 429  # without such a proxy the header is a stranger's word


# ----------------------------------------------------------------------------------------------- what each caller sees


async def test_the_dashboard_shows_a_key_its_own_use_and_nothing_of_others(service, ask):
    one = service()
    ann, bob = one.key("ann", budget=1e9), one.key("bob")
    await ask(one, key=ann)
    for _ in range(3):
        await ask(one, body={**CHAT, "messages": [{"role": "user", "content": "a secret of bob"}]}, key=bob)
    found = (await ask(one, "/dashboard/data", key=ann, method="GET"))[1]
    assert (found["account"]["name"], found["account"]["requests"]) == ("ann", 1)
    assert found["account"]["spent"] == one.sink.metrics[0].cost
    assert (found["servers"], found["certificates"], found["profiles"]) == ([], [], [])
    assert "figures" not in found
    assert (await ask(one, "/dashboard/data", key=bob, method="GET"))[1]["account"]["requests"] == 3
    found = (await ask(one, "/dashboard/data", key="secret", method="GET"))[1]
    assert found["figures"]["total"]["requests"] == 4


async def test_readiness_tells_a_stranger_that_and_no_more(service, ask):
    one = service()
    status, found, _ = await ask(one, "/ready", method="GET")
    assert set(found) == {"ready", "draining"}
    assert status == (200 if found["ready"] else 503)
    assert set((await ask(one, "/ready", method="GET", key="wfc-0-0"))[1]) == {"ready", "draining"}
    assert set((await ask(one, "/ready", method="GET", key=one.key()))[1]) == {"ready", "draining", "strategy", "models"}
    assert "servers" in (await ask(one, "/ready", method="GET", key="secret"))[1]
    assert "servers" in (await ask(service(keys=False), "/ready", method="GET"))[1]  # everybody is on this machine


async def test_without_keys_pages_of_others_reach_no_path(service, ask):
    one = service(keys=False, cors=("https://chat.example",))
    for path, method in [(path, method) for method, path in one.app._routes]:
        status, found, headers = await ask(one, path, method=method, host="localhost", origin="https://evil.example")
        assert (status, found["error"].get("code", "")) in {(403, "origin_not_allowed"), (403, "")}, path
        assert "access-control-allow-origin" not in headers
        assert (await ask(one, path, method=method, host="evil.example"))[0] == 403
    status, _, headers = await ask(one, host="localhost", origin="https://chat.example")
    assert (status, headers["access-control-allow-origin"]) == (200, "https://chat.example")
    status, found, headers = await ask(one, body={**CHAT, "stream": True}, host="localhost", origin="https://chat.example")
    assert (status, headers["access-control-allow-origin"]) == (200, "https://chat.example")
    status, _, headers = await ask(one, body={}, host="localhost", origin="https://chat.example")
    assert (status, headers["access-control-allow-origin"]) == (400, "https://chat.example")  # errors can be read, too


# -------------------------------------------------------------------------------------------------- what streams tell


@pytest.mark.parametrize("path", FORMS)
@pytest.mark.parametrize("where", ["in the model's stream", "in the service itself"])
async def test_a_stream_tells_nothing_of_an_exception_s_text(service, ask, monkeypatch, path, where):
    """A foreign exception may say anything: a password, a prompt of another, a host."""
    one, reported = service(), []
    key = one.key(models=("m",))

    async def breaking(asked):
        yield Chunk("one ")
        yield Chunk("two ")
        raise RuntimeError("the password of http://10.0.0.3 is hunter2")

    def broken(response):
        raise RuntimeError("the password of http://10.0.0.3 is hunter2")

    if where == "in the model's stream":
        one.orchestrator._active.endpoints["m"].backend.stream = breaking
    else:
        monkeypatch.setattr("workflow_composer.server.api.completion_handler.of_end", broken)
    monkeypatch.setattr(ServiceLog, "warning", lambda self, event, **fields: reported.append(fields))
    _, written, _ = await ask(one, path, {**FORMS[path], "stream": True}, key)
    assert b"hunter2" not in written
    assert b"10.0.0.3" not in written
    assert b"RuntimeError" not in written
    assert b"the stream broke off" in written
    assert [fields["status"] for fields in reported] == [200]
    assert "hunter2" not in json.dumps(reported) or where == "in the model's stream"
