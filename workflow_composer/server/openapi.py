"""The OpenAPI document of the service, precise enough to be fuzzed against."""

from __future__ import annotations

import functools
from importlib.metadata import version
from typing import Any

from workflow_composer.server import multipart
from workflow_composer.server.admin.runs import RUNS
from workflow_composer.server.admin.switching import RELOAD, ROLLBACK, SWITCH
from workflow_composer.server.api import chat, completions, embeddings, message_form, response_form
from workflow_composer.server.api.catalogue import FEEDBACK
from workflow_composer.server.api.forms import LONGEST_NAME, Form, model_name
from workflow_composer.server.api.json_wire import encode
from workflow_composer.server.api.passing import COUNT, COUNTED, PATHS, UPLOADS
from workflow_composer.server.api.passing import FORM as PASSED
from workflow_composer.server.api.schemas import BOOLEAN, INTEGER, NUMBER, TEXT, Schema, nullable, record
from workflow_composer.server.auth.keys import PERIODS
from workflow_composer.server.batches.handlers import BATCH, BATCHES, CANCEL, CONTENT, FILE, FILES, PURPOSES, batch_form
from workflow_composer.server.exchange import Exchange, Handler, Reply

# -------------------------------------------------------------------------------------------------------------- describing
#
# The API described: ``GET /openapi.json``.


def describing(most_calls: int) -> Handler:
    """Return the handler that answers with the OpenAPI document."""

    async def described(exchange: Exchange) -> Reply:
        return Reply(200, _written(most_calls))

    return described


@functools.cache
def _written(most_calls: int) -> bytes:
    found: dict[str, Any] = document(most_calls)
    return encode(found)


_ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings")
_NAME: Schema = {**TEXT, "pattern": "^[ -~]*$", "maxLength": LONGEST_NAME}
_EVENT: Schema = {
    "type": "object",
    "description": "Server-sent events, each with JSON as its data",
    "properties": {"event": TEXT, "data": TEXT},
}


