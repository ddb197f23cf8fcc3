"""Converts between OpenAI's JSON and the package's values. Pure, on plain dictionaries."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any

import msgspec

from workflow_composer.types import (
    Chunk,
    Completion,
    Embeddings,
    LLMRequest,
    ModelCall,
    Sample,
    TokenLogprob,
    Usage,
    texts,
)
from workflow_composer.usage import MOST_TOKENS, NO_USAGE

_quick = msgspec.json.Encoder().encode
_PLAIN = ("max_tokens", "top_p", "seed", "top_logprobs", "tool_choice", "response_format", "tools", "stop")


PATHS = {"chat": "/chat/completions", "completion": "/completions"}
"""URL paths by kind of request."""


class Malformed(ValueError):
    """The JSON violates the protocol."""


def chat_body(call: ModelCall, *, samples: int = 1, draw: int = 0) -> dict[str, Any]:
    """Return the body of a request for a chat or text completion, without model and stream.

    ``draw`` numbers the calls that replace one call with ``n``: each gets its own seed, as vLLM does within ``n``.
    """
    request = call.request
    body: dict[str, Any] = dict(request.extra)
    if request.kind == "completion":
        if "prompt" not in body:
            body["prompt"] = "".join(texts(request.messages[0]))
        elif samples > 1:
            samples //= prompts_in(body["prompt"])
    else:
        body["messages"] = request.messages
    for name in _PLAIN:
        value = getattr(request, name)
        if value is not None:
            body[name] = value
    if request.kind == "completion":
        body.pop("top_logprobs", None)
        if request.logprobs or request.top_logprobs is not None:
            body["logprobs"] = request.top_logprobs or 0
    elif request.logprobs or request.top_logprobs is not None:
        body["logprobs"] = True
    temperature = request.temperature if call.temperature is None else call.temperature
    if temperature is not None:
        body["temperature"] = temperature
    if request.seed is not None and draw:
        body["seed"] = request.seed + draw
    if samples > 1:
        body["n"] = samples
    return body


def prompts_in(found: Any) -> int:
    """Return how many prompts a completion's ``prompt`` has: a text or a list of tokens is one, a list of these several."""
    return len(found) if isinstance(found, (list, tuple)) and found and not isinstance(found[0], int) else 1


