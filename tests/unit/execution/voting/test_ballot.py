"""A ballot: what is counted, when it is over, and what it says in the end."""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflow_composer.execution.voting.ballot import Ballot
from workflow_composer.plan import Candidate, Member, Voting
from workflow_composer.types import Sample, TokenLogprob

ONE = (Candidate("one", local=True),)


def sample(answer, logprob=None):
    text = "I do not know." if answer is None else f"so #### {answer}"
    return Sample(text, "stop", logprobs=None if logprob is None else (TokenLogprob("x", logprob),))


def alone(voting, k, *, last=False):
    """A ballot of one member."""
    return Ballot(voting, (Member(ONE, k),), last=last)


def filled(voting, answers, k, *, last=False):
    """A ballot that was given answers, each only while it wanted one."""
    ballot = alone(voting, k, last=last)

    async def fill():
        for answer in answers:
            if not ballot.wanted():
                break
            await ballot.add(answer if isinstance(answer, Sample) else sample(answer))

    asyncio.run(fill())
    return ballot


def test_the_most_frequent_answer_wins_and_its_share_is_the_confidence():
    ballot = filled(Voting(target=0.5, stopping="fixed"), [4, 5, 4, 4, None, 6, 4, 5], 8)
    verdict = ballot.verdict()
    assert verdict.accepted
    assert verdict.confidence == 4 / 8
    assert verdict.votes == (("4", 4), ("5", 2), ("6", 1))
    assert verdict.unreadable == 1
    assert ballot.samples[verdict.choice].text == "so #### 4"


def test_an_answer_written_differently_is_the_same_vote():
    verdict = filled(Voting(stopping="fixed"), ["1,000", "1000.0", "$1000", "7"], 4).verdict()
    assert verdict.votes == (("1,000", 3), ("7", 1))


def test_a_tie_goes_to_the_answer_that_came_first():
    assert filled(Voting(stopping="fixed"), [5, 4, 4, 5], 4).verdict().votes[0][0] == "5"


def test_where_nothing_can_be_read_nothing_is_accepted():
    verdict = filled(Voting(), [None] * 4, 4).verdict()
    assert (verdict.accepted, verdict.confidence, verdict.votes) == (False, 0.0, ())
    assert verdict.unreadable == 2  # after two of four the target of three in four was out of reach


def test_one_readable_answer_of_one_is_taken_with_unknown_confidence():
    verdict = filled(Voting(target=0.99), [4], 1).verdict()
    assert (verdict.accepted, verdict.confidence) == (True, None)
    assert not filled(Voting(), [None], 1).verdict().accepted


def test_a_vote_ends_when_the_leader_cannot_be_overtaken_and_the_target_is_reached():
    ballot = filled(Voting(target=0.75), [4] * 8, 8)
    assert len(ballot.samples) == 6
    assert ballot.verdict().accepted


def test_a_vote_ends_when_the_target_is_out_of_reach():
    ballot = filled(Voting(target=0.75), [1, 2, 3, 4, 5, 6, 7, 8], 8)
    assert len(ballot.samples) == 4  # at the most five of eight could agree
    assert not ballot.verdict().accepted


def test_the_last_tier_is_not_given_up_before_its_leader_is_settled_because_its_answer_is_taken_anyway():
    ballot = filled(Voting(target=0.75), [1, 2, 3, 4, 4, 4, 4, 4], 8, last=True)
    assert len(ballot.samples) == 7  # until the leader cannot be overtaken
    assert ballot.verdict().votes[0] == ("4", 4)


@given(st.lists(st.sampled_from([1, 2, 3, None]), min_size=1, max_size=9), st.floats(0.2, 1.0))
def test_stopping_when_decided_accepts_what_all_samples_would_accept(answers, target):
    k = len(answers)
    early = filled(Voting(target=target), answers, k).verdict()
    whole = filled(Voting(target=target, stopping="fixed"), answers, k).verdict()
    assert early.accepted == whole.accepted
    if whole.accepted:
        assert early.votes[0][0] == whole.votes[0][0]


@given(st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=9))
def test_as_needed_never_draws_more_than_one_by_one_would(answers):
    """Each step is the fewest that could end the vote, so no sample of it can be one too many."""
    k = len(answers)
    one_by_one = filled(Voting(), answers, k)
    stepwise = alone(Voting(draw="as_needed"), k)

    async def fill():
        while wanted := stepwise.wanted():
            for answer in answers[len(stepwise.samples) :][: len(wanted)]:
                await stepwise.add(sample(answer))

    asyncio.run(fill())
    assert len(stepwise.samples) == len(one_by_one.samples)
    assert stepwise.verdict() == one_by_one.verdict()


