"""Error responses: handlers raise `HttpFailure`; `failure_of` makes one from the package's errors.

Statuses, types and codes match OpenAI's API, because clients decide by them which requests to retry.
"""

from __future__ import annotations

import math

from workflow_composer.errors import (
    AllCandidatesFailed,
    AuthenticationFailed,
    BadRequest,
    BudgetExceeded,
    CallTimeout,
    ChannelClosed,
    CircuitOpen,
    ConfigError,
    ContextOverflow,
    DeadlineExceeded,
    EgressDenied,
    FleetError,
    InputError,
    ModelError,
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
from workflow_composer.execution.reservation import BudgetReserved

INVALID, SERVER, PERMISSION = "invalid_request_error", "server_error", "permission_error"
LONGEST_MESSAGE = 2000
RETRY_SOON = 1.0
"""Default ``retry-after`` in seconds."""


class HttpFailure(Exception):  # named for what happened
    """An error response to a request.

    ``status`` is the HTTP status; ``type``, ``code`` and ``param`` go to OpenAI's error object; ``retry_after`` in seconds.
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
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.code = code
        self.param = param
        self.retry_after = retry_after


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
    (RoutingError, 404, INVALID, "model_not_found"),
    (InputError, 400, INVALID, None),
    (ConfigError, 400, INVALID, None),
    (PluginError, 500, SERVER, "plugin_failed"),
    (FleetError, 503, SERVER, "model_unavailable"),
    (ChannelClosed, 503, SERVER, "restarting"),
)


def failure_of(error: BaseException) -> HttpFailure:
    """Return the error response for an exception.

    An unexpected exception becomes a 500 without its text, which could expose internals.
    """
    if isinstance(error, HttpFailure):
        return error
    if isinstance(error, AllCandidatesFailed) and type(error) not in (DeadlineExceeded, BudgetExceeded, BudgetReserved):
        return _all_failed(error)
    for kind, status, name, code in _KINDS:
        if isinstance(error, kind):
            wait = getattr(error, "retry_after", None)
            if wait is None and status in (429, 503):
                wait = RETRY_SOON
            field = getattr(error, "field", None)
            return HttpFailure(status, _said(error), type=name, code=code, param=field, retry_after=wait)
    return HttpFailure(
        500, "internal error of the service; see its log for this request ID", type=SERVER, code="internal_error"
    )


def _all_failed(error: AllCandidatesFailed) -> HttpFailure:
    """Return the common error if all candidates failed alike, else 503."""
    kinds = {attempt.error_type for attempt in error.attempts if attempt.error_type}
    if kinds and kinds <= {"RateLimited", "QuotaExhausted"}:
        code = "rate_limit_exceeded"
        return HttpFailure(429, _said(error), type="rate_limit_error", code=code, retry_after=RETRY_SOON)
    if kinds == {"ContextOverflow"}:
        return HttpFailure(400, _said(error), code="context_length_exceeded")
    if kinds == {"ModelNotFound"}:
        return HttpFailure(404, _said(error), code="model_not_found")
    if kinds == {"Unsupported"}:
        return HttpFailure(400, _said(error), code="unsupported_parameter")
    if kinds == {"CallTimeout"}:
        return HttpFailure(504, _said(error), type=SERVER, code="timeout", retry_after=RETRY_SOON)
    return HttpFailure(503, _said(error), type=SERVER, code="model_unavailable", retry_after=RETRY_SOON)


def _said(error: WorkflowComposerError) -> str:
    return str(error)[:LONGEST_MESSAGE]


def headers_of(failure: HttpFailure) -> list[tuple[str, str]]:
    """Return the headers of an error response."""
    if failure.retry_after is not None and math.isfinite(failure.retry_after):
        return [("retry-after", str(max(1, math.ceil(failure.retry_after))))]
    if failure.status == 401:
        return [("www-authenticate", "Bearer")]
    return []
