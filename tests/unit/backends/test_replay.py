"""Recorded answers, played back."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflow_composer.backends.base import Backend
from workflow_composer.backends.recordings import Recording, ReplayBackend, open_recording
from workflow_composer.config.strategy import ModelSpec
from workflow_composer.errors import BadRequest, ModelNotFound, ServerUnreachable, Unsupported
from workflow_composer.types import LLMRequest, ModelCall, TokenLogprob, Usage

QUESTION = "How many?"


def row(question=QUESTION, model="7B", sample=0, answer="#### 7", **more):
    """One line's object."""
    return {"question": question, "model": model, "sample": sample, "answer": answer, "correct": True, "tokens": 3, **more}


def write(path, rows):
    """Write a recording, compressed if its name says so."""
    text = "".join(json.dumps(each) + "\n" for each in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def backend_of(path, model="7B"):
    """A backend for one model of a file."""
    return ReplayBackend(ModelSpec(name="recorded", backend="replay", path=str(path), model=model), None)


def call(prompt=QUESTION, *, samples=1, **fields):
    """One question to the model."""
    return ModelCall(LLMRequest.of(prompt, **fields), samples=samples)


@pytest.fixture(params=["answers.jsonl", "answers.jsonl.gz"])
def path(request, tmp_path):
    """Two models, samples out of order, two questions."""
    rows = [
        row(sample=1, answer="second", tokens=20),
        row("Another?", answer="other", prompt_tokens=9),
        row(model="70B", answer="large"),
        row(sample=0, answer="first", tokens=10, prompt_tokens=5),
        row(sample=2, answer="third", tokens=30, correct=None),
    ]
    return write(tmp_path / request.param, rows)


def test_it_is_a_backend(tmp_path):
    """The replay backend offers every method of the seam, and its constructor reads nothing."""
    assert isinstance(backend_of(tmp_path / "absent.jsonl"), Backend)


async def test_samples_come_in_their_recorded_order(path):
    """The first k samples of the question, whatever their order in the file, with their tokens added up."""
    completion = await backend_of(path).complete(call(samples=2))
    assert [sample.text for sample in completion.samples] == ["first", "second"]
    assert completion.usage == Usage(5, 30)
    assert completion.model == "7B"
    again = await backend_of(path).complete(call(samples=3))
    assert [sample.text for sample in again.samples] == ["first", "second", "third"]


async def test_the_model_selects_within_the_file(path):
    """One file serves several catalogue entries."""
    assert (await backend_of(path, "70B").complete(call())).samples[0].text == "large"


async def test_the_last_user_message_is_looked_up(path):
    """System messages and earlier turns play no part; white space at the ends neither."""
    turns = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "Another?"},
        {"role": "assistant", "content": "hm"},
        {"role": "user", "content": [{"type": "text", "text": f" {QUESTION}\n"}]},
    ]
    assert (await backend_of(path).complete(call(turns))).samples[0].text == "first"


async def test_what_was_settled_while_recording_changes_nothing(path):
    """Temperature and length of the call do not alter a recorded answer."""
    asked = call(temperature=0.7, max_tokens=1, seed=4, top_p=0.5)
    assert (await backend_of(path).complete(asked)).samples[0].text == "first"


@pytest.mark.parametrize(("stop", "text"), [("r", "fi"), (("x", "s", "i"), "f"), ("x", "first"), ((), "first")])
async def test_a_stop_string_ends_a_recorded_answer(path, stop, text):
    """Before the first of them, as a model would."""
    assert (await backend_of(path).complete(call(stop=stop))).samples[0].text == text


async def test_unknown_models_and_questions_are_named(path):
    """The errors say what is missing and, for a model, what is there."""
    with pytest.raises(ModelNotFound, match="'13B'; recorded models: 70B, 7B"):
        await backend_of(path, "13B").complete(call())
    with pytest.raises(ModelNotFound, match="no answer of '7B' to 'Why"):
        await backend_of(path).complete(call("Why?"))


async def test_too_few_samples_are_a_bad_request(path):
    """A vote over fewer answers than were asked for would be another experiment."""
    with pytest.raises(BadRequest, match=r"has 3 answers .*, not 4"):
        await backend_of(path).complete(call(samples=4))


@pytest.mark.parametrize("fields", [{"tools": ({},)}, {"response_format": {"type": "text"}}, {"extra": {"logit_bias": {}}}])
async def test_what_a_recording_cannot_follow_is_refused(path, fields):
    """Fields that would have changed the answer are not dropped in silence."""
    with pytest.raises(Unsupported, match=next(iter(fields.get("extra", fields)))):
        await backend_of(path).complete(call(**fields))


async def test_log_probabilities_are_played_back_where_recorded(tmp_path):
    """With as many alternatives as wanted; where none were recorded, the wish is refused."""
    tokens = [{"token": "7", "logprob": -0.5, "top": [["7", -0.5], ["8", -1.5]]}, {"token": "!", "logprob": -1}]
    path = write(tmp_path / "a.jsonl", [row(logprobs=tokens), row("Another?")])
    backend = backend_of(path)
    (sample,) = (await backend.complete(call(logprobs=True, top_logprobs=1))).samples
    assert sample.logprobs == (TokenLogprob("7", -0.5, (("7", -0.5),)), TokenLogprob("!", -1.0))
    assert (await backend.complete(call())).samples[0].logprobs is None
    chunks = [chunk async for chunk in backend.stream(call(logprobs=True))]
    assert [token.token for token in chunks[-1].logprobs] == ["7", "!"]
    with pytest.raises(Unsupported, match="log-probabilities"):
        await backend.complete(call("Another?", logprobs=True))


