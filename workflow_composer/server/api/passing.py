"""Requests of model servers' own APIs, which are passed on to the server of the model: tokens, ranking, scores, sound.

The service reads the model's name and leaves the rest as it is; a server without such an API says so.
``POST /v1/messages/count_tokens`` is answered by the server's tokenizer, or estimated where it has none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from workflow_composer.backends.base import Passed, Upload
from workflow_composer.backends.pricing import CHARACTERS_PER_TOKEN
from workflow_composer.errors import AllCandidatesFailed, ModelError, ModelNotFound, Unsupported
from workflow_composer.server import multipart
from workflow_composer.server.api import field_checks
from workflow_composer.server.api.completion_handler import (
    PREFIX,
    REQUEST_ID,
    WARNING,
    Accounts,
    Admission,
    Visit,
)
from workflow_composer.server.api.forms import ADDRESS_HEADERS, WORKFLOW, Field, Form, address_of, carried_of, model_name
from workflow_composer.server.api.json_wire import encode
from workflow_composer.server.api.message_form import FORM as MESSAGES
from workflow_composer.server.api.message_form import asked_of
from workflow_composer.server.auth.callers import reachable
from workflow_composer.server.exchange import Exchange, Handler, Reply
from workflow_composer.server.failures import HttpFailure, failure_of
from workflow_composer.server.multipart import FormData
from workflow_composer.support.large_json import LARGE, apart
from workflow_composer.types import ANY_TASK, LLMRequest

if TYPE_CHECKING:
    from workflow_composer.orchestrator import ModelOrchestrator

PATHS: Mapping[str, str] = {
    "/tokenize": "//tokenize",
    "/detokenize": "//detokenize",
    "/rerank": "/rerank",
    "/v1/rerank": "/rerank",
    "/v2/rerank": "/rerank",
    "/score": "/score",
    "/v1/score": "/score",
    "/pooling": "//pooling",
    "/classify": "//classify",
    "/v1/audio/speech": "/audio/speech",
}
"""Paths of the service -> those of servers, below their API or, with two slashes, beside it."""

UPLOADS: Mapping[str, str] = {
    "/v1/audio/transcriptions": "/audio/transcriptions",
    "/v1/audio/translations": "/audio/translations",
}
"""Paths with multipart bodies: a sound, and the model's name."""
_PIECE = 2**16
COUNT = "/v1/messages/count_tokens"
FORM = Form({"model": Field(model_name)}, example={"model": "auto", "prompt": "What is 2 + 2?"})
COUNTED = Form(
    {
        name: Field(field.check, field.to, "" if name == "max_tokens" else field.required, field.left_out, field.note)
        for name, field in MESSAGES.fields.items()
    },
    example={"model": "auto", "messages": [{"role": "user", "content": "What is 2 + 2?"}]},
)


