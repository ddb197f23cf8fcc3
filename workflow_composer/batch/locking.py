"""Files that one run at a time appends to: what to say where one cannot be opened or written.

``other`` is what a user may name to write elsewhere: "another --output", say.
"""

from __future__ import annotations

import errno
from pathlib import Path

from workflow_composer.errors import InputError, WorkflowComposerError
from workflow_composer.storage.appending import OwnFile


def open_own(path: Path, *, other: str) -> OwnFile:
    """Open and lock the file. Raises `InputError` where another run holds it, and as `unwritable` says."""
    try:
        return OwnFile.open(path)
    except TimeoutError:
        hint = "wait for it or stop it; then run this again, and it goes on there"
        raise InputError(f"another run is writing to {path}", hint=hint) from None
    except OSError as error:
        raise unwritable(path, error, other=other) from error


def unwritable(path: Path, error: OSError, *, other: str) -> WorkflowComposerError:
    """The error for a file that cannot be written, with the remedy for its cause."""
    odd = (errno.EISDIR, errno.ENOENT, errno.EACCES, errno.EROFS, errno.EINVAL)
    kind = InputError if error.errno in odd else WorkflowComposerError
    hints = {
        errno.EISDIR: f"name {other}, or a file in it",
        errno.EINVAL: f"name {other}",
        errno.ENOENT: "make its folder first",
        errno.ENOLCK: f"name {other} on another file system",
        errno.ENOSYS: f"name {other} on another file system",
        errno.EACCES: f"allow this user to write it, or name {other}",
    }
    again = "make room; then run the same command again, and it goes on where it stopped: nothing is lost"
    return kind(f"cannot write {path}: {error.strerror or error}", hint=hints.get(error.errno or 0, again))