@pytest.mark.parametrize("answer", ["", "x", "a longer answer of several words", "ä" * 1000])
async def test_a_stream_brings_the_text_in_pieces(tmp_path, answer):
    """The pieces join to the answer; the last one has finish reason and usage."""
    path = write(tmp_path / "a.jsonl", [row(answer=answer, tokens=12, prompt_tokens=4)])
    chunks = [chunk async for chunk in backend_of(path).stream(call())]
    assert "".join(chunk.text for chunk in chunks) == answer
    assert (chunks[-1].finish_reason, chunks[-1].usage) == ("stop", Usage(4, 12))
    assert len(chunks) == min(len(answer), 4) + 1


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "Expecting property name"),
        ("[1]", "not a JSON object"),
        ('{"question": "x"}', "model is None; it must be a string"),
        (json.dumps(row(sample=-1)), "sample is -1"),
        (json.dumps(row(sample=True)), "sample is True"),
        (json.dumps(row(sample=1 << 32)), "sample is 4294967296"),
        (json.dumps(row(tokens="3")), "tokens is '3'; it must be a non-negative integer"),
        (json.dumps(row(correct=1)), "correct is 1; it must be true, false or null"),
        (json.dumps(row(logprobs=[{"token": "x"}])), "an entry of logprobs is"),
        (json.dumps(row(mark=1)), "unknown key 'mark'"),
        (json.dumps(row(score="high")), "score is 'high'; it must be a number"),
        (json.dumps(row(cost=-1)), "cost is -1; it must be a non-negative number of dollars"),
        (json.dumps(row(answer="y")), "duplicate model, question and sample; see line 1"),
        ("\udcff", "codec can't decode"),
        ("[" * 100_000, "recursion"),
    ],
)
async def test_a_damaged_line_is_named(tmp_path, line, fault):
    """The error gives file, line and fault."""
    path = tmp_path / "answers.jsonl"
    path.write_bytes(f"{json.dumps(row())}\n\n{line}\n".encode(errors="surrogateescape"))
    with pytest.raises(ModelNotFound, match=f"answers.jsonl:3: .*{fault}"):
        await backend_of(path).complete(call())


async def test_a_truncated_archive_or_a_missing_file_is_named(tmp_path):
    """What cannot be opened is an error of the call, with the path in it."""
    backend = backend_of(tmp_path / "absent.jsonl")
    with pytest.raises(ModelNotFound, match=r"absent\.jsonl: No such file"):
        await backend.complete(call())
    assert not (await backend.health(timeout=1)).healthy
    (tmp_path / "half.jsonl.gz").write_bytes(gzip.compress(json.dumps(row()).encode())[:-10])
    with pytest.raises(ModelNotFound, match=r"half\.jsonl\.gz"):
        await backend_of(tmp_path / "half.jsonl.gz").complete(call())


async def test_a_file_that_changes_while_open_is_noticed(tmp_path):
    """What is read back must still be the line that was indexed."""
    backend = backend_of(write(tmp_path / "a.jsonl", [row("first " * 50), row()]))
    await backend.complete(call())
    (tmp_path / "a.jsonl").write_text("short\n")
    with pytest.raises(ModelNotFound, match="damaged recording"):
        await backend.complete(call())


@given(
    answers=st.dictionaries(
        st.tuples(st.text(min_size=1).map(str.strip).filter(bool), st.sampled_from("ab"), st.integers(0, 4)),
        st.text(),
        max_size=20,
    )
)
def test_every_recorded_answer_is_found_again(tmp_path_factory, answers):
    """For any questions, whatever their characters, the index leads to the right line."""
    rows = [row(question, model, sample, answer) for (question, model, sample), answer in answers.items()]
    recording = Recording(write(tmp_path_factory.mktemp("r") / "a.jsonl", rows))
    for question, model, _ in answers:
        expected = [text for (q, m, _), text in sorted(answers.items()) if (q, m) == (question, model)]
        assert [found.answer for found in recording.answers(model, question, len(expected))] == expected


def test_texts_stay_on_disk(tmp_path):
    """Memory holds places, not texts: 2,000 answers of 10,000 characters are indexed in well under a megabyte."""
    rows = (row(f"question {i}", answer="x" * 10_000) for i in range(2_000))
    path = write(tmp_path / "a.jsonl", rows)
    tracemalloc.start()
    try:
        recording = Recording(path)
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert recording.models == {"7B": 2_000}
    assert held < 500_000


async def test_backends_of_one_file_share_one_index(path):
    """Four models of one file read it once; when the last one closes, it is let go."""
    one, two = backend_of(path), backend_of(path, "70B")
    await asyncio.gather(one.complete(call()), two.complete(call()))
    assert one._recording is two._recording is open_recording(path)
    await one.close()
    assert (await two.complete(call())).samples
    with pytest.raises(ServerUnreachable, match="closed"):
        await one.complete(call())
    await one.close()


async def test_health_counts_the_answers_once_the_file_is_read(path):
    """Before the first call only the file's presence is looked at."""
    backend = backend_of(path)
    assert (await backend.health(timeout=1)).detail == "loads on first use"
    await backend.complete(call())
    assert (await backend.health(timeout=1)).detail == "4 recorded answers"


async def test_embeddings_are_refused(path):
    """There are no vectors in a recording."""
    with pytest.raises(Unsupported, match="no embeddings"):
        await backend_of(path).embed(["x"], timeout=1)


async def test_a_call_without_a_user_message_is_refused(path):
    """There is nothing to look up."""
    with pytest.raises(BadRequest, match="no user message"):
        await backend_of(path).complete(call([{"role": "system", "content": "x"}]))
