"""What the egress policy admits, and that the transport asks it."""

from __future__ import annotations

import asyncio
import gzip
import ipaddress
import threading
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.integration.stub_backends import backend_of, call
from tests.integration.stub_server import Reply, StubServer
from workflow_composer.backends.http import connection
from workflow_composer.backends.http.client import Client, Origin
from workflow_composer.backends.http.connection import Bounds, TooLong
from workflow_composer.backends.http.egress import EgressPolicy, canonical_host, endpoint_of
from workflow_composer.backends.http.proxied import ProxiedClient, proxy_for
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.errors import EgressDenied, RateLimited, ServerFailed, ServerUnreachable

LOCAL = EgressPolicy.of(
    StrategyConfig(
        profile_name="local",
        allow_cloud=False,
        vllm_endpoints={
            "a": "http://localhost:8001/v1",
            "b": "http://10.0.0.5:8002",
            "c": "http://[::1]:8003/v1",
            "d": "http://gpu01/v1",
        },
        models={"e": {"backend": "vllm", "base_url": "https://node7.cluster/v1"}},
    )
)
CLOUD = EgressPolicy.of(
    StrategyConfig(
        profile_name="cloud",
        vllm_endpoints={"a": "http://localhost:8001/v1"},
        models={"api": {"backend": "openai", "base_url": "https://api.example/v1", "api_key_env": "KEY"}},
    )
)


class RecordedResolver:
    """A resolver with a table."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.asked: list[str] = []

    def __call__(self, host: str, port: int) -> Iterable[str]:
        self.asked.append(host)
        return self.addresses


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:8001/v1/chat/completions",
        "HTTP://LOCALHOST:8001/",
        "http://localhost.:8001/",
        "http://someone:pw@localhost:8001/",
        "http://10.0.0.5:8002",
        "http://0xa000005:8002",
        "http://167772165:8002",
        "http://10.5:8002",
        "http://[::ffff:10.0.0.5]:8002",
        "http://[::1]:8003",
        "http://[0:0:0:0:0:0:0:1]:8003",
        "http://gpu01",
        "http://gpu01:80/v1",
        "https://node7.cluster/v1/models",
        "https://NODE7.cluster:443/v1/models",
    ],
)
def test_a_local_endpoint_is_admitted_however_it_is_spelled(url):
    """Case, a trailing dot, user names, default ports and spellings of an address make no difference."""
    LOCAL.check(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://evil.example/",
        "http://localhost:8002/",
        "http://localhost/",
        "https://localhost:8001.evil.example/",
        "http://localhost@evil.example/",
        "http://localhost:8001@evil.example:8001/",
        "http://localhost\\@evil.example:8001/",
        "http://evil.example:8001/#@localhost:8001/",
        "http://evil.example:8001?@localhost:8001/",
        "http://localhost.evil.example:8001/",
        "http://l\u043ecalhost:8001/",
        "http://127.0.0.1:8001/",
        "http://[::1]:8001/",
        "https://gpu01/v1",
        "http://node7.cluster/v1",
        "http://134744072:8001/",
        "http://0x08080808:8002/",
        "ws://localhost:8001/",
        "ftp://localhost:8001/",
        "file:///etc/passwd",
        "unix:///run/vllm.sock",
        "http+unix://%2Frun%2Fvllm.sock/",
        "//localhost:8001/",
        "localhost:8001",
        "http://",
        "http://:8001",
        "http://[::1/",
        "http://256.1.1.1:8001/",
        "",
    ],
)
def test_everything_else_is_refused(url):
    """Whatever is not exactly host and port of a local endpoint is refused, and so is what cannot be read."""
    with pytest.raises(EgressDenied):
        LOCAL.check(url)


def test_the_cloud_is_refused_where_the_profile_forbids_it_and_admitted_where_it_does_not():
    """Only `allow_cloud` opens the way to the catalogue's cloud servers."""
    CLOUD.check("https://api.example/v1/chat/completions")
    forbidding = EgressPolicy(False, CLOUD.local, CLOUD.networks, CLOUD.cloud)
    with pytest.raises(EgressDenied, match="keeps data local"):
        forbidding.check("https://api.example/v1/chat/completions")


