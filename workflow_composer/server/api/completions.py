"""OpenAI's legacy completions: ``POST /v1/completions``. The model gets the text unchanged, without a chat template."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from workflow_composer.server.api import field_checks, schemas
from workflow_composer.server.api.chat import CHOICES, DONE, SEED, STREAM_OPTIONS, STREAM_OPTIONS_IN_STREAMS, usage_at_end
from workflow_composer.server.api.field_checks import described, wrong
from workflow_composer.server.api.forms import (
    ADDRESS_HEADERS,
    COMMON,
    TOKENS,
    TOP_LOGPROBS,
    Field,
    Form,
    address_of,
    refused,
)
from workflow_composer.server.api.json_wire import Asked, encode, event, openai_failure, usage_of
from workflow_composer.server.failures import HttpFailure
from workflow_composer.types import EMPTY, Chunk, LLMResponse, TokenLogprob


class CompletionsDialect:
    """The legacy completions format."""

    name = "completions"

    def read(self, body: bytes | bytearray, headers: Mapping[str, str]) -> Asked:
        """Parse a request body. Raises `HttpFailure`."""
        fields, own, extra, warnings = FORM.read(body)
        include_usage = "stream_options" in own and usage_at_end(own)
        top = own.get("logprobs")
        told = fields.get("metadata", EMPTY).get("task_type")
        fields.update(
            address_of(own.get("model"), told, *map(headers.get, ADDRESS_HEADERS)),
            kind="completion",
            messages=({"role": "user", "content": own["prompt"]},),
            logprobs=top is not None,
            top_logprobs=top,
            extra=extra,
        )
        return Asked(fields, own.get("stream", False), include_usage, tuple(warnings))

    def whole(self, asked: Asked, response: LLMResponse) -> bytes:
        """Return a ``text_completion`` object."""
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
        """Return a writer of ``text_completion`` objects."""
        return CompletionEvents(asked)

    def failure(self, failure: HttpFailure) -> bytes:
        """Return an error object."""
        return openai_failure(failure)


class CompletionEvents:
    """Writes one stream."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._frame: dict[str, Any] = {}

    def piece(self, chunk: Chunk) -> bytes:
        """Return the event for a piece."""
        self._open(chunk.model or "")
        if not chunk.carries_content:
            return b""
        logprobs = _logprobs(chunk.logprobs) if self._asked.request.logprobs and chunk.logprobs else None
        choice = {"index": 0, "text": chunk.text, "finish_reason": chunk.finish_reason, "logprobs": logprobs}
        return event({**self._frame, "choices": [choice]})

    def end(self, response: LLMResponse) -> bytes:
        """Return the usage, if requested, and the end marker."""
        self._open(response.model)
        usage = event({**self._frame, "choices": [], "usage": usage_of(response)}) if self._asked.include_usage else b""
        return usage + DONE

    def failed(self, failure: HttpFailure) -> bytes:
        """Return the error object as an event."""
        return b"data: " + openai_failure(failure) + b"\n\n"

    def _open(self, model: str) -> None:
        self._frame = self._frame or _frame(self._asked.request.request_id, model)


# ------------------------------------------------------------------------------------------------------------- reading

_NO_PROMPT = "must be a string; send a separate request for each of several strings (token lists are not supported)"


@described(schemas.either(schemas.TEXT, schemas.listed(schemas.TEXT, least=1, most=1)))
def _prompt(name: str, found: Any) -> str:
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    if not isinstance(found, str):
        raise wrong(name, _NO_PROMPT)
    return found


FORM = Form(
    {
        **COMMON,
        "prompt": Field(_prompt, required=_NO_PROMPT),
        "max_tokens": Field(TOKENS, "max_tokens"),
        "n": CHOICES,
        "stop": Field(field_checks.stop, "stop"),
        "seed": SEED,
        "stream_options": STREAM_OPTIONS,
        "logprobs": Field(TOP_LOGPROBS),
        "response_format": Field(field_checks.mapping, "response_format"),
        "suffix": refused("is not supported"),
        "best_of": refused("is not supported; use n, or a routing string such as mv_MODEL_k8_t0.7 as model"),
    },
    translated=True,
    beside=STREAM_OPTIONS_IN_STREAMS,
    example={"model": "auto", "prompt": "Once upon a time", "max_tokens": 64},
)


# ------------------------------------------------------------------------------------------------------------- writing


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
