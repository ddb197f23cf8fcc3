"""Answers of a wanted form through the executor: mended, asked for again, escalated, and what is on record."""

from __future__ import annotations

import pytest

from workflow_composer.answers.output_form import output_form
from workflow_composer.backends.pricing import Price
from workflow_composer.errors import BadRequest, ServerUnreachable, Unsupported
from workflow_composer.execution.call import Trace
from workflow_composer.execution.forming import MOST_BYTES
from workflow_composer.execution.streaming import StreamRun
from workflow_composer.plan import Plan, Tier, Voting
from workflow_composer.types import LLMRequest, Sample, Usage

KINDS = output_form(["case", "trial"])


def ask(**fields):
    return LLMRequest.of("Which?", form=KINDS, **fields)


def plan(b, *names, **fields):
    return Plan(tuple(Tier.of(b.candidates(name), name, **fields) for name in names))


def cut(text, limit=None):
    """A reply that is cut off, unless the limit is larger."""
    return lambda call: Sample(text, "length" if limit is None or (call.request.max_tokens or 0) < limit else "stop")


async def test_a_mended_answer_costs_no_call(bench, fake):
    b = bench(fake("one", "**Case.**"))
    outcome = await b.executor.run(plan(b, "one"), ask(), b.trace)
    assert (outcome.verdict.value, outcome.verdict.accepted, outcome.verdict.asked_again) == ("case", True, 0)
    assert outcome.verdict.mended == ("case and punctuation",)
    (call,) = b.backends["one"].calls
    assert call.request.messages == (
        {"role": "user", "content": "Which?\n\nAnswer with exactly one of the following, and nothing else: case, trial"},
    )


async def test_the_error_goes_back_to_the_same_model_with_the_last_reply_only(bench, fake):
    b = bench(fake("one", "hm", "ha", "trial"), fake("two", "case"))
    outcome = await b.executor.run(plan(b, "one", "two"), ask(), b.trace)
    assert (outcome.tier, outcome.verdict.value, outcome.verdict.asked_again) == (0, "trial", 2)
    first, second, third = [call.request.messages for call in b.backends["one"].calls]
    assert second[:1] == third[:1] == first
    assert [message["role"] for message in third] == ["user", "assistant", "user"]
    assert (second[1]["content"], third[1]["content"]) == ("hm", "ha")
    assert "not one of: case, trial" in third[2]["content"]


async def test_the_next_tier_gets_the_original_question(bench, fake):
    b = bench(fake("one", "hm", "ha", "ho", "case"), fake("two", "trial"))
    outcome = await b.executor.run(plan(b, "one", "two"), ask(), b.trace)
    assert (outcome.tier, outcome.verdict.value) == (1, "trial")
    assert len(b.backends["one"].calls) == 1 + 2
    assert b.backends["two"].calls[0].request.messages == b.backends["one"].calls[0].request.messages
    first = b.trace.tiers[0].verdict
    assert (first.accepted, first.unreadable, first.asked_again) == (False, 1, 2)
    assert "not one of" in first.reason


@pytest.mark.parametrize(("retries", "calls"), [(0, 1), (1, 2), (5, 6)])
async def test_the_retries_are_those_of_the_request(bench, fake, retries, calls):
    b = bench(fake("one", *[f"hm {n}" for n in range(9)]))
    outcome = await b.executor.run(plan(b, "one"), ask(form_retries=retries), b.trace)
    assert (len(b.backends["one"].calls), outcome.verdict.accepted, outcome.verdict.value) == (calls, False, None)


async def test_the_same_reply_again_ends_the_tiers_tries(bench, fake):
    b = bench(fake("one", "hm"), fake("two", "case"))
    outcome = await b.executor.run(plan(b, "one", "two"), ask(form_retries=5), b.trace)
    assert (outcome.tier, len(b.backends["one"].calls)) == (1, 2)
    assert "the same reply came again" in b.trace.tiers[0].verdict.reason


async def test_what_goes_back_is_bounded(bench, fake):
    b = bench(fake("one", "\u00e4 " * 20_000 + "the end", "case"))
    await b.executor.run(plan(b, "one"), ask(), b.trace)
    reply = b.backends["one"].calls[1].request.messages[1]["content"]
    assert len(reply.encode()) <= MOST_BYTES
    assert reply.endswith("the end")