def encode(body: Any) -> bytes:
    """Encode as JSON in UTF-8. Raises ValueError or TypeError if that is impossible."""
    try:
        quick = _quick(body)
        if b"null" not in quick:  # null may be an encoded NaN
            return quick
    except (TypeError, ValueError):
        pass
    text = json.dumps(body, default=_plain, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    try:
        return text.encode()
    except UnicodeEncodeError:  # a lone surrogate: JSON can escape it, UTF-8 cannot encode it
        return json.dumps(body, default=_plain, allow_nan=False, separators=(",", ":")).encode()


def completion_of(data: Any, *, model: str) -> Completion:
    """Decode a chat completion. Raises `Malformed`; ``model`` is used if the response names none."""
    choices = data.get("choices") if isinstance(data, dict) else None
    if not choices or not isinstance(choices, list):
        raise Malformed("it has no choices")
    if len(choices) > 1:
        choices = sorted(choices, key=lambda choice: choice.get("index") or 0)
    samples = tuple(sample_of(choice) for choice in choices)
    return Completion(samples=samples, usage=usage_of(usage_within(data)), model=name_in(data) or model)


def chunk_of(data: Any) -> Chunk | None:
    """Decode one event of a stream; None if it has no content."""
    if not isinstance(data, dict):
        raise Malformed("an event of the stream is not a JSON object")
    choices = data.get("choices")
    usage = usage_within(data)
    model = name_in(data)
    if not choices:
        found = usage_in(usage)
        return Chunk(usage=found, model=model) if found else None
    choice = _first(choices)
    if "text" in choice:
        return _text_chunk(choice, usage, model)
    delta = _delta(choice)
    chunk = Chunk(
        text=_text(delta.get("content")) or _text(delta.get("refusal")),
        finish_reason=_reason(choice),
        tool_calls=_pieces(delta.get("tool_calls")),
        logprobs=_logprobs(choice.get("logprobs")) or (),
        usage=usage_in(usage),
        model=model,
        reasoning=_reasoning(delta),
        stop=stop_of(choice),
    )
    return chunk if chunk.carries_content or chunk.usage or chunk.logprobs else None


def shows_work(data: dict[str, Any]) -> bool:
    """Whether an event has generated tokens: of the answer, a tool call, or the reasoning before them."""
    choices = data.get("choices")
    if not choices:
        return False
    choice = _first(choices)
    delta = _delta(choice)
    signs = ("content", "refusal", "tool_calls", "reasoning_content", "reasoning")
    return bool(choice.get("finish_reason") or choice.get("text") or any(delta.get(sign) for sign in signs))


def _first(choices: Any) -> dict[str, Any]:
    choice = choices[0] if isinstance(choices, list) else None
    if not isinstance(choice, dict):
        raise Malformed("a choice is not a JSON object")
    return choice


def _delta(choice: dict[str, Any]) -> dict[str, Any]:
    delta = choice.get("delta") or {}
    if not isinstance(delta, dict):
        raise Malformed("a delta is not a JSON object")
    return delta


def _reason(choice: Mapping[str, Any]) -> str | None:
    """Return why the answer ended; a reason of another type than text counts as "stop"."""
    reason = choice.get("finish_reason")
    return reason if reason is None or isinstance(reason, str) else "stop"


def _pieces(calls: Any) -> tuple[dict[str, Any], ...]:
    """Return the pieces of tool calls in an event. Raises `Malformed`."""
    if not calls:
        return ()
    if not isinstance(calls, list) or not all(isinstance(one, dict) for one in calls):
        raise Malformed("the tool calls are not a list of JSON objects")
    if not all(isinstance(one.get("function") or {}, dict) for one in calls):
        raise Malformed("the function of a tool call is not a JSON object")
    return tuple(calls)


def embeddings_of(data: Any, *, count: int, model: str) -> Embeddings:
    """Decode a response with ``count`` embeddings. Raises `Malformed`."""
    rows = data.get("data") if isinstance(data, dict) else None
    if not isinstance(rows, list) or len(rows) != count:
        raise Malformed(f"expected {count} vectors")
    rows = sorted(rows, key=lambda row: row.get("index") or 0)
    vectors = tuple(tuple(map(_component, row["embedding"])) for row in rows)
    return Embeddings(vectors=vectors, model=name_in(data) or model, usage=usage_of(data.get("usage")))


_LARGEST = sys.float_info.max


def _component(value: Any) -> float:
    if type(value) not in (float, int) or not -_LARGEST <= value <= _LARGEST:
        raise Malformed("a component of a vector is not a finite number")
    return float(value)


def model_ids(data: Any) -> tuple[str, ...]:
    """Return the ids of a model list that can be shown, base models before adapters. Raises `Malformed`."""
    rows = data.get("data") if isinstance(data, dict) else None
    if not isinstance(rows, list):
        raise Malformed("it has no list of models")
    named = sorted((row for row in rows if isinstance(row, dict)), key=lambda row: bool(row.get("parent")))
    return tuple(name for row in named if (name := shown_name(row.get("id"))))


def name_in(data: Mapping[str, Any]) -> str | None:
    """Return the model's name in a response; None if it is no text that can be shown, in tables and on terminals."""
    return shown_name(data.get("model"))


_LONGEST_NAME = 512
"""Characters; some servers name a model by the path of its folder."""


def shown_name(name: Any) -> str | None:
    """Return a model's name if it is a text that can be shown, in tables and on terminals."""
    return name if isinstance(name, str) and len(name) <= _LONGEST_NAME and name.isprintable() else None


def usage_of(usage: Any) -> Usage:
    """Return token counts; zero if the server reports no valid ones."""
    return usage_in(usage) or NO_USAGE


def usage_within(event: Mapping[str, Any]) -> Any:
    """Return what an event of a stream says of the usage; Moonshot says it in the choice."""
    usage, choices = event.get("usage"), event.get("choices")
    if usage or not choices or not isinstance(choices, list) or not isinstance(choices[0], dict):
        return usage
    return choices[0].get("usage")


def usage_in(usage: Any) -> Usage | None:
    """Return token counts; None if the server reports no valid ones."""
    if not isinstance(usage, dict):
        return None
    prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    if prompt is completion is None:
        return None
    cached, reasoning = _first_count(usage, _CACHED) or 0, _first_count(usage, _REASONING) or 0
    return _whole_usage(prompt or 0, completion, cached, reasoning, _count(usage.get("total_tokens")) or 0)


_CACHED = (
    ("prompt_tokens_details", "cached_tokens"),
    ("input_tokens_details", "cached_tokens"),
    ("prompt_cache_hit_tokens",),  # DeepSeek
    ("cached_tokens",),  # Moonshot
    ("cache_read_input_tokens",),  # gateways to Anthropic
)
_REASONING = (
    ("completion_tokens_details", "reasoning_tokens"),
    ("output_tokens_details", "reasoning_tokens"),
    ("reasoning_tokens",),  # SGLang, Perplexity
)


def _first_count(usage: Mapping[str, Any], places: Iterable[tuple[str, ...]]) -> int | None:
    for place in places:
        found: Any = usage
        for name in place:
            found = found.get(name) if isinstance(found, dict) else None
        if count := _count(found):
            return count
    return None


def _whole_usage(prompt: int, completion: int | None, cached: int, reasoning: int, total: int) -> Usage:
    """Return the usage with everything that is paid for, in OpenAI's way: cached tokens are among those of the prompt, and
    reasoning tokens among those of the completion.

    Some servers count them beside (xAI: reasoning; Google: reasoning, told by the total only); their total tells.
    """
    answer = completion or 0
    beyond = max(0, total - prompt - answer)
    if cached > prompt:
        if beyond >= cached:
            prompt, beyond = prompt + cached, beyond - cached
        else:
            cached = prompt
    if reasoning and (reasoning > answer or beyond >= reasoning):
        answer += reasoning
    elif beyond and not reasoning and completion is not None:
        answer, reasoning = answer + beyond, beyond
    return Usage(min(prompt, MOST_TOKENS), min(answer, MOST_TOKENS), cached, min(reasoning, answer))


def _count(claim: Any) -> int | None:
    if type(claim) is float and claim.is_integer():
        claim = int(claim)
    return claim if type(claim) is int and 0 <= claim <= MOST_TOKENS else None


def strict(body: bytes | bytearray) -> bytes | bytearray:
    """Return JSON that every client can read: NaN and infinity, which Python writes but JSON does not know, become null."""
    try:
        msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return json.dumps(_finite(json.loads(body))).encode()
    return body


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list) else value


