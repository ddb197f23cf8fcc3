"""What the egress policy admits, and that the transport asks it."""

from __future__ import annotations

import asyncio
import ipaddress
import threading
from collections.abc import Iterable

import httpcore2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.integration.stub_server import Reply, StubServer
from workflow_composer.backends.egress import EgressPolicy, canonical_host, endpoint_of, http_client
from workflow_composer.backends.transport import PinnedNetwork
from workflow_composer.errors import EgressDenied
from workflow_composer.strategy import StrategyConfig

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


class RecordedSockets(httpcore2.AsyncNetworkBackend):
    """Stands where connections are made; opens none."""

    def __init__(self, *refusing: str) -> None:
        self.opened: list[tuple[str, int]] = []
        self.refusing = refusing

    async def connect_tcp(self, host, port, timeout=None, local_address=None, socket_options=None):
        self.opened.append((host, port))
        if host in self.refusing:
            raise httpcore2.ConnectError("refused")
        return httpcore2.AsyncMockStream([])


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
    with pytest.raises(EgressDenied, match=r"evil\.example:443 is none of the profile's servers"):
        CLOUD.check("https://evil.example/v1")


NEAR = (
    "127.0.0.1 127.8.8.8 10.1.2.3 172.31.0.1 192.168.1.1 169.254.1.1 100.64.0.1 0.0.0.0 "
    "::1 :: fe80::1 fd00::1 ::ffff:10.0.0.1"
)
FAR = (
    "8.8.8.8 172.32.0.1 100.128.0.1 192.0.2.1 198.18.0.1 224.0.0.1 255.255.255.255 0.0.0.8 2001:4860:4860::8888 "
    "::ffff:8.8.8.8 2002:808:808::1 64:ff9b::808:808 2001:db8::1 ff02::1"
)


@pytest.mark.parametrize("address", NEAR.split())
def test_near_addresses_are_admitted(address):
    """Loopback, private, link-local, shared and unique local addresses are one's own."""
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


@given(st.ip_addresses(v=4))
def test_every_spelling_of_an_address_is_one_host(address):
    """Decimal, hexadecimal, octal and mapped spellings are the address that the resolver would take them for."""
    number = int(address)
    parts = str(address).split(".")
    spellings = [str(number), hex(number), "0" + oct(number)[2:], ".".join(hex(int(part)) for part in parts)]
    spellings += [f"{parts[0]}.{number & 0xFFFFFF}", f"::ffff:{address}", f"{address}."]
    assert {canonical_host(spelling) for spelling in spellings} == {str(address)}


# ------------------------------------------------------------------------------------------------------- the connection


async def test_a_local_name_that_resolves_to_the_world_gets_no_connection():
    """The address decides, not the name."""
    sockets = RecordedSockets()
    network = PinnedNetwork(LOCAL, RecordedResolver("8.8.8.8", "2001:4860:4860::8888"), sockets)
    with pytest.raises(EgressDenied, match=r"gpu01:80 has the address 8\.8\.8\.8"):
        await network.connect_tcp("gpu01", 80)
    assert sockets.opened == []


async def test_the_connection_goes_to_the_address_that_was_judged():
    """A second look-up, which could answer otherwise, is not made; far addresses are left out."""
    sockets, resolver = RecordedSockets(), RecordedResolver("8.8.8.8", "192.168.0.7")
    await PinnedNetwork(LOCAL, resolver, sockets).connect_tcp("gpu01", 80, timeout=2.0)
    assert sockets.opened == [("192.168.0.7", 80)]
    assert resolver.asked == ["gpu01"]


async def test_declared_networks_count_as_near():
    """`local_networks` admits what a name resolves to."""
    config = StrategyConfig(
        profile_name="p", allow_cloud=False, vllm_endpoints={"a": "http://gpu01/v1"}, local_networks=["141.2.0.0/16"]
    )
    sockets = RecordedSockets()
    await PinnedNetwork(EgressPolicy.of(config), RecordedResolver("141.2.3.4"), sockets).connect_tcp("gpu01", 80)
    assert sockets.opened == [("141.2.3.4", 80)]


async def test_the_next_address_is_tried_where_one_refuses():
    """A name with an IPv6 address nobody listens on still connects."""
    sockets = RecordedSockets("::1")
    await PinnedNetwork(LOCAL, RecordedResolver("::1", "127.0.0.1"), sockets).connect_tcp("localhost", 8001, timeout=2.0)
    assert sockets.opened == [("::1", 8001), ("127.0.0.1", 8001)]