def test_all_samples_are_wanted_at_once_unless_told_otherwise():
    assert len(alone(Voting(), 8).wanted()) == 8
    assert len(alone(Voting(draw="as_needed"), 8).wanted()) == 4  # four that disagree put three in four out of reach
    assert len(alone(Voting(draw="as_needed", target=0.5, stopping="beta"), 8).wanted()) == 4
    assert len(alone(Voting(draw="as_needed", stopping="fixed"), 8).wanted()) == 8


def test_a_rule_that_is_sure_ends_the_vote():
    assert len(filled(Voting(stopping="beta"), [4] * 40, 40).samples) == 4


def test_an_ambiguous_vote_is_drawn_again_and_a_scattered_one_is_not():
    entropy = Voting(target=0.7, explore=4)
    ambiguous = filled(entropy, [1, 2, 1, 2, 1, 1, 1, 1], 4)
    assert len(ambiguous.samples) == 8
    assert ambiguous.verdict().accepted
    scattered = filled(entropy, [1, 2, 3, 4, 1, 1, 1, 1], 4)
    assert len(scattered.samples) <= 4
    assert not scattered.verdict().accepted


def test_exploration_has_a_limit():
    ballot = filled(Voting(target=0.9, explore=8), [1, 1, 1, 2] * 5, 4)
    assert len(ballot.samples) <= 12


def test_a_last_tier_is_not_explored():
    assert len(filled(Voting(target=0.7, explore=4), [1, 2, 2, 1, 1, 1], 4, last=True).samples) == 4


def test_votes_that_did_not_come_count_against_the_leader():
    ballot = filled(Voting(target=0.75, stopping="fixed"), [4, 4], 8)
    assert ballot.verdict().accepted  # of what was drawn, all agree
    ballot.lose(0)
    verdict = ballot.verdict(note="the tier was slow")
    assert (verdict.accepted, verdict.confidence) == (False, 2 / 8)
    assert "the tier was slow" in verdict.reason


def test_weights_from_log_probabilities_can_outvote_numbers():
    sure, unsure = math.log(0.9), math.log(0.2)
    answers = [sample(1, unsure), sample(1, unsure), sample(2, sure), sample(1, unsure)]
    verdict = filled(Voting(measure="logprob", target=0.5, stopping="fixed"), answers, 4).verdict()
    assert verdict.votes[0][0] == "2"
    assert verdict.confidence == pytest.approx(0.9 / 1.5)


def test_a_weighted_vote_is_not_over_because_numbers_have_decided():
    """Three of five agree, and yet the two to come could outweigh them."""
    answers = [sample(1, math.log(0.1))] * 3 + [sample(2, math.log(0.9))] * 2
    ballot = filled(Voting(measure="logprob", target=0.5), answers, 5)
    assert len(ballot.samples) == 5
    assert ballot.verdict().votes[0][0] == "2"


def test_without_log_probabilities_a_weighted_vote_is_unknown_and_not_accepted():
    verdict = filled(Voting(measure="logprob", target=0.1, stopping="fixed"), [1, 1, 1], 3).verdict()
    assert (verdict.accepted, verdict.confidence) == (False, None)


@pytest.mark.parametrize("measure", ["share", "entropy", "posterior"])
def test_agreement_is_confidence_by_every_measure(measure):
    voting = Voting(measure=measure, target=0.8, stopping="fixed")
    assert filled(voting, [4] * 8, 8).verdict().accepted
    assert not filled(voting, [1, 2, 3, 4, 5, 6, 7, 8], 8).verdict().accepted


@given(
    st.lists(st.one_of(st.none(), st.integers(0, 3)), max_size=12),
    st.integers(1, 12),
    st.sampled_from(["decided", "beta", "window", "sprt", "martingale", "fixed"]),
    st.sampled_from(["at_once", "as_needed"]),
    st.booleans(),
)
def test_a_ballot_always_ends_and_never_takes_more_than_its_samples(answers, k, rule, draw, last):
    ballot = filled(Voting(stopping=rule, draw=draw), [*answers, *[7] * 24], k, last=last)
    assert not ballot.wanted()
    assert len(ballot.samples) <= k
    verdict = ballot.verdict()
    assert sum(count for _, count in verdict.votes) + verdict.unreadable == len(ballot.samples)
    assert 0 <= verdict.choice < len(ballot.samples)
