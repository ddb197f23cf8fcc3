"""Resolves a host to the addresses that the `EgressPolicy` admits; connections use no others.

Each name is resolved in its own thread: the default executor has few threads, and a hundred names waiting for a dead
resolver would block the query to a working server.
"""

from __future__ import annotations

import functools
import ipaddress
import socket

from workflow_composer.backends.egress import EgressPolicy, Resolve, literal_address
from workflow_composer.runner import in_own_thread


async def admitted_addresses(policy: EgressPolicy, host: str, port: int, *, resolve: Resolve | None = None) -> list[str]:
    """Addresses of ``host`` to which bytes may go, in the resolver's order.

    Raises `EgressDenied` where the policy forbids the host or all of its addresses, and OSError for a name that cannot be
    resolved.
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


def is_unknown_name(error: Exception) -> bool:
    """Whether a connection could not be made because the server's name has no address."""
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
