"""An abandoned answer is asked for again where nobody else can answer: a doubtful answer is better than none."""

import pytest

from tests.unit.calibration.tokens import sure
from workflow_composer.calibration.scores.acceptance import RuleAcceptance
from workflow_composer.calibration.scores.signals import FeedbackRules
from workflow_composer.errors import AllCandidatesFailed, ServerUnreachable
from workflow_composer.execution.streaming import StreamRun
from workflow_composer.plan import Plan, Tier
from workflow_composer.types import LLMRequest

ASK = LLMRequest.of("What is 2 + 2?")
DOUBTFUL = sure(-0.1, -0.1, -8.0, *[-0.1] * 7, text="bad ")
ACCEPT = RuleAcceptance(FeedbackRules())


def plan(b, **options):
    first = Tier.of(b.candidates("small"), "small", accept=ACCEPT, logprobs=5, watch=ACCEPT.watch, watch_all=True)
    return Plan((first, Tier.of(b.candidates("large"), "large")), **options)


@pytest.fixture
def b(bench, fake):
    return bench(fake("small", DOUBTFUL), fake("large", ServerUnreachable))


async def test_the_whole_answer_comes_back_as_one_that_is_not_accepted(b):
    outcome = await b.executor.run(plan(b), ASK, b.trace)
    assert outcome.samples[0].text == DOUBTFUL.text
    assert not outcome.verdict.accepted
    assert len(b.backends["small"].calls) == 2


async def test_the_record_has_the_tier_once_and_every_attempt(b):
    """What the abandoned call has cost is paid all the same."""
    await b.executor.run(plan(b), ASK, b.trace)
    assert sorted(tier.tier for tier in b.trace.tiers) == [0, 1]
    small = [attempt for attempt in b.trace.attempts if attempt.name == "small"]
    assert [attempt.error_type for attempt in small] == ["Abandoned", None]


async def test_a_stream_delivers_it_piece_by_piece(b):
    run = StreamRun(b.executor, plan(b), ASK, b.trace)
    pieces = [chunk.text async for chunk in run.chunks()]
    assert "".join(pieces) == DOUBTFUL.text
    assert len([piece for piece in pieces if piece]) > 1
    assert run.outcome is not None
    assert not run.outcome.verdict.accepted


async def test_nothing_is_asked_again_where_the_next_tier_answers(bench, fake):
    b = bench(fake("small", DOUBTFUL), fake("large", "4"))
    outcome = await b.executor.run(plan(b), ASK, b.trace)
    assert outcome.samples[0].text == "4"
    assert len(b.backends["small"].calls) == 1


async def test_where_it_fails_the_second_time_too_the_error_lists_every_attempt(bench, fake):
    b = bench(fake("small", DOUBTFUL, ServerUnreachable), fake("large", ServerUnreachable))
    with pytest.raises(AllCandidatesFailed) as failed:
        await b.executor.run(plan(b), ASK, b.trace)
    assert {attempt.error_type for attempt in failed.value.attempts} == {"Abandoned", "ServerUnreachable"}
