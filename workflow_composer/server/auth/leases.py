"""What running workers have set aside of the budgets of keys: a record per key and worker, in a file beside the ledger.

A worker keeps a lock on its column for as long as it runs. What a worker that has ended had set aside therefore counts for
nothing, however it ended, and nobody has to clean up. A record changes only under the lock of its key in the ledger.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from workflow_composer.storage.locks import RangeLocks

MOST_WORKERS = 64
_LEASE = struct.Struct("<ddI4x")
"""Dollars and tokens that are set aside; requests in progress."""
_ROW = MOST_WORKERS * _LEASE.size
_ALIVE = 1 << 40
"""Place of the locks of the columns, far behind the records."""


class Leases:
    """The columns of all workers, by the number of a key's record in the ledger."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._locks = RangeLocks(path)
        self._column = self._claim()

    def _claim(self) -> int:
        """Take a free column, and clear what its last owner left in it. Raises OSError if there is none."""
        for column in range(MOST_WORKERS):
            if self._locks.keep(_ALIVE + column):
                size = os.fstat(self._locks.descriptor).st_size
                for start in range(column * _LEASE.size, size, _ROW):
                    os.pwrite(self._locks.descriptor, bytes(_LEASE.size), start)
                return column
        raise OSError(f"{self._path} has no room for more than {MOST_WORKERS} processes")

    def others(self, row: int) -> tuple[float, float, int]:
        """Return the dollars and tokens that other running workers have set aside for a key, and its requests there."""
        found = os.pread(self._locks.descriptor, _ROW, row * _ROW)
        dollars, tokens, requests = 0.0, 0.0, 0
        if not any(found):
            return dollars, tokens, requests
        whole = len(found) // _LEASE.size * _LEASE.size
        for column, (some, more, running) in enumerate(_LEASE.iter_unpack(found[:whole])):
            if (some > 0.0 or more > 0.0 or running) and column != self._column and self._locks.is_kept(_ALIVE + column):
                dollars += max(some, 0.0)
                tokens += max(more, 0.0)
                requests += running
        return dollars, tokens, requests

    def put(self, row: int, dollars: float, tokens: float, requests: int) -> None:
        """Set aside this much, in all, for a key. Raises OSError."""
        os.pwrite(self._locks.descriptor, _LEASE.pack(dollars, tokens, requests), row * _ROW + self._column * _LEASE.size)

    @property
    def replaced(self) -> bool:
        """Whether the file has been removed or replaced, so that other workers use another one."""
        return is_replaced(self._path, self._locks.descriptor)

    def close(self) -> None:
        """Give up the column."""
        self._locks.close()


def is_replaced(path: Path, descriptor: int) -> bool:
    """Whether the file at ``path`` is no longer the one that is open."""
    here = os.fstat(descriptor)
    try:
        there = path.stat()
    except OSError:
        return True
    return (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino)
