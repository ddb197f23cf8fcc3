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
    assert (accumulator.delivery.usage, accumulator.model, accumulator.finish_reason) == (Usage(5, 2), "m", "length")
    accumulator.add(Chunk())
    assert (accumulator.delivery.usage, accumulator.model, accumulator.finish_reason) == (Usage(5, 2), "m", "length")
    accumulator.add(Chunk(usage=Usage(0, 9)))
    assert accumulator.delivery.usage == Usage(5, 9)


def test_a_stream_that_is_left_before_its_usage_is_counted_by_what_it_brought():
    """By log-probabilities, of which there is one a token, else by pieces; those that carry nothing count for none."""
    call = [{"function": {"name": "get", "arguments": '{"x":1}'}}]
    accumulator = heard(Chunk(), Chunk("a b"), Chunk(reasoning="c"), Chunk(tool_calls=call), Chunk(finish_reason="stop"))
    delivery = accumulator.delivery
    assert (delivery.pieces, delivery.counted, delivery.uncounted, delivery.characters) == (4, 0, 3, 3 + 1 + 3 + 7)
    accumulator.add(Chunk("d", logprobs=tuple(TokenLogprob(text, -1.0) for text in "defgh")))
    assert (delivery.counted, delivery.uncounted, delivery.usage) == (5, 3, None)
    accumulator.add(Chunk(usage=Usage(9, 6)))
    assert (delivery.usage, delivery.usage_at) == (Usage(9, 6), 5)
