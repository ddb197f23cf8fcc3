"""The OpenAPI document of the service, precise enough to be fuzzed against."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from workflow_composer.server.addressing import LONGEST_NAME
from workflow_composer.server.wire_chat import MOST_CHOICES, ROLES
from workflow_composer.server.wire_embeddings import MOST_DIMENSIONS, MOST_TEXTS

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_BOOLEAN: Schema = {"type": "boolean"}
_LIST: Schema = {"type": "array"}
_FLAG: Schema = {"type": ["boolean", "null"]}
_STOP: Schema = {"anyOf": [{"type": ["string", "null"]}, {"type": "array", "items": _TEXT}]}
_TEMPERATURE: Schema = {"type": ["number", "null"], "minimum": 0, "maximum": 2}
_TOP_P: Schema = {"type": ["number", "null"], "minimum": 0, "maximum": 1}
_COUNT: Schema = {"type": ["integer", "null"], "minimum": 1, "maximum": 2**31 - 1}
_SEED: Schema = {"type": ["integer", "null"], "minimum": 1 - 2**63, "maximum": 2**63 - 1}
_CHOICES: Schema = {"type": ["integer", "null"], "minimum": 1, "maximum": MOST_CHOICES}
_ONE_CHOICE: Schema = {"enum": [None, False, 0, [], {}], "description": "Answers are given one at a time here."}
_OBJECT: Schema = {"type": ["object", "null"]}
_NAME: Schema = {"type": ["string", "null"], "pattern": "^[ -~]*$", "maxLength": LONGEST_NAME}
_METADATA: Schema = {**_OBJECT, "description": "`task_type`: the task that the request belongs to"}
_MODEL: Schema = {
    **_NAME,
    "description": "auto, task:NAME, a tier, a model of the catalogue, or a routing string such as mv_small_k8_t0.7",
    "examples": ["auto"],
}
_EVENT: Schema = {
    "type": "object",
    "description": "Server-sent events, each with JSON as its data",
    "properties": {"event": _TEXT, "data": _TEXT},
}


def document() -> Schema:
    """The whole document, OpenAPI 3.1."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "workflow_composer",
            "version": version("workflow-composer"),
            "description": "Many language models, one place to ask. OpenAI's API; `model` is a routing address.",
        },
        "components": {
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "From `keys new`, where keys are asked for.",
                },
                "admin": {"type": "http", "scheme": "bearer", "description": "The operator's token."},
            },
            "schemas": {"Error": _error(), "AnthropicError": _anthropic_error()},
        },
        "paths": _paths(),
    }


def _paths() -> Schema:
    return {
        "/v1/chat/completions": {"post": _asking("Answer a conversation", _chat(), "chat.completion")},
        "/v1/completions": {"post": _asking("Go on with a text", _completion(), "text_completion")},
        "/v1/responses": {"post": _asking("Answer, in the form of responses", _response(), "response")},
        "/v1/messages": {"post": _asking("Answer, in Anthropic's form", _messages(), None, error="AnthropicError")},
        "/v1/embeddings": {"post": _operation("Vectors of texts", _embeddings(), {"object": {"const": "list"}})},
        "/v1/feedback": {
            "post": _operation("Grade an answer", _feedback(), {"id": _TEXT, "audited": {"type": "boolean"}}, 409)
        },
        "/v1/models": {
            "get": _operation("What `model` may be", None, {"object": {"const": "list"}, "data": {"type": "array"}})
        },
        "/health": {"get": _plain("Whether the process lives", {"status": {"const": "ok"}})},
        "/ready": {"get": _plain("Whether a model can answer", {"ready": {"type": "boolean"}}, 503)},
        "/metrics": {"get": _other("Prometheus metrics", "text/plain")},
        "/dashboard": {"get": _other("The dashboard", "text/html")},
        "/dashboard/data": {"get": _operation("What the dashboard shows", None, {"strategy": _TEXT})},
        "/openapi.json": {"get": _plain("This document", {"openapi": _TEXT})},
        "/admin/strategy": {
            "get": _admin("The active strategy", None, [_query("preview", "A profile: what a switch to it would change")]),
            "put": _admin(
                "Switch",
                _switch(),
                [_query("dry_run", "true")],
            ),
        },
        "/admin/strategy/versions": {"get": _admin("All versions", None)},
        "/admin/strategy/rollback": {"post": _admin("Back to a version", _object({"version": _COUNT}, closed=True))},
    }