def test_with_the_cloud_allowed_other_hosts_are_still_refused():
    """The catalogue is the list of hosts: nobody else gets a prompt or a key."""
    with pytest.raises(EgressDenied, match=r"evil\.example:443 is not one of the profile's servers"):
        CLOUD.check("https://evil.example/v1")


NEAR = "127.0.0.1 127.8.8.8 10.1.2.3 172.31.0.1 192.168.1.1 100.64.0.1 0.0.0.0 ::1 :: fd00::1 ::ffff:10.0.0.1"
FAR = (
    "8.8.8.8 172.32.0.1 100.128.0.1 192.0.2.1 198.18.0.1 224.0.0.1 255.255.255.255 0.0.0.8 2001:4860:4860::8888 "
    "::ffff:8.8.8.8 2002:808:808::1 64:ff9b::808:808 2001:db8::1 ff02::1 169.254.1.1 ::ffff:169.254.1.1 fe80::1"
)


@pytest.mark.parametrize("address", NEAR.split())
def test_near_addresses_are_admitted(address):
    """Loopback, private, shared and unique local addresses are one's own."""
    url = f"http://[{address}]:1/" if ":" in address else f"http://{address}:1/"
    EgressPolicy(False, frozenset({endpoint_of(url)})).check(url)


@pytest.mark.parametrize("address", FAR.split())
def test_far_addresses_are_refused_although_the_profile_lists_them(address):
    """An endpoint out in the world is no local endpoint, unless its network is declared as one's own."""
    url = f"http://[{address}]:1/" if ":" in address else f"http://{address}:1/"
    endpoints = frozenset({endpoint_of(url)})
    with pytest.raises(EgressDenied, match="local_networks"):
        EgressPolicy(False, endpoints).check(url)
    network = f"{address.removeprefix('::ffff:')}/24" if "." in address else f"{address}/64"
    EgressPolicy(False, endpoints, (ipaddress.ip_network(network, strict=False),)).check(url)


METADATA = (
    "169.254.169.254 ::ffff:169.254.169.254 0xa9fea9fe 2852039166 169.254.170.2 100.100.100.200 fd00:ec2::254 fd20:ce::254 "
    "fe80::a9fe:a9fe"
)


@pytest.mark.parametrize("cloud", [False, True])
@pytest.mark.parametrize("address", METADATA.split())
def test_a_clouds_metadata_service_is_no_model_server(address, cloud):
    """Its answers are credentials: no list of networks admits it, and neither does a profile that allows the cloud."""
    url = f"http://[{address}]:1/" if ":" in address else f"http://{address}:1/"
    everything = tuple(ipaddress.ip_network(network) for network in ("0.0.0.0/0", "::/0"))
    with pytest.raises(EgressDenied, match="metadata service"):
        EgressPolicy(cloud, frozenset({endpoint_of(url)}), everything).check(url)


@pytest.mark.parametrize("cloud", [False, True])
async def test_a_name_of_the_metadata_service_is_refused_like_its_address(cloud):
    """What a server's name resolves to may change after the profile was checked."""
    policy = EgressPolicy(cloud, frozenset({("gpu01", 80)}))
    async with Client(policy, resolve=RecordedResolver("169.254.169.254")) as client:
        with pytest.raises(EgressDenied, match="metadata service"):
            await client.ask("http://gpu01/v1")