@pytest.mark.parametrize("policy", [LOCAL, CLOUD])
async def test_the_connection_itself_is_checked_without_a_lookup(policy):
    """Even where a request slipped past the first check, no name is resolved and no socket opened for a foreign host."""
    sockets, resolver = RecordedSockets(), RecordedResolver("127.0.0.1")
    network = PinnedNetwork(policy, resolver, sockets)
    for host, port in (("evil.example", 443), ("localhost", 9999), ("8.8.8.8", 53)):
        with pytest.raises(EgressDenied):
            await network.connect_tcp(host, port)
    with pytest.raises(EgressDenied):
        await network.connect_unix_socket("/run/proxy.sock")
    assert (sockets.opened, resolver.asked) == ([], [])


async def test_a_refused_request_looks_nothing_up():
    """The first check comes before the resolver: a name can carry data, too."""
    resolver = RecordedResolver("127.0.0.1")
    async with http_client(LOCAL, resolve=resolver) as client:
        with pytest.raises(EgressDenied):
            await client.get("http://secret-data.evil.example/")
    assert resolver.asked == []


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
        async with http_client(policy, resolve=resolve) as client:
            dead = [asyncio.ensure_future(client.get(f"http://{name}:{server.port}/")) for name in names]
            try:
                async with asyncio.timeout(60):
                    while len(asked) < len(names):
                        await asyncio.sleep(0.01)
                    response = await client.get(f"http://alive:{server.port}/v1/models")
                assert not any(task.done() for task in dead)
            finally:
                release.set()
                for task in dead:
                    task.cancel()
                await asyncio.gather(*dead, return_exceptions=True)
    assert response.status_code == 200


# ------------------------------------------------------------------------------------------------ redirects and proxies


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(server, status):
    """Not even to another endpoint of the profile: the answer is the redirect."""
    with StubServer() as other:
        server.script(Reply.redirect(other.url, status))
        policy = EgressPolicy(False, frozenset({endpoint_of(server.url), endpoint_of(other.url)}))
        async with http_client(policy) as client:
            response = await client.post(server.url + "/chat/completions", content=b"prompt")
        assert response.status_code == status
        assert other.connections == 0


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("allow_cloud", [True, False])
async def test_local_servers_are_never_reached_through_a_proxy(server, monkeypatch, variable, allow_cloud):
    """Whether the variable stands in the process's environment or in the one that was given."""
    with StubServer() as proxy:
        monkeypatch.setenv(variable, proxy.url)
        policy = EgressPolicy(allow_cloud, frozenset({endpoint_of(server.url)}))
        for environ in (None, {variable: proxy.url}):
            async with http_client(policy, environ=environ) as client:
                assert (await client.get(server.url + "/models")).status_code == 200
        assert (server.connections, proxy.connections) == (2, 0)


async def test_without_the_cloud_a_proxy_is_no_way_out():
    """A foreign host is refused before the proxy would be asked."""
    with StubServer() as proxy:
        environ = {"HTTP_PROXY": proxy.url, "HTTPS_PROXY": proxy.url, "ALL_PROXY": proxy.url, "NO_PROXY": "localhost"}
        async with http_client(LOCAL, environ=environ) as client:
            for url in ("http://evil.example/", "https://api.example/"):
                with pytest.raises(EgressDenied):
                    await client.get(url)
        assert proxy.connections == 0


async def test_with_the_cloud_allowed_a_proxy_serves_no_other_host():
    """The catalogue holds for proxied requests, too."""
    with StubServer() as proxy:
        async with http_client(CLOUD, environ={"all_proxy": proxy.url}) as client:
            with pytest.raises(EgressDenied):
                await client.get("http://evil.example/")
        assert proxy.connections == 0


class Careless(EgressPolicy):
    """A policy that lets every request pass its first check."""

    def check(self, url):
        pass


async def test_a_request_that_passes_the_first_check_by_mistake_is_stopped_at_the_connection():
    """And finds no proxy to take it."""
    with StubServer() as proxy:
        async with http_client(Careless(False, LOCAL.local), environ={"all_proxy": proxy.url}) as client:
            with pytest.raises(EgressDenied):
                await client.get("http://evil.example/")
        assert proxy.connections == 0


@pytest.mark.parametrize(("no_proxy", "proxied"), [("", 1), ("other.example", 1), ("127.0.0.1", 0), ("*", 0)])
async def test_with_the_cloud_allowed_its_hosts_are_reached_through_the_proxy(server, no_proxy, proxied):
    """As a cluster without a direct way out needs it; `NO_PROXY` is honoured."""
    with StubServer() as proxy:
        policy = EgressPolicy(True, frozenset(), cloud=frozenset({endpoint_of(server.url)}))
        environ = {"http_proxy": proxy.url.removesuffix("/v1"), "no_proxy": no_proxy}
        async with http_client(policy, environ=environ) as client:
            assert (await client.get(server.url + "/models")).status_code == 200
        assert (proxy.connections, server.connections) == (proxied, 1 - proxied)
        assert [request.path for request in proxy.requests] == [server.url + "/models"] * proxied
