"""Why a step failed, in a word for counts and in words for people.

What private data has been read for is told by the kind of the failure, by numbers and by lengths alone: a server may repeat
the prompt in its error, and a form quotes what it refuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from workflow_composer.errors import (
    BadRequest,
    BudgetExceeded,
    CallTimeout,
    ContextOverflow,
    DeadlineExceeded,
    EgressDenied,
    ModelError,
    ProgramFault,
    RoutingError,
    TooManyCalls,
    WorkflowComposerError,
)
from workflow_composer.types import EMPTY
from workflow_composer.workflows.running.results import FailureKind, ValueFault

if TYPE_CHECKING:
    from workflow_composer.answers.form import OutputForm
    from workflow_composer.types import LLMResponse

_LONGEST = 1000
"""Characters of a reason that comes from elsewhere."""
_LONGEST_REPLY = 4096
"""Characters at the end of a refused reply that are kept."""

_PLAINLY: Mapping[FailureKind, str] = {
    "invalid": "the answer was not accepted",
    "empty": "the answer is empty",
    "refused": "the request was refused",
    "cut_off": "the answer was cut off by its length",
    "timeout": "the time limit passed",
    "server": "no server answered",
    "too_long": "the text is too long for the model",
    "program": "the program failed",
    "budget": "the budget does not pay for it",
    "value": "a value does not allow it",
}


class StepFailure(Exception):
    """A step cannot be done: its kind, why in words, and what it has used (``facts`` as in `KeptAnswer`)."""

    def __init__(self, *, kind: FailureKind, reason: str, facts: Mapping[str, Any] = EMPTY) -> None:
        super().__init__(reason)
        self.kind, self.reason, self.facts = kind, reason, facts


def of_value(fault: ValueFault) -> StepFailure:
    """Return the failure of a step whose values do not allow what it does with them; these messages name no values."""
    return StepFailure(kind="value", reason=f"{fault.message} ({fault.hint})" if fault.hint else fault.message)


def of_error(error: Exception, *, private: bool) -> StepFailure:
    """Return the failure of a step whose request, program or check raised ``error``."""
    kind = _kind(error)
    attempts = getattr(error, "attempts", ())
    facts = {"calls": len(attempts), "cost": sum(attempt.cost for attempt in attempts)}
    if isinstance(error, ProgramFault):
        reason = error.message if private or not error.said else f"{error.message}: {_end(error.said)}"
    elif private:
        reason = _PLAINLY[kind] + "".join(f" ({told})" for told in _safe(error))
    else:
        reason = str(error) if isinstance(error, WorkflowComposerError) else f"{type(error).__name__}: {error}"
        reason = in_a_line(reason)
    return StepFailure(kind=kind, reason=reason, facts=facts)


def _end(text: str) -> str:
    """Return the last line that says something, shortened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][-_LONGEST:] if lines else ""


def _safe(error: Exception) -> list[str]:
    """Return what may be told of an error: its type, its status, and which models were asked."""
    attempts = getattr(error, "attempts", ())
    told = [f"{attempt.name}: {attempt.error_type}" for attempt in attempts if attempt.error_type][-3:]
    status = f", status {error.status}" if isinstance(error, ModelError) and error.status else ""
    return [f"{type(error).__name__}{status}", *told]


def _kind(error: Exception) -> FailureKind:
    for types, found in _KINDS.items():
        if isinstance(error, types):
            return found
    types_of_all = {attempt.error_type for attempt in getattr(error, "attempts", ())}
    return _OF_ALL.get(types_of_all.pop() or "", "server") if len(types_of_all) == 1 else "server"


_KINDS: Mapping[tuple[type[Exception], ...], FailureKind] = {
    (BudgetExceeded, TooManyCalls): "budget",
    (DeadlineExceeded, CallTimeout, TimeoutError): "timeout",
    (ContextOverflow,): "too_long",
    (ProgramFault,): "program",
    (BadRequest, EgressDenied, RoutingError): "refused",
}
_OF_ALL: Mapping[str, FailureKind] = {
    ContextOverflow.__name__: "too_long",
    CallTimeout.__name__: "timeout",
    BadRequest.__name__: "refused",
}


# ------------------------------------------------------------------------------------------------------------- replies


def value_of(response: LLMResponse, form: OutputForm, *, private: bool) -> Any:
    """Return the answer as JSON data. Raises `StepFailure` if the reply is none of this form."""
    sample = response.samples[0]
    formed = form.read(response.text)
    problem = response.warning or formed.problem
    if problem is None and _is_readable(response) and not (sample.cut_off and form.is_text):
        return form.plain(formed.value)
    kind, reason = _refused(response, problem or "no answer of the vote can be used")
    facts = {**facts_of(response), "reply": response.text[-_LONGEST_REPLY:], "said": reason}
    told = f"{_PLAINLY[kind]} ({len(response.text):,} characters)"
    reason = told if private and kind in ("invalid", "server") else in_a_line(reason)
    raise StepFailure(kind=kind, reason=reason, facts=facts)


def in_a_line(text: str) -> str:
    r"""Return the first line and the last one that say something; of a program's output the last is what it failed with.

    >>> in_a_line("it did not pass: exit code 1\nTraceback\n  File x\nValueError: expected 2, got 1\n")
    'it did not pass: exit code 1: ValueError: expected 2, got 1'
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = ": ".join(dict.fromkeys((lines[0].rstrip(":"), lines[-1]))) if lines else ""
    return told if len(told) <= _LONGEST else f"{told[: _LONGEST - 1]}…"


def _refused(response: LLMResponse, problem: str) -> tuple[FailureKind, str]:
    sample = response.samples[0]
    if sample.too_long:
        tokens = next((one.usage.completion_tokens for one in reversed(response.attempts) if one.error is None), 0)
        return "cut_off", f"the answer was cut off at {tokens:,} tokens, also with a larger limit"
    if sample.cut_off:
        return "refused", "the server withheld the answer (content_filter)"
    if (last := response.attempts[-1]).fault == "server":  # of a server that would have been asked once more
        return "server", f"no server answered when it was asked again ({last.error_type}); before that, {problem}"
    return ("invalid", problem) if sample.text.strip() else ("empty", _PLAINLY["empty"])


def _is_readable(response: LLMResponse) -> bool:
    """Whether the tier that decided has an answer; a vote in which no sample could be read has none."""
    deciding = next((tier for tier in response.climbed if tier.tier == response.decision.tier), None)
    return deciding is None or bool(deciding.verdict.votes) or not deciding.verdict.unreadable


def facts_of(response: LLMResponse) -> dict[str, Any]:
    """Return what is kept of a response beside its value."""
    refused = [reason for tier in response.climbed for reason in getattr(tier.verdict, "refused", ())]
    found: dict[str, Any] = {
        "calls": len(response.attempts),
        "cost": response.cost,
        "model": response.model,
        "candidate": response.decision.candidate,
        "tier": response.decision.tier,
        "seconds": round(response.latency_ms / 1000.0, 3),
        "tokens": [response.usage.prompt_tokens, response.usage.completion_tokens],
    }
    if refused:
        found["refused"] = refused
    if response.mended:
        found["mended"] = list(response.mended)
    if response.confidence is not None:
        found |= {"confidence": response.confidence, "accepted": response.accepted}
    return found
