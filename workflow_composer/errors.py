"""All exceptions that the package raises deliberately.

::

    WorkflowComposerError
    ├── ConfigError                  a profile or setting is invalid
    │   ├── ProfileNotFound          no profile of that name
    │   ├── ProfileError             gives file, line, key, the value found and the values allowed
    │   │   └── WorkflowFileError    the same for the file of a workflow
    │   ├── CertificateMismatch      a certificate was made for another configuration
    │   ├── ContextError             a context template is missing, faulty, or not the pinned one
    │   ├── EgressProofFailed        the profile forbids the cloud, but data could be sent there
    │   └── InfeasibleTarget         no decision rule can meet the target
    ├── PluginError                  a plugin is broken or conflicts with another
    ├── InputError                   input data is invalid or unreadable
    │   ├── InvalidProbability       a value should be a probability, or the logarithm of one
    │   └── MarkerError              a routing string is malformed; gives the faulty part
    ├── RoutingError                 no router returned a plan for a request
    │   ├── CapabilityMissing        every model lacks what the request needs
    │   ├── ModelNotAllowed          the request would reach a model that its caller may not use
    │   └── NoStrategy               no strategy was named, and no local one can run
    ├── FleetError                   a server of the fleet cannot be started, found or stopped
    ├── ChannelClosed                another process of the service has exited
    ├── EgressDenied                 the profile forbids sending data to that host
    ├── ModelError                   one call to one model failed
    │   ├── BadRequest               400: the request is invalid
    │   ├── ContextOverflow          the prompt exceeds the model's context
    │   ├── AuthenticationFailed     401, 403
    │   ├── ModelNotFound            404
    │   ├── RateLimited              429; may carry ``retry_after``
    │   │   └── QuotaExhausted       402, or 429 for an account without credit
    │   ├── ServerFailed             5xx, or an invalid response
    │   │   └── AnswerTooLong        the response exceeds the size limit
    │   ├── InvalidAnswer            the answer does not have the form that was asked for
    │   ├── ServerUnreachable        no connection, or it broke
    │   ├── CallTimeout              the time to connect, to the first token or in total ran out
    │   ├── OutOfResources           this process lacks descriptors, memory, ports or threads
    │   ├── Unsupported              the backend does not support a field of the request
    │   ├── Unpaid                   the budget does not pay for a call to this candidate
    │   └── CircuitOpen              the endpoint failed repeatedly, and calls to it are suspended
    ├── TooManyCalls                 the request needs more calls than it may make
    ├── RunBudgetReached             a run of rows has used up its budget; it can be gone on with
    ├── ProgramFault                 a program or function of a workflow could not be run, or gave no value
    ├── AnswersUnreadable            a person ended a run of rows whose answers cannot be read
    ├── StreamInterrupted            a stream broke after its first token
    └── AllCandidatesFailed          every attempt failed; lists each with its cause
        ├── LocalModelUnavailable    the same, under a profile that forbids the cloud
        ├── DeadlineExceeded         the request's time limit passed before an answer arrived
        └── BudgetExceeded           the request's budget is too small for any tier
            └── BudgetReserved       requests under way have reserved the rest of the budget

An unknown profile is a ``ValueError`` as well; no route, no strategy that can run and no candidate that answered are a
``RuntimeError``.

Two flags of a `ModelError` say how to react: ``retryable`` (the same candidate may succeed in a moment) and ``fallback``
(another candidate may succeed now). Each backend maps the errors of its client library to these classes in one place.
Exceptions that never leave their layer are defined in that layer (`HttpFailure`, for example).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from workflow_composer.types import Attempt, Fault

# ------------------------------------------------------------------------------------------------------------------- names
#
# Suggestions of the nearest valid name, for errors.


def nearest(name: str, known: Iterable[str], *, prefix: str = "") -> str:
    """Return ``did you mean 'x'?`` with the closest known name, after ``prefix``; empty if none is close."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"{prefix}did you mean {found[0]!r}?" if found else ""


class WorkflowComposerError(Exception):
    """Base class. ``hint`` says what to do, ``fault`` whose fault it is; ``exit_code`` is the command line's exit code.

    ``public`` is what a client of the service may be told: it names models, but no hosts, files, or rules of the profile. If
    it is empty, clients are told the kind of error.
    """

    exit_code: ClassVar[int] = 1
    fault: Fault = "ours"
    public = ""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(WorkflowComposerError):
    """A profile or a setting is invalid."""

    exit_code = 2


