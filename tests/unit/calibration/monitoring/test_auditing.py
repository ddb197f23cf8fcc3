"""Audits in use: drawn, judged, watched; and nothing of it is in an answer's way."""

from __future__ import annotations

import asyncio
import json
import threading
from types import SimpleNamespace

import pytest

from tests.unit.calibration.certificates import certificate
from workflow_composer.calibration.monitoring.audits import AuditLog, Auditor
from workflow_composer.support.loop_thread import LoopThread
from workflow_composer.types import LLMRequest, LLMResponse, RoutingDecision, Sample, TierResult, Usage, Verdict

MADE = certificate()
ASK = LLMRequest.of("What is 2 + 2?")
DECISION = RoutingDecision("test", "execution_feedback", "s", "s", True, 0, 0, "*", "")
TIER = TierResult(0, "small", "s", "s", (Sample("4"),), Verdict(True, 0.6), Usage(), 0.0, 1.0)


def response(number):
    return LLMResponse("4", DECISION, (Sample("4"),), Usage(), 0.0, (), f"req-{number}", 1.0, 0.1, 0.6, True, (TIER,))


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def bench(tmp_path):
    """Auditors of one file; what they told stands in ``said``."""
    said, clock, path = [], Clock(), tmp_path / "audits.jsonl"

    def make(judge=None, *, rate=1.0, at=path, **options):
        log = AuditLog(at)
        return Auditor(log, MADE, rate=rate, judge=judge, judge_name="judge", report=said.append, clock=clock, **options)

    return SimpleNamespace(make=make, said=said, clock=clock, path=path, log=AuditLog(path))


def judging(found):
    async def judge(request, response):
        return found

    return judge


