"""Maps errors of OpenAI-compatible servers and of connections to the package's errors; the only place that does.

A server's message is useful ("temperature must be non-negative") but may repeat what was sent: vLLM's validation errors
quote the request's body, and an error about a key quotes the key. So messages are cut at the quoted body, stripped of keys
and of every piece of the request's text, and shortened to one line.
"""

from __future__ import annotations

import email.utils
import json
import math
import os
import re
import ssl
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from workflow_composer.backends.http.connection import Broken, TooLong, Undecodable
from workflow_composer.errors import (
    AnswerTooLong,
    AuthenticationFailed,
    BadRequest,
    CallTimeout,
    ContextOverflow,
    ModelError,
    ModelNotFound,
    OutOfResources,
    QuotaExhausted,
    RateLimited,
    ServerFailed,
    ServerUnreachable,
    Unsupported,
)
from workflow_composer.support.scarcity import lacking, without_network

MESSAGE_LENGTH = 300
"""Maximum length in characters of a server's message in an error."""

_WINDOW = 12
"""Minimum length of text shared by a message and the request that counts as a quotation."""

# vLLM, OpenAI and DeepSeek, later vLLM, Anthropic.
_OVERFLOW = re.compile(
    r"context.{0,2}length|context.{0,2}window|context limit|maximum model length|max_model_len|prompt is too long"
    r"|max_tokens must be at least 1, got -|input is too long|request_too_large",
    re.IGNORECASE,
)
_QUOTA = re.compile(r"insufficient_quota|insufficient balance|credit balance is too low|billing_", re.IGNORECASE)
_FIELD = re.compile(r"param|field|argument|extra|unsupported|unknown|unrecogni[sz]ed|invalid_request", re.IGNORECASE)
_NOT = r"(?:not|n't|no longer|only|unavailable|unknown)\b.{0,40}"
# What a model or its server cannot do, by the field of the request that asks for it. First those with a text of their own,
# which is the whole message and so quotes nobody; then whatever says so in other words.
_LACKING: tuple[tuple[str, bool, re.Pattern[str]], ...] = tuple(
    (field, certain, re.compile(pattern, re.IGNORECASE | re.DOTALL))
    for field, certain, pattern in (
        ("tools", True, r'\W*(?:auto|required|named|none)?"? ?tool.choice requires --'),  # vLLM
        ("tools", True, r"tools? param requires --jinja"),  # llama.cpp
        ("tools", True, r"[\w./:-]+ does not support tools$"),  # Ollama
        ("messages", True, r"[\w./:-]+ is not a multimodal model"),  # vLLM
        ("messages", True, r"at most 0 (?:image|audio|video)\(?s?\)? may be provided"),  # vLLM
        ("messages", True, r"(?:image|audio) input is not supported"),  # llama.cpp
        ("tools", False, r"--tool-call-parser|--jinja flag"),
        (
            "tools",
            False,
            r"\b(?:tools?|functions?)\b(?:[ _](?:use|choice|call(?:s|ing)?))?['\"`]?.{0,30}\b(?:is|are|does|do|not)\b"
            rf".{{0,3}}{_NOT}(?:support|enabl|allow|permit)",
        ),
        ("tools", False, r"(?:not|n't) (?:support|allow)\w* (?:the use of )?(?:tools?|functions?)\b"),
        ("logprobs", False, r"log_?prob\w*['\"`]?.{0,40}\bnot\b.{0,20}(?:support|enabl|allow|permit|available)"),
        ("logprobs", False, r"(?:not|n't) (?:support|allow|return)\w* (?:the )?(?:top_)?log_?prob"),
        ("messages", False, r"(?:not|n't) (?:support|accept|allow)\w* (?:any )?(?:images?|audio|vision|multi.?modal)\b"),
        ("messages", False, r"\bimages?(?:_url)?\b['\"`]?.{0,30}\b(?:is|are)\b.{0,3}(?:not|only) support"),
        ("messages", False, r"unknown variant `?image_url|missing data required for image input"),
        ("response_format", False, r"response_format\b.{0,60}\b(?:not|n't|unavailable)\b"),
        ("response_format", False, r"(?:not|n't) support\w* (?:the )?(?:structured outputs?|json.?schema|json mode)"),
        ("reasoning_effort", False, r"(?:not|n't) support\w* (?:thinking|reasoning)\b"),
    )
)
_FIELD_CODES = frozenset({"unsupported_parameter", "unsupported_value"})
_SIMPLE = re.compile(r"[A-Za-z_][\w.\[\]-]{0,99}")
"""A code or the name of a field that clients may be told as it is."""
_KEY = re.compile(r"(?i)bearer\s+[^\s'\",]+|\bsk-[\w*.-]{4,}|api[-_]key[=:]\s*[^\s'\",]+")
_BODY = re.compile(r"""['"](?:input|body|messages)['"]\s*:.*""", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Server:
    """A server as described in errors. ``name`` is host and port, because the reporter of an error adds the model.

    ``key_env`` names the variable with its key; the key itself is never stored here.
    """

    name: str
    url: str
    key_env: str | None = None

    @property
    def models_hint(self) -> str:
        """Hint how to check whether the server runs and what it serves."""
        return f"is the server running? curl {self.url}/models"


def from_connection(error: Exception, server: Server) -> ModelError:
    """Return the error for an exception of the client: `Broken`, `TooLong`, TimeoutError (connect), OSError."""
    if isinstance(error, TooLong):
        too_long = AnswerTooLong(f"{server.name}: {error}", hint="limit max_tokens, or check that this is a model server")
        too_long.fault = "ours" if error.ours else "server"
        return too_long
    if isinstance(error, Undecodable):
        return ServerFailed(f"{server.name}: {error}", hint="see the server's log")
    if what := lacking(error):
        return OutOfResources(f"{server.name}: no connection: {what}", hint="raise the limit of open files (ulimit -n)")
    if isinstance(error, TimeoutError):
        late = CallTimeout(f"{server.name}: no connection in time (connect)", hint=server.models_hint)
        late.sent = False
        return late
    return unreachable(error, server, connected=isinstance(error, Broken))


def unreachable(cause: BaseException, server: Server, *, connected: bool) -> ServerUnreachable:
    """Return the error for a connection that broke or could not be made."""
    what = "the connection broke" if connected else "no connection"
    failure = ServerUnreachable(f"{server.name}: {what}: {_reason(cause)}", hint=server.models_hint)
    if without_network(cause):
        failure.fault = "ours"  # no server was contacted
    return failure


def from_reply(status: int, headers: Mapping[str, str], body: object, server: Server, secrets: Iterable[str]) -> ModelError:
    """Return the error for an HTTP status of 300 or more."""
    code, said = _read(body)
    message = f"{server.name}: {status}"
    shown = redact(said, secrets)
    if shown:
        message += f": {shown}"
    if 300 <= status < 400:
        return ModelNotFound(
            f"{server.name}: {status}: redirects are not followed",
            hint=f"set base_url to the address it redirects to; curl -I {server.url}/models",
            status=status,
        )
    plain = _BODY.sub("", said)
    failure = _error_for(status, headers, f"{code} {plain}", message, server)
    failure.params = _params(body)
    if status in _LACKING_STATUSES and isinstance(failure, (BadRequest, ServerFailed)):
        failure = _told(failure, body, plain[: 4 * MESSAGE_LENGTH])
    return failure


_LACKING_STATUSES = frozenset({400, 422, 500, 501})


def _told(failure: ModelError, body: object, said: str) -> ModelError:
    """Return the error of a rejected request with code and field; `Unsupported` if a model or server lacks something."""
    code, param = _code_and_param(body)
    field, certain = (param, True) if code in _FIELD_CODES and param else (None, False)
    if field is None:
        found = ((name, sure) for name, sure, form in _LACKING if (form.match if sure else form.search)(said))
        field, certain = next(found, (None, False))
    if field is not None:
        lacking = Unsupported(failure.message, hint="leave it out, or use another model", status=failure.status)
        lacking.field, lacking.code, lacking.certain, lacking.params = field, code, certain, failure.params
        return lacking
    if isinstance(failure, BadRequest):
        failure.code, failure.field = code, param
    return failure


def _code_and_param(body: object) -> tuple[str | None, str | None]:
    """Return what an error body says in ``code`` and ``param``, where these are plain names."""
    if isinstance(body, str):
        try:
            body = json.loads(body)
        except (ValueError, RecursionError):
            return None, None
    error = body.get("error", body) if isinstance(body, Mapping) else None
    if not isinstance(error, Mapping):
        return None, None
    found = [
        one if isinstance(one := error.get(name), str) and _SIMPLE.fullmatch(one) else None for name in ("code", "param")
    ]
    return found[0], found[1]


def from_stream(event: Mapping[str, Any], server: Server, secrets: Iterable[str]) -> ModelError:
    """Return the error for an error object in place of an answer: in a stream, or with status 200."""
    error = event.get("error") or event
    said = [error.get(name) for name in ("code", "status", "status_code")] if isinstance(error, Mapping) else []
    codes = (int(one) if isinstance(one, str) and len(one) == 3 and one.isdecimal() else one for one in said)
    status = next((code for code in codes if isinstance(code, int) and 300 <= code < 600), 500)
    return from_reply(status, {}, event, server, secrets)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the pause in seconds that a server requests: ``retry-after-ms``, or ``Retry-After`` in seconds or as a date."""
    for name, scale in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) / scale
        except ValueError:
            try:
                seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
            except ValueError:
                continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    return None


def redact(text: str, secrets: Iterable[str]) -> str:
    """Return ``text`` as one line of limited length, without keys and quotations of ``secrets``."""
    text = _KEY.sub("[key]", _BODY.sub("[request]", text))[: 4 * MESSAGE_LENGTH]
    hidden = [False] * len(text)
    for secret in secrets:
        _hide(text, secret, hidden)
    kept = "".join("\0" if hide else char for char, hide in zip(text, hidden, strict=True))
    line = " ".join(re.sub("\0+", "[…]", kept).split())
    return line if len(line) <= MESSAGE_LENGTH else line[: MESSAGE_LENGTH - 1] + "…"


def _hide(text: str, secret: str, hidden: list[bool]) -> None:
    size = min(_WINDOW, len(secret))
    if size < 4:  # shorter texts occur in any message
        return
    for start in range(len(text) - size + 1):
        if text[start : start + size] in secret:
            hidden[start : start + size] = [True] * size


def _error_for(status: int, headers: Mapping[str, str], said: str, message: str, server: Server) -> ModelError:
    kind, hint = _kind(status, said, server)
    wait = retry_after(headers) if kind in (RateLimited, ServerFailed) else None
    return kind(message, hint=hint, status=status, retry_after=wait)


def _kind(status: int, said: str, server: Server) -> tuple[type[ModelError], str]:
    if status == 402 or (status in (400, 403, 429) and _QUOTA.search(said)):
        return QuotaExhausted, "the account has no credit left; see the provider's billing page"
    if status == 413 or (status in (400, 422, 500) and _OVERFLOW.search(said)):
        return ContextOverflow, "shorten the prompt, lower max_tokens, or use a model with a longer context"
    if status >= 500:
        return ServerFailed, "see the server's log"
    return {
        401: (AuthenticationFailed, _key_hint(server)),
        403: (AuthenticationFailed, _key_hint(server)),
        404: (ModelNotFound, f"see what it serves: curl {server.url}/models"),
        405: (ModelNotFound, f"check the address of the API: curl {server.url}/models"),
        410: (ModelNotFound, f"see what it serves: curl {server.url}/models"),
        408: (ServerFailed, "see the server's log"),
        409: (ServerFailed, "see the server's log"),
        425: (ServerFailed, "see the server's log"),
        429: (RateLimited, "lower the concurrency"),
    }.get(status, (BadRequest, "change the request; no other server is tried"))


def _key_hint(server: Server) -> str:
    if server.key_env is None:
        return "the server requires a key: name its variable in the model's api_key_env"
    return f"check the key in {server.key_env}"


def _read(body: object) -> tuple[str, str]:
    """Return code (or type) and message of an error body, in any of the forms that servers use."""
    if isinstance(body, str):
        try:
            body = json.loads(body)
        except ValueError:
            return "", re.sub(r"<[^>]*>", " ", str(body))
    if isinstance(body, Mapping):
        error = body.get("error", body)
        if isinstance(error, Mapping):
            said = error.get("message") or error.get("detail") or ""
            return f"{error.get('code')} {error.get('type')}", said if isinstance(said, str) else json.dumps(said)
        return "", str(error)
    return "", ""


def _params(body: object) -> tuple[str, ...]:
    """Return the fields that an error body rejects whatever their value: OpenAI's ``param``, or FastAPI's ``loc``."""
    if isinstance(body, str):
        try:
            body = json.loads(body)
        except (ValueError, RecursionError):
            return ()
    if not isinstance(body, Mapping):
        return ()
    error = body.get("error", body)
    if isinstance(error, Mapping) and isinstance(error.get("param"), str):
        return (error["param"],) if _is_of_field(error.get("code")) else ()
    detail = body.get("detail")
    faults = [one for one in detail if isinstance(one, Mapping)] if isinstance(detail, list) else []
    places = [one.get("loc") for one in faults if _is_of_field(one.get("type"))]
    return tuple(".".join(map(str, place[1:])) for place in places if isinstance(place, list) and place[:1] == ["body"])


def _is_of_field(code: object) -> bool:
    """Whether an error's code is about the field itself; numbers and null say nothing."""
    return not isinstance(code, str) or _FIELD.search(code) is not None


def _reason(error: BaseException) -> str:
    text = str(error).lower()
    if isinstance(error, OSError) and error.errno and error.errno > 0 and not isinstance(error, ssl.SSLError):
        text = os.strerror(error.errno).lower()  # asyncio replaces the system's message by "Connect call failed"
    for sign, reason in (
        ("refused", "refused"),
        ("unreachable", "network unreachable"),
        ("no route", "no route to host"),
        ("reset", "reset by the server"),
        ("name or service", "unknown host name"),
        ("name resolution", "temporary failure in name resolution"),
        ("host name", "unknown host name"),
        ("has no address", "the host name has no address"),
        ("without sending a response", "closed before the response"),
        ("incomplete", "closed during the response"),
        ("peer closed", "closed during the response"),
        ("certificate", "its certificate is not trusted"),
        ("ssl", "TLS failed"),
        ("socks", "a SOCKS proxy requires `pip install socksio`"),
        ("proxy", "the proxy failed"),
    ):
        if sign in text:
            return reason
    return str(error) if isinstance(error, Broken) else type(error).__name__
