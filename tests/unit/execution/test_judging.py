"""Answers that are cut off or empty: they are never accepted, so that a further tier is asked where there is one."""

from __future__ import annotations

import asyncio

import pytest

from workflow_composer.execution.streaming import StreamRun
from workflow_composer.execution.voting.ballot import Ballot
from workflow_composer.plan import Candidate, Member, Plan, Tier, Voting
from workflow_composer.types import LLMRequest, Sample, TokenLogprob, Verdict

ASK = LLMRequest.of("What is 2 + 2?")
CUT = Sample("First I add 2 and", "length")
CALLS = Sample("", "tool_calls", ({"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}},))
NOTHING = [
    Sample("", "stop"),
    Sample(" \n", "stop"),
    Sample("<think>2 + 2 is 4.</think>", "stop"),
    Sample("2 + 2</think>\n"),
]


def plan(b, *names, **fields):
    return Plan(tuple(Tier.of(b.candidates(name), name, **fields) for name in names))


@pytest.mark.parametrize("sample", [CUT, *NOTHING])
async def test_what_is_no_answer_escalates_whatever_the_tier_accepts(bench, fake, sample):
    """Also where the tier takes whatever comes; the reason is told."""
    b = bench(fake("small", sample), fake("large", "4"))
    outcome = await b.executor.run(plan(b, "small", "large"), ASK, b.trace)
    assert (outcome.answer.text, outcome.tier, outcome.verdict.accepted) == ("4", 1, True)
    first = b.trace.tiers[0].verdict
    assert (first.accepted, first.unreadable) == (False, 1)
    assert b.observer.escalations == [(0, first.reason)]
    assert first.reason in ("the answer was cut off by its length", "the answer is empty")


@pytest.mark.parametrize("sample", [CUT, *NOTHING])
async def test_a_last_tier_s_answer_is_taken_and_not_accepted(bench, fake, sample):
    """A plain request gets what the model wrote, and no error."""
    b = bench(fake("only", sample))
    outcome = await b.executor.run(Plan((Tier.of(b.candidates("only")),)), ASK, b.trace)
    assert (outcome.answer, outcome.verdict.accepted) == (sample, False)


async def test_a_whole_answer_of_an_earlier_tier_stands_before_one_that_is_cut_off(bench, fake):
    """Though the earlier was doubtful."""
    b = bench(fake("small", "4"), fake("large", CUT))
    doubtful = Tier.of(b.candidates("small"), "small", accept=lambda samples: Verdict(False, 0.4, "doubtful"))
    outcome = await b.executor.run(Plan((doubtful, Tier.of(b.candidates("large"), "large"))), ASK, b.trace)
    assert (outcome.answer.text, outcome.tier, outcome.verdict.accepted) == ("4", 0, False)


@pytest.mark.parametrize("sample", [CALLS, Sample("", "stop", score=1.0), Sample("4", "stop"), Sample("<think>so</think>4")])
async def test_a_tool_call_and_what_was_scored_are_answers_without_a_text(bench, fake, sample):
    """And so is what follows on reasoning."""
    b = bench(fake("small", sample), fake("large", "x"))
    outcome = await b.executor.run(plan(b, "small", "large"), ASK, b.trace)
    assert (outcome.tier, outcome.verdict.accepted) == (0, True)


async def test_a_bare_completion_ends_by_its_length_and_is_accepted(bench, fake):
    """That is how completions end."""
    ask = LLMRequest.of("Once upon", kind="completion", max_tokens=5)
    b = bench(fake("only", CUT))
    outcome = await b.executor.run(Plan((Tier.of(b.candidates("only")),)), ask, b.trace)
    assert outcome.verdict.accepted


async def test_a_stream_that_was_cut_off_is_whole_and_not_accepted(bench, fake):
    """Its pieces reach the caller as always."""
    b = bench(fake("only", CUT))
    run = StreamRun(b.executor, Plan((Tier.of(b.candidates("only")),)), ASK, b.trace)
    assert "".join([chunk.text async for chunk in run.chunks()]) == CUT.text
    assert (run.outcome.answer.finish_reason, run.outcome.verdict.accepted) == ("length", False)


def verdict_of(*samples, **voting):
    ballot = Ballot(Voting(stopping="fixed", **voting), (Member((Candidate("m", local=True),), len(samples)),), last=True)

    async def fill():
        for sample in samples:
            await ballot.add(sample)

    asyncio.run(fill())
    return ballot.verdict()


def test_a_sample_that_is_cut_off_or_empty_votes_for_nothing():
    """Though an answer could be read in it: who knows how it would have gone on?"""
    verdict = verdict_of(Sample("#### 5", "length"), Sample("", "stop"), Sample("#### 4", "stop"), Sample("#### 4", "stop"))
    assert (verdict.votes, verdict.unreadable, verdict.confidence) == ((("4", 2),), 2, 0.5)


def test_a_vote_that_was_cut_off_altogether_says_so():
    """So that one sees why nothing could be read."""
    verdict = verdict_of(CUT, CUT)
    assert (verdict.accepted, verdict.reason) == (False, "no answer could be read in 2 samples; 2 cut off by their length")


def test_the_best_scored_sample_is_not_accepted_where_it_was_cut_off():
    """It is the answer all the same."""
    verdict = verdict_of(Sample("a", "stop", score=0.5), Sample("b", "length", score=0.9), measure="score", target=0.8)
    assert (verdict.choice, verdict.accepted) == (1, False)
    assert "cut off" in verdict.reason


@pytest.mark.parametrize(
    ("sample", "why"),
    [
        (Sample("4", "content_filter"), "withheld"),
        (Sample("", "stop"), "empty"),
        (Sample("<think>4</think>", "stop"), "empty"),
    ],
)
@pytest.mark.parametrize("kind", ["chat", "completion"])
async def test_an_empty_or_withheld_answer_of_a_single_tier_is_not_accepted(bench, fake, sample, why, kind):
    b = bench(fake("one", sample))
    request = LLMRequest.of("What is 2 + 2?", kind=kind)
    outcome = await b.executor.run(Plan((Tier.of(b.candidates(), "one"),)), request, b.trace)
    assert (outcome.answer, outcome.verdict.accepted, outcome.verdict.unreadable) == (sample, False, 1)
    assert why in outcome.verdict.reason


@pytest.mark.parametrize("logprob", [None, "-0.1"])
async def test_a_backends_malformed_log_probabilities_are_an_unknown_weight(bench, fake, logprob):
    said = Sample("#### 4", "stop", logprobs=(TokenLogprob("4", logprob),))
    b = bench(fake("one", [said]))
    tier = Tier.of(b.candidates(), "one", 2, voting=Voting(measure="logprob"))
    outcome = await b.executor.run(Plan((tier,)), LLMRequest.of("What is 2 + 2?"), b.trace)
    assert (outcome.verdict.accepted, outcome.verdict.confidence) == (False, None)
