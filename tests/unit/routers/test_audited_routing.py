"""Audits of what a certificate accepts: who judges, what is written, and what never waits for it."""

from __future__ import annotations

import asyncio
import sys
import threading
from types import ModuleType

import pytest

from tests.unit.calibration.certificates import certificate, group
from tests.unit.routers.scripted import CONFIDENT, DOUBTFUL, NAMES, profile
from workflow_composer.backends.fake import FakeBackend
from workflow_composer.calibration.monitoring.audits import AuditLog
from workflow_composer.errors import ConfigError
from workflow_composer.types import LLMRequest


def graded(events):
    return [(event["correct"], event["by"]) for event in events if event["event"] == "graded"]


@pytest.fixture
def module(monkeypatch):
    """A module of the user's, for functions that judge."""
    made = ModuleType("their_checks")
    monkeypatch.setitem(sys.modules, "their_checks", made)
    return made


class TestAudits:
    @pytest.mark.parametrize(("told", "correct"), [("#### 4", True), ("#### 5", False)])
    def test_the_strongest_tier_judges_by_its_own_answer(self, certified, audits, told, correct):
        with certified(audit={"rate": 1.0, "by": "strongest"}, s=[CONFIDENT], l=[told]) as o:
            response = o.generate("x")
        drawn, found = audits()
        assert (drawn["id"], drawn["tier"], drawn["group"], drawn["score"]) == (
            response.request_id,
            "small",
            "*",
            pytest.approx(0.475, abs=1e-3),
        )
        assert (found["correct"], found["by"], found["allowance"]) == (correct, "strongest", 0.05)

    def test_the_check_is_a_request_of_its_own_at_the_certificates_temperature(self, certified):
        """Its line in the metrics is told apart, and what the answer might cost or take does not bind it."""
        with certified(audit={"rate": 1.0, "by": "strongest"}, s=[CONFIDENT], l=["#### 4"]) as o:
            response = o.generate("x", timeout=60.0, budget=1.0)
            o._thread.run(o.router.aclose())
            (call,) = o.calls("l")
            lines = {line.request_id: line.router for line in o.metrics}
            assert o.router.escalation_stats.requests == 1
        assert (call.temperature, call.request.timeout, call.request.budget) == (0.0, None, None)
        assert lines == {
            response.request_id: "execution_feedback",
            f"{response.request_id}.audit": "execution_feedback.audit",
        }

    def test_what_cannot_be_compared_waits_for_a_person(self, certified, audits):
        with certified(audit={"rate": 1.0, "by": "strongest"}, s=[CONFIDENT], l=["I cannot tell."]) as o:
            o.generate("x")
        assert [event["event"] for event in audits()] == ["accepted"]

    def test_the_strongest_tier_is_not_asked_about_itself(self, certified, audits):
        with certified(audit={"rate": 1.0, "by": "strongest"}, s=[DOUBTFUL], m=[DOUBTFUL], l=[CONFIDENT]) as o:
            assert o.generate("x").accepted
        assert audits() == []

    def test_only_accepted_answers_are_drawn(self, certified, audits):
        with certified(audit={"rate": 1.0}, s=[DOUBTFUL], m=[DOUBTFUL], l=[DOUBTFUL]) as o:
            o.generate("x")
            o.generate("x", temperature=0.7)
        assert audits() == []

    def test_a_task_is_audited_in_its_own_group(self, certified, audits):
        made = certificate(NAMES, {"*": group(0.4, 0.4, 0.4), "math": group(0.4, 0.4, 0.4)})
        with certified(made, audit={"rate": 1.0}, s=[CONFIDENT]) as o:
            o.generate("x", task_type="math")
            o.generate("x", task_type="code")
        assert sorted(event["group"] for event in audits()) == ["*", "math"]

    @pytest.mark.parametrize(("found", "expected"), [(True, [(True, "python:their_checks:judge")]), (None, [])])
    @pytest.mark.parametrize("waits", [False, True])
    def test_a_function_of_the_users_judges_plain_or_not(self, certified, audits, module, found, expected, waits):
        """None means that it cannot tell, whichever kind of function says so."""
        seen = []

        def judge(request, response):
            seen.append((request.messages[0]["content"], response.text))
            return found

        async def judge_in_time(request, response):
            return judge(request, response)

        module.judge = judge_in_time if waits else judge
        with certified(audit={"rate": 1.0, "by": "python:their_checks:judge"}, s=[CONFIDENT]) as o:
            o.generate("x")
        assert seen == [("x", CONFIDENT.text)]
        assert graded(audits()) == expected

    def test_by_feedback_the_drawn_answers_wait_for_people(self, certified, audits, tmp_path):
        with certified(audit={"rate": 1.0, "by": "feedback"}, s=[CONFIDENT]) as o:
            response = o.generate("x")
        log = AuditLog(tmp_path / "audits.jsonl")
        assert [audit.id for audit in log.pending()] == [response.request_id]
        log.grade(response.request_id, True, "a person")
        assert graded(audits()) == [(True, "a person")]

    def test_a_judge_that_breaks_is_reported_and_no_request_fails(self, certified, module):
        def judge(request, response):
            raise LookupError("no such table")

        module.judge = judge
        with certified(audit={"rate": 1.0, "by": "python:their_checks:judge"}, s=[CONFIDENT]) as o:
            assert o.generate("x").accepted
            assert o.generate("x").accepted
            o._thread.run(o.router.aclose())
            assert o.log.getvalue().count("raised LookupError: no such table") == 1

    def test_a_judge_that_cannot_be_imported_is_a_fault_of_the_profile(self, certified):
        with pytest.raises(ConfigError, match="cannot import the function"):
            certified(audit={"by": "python:no_such_module:judge"})

    def test_a_file_that_cannot_be_written_is_reported_and_no_request_fails(self, certified, tmp_path):
        (tmp_path / "file").write_text("")
        with certified(audit={"rate": 1.0, "file": str(tmp_path / "file" / "audits.jsonl")}, s=[CONFIDENT]) as o:
            assert o.generate("x").accepted
            o._thread.run(o.router.aclose())
            assert "audits.jsonl" in o.log.getvalue()

    def test_an_audit_never_delays_an_answer_and_closing_waits_for_it(self, certified, audits, module):
        released, asked = threading.Event(), threading.Event()

        def judge(request, response):
            asked.set()
            return released.wait(60)

        module.judge = judge
        with certified(audit={"rate": 1.0, "by": "python:their_checks:judge"}, s=[CONFIDENT]) as o:
            for _ in range(3):
                assert o.generate("x").accepted
            assert asked.wait(60)
            assert graded(audits()) == []
            released.set()
        assert [correct for correct, _ in graded(audits())] == [True] * 3

    async def test_a_request_under_way_when_the_profile_changes_waits_for_no_audit(self, certified, audits, module):
        """The last request of a retired profile closes it, but not before its answer is out; the audit ends first."""
        released, going_on = threading.Event(), asyncio.Event()

        async def slow(call):
            await going_on.wait()
            return CONFIDENT

        module.judge = lambda request, response: released.wait(60)
        async with certified(audit={"rate": 1.0, "by": "python:their_checks:judge"}, s=[slow]) as o:
            old: FakeBackend = o.scripted.made["s"]
            router = o.router
            task = asyncio.ensure_future(o.agenerate("x"))
            while not old.in_flight:
                await asyncio.sleep(0)
            await o.aswitch_strategy(profile())
            going_on.set()
            assert (await asyncio.wait_for(task, 60)).accepted
            assert not old.closed
            released.set()
            await router.aclose()
            while not old.closed:
                await asyncio.sleep(0)
        assert graded(audits()) == [(True, "python:their_checks:judge")]


def test_the_environment_names_another_file_of_audits(certified, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKFLOW_COMPOSER_AUDITS", str(tmp_path / "elsewhere.jsonl"))
    with certified(audit={"rate": 1.0, "file": None}, s=[CONFIDENT]) as o:
        o.generate(LLMRequest.of("x"))
    assert (tmp_path / "elsewhere.jsonl").exists()
