"""Web pages: which may use a service without keys, what CORS allows, and from where a request came through proxies."""

from __future__ import annotations

import pytest

from workflow_composer.errors import ConfigError
from workflow_composer.server.failures import HttpFailure
from workflow_composer.server.gate import WebGate, is_own_host, read_origins, read_proxies, sender, whole_client

HOST = {"host": "localhost:8080"}
JSON = {"content-type": "application/json", "content-length": "2"}
PAGE = "https://chat.example"


def status(gate, method="POST", path="/v1/chat/completions", **headers):
    """The status of a refusal; None if the request may pass."""
    try:
        gate.check(method, path, {name.replace("_", "-"): value for name, value in headers.items()})
    except HttpFailure as failure:
        return failure.status
    return None


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LocalHost:8080",
        "localhost.",
        "app.localhost:1",
        "127.0.0.1:80",
        "127.9.9.9",
        "[::1]:8080",
        "[::ffff:127.0.0.1]",
    ],
)
def test_names_of_this_machine(host):
    assert is_own_host(host)
    assert status(WebGate(keyless=True), "GET", host=host) is None


@pytest.mark.parametrize(
    "host",
    [
        "rebound.example:8080",
        "127.0.0.1.nip.io",
        "localhost.example",
        "notlocalhost",
        "10.0.0.7:8080",
        "0.0.0.0:8080",
        "[::]:80",
        "[2001:db8::1]",
        "169.254.169.254",
        "localhost:80@evil.example",
        "localhost, evil.example",
        "",
        "[::1",
    ],
)
def test_a_name_that_was_pointed_at_this_machine_is_refused(host):
    """The browser of a person here found the service under a stranger's name (DNS rebinding)."""
    assert not is_own_host(host)
    for method in ("GET", "POST", "OPTIONS"):
        assert status(WebGate(keyless=True), method, host=host) == 403
    assert status(WebGate(), "GET", host=host) is None  # with keys, the name does not matter


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize(
    "origin",
    [
        PAGE,
        "null",
        "file://",
        "http://localhost.evil.example",
        "http://127.0.0.1.evil.example:8080",
        "http://evil.example:8080",
        "http://user@localhost",
        "http://localhost, http://evil.example",
        "chrome-extension://localhost",
        "",
    ],
)
def test_pages_of_strangers_are_refused_without_keys(origin, method):
    assert status(WebGate(keyless=True), method, **HOST, origin=origin) == 403
    assert WebGate().check(method, "/", {**HOST, "origin": origin}) == ()  # with keys: let in, and told nothing of CORS


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1:8080", "https://[::1]", "HTTP://LOCALHOST"])
def test_pages_of_this_machine_may_ask_and_no_other_page_may_read(origin):
    assert WebGate(keyless=True).check("GET", "/", {**HOST, "origin": origin}) == ()


@pytest.mark.parametrize(
    ("site", "method", "found"),
    [
        ("cross-site", "POST", 403),
        ("cross-site", "PUT", 403),
        ("cross-site", "GET", 403),
        ("same-origin", "POST", None),
        ("same-site", "POST", None),
        ("none", "POST", None),
    ],
)
def test_what_the_browser_says_of_the_page_counts_too(site, method, found):
    assert status(WebGate(keyless=True), method, **HOST, **JSON, sec_fetch_site=site) == found


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("application/json", None),
        ("Application/JSON; charset=utf-8", None),
        ("application/vnd.api+json", None),
        ("text/plain", 415),
        ("text/plain; application/json", 415),
        ("application/json, text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
        ("text/json+json", 415),
        ("", 415),
    ],
)
@pytest.mark.parametrize("body", [{"content_length": "2"}, {"transfer_encoding": "chunked"}])
def test_a_body_that_a_page_can_send_without_asking_is_refused(kind, body, found):
    assert status(WebGate(keyless=True), **HOST, **body, content_type=kind) == found
    assert status(WebGate(), **HOST, **body, content_type=kind) is None
    assert status(WebGate(keyless=True), **HOST, content_length="0", content_type=kind) is None


def test_a_link_from_elsewhere_leads_to_the_dashboard_and_a_form_leads_nowhere():
    there = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}
    assert status(WebGate(keyless=True), "GET", "/dashboard", **HOST, **there) is None
    assert status(WebGate(keyless=True), "POST", "/v1/chat/completions", **HOST, **JSON, **there) == 403


def test_files_are_taken_where_they_belong_and_never_from_a_page_elsewhere():
    gate, body = (
        WebGate(keyless=True, files={"/v1/files"}),
        {"content_type": "multipart/form-data; boundary=x", "content_length": "9"},
    )
    assert status(gate, "POST", "/v1/files", **HOST, **body) is None
    assert status(gate, "POST", "/v1/chat/completions", **HOST, **body) == 415
    assert status(gate, "POST", "/v1/files", **HOST, **body, origin=PAGE) == 403
    assert status(gate, "POST", "/v1/files", **HOST, **body, sec_fetch_site="cross-site") == 403


