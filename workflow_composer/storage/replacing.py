"""Replacing a file: a reader sees the old or the new content at any time, also when the machine loses power meanwhile."""

from __future__ import annotations

import errno
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path, *, mode: int | None = None, follow: bool = True) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of ``path`` when the block ends well, and is gone when it does not.

    File and folder are put on the disk first. A symbolic link stays, and the file that it names is replaced; without
    ``follow`` the link itself is, as it must be where others may have put it there. ``mode``: its permissions, whatever
    the umask; None: those of the file that it replaces, else the usual ones. Raises OSError.
    """
    target = Path(os.path.realpath(path)) if follow else path
    if mode is None:
        with suppress(OSError):
            mode = target.stat().st_mode & 0o777
    beside = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666 if mode is None else 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if mode is not None:
                os.fchmod(descriptor, mode)
            yield file
            file.flush()
            os.fsync(descriptor)
        beside.replace(target)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise
    sync_folder(target.parent)


def replace_file(path: Path, content: str | bytes, *, mode: int | None = None, follow: bool = True) -> None:
    """Write a whole file so (UTF-8). Raises OSError."""
    with replacing(path, mode=mode, follow=follow) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def set_aside(path: Path, name: str) -> None:
    """Give a file another name in its folder, in place of what has that name. Raises OSError."""
    path.replace(path.with_name(name))


def try_to_write(folder: Path) -> None:
    """Write a page to a file of the folder that nobody sees and that is gone afterwards. Raises OSError where that fails."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(4096))
        file.flush()


def sync_file(descriptor: int) -> None:
    """Put what was written to a descriptor on the disk. Raises OSError."""
    os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Put on the disk that a file was made or renamed. Raises OSError, but not where folders cannot be synchronised."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(descriptor)