async def test_a_reply_that_is_cut_off_gets_a_larger_limit_once_and_that_is_no_retry(bench, fake):
    b = bench(fake("one", cut("ca"), cut("case", 1000)), fake("two", "trial"))
    outcome = await b.executor.run(plan(b, "one", "two"), ask(max_tokens=300, form_retries=0), b.trace)
    assert (outcome.tier, outcome.verdict.value) == (0, "case")
    assert [call.request.max_tokens for call in b.backends["one"].calls] == [300, 1200]
    assert b.backends["one"].calls[0].request.messages == b.backends["one"].calls[1].request.messages
    again = bench(fake("one", cut("case")), fake("two", "trial"))
    outcome = await again.executor.run(plan(again, "one", "two"), ask(max_tokens=300), again.trace)
    assert (outcome.tier, len(again.backends["one"].calls)) == (1, 2)
    assert again.backends["two"].calls[0].request.max_tokens == 300


@pytest.mark.parametrize(
    ("reply", "is_whole"),
    [
        ('{"items": ["a"]}', True),
        ('```json\n{"items": ["a"]}\n``', True),
        ('{"items": ["a"]}\n\nThis is bec', True),
        ('{"items": ["a"', False),
        ('{"items": ["a"]', False),
        ('["a"] and ["b', False),
    ],
)
async def test_an_object_that_ends_before_the_reply_is_cut_off_is_whole(bench, fake, reply, is_whole):
    b = bench(fake("one", Sample(reply, "length"), '{"items": ["more"]}'))
    request = LLMRequest.of("Which?", form=output_form({"items": ["text"]}))
    outcome = await b.executor.run(plan(b, "one"), request, b.trace)
    assert (outcome.verdict.value, len(b.backends["one"].calls)) == ({"items": ["a" if is_whole else "more"]}, 2 - is_whole)
    assert (outcome.verdict.accepted, outcome.verdict.unreadable) == (True, 0)


async def test_a_server_that_refuses_the_larger_limit_leaves_the_reply_that_was_cut_off(bench, fake):
    b = bench(fake("one", cut("ca"), BadRequest("max_tokens is too large")))
    outcome = await b.executor.run(plan(b, "one"), ask(), b.trace)
    assert (outcome.answer.text, outcome.verdict.accepted) == ("ca", False)
    assert "cut off by its length" in outcome.verdict.warning


async def test_a_withheld_answer_is_not_asked_for_again(bench, fake):
    b = bench(fake("one", Sample("case", "content_filter")), fake("two", "trial"))
    outcome = await b.executor.run(plan(b, "one", "two"), ask(), b.trace)
    assert (outcome.tier, len(b.backends["one"].calls)) == (1, 1)


async def test_an_answer_without_the_form_is_returned_but_not_accepted(bench, fake):
    b = bench(fake("one", "hm"))
    outcome = await b.executor.run(plan(b, "one"), ask(), b.trace)
    assert (outcome.answer.text, outcome.verdict.accepted, outcome.verdict.confidence) == ("hm", False, None)
    assert "wanted form" in outcome.verdict.warning


async def test_a_model_that_fails_after_a_refused_reply_leaves_that_reply(bench, fake):
    b = bench(fake("one", "hm", ServerUnreachable("gone"), ServerUnreachable("gone"), ServerUnreachable("gone")))
    outcome = await b.executor.run(plan(b, "one"), ask(), b.trace)
    assert (outcome.answer.text, outcome.verdict.accepted) == ("hm", False)


async def test_a_budget_ends_the_tries(bench, fake):
    b = bench(fake("one", *[f"hm {n}" for n in range(9)]), prices={"one": Price(1e6, 1e6)})
    b.endpoints["one"].forecast.learn(ask(), Usage(20, 2), 1, 0.0)
    outcome = await b.executor.run(plan(b, "one"), ask(form_retries=5, budget=30.0), b.trace)
    assert len(b.backends["one"].calls) == 1
    assert (outcome.verdict.accepted, outcome.verdict.unreadable) == (False, 1)
    assert "wanted form" in outcome.verdict.warning


async def test_a_cascades_last_tier_is_asked_again_too(bench, fake):
    b = bench(fake("one", "hm"), fake("two", "ha", "trial"))
    tiers = [Tier.of(b.candidates(name), name, k, voting=Voting()) for name, k in (("one", 3), ("two", 1))]
    outcome = await b.executor.run(Plan(tuple(tiers)), ask(), b.trace)
    assert (outcome.tier, outcome.verdict.value, outcome.verdict.asked_again) == (1, "trial", 1)


