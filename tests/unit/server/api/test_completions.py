"""Completions of a bare text, and embeddings."""

from __future__ import annotations

import base64
import json
import struct

import pytest

from tests.unit.server.examples import answer, asked, events, read, refused, sent
from workflow_composer.server.api.completions import CompletionsDialect
from workflow_composer.server.api.embeddings import MOST_TEXTS, read_embeddings, written_embeddings
from workflow_composer.server.failures import HttpFailure
from workflow_composer.types import Chunk, Embeddings, Sample, TokenLogprob, Usage

COMPLETIONS = CompletionsDialect()


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("max_tokens", 5, {"max_tokens": 5}),
        ("temperature", 0.3, {"temperature": 0.3}),
        ("top_p", 0.3, {"top_p": 0.3}),
        ("stop", ["a"], {"stop": ("a",)}),
        ("seed", 4, {"seed": 4}),
        ("logprobs", 0, {"logprobs": True, "top_logprobs": 0}),
        ("logprobs", 3, {"logprobs": True, "top_logprobs": 3}),
        ("n", 3, {"n": 3}),
        ("model", "large", {"model": "large"}),
        ("metadata", {"task_type": "code"}, {"metadata": {"task_type": "code"}, "task_type": "code"}),
        ("response_format", {"type": "json_object"}, {"response_format": {"type": "json_object"}}),
        ("echo", True, {"extra": {"echo": True}}),
        ("logit_bias", {"5": 1}, {"extra": {"logit_bias": {"5": 1}}}),
        ("suffix", "", {"extra": {}}),
    ],
)
def test_a_field_is_honoured_or_carried(field, value, expected):
    found = read(COMPLETIONS, {"prompt": "a", field: value}).request
    assert {name: getattr(found, name) for name in expected} == expected
    assert found.kind == "completion"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("suffix", "end"),
        ("best_of", 3),
        ("logprobs", True),
        ("logprobs", 101),
        ("prompt", ["a", 1]),
        ("prompt", [1, -2]),
        ("prompt", [[1], []]),
        ("prompt", ["a"] * 129),
        ("prompt", None),
        ("stream_options", {}),
        ("n", 0),
        ("messages", [{"role": "user", "content": "a"}]),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(field, value):
    assert refused(COMPLETIONS, {"prompt": "a", field: value}).param == field


def test_a_list_of_one_text_is_that_text():
    assert read(COMPLETIONS, {"prompt": ["once"]}).request.messages[0]["content"] == "once"


def test_an_answer_has_openais_shape_with_offsets_of_tokens():
    tokens = (TokenLogprob("ab", -0.1, (("ab", -0.1),)), TokenLogprob("c", -0.2))
    found = json.loads(COMPLETIONS.whole(asked(logprobs=True), answer(Sample("abc", None, logprobs=tokens))))
    (choice,) = found["choices"]
    assert (found["object"], choice["text"], choice["finish_reason"]) == ("text_completion", "abc", "stop")
    assert choice["logprobs"] == {
        "tokens": ["ab", "c"],
        "token_logprobs": [-0.1, -0.2],
        "top_logprobs": [{"ab": -0.1}, None],
        "text_offset": [0, 2],
    }


def test_a_stream_ends_with_usage_where_it_was_asked_for():
    writer = COMPLETIONS.events(asked(stream=True, include_usage=True))
    data = writer.piece(Chunk(text="a", model="m", finish_reason="stop")) + writer.piece(Chunk(usage=Usage(1, 1)))
    piece, usage, done = events(data + writer.end(answer("a")))
    assert piece["choices"][0] == {"index": 0, "text": "a", "finish_reason": "stop", "logprobs": None}
    assert usage["usage"]["total_tokens"] == 10
    assert done == "[DONE]"
    assert events(COMPLETIONS.events(asked(stream=True)).end(answer("a"))) == ["[DONE]"]


# ---------------------------------------------------------------------------------------------------------- embeddings


def test_texts_and_how_their_vectors_are_wanted_are_read():
    found = read_embeddings(sent({"input": "a", "model": "embedder", "dimensions": 4, "encoding_format": "base64"}), {})
    assert (found.texts, found.address, found.dimensions, found.base64) == (("a",), {"model": "embedder"}, 4, True)
    assert read_embeddings(sent({"input": ["a", "b"]}), {}).texts == ("a", "b")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input", []),
        ("input", ""),
        ("input", ["a", ""]),
        ("input", [1, -2]),
        ("input", [[1], []]),
        ("input", [[1], "a"]),
        ("input", ["a"] * (MOST_TEXTS + 1)),
        ("encoding_format", "int8"),
        ("dimensions", 0),
    ],
)
def test_what_embeddings_cannot_honour_is_refused_by_name(field, value):
    with pytest.raises(HttpFailure) as caught:
        read_embeddings(sent({"input": "a", field: value}), {})
    assert caught.value.param == field


def test_what_says_nothing_to_an_embedding_model_is_warned_of():
    found = read_embeddings(sent({"input": "a", "user": "ann"}), {"x-workflow-composer-budget": "1"})
    assert [warning.split()[0] for warning in found.warnings] == ["user", "the"]
    assert "budget" not in found.address
    assert read_embeddings(sent({"input": "a"}), {}).warnings == ()


def test_vectors_are_numbers_or_little_endian_floats():
    found = Embeddings(vectors=((1.0, 0.5),), model="embedder", usage=Usage(3))
    whole = json.loads(written_embeddings(read_embeddings(sent({"input": "a"}), {}), found))
    assert whole["data"] == [{"object": "embedding", "index": 0, "embedding": [1.0, 0.5]}]
    assert whole["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    packed = json.loads(written_embeddings(read_embeddings(sent({"input": "a", "encoding_format": "base64"}), {}), found))
    assert struct.unpack("<2f", base64.b64decode(packed["data"][0]["embedding"])) == (1.0, 0.5)
