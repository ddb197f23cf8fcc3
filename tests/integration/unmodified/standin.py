"""A stand-in for a vLLM server whose model does as it is told: it calls the tools of a script, or the first one offered.

It refuses what a chat template of an open model or vLLM's own validation refuses, so that a client which gets its answer has
sent something (through the service) that a real server takes.
"""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.integration.stub_server import Reply, Request, StubServer
from tests.integration.unmodified.questions import TEXT, answer_to, arguments_of, plain, question_of, text_of

WORD = re.compile(r"\s*\S+")
VECTOR = [0.25, -0.5, 1.0]

KNOWN = {
    *("model", "messages", "temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "seed", "n", "stream"),
    *("stream_options", "tools", "tool_choice", "parallel_tool_calls", "response_format", "logprobs", "top_logprobs"),
    *("frequency_penalty", "presence_penalty", "logit_bias", "user", "reasoning_effort", "structured_outputs", "metadata"),
    *("top_k", "min_p", "ignore_eos", "continue_final_message", "add_generation_prompt", "repetition_penalty"),
    *("chat_template_kwargs", "include_reasoning", "request_id", "truncate_prompt_tokens", "prompt_logprobs"),
    "verbosity",  # unknown to vLLM, but it changes an answer, so it is passed on
}
"""Fields that vLLM reads; it ignores others silently, so here they are refused: a client's own data must not arrive."""


@dataclass(frozen=True)
class Call:
    """One tool that the model calls; ``arguments`` may be made from the conversation so far."""

    tool: str
    arguments: Mapping[str, Any] | Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any]]

    def made(self, messages: Sequence[Mapping[str, Any]]) -> str:
        return json.dumps(self.arguments(messages) if callable(self.arguments) else self.arguments)


@dataclass(frozen=True)
class Said:
    """What the model gives back: a text, or calls of tools by name with their arguments as JSON."""

    text: str = ""
    calls: Sequence[tuple[str, str]] = ()
    thoughts: str = ""

    @property
    def finish(self) -> str:
        return "tool_calls" if self.calls else "stop"


@dataclass
class Script:
    """What the model does in a conversation about tools: at the n-th turn after ``task`` was set, the n-th of ``turns``.

    Each turn is one `Call`, several at once, or a text. Requests that offer no tools (titles, summaries) get ``otherwise``.
    ``thoughts`` are what it thinks before each turn.
    """

    turns: Sequence[Call | Sequence[Call] | str] = ()
    otherwise: str = TEXT
    thoughts: str = ""

    def said(self, data: Mapping[str, Any]) -> Said:
        messages = data["messages"]
        if not data.get("tools"):
            return Said(self.otherwise)
        at = sum(message["role"] == "assistant" and bool(message.get("tool_calls")) for message in messages)
        turn = self.turns[at] if at < len(self.turns) else "All done."
        if isinstance(turn, str):
            return Said(turn, thoughts=self.thoughts)
        calls = [turn] if isinstance(turn, Call) else turn
        offered = {tool["function"]["name"] for tool in data["tools"]}
        assert all(call.tool in offered for call in calls), (calls, offered)
        return Said(calls=[(call.tool, call.made(messages)) for call in calls], thoughts=self.thoughts)


@dataclass
class Seen:
    """What the stand-in was asked, and what it refused."""

    chats: list[Mapping[str, Any]] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


class ModelServer(StubServer):
    """The stand-in; ``script`` set: the model follows it. A context manager, as its base is."""

    def __init__(self, *, models: Sequence[str] = ("served",)) -> None:
        super().__init__(models=models)
        self.answer = self.answered
        self.seen = Seen()
        self.follows: Script | None = None
        self._lock = threading.Lock()

    def answered(self, request: Request) -> Reply:
        """Answer a POST request as vLLM does."""
        try:
            return self._routed(request)
        except Exception as error:  # a stand-in that dies leaves a client that waits
            with self._lock:
                self.seen.refused.append(repr(error))
            return Reply.error(500, repr(error))

    def _routed(self, request: Request) -> Reply:
        data = request.json
        if data.get("model") not in self.models:
            return Reply.error(404, f"The model `{data.get('model')}` does not exist.")
        if request.path.endswith("/embeddings"):
            return embedded(data)
        if request.path.endswith("/chat/completions"):
            return self._chat(request, data)
        if request.path.endswith("/completions"):
            return completed(data)
        return Reply.error(404, f"no such path: {request.path}")

    def _chat(self, request: Request, data: Mapping[str, Any]) -> Reply:
        wrong = what_vllm_refuses(data)
        with self._lock:
            self.seen.chats.append(data)
            self.seen.headers.append(request.headers)
            if wrong:
                self.seen.refused.append(wrong)
        if wrong:
            return Reply.error(400, wrong, kind="BadRequestError", code=400)
        said = self.follows.said(data) if self.follows else of_itself(data)
        return streamed(data, said) if data.get("stream") else whole(data, said)


