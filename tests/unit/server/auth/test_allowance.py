"""What a key is told of its limits is what the ledger then lets it do."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflow_composer.server.auth.account import DAY, Account
from workflow_composer.server.auth.allowance import duration, rate_headers, rates, usage_of
from workflow_composer.server.auth.keys import Key
from workflow_composer.server.auth.ledger import Ledger
from workflow_composer.server.failures import HttpFailure

NOW = 20_000 * DAY + 3600.0


@pytest.fixture
def ledger(tmp_path):
    """A ledger whose clock is set by hand."""
    made = Ledger(tmp_path / "ledger.bin", clock=lambda: made.now)
    made.now = NOW
    yield made
    made.close()


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 60, 601])
@pytest.mark.parametrize("before", [0, 1, 2])
def test_as_many_requests_are_admitted_as_are_said_to_remain(ledger, limit, before):
    key = Key.new("ann", requests_per_minute=limit)[0]
    for _ in range(min(before, limit)):
        ledger.admit(key, ledger.now)
    ledger.now += 0.7 * 60 / limit
    said = rates(key, ledger.account(key, ledger.now), ledger.now)[0]
    for _ in range(said.remaining):
        ledger.admit(key, ledger.now)
    with pytest.raises(HttpFailure) as caught:
        ledger.admit(key, ledger.now)
    assert caught.value.status == 429
    ledger.now += rates(key, ledger.account(key, ledger.now), ledger.now)[0].reset
    assert rates(key, ledger.account(key, ledger.now), ledger.now)[0].remaining == limit


def test_tokens_are_counted_per_minute_and_per_day_and_the_tighter_is_told(ledger):
    key = Key.new("ann", tokens_per_minute=600, tokens_per_day=1000)[0]
    ledger.charge(key, cost=0.0, tokens=450, now=NOW)
    headers = dict(rate_headers(ledger, key))
    assert headers == {
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "150",
        "x-ratelimit-reset-tokens": "45s",
    }
    ledger.now += 120
    headers = dict(rate_headers(ledger, key))
    assert (headers["x-ratelimit-limit-tokens"], headers["x-ratelimit-remaining-tokens"]) == ("1000", "550")
    assert headers["x-ratelimit-reset-tokens"] == "22h58m0s"


def test_a_key_without_such_limits_is_told_none_and_a_lost_ledger_neither(ledger, monkeypatch):
    assert rate_headers(ledger, Key.new("ann", budget=5.0)[0]) == []

    def broken(key, now):
        raise OSError

    monkeypatch.setattr(ledger, "account", broken)
    assert rate_headers(ledger, Key.new("ann", requests_per_minute=5)[0]) == ()


def test_of_several_budgets_the_least_is_left(ledger):
    key = Key.new("ann", budget=10.0, period="month", budgets=(("day", 4.0), ("total", 100.0)))[0]
    ledger.charge(key, cost=3.5, tokens=7, now=NOW)
    found = usage_of(key, ledger.account(key, NOW), NOW)
    assert found["budget_left"] == pytest.approx(0.5)
    assert {one["period"]: one["left"] for one in found["budgets"]} == {"month": 6.5, "day": 0.5, "total": 96.5}
    ends = {one["period"]: one["resets_at"] for one in found["budgets"]}
    assert (ends["day"], ends["total"]) == (20_001 * DAY, None)
    assert time.gmtime(ends["month"])[2:6] == (1, 0, 0, 0)
    assert (found["requests"], found["tokens"], found["limits"]) == (1, {"today": 7, "total": 7}, [])
    ledger.now += DAY  # the day's part comes again
    assert usage_of(key, ledger.account(key, ledger.now), ledger.now)["spent"] == {"today": 0.0, "month": 3.5, "total": 3.5}


def test_what_was_overdrawn_is_nothing_left(ledger):
    key = Key.new("ann", budget=1.0, tokens_per_day=5, tokens_per_minute=5)[0]
    ledger.charge(key, cost=3.0, tokens=50, now=NOW)
    found = usage_of(key, ledger.account(key, NOW), NOW)
    assert found["budget_left"] == 0.0
    assert [one["remaining"] for one in found["limits"]] == [0, 0]
    assert usage_of(Key.new("bob")[0], Account(), NOW)["budget_left"] is None


@given(st.floats(0, 1e6))
def test_a_duration_never_ends_too_early(seconds):
    text, found = duration(seconds), 0.0
    if text.endswith("ms"):
        found, text = int(text[:-2]) / 1000.0, ""
    for unit, worth in (("h", 3600), ("m", 60), ("s", 1)):
        number, mark, rest = text.partition(unit)
        if mark:
            found, text = found + int(number) * worth, rest
    assert text == ""
    assert seconds - 1e-6 <= found < seconds + 1.001
