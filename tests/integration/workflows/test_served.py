"""Workflows as models of the service: what any client of chat completions, messages and responses gets."""

from __future__ import annotations

import http.client
import json
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from openai import InternalServerError, NotFoundError, OpenAI

from tests.integration.workflows.kit import WRONG
from tests.integration.workflows.scripted import Said

pytestmark = pytest.mark.integration

CHAIN = """
    workflow: chain
    inputs: {t: text}
    steps:
      a: {prompt: "first {{ t }}"}
      c: {when: "len(a) > 100", prompt: "third {{ a }}"}
      b: {prompt: "second {{ a }}"}
    output: {b: "{{ b }}"}
    stream: b
"""
FAN = """
    workflow: fan
    inputs: {question: text, other: text}
    steps:
      words: {prompt: "words of {{ question }}", answer: [text]}
      each: {for_each: "w in words", prompt: "thing {{ w }} {{ other | default('-') }}"}
      twice: {when: "len(words) == 1", prompt: "twice {{ question }}"}
    output: {words: "{{ words }}", each: "{{ each }}", twice: "{{ twice | default(null) }}"}
"""
OPENED = {"workflows": ["chain.yaml", "flows"]}


class Client:
    def __init__(self, url):
        self.place = urlsplit(url)

    def send(self, path, body=None, **headers):
        """Status, headers and body."""
        connection = http.client.HTTPConnection(self.place.hostname, self.place.port, timeout=60)
        try:
            method = "GET" if body is None else "POST"
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json", **headers})
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read().decode()
        finally:
            connection.close()

    def asked(self, content="x", model="workflow:chain", path="/v1/chat/completions", **fields):
        status, headers, text = self.send(
            path, {"model": model, "messages": [{"role": "user", "content": content}], **fields}
        )
        return status, headers, json.loads(text)

    def streamed(self, body, path="/v1/chat/completions"):
        """The events' data."""
        status, headers, text = self.send(path, {**body, "stream": True})
        assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8"), text
        lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
        return headers, [json.loads(line) for line in lines if line != "[DONE]"]


@contextmanager
def serving(desk, *options):
    process = desk.start("serve", "--port", "0", "--json", *options)
    try:
        line = process.stdout.readline()
        assert line, process.communicate(timeout=60)
        yield Client(json.loads(line)["url"])
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.fixture
def opened(desk):
    """A desk with two workflows that its profile offers."""
    (desk.folder / "flows").mkdir()
    desk.file(CHAIN, "chain.yaml")
    desk.file(FAN, "flows/fan.yml")
    desk.small.says("first", "one").says("second", "two three").says("words", '["p", "q", "r"]').says("thing", "it")
    desk.profile(**OPENED)
    return desk


def test_every_api_answers_with_the_text_of_the_workflow(opened):
    with serving(opened) as client:
        listed = json.loads(client.send("/v1/models")[2])["data"]
        assert {"workflow:chain", "workflow:fan", "small"} <= {row["id"] for row in listed}
        status, headers, found = client.asked("x", temperature=0.5)
        assert (status, found["choices"][0]["message"]["content"], found["model"]) == (200, "two three", "workflow:chain")
        assert found["usage"]["completion_tokens"] == 4
        assert headers["x-workflow-composer-steps"] == "a;state=done;calls=1, c;state=skipped, b;state=done;calls=1"
        assert (headers["x-workflow-composer-attempts"], float(headers["x-workflow-composer-cost"])) == ("2", 4e-6)
        assert headers["x-workflow-composer-warning"].startswith("temperature is ignored")
        system = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "x"}]
        told = client.send("/v1/chat/completions", {"model": "workflow:chain", "messages": system})[1]
        assert told["x-workflow-composer-warning"].startswith("the system message is ignored")
        assert opened.small.prompts() == ["first x", "second one"] * 2
        parts = [{"type": "text", "text": "y"}]
        history = [
            {"role": "user", "content": "old"},
            {"role": "assistant", "content": "o"},
            {"role": "user", "content": parts},
        ]
        body = {"model": "workflow:chain", "messages": history, "max_tokens": 50}
        found = json.loads(client.send("/v1/messages", body)[2])
        assert (found["content"], found["stop_reason"]) == ([{"type": "text", "text": "two three"}], "end_turn")
        assert opened.small.count("first y") == 1
        found = json.loads(client.send("/v1/responses", {"model": "workflow:chain", "input": "z"})[2])
        assert found["output"][0]["content"][0]["text"] == "two three"
        assert opened.small.count("first z") == 1
        found = json.loads(client.send("/v1/completions", {"model": "workflow:chain", "prompt": "old"})[2])
        assert found["choices"][0]["text"] == "two three"
        status, headers, found = client.asked("x", "workflow:fan")
        expected = {"words": ["p", "q", "r"], "each": ["it"] * 3, "twice": None}
        assert json.loads(found["choices"][0]["message"]["content"]) == expected
        assert sorted(opened.small.prompts("thing")) == [f"thing {w} -" for w in "pqr"]


