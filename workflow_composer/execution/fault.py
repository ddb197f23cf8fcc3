"""Whose fault a failure is: the one rule that the circuit breaker and the metrics read.

- ``caller``: the request is invalid, too long or too expensive, or its own limit ended it.
- ``server``: a model server is down, too slow, or violates the protocol. Only this counts against a server.
- ``ours``: everything else. The profile names a wrong model or key, we call too often, this process lacks descriptors,
  threads or memory, a part of it has a bug, or the call was cancelled.
"""

from __future__ import annotations

from collections.abc import Iterable

from workflow_composer.errors import (
    AllCandidatesFailed,
    BudgetExceeded,
    CircuitOpen,
    DeadlineExceeded,
    StreamInterrupted,
    WorkflowComposerError,
)
from workflow_composer.types import Fault

__all__ = ["Fault", "counts", "fault_of"]


def fault_of(error: BaseException) -> Fault:
    """Return whose fault an error is.

    A request all of whose calls failed is the server's fault if one of them is, else ours if one of them is. A stream that
    broke off is the fault of what broke it. Exceptions of Python are ours: a part of this process raised them.

    >>> from workflow_composer.errors import BadRequest, ServerFailed
    >>> fault_of(BadRequest("x")), fault_of(ServerFailed("x")), fault_of(KeyError("x"))
    ('caller', 'server', 'ours')
    """
    if isinstance(error, StreamInterrupted) and error.__cause__ is not None:
        return fault_of(error.__cause__)
    if isinstance(error, AllCandidatesFailed) and not isinstance(error, (BudgetExceeded, DeadlineExceeded)):
        return _worst(attempt.fault for attempt in error.attempts if attempt.fault is not None)
    return error.fault if isinstance(error, WorkflowComposerError) else "ours"


def counts(error: BaseException) -> bool:
    """Whether a failed call counts as a failure of its endpoint; a call that a circuit breaker refused was not made."""
    return fault_of(error) == "server" and not isinstance(error, CircuitOpen)


def _worst(faults: Iterable[Fault]) -> Fault:
    found = set(faults)
    return "server" if "server" in found or not found else "ours" if "ours" in found else "caller"
