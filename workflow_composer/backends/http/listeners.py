"""Who listens on a port of this machine: on a shared one, another user's server may have taken a free port.

Linux knows the owner of every TCP socket, and says it through netlink or, where a container forbids that, in tables of all
sockets. Elsewhere nothing is known, and nothing is refused.
"""

from __future__ import annotations

import re
import socket
import struct
from ipaddress import ip_address
from pathlib import Path

TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LISTENS = b"0A"
_MAPPED = bytes(10) + b"\xff\xff"
"""Start of an IPv4 address in an IPv6 socket."""
_ROW = rb"^ *\d+: ([0-9A-F]+):%04X [0-9A-F]+:([0-9A-F]{4}) ([0-9A-F]{2}) \S+ \S+ \S+ +(\d+) +\d+ (\d+) "


def is_this_machine(address: str, own: str) -> bool:
    """Whether a connection from ``own`` to ``address`` stays on this machine."""
    return address == own or address.startswith("127.") or address == "::1"


_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, _ANY_COOKIE = 4, 20, 0xFFFFFFFF
_LISTENING = 10


def owner(address: str, port: int, own: str, own_port: int) -> int | None:
    """Return the user whose server has a connection from ``own`` to ``address``, as `owners` does; None if unknown.

    Asks the kernel for two sockets only, which takes microseconds however many there are.
    """
    nowhere = "::" if ":" in address else "0.0.0.0"  # noqa: S104  # no address to listen on
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as asking:
            asking.settimeout(1.0)
            state, user, inode = _asked(asking, (address, port), (own, own_port))
            if state == _LISTENING or inode:
                return user
            return _asked(asking, (address, port), (nowhere, 0))[1]
    except (OSError, AttributeError, ValueError, struct.error):  # another system, or not allowed here
        return None


def _asked(asking: socket.socket, local: tuple[str, int], far: tuple[str, int]) -> tuple[int, int, int]:
    """Return state, user and inode of one TCP socket. Raises OSError if there is none."""
    family = socket.AF_INET6 if ":" in local[0] else socket.AF_INET
    ends = b"".join(socket.inet_pton(family, end[0].partition("%")[0]).ljust(16, b"\0") for end in (local, far))
    name = struct.pack("!HH", local[1], far[1]) + ends + struct.pack("=III", 0, _ANY_COOKIE, _ANY_COOKIE)
    question = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF) + name
    asking.send(struct.pack("=IHHII", 16 + len(question), _SOCK_DIAG_BY_FAMILY, 1, 1, 0) + question)
    answer = asking.recv(4096)
    if struct.unpack_from("=H", answer, 4)[0] != _SOCK_DIAG_BY_FAMILY:
        raise OSError(-struct.unpack_from("=i", answer, 16)[0], "no such socket")
    return (answer[17], *struct.unpack_from("=II", answer, 80))


def owners(address: str, port: int, own_port: int) -> set[int]:
    """Return the users whose server may have taken a connection from ``own_port`` to ``port`` of this machine.

    That is the owner of the socket that has accepted it; before that, of the sockets that listen there. Empty if unknown.
    Blocks while it reads the tables of sockets.
    """
    listening: list[set[int]] = []
    for table in TABLES:
        here = set()
        for local, far_port, state, user, inode in _rows(table, port):
            if state == _LISTENS:
                if _takes(_packed(local), address):
                    here.add(int(user))
            elif int(far_port, 16) == own_port and inode != b"0":
                return {int(user)}
        listening.append(here)
    # A socket for IPv6 takes a connection to an IPv4 address only if none for IPv4 does.
    return next((found for found in (listening[::-1] if ":" in address else listening) if found), set())


def _rows(table: Path, port: int) -> list[tuple[bytes, ...]]:
    try:
        return re.findall(_ROW % port, table.read_bytes(), re.MULTILINE)
    except OSError:
        return []


def _packed(written: bytes) -> bytes:
    """Return the bytes of an address; the kernel writes its 32-bit words as numbers of the machine."""
    return b"".join(struct.pack("=I", int(written[start : start + 8], 16)) for start in range(0, len(written), 8))


def _takes(bound: bytes, address: str) -> bool:
    """Whether a socket bound to this address takes connections to ``address``."""
    wanted = ip_address(address.partition("%")[0])
    if wanted.version == 4:
        bound = bound.removeprefix(_MAPPED)
    return not any(bound) or bound == wanted.packed
