"""The egress policy: the hosts to which a profile allows data to be sent.

It stops a router that plans a cloud call by mistake, a backend with a wrong address, a server that redirects and a proxy
named in the environment before anything is sent. The HTTP client (`workflow_composer.backends.http.client`) connects only
to addresses that the `EgressPolicy` has checked; the client behind a proxy (`http.proxied`), which leaves name resolution
to the proxy, checks each request.
"""

from __future__ import annotations

import functools
import ipaddress
import re
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from workflow_composer.backends.http.listeners import is_this_machine, owner, owners
from workflow_composer.config.own_machines import Address, Network, is_metadata, is_near, own_users, user_name
from workflow_composer.config.profile_models import registered_role
from workflow_composer.errors import EgressDenied
from workflow_composer.support.loop_thread import in_own_thread

if TYPE_CHECKING:
    from workflow_composer.config.strategy import StrategyConfig


# --------------------------------------------------------------------------------------------------------------- resolving
#
# Resolves a host to the addresses that the `EgressPolicy` admits; connections use no others.
#
# Each name is resolved in its own thread: the default executor has few threads, and a hundred names waiting for a dead
# resolver would block the query to a working server.


async def admitted_addresses(policy: EgressPolicy, host: str, port: int, *, resolve: Resolve | None = None) -> list[str]:
    """Return the admitted addresses of ``host`` in the resolver's order.

    Raises `EgressDenied` if the policy forbids the host or all of its addresses, and OSError if the name cannot be resolved.
    """
    policy.check_endpoint(host, port)
    literal = literal_address(host)
    if literal is not None:
        return [host if ":" in host else str(literal)]
    work = functools.partial(_resolved, resolve or system_resolve, host, port)
    found = await in_own_thread(work, f"resolve-{host}")
    if not policy.is_local(host, port):
        return found
    admitted = [address for address in found if policy.admits(ipaddress.ip_address(address))]
    if found and not admitted:
        raise policy.far(host, port, found[0])
    return admitted


async def check_owner(policy: EgressPolicy, host: str, port: int, peer: str, own: tuple[Any, ...]) -> None:
    """Check a new connection to ``peer`` that comes from ``own`` (address, port, ...), before anything is sent.

    Raises `EgressDenied` if the profile keeps data local and the server is another user's process on this machine.
    """
    if policy.allow_cloud or not is_this_machine(peer, own[0]):
        return
    known = owner(peer, port, own[0], own[1])
    if known is None:
        found = await in_own_thread(functools.partial(owners, peer, port, own[1]), f"owner-{port}")
    else:
        found = {known}
    if strangers := found - policy.users:
        who = user_name(min(strangers))
        raise EgressDenied(
            f"{_shown(host, port)} is a server of {who}, another user of this machine, and the profile keeps data local",
            hint=f"if it is yours, add {who.removeprefix('uid ')} to local_users of the profile",
        )


def is_unknown_name(error: Exception) -> bool:
    """Whether a connection failed because the server's name has no address."""
    return isinstance(error, socket.gaierror)


def system_resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a host from the system's resolver, in its order of preference."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


def _resolved(resolve: Resolve, host: str, port: int) -> list[str]:
    try:
        return list(resolve(host, port))
    except UnicodeError:  # a label that is empty or too long
        raise socket.gaierror(socket.EAI_NONAME, "not a host name") from None


Endpoint = tuple[str, int]
"""Host in canonical form, and port."""

Resolve = Callable[[str, int], Iterable[str]]
"""Host and port -> addresses; blocks, and raises OSError if there is none."""

