"""Resolves a host to the addresses that the `EgressPolicy` admits; connections use no others.

Each name is resolved in its own thread: the default executor has few threads, and a hundred names waiting for a dead
resolver would block the query to a working server.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import socket

from workflow_composer.backends.egress import EgressPolicy, Resolve, literal_address
from workflow_composer.runner import in_own_thread


async def admitted_addresses(
    policy: EgressPolicy, host: str, port: int, *, resolve: Resolve | None = None, limit: float | None = None
) -> list[str]:
    """Return the addresses of ``host`` that the policy admits, in the resolver's order; ``limit`` in seconds.

    Raises `EgressDenied` if the policy forbids the host or all of its addresses, TimeoutError, and OSError for a name that
    cannot be resolved.
    """
    policy.check_endpoint(host, port)
    literal = literal_address(host)
    if literal is not None:
        return [host if ":" in host else str(literal)]
    resolving = in_own_thread(functools.partial(_resolved, resolve or system_resolve, host, port), f"resolve-{host}")
    found = await asyncio.wait_for(resolving, limit)
    if not policy.is_local(host, port):
        return found
    admitted = [address for address in found if policy.admits(ipaddress.ip_address(address))]
    if found and not admitted:
        raise policy.far(host, port, found[0])
    return admitted


def system_resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a host from the system's resolver, in its order of preference."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


def _resolved(resolve: Resolve, host: str, port: int) -> list[str]:
    try:
        return list(resolve(host, port))
    except UnicodeError:  # an empty or too long label
        raise OSError("not a valid host name") from None
