"""OpenAI's legacy completions: ``POST /v1/completions``. The model gets the text unchanged, without a chat template."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from workflow_composer.backends.openai.wire import prompts_in
from workflow_composer.server.api import field_checks, schemas
from workflow_composer.server.api.chat import CHOICES, DONE, SEED, STREAM_OPTIONS, STREAM_OPTIONS_IN_STREAMS, usage_at_end
from workflow_composer.server.api.field_checks import described, wrong
from workflow_composer.server.api.forms import (
    ADDRESS_HEADERS,
    COMMON,
    TOP_LOGPROBS,
    Field,
    Form,
    address_of,
    refused,
    renamed,
)
from workflow_composer.server.api.json_wire import WAITING, Asked, counts_of, encode, event, openai_failure, usage_of
from workflow_composer.server.failures import HttpFailure
from workflow_composer.types import EMPTY, Chunk, LLMResponse, TokenLogprob


class CompletionsDialect:
    """The legacy completions format."""

    name = "completions"

    def read(self, body: bytes | bytearray, headers: Mapping[str, str]) -> Asked:
        """Parse a request body. Raises `HttpFailure`."""
        fields, own, extra, warnings = FORM.read(body)
        include_usage = "stream_options" in own and usage_at_end(own)
        top, prompt = own.get("logprobs"), own["prompt"]
        metadata = fields.get("metadata", EMPTY)
        if any(name != "task_type" for name in metadata):
            warnings.append("metadata is not passed to the model: completions have no such field")
        if extra:
            renamed(extra, warnings)
        if not isinstance(prompt, str):
            extra["prompt"] = prompt
            fields["n"] = fields.get("n", 1) * prompts_in(prompt)
        fields.update(
            address_of(own.get("model"), metadata.get("task_type"), *map(headers.get, ADDRESS_HEADERS)),
            kind="completion",
            messages=({"role": "user", "content": prompt if isinstance(prompt, str) else in_words(prompt)},),
            logprobs=top is not None,
            top_logprobs=top,
            extra=extra,
        )
        continuous = include_usage and own["stream_options"].get("continuous_usage_stats") is True
        return Asked(fields, own.get("stream", False), include_usage, tuple(warnings), continuous)

    def whole(self, asked: Asked, response: LLMResponse) -> bytes:
        """Return a ``text_completion`` object."""
        choices = [
            {
                "index": index,
                "text": sample.text,
                "finish_reason": sample.finish_reason or "stop",
                "logprobs": _logprobs(sample.logprobs) if asked.request.logprobs else None,
                **({"stop_reason": sample.stop} if sample.stop else {}),
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

    def waiting(self) -> bytes:
        """Return a comment."""
        return WAITING

    def piece(self, chunk: Chunk) -> bytes:
        """Return the event for a piece."""
        self._open(chunk.model or "")
        if not chunk.carries_content:
            return b""
        logprobs = _logprobs(chunk.logprobs) if self._asked.request.logprobs and chunk.logprobs else None
        choice = {"index": 0, "text": chunk.text, "finish_reason": chunk.finish_reason, "logprobs": logprobs}
        if chunk.stop:
            choice["stop_reason"] = chunk.stop
        usage = {"usage": counts_of(chunk.usage)} if self._asked.continuous and chunk.usage is not None else {}
        return event({**self._frame, "choices": [choice], **usage})

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

_NO_PROMPT = "must be a string, a list of tokens, or a list of at most 128 of either"
MOST_PROMPTS = 128


@described(
    schemas.either(
        schemas.TEXT,
        schemas.listed(schemas.TEXT, least=1, most=MOST_PROMPTS),
        schemas.TOKEN_LIST,
        schemas.listed(schemas.TOKEN_LIST, least=1, most=MOST_PROMPTS),
    )
)
def _prompt(name: str, found: Any) -> str | list[Any]:
    if isinstance(found, list) and len(found) == 1 and isinstance(found[0], str):
        found = found[0]
    if isinstance(found, str):
        return found
    if (tokens := field_checks.tokens(found)) is not None:
        return tokens
    if not isinstance(found, list) or not 0 < len(found) <= MOST_PROMPTS:
        raise wrong(name, _NO_PROMPT)
    if all(isinstance(one, str) for one in found):
        return found
    lists = [field_checks.tokens(one) for one in found]
    if None in lists:
        raise wrong(name, _NO_PROMPT)
    return lists


def in_words(found: Any) -> str:
    """Return a list of prompts or tokens as one text of about the same length, by which costs are foreseen."""
    return (
        found if isinstance(found, str) else " ".join(str(one) if isinstance(one, int) else in_words(one) for one in found)
    )


FORM = Form(
    {
        **COMMON,
        "prompt": Field(_prompt, required=_NO_PROMPT),
        "max_tokens": Field(field_checks.whole(least=0), "max_tokens"),
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
