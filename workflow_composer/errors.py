"""Every exception the package raises on purpose.

::

    WorkflowComposerError
    ├── ConfigError                  a profile or setting is wrong
    │   ├── ProfileNotFound          no profile of that name
    │   ├── ProfileError             names file, line, key, what was found, what is allowed
    │   ├── CertificateMismatch      a certificate was made for something else than what would run
    │   ├── ContextError             a context template is missing, faulty, or not the pinned one
    │   ├── EgressProofFailed        the cloud is forbidden, and something could be sent there all the same
    │   └── InfeasibleTarget         no rule could accept so much with so few errors
    ├── PluginError                  a plugin is broken or clashes with another
    ├── InputError                   data given by the caller cannot be read
    │   └── MarkerError              a routing string is malformed; points at the part
    ├── RoutingError                 no plan can be made for a request
    │   └── NoStrategy               none was named, and none that stays on one's own machines can work
    ├── FleetError                   a server of the fleet cannot be started, found or stopped
    ├── ChannelClosed                another process of the service is gone
    ├── EgressDenied                 the profile forbids sending bytes to that host
    ├── ModelError                   one call to one model failed
    │   ├── BadRequest               400: the request itself is at fault
    │   ├── ContextOverflow          the prompt does not fit the model
    │   ├── AuthenticationFailed     401, 403
    │   ├── ModelNotFound            404
    │   ├── RateLimited              429; may carry ``retry_after``
    │   │   └── QuotaExhausted       402, or 429 for an account without credit
    │   ├── ServerFailed             5xx, or an answer that is not one
    │   │   └── AnswerTooLong        more bytes than any model writes
    │   ├── ServerUnreachable        no connection, or it broke
    │   ├── CallTimeout              connect, first token or total time ran out
    │   ├── Unsupported              this backend cannot honour a field of the request
    │   └── CircuitOpen              the endpoint failed repeatedly and is left alone for now
    ├── RunBudgetReached             a run of rows has used up its budget; it can be gone on with
    ├── StreamInterrupted            a stream broke after its first token
    └── AllCandidatesFailed          every attempt failed; lists each with its cause
        ├── LocalModelUnavailable    the same, where the profile forbids the cloud
        ├── DeadlineExceeded         the request's time was over before an answer came
        └── BudgetExceeded           what the request may cost pays for no tier

A `ModelError` says by two flags what may be done about it: ``retryable`` (the same candidate may succeed in a moment) and
``fallback`` (another candidate may succeed now). Errors of client libraries are mapped to these classes in one place per
backend, and nowhere else. What never leaves its layer is defined there (`HttpFailure`, say).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from workflow_composer.types import Attempt


class WorkflowComposerError(Exception):
    """Base of all. ``hint`` says what to do next; ``exit_code`` is what the command line returns."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(WorkflowComposerError):
    """A profile or a setting is wrong."""

    exit_code = 2


class ProfileNotFound(ConfigError):
    """No profile of that name or path."""


class ProfileError(ConfigError):
    """A profile is invalid. ``problems`` holds one readable line per fault, each with file, line and key path."""

    def __init__(self, problems: Sequence[str], *, hint: str = "") -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems), hint=hint)


class CertificateMismatch(ConfigError):
    """A certificate does not hold for what would run; the message names each field that differs."""


class ContextError(ConfigError):
    """A context template is missing, faulty, or not the one that is pinned. ``task``: the profile's, where it names it."""

    task: str | None = None


class EgressProofFailed(ConfigError):
    """A profile forbids the cloud, and something could be sent there all the same. Nothing is served then."""

    exit_code = 4


class InfeasibleTarget(ConfigError):
    """No rule, however good its scores, could accept so many answers with so few wrong ones."""


class PluginError(WorkflowComposerError):
    """A plugin is broken, or two plugins claim one name."""

    exit_code = 2


class InputError(WorkflowComposerError):
    """Data given by the caller cannot be read; the message names the place."""

    exit_code = 2