async def test_a_tiers_own_form_needs_no_form_of_the_request(bench, fake):
    b = bench(fake("one", "hm", "Case."))
    outcome = await b.executor.run(plan(b, "one", output_form=KINDS, retries=1), LLMRequest.of("Which?"), b.trace)
    assert outcome.verdict.value == "case"


async def test_a_stream_waits_for_the_form(bench, fake):
    b = bench(fake("one", "hm", "trial"))
    run = StreamRun(b.executor, plan(b, "one"), ask(), b.trace)
    chunks = [chunk async for chunk in run.chunks()]
    assert [chunk.text for chunk in chunks] == ["trial"]
    assert run.outcome.verdict.value == "trial"


async def test_several_answers_and_a_form_exclude_each_other(bench, fake):
    b = bench(fake("one", "case"))
    with pytest.raises(Unsupported, match="n is 2"):
        await b.executor.run(plan(b, "one"), ask(n=2), b.trace)


async def test_parts_and_trailing_messages_keep_their_place(bench, fake):
    b = bench(fake("one", "case"))
    parts = [{"type": "text", "text": "Which?"}]
    await b.executor.run(plan(b, "one"), LLMRequest.of([{"role": "user", "content": parts}], form=KINDS), b.trace)
    (message,) = b.backends["one"].calls[0].request.messages
    assert message["content"][0] == parts[0]
    assert "case, trial" in message["content"][1]["text"]


async def test_thirty_violations_are_mended_or_escalated_and_every_call_is_counted(bench, fake):
    """Ten cost nothing, ten are right when asked again, ten go to the next tier after the tier's retries."""
    form = output_form({"gene": "text", "count": "number", "kind": ["germline", "somatic"]})
    good = '{"gene": "TP53", "count": 3, "kind": "somatic"}'
    mended = [
        f"```json\n{good}\n```",
        f"Sure!\n{good}\nAnything else?",
        good.replace(": 3", ': "3"'),
        good.replace("somatic", "Somatic."),
        f"[{good}]",
        good.replace('"', "'"),
        good.replace("}", ",}"),
        good.replace("gene", "Gene"),
        good.replace("}", ', "note": "x"}'),
        f"<think>{{}}</think>{good}",
    ]
    wrong = [
        "",
        "I cannot say.",
        good[:-1],
        good.replace(": 3", ': "three"'),
        good.replace(": 3", ": null"),
        good.replace("somatic", "both"),
        '{"gene": "TP53"}',
        "[]",
        good.replace('"TP53"', '["TP53"]'),
        f"{good}\n{good.replace(': 3', ': 4')}",
    ]
    spent = {}
    for name, scripts in {
        "mended": [(reply,) for reply in mended],
        "asked again": [(reply, good) for reply in wrong],
        "escalated": [(reply, f"{reply} ", f"{reply}  ") for reply in wrong],
    }.items():
        attempts, again, tiers, values = 0, 0, set(), set()
        for script in scripts:
            b = bench(fake("one", *script), fake("two", good))
            outcome = await b.executor.run(plan(b, "one", "two"), LLMRequest.of("?", form=form), b.trace)
            attempts += len(b.trace.attempts)
            again += sum(tier.verdict.asked_again for tier in b.trace.tiers)
            tiers.add(outcome.tier)
            values.add(str(outcome.verdict.value))
        assert len(values) == 1
        spent[name] = (attempts, again, tiers)
    assert spent == {"mended": (10, 0, {0}), "asked again": (20, 10, {0}), "escalated": (40, 20, {1})}


# ---------------------------------------------------------------------------------------------------------------- checks


def checking(*answers):
    """A check that says what it is told to say, in turn; and the values that it was asked about."""
    left, seen = list(answers), []

    async def check(value):
        seen.append(value)
        return left.pop(0)

    return check, seen


CODE = output_form("code")
LONG = "```python\ndef f(x):\n    return x + {0}  # what the caller of this function has asked for, in plain words\n```"


def code(**fields):
    return LLMRequest.of("Write f.", form=CODE, **fields)