def test_the_step_that_is_named_streams_as_it_comes(opened):
    with serving(opened) as client:
        question = [{"role": "user", "content": "x"}]
        body = {"model": "workflow:chain", "messages": question, "stream_options": {"include_usage": True}}
        headers, events = client.streamed(body)
        deltas = [one["choices"][0]["delta"].get("content") for one in events if one["choices"]]
        assert [text for text in deltas if text] == ["two", " three"]  # the pieces of the model's server
        assert [one.body.get("stream", False) for one in opened.small.calls] == [False, True]
        assert events[-1]["usage"]["total_tokens"] > 0
        assert events[-2]["choices"][0]["finish_reason"] == "stop"
        assert "x-workflow-composer-steps" in headers["trailer"]
        _, events = client.streamed({"model": "workflow:chain", "messages": question, "max_tokens": 9}, "/v1/messages")
        assert "".join(one["delta"]["text"] for one in events if one["type"] == "content_block_delta") == "two three"
        assert events[-1] == {"type": "message_stop"}
        _, events = client.streamed({"model": "workflow:chain", "input": "x"}, "/v1/responses")
        assert "".join(one["delta"] for one in events if one["type"] == "response.output_text.delta") == "two three"
        _, events = client.streamed({"model": "workflow:fan", "messages": question})  # names no step: the finished text
        text = "".join(one["choices"][0]["delta"].get("content") or "" for one in events)
        assert json.loads(text)["each"] == ["it"] * 3


def test_the_openai_client_takes_it_for_a_model(opened):
    with serving(opened) as client, OpenAI(base_url=client.place.geturl() + "/v1", api_key="none", max_retries=0) as known:
        question = [{"role": "user", "content": "x"}]
        assert "workflow:chain" in [one.id for one in known.models.list()]
        whole = known.chat.completions.create(model="workflow:chain", messages=question)
        assert whole.choices[0].message.content == "two three"
        stream = known.chat.completions.create(model="workflow:chain", messages=question, stream=True)
        assert "".join(one.choices[0].delta.content or "" for one in stream) == "two three"
        assert known.responses.create(model="workflow:chain", input="x").output_text == "two three"
        with pytest.raises(NotFoundError, match="there is no workflow"):
            known.chat.completions.create(model="workflow:none", messages=question)


def test_calls_count_over_all_steps_and_a_fan_out_beyond_them_fails_before_it_begins(opened):
    with serving(opened, "--most-calls", "4") as client:
        assert client.asked("x", "workflow:fan")[0] == 200
        opened.reset()
        opened.small.forget().says("words", json.dumps([str(n) for n in range(9)]))
        status, _, found = client.asked("x", "workflow:fan")
        assert (status, found["error"]["code"]) == (400, "too_many_calls")
        assert "each: its 9 items need 9 calls" in found["error"]["message"]
        assert opened.calls == 1
        opened.small.forget().says("words", '["p"]')
        status, _, found = client.asked("x", "workflow:fan")
        assert status == 200
        assert opened.calls == 3
    opened.reset()
    with serving(opened, "--most-calls", "1") as client:
        status, _, found = client.asked("x")
        assert (status, found["error"]["code"], opened.calls) == (400, "too_many_calls", 1)
        assert "step 'b' needs up to 1 calls" in found["error"]["message"]


@pytest.mark.parametrize(
    ("steps", "needed"),
    [
        ('each: {for_each: "w in words", model: mv_cascade_small_k5_t0.7, prompt: "thing {{ w }}"}', 30),
        ('each: {for_each: "w in words", prompt: "thing {{ w }}", accept: {judge: large, ask: "good?"}}', 12),
        ('each: {for_each: "w in words", workflow: ../chain.yaml, with: {t: w}}', 12),
        (
            'each: {for_each: "w in words", steps: {p: {prompt: "thing {{ w }}"}, q: {prompt: "{{ p }}"}, '
            'r: {when: "p == q", prompt: "maybe"}, s: {prompt: "not sure {{ r }}"}}}',
            12,
        ),
    ],
)
def test_votes_judges_and_inner_steps_of_a_list_s_items_count_before_the_first_is_asked(opened, steps, needed):
    opened.file(
        f"""
    workflow: wide
    inputs: {{t: text}}
    steps:
      words: {{prompt: "words of {{{{ t }}}}", answer: [text]}}
      {steps}
    output: {{each: "{{{{ each }}}}"}}
    """,
        "flows/wide.yaml",
    )
    opened.small.forget().says("words", json.dumps([str(n) for n in range(6)]))
    with serving(opened, "--most-calls", str(needed)) as client:
        status, headers, found = client.asked("x", "workflow:wide")
        assert (status, found["error"]["code"]) == (400, "too_many_calls")
        assert f"each: its 6 items need {needed} calls" in found["error"]["message"]
        assert headers["x-workflow-composer-steps"] == "words;state=done;calls=1, each;state=failed"
        assert opened.draws == 1


