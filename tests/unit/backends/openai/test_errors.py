"""Foreign errors and replies, mapped to the package's errors."""

from __future__ import annotations

import asyncio
import email.utils
import time
import traceback

import pytest

from tests.integration.stub_backends import KEY, PROMPT, call, local_backend
from tests.integration.stub_server import Reply
from workflow_composer.backends.http.connection import TooLong
from workflow_composer.backends.openai.errors import MESSAGE_LENGTH, Server, from_connection, redact, retry_after
from workflow_composer.errors import (
    AnswerTooLong,
    AuthenticationFailed,
    BadRequest,
    ContextOverflow,
    ModelError,
    ModelNotFound,
    RateLimited,
    ServerFailed,
    ServerUnreachable,
)
from workflow_composer.execution.fault import counts

VLLM_OLD = (
    "This model's maximum context length is 16384 tokens. However, you requested 122946 tokens (112946 in the messages, "
    "10000 in the completion). Please reduce the length of the messages or completion."
)
VLLM_NEW = (
    "You passed 9 input tokens and requested 2048 output tokens. However, the model's context length is only 2048 tokens"
)
VLLM_DECODER = "The decoder prompt (length 3000) is longer than the maximum model length of 2048."
ANTHROPIC = "prompt is too long: 210000 tokens > 200000 maximum"
ANTHROPIC_SUM = "input length and `max_tokens` exceed context limit: 188240 + 21333 > 200000, decrease input length"


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply.error(400, "temperature must be non-negative"), BadRequest),
        (Reply.error(400, VLLM_OLD, kind="BadRequestError", code=400), ContextOverflow),
        (Reply.error(400, VLLM_NEW, kind="BadRequestError", code=400), ContextOverflow),
        (Reply.error(400, VLLM_DECODER, kind="BadRequestError", code=400), ContextOverflow),
        (Reply.error(400, "max_tokens must be at least 1, got -186."), ContextOverflow),
        (Reply.error(400, "too long", code="context_length_exceeded"), ContextOverflow),
        (Reply.error(400, "Your input exceeds the context window of this model."), ContextOverflow),
        (Reply.error(400, ANTHROPIC, kind="invalid_request_error"), ContextOverflow),
        (Reply.error(400, ANTHROPIC_SUM, kind="invalid_request_error"), ContextOverflow),
        (Reply.error(400, "Your credit balance is too low to access the Anthropic API."), RateLimited),
        (Reply.error(400, "extra field, 'input': {'content': 'what is a context length?'}"), BadRequest),
        (Reply.error(401, "Incorrect API key provided"), AuthenticationFailed),
        (Reply.error(402, "Insufficient Balance"), RateLimited),
        (Reply.error(403, "Country not supported"), AuthenticationFailed),
        (Reply.error(404, "The model does not exist", code="model_not_found"), ModelNotFound),
        (Reply(status=404, body=b"<html>nginx</html>"), ModelNotFound),
        (Reply(status=405), ModelNotFound),
        (Reply.error(408, "timeout"), ServerFailed),
        (Reply.error(409, "conflict"), ServerFailed),
        (Reply.error(413, "Request exceeds the maximum size", kind="request_too_large"), ContextOverflow),
        (Reply(status=413, body=b"<html>413 Request Entity Too Large</html>"), ContextOverflow),
        (Reply.error(418, "teapot"), BadRequest),
        (Reply.of({"detail": [{"loc": ["body", "n"], "msg": "not an int"}]}, status=422), BadRequest),
        (Reply.error(429, "Rate limit reached"), RateLimited),
        (Reply.error(429, "You exceeded your current quota", code="insufficient_quota"), RateLimited),
        (Reply.error(500, "CUDA out of memory"), ServerFailed),
        (Reply(status=502, body=b"<html>bad gateway</html>"), ServerFailed),
        (Reply.error(503, "loading"), ServerFailed),
        (Reply.error(529, "Overloaded", kind="overloaded_error"), ServerFailed),
        (Reply(status=599, body=b"\xff\xfe"), ServerFailed),
        (Reply.chat("cut", die_after=1), ServerUnreachable),
    ],
)
async def test_a_reply_becomes_the_error_that_says_what_to_do(server, cloud, reply, error):
    """Each status and wording has one meaning; the status is kept."""
    server.script(reply)
    with pytest.raises(ModelError) as caught:
        await cloud.complete(call())
    assert isinstance(caught.value, error)
    assert caught.value.status == (reply.status if reply.status != 200 else None)
    assert caught.value.hint
    assert type(caught.value).__mro__.index(error) <= 1


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"Retry-After": "-3"}, 0.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "inf"}, None),
        ({}, None),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
async def test_the_pause_that_a_server_asks_for_is_kept(server, cloud, status, headers, seconds):
    """In seconds, wherever it stands."""
    server.script(Reply.error(status, headers=headers))
    with pytest.raises(ModelError) as caught:
        await cloud.complete(call())
    assert caught.value.retry_after == seconds


