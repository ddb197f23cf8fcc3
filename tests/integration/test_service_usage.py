"""What a key's owner can read: usage and budget left, and the limits in the headers of every kind of response."""

from __future__ import annotations

import json
import time

import pytest

from tests.integration.service import PATIENCE, Service, echoing, write_profile
from workflow_composer.server.auth.keys import Key, change_keys

SAY = [{"role": "user", "content": "one two three"}]
FORMS = {
    "/v1/chat/completions": {"messages": SAY},
    "/v1/completions": {"prompt": "one two three"},
    "/v1/responses": {"input": "one two three"},
    "/v1/messages": {"messages": SAY, "max_tokens": 9},
}
WAYS = [(path, stream) for path in FORMS for stream in (False, True)]
LIMIT = len(WAYS) + 1


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A service of two workers, and the headers of keys with limits, with a budget, and with neither."""
    folder = tmp_path_factory.mktemp("usage")
    secrets = {}
    rich = {"budget": 7.0}
    limited = {"requests_per_minute": LIMIT, "tokens_per_day": 10_000}
    limits = {"limited": limited, "rich": rich, "own": rich, "free": {}}
    for name, some in limits.items():
        key, secrets[name] = Key.new(name, **some)
        change_keys(folder / "keys.json", lambda known, key=key: known.update({key.id: key}))
    model = {"backend": "vllm", "input_price": 1000.0, "output_price": 1000.0}
    with echoing() as stub:
        profile = write_profile(folder, "p", stub.url, models={"p-0": {**model, "base_url": stub.url}})
        with Service(profile, "--keys", str(folder / "keys.json"), "--workers", "2") as service:
            yield service, {name: {"Authorization": f"Bearer {secret}"} for name, secret in secrets.items()}


def limits_in(headers):
    return {name.lower(): value for name, value in headers.items() if name.lower().startswith("x-ratelimit-")}


def usage(service, headers):
    status, _, body = service.request("GET", "/v1/usage", headers=headers)
    assert status == 200, body
    return json.loads(body)


def test_every_response_tells_the_limits_of_its_key_over_all_workers(served):
    """Whole, as a stream, in every form, and where it refuses; a key without limits is told none."""
    service, keys = served
    seen = []
    for path, stream in WAYS:
        body = {"model": "auto", "stream": stream, **FORMS[path]}
        status, headers, answer = service.request("POST", path, body, keys["limited"])
        assert status == 200, answer
        found = limits_in(headers)
        assert (found["x-ratelimit-limit-requests"], found["x-ratelimit-limit-tokens"]) == (str(LIMIT), "10000")
        assert found["x-ratelimit-reset-requests"].endswith("s")
        seen.append(int(found["x-ratelimit-remaining-requests"]))
    assert seen[0] == LIMIT - 1
    for path, fields in FORMS.items():
        for _ in range(2 * LIMIT):
            status, headers, _ = service.request("POST", path, {"model": "auto", **fields}, keys["limited"])
            if status == 429:
                break
        assert status == 429
        assert limits_in(headers)["x-ratelimit-remaining-requests"] == "0"
        assert headers["retry-after"]
    for name in ("rich", "free"):
        headers = service.request("POST", "/v1/completions", {"model": "auto", **FORMS["/v1/completions"]}, keys[name])[1]
        assert limits_in(headers) == {}


def test_a_key_reads_what_it_has_spent_and_what_is_left(served):
    """A dollar for a thousand tokens: both workers' requests count."""
    service, keys = served
    before = usage(service, keys["own"])
    costs = []
    for _ in range(6):
        body = {"model": "auto", **FORMS["/v1/chat/completions"]}
        status, headers, _ = service.request("POST", "/v1/chat/completions", body, keys["own"])
        assert status == 200
        costs.append(float(headers["x-workflow-composer-cost"]))
    ends = time.monotonic() + PATIENCE
    while (found := usage(service, keys["own"]))["requests"] < before["requests"] + 6 and time.monotonic() < ends:
        time.sleep(0.05)  # charges of other workers are written together
    assert found["spent"]["total"] - before["spent"]["total"] == pytest.approx(sum(costs))
    assert sum(costs) > 0
    assert found["budget_left"] == pytest.approx(7.0 - found["spent"]["month"])
    assert found["tokens"]["total"] > before["tokens"]["total"]
    assert found["key"]["name"] == "own"
    assert usage(service, keys["free"])["budget_left"] is None


def test_nobody_reads_it_without_a_key(served, tmp_path):
    service, _ = served
    assert service.request("GET", "/v1/usage")[0] == 401
    with echoing() as stub, Service(write_profile(tmp_path, "p", stub.url)) as keyless:
        status, _, body = keyless.request("GET", "/v1/usage")
        assert (status, json.loads(body)["error"]["code"]) == (404, "no_accounts")
