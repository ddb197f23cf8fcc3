"""What clients are told of what went wrong."""

from __future__ import annotations

import inspect
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflow_composer import errors
from workflow_composer.config.redaction import scrub
from workflow_composer.server.api.chat import ChatDialect
from workflow_composer.server.api.messages import MessagesDialect
from workflow_composer.server.failures import HttpFailure, failure_of, headers_of, interruption_of, without_places
from workflow_composer.types import Attempt, Usage

ERRORS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.WorkflowComposerError)]


def made(kind):
    """An error of a kind."""
    needed = inspect.signature(kind).parameters
    if kind is errors.MarkerError:
        return kind("mv_x", 0, 1, "what happened")
    if kind is errors.ModelNotAllowed:
        return kind("small")
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


# -------------------------------------------------------------------------------------- models are named, and no places

HINT = "curl http://gpu7.cluster.local:8001/v1/models; check the key in OPENAI_API_KEY"
PLACES = "gpu7.cluster.local:8001: no connection: see /etc/wfc/p.yaml"
SECRETS = ("gpu7", "8001", "/etc", "p.yaml", "OPENAI_API_KEY", "http:", "forbids")


def all_failed(kind, text):
    """The error of a request all of whose calls failed in one way."""
    calls = [Attempt(0, 0, "small", True, 1.0, Usage(), 0.0, f"{text} ({HINT})", kind.__name__)]
    return errors.LocalModelUnavailable("no model answered", attempts=calls, hint=f"the profile forbids the cloud; {HINT}")


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_no_error_tells_a_client_of_hosts_files_or_rules(kind):
    """However it was raised, alone or as the failure of a call."""
    needed = inspect.signature(kind).parameters
    found = []
    if kind is errors.MarkerError:
        found.append(kind("mv_x", 0, 4, "what happened"))
    elif kind is errors.ModelNotAllowed:
        found.append(kind("small"))
    else:
        hint = {"hint": f"the profile forbids the cloud; {HINT}"} if "hint" in needed and not about_request(kind) else {}
        found.append(kind([PLACES] if "problems" in needed and kind is errors.ProfileError else PLACES, **hint))
    if issubclass(kind, errors.ModelError):
        found.append(all_failed(kind, PLACES))
        found.append(errors.StreamInterrupted(f"the stream failed: {PLACES}", attempts=all_failed(kind, PLACES).attempts))
    for error in found:
        for message in (failure_of(error).message, interruption_of(error).message):
            assert message.strip()
            assert not [secret for secret in SECRETS if secret in message and secret not in allowed_in(kind)], message


def about_request(kind):
    """Whether the error's own text is about the request."""
    return issubclass(
        kind,
        (
            errors.BadRequest,
            errors.ContextOverflow,
            errors.Unsupported,
            errors.InvalidAnswer,
            errors.InputError,
            errors.TooManyCalls,
        ),
    )


def allowed_in(kind):
    """A variable's name is only in hints about keys, which are not those of errors about requests."""
    return ("OPENAI_API_KEY",) if about_request(kind) else ()


def test_each_model_is_named_with_what_became_of_it():
    calls = [
        Attempt(0, 0, "small", True, 1.0, Usage(), 0.0, PLACES, "ServerUnreachable"),
        Attempt(0, 0, "small", True, 1.0, Usage(), 0.0, PLACES, "ServerUnreachable"),
        Attempt(0, 1, "large", True, 1.0, Usage(), 0.0, "10.0.0.3:8000: 400: temperature must be at most 2", "BadRequest"),
    ]
    message = failure_of(errors.AllCandidatesFailed("no model answered after 3 attempts", attempts=calls)).message
    assert message == "no model answered: small: it cannot be reached; large: 400: temperature must be at most 2"
    many = [Attempt(0, 0, f"m{number}", True, 1.0, Usage(), 0.0, "", "ServerFailed") for number in range(100)]
    assert len(failure_of(errors.AllCandidatesFailed("none", attempts=many)).message) < 500


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("10.0.0.3:8001: 400: n must be 1", "400: n must be 1"),
        ("gpu7: 400: n must be 1", "400: n must be 1"),
        ("see http://gpu7:8001/docs?x=1 or https://user:pw@h.example/y", "see […] or […]"),
        ("redis://cache unix:///run/x.sock", "[…] […]"),
        ("from 10.0.0.3, [::1]:80, ::1, fe80::1 and 2001:db8:0:0:0:0:0:1", "from […], […], […], […] and […]"),
        ("gpu7:8001 api.openai.com node-3.hpc.uni.edu localhost", "[…] […] […] […]"),
        ("/srv/ann/models/llama ~/x ../a/b.txt C:\\models\\x", "[…] […] […] […]"),
        ("config/strategies/p.yaml:12: models.m", "[…]: models.m"),
    ],
)
def test_places_are_taken_out_of_a_text(text, found):
    assert without_places(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "messages[0].content must be a string; tools.0.function.name is missing",
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (4000 in the messages).",
        "unknown model 'meta-llama/Llama-3.1-8B-Instruct'; did you mean 'Qwen/Qwen2.5-Coder-7B-Instruct-AWQ'?",
        "temperature 0.7, k4, 1/2, and/or, 12:30, e.g. gpt-4.1, max_tokens:100, std::vector",
        "routing string 'mv_x': at 'k0' (character 7): k must be 1 to 1024",
    ],
)
def test_what_a_client_needs_stays_in_a_text(text):
    assert without_places(text) == text


_NAMES = st.from_regex(r"[a-z][a-z0-9]{0,8}(-[a-z0-9]{1,5})?", fullmatch=True)
_PORTS = st.integers(10, 65535)
_HOSTS = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.builds("{}:{}".format, _NAMES, _PORTS),
    st.builds("{}.{}.{}:{}".format, _NAMES, _NAMES, _NAMES, _PORTS),
    st.builds("{}.{}".format, _NAMES, st.sampled_from(["com", "org", "internal", "local", "cluster"])),
    st.builds("[{}]:{}".format, st.ip_addresses(v=6), _PORTS),
)
_PATHS = st.builds("/{}/{}/{}".format, _NAMES, _NAMES, _NAMES)
_URLS = st.builds("{}://{}{}?key={}".format, st.sampled_from(["http", "https", "ws", "redis"]), _HOSTS, _PATHS, _NAMES)


@given(
    st.one_of(_HOSTS, _PATHS, _URLS),
    st.sampled_from(["{}", "no answer from {}", "({}): refused", "'{}', then", "at {} now"]),
)
def test_no_host_path_or_url_is_left_in_a_text(place, text):
    assert without_places(text.format(place)) == text.format("[…]")
