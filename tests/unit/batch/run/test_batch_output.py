"""What a request of the OpenAI Batch API gets back keeps what the answer carries, whichever form it was asked in."""

import pytest

from tests.unit.server.examples import answer
from workflow_composer.batch.run.batch_output import batch_answer
from workflow_composer.types import Sample

WEATHER = {"id": "call_7", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}


def body(url: str, sample: Sample) -> dict:
    return batch_answer("r-1", url, answer(sample), logprobs=False)["response"]["body"]


def test_responses_carry_tool_calls_and_thoughts():
    """An answer of calls alone has no empty message beside them."""
    output = body("/v1/responses", Sample("", "tool_calls", (WEATHER,), reasoning="Rome?"))["output"]
    assert [item["type"] for item in output] == ["reasoning", "function_call"]
    assert output[0]["content"] == [{"type": "reasoning_text", "text": "Rome?"}]
    assert output[1] == {
        "type": "function_call",
        "status": "completed",
        "call_id": "call_7",
        "name": "weather",
        "arguments": '{"city": "Rome"}',
    }


@pytest.mark.parametrize(("ended", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
def test_a_response_that_was_cut_off_is_incomplete(ended, reason):
    found = body("/v1/responses", Sample("The answer", ended))
    assert (found["status"], found["incomplete_details"]) == ("incomplete", {"reason": reason})


def test_a_whole_response_is_completed():
    found = body("/v1/responses", Sample("18", "stop"))
    assert found["status"] == "completed"
    assert [item["content"][0]["text"] for item in found["output"]] == ["18"]


def test_chats_carry_tool_calls_and_thoughts():
    message = body("/v1/chat/completions", Sample("", "tool_calls", (WEATHER,), reasoning="Rome?"))["choices"][0]["message"]
    assert message["content"] is None
    assert message["reasoning_content"] == "Rome?"
    assert message["tool_calls"] == [{"type": "function", **WEATHER}]
