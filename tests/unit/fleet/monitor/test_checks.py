"""What a check says of a server: one verdict, one line."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time

import pytest

from tests.unit.fleet.stub_vllm import StubVLLM, serving
from workflow_composer.backends.replicas.observer import Readings
from workflow_composer.fleet.monitor.checks import GRACE, CheckTarget, Limits, check
from workflow_composer.fleet.monitor.survey import check_all

QUICK = Limits(seconds=1.5)


@pytest.fixture
def stub():
    with serving(StubVLLM()) as made:
        yield made


def target(stub, **options):
    return CheckTarget(**({"host": "127.0.0.1", "port": stub.port, "model": "small"} | options))


async def test_a_server_that_gives_a_token_is_up_and_says_how_busy_it_is(stub):
    stub.running, stub.waiting, stub.cache = 3.0, 2.0, 0.25
    found = await check(target(stub))

    assert (found.verdict, found.reason) == ("up", "")
    assert (found.readings.running, found.readings.waiting, found.readings.cache) == (3, 2, 0.25)
    assert (found.readings.tokens, found.readings.started) == (10.0, 1e9)
    assert [given for _, path, given in stub.asked if path == "/v1/completions"] == [
        {"model": "small", "prompt": "1", "max_tokens": 1, "temperature": 0}
    ]


async def test_a_pooling_server_is_asked_for_a_vector(stub):
    assert (await check(target(stub, pooling=True))).verdict == "up"
    assert ("POST", "/v1/embeddings", {"model": "small", "input": ["1"]}) in stub.asked
    assert not [path for _, path, _ in stub.asked if path == "/v1/completions"]


async def test_without_a_probe_no_token_is_asked_for(stub):
    assert (await check(target(stub), probe=False)).verdict == "up"
    assert {method for method, _, _ in stub.asked} == {"GET"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"answers": {"/health": (503, b"")}}, "responds, but /health returns status 503"),
        ({"answers": {"/v1/models": (404, b"")}}, "is not OpenAI-compatible: /v1/models returns status 404"),
        ({"answers": {"/v1/models": (200, b"<html>")}}, "is not OpenAI-compatible: /v1/models lists no models"),
        ({"models": ["other"]}, "serves other, not small"),
        ({"models": ["other", "third"]}, "serves other and 1 more, not small"),
        ({"models": []}, "serves no model, not small"),
        ({"models": ["evil\nline \x1b[31m"]}, "is not OpenAI-compatible: /v1/models lists no models"),
        ({"answers": {"/v1/completions": (500, b"")}}, "returns status 500 to a request for one token"),
        ({"answers": {"/v1/completions": (200, b'{"choices": []}')}}, "returns no token to a request for one token"),
        ({"answers": {"/v1/completions": (200, b"[" * 100_000)}}, "returns no token to a request for one token"),
        ({"answers": {"/health": (307, b"")}, "headers": {"Location": "http://127.0.0.1:1/"}}, "/health returns status 307"),
        ({"hang": {"/health"}}, "is open, but no response within 1.5 s: it hangs"),
        ({"hang": {"/v1/models"}}, "is open, but no response within 1.5 s: it hangs"),
        ({"hang": {"/v1/completions"}}, "is open, but no token within 1.5 s: it hangs"),
        ({"key": "sesame"}, "requires an API key (status 401), but its role sets no api_key_env"),
    ],
)
async def test_each_fault_has_one_clear_line(stub, changes, reason):
    for name, value in changes.items():
        setattr(stub, name, value)
    found = await check(target(stub), QUICK)

    assert found.verdict == "down"
    assert found.reason.endswith(reason)
    assert str(stub.port) in found.reason
    assert "\n" not in found.reason


async def test_a_pooling_server_without_a_vector_is_down(stub):
    stub.answers["/v1/embeddings"] = (200, b'{"data": [{"embedding": []}]}')
    assert (await check(target(stub, pooling=True))).reason.endswith("returns no vector to a request for one vector")


async def test_the_key_of_the_role_opens_the_server_and_never_stands_in_a_reason(stub):
    stub.key = "sesame"
    assert (await check(target(stub, key="sesame", key_variable="FLEET_KEY"))).verdict == "up"

    wrong = await check(target(stub, key="secret-but-wrong", key_variable="FLEET_KEY"))
    assert wrong.reason.endswith("rejects the key in $FLEET_KEY (status 401)")
    assert "secret" not in repr(wrong)
    assert (await check(target(stub, key_variable="FLEET_KEY"))).reason.endswith("but $FLEET_KEY is not set")


async def test_a_closed_port_refuses():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = await check(CheckTarget(host="127.0.0.1", port=port, model="small"))
    assert (found.verdict, found.reason) == ("down", f"127.0.0.1:{port} refuses connections")


async def test_a_port_whose_process_is_stopped_hangs_within_the_limit():
    """SIGSTOP leaves the kernel to take connections that nobody answers."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        port = silent.getsockname()[1]
        begun = time.monotonic()
        found = await check(CheckTarget(host="127.0.0.1", port=port, model="small"), QUICK)
    assert found.reason == f"port {port} is open, but no response within 1.5 s: it hangs"
    assert time.monotonic() - begun < 20  # the ordinary limit is thirty seconds


async def test_a_name_that_nobody_knows_is_said(stub):
    found = await check(target(stub, host="no-such-host.invalid"), Limits(seconds=5))
    assert found.reason == "host name no-such-host.invalid cannot be resolved"


