"""Whether the fleet can write to the folders of its registry, state and logs: a full disk, a used-up quota."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING

from workflow_composer.storage.replacing import is_full, try_to_write

if TYPE_CHECKING:
    from workflow_composer.fleet.file import Fleet

_READ_ONLY = errno.EROFS


def disk_faults(fleet: Fleet) -> Iterator[str]:
    """Yield a line for each of the fleet's folders to which nothing can be added."""
    lost = {
        "registry": "running servers keep their entries, but none can be started",
        "state": "servers keep running, but none can be started or restarted",
        "logs": "servers keep running, but lines of their logs are lost, and none can be started",
    }
    folders = {"registry": fleet.registry.directory, "state": fleet.states.directory, "logs": fleet.logs}
    for name, folder in folders.items():
        try:
            if folder.is_dir():
                try_to_write(folder)
        except OSError as error:
            if is_full(error) or error.errno == _READ_ONLY:
                yield f"{folder} ({name}): {str(error.strerror).lower()}; {lost[name]}: free some space there"