class ProfileNotFound(ConfigError, ValueError):
    """No profile of that name or path."""


class ProfileError(ConfigError):
    """A profile is invalid. ``problems`` has one line per fault, each with file, line and key path."""

    def __init__(self, problems: Sequence[str], *, hint: str = "") -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems), hint=hint)


class WorkflowFileError(ProfileError):
    """A workflow's file, or what it names, is invalid; nothing was called. ``problems`` as in `ProfileError`."""


class CertificateMismatch(ConfigError):
    """A certificate is not valid for the current configuration; the message names each field that differs."""


class ContextError(ConfigError):
    """A context template is missing, faulty, or not the pinned one. ``task``: the profile's task that uses it."""

    task: str | None = None


class EgressProofFailed(ConfigError):
    """The profile forbids the cloud, but data could be sent there. The service does not start."""

    exit_code = 4


class InfeasibleTarget(ConfigError):
    """No decision rule could accept enough answers with so few errors, even with perfect scores."""


class PluginError(WorkflowComposerError):
    """A plugin is broken, or two plugins use the same name."""

    exit_code = 2


class InputError(WorkflowComposerError):
    """Input data is invalid or unreadable; the message says where."""

    fault: Fault = "caller"
    exit_code = 2


class InvalidProbability(InputError, ValueError):
    """A value that should be a probability or a log-probability is none; the message says which."""


class MarkerError(InputError):
    """A routing string is malformed; ``marker[start:end]`` is the faulty part."""

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


class RoutingError(WorkflowComposerError, RuntimeError):
    """No router returned a plan for a request."""

    fault: Fault = "caller"
    exit_code = 3


class CapabilityMissing(RoutingError):
    """Every model that could be asked lacks what the request needs, such as tools."""


class ModelNotAllowed(RoutingError):
    """The request's plan needs the model ``name``, which is not among those that its caller may use."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the request would reach the model {name}, which its caller may not use")
        self.public = f"this API key may not use the model {name}, which the request would reach"


class NoStrategy(RoutingError):
    """No strategy was named, and no strategy that keeps data local can run here."""


class FleetError(WorkflowComposerError):
    """A server of the fleet cannot be started, found or stopped. ``problems`` has one line per reason.

    ``lasting``: trying again fails again until a person changes something; ``elsewhere``: another node may do.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        problems: Sequence[str] = (),
        lasting: bool = False,
        elsewhere: bool = False,
    ) -> None:
        super().__init__(message, hint=hint)
        self.problems = tuple(problems) or (message,)
        self.lasting = lasting
        self.elsewhere = elsewhere


class ChannelClosed(WorkflowComposerError):
    """Another process of the service exited before it replied."""


class EgressDenied(WorkflowComposerError):
    """The profile forbids sending data to this host. The transport raises it before it sends anything."""

    exit_code = 4


