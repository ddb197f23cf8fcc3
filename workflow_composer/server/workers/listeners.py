"""The listening sockets of the service: one per worker, all with the same address.

The kernel distributes connections evenly over sockets with a shared address (``SO_REUSEPORT``) and wakes only one worker.
With a single socket, the first worker to wake takes all pending connections: of 64 connections, one of two workers got none.
The supervisor keeps every socket open, so that the successor of a dead worker accepts its pending connections. On systems
without ``SO_REUSEPORT``, all workers accept from one socket.
"""

from __future__ import annotations

import errno
import json
import socket

from workflow_composer.errors import ConfigError
from workflow_composer.server.settings import ServerSettings

BACKLOG = 1024


def listen(host: str, port: int, shares: int = 1) -> list[socket.socket]:
    """Return listening sockets for ``shares`` workers. Raises `ConfigError` if the address is unavailable."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"cannot resolve the listening address {host!r}: {error}") from None
    place = (family, kind, protocol)
    try:
        if shares == 1 or not hasattr(socket, "SO_REUSEPORT"):
            return [_listening(place, address, shared=False)] * shares
        _bound(place, address, shared=False).close()  # fails for a port in use, which SO_REUSEPORT would silently share
        found = [_listening(place, address, shared=True)]
        try:
            address = (address[0], found[0].getsockname()[1], *address[2:])
            while len(found) < shares:
                found.append(_listening(place, address, shared=True))
        except BaseException:
            close(found)
            raise
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        hint = "the port is in use; choose another --port" if taken else "choose another address"
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}", hint=hint) from None
    return found


def close(sockets: list[socket.socket]) -> None:
    """Close the sockets."""
    for sock in sockets:
        sock.close()


Place = tuple[int, int, int]
Address = tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]


def _bound(place: Place, address: Address, *, shared: bool) -> socket.socket:
    sock = socket.socket(*place)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


def _listening(place: Place, address: Address, *, shared: bool) -> socket.socket:
    sock = _bound(place, address, shared=shared)
    sock.listen(BACKLOG)
    sock.setblocking(False)
    return sock


def announce(settings: ServerSettings, listening: socket.socket, strategy: str) -> None:
    """Print the URL of the service."""
    port = listening.getsockname()[1]
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{port}"
    if settings.json:
        print(json.dumps({"event": "serving", "url": url, "strategy": strategy, "workers": settings.workers}), flush=True)
    else:
        print(f"serving {strategy} at {url}/v1 (dashboard: {url}/dashboard); press Ctrl-C to stop", flush=True)
