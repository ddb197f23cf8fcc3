"""What counts as one's own: networks near this machine, and the users of this machine whose servers may get prompts."""

from __future__ import annotations

import ipaddress
import os
import pwd
from collections.abc import Iterable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

ROOT = 0

# Not `ipaddress.is_private`, which includes documentation, benchmarking and 6to4 ranges that are routed globally.
NEAR: tuple[Network, ...] = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/32",  # "this host"
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",  # shared address space (carrier-grade NAT, overlay networks)
        "::/128",
        "::1/128",
        "fc00::/7",  # unique local
    )
)

METADATA: frozenset[Address] = frozenset(
    ipaddress.ip_address(address)
    for address in (
        "169.254.169.254",  # AWS, Azure, Google, OpenStack and most others
        "169.254.170.2",  # AWS: credentials of a container
        "169.254.170.23",  # AWS: credentials of a pod
        "169.254.0.23",  # Tencent
        "100.100.100.200",  # Alibaba, within the shared address space
        "168.63.129.16",  # Azure: the host's agent
        "192.0.0.192",  # Oracle
        "fd00:ec2::254",  # AWS, within the unique local addresses
        "fd00:ec2::23",  # AWS: credentials of a pod
        "fd20:ce::254",  # Google
        "fe80::a9fe:a9fe",  # OpenStack
    )
)
"""Addresses at which a cloud gives credentials to its machines: never a model server."""


def is_metadata(address: Address) -> bool:
    """Whether a cloud's metadata service has this address, with or without an interface (``fe80::a9fe:a9fe%eth0``)."""
    return ipaddress.ip_address(str(address).partition("%")[0]) in METADATA


def is_near(address: Address) -> bool:
    """Whether this is a loopback, private, shared or unique local address.

    Link-local addresses are not near: anybody on the same cable can have one, and clouds put their metadata service there.

    >>> is_near(ipaddress.ip_address("10.0.0.7")), is_near(ipaddress.ip_address("169.254.1.1"))
    (True, False)
    """
    return any(address in network for network in NEAR) and not is_metadata(address)


def user_id(name: str) -> int | None:
    """Return the number of a user of this machine, given by name or number; None if there is no such user."""
    if name.isdecimal():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except (KeyError, ValueError):
        return None


def user_name(number: int) -> str:
    """Return the name of a user of this machine, or ``uid NUMBER`` without one."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"uid {number}"


def own_users(named: Iterable[str] = ()) -> frozenset[int]:
    """Return the numbers of this user, of root, and of the users in ``named``; unknown ones are passed over."""
    found = (user_id(name) for name in named)
    return frozenset({os.geteuid(), ROOT, *(number for number in found if number is not None)})