def what_vllm_refuses(data: Mapping[str, Any]) -> str | None:
    """Why a real server would not take a chat request; None if it would."""
    if unknown := sorted(data.keys() - KNOWN):
        return f"fields that vLLM does not know: {', '.join(unknown)}"
    for tool in data.get("tools") or ():
        if tool.get("type") != "function" or not isinstance(tool["function"].get("parameters", {}), Mapping):
            return f"tools: not a function: {json.dumps(tool)[:200]}"
    if data.get("tool_choice") not in (None, "none") and not data.get("tools"):
        return "When using `tool_choice`, `tools` must be set."
    return wrong_messages(data.get("messages"))


def wrong_messages(messages: Any) -> str | None:
    """What a chat template would raise about a conversation."""
    if not messages:
        return "messages: there are none"
    open_calls: set[str] = set()
    for at, message in enumerate(messages):
        role = message.get("role")
        if role not in {"system", "user", "assistant", "tool"}:
            return f"messages[{at}]: unexpected role {role!r}"
        if role == "system" and at:
            return f"messages[{at}]: the system message must be at the beginning"
        if role == "tool":
            if message.get("tool_call_id") not in open_calls:
                return f"messages[{at}]: answers no call: {message.get('tool_call_id')!r} of {sorted(open_calls)}"
            open_calls.discard(message["tool_call_id"])
        elif open_calls:
            return f"messages[{at}]: the calls {sorted(open_calls)} have no answer"
        for part in message["content"] if isinstance(message.get("content"), list) else ():
            if part.get("type") not in ({"text"} if role == "tool" else {"text", "image_url", "input_audio"}):
                return f"messages[{at}]: part of type {part.get('type')!r} for {role}"
        for call in message.get("tool_calls") or ():
            if not isinstance(json.loads(call["function"]["arguments"] or "{}"), Mapping):
                return f"messages[{at}]: arguments are no object"
            open_calls.add(call["id"])
    return None


def of_itself(data: Mapping[str, Any]) -> Said:
    """What the model does without a script: calls each tool once (or the named one), fills a schema, or answers."""
    messages, tools, choice = data["messages"], data.get("tools") or [], data.get("tool_choice")
    called = {call["function"]["name"] for message in messages for call in message.get("tool_calls") or ()}
    functions = {tool["function"]["name"]: tool["function"] for tool in tools if choice != "none"}
    left = [name for name in functions if name not in called] or ([*functions][-1:] if choice == "required" else [])
    if messages[-1]["role"] == "tool" and choice != "required":
        left = []  # it has what it wanted
    if isinstance(choice, Mapping):
        left = [choice["function"]["name"]]
    if left:
        function = functions[left[0]]
        made = arguments_of(function, question_of(messages), example(function.get("parameters") or {}))
        return Said(calls=[(left[0], json.dumps(made))])
    if (form := schema_of(data)) is not None:
        return Said(json.dumps(example(form)))
    last = messages[-1]
    return Said(f"The tool says {plain(last)}." if last["role"] == "tool" else answer_to(question_of(messages)))


