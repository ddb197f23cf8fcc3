"""Which errors mean that this process or this machine has run out of something, whatever it was doing."""

from __future__ import annotations

import errno
import os
import socket

_LACKING = {
    errno.EMFILE: "this process has no file descriptor left",
    errno.ENFILE: "this machine has no file descriptor left",
    errno.ENOMEM: "no memory is left",
    errno.ENOBUFS: "the system has no buffer left",
    errno.EADDRNOTAVAIL: "no local port or address is left for the connection",
}
_NO_THREAD = "can't start new thread"


def lacking(error: BaseException) -> str:
    """Return what this process lacks, as a clause; empty if the error has another cause.

    A name that cannot be looked up may be the sign of missing descriptors: the system's resolver reports both alike.
    """
    if isinstance(error, socket.gaierror):
        return _cannot_open()
    if isinstance(error, OSError):
        return _LACKING.get(error.errno or 0, "")
    if isinstance(error, MemoryError):
        return _LACKING[errno.ENOMEM]
    return "no further thread can be started" if isinstance(error, RuntimeError) and _NO_THREAD in str(error) else ""


def without_network(error: BaseException) -> bool:
    """Whether a connection failed before any server was contacted: its name was not found, or the network is down."""
    if isinstance(error, socket.gaierror):
        return True
    return isinstance(error, OSError) and error.errno in (errno.ENETDOWN, errno.ENETUNREACH)


def _cannot_open() -> str:
    """Return why no file can be opened now; empty if one can."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return _LACKING.get(error.errno or 0, "")
    return ""
