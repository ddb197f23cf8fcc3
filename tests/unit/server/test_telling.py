"""What answers tell in their headers, vectors and their price, and charges that go on whatever the disk does."""

from __future__ import annotations

import json
import time

import pytest

from tests.unit.metrics.examples import metric
from workflow_composer import ModelOrchestrator
from workflow_composer.calibration.monitoring.audits import AuditLog
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.execution.reservation import Reservation
from workflow_composer.metrics.sink import MemorySink
from workflow_composer.server.api.catalogue import Catalogue
from workflow_composer.server.api.completion_handler import Accounts, Admission
from workflow_composer.server.auth.keys import Key, KeyRing, change_keys
from workflow_composer.server.auth.ledger import Ledger
from workflow_composer.server.failures import HttpFailure


@pytest.fixture
async def catalogue(tmp_path):
    """The handlers over one model that gives vectors, and the file of audits."""
    config = StrategyConfig(profile_name="p", allow_cloud=False, models={"m": {"backend": "fake"}}, task_routing={"*": "m"})
    async with ModelOrchestrator(config, metrics=MemorySink(), environ={}) as orchestrator:
        audits = AuditLog(tmp_path / "audits.jsonl")
        yield Catalogue(orchestrator, Accounts(), Admission(1, 1, 1.0), audits), audits


async def test_vectors_come_with_their_model_and_with_a_warning_for_what_was_left_out(catalogue, given):
    reply = await catalogue[0].embeddings(given("POST", body={"input": ["a", "b"], "user": "ann"}))
    assert [row["index"] for row in json.loads(reply.body)["data"]] == [0, 1]
    headers = dict(reply.headers)
    assert (headers["x-workflow-composer-strategy"], headers["x-workflow-composer-model"]) == ("p", "m")
    assert headers["x-workflow-composer-request-id"] == "req-1"
    assert headers["x-workflow-composer-warning"].startswith("user ")


@pytest.mark.parametrize("body", [{}, {"input": [1, -2]}, {"input": ""}, {"input": "a", "colour": 1}])
async def test_a_refused_request_for_vectors_gives_its_place_back(catalogue, given, body):
    for _ in range(3):  # there is one place
        with pytest.raises(HttpFailure) as caught:
            await catalogue[0].embeddings(given("POST", body=body))
        assert caught.value.status == 400
    assert (await catalogue[0].embeddings(given("POST", body={"input": "a"}))).status == 200


async def test_a_drawn_answer_is_graded_once_and_another_grade_is_a_conflict(catalogue, given):
    handlers, audits = catalogue
    audits.sampled("req-9", certificate="abc", alpha=0.1, tier="m", group="g", score=0.9)
    first = json.loads((await handlers.feedback(given("POST", body={"id": "req-9", "correct": True}))).body)
    assert (first["audited"], first["certificate"]) == (True, "abc")
    assert (await handlers.feedback(given("POST", body={"id": "req-9", "correct": True}))).status == 200
    with pytest.raises(HttpFailure, match="was graded") as caught:
        await handlers.feedback(given("POST", body={"id": "req-9", "correct": False}))
    assert (caught.value.status, caught.value.code) == (409, "already_graded")


def test_every_metric_is_charged_to_its_key(tmp_path):
    key, _ = Key.new("ann", budget=9.0, period="total")
    change_keys(tmp_path / "k", lambda known: known.update({key.id: key}))
    accounts = Accounts(KeyRing(tmp_path / "k"), Ledger(tmp_path / "l"))
    accounts.under_way["req-1"] = (Reservation(accounts.ledger.budget_of(key)), "")
    accounts.write(metric(request_id="req-1", cost=2.0, success=False, error="CallTimeout"))
    accounts.write(metric(request_id="somebody-else-s", cost=5.0))
    del accounts.under_way["req-1"]
    accounts.write(metric(request_id="req-1", cost=1.0))
    assert accounts.ledger.left(key, time.time()) == 7.0
    assert accounts.ledger is not None
    accounts.ledger.close()


def test_a_ledger_without_room_charges_later_and_fails_no_request(tmp_path, monkeypatch):
    """It is reported once."""
    key, _ = Key.new("ann", budget=9.0, period="total")
    change_keys(tmp_path / "k", lambda known: known.update({key.id: key}))
    told = []
    accounts = Accounts(KeyRing(tmp_path / "k"), Ledger(tmp_path / "l", report=told.append))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(accounts.ledger, "_find", full)
    accounts.under_way["req-1"] = (Reservation(accounts.ledger.budget_of(key)), "")
    accounts.write(metric(request_id="req-1", cost=2.0))
    assert len(told) == 1
    monkeypatch.undo()
    assert accounts.ledger.left(key, time.time()) == 7.0
    assert accounts.ledger is not None
    accounts.ledger.close()