def events(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


async def audited(auditor, count, start=0):
    for number in range(start, start + count):
        auditor.consider(ASK, response(number), "*")
    await auditor.aclose()


async def test_an_accepted_answer_is_drawn_and_graded_by_the_judge(bench):
    auditor = bench.make(judging(True), allowance=lambda group: 0.05)
    await audited(auditor, 1)
    accepted, graded = events(bench.path)
    assert (accepted["id"], accepted["tier"], accepted["group"], accepted["score"]) == ("req-0", "small", "*", 0.6)
    assert (accepted["certificate"], accepted["alpha"]) == (MADE.digest, 0.1)
    assert (graded["correct"], graded["by"], graded["allowance"]) == (True, "judge", 0.05)


async def test_no_prompt_and_no_answer_is_written(bench):
    await audited(bench.make(judging(False)), 3)
    assert "2 + 2" not in bench.path.read_text()


async def test_what_nobody_can_judge_waits_for_somebody_who_can(bench):
    """Without a judge, and where the judge cannot tell."""
    await audited(bench.make(), 1)
    await audited(bench.make(judging(None)), 1, start=1)
    assert [audit.id for audit in bench.log.pending()] == ["req-0", "req-1"]


async def test_answers_are_drawn_at_the_rate(bench):
    draws = iter([0.019, 0.02, 0.5, 0.0])
    await audited(bench.make(rate=0.02, draw=lambda: next(draws)), 4)
    assert [event["id"] for event in events(bench.path)] == ["req-0", "req-3"]


async def test_at_a_rate_of_nothing_no_file_is_made(bench):
    await audited(bench.make(rate=0.0), 20)
    assert not bench.path.exists()


async def test_too_many_wrong_answers_raise_the_alarm_and_it_is_told_once(bench):
    auditor = bench.make(judging(False))
    assert auditor.alarm == ""
    await audited(auditor, 20)
    assert "too many for a risk of 0.1" in auditor.alarm
    assert len(bench.said) == 1
    assert MADE.digest in bench.said[0]
    assert "recalibrate" in bench.said[0]
    assert sum(event["event"] == "alarm" for event in events(bench.path)) == 1


async def test_the_alarm_survives_a_restart_and_is_not_told_again(bench):
    await audited(bench.make(judging(False)), 20)
    for rate in (1.0, 0.0):
        assert bench.make(rate=rate).alarm
    assert len(bench.said) == 1


async def test_a_certificate_of_another_digest_is_not_suspended(bench):
    await audited(bench.make(judging(False)), 20)
    other = Auditor(AuditLog(bench.path), certificate(alpha=0.2), rate=1.0)
    assert other.alarm == ""


async def test_what_another_process_finds_is_seen_within_a_second(bench):
    here, there = bench.make(rate=0.0), bench.make(judging(False))
    assert here.alarm == ""
    await audited(there, 20)
    assert here.alarm == ""
    bench.clock.now += 1.0
    assert here.alarm


async def test_a_reset_ends_the_alarm(bench):
    auditor = bench.make(judging(False))
    await audited(auditor, 20)
    bench.log.reset(MADE.digest, "somebody")
    bench.clock.now += 1.0
    assert auditor.alarm == ""


async def test_a_file_that_is_gone_takes_back_no_alarm(bench):
    """Old files are moved away by the system; that is nobody's word that the cause was found."""
    auditor = bench.make(judging(False))
    await audited(auditor, 20)
    bench.path.unlink()
    bench.clock.now += 1.0
    assert auditor.alarm


async def test_a_judge_that_fails_is_reported_once_and_the_audit_waits(bench):
    async def broken(request, response):
        raise RuntimeError("no such table")

    await audited(bench.make(broken), 3)
    assert len(bench.said) == 1
    assert "judge raised RuntimeError: no such table" in bench.said[0]
    assert len(bench.log.pending()) == 3


async def test_a_file_that_cannot_be_written_is_reported_once(bench, tmp_path):
    (tmp_path / "file").write_text("")
    auditor = bench.make(judging(True), at=tmp_path / "file" / "audits.jsonl")
    await audited(auditor, 3)
    assert len(bench.said) == 1
    assert "audits.jsonl" in bench.said[0]
    assert auditor.alarm == ""


async def test_drawing_an_answer_waits_for_nothing(bench):
    """The judge has not even begun when the answer goes out."""
    begun = []

    async def judge(request, response):
        begun.append(response.request_id)

    auditor = bench.make(judge)
    auditor.consider(ASK, response(0), "*")
    assert begun == []
    await auditor.aclose()
    assert begun == ["req-0"]


async def test_closing_waits_for_the_audits_under_way(bench):
    released = asyncio.Event()

    async def slow(request, response):
        await released.wait()
        return True

    auditor = bench.make(slow)
    auditor.consider(ASK, response(0), "*")
    closing = asyncio.ensure_future(auditor.aclose())
    await asyncio.sleep(0)
    assert not closing.done()
    released.set()
    await closing
    assert events(bench.path)[-1]["event"] == "graded"


async def test_closing_waits_for_audits_of_other_event_loops(bench):
    """An orchestrator serves any loop, and is closed in one of them."""
    released, drawn = threading.Event(), threading.Event()

    async def slow(request, response):
        drawn.set()
        return await asyncio.to_thread(released.wait, 10)

    auditor = bench.make(slow)

    async def elsewhere():
        auditor.consider(ASK, response(0), "*")
        while len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(0)

    thread = threading.Thread(target=asyncio.run, args=(elsewhere(),))
    thread.start()
    await asyncio.to_thread(drawn.wait, 10)
    closing = asyncio.ensure_future(auditor.aclose())
    await asyncio.sleep(0)
    assert not closing.done()
    released.set()
    await asyncio.wait_for(closing, 60)
    thread.join()
    assert events(bench.path)[-1]["correct"] is True


def test_an_audit_whose_loop_stands_still_holds_up_nobody(bench):
    """Nor does one whose loop has ended; the answer stays drawn, and can be graded by hand."""

    async def endless(request, response):
        await asyncio.Event().wait()

    auditor = bench.make(endless)

    async def once():
        auditor.consider(ASK, response(0), "*")
        while not bench.path.exists():
            await asyncio.sleep(0)

    async def from_a_notebook(thread):
        await once()
        thread.run(asyncio.wait_for(auditor.aclose(), 5))

    thread = LoopThread()
    asyncio.run(from_a_notebook(thread))
    thread.stop()
    with asyncio.Runner() as runner:
        runner.run(once())  # the audit is not cancelled before the runner ends
        asyncio.run(asyncio.wait_for(auditor.aclose(), 60))
    asyncio.run(asyncio.wait_for(auditor.aclose(), 60))
    assert [audit.id for audit in bench.log.pending()] == ["req-0"]
