"""Error responses: handlers raise `HttpFailure`; `failure_of` makes one from the package's errors.

Statuses, types and codes match OpenAI's API, because clients decide by them which requests to retry. Messages name models;
hosts, files and rules of the profile are for the operator, who finds them in the log. So an error's own text is repeated
only where it concerns the request, and without addresses and paths (`without_places`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from workflow_composer.errors import (
    AllCandidatesFailed,
    AuthenticationFailed,
    BadRequest,
    BudgetExceeded,
    BudgetReserved,
    CallTimeout,
    CapabilityMissing,
    ChannelClosed,
    CircuitOpen,
    ConfigError,
    ContextOverflow,
    DeadlineExceeded,
    EgressDenied,
    FleetError,
    InputError,
    InvalidAnswer,
    ModelError,
    ModelNotAllowed,
    ModelNotFound,
    OutOfResources,
    PluginError,
    QuotaExhausted,
    RateLimited,
    RoutingError,
    ServerFailed,
    ServerUnreachable,
    StreamInterrupted,
    TooManyCalls,
    Unsupported,
    WorkflowComposerError,
)
from workflow_composer.server.exchange import Fields
from workflow_composer.types import Attempt

INVALID, SERVER, PERMISSION = "invalid_request_error", "server_error", "permission_error"
UNKNOWN_ENCODING, ENCODINGS = "unsupported_content_encoding", "gzip, deflate"
"""The code of the error for a body packed in another way than these."""
LONGEST_MESSAGE = 2000
_MOST_CAUSES = 8
RETRY_SOON = 1.0
"""Default ``retry-after`` in seconds."""


class HttpFailure(Exception):  # named for what happened
    """An error response to a request.

    ``status`` is the HTTP status; ``type``, ``code`` and ``param`` go to OpenAI's error object; ``retry_after`` in seconds;
    ``headers`` are further ones of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = INVALID,  # noqa: A002  # OpenAI's name
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        headers: Fields = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.code = code
        self.param = param
        self.retry_after = retry_after
        self.headers = headers


_KINDS: tuple[tuple[type[WorkflowComposerError], int, str, str | None], ...] = (
    (QuotaExhausted, 429, "insufficient_quota", "insufficient_quota"),
    (RateLimited, 429, "rate_limit_error", "rate_limit_exceeded"),
    (ContextOverflow, 400, INVALID, "context_length_exceeded"),
    (Unsupported, 400, INVALID, "unsupported_parameter"),
    (BadRequest, 400, INVALID, None),
    # The service's own key for the model server is at fault, not the client's key for the service.
    (AuthenticationFailed, 502, SERVER, "upstream_authentication_failed"),
    (ModelNotFound, 404, INVALID, "model_not_found"),
    (CallTimeout, 504, SERVER, "timeout"),
    (OutOfResources, 503, SERVER, "overloaded"),
    (CircuitOpen, 503, SERVER, "model_unavailable"),
    (ServerUnreachable, 502, SERVER, "model_unavailable"),
    (ServerFailed, 502, SERVER, "upstream_failed"),
    (ModelError, 502, SERVER, "upstream_failed"),
    (EgressDenied, 403, PERMISSION, "egress_denied"),
    (DeadlineExceeded, 504, SERVER, "timeout"),
    (BudgetReserved, 429, "rate_limit_error", "budget_reserved"),
    (BudgetExceeded, 402, INVALID, "budget_exceeded"),
    (TooManyCalls, 400, INVALID, "too_many_calls"),
    (StreamInterrupted, 502, SERVER, "stream_interrupted"),
    (CapabilityMissing, 400, INVALID, "unsupported_parameter"),
    (RoutingError, 404, INVALID, "model_not_found"),
    (InputError, 400, INVALID, None),
    (ConfigError, 400, INVALID, None),
    (PluginError, 500, SERVER, "plugin_failed"),
    (FleetError, 503, SERVER, "model_unavailable"),
    (ChannelClosed, 503, SERVER, "restarting"),
)