class MarkerError(InputError):
    """A routing string is malformed: ``marker[start:end]`` is the part at fault."""

    def __init__(self, marker: object, start: int, end: int, reason: str) -> None:
        self.marker = marker
        self.start = start
        self.end = end
        self.part = marker[start:end] if isinstance(marker, str) else ""
        where = f"at {_short(self.part)} (character {start + 1}): " if self.part else ""
        super().__init__(f"routing string {_short(marker)}: {where}{reason}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:80]}...{text[-20:]}"


class RoutingError(WorkflowComposerError):
    """No plan can be made for a request."""

    exit_code = 3


class NoStrategy(RoutingError):
    """No strategy was named, and none that stays on one's own machines can work here."""


class FleetError(WorkflowComposerError):
    """A server of the fleet cannot be started, found or stopped. ``problems`` holds one line for each reason."""

    def __init__(self, message: str, *, hint: str = "", problems: Sequence[str] = ()) -> None:
        super().__init__(message, hint=hint)
        self.problems = tuple(problems) or (message,)


class ChannelClosed(WorkflowComposerError):
    """Another process of the service, which was asked something, is gone."""


class EgressDenied(WorkflowComposerError):
    """The profile forbids sending bytes to this host. Raised by the transport, before any byte has left."""

    exit_code = 4


class ModelError(WorkflowComposerError):
    """One call to one model failed.

    ``status`` is the HTTP status where there was one; ``retry_after`` seconds, where the server asked for a pause.
    ``sent`` is False where no connection was made in time. ``failovers`` are servers of the model that failed before.
    """

    exit_code = 5
    retryable: ClassVar[bool] = False
    fallback: ClassVar[bool] = True

    def __init__(self, message: str, *, hint: str = "", status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.retry_after = retry_after
        self.sent = True
        self.failovers: tuple[Attempt, ...] = ()


class BadRequest(ModelError):
    """The server refuses the request as malformed; no other server is asked."""

    fallback = False


class ContextOverflow(ModelError):
    """The prompt is longer than the model's context; only a candidate with a longer one is asked."""


class AuthenticationFailed(ModelError):
    """The key is missing, wrong or lacks a right. Nothing is tried again: a fallback would hide it."""

    fallback = False


class ModelNotFound(ModelError):
    """The server does not serve this model."""


class RateLimited(ModelError):
    """The server asks to slow down."""

    retryable = True


class QuotaExhausted(RateLimited):
    """The account has no credit left: asking again in a moment is of no use, asking another is."""

    retryable = False


class ServerFailed(ModelError):
    """The server failed, or its answer could not be understood."""

    retryable = True


class AnswerTooLong(ServerFailed):
    """The server sends more than any model writes; asked again, it would do so again."""

    retryable = False


class ServerUnreachable(ModelError):
    """No connection to the server, or it broke before the answer was complete."""

    retryable = True


class CallTimeout(ModelError):
    """The call ran out of time: to connect, to the first token, or in total. Another candidate may be quicker.

    ``by_request``: it was the time that the request itself allows, which speaks against no server.
    """

    by_request = False


class Unsupported(ModelError):
    """A field of the request cannot be honoured here; it is not dropped in silence. ``field`` names it, if known."""

    field: str | None = None


class CircuitOpen(ModelError):
    """The endpoint failed repeatedly and is left alone until its cooldown is over."""


class RunBudgetReached(WorkflowComposerError):
    """A run of rows has used up its budget. What was answered is kept; with a higher budget the run goes on."""

    exit_code = 6


class StreamInterrupted(WorkflowComposerError):
    """A stream broke after its first token had been delivered, so no other model may take over."""

    exit_code = 5

    def __init__(self, message: str, *, attempts: Sequence[Attempt] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.attempts = tuple(attempts)


class AllCandidatesFailed(WorkflowComposerError):
    """Every attempt failed. ``attempts`` lists them in order, each with its cause; their cost is real.

    ``summary`` is the message without the causes.
    """

    exit_code = 5

    def __init__(self, message: str, *, attempts: Sequence[Attempt] = (), hint: str = "") -> None:
        self.summary = message
        self.attempts = tuple(attempts)
        causes = "; ".join(f"{a.name}: {a.error}" for a in self.attempts)
        super().__init__(f"{message}: {causes}" if causes else message, hint=hint)


class LocalModelUnavailable(AllCandidatesFailed):
    """Local models failed and the profile forbids the cloud: nothing was sent elsewhere."""


class DeadlineExceeded(AllCandidatesFailed):
    """The request's time was over before an answer came."""


class BudgetExceeded(AllCandidatesFailed):
    """What the request may cost would probably not pay for any tier, so none was started."""