async def test_what_a_check_says_goes_back_and_the_next_tier_gets_the_question_only(bench, fake):
    check, seen = checking("expected 2, got 1", "a syntax error", None)
    b = bench(fake("one", "a = 1", "a = (", "unasked"), fake("two", "a = 2"))
    outcome = await b.executor.run(plan(b, "one", "two"), code(check=check, form_retries=1), b.trace)
    assert (outcome.tier, outcome.verdict.value, seen) == (1, "a = 2", ["a = 1", "a = (", "a = 2"])
    first, second = [call.request.messages for call in b.backends["one"].calls]
    assert second[0] == first[0]
    assert second[1]["content"] == "a = 1"
    assert "expected 2, got 1" in second[2]["content"]
    assert b.backends["two"].calls[0].request.messages == first
    told = b.trace.tiers[0].verdict
    assert (told.accepted, told.asked_again, len(told.refused)) == (False, 1, 2)
    assert "a syntax error" in told.reason
    assert "wanted form" not in told.reason


async def test_what_the_form_refuses_is_not_checked(bench, fake):
    check, seen = checking(None)
    b = bench(fake("one", "hm", "case"))
    outcome = await b.executor.run(plan(b, "one"), ask(check=check), b.trace)
    assert (outcome.verdict.value, seen, outcome.verdict.asked_again) == ("case", ["case"], 1)


async def test_a_reply_that_was_just_refused_is_not_checked_again(bench, fake):
    check, seen = checking("wrong")
    b = bench(fake("one", "a = 1", "a = 1", "a = 1"))
    outcome = await b.executor.run(plan(b, "one"), code(check=check, form_retries=5), b.trace)
    assert (outcome.verdict.accepted, outcome.verdict.value, len(b.backends["one"].calls), seen) == (
        False,
        None,
        2,
        ["a = 1"],
    )
    assert "the same reply came again" in outcome.verdict.reason


async def test_a_long_output_of_a_check_is_shortened_to_its_end(bench, fake):
    check, _ = checking("x" * 50_000 + "the end", None)
    b = bench(fake("one", "y" * 50_000, "a = 1"))
    await b.executor.run(plan(b, "one"), code(check=check), b.trace)
    _, second = [call.request.messages for call in b.backends["one"].calls]
    assert len(second[1]["content"]) <= MOST_BYTES
    assert len(second[2]["content"]) <= MOST_BYTES + 200
    assert "xthe end" in second[2]["content"]


async def test_a_check_that_cannot_judge_ends_the_request(bench, fake):
    async def check(value):
        raise Unsupported("no such program")

    b = bench(fake("one", "a = 1"), fake("two", "a = 1"))
    with pytest.raises(Unsupported, match="no such program"):
        await b.executor.run(plan(b, "one", "two"), code(check=check), b.trace)
    assert not b.backends["two"].calls


async def test_a_vote_counts_only_what_passes_the_check(bench, fake):
    """A refused sample is replaced, as one without the form is; long texts that pass are one vote."""
    check, seen = checking(None, "wrong", None, None)
    b = bench(fake("one", *(LONG.format(at) for at in range(4))))
    tier = Tier.of(b.candidates("one"), "one", samples=3, voting=Voting(target=0.9))
    outcome = await b.executor.run(Plan((tier,)), code(check=check, form_retries=1), b.trace)
    assert (outcome.verdict.accepted, outcome.verdict.confidence, len(seen)) == (True, 1.0, 4)
    assert outcome.verdict.value == CODE.read(LONG.format(0)).value


async def test_a_vote_with_tools_checks_texts_too(bench, fake):
    check, seen = checking(None, "wrong", None, None)
    b = bench(fake("one", *(LONG.format(at) for at in range(4))))
    tier = Tier.of(b.candidates("one"), "one", samples=3, voting=Voting(target=0.9))
    tools = ({"type": "function", "function": {"name": "look_up"}},)
    await b.executor.run(Plan((tier,)), code(check=check, form_retries=1, tools=tools), b.trace)
    assert len(seen) == 4


async def test_requests_of_one_form_share_a_plan_and_others_have_their_own(bench, fake):
    b = bench(fake("one", "case", "case", "12", "case"))
    one = plan(b, "one")
    number = LLMRequest.of("How many?", form=output_form("number"))
    formed = b.executor.formed
    assert formed.of(one, ask()) is formed.of(one, ask())
    assert formed.of(one, ask(form_retries=7)).tiers[0].retries == 7
    assert formed.of(one, ask()).tiers[0].form is KINDS
    for request, value in ((ask(), "case"), (ask(), "case"), (number, 12), (ask(), "case")):
        outcome = await b.executor.run(one, request, Trace())
        assert outcome.verdict.value == value
