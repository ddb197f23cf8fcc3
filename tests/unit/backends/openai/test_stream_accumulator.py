"""A stream's pieces, put together."""

from __future__ import annotations

from workflow_composer.backends.openai.stream_accumulator import StreamAccumulator
from workflow_composer.types import Chunk, TokenLogprob, Usage


def heard(*chunks: Chunk) -> StreamAccumulator:
    """All of them, in order."""
    accumulator = StreamAccumulator()
    for chunk in chunks:
        accumulator.add(chunk)
    return accumulator


def test_an_answer_is_its_pieces_in_order_and_its_reasoning_is_no_part_of_its_text():
    """Each with the log-probabilities of its tokens."""
    first, second = TokenLogprob("4", -0.1), TokenLogprob("2", -0.2)
    sample = heard(
        Chunk(reasoning="let me "),
        Chunk(reasoning="see"),
        Chunk("4", logprobs=(first,)),
        Chunk("2", logprobs=(second,), finish_reason="stop"),
        Chunk(usage=Usage(5, 2), model="m"),
    ).sample()
    assert (sample.text, sample.reasoning, sample.finish_reason) == ("42", "let me see", "stop")
    assert sample.logprobs == (first, second)


def test_of_what_a_server_tells_many_times_the_last_is_true():
    """Servers with continuous usage count up; an event that says nothing takes nothing back."""
    accumulator = heard(
        Chunk("4", usage=Usage(5, 1), model="old"), Chunk("2", usage=Usage(5, 2), model="m"), Chunk(finish_reason="length")
    )
    assert (accumulator.usage, accumulator.model, accumulator.finish_reason) == (Usage(5, 2), "m", "length")
    accumulator.add(Chunk())
    assert (accumulator.usage, accumulator.model, accumulator.finish_reason) == (Usage(5, 2), "m", "length")


def test_a_stream_that_is_left_before_its_usage_is_counted_by_what_it_brought():
    """By log-probabilities, of which there is one a token, else by pieces; those that carry nothing count for none."""
    accumulator = heard(Chunk(), Chunk("a b"), Chunk(reasoning="c"))
    assert (accumulator.usage_so_far(7), accumulator.usage) == (Usage(7, 2), Usage(0, 2))
    accumulator.add(Chunk("d", logprobs=tuple(TokenLogprob(text, -1.0) for text in "defgh")))
    assert accumulator.usage_so_far(7) == Usage(7, 5)
    accumulator.add(Chunk(usage=Usage(9, 6)))
    assert accumulator.usage_so_far(7) == Usage(9, 6)
