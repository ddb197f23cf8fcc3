"""A row's own fields of the request are honoured or refused by name, never ignored."""

from __future__ import annotations

import csv
import json

import pytest

from workflow_composer.batch.datasets.table import read_table
from workflow_composer.errors import InputError

TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "number", "minimum": 0.5}}}
HONOURED = {
    "max_tokens": (5, 5),
    "max_completion_tokens": (5, 5),
    "temperature": (0.25, 0.25),
    "top_p": (0.9, 0.9),
    "stop": (["\n\n", "END"], ("\n\n", "END")),
    "seed": (7, 7),
    "tools": ([TOOL], (TOOL,)),
    "tool_choice": ("required", "required"),
    "response_format": (FORMAT, FORMAT),
    "logprobs": (True, True),
    "top_logprobs": (2, 2),
}
"""Each field with a value as OpenAI's API reference writes it, and as it is in the request."""


def own(path):
    """The own fields of the only row."""
    ((_, content),) = read_table(path).asked()
    return dict(content.own)


@pytest.mark.parametrize(("name", "values"), HONOURED.items(), ids=HONOURED)
def test_a_field_is_honoured_from_lines_and_from_csv(tmp_path, name, values):
    """In a CSV file objects and lists are JSON; an empty field asks for nothing."""
    value, wanted = values
    (tmp_path / "d.jsonl").write_text(json.dumps({"question": "q", name: value}))
    with (tmp_path / "d.csv").open("w", newline="") as file:
        written = value if isinstance(value, str) else json.dumps(value)
        csv.writer(file).writerows([["question", name, "seed" if name != "seed" else "top_p"], ["q", written, ""]])
    to = "max_tokens" if name == "max_completion_tokens" else name

    assert own(tmp_path / "d.jsonl") == own(tmp_path / "d.csv") == {to: wanted}
    json.dumps(own(tmp_path / "d.jsonl"))


@pytest.mark.parametrize("name", ["frequency_penalty", "presence_penalty", "top_k", "min_p", "repetition_penalty"])
def test_a_field_of_some_servers_is_passed_on(tmp_path, name):
    (tmp_path / "d.jsonl").write_text(json.dumps({"question": "q", name: 1}))

    assert own(tmp_path / "d.jsonl") == {"extra": {name: 1}}


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"temperature": 37.5}, "'temperature' is 37.5, not a number from 0 to 2"),
        ({"temperature": "warm"}, "'temperature' is 'warm', not a number from 0 to 2"),
        ({"max_tokens": 0}, "'max_tokens' is 0, not a whole number from 1"),
        ({"tools": [{"name": "f"}]}, "'tools' is a list, not a list of tools, each with a type"),
        ({"response_format": "json"}, "'response_format' is 'json', not an object with a type"),
        ({"logprobs": [-0.1]}, "'logprobs' is a list, not true or false"),
        ({"stream": True}, "the field 'stream' is not supported"),
        ({"functions": [{"name": "f"}]}, "the field 'functions' is not supported"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name_and_row(tmp_path, row, told):
    (tmp_path / "d.jsonl").write_text('{"question": "fine"}\n' + json.dumps({"question": "q", **row}))

    with pytest.raises(InputError) as caught:
        list(read_table(tmp_path / "d.jsonl").asked())
    assert f"d.jsonl:2: {told}" in caught.value.message
    assert caught.value.hint


def test_a_column_n_is_a_field_beside_messages_only(tmp_path):
    """Tables number their rows so."""
    (tmp_path / "a.csv").write_text("n,question\n3,q\n")
    assert own(tmp_path / "a.csv") == {}
    (tmp_path / "b.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "q"}], "n": 3}))
    with pytest.raises(InputError, match="the field 'n' is not supported"):
        own(tmp_path / "b.jsonl")


def test_a_column_that_holds_the_label_is_no_field(tmp_path):
    from workflow_composer.batch.datasets.columns import Columns

    (tmp_path / "a.csv").write_text("question,temperature\nHow warm is it?,37.5\n")
    ((_, content),) = read_table(tmp_path / "a.csv", columns=Columns(label="temperature")).asked()

    assert (content.labels, dict(content.own)) == (("37.5",), {})


class TestBatchLines:
    """OpenAI's guide to the Batch API: custom_id, method, url and body."""

    CHAT = {
        "custom_id": "request-1",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": "gpt-4o-mini",
            "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "Hello world!"}],
            "max_tokens": 1000,
            "temperature": 0.5,
            "user": "me",
            "reasoning": {"effort": "low"},
        },
    }

    @pytest.fixture
    def only(self, tmp_path):
        """What the only line asks."""

        def read(line):
            (tmp_path / "batchinput.jsonl").write_text(json.dumps(line) + "\n")
            table = read_table(tmp_path / "batchinput.jsonl")
            assert table.describe() == "OpenAI Batch requests"
            ((_, content),) = table.asked()
            return content

        return read

    def test_chat_completions(self, only):
        content = only(self.CHAT)

        assert content.id == "request-1"
        assert content.messages == ({"role": "system", "content": "s"}, {"role": "user", "content": "Hello world!"})
        extra = {"reasoning": {"effort": "low"}}
        assert content.own == {"model": "gpt-4o-mini", "max_tokens": 1000, "temperature": 0.5, "extra": extra}

    def test_completions_and_responses(self, only):
        """Cookbook examples, and vLLM's run_batch."""
        content = only({**self.CHAT, "url": "/v1/completions", "body": {"model": "m", "prompt": "Once", "max_tokens": 3}})
        assert content.messages == ({"role": "user", "content": "Once"},)
        assert content.own == {"model": "m", "max_tokens": 3, "kind": "completion"}
        body = {"model": "gpt-4.1", "instructions": "Be brief.", "input": "Tell me a story.", "max_output_tokens": 9}
        content = only({**self.CHAT, "url": "/v1/responses", "body": body})
        assert content.messages == (
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Tell me a story."},
        )
        assert content.own == {"model": "gpt-4.1", "max_tokens": 9}

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ({"url": "/v1/embeddings", "body": {"input": "x"}}, "the url '/v1/embeddings' is not supported"),
            ({"method": "GET"}, "the method 'GET' is not supported"),
            ({"body": {"messages": []}}, "'body.messages' is not a list of messages"),
            ({"body": {"messages": [{"role": "user", "content": "q"}], "n": 2}}, "the field 'n' is not supported"),
            ({"url": "/v1/responses", "body": {"input": "q", "tools": [{"type": "web_search"}]}}, "'tools' of responses"),
        ],
    )
    def test_what_is_not_supported_is_refused_by_name(self, only, change, told):
        with pytest.raises(InputError, match=r"batchinput\.jsonl:1: .*" + told.replace("[", r"\[")):
            only({**self.CHAT, **change})