def test_the_pause_may_be_a_date():
    """RFC 9110 allows one; a date gone by asks for no pause."""
    soon = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert 28 <= retry_after({"retry-after": soon}) <= 31
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0


async def test_an_empty_account_is_not_asked_again(server, cloud):
    """Waiting fills no account, another candidate may have credit."""
    server.script(Reply.error(429, "quota", code="insufficient_quota", headers={"Retry-After": "86400"}))
    with pytest.raises(RateLimited) as caught:
        await cloud.complete(call())
    assert (caught.value.retryable, caught.value.fallback, caught.value.retry_after) == (False, True, None)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda port: f"http://127.0.0.1:{port}/v1", "refused"),
        (lambda port: f"http://{'a' * 64}.example:{port}/v1", "unknown host name"),
        (lambda port: f"https://127.0.0.1:{port}/v1", "refused"),
    ],
)
async def test_a_server_that_cannot_be_reached_is_named(unused_tcp_port, make, reason):
    """With a command that shows whether it lives."""
    url = make(unused_tcp_port)
    backend = local_backend(url, model="m")
    for attempt in (backend.complete(call()), backend.embed(["a"], timeout=5)):
        with pytest.raises(ServerUnreachable, match=reason) as caught:
            await attempt
        assert f"curl {url}/models" in caught.value.hint
    await backend.close()


async def test_tls_with_a_server_that_speaks_none_is_no_connection():
    """The most common slip with https."""

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    listener = await asyncio.start_server(plain, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    backend = local_backend(f"https://127.0.0.1:{port}/v1", model="m")
    with pytest.raises(ServerUnreachable, match="no connection: TLS failed"):
        await backend.complete(call())
    await backend.close()
    listener.close()


@pytest.mark.parametrize("status", [400, 401, 404, 422, 429, 500])
@pytest.mark.parametrize(
    "message",
    [
        f"Incorrect API key provided: {KEY}. Find yours at https://example.org",
        f"Incorrect API key provided: {KEY[:8]}***{KEY[-4:]}",
        f"Invalid header: Bearer {KEY}",
        f"cannot process: {PROMPT}",
        f"cannot process {PROMPT[:30]}...",
        f"[{{'type': 'missing', 'loc': ('body',), 'input': {{'messages': [{{'content': {PROMPT!r}}}]}}}}]",
        "line one\nline two\r\n" + "very long " * 500,
    ],
)
async def test_errors_repeat_neither_key_nor_prompt(server, cloud, status, message):
    """They are one bounded line; a printed traceback holds no more."""
    server.script(Reply.error(status, message))
    with pytest.raises(ModelError) as caught:
        await cloud.complete(call())
    error = caught.value
    printed = "".join(traceback.format_exception(error))
    for secret in (KEY, KEY[:8], KEY[-12:], "4711", "rash", "left arm", "contagious"):
        assert secret not in str(error)
        assert secret not in printed.replace("assert ", "")
    assert "\n" not in error.message
    assert len(error.message) < MESSAGE_LENGTH + 100


async def test_a_stream_repeats_no_prompt_either(server, cloud):
    """An error event may quote the request, too."""
    server.script(Reply(events=(b'{"error": {"message": "bad: Patient 4711 has a rash", "code": 400}}',)))
    with pytest.raises(BadRequest) as caught:
        async for _ in cloud.stream(call()):
            pass
    assert "4711" not in "".join(traceback.format_exception(caught.value))


def test_what_a_message_says_of_its_own_is_kept():
    """Redaction leaves the reason readable."""
    said = "temperature must be non-negative, got -1.0"
    assert redact(said, ["hi", "What is the capital of France?"]) == said
    assert redact("Invalid value: 'Zanzibar'. Use a dict.", ["Zanzibar"]) == "Invalid value: '[…]'. Use a dict."


def test_a_quoted_body_is_cut_whatever_its_escapes():
    """Text that is quoted with escapes is not recognized as the request's; the quotation is."""
    said = r"field required, 'loc': ('body', 'n'), 'input': {'messages': [{'content': 'M\u00fcller h\u00e4lt'}]}"
    assert redact(said, ["M\u00fcller h\u00e4lt"]) == "field required, 'loc': ('body', 'n'), [request]"


@pytest.mark.parametrize(("ours", "fault"), [(True, "ours"), (False, "server")])
def test_an_answer_that_meets_our_limit_is_not_its_server_s_fault(ours, fault):
    """A long answer may be honest; headers of a megabyte are not."""
    found = from_connection(TooLong("the response is too long", ours=ours), Server("h:1", "http://h:1/v1"))
    assert isinstance(found, AnswerTooLong)
    assert (found.fault, counts(found), found.retryable) == (fault, not ours, False)