def secrets_of(request: LLMRequest) -> Iterator[str]:
    """Yield every text of a request that errors must not repeat."""
    yield from _strings(request.messages)
    yield from _strings(request.tools)
    yield from _strings(request.extra)


def message_of(sample: Sample) -> dict[str, Any]:
    """Return a sample as the message of a choice in OpenAI's form."""
    message: dict[str, Any] = {"role": "assistant", "content": sample.text}
    if sample.reasoning:
        message["reasoning_content"] = sample.reasoning
    if sample.tool_calls:
        message["content"] = sample.text or None
        message["tool_calls"] = [{"type": "function", **call} for call in sample.tool_calls]
    return message


def sample_of(choice: Any) -> Sample:
    """Decode one choice. Raises `Malformed`."""
    message = choice.get("message") if isinstance(choice, dict) else None
    if message is None and isinstance(choice, dict) and isinstance(choice.get("text"), str):
        logprobs = _text_logprobs(choice.get("logprobs"))
        return Sample(choice["text"], _reason(choice), logprobs=logprobs, stop=stop_of(choice))
    if not isinstance(message, dict):
        raise Malformed("a choice without a message")
    return Sample(
        text=_text(message.get("content")) or _text(message.get("refusal")),
        finish_reason=_reason(choice),
        tool_calls=tuple(map(_tool_call, message.get("tool_calls") or ())),
        logprobs=_logprobs(choice.get("logprobs")),
        reasoning=_reasoning(message),
        stop=stop_of(choice),
    )


def stop_of(choice: Mapping[str, Any]) -> str:
    """Return the stop sequence that ended an answer, if its server says so: vLLM in ``stop_reason``, SGLang in
    ``matched_stop``; the id of a token is none.
    """
    found = choice.get("stop_reason") or choice.get("matched_stop")
    return found if isinstance(found, str) else ""