# ------------------------------------------------------------------------------------------------------------- bodies


def _chat() -> Schema:
    content: Schema = {"anyOf": [_TEXT, {"type": "array", "items": _part()}]}
    may_be_empty: Schema = {"anyOf": [content, {"type": "null"}]}
    silent = ("assistant", "function")  # they may only call tools
    spoken = _object({"role": {"enum": sorted(ROLES.difference(silent))}, "content": content}, "role", "content")
    message: Schema = {"anyOf": [spoken, _object({"role": {"enum": silent}, "content": may_be_empty}, "role")]}
    function = _object({"name": _TEXT, "description": {"type": ["string", "null"]}, "parameters": _OBJECT}, "name")
    other = _object({"type": {"type": "string", "not": {"const": "function"}}}, "type")
    tool: Schema = {"anyOf": [_object({"type": {"const": "function"}, "function": function}, "type", "function"), other]}
    return _object(
        {
            "model": _MODEL,
            "messages": {"type": "array", "minItems": 1, "items": message},
            "max_tokens": _COUNT,
            "max_completion_tokens": _COUNT,
            "temperature": _TEMPERATURE,
            "top_p": _TOP_P,
            "n": _CHOICES,
            "stop": _STOP,
            "seed": _SEED,
            "stream": _FLAG,
            "logprobs": _FLAG,
            "top_logprobs": {"type": ["integer", "null"], "minimum": 0, "maximum": 100},
            "tools": {"type": ["array", "null"], "items": tool},
            "response_format": _OBJECT,
            "metadata": _METADATA,
        },
        "messages",
    )


def _part() -> Schema:
    other = _object({"type": {"type": "string", "not": {"const": "text"}}}, "type")
    return {"anyOf": [_object({"type": {"const": "text"}, "text": _TEXT}, "type", "text"), other]}


def _completion() -> Schema:
    return _object(
        {
            "model": _MODEL,
            "prompt": _TEXT,
            "n": _CHOICES,
            "seed": _SEED,
            "max_tokens": _COUNT,
            "temperature": _TEMPERATURE,
            "top_p": _TOP_P,
            "stop": _STOP,
            "stream": _FLAG,
            "logprobs": {"type": ["integer", "null"], "minimum": 0, "maximum": 100},
        },
        "prompt",
    )


def _response() -> Schema:
    return _object(
        {
            "model": _MODEL,
            "input": _TEXT,
            "instructions": {"type": ["string", "null"]},
            "n": _ONE_CHOICE,
            "max_output_tokens": _COUNT,
            "temperature": _TEMPERATURE,
            "top_p": _TOP_P,
            "stream": _FLAG,
            "metadata": _METADATA,
        },
        "input",
    )


def _messages() -> Schema:
    message = _object({"role": {"enum": ["user", "assistant"]}, "content": _TEXT}, "role", "content", closed=True)
    return _object(
        {
            "model": _MODEL,
            "messages": {"type": "array", "minItems": 1, "items": message},
            "system": {"type": ["string", "null"]},
            "n": _ONE_CHOICE,
            "max_tokens": {"type": "integer", "minimum": 1, "maximum": 2**31 - 1},
            "temperature": _TEMPERATURE,
            "top_p": _TOP_P,
            "stop_sequences": {"type": ["array", "null"], "items": _TEXT},
            "stream": _FLAG,
        },
        "messages",
        "max_tokens",
    )


def _embeddings() -> Schema:
    text: Schema = {"type": "string", "minLength": 1}
    texts: Schema = {"type": "array", "items": text, "minItems": 1, "maxItems": MOST_TEXTS}
    form: Schema = {"enum": ["float", "base64", None]}
    return _object(
        {
            "model": _MODEL,
            "input": {"anyOf": [text, texts]},
            "encoding_format": form,
            "dimensions": {**_COUNT, "maximum": MOST_DIMENSIONS},
            "metadata": _METADATA,
            "user": {"description": "says nothing to a model"},
        },
        "input",
        closed=True,
    )