@given(st.ip_addresses(v=4))
def test_every_spelling_of_an_address_is_one_host(address):
    """Decimal, hexadecimal, octal and mapped spellings are the address that the resolver would take them for."""
    number = int(address)
    parts = str(address).split(".")
    spellings = [str(number), hex(number), "0" + oct(number)[2:], ".".join(hex(int(part)) for part in parts)]
    spellings += [f"{parts[0]}.{number & 0xFFFFFF}", f"::ffff:{address}", f"{address}."]
    assert {canonical_host(spelling) for spelling in spellings} == {str(address)}


# ------------------------------------------------------------------------------------------------------- the connection


@pytest.fixture
def opened(monkeypatch):
    """Stands where connections are made and opens none: the addresses that were tried, all of which refuse."""
    tried: list[tuple[str, int]] = []

    async def connect(self, make, host, port, **_):
        tried.append((host, port))
        raise ConnectionRefusedError(111, "refused")

    monkeypatch.setattr(asyncio.BaseEventLoop, "create_connection", connect)
    return tried


async def asked(url: str, policy: EgressPolicy = LOCAL, resolver=None) -> None:
    """One request."""
    async with Client(policy, resolve=resolver) as client:
        await client.ask(url)


async def test_a_local_name_that_resolves_to_the_world_gets_no_connection(opened):
    """The address decides, not the name."""
    with pytest.raises(EgressDenied, match=r"gpu01:80 has the public address 8\.8\.8\.8"):
        await asked("http://gpu01/v1", LOCAL, RecordedResolver("8.8.8.8", "2001:4860:4860::8888"))
    assert opened == []


async def test_the_connection_goes_to_the_address_that_was_judged(opened):
    """A second look-up, which could answer otherwise, is not made; far addresses are left out."""
    resolver = RecordedResolver("8.8.8.8", "192.168.0.7")
    with pytest.raises(ConnectionRefusedError):
        await asked("http://gpu01/v1", LOCAL, resolver)
    assert opened == [("192.168.0.7", 80)]
    assert resolver.asked == ["gpu01"]


async def test_declared_networks_count_as_near(opened):
    """`local_networks` admits what a name resolves to."""
    config = StrategyConfig(
        profile_name="p", allow_cloud=False, vllm_endpoints={"a": "http://gpu01/v1"}, local_networks=["141.2.0.0/16"]
    )
    with pytest.raises(ConnectionRefusedError):
        await asked("http://gpu01/v1", EgressPolicy.of(config), RecordedResolver("141.2.3.4"))
    assert opened == [("141.2.3.4", 80)]


async def test_the_next_address_is_tried_where_one_refuses(opened):
    """A name with an IPv6 address nobody listens on still connects."""
    with pytest.raises(ConnectionRefusedError):
        await asked("http://localhost:8001/", LOCAL, RecordedResolver("::1", "127.0.0.1"))
    assert opened == [("::1", 8001), ("127.0.0.1", 8001)]


@pytest.mark.parametrize("policy", [LOCAL, CLOUD])
async def test_a_refused_request_looks_nothing_up_and_opens_nothing(policy, opened):
    """A name can carry data, too."""
    resolver = RecordedResolver("127.0.0.1")
    for url in ("http://secret-data.evil.example/", "http://localhost:9999/", "http://8.8.8.8:53/", "unix:///run/x"):
        with pytest.raises(EgressDenied):
            await asked(url, policy, resolver)
    assert (opened, resolver.asked) == ([], [])


async def test_dead_names_do_not_keep_a_living_server_waiting():
    """Fifty names that the resolver lets hang leave the fifty-first its own thread."""
    release = threading.Event()
    asked: list[str] = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        if host != "alive":
            release.wait(30)
        return ["127.0.0.1"]

    with StubServer() as server:
        names = [f"dead{number}" for number in range(50)]
        policy = EgressPolicy(False, frozenset((name, server.port) for name in [*names, "alive"]))
        async with Client(policy, resolve=resolve) as client:
            dead = [asyncio.ensure_future(client.ask(f"http://{name}:{server.port}/", connect=60.0)) for name in names]
            try:
                async with asyncio.timeout(60):
                    while len(asked) < len(names):
                        await asyncio.sleep(0.01)
                    response = await client.ask(f"http://alive:{server.port}/v1/models")
                assert not any(task.done() for task in dead)
            finally:
                release.set()
                for task in dead:
                    task.cancel()
                await asyncio.gather(*dead, return_exceptions=True)
    assert response.status == 200


