"""Replaces files atomically: a reader sees either the old or the new content, even after a power failure."""

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
def replacing(
    path: Path, *, mode: int | None = None, private: bool = False, follow: bool = True, synced: bool = True
) -> Iterator[BinaryIO]:
    """Yield a new file that replaces ``path`` if the block succeeds and is deleted if it fails.

    File and folder are synced to disk; if not ``synced``, the file may be empty after a power failure. A symbolic link is
    kept and its target replaced; without ``follow`` the link itself is replaced, which is required if others may have
    created the link. ``mode`` sets the permissions regardless of the umask; None keeps those of the replaced file, or uses
    the default, which is 0600 for a ``private`` file. Raises OSError.
    """
    target = Path(os.path.realpath(path)) if follow else path
    if mode is None:
        with suppress(OSError):
            mode = target.stat().st_mode & 0o777
    if mode is None and private:
        mode = 0o600
    beside = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666 if mode is None else 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if mode is not None:
                os.fchmod(descriptor, mode)
            yield file
            file.flush()
            if synced:
                os.fsync(descriptor)
        beside.replace(target)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise
    if synced:
        sync_folder(target.parent)


def replace_file(path: Path, content: str | bytes, *, mode: int | None = None, follow: bool = True) -> None:
    """Replace a file by this content (text as UTF-8), as `replacing` does. Raises OSError."""
    with replacing(path, mode=mode, follow=follow) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def overwrite_file(path: Path, content: str) -> None:
    """Overwrite a small file of text in its own blocks, which a full disk and an exhausted quota allow. Raises OSError.

    Shorter text is filled up with spaces before its line end. Not atomic: a reader may see parts of both contents.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        data = content.encode()
        missing = os.fstat(descriptor).st_size - len(data)
        data = data.removesuffix(b"\n") + b" " * missing + b"\n" if missing > 0 else data
        if os.pwrite(descriptor, data, 0) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_full(error: OSError) -> bool:
    """Whether a disk is full or a quota is used up."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def set_aside(path: Path, name: str) -> None:
    """Rename a file within its folder, replacing any file of that name. Raises OSError."""
    path.replace(path.with_name(name))


def try_to_write(folder: Path) -> None:
    """Write 4 KiB to a temporary file in the folder, to test that it is writable. Raises OSError if not."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(4096))
        file.flush()


def sync_file(descriptor: int) -> None:
    """Sync a file's data to disk. Raises OSError."""
    os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Sync a folder to disk, so that created and renamed files persist. Ignores file systems that cannot. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(descriptor)