async def test_a_server_that_hangs_up_is_down(stub):
    with socket.socket() as rude:
        rude.bind(("127.0.0.1", 0))
        rude.listen(8)

        def hang_up():
            with contextlib.suppress(OSError):  # the test is over, and the socket closed
                for _ in range(2):
                    rude.accept()[0].close()

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        found = await check(target(stub, port=rude.getsockname()[1]), QUICK)
    assert found.reason.endswith("closed the connection or does not speak HTTP")


async def test_no_redirect_is_followed(stub):
    """What a server says must not send the key elsewhere."""
    with serving(StubVLLM()) as other:
        stub.answers["/v1/models"] = (302, b"")
        stub.headers["Location"] = f"http://127.0.0.1:{other.port}/v1/models"
        assert (await check(target(stub, key="k"))).verdict == "down"
        assert other.asked == []


async def test_the_environments_proxy_is_not_used(stub, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert (await check(target(stub))).verdict == "up"


async def test_an_answer_without_end_is_cut_off(stub):
    stub.answers["/health"] = (200, b"")
    stub.body = lambda: itertools.repeat(b"x" * 65536)
    found = await check(target(stub), Limits(seconds=20))
    assert found.reason.endswith("/health exceeds the size limit")


async def test_an_answer_that_drips_is_given_up(stub):
    """Each byte comes within the socket's time limit; the whole does not, and the round goes on without it."""

    def drip():
        for _ in range(600):  # a minute, unless the test ends before
            if stub.released.wait(0.1):
                return
            yield b"x"

    stub.answers["/health"] = (200, b"")
    stub.body = drip
    begun = time.monotonic()
    found = (await check_all({"a": target(stub)}, QUICK, grace=0.5))["a"]
    assert found.reason == f"127.0.0.1:{stub.port} sent no complete response within 1.5 s: it hangs"
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"waiting": 100.0}, "100 requests waiting (limit 100)"),
        ({"cache": 0.99}, "KV cache full: 99% in use (limit 98%)"),
        ({"waiting": 99.0, "cache": 0.97}, ""),
    ],
)
async def test_a_long_queue_or_a_full_cache_is_overload_and_no_failure(stub, changes, reason):
    for name, value in changes.items():
        setattr(stub, name, value)
    found = await check(target(stub))
    assert (found.verdict, found.reason) == ("overloaded" if reason else "up", reason)


async def test_limits_are_the_callers(stub):
    stub.waiting, stub.cache = 5.0, 0.5
    assert (await check(target(stub), Limits(queue=5))).verdict == "overloaded"
    assert (await check(target(stub), Limits(cache=0.5))).verdict == "overloaded"
    assert (await check(target(stub), Limits(queue=6, cache=0.51))).verdict == "up"


async def test_a_server_that_gives_no_token_but_works_on_others_is_overloaded(stub):
    """Its counters grow while the probe waits; a restart would lose what it works on."""
    stub.hang, stub.works, stub.waiting = {"/v1/completions"}, True, 7.0
    found = await check(target(stub), QUICK)
    assert (found.verdict, found.reason) == ("overloaded", "no token within 1.5 s, but it is processing: 7 requests waiting")
    assert found.seconds < QUICK.seconds + GRACE


async def test_a_server_without_metrics_is_up(stub):
    stub.answers["/metrics"] = (404, b"")
    found = await check(target(stub))
    assert found.verdict == "up"
    assert found.readings.running is None


async def test_many_servers_are_checked_at_once():
    """Forty that hang take as long as one, not a minute."""
    sockets = [socket.socket() for _ in range(40)]
    try:
        for silent in sockets:
            silent.bind(("127.0.0.1", 0))
            silent.listen(8)
        targets = {
            str(index): CheckTarget(host="127.0.0.1", port=silent.getsockname()[1], model="m")
            for index, silent in enumerate(sockets)
        }
        begun = time.monotonic()
        found = await check_all(targets, QUICK)
        assert time.monotonic() - begun < 30
        assert {item.verdict for item in found.values()} == {"down"}
        assert len(found) == 40
    finally:
        for silent in sockets:
            silent.close()


async def test_a_name_server_that_hangs_holds_up_nobody_else(stub, monkeypatch):
    """Its own server cannot be reached; the others are well at once."""
    released, known = threading.Event(), socket.getaddrinfo

    def slow(host, *arguments, **options):
        if host == "slow.example":
            released.wait(60)
        return known(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    targets = {f"slow-{index}": target(stub, host="slow.example") for index in range(50)} | {"well": target(stub)}
    begun = time.monotonic()
    found = await check_all(targets, QUICK)
    released.set()
    assert time.monotonic() - begun < 20
    assert found.pop("well").verdict == "up"
    assert {item.reason for item in found.values()} == {
        f"slow.example:{stub.port} cannot be reached: no connection within 1.5 s"
    }


async def test_a_host_that_is_none_is_said(stub):
    """Whoever wrote it into the state or the registry."""
    found = await check(target(stub, host="evil@example"))
    assert (found.verdict, found.reason) == ("down", "evil@example is not a valid host name")
    assert stub.asked == []


async def test_endless_metrics_leave_a_server_up_and_unread(stub):
    """It gives its token; a server without metrics is not down for that, either."""
    stub.answers["/metrics"] = (200, b"")
    stub.body = lambda: itertools.repeat(b"vllm:num_requests_running 1\n" * 4096)
    found = await check(target(stub), Limits(seconds=20))
    assert (found.verdict, found.readings) == ("up", Readings())