class ModelError(WorkflowComposerError):
    """One call to one model failed.

    ``model`` names the model once its run knows of the error. ``status`` is the HTTP status, if any; ``retry_after`` is the
    pause in seconds that the server requested, if any. ``sent`` is False if no connection was made in time. ``params`` are
    the fields that the server rejects as such, not for their value, and names apart from its error's text. ``failovers`` are
    earlier attempts at other servers of the model. ``code`` and ``field`` are what a server says of a request that it
    rejects: its own code, and the field's name.
    """

    exit_code = 5
    retryable: ClassVar[bool] = False
    fallback: ClassVar[bool] = True
    model = ""
    code: str | None = None
    field: str | None = None

    def __init__(self, message: str, *, hint: str = "", status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.retry_after = retry_after
        self.sent = True
        self.params: tuple[str, ...] = ()
        self.failovers: tuple[Attempt, ...] = ()


class BadRequest(ModelError):
    """The server rejects the request as invalid; no other server is tried."""

    fault: Fault = "caller"
    fallback = False


class ContextOverflow(ModelError):
    """The prompt exceeds the model's context; only candidates with a longer context are tried."""

    fault: Fault = "caller"


class AuthenticationFailed(ModelError):
    """The key is missing, wrong or lacks a permission. The next candidate is tried if the profile allows it
    (``fallback_on_auth``), and if it sees no more than this one.
    """

    fallback = False


class ModelNotFound(ModelError):
    """The server does not serve this model."""


class RateLimited(ModelError):
    """The server limits the rate of calls."""

    retryable = True


class QuotaExhausted(RateLimited):
    """The account has no credit left. A retry is useless; another candidate may succeed."""

    retryable = False


class ServerFailed(ModelError):
    """The server failed, or its response is invalid."""

    fault: Fault = "server"
    retryable = True


class AnswerTooLong(ServerFailed):
    """The response exceeds a limit; a retry would not help.

    It is the server's fault if no honest answer is like that (its headers, an event, what a stream unpacks to), and ours if
    a long answer meets our limit of answers.
    """

    retryable = False


class InvalidAnswer(ModelError):
    """A model's answer does not have the form that was asked for."""


class ServerUnreachable(ModelError):
    """The connection failed, or broke before the answer was complete."""

    fault: Fault = "server"
    retryable = True


class CallTimeout(ModelError):
    """The call ran out of time: to connect, to the first token, or in total. Another candidate may be faster.

    Its ``fault`` is the caller's if the request's own time limit passed, or if its reader took the time.
    """

    fault: Fault = "server"


class OutOfResources(ModelError):
    """This process has no file descriptors, memory, ports or threads left for the call; the server was not reached.

    Another candidate would lack them too, and might be a cloud model, so none is tried.
    """

    retryable = True
    fallback = False


class Unsupported(ModelError):
    """The model or its server does not support a field of the request and does not ignore it silently; another may.

    ``field`` names it, if known. ``certain``: the server named it apart from its error's text, which may quote a client.
    """

    fault: Fault = "caller"
    certain = False


class Unpaid(ModelError):
    """The budget does not pay for a call to this candidate; a cheaper one may follow."""

    fault: Fault = "caller"


class CircuitOpen(ModelError):
    """The endpoint failed repeatedly; calls to it are suspended until the cooldown ends."""

    fault: Fault = "server"


class TooManyCalls(WorkflowComposerError):
    """The request would need, or has made, as many calls as it may make (``most_calls``). ``attempts`` lists those made."""

    exit_code = 6
    fault: Fault = "caller"

    def __init__(self, message: str, *, attempts: Sequence[Attempt] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.attempts = tuple(attempts)


class RunBudgetReached(WorkflowComposerError):
    """A run of rows has used up its budget. What was answered is kept; with a higher budget the run goes on."""

    exit_code = 6


class ProgramFault(WorkflowComposerError):
    """A program or function could not be run, or gave no value.

    ``message`` is fit for every report: it has nothing of what the program read or wrote. ``said`` is what it wrote, or its
    exception, for those who may see the data. ``started``: False if the cause lies in the step itself (no such file or
    function, no way to keep it off the network), so that another input would not help.
    """

    def __init__(self, message: str, *, said: str = "", hint: str = "", started: bool = True) -> None:
        super().__init__(message, hint=hint)
        self.said = said
        self.started = started


class AnswersUnreadable(WorkflowComposerError):
    """A person ended a run of rows because its answers cannot be read. What was answered is kept."""

    exit_code = 7


class StreamInterrupted(WorkflowComposerError):
    """A stream broke after its first token was delivered, so no other model may take over."""

    fault: Fault = "server"
    exit_code = 5

    def __init__(self, message: str, *, attempts: Sequence[Attempt] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.attempts = tuple(attempts)


class AllCandidatesFailed(WorkflowComposerError, RuntimeError):
    """Every attempt failed. ``attempts`` lists them in order, each with its cause and its cost.

    ``summary`` is the message without the causes. ``retry_after`` is the shortest pause in seconds that a server asked for.
    ``refusal`` is the last error about a field of the request.
    """

    exit_code = 5
    retry_after: float | None = None
    refusal: ModelError | None = None

    def __init__(self, message: str, *, attempts: Sequence[Attempt] = (), hint: str = "") -> None:
        self.summary = message
        self.attempts = tuple(attempts)
        causes = "; ".join(f"{a.name}: {a.error}" for a in self.attempts)
        super().__init__(f"{message}: {causes}" if causes else message, hint=hint)


class LocalModelUnavailable(AllCandidatesFailed):
    """The local models failed and the profile forbids the cloud; nothing was sent elsewhere."""


class DeadlineExceeded(AllCandidatesFailed):
    """The request's time limit passed before an answer arrived."""

    fault: Fault = "caller"


class BudgetExceeded(AllCandidatesFailed):
    """The expected cost of every tier exceeds the request's budget, so none was started."""

    fault: Fault = "caller"


class BudgetReserved(BudgetExceeded):
    """Requests under way have reserved what is left of the budget, and none ended within the request's time limit."""