def _tool_call(call: Any) -> Mapping[str, Any]:
    """Return a tool call in OpenAI's form: some servers (TGI) send the arguments as an object."""
    if not isinstance(call, dict):
        raise Malformed("a tool call is not a JSON object")
    function = call.get("function") if call.get("type", "function") == "function" else None
    if function is None and "function" not in call:
        return dict(call)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Malformed("a tool call names no function")
    if isinstance(function.get("arguments"), str):
        return dict(call)
    arguments = json.dumps(function.get("arguments") or {}, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}


def _reasoning(said: Mapping[str, Any]) -> str:
    found = said.get("reasoning_content") or said.get("reasoning") or ""
    return found if isinstance(found, str) else ""


def _text_chunk(choice: dict[str, Any], usage: Any, model: str | None) -> Chunk:
    """Decode a piece of a text completion."""
    logprobs = _text_logprobs(choice.get("logprobs")) or ()
    ended = stop_of(choice)
    return Chunk(_text(choice["text"]), _reason(choice), logprobs=logprobs, usage=usage_in(usage), model=model, stop=ended)


def _text_logprobs(found: Any) -> tuple[TokenLogprob, ...] | None:
    """Decode log-probabilities of a text completion: parallel lists; the first token of an echoed prompt has no value."""
    tokens = found.get("tokens") if isinstance(found, dict) else None
    if not tokens or not isinstance(tokens, list):
        return None
    values, tops = found.get("token_logprobs"), found.get("top_logprobs") or [None] * len(tokens)
    if not isinstance(values, list) or not isinstance(tops, list) or not len(tokens) == len(values) == len(tops):
        return None
    if values[0] is None:
        tokens, values, tops = tokens[1:], values[1:], tops[1:]
    return _known(
        (token, value, list(top.items()) if isinstance(top, dict) else None)
        for token, value, top in zip(tokens, values, tops, strict=True)
    )


def _text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise Malformed("content is not text")
    return "".join(part.get("text") or "" for part in content if isinstance(part, dict))


def _logprobs(found: Any) -> tuple[TokenLogprob, ...] | None:
    content = found.get("content") if isinstance(found, dict) else None
    if not isinstance(content, list) or not all(isinstance(one, dict) for one in content):
        return None
    known = _known((one.get("token"), one.get("logprob"), _pairs(one.get("top_logprobs"))) for one in content)
    if known is None or not any(raw := [_bytes(one) for one in content]):
        return known
    return tuple(replace(token, bytes=data) for token, data in zip(known, raw, strict=True))


