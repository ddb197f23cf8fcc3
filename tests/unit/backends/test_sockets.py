"""Connections on asyncio's streams: limits, errors, TLS."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import httpcore2
import pytest

from tests.integration.stub_server import StubServer, silent_sockets
from workflow_composer.backends.sockets import AsyncioNetwork

ROOT = Path(__file__).parents[3]
GREETING = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Path:
    """Certificate and key of localhost, in one file."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command")
    file = tmp_path_factory.mktemp("tls") / "localhost.pem"
    options = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", file, "-out", file.with_suffix(".crt")]
    subprocess.run([openssl, *options.split(), *names], check=True, capture_output=True)
    file.write_text(file.read_text() + file.with_suffix(".crt").read_text())
    return file


@pytest.fixture
def tls_server(certificate):
    """A stub server behind TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with StubServer(tls=context) as server:
        yield server


async def test_bytes_go_both_ways(server):
    """And the connection knows its ends."""
    stream = await AsyncioNetwork().connect_tcp(server.host, server.port, timeout=60)
    await stream.write(GREETING, timeout=60)
    assert (await stream.read(4, timeout=60)) == b"HTTP"
    assert stream.get_extra_info("server_addr") == (server.host, server.port)
    assert stream.get_extra_info("client_addr")[0] == "127.0.0.1"
    assert stream.get_extra_info("ssl_object") is None
    await stream.aclose()
    assert await asyncio.to_thread(server.wait_for, lambda stub: stub.open == 0)


async def test_an_idle_connection_shows_that_its_server_has_gone(server):
    """It must not be used for the next request."""
    stream = await AsyncioNetwork().connect_tcp(server.host, server.port, timeout=60)
    assert stream.get_extra_info("is_readable") is False
    await asyncio.to_thread(server.wait_for, lambda stub: stub.open == 1)
    server.close()
    async with asyncio.timeout(5):
        assert await stream.read(10) == b""
    assert stream.get_extra_info("is_readable") is True
    await stream.aclose()
    assert stream.get_extra_info("is_readable") is True


async def test_reading_is_limited():
    """A server that says nothing costs no more than the limit."""
    (silent,) = silent_sockets(1)
    stream = await AsyncioNetwork().connect_tcp(*silent.getsockname(), timeout=60)
    with pytest.raises(httpcore2.ReadTimeout):
        await stream.read(10, timeout=0.05)
    with pytest.raises(httpcore2.ConnectTimeout):
        await stream.start_tls(ssl.create_default_context(), "localhost", timeout=0.05)
    silent.close()


async def test_a_refused_connection_says_so(unused_tcp_port):
    """In the system's words."""
    with pytest.raises(httpcore2.ConnectError, match="Connection refused"):
        await AsyncioNetwork().connect_tcp("127.0.0.1", unused_tcp_port, timeout=60)


async def test_tls_carries_bytes_both_ways(tls_server, certificate):
    """With the certificate checked against the host's name."""
    trusting = ssl.create_default_context(cafile=certificate)
    stream = await AsyncioNetwork().connect_tcp(tls_server.host, tls_server.port, timeout=60)
    stream = await stream.start_tls(trusting, "localhost", timeout=60)
    await stream.write(GREETING)
    assert (await stream.read(4)) == b"HTTP"
    assert stream.get_extra_info("ssl_object").version().startswith("TLS")
    await stream.aclose()


@pytest.mark.parametrize(("trusted", "name"), [(False, "localhost"), (True, "elsewhere.example")])
async def test_a_certificate_that_is_not_trusted_ends_the_connection(tls_server, certificate, trusted, name):
    """Whether its issuer is unknown or it belongs to another host."""
    context = ssl.create_default_context(cafile=certificate if trusted else None)
    stream = await AsyncioNetwork().connect_tcp(tls_server.host, tls_server.port, timeout=60)
    with pytest.raises(httpcore2.ConnectError, match="certificate"):
        await stream.start_tls(context, name, timeout=60)
    assert await asyncio.to_thread(tls_server.wait_for, lambda stub: stub.open == 0)


def test_a_backend_speaks_tls_and_leaves_nothing_open(tls_server, certificate):
    """From the profile's https address to the answer, the certificate's authority named by `SSL_CERT_FILE`."""
    program = (
        "import asyncio, sys\n"
        "from tests.integration.stub_backends import call, local_backend\n"
        "backend = local_backend(sys.argv[1])\n"
        "print(asyncio.run(backend.complete(call())).samples[0].text)\n"
    )
    url = tls_server.url.replace("127.0.0.1", "localhost")
    environ = {**os.environ, "SSL_CERT_FILE": str(certificate), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-c", program, url]
    done = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert (done.stdout, done.stderr, done.returncode) == ("an answer\n", "", 0)
