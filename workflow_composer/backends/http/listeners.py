"""Who listens on a port of this machine: on a shared one, another user's server may have taken a free port.

Linux lists every TCP socket with its owner. Elsewhere nothing is known, and nothing is refused.
"""

from __future__ import annotations

import re
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
