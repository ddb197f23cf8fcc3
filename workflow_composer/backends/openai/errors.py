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
    failure = _error_for(status, headers, f"{code} {_BODY.sub('', said)}", message, server)
    failure.params = _params(body)
    return failure


def from_stream(event: Mapping[str, Any], server: Server, secrets: Iterable[str]) -> ModelError:
    """Return the error for an error object in place of an answer: in a stream, or with status 200."""
    error = event.get("error", event)
    code = error.get("code") if isinstance(error, Mapping) else None
    status = code if isinstance(code, int) and 300 <= code < 600 else 500
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