def test_an_allowed_origin_is_told_so_and_its_questions_are_answered():
    for keyless in (True, False):
        gate = WebGate(read_origins([PAGE], keyless=keyless), keyless)
        found = dict(gate.check("POST", "/", {**HOST, **JSON, "origin": PAGE, "sec-fetch-site": "cross-site"}))
        assert found["access-control-allow-origin"] == PAGE
        assert found["vary"] == "Origin"
        assert "access-control-allow-methods" not in found
        asked = {"access-control-request-method": "PUT", "access-control-request-headers": "authorization,x-stainless-os"}
        found = dict(gate.check("OPTIONS", "/", {**HOST, "origin": PAGE, **asked}))
        assert found["access-control-allow-methods"] == "PUT"
        assert found["access-control-allow-headers"] == "authorization,x-stainless-os"
        assert "access-control-allow-credentials" not in found
        assert gate.check("OPTIONS", "/", {**HOST, "origin": "http://localhost:3000", **asked}) == ()
    keyless = WebGate(read_origins([PAGE], keyless=True), keyless=True)
    assert status(keyless, "GET", host="chat.example", origin=PAGE) is None  # its name, too
    assert status(keyless, "GET", host="other.example", origin=PAGE) == 403


def test_origins_are_compared_as_browsers_send_them():
    found = read_origins(
        ["HTTPS://Chat.Example:443", "http://a.example:80, http://[::1]:3000", "app://obsidian.md"], keyless=True
    )
    assert found == {"https://chat.example", "http://a.example", "http://[::1]:3000", "app://obsidian.md"}
    gate = WebGate(found, keyless=True)
    for origin in ("https://chat.example", "app://obsidian.md"):
        assert dict(gate.check("GET", "/", {**HOST, "origin": origin}))["access-control-allow-origin"] == origin
    for origin in ("http://chat.example", "https://chat.example:8443", "https://sub.chat.example", "null"):
        assert status(gate, "GET", **HOST, origin=origin) == 403
    assert WebGate(read_origins(["*"], keyless=False)).check("GET", "/", {"origin": PAGE})[0][1] == PAGE


@pytest.mark.parametrize(
    "text", ["chat.example", "http://chat.example/", "http://chat.example/x", "null", "", "http://", "http://a b"]
)
def test_what_is_no_origin_is_refused_at_the_start(text):
    with pytest.raises(ConfigError):
        read_origins([text], keyless=False)


def test_without_keys_not_every_page_can_be_allowed():
    with pytest.raises(ConfigError, match="--keys"):
        read_origins(["*"], keyless=True)


@pytest.mark.parametrize(
    ("client", "forwarded", "found"),
    [
        ("10.0.0.1", "1.2.3.4", "1.2.3.4"),
        ("10.0.0.1", "9.9.9.9, 1.2.3.4", "1.2.3.4"),  # what the client wrote itself comes first
        ("10.0.0.1", "1.2.3.4, 10.0.0.2", "1.2.3.4"),  # two proxies in a row
        ("10.0.0.1", "1.2.3.4:5678", "1.2.3.4"),
        ("10.0.0.1", "[2001:db8::1]:99", "2001:db8::1"),
        ("10.0.0.1", "::ffff:1.2.3.4", "1.2.3.4"),
        ("::ffff:10.0.0.1", "1.2.3.4", "1.2.3.4"),
        ("10.0.0.1", "unknown", "10.0.0.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("8.8.8.8", "1.2.3.4", "8.8.8.8"),  # no proxy of ours
        ("", "1.2.3.4", ""),
    ],
)
def test_only_trusted_proxies_are_believed(client, forwarded, found):
    assert sender(client, {"x-forwarded-for": forwarded}, read_proxies(["10.0.0.0/24"])) == found
    assert sender(client, {"x-forwarded-for": forwarded}, ()) == client


def test_addresses_of_proxies_are_checked_at_the_start():
    for text in ("10.0.0", "10.0.0.1/8", "proxy.example", ""):
        with pytest.raises(ConfigError, match="--trusted-proxy"):
            read_proxies([text])


def test_an_ipv6_client_does_not_count_as_many():
    assert whole_client("2001:db8:1:2:3:4:5:6") == whole_client("2001:db8:1:2::9") != whole_client("2001:db8:1:3::9")
    assert whole_client("::ffff:10.0.0.7") == "::ffff:10.0.0.7"
    assert whole_client("") == ""
