"""Answers to requests of the OpenAI Batch API, in its output form: ``custom_id``, ``response`` and ``error``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from workflow_composer.batch.datasets.request_fields import COMPLETIONS, RESPONSES
from workflow_composer.types import LLMResponse, TokenLogprob


def batch_answer(custom_id: Any, url: str, response: LLMResponse, *, logprobs: bool) -> dict[str, Any]:
    """Return the fields of an answered request; ``url`` is the one that it was for."""
    body = _BODIES.get(url, _chat)(response, logprobs)
    answered = {"status_code": 200, "request_id": response.request_id, "body": body}
    return {"custom_id": custom_id, "response": answered, "error": None}


def batch_failure(custom_id: Any, error: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of a failed request. ``error``: type and message."""
    return {"custom_id": custom_id, "response": None, "error": {"code": error["type"], **error}}


def _chat(response: LLMResponse, logprobs: bool) -> dict[str, Any]:
    from workflow_composer.backends.openai.wire import message_of  # loads msgspec, which no other run needs here

    choices = [
        {
            "index": index,
            "message": message_of(sample),
            "finish_reason": sample.finish_reason or "stop",
            "logprobs": {"content": _tokens(sample.logprobs)} if logprobs and sample.logprobs is not None else None,
        }
        for index, sample in enumerate(response.samples[:1])
    ]
    return _object("chatcmpl-", "chat.completion", response) | {"choices": choices, "usage": _usage(response)}


def _completion(response: LLMResponse, logprobs: bool) -> dict[str, Any]:
    choices = [
        {"index": index, "text": sample.text, "finish_reason": sample.finish_reason or "stop", "logprobs": None}
        for index, sample in enumerate(response.samples[:1])
    ]
    return _object("cmpl-", "text_completion", response) | {"choices": choices, "usage": _usage(response)}


def _response(response: LLMResponse, logprobs: bool) -> dict[str, Any]:
    sample = response.samples[0]
    output: list[dict[str, Any]] = []
    if sample.reasoning:
        output.append(
            {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": sample.reasoning}]}
        )
    if sample.text or not sample.tool_calls:
        content = [{"type": "output_text", "text": sample.text, "annotations": []}]
        output.append({"type": "message", "role": "assistant", "status": "completed", "content": content})
    output += [
        {"type": "function_call", "status": "completed", "call_id": call.get("id"), **call["function"]}
        for call in sample.tool_calls
    ]
    usage = response.usage
    counts = {
        "input_tokens": usage.prompt_tokens,
        "output_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
    why = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(sample.finish_reason or "")
    ended = {"status": "incomplete", "incomplete_details": {"reason": why}} if why else {"status": "completed"}
    return _object("resp-", "response", response) | ended | {"output": output, "usage": counts}


_BODIES = {COMPLETIONS: _completion, RESPONSES: _response}


def _object(prefix: str, kind: str, response: LLMResponse) -> dict[str, Any]:
    return {"id": prefix + response.request_id, "object": kind, "created": int(time.time()), "model": response.model}


def _usage(response: LLMResponse) -> dict[str, int]:
    usage = response.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }


def _tokens(tokens: tuple[TokenLogprob, ...]) -> list[dict[str, Any]]:
    return [
        {**_token(one.token, one.logprob), "top_logprobs": [_token(token, logprob) for token, logprob in one.top]}
        for one in tokens
    ]


def _token(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode("utf-8", "surrogatepass"))}