def schema_of(data: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The schema that the answer must have."""
    form = data.get("response_format") or {}
    if form.get("type") == "json_schema":
        return form["json_schema"].get("schema") or {}
    if form.get("type") == "json_object":
        return {"type": "object", "properties": {"answer": {"type": "integer"}}}
    return (data.get("structured_outputs") or {}).get("json")


def example(schema: Mapping[str, Any], root: Mapping[str, Any] | None = None) -> Any:
    """A value that a JSON schema allows: 7 for numbers, "seven" for texts, one element in lists."""
    root = schema if root is None else root
    if "$ref" in schema:
        found: Any = root
        for step in schema["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        return example(found, root)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return example(schema[several][0], root)
    kind = schema.get("type", "object")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        return {name: example(of, root) for name, of in schema.get("properties", {}).items()}
    if kind == "array":
        return [example(schema.get("items") or {"type": "string"}, root)]
    return {"integer": 7, "number": 7.0, "boolean": True, "null": None}.get(kind, "seven")


def usage(text: str) -> dict[str, int]:
    """Four characters are a token."""
    return {"prompt_tokens": 5, "completion_tokens": len(text) // 4 + 1, "total_tokens": len(text) // 4 + 6}


def written_calls(said: Said) -> list[dict[str, Any]]:
    """The calls in OpenAI's form, with vLLM's kind of IDs."""
    return [
        {
            "id": f"chatcmpl-tool-{uuid.uuid4().hex}",
            "type": "function",
            "function": {"name": call[0], "arguments": call[1]},
        }
        for call in said.calls
    ]


def head(data: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """What each object of an answer begins with."""
    return {"id": "chatcmpl-1", "object": kind, "created": 1_700_000_000, "model": data["model"]}


def whole(data: Mapping[str, Any], said: Said) -> Reply:
    """A chat completion."""
    message = {"role": "assistant", "content": said.text or None, "tool_calls": written_calls(said)}
    message["reasoning"] = said.thoughts or None
    choices = [
        {"index": at, "message": message, "finish_reason": said.finish, "logprobs": None} for at in range(data.get("n") or 1)
    ]
    return Reply.of({**head(data, "chat.completion"), "choices": choices, "usage": usage(said.text)})


def streamed(data: Mapping[str, Any], said: Said) -> Reply:
    """A stream: the role, pieces of seven characters, of calls their names first, the end, the usage."""
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"reasoning": piece} for piece in pieces(said.thoughts)]
    deltas += [{"content": piece} for piece in pieces(said.text)]
    for at, call in enumerate(written_calls(said)):
        function = call["function"]
        deltas.append({"tool_calls": [{**call, "index": at, "function": {"name": function["name"], "arguments": ""}}]})
        deltas += [
            {"tool_calls": [{"index": at, "function": {"arguments": piece}}]} for piece in pieces(function["arguments"])
        ]
    opened = head(data, "chat.completion.chunk")
    events = [{**opened, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    events.append({**opened, "choices": [{"index": 0, "delta": {}, "finish_reason": said.finish}]})
    if (data.get("stream_options") or {}).get("include_usage"):
        events.append({**opened, "choices": [], "usage": usage(said.text)})
    return Reply(events=tuple(json.dumps(event).encode() for event in events))


def pieces(text: str) -> list[str]:
    """A text in pieces of seven characters."""
    return [text[at : at + 7] for at in range(0, len(text), 7)]


def completed(data: Mapping[str, Any]) -> Reply:
    """A completion, or a stream of one; with ``echo`` and ``logprobs`` the prompt's words with a probability each."""
    given = data["prompt"]
    prompts = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    choices = [choice for at, prompt in enumerate(prompts) for choice in [completion_choice(data, at, prompt)]]
    answer = {**head(data, "text_completion"), "choices": choices}
    if data.get("stream"):
        events = [{**answer, "usage": None}]
        if (data.get("stream_options") or {}).get("include_usage"):
            events.append({**answer, "choices": [], "usage": usage(TEXT)})
        return Reply(events=tuple(json.dumps(event).encode() for event in events))
    return Reply.of({**answer, "usage": usage(TEXT)})


def completion_choice(data: Mapping[str, Any], at: int, prompt: Any) -> dict[str, Any]:
    """One choice of a completion."""
    asked = text_of(prompt)
    echoed = (WORD.findall(asked) if isinstance(prompt, str) else list(asked)) if data.get("echo") else []
    said = [] if data.get("max_tokens") == 0 else WORD.findall(answer_to(asked))
    tokens = [*echoed, *said]
    choice = {"index": at, "text": "".join(tokens), "finish_reason": "stop" if said else "length", "logprobs": None}
    if data.get("logprobs") is not None:
        starts = [sum(map(len, tokens[:place])) for place in range(len(tokens))]
        values = [None if echoed and not place else likely(token) for place, token in enumerate(tokens)]
        best = [None if value is None else {token: value} for token, value in zip(tokens, values, strict=True)]
        choice["logprobs"] = {"tokens": tokens, "token_logprobs": values, "top_logprobs": best, "text_offset": starts}
    return choice


def likely(token: str) -> float:
    """The log-probability of a token: digits are likelier than all else."""
    return -0.5 if token.strip().isdigit() else -1.0


def embedded(data: Mapping[str, Any]) -> Reply:
    """One vector for each input: a text, tokens, or a list of either."""
    given = data["input"]
    count = len(given) if isinstance(given, list) and given and not isinstance(given[0], int) else 1
    rows = [{"object": "embedding", "index": at, "embedding": vector_of(data)} for at in range(count)]
    return Reply.of(
        {"object": "list", "model": data["model"], "data": rows, "usage": {"prompt_tokens": count, "total_tokens": count}}
    )


def vector_of(data: Mapping[str, Any]) -> Any:
    """`VECTOR` in the encoding that was asked for."""
    if data.get("encoding_format") == "base64":
        import base64
        import struct

        return base64.b64encode(struct.pack(f"<{len(VECTOR)}f", *VECTOR)).decode()
    return VECTOR
