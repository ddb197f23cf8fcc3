"""What clients are told of what went wrong."""

from __future__ import annotations

import inspect
import json

import pytest

from workflow_composer import errors
from workflow_composer.config.redaction import scrub
from workflow_composer.server.api.chat import ChatDialect
from workflow_composer.server.api.messages import MessagesDialect
from workflow_composer.server.failures import HttpFailure, failure_of, headers_of
from workflow_composer.types import Attempt, Usage

ERRORS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.WorkflowComposerError)]


def made(kind):
    """An error of a kind."""
    needed = inspect.signature(kind).parameters
    if kind is errors.MarkerError:
        return kind("mv_x", 0, 1, "what happened")
    return kind("what happened", **({"attempts": ()} if "attempts" in needed else {}))


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_has_a_status_and_openai_s_form(kind):
    failure = failure_of(made(kind))
    assert 400 <= failure.status < 600
    data = json.loads(ChatDialect().failure(failure))["error"]
    assert set(data) == {"message", "type", "param", "code"}
    assert json.loads(MessagesDialect().failure(failure))["type"] == "error"


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (errors.RateLimited, 429),
        (errors.ContextOverflow, 400),
        (errors.ModelNotFound, 404),
        (errors.AuthenticationFailed, 502),
        (errors.CallTimeout, 504),
        (errors.CircuitOpen, 503),
        (errors.ServerUnreachable, 502),
        (errors.EgressDenied, 403),
        (errors.BudgetExceeded, 402),
        (errors.RoutingError, 404),
        (errors.DeadlineExceeded, 504),
    ],
)
def test_statuses_are_those_by_which_clients_decide(kind, status):
    assert failure_of(made(kind)).status == status


def test_a_fault_of_the_service_is_not_explained_to_clients():
    failure = failure_of(RuntimeError("the password is hunter2"))
    assert failure.status == 500
    assert "hunter2" not in failure.message


def attempt(kind):
    """A failed attempt."""
    return Attempt(0, 0, "m", True, 1.0, Usage(), 0.0, "no", kind)


@pytest.mark.parametrize(
    ("kinds", "status"),
    [
        (["RateLimited", "QuotaExhausted"], 429),
        (["ContextOverflow"], 400),
        (["ModelNotFound"], 404),
        (["Unsupported"], 400),
        (["CallTimeout"], 504),
        (["RateLimited", "ServerFailed"], 503),
        ([], 503),
    ],
)
def test_where_all_models_failed_alike_the_client_is_told_that(kinds, status):
    error = errors.AllCandidatesFailed("none", attempts=[attempt(kind) for kind in kinds])
    assert failure_of(error).status == status


@pytest.mark.parametrize(("seconds", "header"), [(0.2, "1"), (1.2, "2"), (float("inf"), None), (None, None)])
def test_the_time_to_wait_is_in_whole_seconds_and_finite(seconds, header):
    assert dict(headers_of(HttpFailure(429, "x", retry_after=seconds))).get("retry-after") == header


@pytest.mark.parametrize("secret", ["wfc-0123456789ab-c2VjcmV0LXNlY3JldA", "sk-abcdefghijklmnop0123456789"])
def test_keys_are_hidden_in_the_log(secret):
    assert secret not in scrub(f"the prompt has {secret} in it")
    assert "the prompt has" in scrub(f"the prompt has {secret} in it")