def _feedback() -> Schema:
    identity: Schema = {"type": "string", "pattern": "^[ -~]{1,200}$"}
    by: Schema = {"type": ["string", "null"], "pattern": "^[ -~]{0,200}$"}
    return _object({"id": identity, "correct": {"type": "boolean"}, "by": by}, "id", "correct", closed=True)


def _switch() -> Schema:
    name: Schema = {"type": "string", "minLength": 1, "description": "The name of a profile"}
    return _object({"strategy": name, "why": {"type": ["string", "null"]}, "dry_run": _FLAG}, "strategy", closed=True)


def _object(properties: Schema, *required: str, closed: bool = False) -> Schema:
    """``closed``: no other property is known, and only a null is let pass."""
    more: Schema = {"additionalProperties": {"type": "null"}} if closed else {}
    return {"type": "object", "properties": properties, "required": list(required), **more}


# ------------------------------------------------------------------------------------------------------------ answers


def _error() -> Schema:
    error = _object(
        {"message": _TEXT, "type": _TEXT, "param": {"type": ["string", "null"]}, "code": {"type": ["string", "null"]}}
    )
    return _object({"error": {**error, "required": ["message", "type", "param", "code"]}}, "error")


def _anthropic_error() -> Schema:
    error = _object({"type": _TEXT, "message": _TEXT}, "type", "message")
    return _object({"type": {"const": "error"}, "error": error}, "type", "error")


def _failure(name: str) -> Schema:
    return {"description": "An error", "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}}


def _failures(name: str, *more: int) -> Schema:
    statuses = (400, 401, 402, 403, 404, 408, 413, 429, 500, 502, 503, 504, *more)
    return {str(status): _failure(name) for status in statuses}


def _asking(summary: str, body: Schema, kind: str | None, *, error: str = "Error") -> Schema:
    """An operation that answers whole, or as a stream."""
    whole = _object({"id": _TEXT, **({} if kind is None else {"object": {"const": kind}})}, "id")
    content: Schema = {"application/json": {"schema": whole}, "text/event-stream": {"schema": _EVENT}}
    task = {"name": "x-workflow-composer-task", "in": "header", "schema": {**_NAME, "type": "string"}}
    return {
        "summary": summary,
        "security": [{"key": []}, {}],
        "parameters": [{**task, "description": "The task that the request belongs to."}],
        "requestBody": _body(body),
        "responses": {"200": {"description": "The answer", "content": content}, **_failures(error)},
    }


def _operation(summary: str, body: Schema | None, answer: Schema, *more: int) -> Schema:
    return {
        "summary": summary,
        "security": [{"key": []}, {}],
        **({} if body is None else {"requestBody": _body(body)}),
        "responses": {"200": _json(_object(answer, *answer)), **_failures("Error", *more)},
    }


def _plain(summary: str, answer: Schema, *more: int) -> Schema:
    found = _json(_object(answer, *answer))
    return {"summary": summary, "responses": {"200": found, **{str(status): found for status in more}}}


def _other(summary: str, kind: str) -> Schema:
    return {"summary": summary, "responses": {"200": {"description": summary, "content": {kind: {"schema": _TEXT}}}}}


def _admin(summary: str, body: Schema | None, parameters: list[Schema] | None = None) -> Schema:
    return {
        "summary": summary,
        "security": [{"admin": []}],
        "parameters": parameters or [],
        **({} if body is None else {"requestBody": _body(body, required=bool(body["required"]))}),
        "responses": {"200": _json({"type": "object"}), **_failures("Error")},
    }


def _query(name: str, description: str) -> Schema:
    return {"name": name, "in": "query", "required": False, "schema": _TEXT, "description": description}


def _body(schema: Schema, *, required: bool = True) -> Schema:
    return {"required": required, "content": {"application/json": {"schema": schema}}}


def _json(schema: Schema) -> Schema:
    return {"description": "Done", "content": {"application/json": {"schema": schema}}}
