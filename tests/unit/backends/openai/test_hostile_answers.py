"""Answers of any JSON and streams of any bytes: read as the package's values, or refused as `ServerFailed`."""

import json
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.integration.stub_backends import local_backend
from tests.integration.stub_server import Reply
from workflow_composer.backends.openai import wire
from workflow_composer.backends.openai.relaying import _Pump
from workflow_composer.backends.openai.stream_accumulator import StreamAccumulator
from workflow_composer.errors import ServerFailed
from workflow_composer.types import LLMRequest, ModelCall, Relay, Sample

SERVER = local_backend("http://127.0.0.1:9/v1")._server
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
functions = st.fixed_dictionaries(
    {}, optional={"name": st.text(max_size=3) | values, "arguments": st.text(max_size=3) | values}
)
calls = st.lists(
    st.fixed_dictionaries({}, optional={"id": values, "index": values, "type": values, "function": functions | values})
    | values,
    max_size=3,
)
said = st.fixed_dictionaries(
    {},
    optional={
        "content": st.text(max_size=5) | values,
        "refusal": values,
        "reasoning_content": values,
        "tool_calls": calls | values,
    },
)
choices = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "index": values,
            "message": said | values,
            "delta": said | values,
            "text": st.text(max_size=5) | values,
            "finish_reason": values,
            "logprobs": values,
        },
    )
    | values,
    max_size=3,
)
answers = st.fixed_dictionaries({}, optional={"choices": choices | values, "usage": values, "model": values}) | values


def check_sample(sample):
    """Every field has the type that the API forms rely on."""
    assert isinstance(sample, Sample)
    assert isinstance(sample.text, str)
    assert isinstance(sample.reasoning, str)
    assert sample.finish_reason is None or isinstance(sample.finish_reason, str)
    for call in sample.tool_calls:
        function = call.get("function")
        assert function is None or all(isinstance(function[field], str) for field in ("name", "arguments"))


def check_refusal(error):
    """It says what is wrong with the answer, and not which exception Python has for it."""
    assert not re.search(r"\w+Error", str(error)), str(error)


@given(answer=answers)
@example(answer={"choices": [{"message": {"content": "a"}, "finish_reason": {}}]})
@example(answer={"choices": [{"message": {"tool_calls": [{"function": {"name": {}, "arguments": "{}"}}]}}]})
@example(answer={"choices": [{"message": {"refusal": 5}}]})
@example(answer={"choices": [{"message": {"content": "a"}}], "model": "\x1b[2J"})
@example(answer={"choices": [{"message": {"content": "a"}}], "model": "m" * 513})
@settings(deadline=None, max_examples=300)
def test_a_whole_answer_is_read_or_refused(answer):
    """By the quick reader and the thorough one alike."""
    content = json.dumps(answer).encode()
    try:
        quick = wire.quick_completion(content, model="m")
        done = quick or SERVER.completion(content, (), model="m")
    except ServerFailed as error:
        check_refusal(error)
        return
    assert done.model.isprintable()
    assert len(done.model) <= 512
    for sample in done.samples:
        check_sample(sample)
    json.loads(wire.strict(content), parse_constant=pytest.fail)


@given(events=st.lists(answers, max_size=4))
@settings(deadline=None, max_examples=300)
def test_the_events_of_a_stream_are_read_or_refused(events):
    """And joined: texts, tool calls and log-probabilities of every shape."""
    heard = StreamAccumulator()
    try:
        for event in events:
            chunk = SERVER.understood(wire.chunk_of, event)
            if chunk is not None:
                heard.add(chunk)
    except ServerFailed as error:
        check_refusal(error)
        return
    check_sample(heard.sample())


@given(
    answer=st.fixed_dictionaries({"data": st.lists(st.fixed_dictionaries({"embedding": values, "index": values}) | values)})
)
@settings(deadline=None)
def test_vectors_are_finite_numbers_or_refused(answer):
    """NaN is no JSON, and a text is no number."""
    count = len(answer["data"])
    try:
        found = SERVER.understood(lambda data: wire.embeddings_of(data, count=count, model="m"), answer)
    except ServerFailed as error:
        check_refusal(error)
    else:
        json.dumps(found.vectors, allow_nan=False)


def test_a_vector_of_texts_or_without_an_end_is_refused():
    """As above, where Hypothesis may not look."""
    for wrong in ("1.0", float("nan"), float("inf"), 10**400, True, None):
        with pytest.raises(ServerFailed, match="not a finite number"):
            SERVER.understood(
                lambda data: wire.embeddings_of(data, count=1, model="m"), {"data": [{"index": 0, "embedding": [wrong]}]}
            )


def test_ids_of_models_are_texts_that_can_be_shown():
    """They go to terminals, tables and later requests; the others are passed over."""
    rows = [{"id": wrong} for wrong in ("\x1b[2J", "a\nb", "m" * 513, {"a": 1}, 5, None, "")]
    rows += [{"id": "adapter", "parent": "base"}, "x", {}, {"id": "base"}]
    assert wire.model_ids({"data": rows}) == ("base", "adapter")


lines = st.one_of(
    st.binary(max_size=12),
    st.sampled_from(
        [b"\n\n", b"\r\n\r\n", b"\r", b"data: [DONE]", b": c", b"event: x", b'"usage":{', b'"error":', b"\xef\xbb\xbf"]
    ),
    answers.map(lambda answer: b"data: " + json.dumps(answer).encode() + b"\n\n"),
)


@given(pieces=st.lists(lines, max_size=12), keep=st.booleans())
@settings(deadline=None, max_examples=300)
def test_a_relayed_stream_of_any_bytes_raises_nothing_by_itself(pieces, keep):
    """An exception within the parser's callback would pass for broken HTTP."""
    passed = []
    relay = Relay(passed.append)
    relay.keep = keep
    pump = _Pump(relay, lambda: None)
    pump.begin()
    for piece in pieces:
        pump.feed(piece)
    if pump.whole and pump.works:
        check_sample(pump.sample())
        pump.end()
        assert b"[DONE]" in b"".join(passed)


async def test_a_whole_stream_without_an_end_marker_gets_one(server, local):
    """Some clients wait for it."""
    passed = []
    server.script(Reply.stream("a", "b", done=False), Reply.stream("a", "b"))
    for _ in range(2):
        await local.complete(ModelCall(LLMRequest.of("q", relay=Relay(passed.append))))
        assert b"".join(passed).count(b"data: [DONE]\n\n") == 1
        passed.clear()


def test_what_json_does_not_know_is_null_in_a_relayed_answer():
    """Other languages' readers refuse NaN; what is strict already stays as it is, byte for byte."""
    assert json.loads(wire.strict(b'{"a": NaN, "b": [1e999, -Infinity, 1.5]}')) == {"a": None, "b": [None, None, 1.5]}
    assert wire.strict(b'{ "a" : 1.50 }') == b'{ "a" : 1.50 }'


@pytest.mark.parametrize(
    "content", [b"[" * 3000 + b"]" * 3000, b'{"choices": "\xff"}', b'{"choices": [', b"", b"[" + b"1" * 5000 + b"]"]
)
def test_what_is_no_readable_json_is_refused(content):
    """Too deep, not UTF-8, cut off, empty, a number of thousands of digits."""
    assert wire.quick_completion(content, model="m") is None
    with pytest.raises(ServerFailed) as refused:
        SERVER.completion(content, (), model="m")
    check_refusal(refused.value)
