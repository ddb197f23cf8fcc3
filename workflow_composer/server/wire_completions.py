"""OpenAI's older completions: ``POST /v1/completions``. The text goes to the model as it is, without a chat template."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from workflow_composer.server.addressing import address_of
from workflow_composer.server.checks import wrong
from workflow_composer.server.failures import HttpFailure
from workflow_composer.server.wire import Asked, Fields, encode, event, openai_failure, usage_of
from workflow_composer.server.wire_chat import DONE, MOST_CHOICES, stream_options
from workflow_composer.types import Chunk, LLMRequest, LLMResponse, TokenLogprob

_REFUSED = {
    "suffix": "cannot be honoured here",
    "best_of": "cannot be honoured here; ask for n, or name a routing string such as mv_MODEL_k8_t0.7",
}


class CompletionsDialect:
    """Reads and writes completions of a bare text."""

    name = "completions"

    def read(self, data: Mapping[str, Any], headers: Mapping[str, str]) -> Asked:
        """Read a body. Raises `HttpFailure`."""
        fields = Fields(data)
        prompt = fields.take("prompt")
        if isinstance(prompt, list) and len(prompt) == 1:
            prompt = prompt[0]
        if not isinstance(prompt, str):
            raise wrong("prompt", "must be a text; send several texts (or tokens) as requests of their own")
        stream = bool(fields.flag("stream"))
        include_usage = stream_options(fields, stream=stream)
        fields.refuse(_REFUSED)
        metadata = fields.mapping("metadata") or {}
        top = fields.whole("logprobs", least=0, most=100)
        request = LLMRequest(
            kind="completion",
            messages=({"role": "user", "content": prompt},),
            **address_of(fields.text("model"), headers, metadata),
            max_tokens=fields.whole("max_tokens", least=1),
            temperature=fields.number("temperature", 0.0, 2.0),
            top_p=fields.number("top_p", 0.0, 1.0),
            stop=fields.stop(),
            seed=fields.whole("seed", most=2**63 - 1),
            logprobs=top is not None,
            top_logprobs=top,
            response_format=fields.mapping("response_format"),
            n=fields.whole("n", least=1, most=MOST_CHOICES) or 1,
            metadata=metadata,
            request_id="",
            extra=fields.passed_on(),
        )
        return Asked(request, stream, include_usage)

    def whole(self, asked: Asked, response: LLMResponse) -> bytes:
        """A ``text_completion`` object."""
        choices = [
            {
                "index": index,
                "text": sample.text,
                "finish_reason": sample.finish_reason or "stop",
                "logprobs": _logprobs(sample.logprobs) if asked.request.logprobs else None,
            }
            for index, sample in enumerate(response.samples[: asked.request.n])
        ]
        frame = _frame(response.request_id, response.model)
        return encode({**frame, "choices": choices, "usage": usage_of(response)})

    def events(self, asked: Asked) -> CompletionEvents:
        """A writer of ``text_completion`` objects."""
        return CompletionEvents(asked)

    def failure(self, failure: HttpFailure) -> bytes:
        """An error object."""
        return openai_failure(failure)


class CompletionEvents:
    """Writes one stream."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._frame: dict[str, Any] = {}

    def piece(self, chunk: Chunk) -> bytes:
        """The event for a piece."""
        self._open(chunk.model or "")
        if not chunk.carries_content:
            return b""
        logprobs = _logprobs(chunk.logprobs) if self._asked.request.logprobs and chunk.logprobs else None
        choice = {"index": 0, "text": chunk.text, "finish_reason": chunk.finish_reason, "logprobs": logprobs}
        return event({**self._frame, "choices": [choice]})

    def end(self, response: LLMResponse) -> bytes:
        """The usage, where it was asked for, and the end mark."""
        self._open(response.model)
        usage = event({**self._frame, "choices": [], "usage": usage_of(response)}) if self._asked.include_usage else b""
        return usage + DONE

    def failed(self, failure: HttpFailure) -> bytes:
        """The error object, as an event."""
        return b"data: " + openai_failure(failure) + b"\n\n"

    def _open(self, model: str) -> None:
        self._frame = self._frame or _frame(self._asked.request.request_id, model)


def _frame(request_id: str, model: str) -> dict[str, Any]:
    return {"id": f"cmpl-{request_id}", "object": "text_completion", "created": int(time.time()), "model": model}


def _logprobs(tokens: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    if tokens is None:
        return None
    return {
        "tokens": [one.token for one in tokens],
        "token_logprobs": [one.logprob for one in tokens],
        "top_logprobs": [dict(one.top) or None for one in tokens],
        "text_offset": _offsets(tokens),
    }


def _offsets(tokens: Sequence[TokenLogprob]) -> list[int]:
    offsets, at = [], 0
    for one in tokens:
        offsets.append(at)
        at += len(one.token)
    return offsets