def _bytes(one: Mapping[str, Any]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return the bytes of a token and its alternatives where their text does not say them: of half a character, say."""
    found = []
    others = one.get("top_logprobs")
    for said in (one, *(others if isinstance(others, list) else ())):
        text, data = (said.get("token"), said.get("bytes")) if isinstance(said, dict) else (None, None)
        if not isinstance(text, str) or not isinstance(data, list) or data == list(text.encode("utf-8", "surrogatepass")):
            continue
        if all(type(byte) is int and 0 <= byte < 256 for byte in data):
            found.append((text, tuple(data)))
    return tuple(found)


def _pairs(found: Any) -> list[tuple[Any, Any]] | None:
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        return None
    return [(one.get("token"), one.get("logprob")) for one in found]


def _known(rows: Iterable[tuple[Any, Any, list[tuple[Any, Any]] | None]]) -> tuple[TokenLogprob, ...] | None:
    """Return the tokens; None if one has no valid log-probability (null, text, NaN), which must not count as certain."""
    found = []
    for token, value, top in rows:
        if not isinstance(token, str) or not _is_logprob(value):
            return None
        found.append(TokenLogprob(token, value, _top(top)))
    return tuple(found)


def _is_logprob(value: Any) -> bool:
    return type(value) in (float, int) and value <= _LARGEST_LOGPROB


_LARGEST_LOGPROB = 0.01
"""Rounding can make a log-probability slightly positive."""


def _top(pairs: list[tuple[Any, Any]] | None) -> tuple[tuple[str, float], ...]:
    """Return the alternatives, best first; none if one of them is not valid."""
    # vLLM lists the sampled token first, whatever its rank.
    if not pairs or not all(isinstance(token, str) and _is_logprob(value) for token, value in pairs):
        return ()
    return tuple(sorted(pairs, key=_by_logprob, reverse=True))


def _by_logprob(pair: tuple[str, float]) -> float:
    return pair[1]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in ("role", "type"):
                yield from _strings(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _strings(inner)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"cannot encode {type(value).__name__} as JSON")


# ---------------------------------------------------------------------------------- fast path for whole responses


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    message: _Message | None = None
    text: str | None = None
    index: int | None = 0
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None
    stop_reason: Any = None
    matched_stop: Any = None


_Count = Annotated[int, msgspec.Meta(ge=0, le=MOST_TOKENS)]


class _Counts(msgspec.Struct):
    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    total_tokens: Any = None
    prompt_tokens_details: Any = None
    completion_tokens_details: Any = None
    prompt_cache_hit_tokens: Any = None
    cached_tokens: Any = None
    cache_read_input_tokens: Any = None
    reasoning_tokens: Any = None


class _Whole(msgspec.Struct):
    choices: list[_Choice]
    model: Annotated[str, msgspec.Meta(max_length=_LONGEST_NAME, pattern=r"\A[^\x00-\x1f\x7f-\xa0]*\Z")] | None = None
    usage: _Counts | None = None
    error: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    object: str | None = None


_read = msgspec.json.Decoder(_Whole).decode


def quick_completion(body: bytes | bytearray, *, model: str) -> Completion | None:
    """Return the completion in a response's bytes; None if it is not a plain one and needs `completion_of`."""
    try:
        found = _read(body)
        choices = found.choices
        if found.error is not msgspec.UNSET or not choices or found.object == "error":
            return None
        if len(choices) > 1:
            choices.sort(key=lambda choice: choice.index or 0)
        samples = []
        for choice in choices:
            message = choice.message
            if message is None or message.tool_calls is not None or choice.logprobs is not None:
                samples.append(sample_of(msgspec.to_builtins(choice)))
            else:
                reasoning = message.reasoning_content or message.reasoning or ""
                text = message.content or message.refusal or ""
                ended = choice.stop_reason or choice.matched_stop or ""
                if type(ended) is not str:  # the id of a token
                    ended = ""
                samples.append(Sample(text, choice.finish_reason, reasoning=reasoning, stop=ended))
    except (msgspec.DecodeError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    counts = found.usage
    if counts is None:
        usage = NO_USAGE
    elif (
        counts.prompt_tokens is None
        or counts.completion_tokens is None
        or counts.total_tokens != counts.prompt_tokens + counts.completion_tokens
        or counts.prompt_tokens_details
        or counts.completion_tokens_details
        or counts.prompt_cache_hit_tokens
        or counts.cached_tokens
        or counts.cache_read_input_tokens
        or counts.reasoning_tokens
    ):
        usage = usage_of(msgspec.to_builtins(counts))
    else:
        usage = Usage(counts.prompt_tokens, counts.completion_tokens)
    return Completion(samples=tuple(samples), usage=usage, model=found.model or model)


class _Vector(msgspec.Struct):
    embedding: list[float]
    index: int | None = 0


class _Vectors(msgspec.Struct):
    data: list[msgspec.Raw]
    model: str | None = None
    usage: dict[str, Any] | None = None
    error: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    object: str | None = None


_read_vectors, _read_vector = msgspec.json.Decoder(_Vectors).decode, msgspec.json.Decoder(_Vector).decode


def quick_embeddings(body: bytes | bytearray, *, count: int, model: str) -> Embeddings | None:
    """Return the embeddings in a large response's bytes; None if it is not a plain one and needs `embeddings_of`.

    In a thread it lets others run after each vector.
    """
    try:
        found = _read_vectors(body)
        if found.error is not msgspec.UNSET or found.object == "error" or len(found.data) != count:
            return None
        rows = [(row.index or 0, tuple(row.embedding)) for row in map(_read_vector, found.data)]
    except (msgspec.DecodeError, ValueError):
        return None
    rows.sort(key=lambda row: row[0])
    return Embeddings(vectors=tuple(vector for _, vector in rows), model=found.model or model, usage=usage_of(found.usage))
