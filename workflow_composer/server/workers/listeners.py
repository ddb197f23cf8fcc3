"""The sockets that the service listens on: one for each worker, of one address.

The kernel spreads connections over sockets that share an address (``SO_REUSEPORT``), evenly and without waking anybody in
vain. With a single socket that all workers accept from, whichever wakes first takes what waits: of 64 connections one worker
of two got none. The supervisor holds every socket open, so that what waits for a worker that died is taken by its successor.
Where the system cannot share an address so, all workers accept from one socket.
"""

from __future__ import annotations

import errno
import json
import socket

from workflow_composer.errors import ConfigError
from workflow_composer.server.settings import ServerSettings

BACKLOG = 1024


def listen(host: str, port: int, shares: int = 1) -> list[socket.socket]:
    """Listening sockets for so many workers. Raises `ConfigError` where the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"there is no address {host!r} to listen on: {error}") from None
    place = (family, kind, protocol)
    try:
        if shares == 1 or not hasattr(socket, "SO_REUSEPORT"):
            return [_listening(place, address, shared=False)] * shares
        _bound(place, address, shared=False).close()  # a port that something else shares already would be shared with it
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
        hint = "something listens there already; choose another --port" if taken else "choose another address"
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}", hint=hint) from None
    return found


def close(sockets: list[socket.socket]) -> None:
    """Listen no longer."""
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
    """Tell whoever started the service where it is."""
    port = listening.getsockname()[1]
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{port}"
    if settings.json:
        print(json.dumps({"event": "serving", "url": url, "strategy": strategy, "workers": settings.workers}), flush=True)
    else:
        print(f"serving {strategy} at {url}/v1 (dashboard: {url}/dashboard); Ctrl-C ends it", flush=True)