def document(most_calls: int | None = None) -> Schema:
    """Return the whole document, OpenAPI 3.1; ``most_calls`` is the service's limit of a request, and so of ``n``."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "workflow_composer",
            "version": version("workflow-composer"),
            "description": "One OpenAI-compatible API for many language models; `model` is a routing address.",
        },
        "components": {
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A key from `keys new`, if the service requires keys.",
                },
                "admin": {"type": "http", "scheme": "bearer", "description": "The admin token."},
            },
            "schemas": {"Error": _error(), "AnthropicError": _anthropic_error()},
        },
        "paths": _limited(_paths(), most_calls),
    }


def _limited(paths: Schema, most_calls: int | None) -> Schema:
    for methods in paths.values():
        for operation in methods.values():
            body = operation.get("requestBody", {"content": {}})["content"].get("application/json", {"schema": {}})["schema"]
            answers = body.get("properties", {}).get("n", {})
            if most_calls is not None and "maximum" in answers:
                body["properties"] = body["properties"] | {"n": answers | {"maximum": min(most_calls, answers["maximum"])}}
    return paths


def _paths() -> Schema:
    return {
        "/v1/chat/completions": {"post": _asking("Create a chat completion", chat.FORM, "chat.completion")},
        "/v1/completions": {"post": _asking("Create a text completion", completions.FORM, "text_completion")},
        "/v1/responses": {"post": _asking("Create a response (OpenAI Responses)", response_form.FORM, "response")},
        "/v1/messages": {
            "post": _asking("Create a message (Anthropic Messages)", message_form.FORM, None, error="AnthropicError")
        },
        "/v1/embeddings": {"post": _operation("Create embeddings", embeddings.FORM, {"object": {"const": "list"}})},
        "/v1/feedback": {
            "post": _operation("Grade a response", FEEDBACK, {"id": TEXT, "audited": BOOLEAN}, 409),
            "get": _operation("List the sampled responses that need a grade", None, {"data": {"type": "array"}}),
        },
        "/v1/models": {
            "get": _operation("List the values of `model`", None, {"object": {"const": "list"}, "data": {"type": "array"}})
        },
        "/v1/models/{model}": {
            "get": _operation("Get one value of `model`", None, {"id": TEXT}, parameters=[_in_path("model")])
        },
        "/v1/usage": {"get": _operation("Get what the key has used, and what is left", None, _usage())},
        **_uploads(),
        RUNS: {
            "get": _operation(
                "List what runs of workflows are doing",
                None,
                {"object": {"const": "list"}, "data": {"type": "array"}},
                parameters=[
                    _query("limit", "How many; those under way come first", {**INTEGER, "minimum": 1, "maximum": 100})
                ],
            )
        },
        f"{RUNS}/{{id}}": {
            "get": _operation("Get one run of a workflow", None, {"id": TEXT, "state": TEXT}, parameters=[_in_path("id")])
        },
        COUNT: {"post": _counting()},
        **{path: {"post": _passing(path)} for path in PATHS},
        **{path: {"post": _uploading(path)} for path in UPLOADS},
        "/health": {"get": _plain("Check that the process is alive", {"status": {"const": "ok"}})},
        "/ready": {"get": _plain("Check that a model is available", {"ready": BOOLEAN}, 503)},
        "/metrics": {"get": _other("Get the metrics in Prometheus' text format", "text/plain")},
        "/dashboard": {"get": _other("Get the dashboard page", "text/html")},
        "/dashboard/data": {"get": _operation("Get the dashboard's data", None, {"strategy": TEXT})},
        "/openapi.json": {"get": _plain("Get this document", {"openapi": TEXT})},
        "/admin/strategy": {
            "get": _admin(
                "Get the active strategy", None, [_query("preview", "A profile: show what switching to it would change")]
            ),
            "put": _admin("Switch", SWITCH, [_query("dry_run", "true")]),
        },
        "/admin/strategy/versions": {"get": _admin("List all versions", None)},
        "/admin/strategy/rollback": {"post": _admin("Roll back to a version", ROLLBACK)},
        "/admin/plugins/reload": {"post": _admin("Load new and changed plugins", RELOAD)},
        "/admin/plugins/rollback": {"post": _admin("Return to the plugins before the last change", RELOAD)},
    }


def _uploads() -> Schema:
    """Return the paths of files and batches."""
    form = batch_form([*_ENDPOINTS])
    file, batch, page = {"object": {"const": "file"}}, {"object": {"const": "batch"}}, {"object": {"const": "list"}}
    in_path = {"parameters": [_in_path("id")]}
    uploaded = record({"purpose": {"enum": list(PURPOSES)}, "file": {**TEXT, "format": "binary"}}, "purpose", "file")
    upload = _operation("Upload a file", None, {"id": TEXT, **file}, 409)
    upload["requestBody"] = {"required": True, "content": {multipart.KIND: {"schema": uploaded}}}
    content = _other("Get a file's content", "application/octet-stream")
    content["responses"] |= _failures("Error")
    return {
        FILES: {"post": upload, "get": _operation("List the files", None, page)},
        f"{FILE}{{id}}": {
            "get": _operation("Get a file's record", None, file, **in_path),
            "delete": _operation("Delete a file", None, {"deleted": BOOLEAN}, 409, **in_path),
        },
        f"{FILE}{{id}}{CONTENT}": {"get": {**content, **in_path}},
        BATCHES: {
            "post": _operation("Begin a batch", form, {"id": TEXT, **batch}),
            "get": _operation("List the batches", None, page),
        },
        f"{BATCH}{{id}}": {"get": _operation("Get a batch's record", None, batch, **in_path)},
        f"{BATCH}{{id}}{CANCEL}": {"post": _operation("End a batch", None, batch, 409, **in_path)},
    }


# ------------------------------------------------------------------------------------------------------------ answers


def _usage() -> Schema:
    """Return the fields of a key's usage: dollars, tokens, epoch seconds."""
    time = {**nullable(NUMBER), "description": "Epoch seconds"}
    label = dict.fromkeys(("id", "name", "user", "team"), TEXT)
    key = record({**label, "expires_at": time}, *label, "expires_at")
    budget = {"period": {"enum": list(PERIODS)}, "budget": NUMBER, "spent": NUMBER, "left": NUMBER, "resets_at": time}
    limit: Schema = {"of": {"enum": ["requests", "tokens"]}, "per": {"enum": ["minute", "day"]}}
    limit |= {"limit": INTEGER, "remaining": INTEGER, "resets_at": NUMBER}
    spent, tokens = dict.fromkeys(("today", "month", "total"), NUMBER), {"today": INTEGER, "total": INTEGER}
    return {
        "object": {"const": "usage"},
        "key": key,
        "requests": INTEGER,
        "tokens": record(tokens, *tokens),
        "spent": {**record(spent, *spent), "description": "Dollars"},
        "budget_left": {**nullable(NUMBER), "description": "Dollars left of all budgets; null without one"},
        "budgets": {"type": "array", "items": record(budget, *budget)},
        "limits": {"type": "array", "items": record(limit, *limit)},
    }