_TOLD = {
    "AuthenticationFailed": "the service's own key is not accepted",
    "CallTimeout": "no answer in time",
    "CircuitOpen": "it failed repeatedly and is not called for a while",
    "EgressDenied": "this service does not send data there",
    "ModelNotFound": "its server does not know it",
    "OutOfResources": "this service has no resources left for the call",
    "QuotaExhausted": "the service's account for it has no credit left",
    "RateLimited": "it is at its rate limit",
    "AnswerTooLong": "its answer was too long",
    "ServerUnreachable": "it cannot be reached",
}
"""What clients are told of a failed call, by the type of its error; of any other type: that it failed."""
_ABOUT_REQUESTS = (BadRequest, ContextOverflow, Unsupported, InvalidAnswer, InputError, TooManyCalls)
"""Errors whose own text helps a client to change its request."""
_ABOUT_REQUEST = frozenset(kind.__name__ for kind in _ABOUT_REQUESTS)
_GENERAL: tuple[tuple[type[WorkflowComposerError], str], ...] = (
    (RoutingError, "no model can be used for this request"),
    (PluginError, "a plugin of the service failed"),
    (FleetError, "the model is not available"),
    (ChannelClosed, "the service is restarting"),
    (EgressDenied, "this service does not send data to that model"),
    (ConfigError, "the service's configuration does not allow this request"),
)
_INTERNAL = "internal error of the service; see its log for this request ID"


def failure_of(error: BaseException) -> HttpFailure:
    """Return the error response for an exception.

    An unexpected exception becomes a 500 without its text, which could expose internals.
    """
    if isinstance(error, HttpFailure):
        return error
    if isinstance(error, AllCandidatesFailed) and type(error) not in (DeadlineExceeded, BudgetExceeded, BudgetReserved):
        return _all_failed(error)
    if isinstance(error, ModelNotAllowed):
        return HttpFailure(403, _said(error), type=PERMISSION, code="model_not_allowed", param="model")
    for kind, status, name, code in _KINDS:
        if isinstance(error, kind):
            wait = getattr(error, "retry_after", None)
            if wait is None and status in (429, 503):
                wait = RETRY_SOON
            field = getattr(error, "field", None)
            told = getattr(error, "code", None) if status == 400 else None
            return HttpFailure(status, _said(error), type=name, code=told or code, param=field, retry_after=wait)
    return HttpFailure(500, _INTERNAL, type=SERVER, code="internal_error")


def interruption_of(error: BaseException) -> HttpFailure:
    """Return the error for a stream that has begun: its status is sent already, and only the event says what happened."""
    found = failure_of(error)
    if isinstance(error, StreamInterrupted):
        return found
    return HttpFailure(502, f"the stream broke off: {found.message}", type=SERVER, code="stream_interrupted")


def _all_failed(error: AllCandidatesFailed) -> HttpFailure:
    """Return the common error if all candidates failed alike, else 503."""
    kinds = {attempt.error_type for attempt in error.attempts if attempt.error_type}
    wait = RETRY_SOON if error.retry_after is None else error.retry_after
    if kinds and kinds <= {"RateLimited", "QuotaExhausted"}:
        code = "rate_limit_exceeded"
        return HttpFailure(429, _said(error), type="rate_limit_error", code=code, retry_after=wait)
    if kinds == {"ContextOverflow"}:
        return HttpFailure(400, _said(error), code="context_length_exceeded")
    if kinds == {"ModelNotFound"}:
        return HttpFailure(404, _said(error), code="model_not_found")
    if kinds == {"Unsupported"}:
        refusal = error.refusal
        code, field = (
            ("unsupported_parameter", None) if refusal is None else (refusal.code or "unsupported_parameter", refusal.field)
        )
        return HttpFailure(400, _said(error), code=code, param=field)
    if kinds == {"CallTimeout"}:
        return HttpFailure(504, _said(error), type=SERVER, code="timeout", retry_after=wait)
    return HttpFailure(503, _said(error), type=SERVER, code="model_unavailable", retry_after=wait)


# ------------------------------------------------------------------------------------------------ what clients are told


def is_for_the_log(error: BaseException, failure: HttpFailure) -> bool:
    """Whether the operator needs the error itself: the service or a server failed, or the client was told only its kind."""
    hidden = isinstance(error, WorkflowComposerError) and not error.public and failure.message != str(error)
    return failure.status >= 500 or hidden


def _said(error: WorkflowComposerError) -> str:
    return _text_of(error)[:LONGEST_MESSAGE]


def _text_of(error: WorkflowComposerError) -> str:
    if error.public:
        return error.public
    if isinstance(error, AllCandidatesFailed):
        return _with_causes(_summary(error), error.attempts)
    if isinstance(error, StreamInterrupted):
        return _with_causes("the stream broke off; the text so far stays valid", error.attempts[-1:])
    model = error.model if isinstance(error, ModelError) else ""
    if isinstance(error, _ABOUT_REQUESTS):
        text = without_places(str(error))
        return text if not model or model in text else f"{model}: {text}"
    if isinstance(error, ModelError):
        return f"{model or 'the model'} failed: {_TOLD.get(type(error).__name__, 'its server failed')}"
    return next((text for kind, text in _GENERAL if isinstance(error, kind)), "the request failed")


