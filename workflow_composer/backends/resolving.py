"""Addresses of a host, judged by the `EgressPolicy`: what connections are made to, and nothing else.

Each name is resolved in a thread of its own: the default executor has few threads, and a hundred names that a dead resolver
lets wait would keep the one server that lives from being asked.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from contextlib import suppress

from workflow_composer.backends.egress import EgressPolicy, Resolve, literal_address


async def admitted_addresses(
    policy: EgressPolicy, host: str, port: int, *, resolve: Resolve | None = None, limit: float | None = None
) -> list[str]:
    """Addresses of ``host`` to which bytes may go, in the resolver's order; ``limit`` in seconds.

    Raises `EgressDenied` where the policy forbids the host or all of its addresses, TimeoutError, and OSError for a name
    that cannot be resolved.
    """
    policy.check_endpoint(host, port)
    literal = literal_address(host)
    if literal is not None:
        return [host if ":" in host else str(literal)]
    found = await _in_thread(resolve or system_resolve, host, port, limit)
    if not policy.is_local(host, port):
        return found
    admitted = [address for address in found if policy.admits(ipaddress.ip_address(address))]
    if found and not admitted:
        raise policy.far(host, port, found[0])
    return admitted


def system_resolve(host: str, port: int) -> list[str]:
    """Addresses of a host by the system's resolver, in its order of preference."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


async def _in_thread(resolve: Resolve, host: str, port: int, limit: float | None) -> list[str]:
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[str]] = loop.create_future()

    def deliver(found: list[str], error: OSError | None) -> None:
        if answer.done():
            return
        if error is None:
            answer.set_result(found)
        else:
            answer.set_exception(error)

    def work() -> None:
        found: list[str] = []
        failure = None
        try:
            found = list(resolve(host, port))
        except OSError as error:
            failure = error
        except UnicodeError:  # a label that is empty or too long
            failure = OSError("not a host name")
        with suppress(RuntimeError):  # the loop has closed; nobody waits
            loop.call_soon_threadsafe(deliver, found, failure)

    threading.Thread(target=work, name=f"resolve-{host}", daemon=True).start()
    return await asyncio.wait_for(answer, limit)