# ------------------------------------------------------------------------------------------------ redirects and proxies


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(server, status):
    """Not even to another endpoint of the profile: the answer is the redirect."""
    with StubServer() as other:
        server.listing = Reply.redirect(other.url, status)
        policy = EgressPolicy(False, frozenset({endpoint_of(server.url), endpoint_of(other.url)}))
        async with Client(policy) as client:
            answer = await client.ask(server.url + "/models")
        assert answer.status == status
        assert other.connections == 0


def model_of(url: str, *, cloud: bool, environ: dict[str, str]):
    """A backend for one model at an address."""
    spec = {"backend": "openai", "api_key_env": "KEY"} if cloud else {"backend": "vllm"}
    models = {"m": {**spec, "model": "m", "base_url": url}}
    config = StrategyConfig(profile_name="p", allow_cloud=cloud, models=models)
    return backend_of("m", config, {"KEY": "sk-1", **environ})


VARIABLES = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy")


@pytest.mark.parametrize("variable", VARIABLES)
async def test_local_servers_are_never_reached_through_a_proxy(server, monkeypatch, variable):
    """Whether the variable stands in the process's environment or in the one that was given."""
    with StubServer() as proxy:
        monkeypatch.setenv(variable, proxy.url)
        for environ in ({}, {variable: proxy.url}):
            backend = model_of(server.url, cloud=False, environ=environ)
            await backend.complete(call())
            await backend.close()
        assert (server.connections, proxy.connections) == (2, 0)


@pytest.mark.parametrize("origin", [Origin(tls, host, 443) for tls in (True, False) for host in ("evil.example", "8.8.8.8")])
def test_without_the_cloud_no_proxy_is_ever_chosen(origin):
    """Whatever the environment says."""
    environ = dict.fromkeys(VARIABLES, "http://proxy.example:3128")
    assert proxy_for(origin, LOCAL, environ) is None
    assert proxy_for(Origin(False, "localhost", 8001), CLOUD, environ) is None


async def test_with_the_cloud_allowed_a_proxy_serves_no_other_host():
    """The catalogue holds for proxied requests, too; the client asks before each."""
    with StubServer() as proxy:
        client = ProxiedClient(CLOUD, Origin(False, "evil.example", 80), "/v1", proxy.url)
        with pytest.raises(EgressDenied):
            await client.ask("POST", "/chat/completions", {}, b"{}", connect=2.0)
        await client.close()
        assert proxy.connections == 0


@pytest.mark.parametrize(("no_proxy", "proxied"), [("", True), ("other.example", True), ("127.0.0.1", False), ("*", False)])
@pytest.mark.parametrize("stream", [False, True])
async def test_with_the_cloud_allowed_its_hosts_are_reached_through_the_proxy(server, no_proxy, proxied, stream):
    """As a cluster without a direct way out needs it; `NO_PROXY` is honoured, and answers are the same."""
    with StubServer() as proxy:
        environ = {"http_proxy": proxy.url.removesuffix("/v1"), "no_proxy": no_proxy}
        backend = model_of(server.url, cloud=True, environ=environ)
        (proxy if proxied else server).script(Reply.stream("4") if stream else Reply.chat("4"))
        if stream:
            assert "".join([chunk.text async for chunk in backend.stream(call())]) == "4"
        else:
            assert (await backend.complete(call())).samples[0].text == "4"
        assert (await backend.health(timeout=5.0)).healthy
        await backend.close()
        assert (proxy.connections > 0, server.connections > 0) == (proxied, not proxied)
        paths = [request.path for request in proxy.requests]
        assert paths == ([server.url + "/chat/completions", server.url + "/models"] if proxied else [])


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply.error(429, "slow", headers={"Retry-After": "7"}), RateLimited),
        (Reply.error(500, "oops"), ServerFailed),
        (Reply(body=b"not json"), ServerFailed),
        (Reply.chat("a", die_after=1), ServerUnreachable),
    ],
)
async def test_behind_a_proxy_what_goes_wrong_raises_what_it_raises_elsewhere(server, reply, error):
    """The library's own errors stay behind the seam."""
    with StubServer() as proxy:
        backend = model_of(server.url, cloud=True, environ={"http_proxy": proxy.url.removesuffix("/v1")})
        proxy.script(reply)
        with pytest.raises(error):
            await backend.complete(call())
        await backend.close()