def test_a_failure_tells_the_steps_and_what_was_paid_and_is_not_tried_again_by_the_client(opened):
    opened.edit('a: {prompt: "first {{ t }}"}', 'a: {prompt: "first {{ t }}", answer: number, retries: 0}', "chain.yaml")
    with serving(opened) as client, OpenAI(base_url=client.place.geturl() + "/v1", api_key="none", max_retries=2) as known:
        for stream in (False, True):
            opened.reset()
            question = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "x"}]
            with pytest.raises(InternalServerError, match="a: the answer does not have the wanted form") as caught:
                known.chat.completions.create(model="workflow:chain", messages=question, stream=stream)
            headers = caught.value.response.headers
            assert headers["x-workflow-composer-steps"] == "a;state=failed;calls=1, c;state=not_run, b;state=not_run"
            assert (headers["x-workflow-composer-attempts"], float(headers["x-workflow-composer-cost"])) == ("1", 1e-6)
            assert opened.calls == 1
        opened.small.forget().says("first", Said(status=500), "7")
        assert known.chat.completions.create(model="workflow:chain", messages=question).choices[0].message.content
        assert opened.calls == 3  # of a server's fault it is: a fails, then a and b


def test_what_a_workflow_cannot_do_is_refused_by_name(opened):
    image = [{"type": "image_url", "image_url": {"url": "data:,x"}}]
    tools = [{"type": "function", "function": {"name": "f"}}]
    with serving(opened) as client:
        for told, status, fields in (
            ("there is no workflow 'workflow:chian'", 404, {"model": "workflow:chian"}),
            ("n must be 1", 400, {"n": 2}),
            ("tools is not supported with a workflow", 400, {"tools": tools}),
            ("response_format is not supported", 400, {"response_format": {"type": "json_object"}}),
            ("other parts", 400, {"content": image}),
            ("is empty", 400, {"content": "  "}),
        ):
            found = client.asked(**{"content": "x", **fields})
            assert (found[0], told in found[2]["error"]["message"]) == (status, True), found
        assert opened.calls == 0
        opened.small.forget().says("first", Said(status=500, error="at http://10.0.0.9:1/x"))
        status, _, found = client.asked("x")
        assert (status, found["error"]["message"].startswith("workflow:chain failed: a: ")) == (503, True)
        assert "10.0.0.9" not in found["error"]["message"]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("{t: text}", "{t: text, u: text}", "it is not clear which one takes a client's message"),
        ("{t: text}", "{t: number}", "it is not clear which one takes a client's message"),
        ('prompt: "third {{ a }}"', 'human: "third {{ a }}"', "cannot wait for a person"),
        ('b: {prompt: "second {{ a }}"}', "b: {reduce: rows, prompt: 'all'}", "is over all rows"),
        ('"first {{ t }}"}', '"first {{ t }} {{ n }}"}', "has no name 'n'"),
    ],
)
def test_a_workflow_that_cannot_answer_a_message_is_refused_when_the_profile_loads(desk, old, new, told):
    desk.file(CHAIN.replace(old, new).replace("    stream: b\n", ""), "chain.yaml")
    desk.profile(workflows="chain.yaml")
    ran = desk.does("serve", "--port", "0").ended(WRONG)
    assert "chain.yaml" in ran.said
    if "has no name" not in told:
        assert told in ran.said


def test_a_missing_file_an_empty_folder_and_a_name_twice_are_refused(desk):
    (desk.folder / "none").mkdir()
    desk.file(CHAIN, "one.yaml")
    desk.file(CHAIN, "two.yaml")
    desk.profile(workflows=["gone.yaml", "none", "one.yaml", "two.yaml"])
    ran = desk.does("serve", "--port", "0").ended(WRONG)
    assert all(word in ran.said for word in ("gone.yaml", "has no workflow", "is also the name of"))


def test_a_private_message_stays_on_ones_own_machines(desk):
    desk.file(
        """
        workflow: own
        inputs: {note: private}
        steps: {a: {prompt: "read {{ note }}"}}
        output: {a: "{{ a }}"}
    """,
        "own.yaml",
    )
    desk.profile(workflows=["own.yaml"], fallback=["remote"])
    with serving(desk) as client:
        assert client.asked("secret-7", "workflow:own")[2]["choices"][0]["message"]["content"].endswith("read secret-7")
        desk.small.says("", Said(status=500))
        status, _, found = client.asked("secret-8", "workflow:own")
        assert status == 503
        assert "secret-8" not in json.dumps(found)
    assert desk.remote.count() == 0