def _error() -> Schema:
    error = record({"message": TEXT, "type": TEXT, "param": nullable(TEXT), "code": nullable(TEXT)})
    return record({"error": {**error, "required": ["message", "type", "param", "code"]}}, "error")


def _anthropic_error() -> Schema:
    error = record({"type": TEXT, "message": TEXT}, "type", "message")
    return record({"type": {"const": "error"}, "error": error}, "type", "error")


def _failure(name: str) -> Schema:
    return {"description": "An error", "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}}


def _failures(name: str, *more: int) -> Schema:
    statuses = (400, 401, 402, 403, 404, 408, 413, 415, 429, 500, 502, 503, 504, *more)
    return {str(status): _failure(name) for status in statuses}


def _asking(summary: str, body: Form, kind: str | None, *, error: str = "Error") -> Schema:
    """Return an operation that responds whole or as a stream."""
    whole = record({"id": TEXT, **({} if kind is None else {"object": {"const": kind}})}, "id")
    content: Schema = {"application/json": {"schema": whole}, "text/event-stream": {"schema": _EVENT}}
    task = {"name": "x-workflow-composer-task", "in": "header", "schema": _NAME}
    return {
        "summary": summary,
        "security": [{"key": []}, {}],
        "parameters": [{**task, "description": "The task that the request belongs to."}],
        "requestBody": _body(body),
        "responses": {"200": {"description": "The response", "content": content}, **_failures(error)},
    }


def _passing(path: str) -> Schema:
    summary = f"Passed on to the model's server: {path}"
    content: Schema = {"application/json": {"schema": {}}, "application/octet-stream": {"schema": {}}}
    answers = {"200": {"description": "As the server answers", "content": content}, **_failures("Error")}
    return {
        "summary": summary,
        "security": [{"key": []}, {}],
        "requestBody": {**_body(PASSED), "required": True},
        "responses": answers,
    }


def _uploading(path: str) -> Schema:
    found = _passing(path)
    schema = record({"file": {**TEXT, "format": "binary"}, "model": model_name.schema}, "file", "model")
    return {**found, "requestBody": {"required": True, "content": {multipart.KIND: {"schema": schema}}}}


def _in_path(name: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": TEXT}


def _operation(
    summary: str, body: Form | None, answer: Schema, *more: int, parameters: list[Schema] | None = None
) -> Schema:
    return {
        "summary": summary,
        "security": [{"key": []}, {}],
        **({"parameters": parameters} if parameters else {}),
        **({} if body is None else {"requestBody": _body(body)}),
        "responses": {"200": _json(record(answer, *answer)), **_failures("Error", *more)},
    }


def _counting() -> Schema:
    found = _operation("Count the tokens of a message's prompt", COUNTED, {"input_tokens": INTEGER})
    return {**found, "responses": {**found["responses"], **_failures("AnthropicError")}}


def _plain(summary: str, answer: Schema, *more: int) -> Schema:
    found = _json(record(answer, *answer))
    return {"summary": summary, "responses": {"200": found, **{str(status): found for status in more}}}


def _other(summary: str, kind: str) -> Schema:
    return {"summary": summary, "responses": {"200": {"description": summary, "content": {kind: {"schema": TEXT}}}}}


def _admin(summary: str, body: Form | None, parameters: list[Schema] | None = None) -> Schema:
    return {
        "summary": summary,
        "security": [{"admin": []}],
        "parameters": parameters or [],
        **({} if body is None else {"requestBody": _body(body)}),
        "responses": {"200": _json({"type": "object"}), **_failures("Error")},
    }


def _query(name: str, description: str, schema: Schema = TEXT) -> Schema:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": description}


def _body(form: Form) -> Schema:
    schema = form.schema
    return {"required": bool(schema["required"]), "content": {"application/json": {"schema": schema}}}


def _json(schema: Schema) -> Schema:
    return {"description": "Done", "content": {"application/json": {"schema": schema}}}
