"""A row's record: graded by its label, or by what the recording says."""

from __future__ import annotations

import asyncio
import json
import random

import pytest

from workflow_composer import ModelOrchestrator, StrategyConfig, hookimpl
from workflow_composer.answers import AnswerForm, reader
from workflow_composer.backends.fake import FakeBackend
from workflow_composer.batch.datasets.dataset import Row
from workflow_composer.batch.datasets.recorded_answers import RecordedAnswers
from workflow_composer.batch.run.answering import Answering, Job
from workflow_composer.batch.run.limiter import Limiter
from workflow_composer.batch.run.runner import heard
from workflow_composer.errors import BadRequest, InputError, RateLimited
from workflow_composer.metrics.sink import NullSink
from workflow_composer.plugins.host import plugin_host

ANSWERS = {"a": ["#### 1", "#### 2", "I do not know."], "b": ["#### 4", "#### 4.0", "#### 5"], "c": ["..."]}


@pytest.fixture
def recording(tmp_path):
    """Two models, three samples each; b's first two are right."""
    path = tmp_path / "own.jsonl"
    rows = [
        {"question": "2 + 2?", "model": m, "sample": n, "answer": text, "correct": m == "b" and n < 2, "tokens": 4}
        for m, texts in ANSWERS.items()
        for n, text in enumerate(texts)
    ]
    random.Random(1).shuffle(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RecordedAnswers(path)


def answer(recording, route, label, **options):
    models = {name: {"backend": "replay", "path": str(recording.path)} for name in ANSWERS}
    votes = {"cascade": {"draw": "as_needed", "target": 0.6}}
    config = StrategyConfig(profile_name="p", models=models, routers=[votes, "provider"], retries={"attempts": 1})

    async def run():
        async with ModelOrchestrator(config, metrics=NullSink(), environ={}) as orchestrator:
            answering = Answering(orchestrator.agenerate, reader(AnswerForm()), **options)
            return await answering(Job(Row(7, "seven", "2 + 2?", label), route))

    return asyncio.run(run())


def test_a_cascades_record_holds_every_tier_and_the_grade_of_every_sample(recording):
    record = answer(recording, "mv_cascade_a_k3_b_k3", "2 + 2 = 4. #### 4")
    assert (record.row, record.id, record.answer, record.correct, record.deciding) == (7, "seven", "4", True, "b")
    first, second = record.tiers
    assert (first.votes, first.unreadable, first.right) == ((("1", 1), ("2", 1)), 1, (False,) * 3)
    assert (second.votes, second.right) == ((("4", 2),), (True, True))
    assert record.completion_tokens == 4 * 5
    assert first.texts == ()


def test_without_a_label_the_recording_says_what_is_right(recording):
    record = answer(recording, "mv_b_k3", None, recorded=recording.right, keep_texts=True)
    assert (record.correct, record.tiers[0].right) == (True, (True, True))
    assert record.tiers[0].texts == ("#### 4", "#### 4.0")


def test_where_nobody_knows_what_is_right_nothing_is_said(recording):
    record = answer(recording, "b", None)
    assert (record.correct, record.tiers[0].right, record.answer) == (None, (), "4")


@pytest.mark.parametrize(("kind", "right"), [(None, False), ("text", False), ("mathematics", True)])
def test_the_data_sets_kind_counts_where_the_label_is_no_more_than_two_numbers_and_a_slash(tmp_path, kind, right):
    """2/4 is 1/2 among fractions, and another genotype among genotypes."""
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"question": "2 + 2?", "model": "a", "sample": 0, "answer": "#### 2/4", "tokens": 4}) + "\n")
    config = StrategyConfig(profile_name="p", models={"a": {"backend": "replay", "path": str(path)}}, routers=["provider"])

    async def run():
        async with ModelOrchestrator(config, metrics=NullSink(), environ={}) as orchestrator:
            answering = Answering(orchestrator.agenerate, reader(AnswerForm()), kind=kind)
            return await answering(Job(Row(7, "seven", "2 + 2?", "1/2"), "a"))

    assert asyncio.run(run()).correct is right


def test_a_single_answer_is_a_record_like_any_other(recording):
    record = answer(recording, "a", "1")
    (tier,) = record.tiers
    assert (tier.votes, tier.samples, record.correct, record.confidence) == ((("1", 1),), 1, True, None)


def test_an_answer_that_cannot_be_read_is_none_and_wrong(recording):
    record = answer(recording, "mv_a_k3", "1", fields={"seed": 1})
    assert record.tiers[0].unreadable + sum(count for _, count in record.tiers[0].votes) == record.tiers[0].samples


def test_what_fails_is_raised(recording):
    with pytest.raises(BadRequest, match="has 3 answers"):
        answer(recording, "mv_b_k9", "4")


def test_a_row_that_was_refused_before_it_was_answered_is_told_of():
    """The pace of a batch must fall before rows fail."""
    told = []

    class Heard(Limiter):
        def overloaded(self, error):
            told.append(error)

    fake = FakeBackend(RateLimited("slow down"), "#### 4", name="m")

    class Plugin:
        @hookimpl
        def register_backends(self, register):
            register("scripted", lambda spec, context: fake)

    host = plugin_host(discover=False)
    host.add(Plugin(), name="scripted")
    config = StrategyConfig(profile_name="p", models={"m": {"backend": "scripted"}}, routers=["provider"])

    async def run():
        async with ModelOrchestrator(config, plugins=host, metrics=NullSink(), environ={}) as orchestrator:
            answering = Answering(heard(orchestrator.agenerate, Heard()), reader(AnswerForm()))
            return [await answering(Job(Row(n, str(n), "2 + 2?", "4"), "m")) for n in range(2)]

    first, second = asyncio.run(run())
    assert (first.correct, second.correct, told) == (True, True, ["RateLimited"])


def test_questions_come_in_the_order_of_the_file_and_once(recording):
    assert [row.question for row in recording.rows()] == ["2 + 2?"]
    assert (recording.count(), recording.samples("a"), set(recording.models)) == (1, 3, {"a", "b", "c"})
    assert recording.right("b", " 2 + 2? ", 1) is True
    assert recording.right("b", "2 + 2?", 9) is None
    assert recording.right("d", "2 + 2?", 0) is None


def test_a_file_that_is_no_recording_is_an_error_that_says_where(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"question": 1}\n')
    with pytest.raises(InputError, match=r"x\.jsonl:1"):
        RecordedAnswers(tmp_path / "x.jsonl")
    with pytest.raises(InputError, match="cannot read the recorded answers"):
        RecordedAnswers(tmp_path / "y.jsonl")
    (tmp_path / "z.jsonl").write_text("")
    with pytest.raises(InputError, match="no answers"):
        RecordedAnswers(tmp_path / "z.jsonl")


def test_the_number_of_samples_is_fixed_only_if_no_answer_could_change_it(recording):
    """A vote that may end early draws more for harder questions."""
    early = answer(recording, "mv_cascade_a_k3_b_k3", "4").tiers
    assert [tier.fixed for tier in early] == [False, False]
    assert answer(recording, "a", "1").tiers[0].fixed


def test_a_row_without_a_price_says_so(recording):
    record = answer(recording, "mv_cascade_a_k3_b_k3", "4")
    assert (record.cost, record.priced, [tier.priced for tier in record.tiers]) == (0.0, False, [False, False])


def test_an_answer_that_cannot_be_read_is_not_accepted(recording):
    read, unread = answer(recording, "a", "1"), answer(recording, "c", "4")
    assert (read.accepted, read.unreadable) == (True, False)
    assert (unread.accepted, unread.unreadable, unread.correct) == (False, True, False)