def _summary(error: AllCandidatesFailed) -> str:
    if isinstance(error, DeadlineExceeded):
        return "the request timed out"
    if isinstance(error, BudgetExceeded):
        return without_places(error.summary)
    return "no model answered" if error.attempts else "no model can be used for this request"


def _with_causes(summary: str, attempts: Sequence[Attempt]) -> str:
    """Return the summary with each model's failure, once."""
    causes = list(dict.fromkeys(f"{one.name}: {_cause(one)}" for one in attempts if one.error_type))
    if len(causes) > _MOST_CAUSES:
        causes[_MOST_CAUSES:] = [f"and {len(causes) - _MOST_CAUSES} more"]
    return f"{summary}: {'; '.join(causes)}" if causes else summary


def _cause(attempt: Attempt) -> str:
    kind = attempt.error_type or ""
    return without_places(attempt.error or "") if kind in _ABOUT_REQUEST else _TOLD.get(kind, "its server failed")


_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_TOP = "com|org|net|io|ai|dev|app|cloud|edu|gov|info|biz|local|lan|internal|intranet|home|corp|cluster|svc|arpa|example|test"
_PLACES = re.compile(
    rf"""
    (?<![a-z0-9+.-]) [a-z][a-z0-9+.-]{{1,30}}://[^\s"'<>)]+                                   # a URL
    | (?<![\w.]) \d{{1,3}} (?:\.\d{{1,3}}){{3}} (?::\d+)? (?![\w.]\w)   # an IPv4 address
    | \[ [0-9a-f]*:[0-9a-f:.]* (?:%\w+)? \] (?::\d+)?                  # an IPv6 address in brackets
    | (?<![\w.:]) (?=[0-9a-f:]*\d) (?=[0-9a-f]*:[0-9a-f]*:) [0-9a-f]{{0,4}} (?::{{1,2}}[0-9a-f]{{1,4}})+ (?![\w:])
    | (?<![\w./@-]) (?=[\d.-]*[a-z]) (?:{_LABEL}\.){{0,8}} {_LABEL} : \d{{2,5}} (?!\w)      # host:port
    | (?<![\w./@-]) (?:{_LABEL}\.){{1,8}} (?:{_TOP}) (?:\.[a-z]{{2}})? (?![\w-])  # a host by its ending
    | (?<![\w./-]) localhost (?![\w-])
    | (?<![\w.~/\\]) (?: ~?/ | \.{{1,2}}/ ) (?:[\w.@+~%-]+/)+ [\w.@+~%-]*   # a path of two parts or more
    | (?<![\w.~/\\]) ~/ [\w.@+~%-]+
    | (?<![\w./@+~-]) [\w./@+~-]+ \.(?:ya?ml|jsonl?|py|toml|sock|safetensors|gguf|log) (?: :\d+)* (?![\w])   # a file
    | \b [a-z]:\\[^\s"'<>]+
    """,
    re.IGNORECASE | re.VERBOSE,
)
_STATUS = re.compile(r"^[^\s:]+(?::\d+)?: (?=\d{3}(?:[:\s]|$))")
"""The server in front of a status, with which errors of servers begin."""


def without_places(text: str) -> str:
    """Return a text without URLs, hosts, addresses and paths of files.

    >>> without_places("10.0.0.3:8001: 400: max_tokens is too large (see http://gpu7:8001/docs or /etc/vllm/a.yaml)")
    '400: max_tokens is too large (see […] or […])'
    """
    return _PLACES.sub("[…]", _STATUS.sub("", text[: 2 * LONGEST_MESSAGE]))


def headers_of(failure: HttpFailure) -> list[tuple[str, str]]:
    """Return the headers of an error response."""
    if failure.retry_after is not None and math.isfinite(failure.retry_after):
        return [("retry-after", str(max(1, math.ceil(failure.retry_after)))), *failure.headers]
    if failure.status == 401:
        return [("www-authenticate", "Bearer")]
    if failure.code == UNKNOWN_ENCODING:
        return [("accept-encoding", ENCODINGS)]
    return [*failure.headers]
