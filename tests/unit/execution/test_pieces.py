"""An answer that was judged as a whole is streamed in pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workflow_composer.execution.streaming import pieces_of
from workflow_composer.types import Sample, TokenLogprob


@given(st.text(max_size=400), st.booleans())
def test_the_pieces_are_the_answer(text, with_tokens):
    tokens = tuple(TokenLogprob(one, -0.1) for one in text) if with_tokens else None
    found = pieces_of(Sample(text, "stop", logprobs=tokens))
    assert "".join(piece for piece, _ in found) == text
    assert tuple(token for _, own in found for token in own) == (tokens or ())


def test_a_long_answer_comes_in_several_and_a_short_one_at_once():
    assert len(pieces_of(Sample("four"))) == 1
    assert 3 <= len(pieces_of(Sample("one two three " * 20))) <= 20
    assert len(pieces_of(Sample("a " * 100_000))) <= 300


def test_tokens_that_are_not_the_text_stay_together():
    tokens = (TokenLogprob("other", -0.1),)
    assert pieces_of(Sample("x y " * 100, logprobs=tokens)) == [("x y " * 100, tokens)]