class Passing:
    """Handlers of what is passed on."""

    def __init__(self, orchestrator: ModelOrchestrator, accounts: Accounts, admission: Admission) -> None:
        self._orchestrator = orchestrator
        self._accounts = accounts
        self._admission = admission

    def routes(self) -> Mapping[tuple[str, str], Handler]:
        """Return the handlers by method and path."""
        found = {("POST", path): self._handler(at) for path, at in PATHS.items()}
        found |= {("POST", path): self._uploads(at) for path, at in UPLOADS.items()}
        return {**found, ("POST", COUNT): self.count}

    def _handler(self, at: str) -> Handler:
        async def handle(exchange: Exchange) -> Reply:
            async with Visit(self._accounts, self._admission, exchange) as visit:
                read = FORM.read if len(exchange.body) <= LARGE else None
                _, own, body, _ = read(exchange.body) if read else await apart(FORM.read, exchange.body)
                if body.get("stream"):
                    raise HttpFailure(400, "stream: is not supported here", param="stream", code=field_checks.UNSUPPORTED)
                address = address_of(own.get("model"), None, *map(exchange.headers.get, ADDRESS_HEADERS))
                found = await self._passed(at, body, address, exchange, visit)
            headers = [(REQUEST_ID, exchange.request_id), (PREFIX + "model", found.candidate)]
            return Reply(200, found.body, found.kind, headers)

        return handle

    def _uploads(self, at: str) -> Handler:
        async def handle(exchange: Exchange) -> Reply:
            async with Visit(self._accounts, self._admission, exchange) as visit:
                form = multipart.read(exchange.body, exchange.headers)
                form.file("file")
                if (form.text("stream") or "").strip().lower() in ("true", "1"):
                    raise HttpFailure(400, "stream: is not supported here", param="stream", code=field_checks.UNSUPPORTED)
                name = form.text("model")
                model = None if not name else model_name("model", name)
                upload = await asyncio.to_thread(_upload, form, exchange.body, exchange.headers["content-type"])
                address = address_of(model, None, *map(exchange.headers.get, ADDRESS_HEADERS))
                found = await self._passed(at, upload, address, exchange, visit)
            headers = [(REQUEST_ID, exchange.request_id), (PREFIX + "model", found.candidate)]
            return Reply(200, found.body, found.kind, headers)

        return handle

    async def count(self, exchange: Exchange) -> Reply:
        """Return the number of tokens of a message's prompt: as the model's server counts, else as a rule of thumb says."""
        async with Visit(self._accounts, self._admission, exchange) as visit:
            read = asked_of(exchange.body, exchange.headers, COUNTED)
            request = LLMRequest(**read.fields)
            body = {"messages": list(request.messages), "add_generation_prompt": True}
            if request.tools:
                body["tools"] = list(request.tools)
            address: dict[str, Any] = {
                name: read.fields[name] for name in ("model", "task_type", "timeout") if name in read.fields
            }
            warnings = list(read.warnings)
            count = None
            try:
                if address.get("model") not in {f"{WORKFLOW}{name}" for name in self._orchestrator.workflows}:
                    count = _count_in(await self._passed("//tokenize", body, address, exchange, visit))
            except (ModelError, AllCandidatesFailed) as error:
                if failure_of(error).status not in (400, 404) and not isinstance(error, (ModelNotFound, Unsupported)):
                    raise
            if count is None:
                count = int(request.bulk / CHARACTERS_PER_TOKEN) + 4 * len(request.messages)
                warnings.append("input_tokens is estimated: the model's server does not count tokens")
        headers = [(REQUEST_ID, exchange.request_id), *((WARNING, warning) for warning in warnings)]
        return Reply(200, encode({"input_tokens": max(1, count)}), headers=headers)

    async def _passed(
        self, at: str, body: Mapping[str, Any] | Upload, address: Mapping[str, Any], exchange: Exchange, visit: Visit
    ) -> Passed:
        orchestrator = self._orchestrator
        fields: dict[str, Any] = {**address, "request_id": exchange.request_id, "purse": visit.purse}
        if (key := visit.key) is not None:
            key.check(orchestrator.strategy)
            fields["allowed"] = reachable(key, orchestrator.config, fields.get("model"), fields.get("task_type", ANY_TASK))
        own = None if key is None else key.most_calls
        fields["most_calls"] = self._accounts.most_calls if own is None else own
        fields["headers"] = carried_of(exchange.headers, orchestrator.forwarded)
        return await orchestrator.apass(at, body, **fields)


def _upload(form: FormData, body: bytes | bytearray, kind: str) -> Upload:
    """Return a body in pieces, open where the model's name stands. Raises `HttpFailure` if the body has no place for it."""
    part = next((part for part in form.parts if part.name == "model"), None)
    if part is None:
        raise HttpFailure(400, "model: must be a model of this service, or auto", param="model")
    if kind.isascii() and kind.isprintable():
        return Upload(
            before=_pieces(body, 0, part.start),
            after=_pieces(body, part.end, len(body)),
            kind=kind,
            text=form.text("prompt") or "",
        )
    raise HttpFailure(400, "the content type has odd characters", param="content-type")


def _pieces(body: bytes | bytearray, start: int, end: int) -> tuple[bytes, ...]:
    return tuple(bytes(body[at : min(at + _PIECE, end)]) for at in range(start, end, _PIECE))


def _count_in(found: Passed) -> int | None:
    import msgspec

    try:
        count = msgspec.json.decode(found.body)["count"]
    except (msgspec.DecodeError, LookupError, TypeError):
        return None
    return count if type(count) is int and count >= 0 else None