@pytest.mark.parametrize("packed", [False, True])
async def test_behind_a_proxy_an_answer_is_bounded_as_elsewhere(packed):
    """As it is decoded, whether it is wanted whole or as a stream."""
    body = b"0" * 20_000
    reply = Reply(body=gzip.compress(body), headers={"Content-Encoding": "gzip"}) if packed else Reply(body=body)
    enough, short = {"bounds": Bounds(decoded=20_000)}, {"bounds": Bounds(decoded=19_999)}
    with StubServer() as proxy:
        proxy.script(*[reply] * 3)
        client = ProxiedClient(CLOUD, Origin(False, "api.example", 443), "/v1", proxy.url)
        assert (await client.ask("POST", "/x", {}, b"{}", connect=2.0, **enough)).body == body
        with pytest.raises(TooLong):
            await client.ask("POST", "/x", {}, b"{}", connect=2.0, **short)
        stream = await client.open("POST", "/x", {}, b"{}", connect=2.0, **short)
        with pytest.raises(TooLong):
            while await stream.read():
                pass
        await stream.close()
        await client.close()


async def test_behind_a_proxy_a_bomb_is_decompressed_in_steps_and_only_up_to_the_bound(monkeypatch):
    """200 MB in less than 1 MB."""
    sizes, piece = [], connection.Inflating.piece

    def noted(self):
        found = piece(self)
        sizes.append(len(found))
        return found

    monkeypatch.setattr(connection.Inflating, "piece", noted)
    packed = gzip.compress(b" " * 200_000_000, compresslevel=1)
    with StubServer() as proxy:
        proxy.script(Reply(body=packed, headers={"Content-Encoding": "gzip"}))
        client = ProxiedClient(CLOUD, Origin(False, "api.example", 443), "/v1", proxy.url)
        with pytest.raises(TooLong):
            await client.ask("POST", "/x", {}, b"{}", connect=2.0, bounds=Bounds(whole=2**22))
        await client.close()
    assert max(sizes) <= connection.STEP
    assert 2**22 < sum(sizes) <= 2**22 + 2 * connection.STEP


async def test_behind_a_proxy_only_the_start_of_an_error_is_read():
    with StubServer() as proxy:
        proxy.script(Reply(status=400, body=b"it is too long: " + b"z" * 3_000_000))
        client = ProxiedClient(CLOUD, Origin(False, "api.example", 443), "/v1", proxy.url)
        answer = await client.ask("POST", "/x", {}, b"{}", connect=2.0)
        await client.close()
    assert answer.status == 400
    assert answer.body.startswith(b"it is too long: ")
    assert len(answer.body) <= connection.ERROR + connection.STEP


async def test_a_proxy_that_is_not_there_is_told(server, unused_tcp_port):
    """As a server that is not there."""
    backend = model_of(server.url, cloud=True, environ={"all_proxy": f"127.0.0.1:{unused_tcp_port}"})
    with pytest.raises(ServerUnreachable):
        await backend.complete(call())
    await backend.close()
    assert server.connections == 0