_NUMERIC_HOST = re.compile(r"[0-9a-fx.]+")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_URL = re.compile(
    r"(?P<scheme>https?)://(?:[^/?#@\\\s]*@)?(?P<host>\[[0-9a-f:.]+\]|[^\[\]/?#@:%\\\s]+)(?::(?P<port>\d{1,5}))?(?:[/?#][^\\\s]*)?",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """The hosts to which a profile allows data to be sent.

    ``local``: the profile's own servers. ``networks``: local address ranges in addition to loopback, private, shared and
    unique local ones. ``cloud``: the catalogue's cloud servers, reachable only with ``allow_cloud``. ``users``: the users of
    this machine whose servers are admitted on it without ``allow_cloud``, by number.
    """

    allow_cloud: bool
    local: frozenset[Endpoint]
    networks: tuple[Network, ...] = ()
    cloud: frozenset[Endpoint] = frozenset()
    users: frozenset[int] = field(default_factory=own_users)

    @classmethod
    def of(cls, config: StrategyConfig) -> EgressPolicy:
        """Derive the policy from a profile. Raises `EgressDenied` if one of its addresses is not an HTTP URL."""
        places = [place for role in config.vllm_endpoints for place in config.servers_of(role)]
        local = {endpoint_of(url) for url in places if registered_role(url) is None}
        cloud: set[Endpoint] = set()
        for spec in config.models.values():
            if spec.base_url:
                (local if spec.local else cloud).add(endpoint_of(spec.base_url))
        networks = tuple(ipaddress.ip_network(network) for network in config.local_networks)
        return cls(config.allow_cloud, frozenset(local), networks, frozenset(cloud), own_users(config.local_users))

    def check(self, url: str) -> None:
        """Raise `EgressDenied` if data may not be sent to ``url``. Does not resolve names."""
        self.check_endpoint(*endpoint_of(url))

    def check_endpoint(self, host: str, port: int) -> None:
        """`check` for a host, in any spelling, and a port."""
        endpoint = (canonical_host(host), port)
        if endpoint in self.local:
            address = literal_address(host)
            if address is not None and not self.admits(address):
                raise self.far(host, port, str(address))
        elif not (self.allow_cloud and endpoint in self.cloud):
            raise self._foreign(endpoint)

    def admitting(self, url: str) -> EgressPolicy:
        """Return a policy that also admits a registered server of one of the profile's roles.

        Its address is checked as if the profile had named it. Raises `EgressDenied` if ``url`` is not an HTTP URL.
        """
        return replace(self, local=self.local | {endpoint_of(url)})

    def is_local(self, host: str, port: int) -> bool:
        """Whether this is one of the profile's own servers."""
        return (canonical_host(host), port) in self.local

    def admits(self, address: Address) -> bool:
        """Whether a local endpoint may have this address; no server has that of a cloud's metadata service."""
        address = _unmapped(address)
        if is_metadata(address):
            return False
        return self.allow_cloud or is_near(address) or any(address in network for network in self.networks)

    def far(self, host: str, port: int, address: str) -> EgressDenied:
        """Return the error for a local endpoint with an address that `admits` refuses."""
        found = _unmapped(ipaddress.ip_address(address))
        if is_metadata(found):
            return EgressDenied(
                f"{_shown(host, port)} has the address {address} of a cloud's metadata service, which is no model server",
                hint="correct the server's address or its name's",
            )
        if found.is_link_local:
            return EgressDenied(
                f"{_shown(host, port)} has the link-local address {address}, but the profile keeps data local",
                hint="give the server's other address, or add the network of this one to local_networks",
            )
        return EgressDenied(
            f"{_shown(host, port)} has the public address {address}, but the profile keeps data local",
            hint="if the network is yours, add it to local_networks",
        )

    def _foreign(self, endpoint: Endpoint) -> EgressDenied:
        if self.allow_cloud:
            return EgressDenied(
                f"{_shown(*endpoint)} is not one of the profile's servers",
                hint="redirects and addresses outside the catalogue are not followed; add a model with this base_url",
            )
        return EgressDenied(
            f"{_shown(*endpoint)} is not one of the profile's local endpoints, and the profile keeps data local",
            hint="add the server to vllm_endpoints, or use a profile with allow_cloud: true",
        )


def endpoint_of(url: str) -> Endpoint:
    """Return host and port of an HTTP URL. Raises `EgressDenied` for anything else."""
    found = _URL.fullmatch(url) if isinstance(url, str) else None
    host = _ascii(found["host"].strip("[]")) if found is not None else ""
    port = int(found["port"] or _DEFAULT_PORTS[found["scheme"].lower()]) if found is not None else 0
    if not host or not 0 < port < 65536 or (":" in host and literal_address(host) is None):
        raise EgressDenied("not an HTTP address", hint="write http://host:port/v1 or https://host/v1")
    return canonical_host(host), port


def _ascii(host: str) -> str:
    """Return a host name in ASCII (IDNA); empty if it is invalid."""
    try:
        return host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        return ""


@functools.lru_cache(maxsize=4096)
def canonical_host(host: str) -> str:
    """Return the canonical host: lower case, no trailing dot, addresses normalized (``0x7f.1`` -> ``127.0.0.1``)."""
    host = host.lower().removesuffix(".")
    address = literal_address(host)
    return host if address is None else str(address)


@functools.lru_cache(maxsize=4096)
def literal_address(host: str) -> Address | None:
    """Return the address that ``host`` denotes, in any form that the system's resolver accepts; None for a name."""
    try:
        return _unmapped(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not _NUMERIC_HOST.fullmatch(host.lower()):
        return None
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except OSError:
        return None


def _unmapped(address: Address) -> Address:
    return getattr(address, "ipv4_mapped", None) or address


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
