"""This machine: folders, rights, locks, space, clocks, proxies, limits, and versions of libraries."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
import resource
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from workflow_composer.backends.http.proxied import is_bypassed
from workflow_composer.config.own_machines import own_users, user_name
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.metrics.sink import metrics_file
from workflow_composer.runtime.doctor.clocks import REMEDY, TOLERATED, apart
from workflow_composer.runtime.doctor.finding import Finding, Level
from workflow_composer.storage.locks import FileLock
from workflow_composer.support.installing import install_library
from workflow_composer.support.places import state_folder

DISTRIBUTION = "workflow-composer"
LITTLE_SPACE = 200 * 2**20
"""Bytes below which a disk counts as nearly full."""
FEW_FILES = 1024
"""Limit of open files below which a service runs out of them: each request under way needs up to two."""


def check_machine(environ: Mapping[str, str], config: StrategyConfig | None) -> Iterator[Finding]:
    """Report what is wrong with this machine, whatever the profile says. Blocks; writes a file of a few bytes."""
    for folder in _folders(environ, None if config is None else config.logs):
        yield from check_folder(folder)
    if (file := metrics_file(environ, None if config is None else config.logs)) is not None:
        yield from check_private(file)
    if config is not None and config.source:
        yield from check_rights(Path(config.source))
    yield from check_proxies(environ)
    yield from check_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield from check_versions(extras_of(config))


# --------------------------------------------------------------------------------------------------------------- folders


def _folders(environ: Mapping[str, str], logs: str | None) -> list[Path]:
    """Return the folders that are written to: the state's, and that of the metrics."""
    file = metrics_file(environ, logs)
    return list(dict.fromkeys([state_folder(environ), *([file.absolute().parent] if file is not None else [])]))


def check_folder(folder: Path) -> Iterator[Finding]:
    """Report a folder without rights, locks or space, or whose file server has another time."""
    place = next(one for one in (folder, *folder.parents) if one.exists())
    probe = place / f".doctor-{os.getpid()}.lock"
    before = time.time()
    try:
        with FileLock(probe, mode=0o600).take(1.0):
            written = _touched(probe)
    except OSError as error:
        locks = "has no locks" in str(error.strerror)
        kind = "no-locks" if locks else "not-writable"
        said = error.strerror or type(error).__name__
        what, _, how = said.partition("; ") if locks else (f"{place} cannot be written to: {said}", "", "")
        yield Finding("error", kind, str(folder), what, how or f"check its owner and rights: ls -ld {place}")
        return
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    if abs(ahead := written - (before + time.time()) / 2) > TOLERATED:
        problem = f"the clock of the file server of {place} is {apart(ahead)} this machine's"
        yield Finding("warning", "clock", str(folder), problem, REMEDY)
    if (free := shutil.disk_usage(place).free) < LITTLE_SPACE:
        problem = f"only {free / 2**20:.0f} MiB are free for journals, metrics and state"
        yield Finding("warning", "disk-full", str(folder), problem, f"make room: du -xh --max-depth=1 {place} | sort -h")
    if place.stat().st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH:
        problem = f"any user may write to {place}, and replace what is kept there"
        yield Finding("warning", "rights", str(folder), problem, f"chmod o-w {place}")


def _touched(path: Path) -> float:
    """Let the file system set the file's time, and return it in seconds since 1970."""
    os.utime(path)
    return path.stat().st_mtime


def check_private(metrics: Path) -> Iterator[Finding]:
    """Report a metrics file that others may read: it can hold prompts (`debug_routing`), and who asked when."""
    try:
        mode = metrics.stat().st_mode
    except OSError:
        return
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        problem = "any user may read the metrics, which hold prompts if debug_routing is on"
        yield Finding("warning", "rights", str(metrics), problem, f"chmod o-rwx {metrics}")


def check_rights(profile: Path) -> Iterator[Finding]:
    """Report a profile that others can change: whoever does so redirects prompts."""
    try:
        found = profile.stat()
    except OSError:
        return
    if found.st_mode & stat.S_IWOTH:
        yield Finding(
            "error", "rights", str(profile), "any user may change the profile, and redirect prompts", f"chmod o-w {profile}"
        )
    elif found.st_uid not in own_users():
        problem = f"the profile belongs to {user_name(found.st_uid)}, who may change where prompts go"
        yield Finding("warning", "rights", str(profile), problem, "copy it, if you do not trust its owner with your prompts")
    elif found.st_mode & stat.S_IWGRP and found.st_gid != os.getegid():
        problem = "users of its group may change the profile, and redirect prompts"
        yield Finding("warning", "rights", str(profile), problem, f"chmod g-w {profile}")


# ----------------------------------------------------------------------------------------------------------- environment


def check_proxies(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Report a proxy that other clients of one's own servers would use. This package never does."""
    variable = next((name for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY") if environ.get(name)), None)
    if variable and not is_bypassed("localhost:8000", environ):
        problem = f"{variable} is set, and NO_PROXY does not exclude localhost: curl and other clients miss your own servers"
        how = "export NO_PROXY=localhost,127.0.0.1,::1 (this program uses no proxy for your own servers)"
        yield Finding("warning", "proxy", variable, problem, how)


def check_files(limit: int) -> Iterator[Finding]:
    """Report a low limit of open files."""
    if 0 <= limit < FEW_FILES:
        problem = f"this process may open {limit} files, too few for a service with hundreds of requests"
        yield Finding("warning", "open-files", "ulimit -n", problem, f"raise it before the start: ulimit -n {8 * FEW_FILES}")


# ------------------------------------------------------------------------------------------------------------- libraries


def extras_of(config: StrategyConfig | None) -> set[str]:
    """Return the extras that a profile needs."""
    needed = set()
    if config is not None and any(spec.backend == "embedded" for spec in config.models.values()):
        needed.add("embedded")
    return needed


_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)\s*(?:\[[^\]]*\])?\s*([^;]*?)\s*(?:;\s*(.*))?")
_EXTRA = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")
_BOUND = re.compile(r"(>=|<=|==|!=|<|>|~=)\s*([0-9][^\s,]*)")


def check_versions(needed: Iterable[str], requirements: Iterable[str] | None = None) -> Iterator[Finding]:
    """Compare the installed libraries with the package's bounds: the required ones, the ``needed`` extras', and others'."""
    if requirements is None:
        try:
            requirements = importlib.metadata.requires(DISTRIBUTION) or ()
        except importlib.metadata.PackageNotFoundError:  # run from its folder, without being installed
            return
    seen = set()
    for line in requirements:
        found = _REQUIREMENT.fullmatch(line.strip())
        if found is None or (found[1], found[2]) in seen:
            continue
        seen.add((found[1], found[2]))
        extra = _EXTRA.search(found[3] or "")
        if extra is None and found[3] and "sys_platform" in found[3]:
            continue
        if extra is None or extra[1] != "dev":
            yield from _of_library(found[1], found[2], extra[1] if extra else "", set(needed))


def _of_library(name: str, bounds: str, extra: str, needed: set[str]) -> Iterator[Finding]:
    wanted = not extra or extra in needed
    install = install_library(f"{name}{bounds}")
    where = f"the extra {extra}" if extra else "the package"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        if wanted:
            yield Finding("error", "library-missing", where, f"{name} is not installed, but needed", install)
        return
    if not within(version, bounds):
        level: Level = "error" if wanted else "warning"
        yield Finding(level, "library-version", where, f"{name} is {version}, but {bounds} is needed", install)


def within(version: str, bounds: str) -> bool:
    """Whether a version is within bounds such as ``>=1.2,<3``; suffixes of a version are not compared.

    >>> within("2.10.1", ">=2.7,<3"), within("3.0", ">=2.7,<3"), within("0.2.0rc1", ">=0.2")
    (True, False, True)
    """
    compare = {
        ">=": lambda a, b: a >= b,
        "<=": lambda a, b: a <= b,
        "==": lambda a, b: a == b,
        "!=": lambda a, b: a != b,
        "<": lambda a, b: a < b,
        ">": lambda a, b: a > b,
        "~=": lambda a, b: a >= b,
    }
    return all(compare[sign](_release(version), _release(bound)) for sign, bound in _BOUND.findall(bounds))


def _release(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, without zeros at the end."""
    numbers = [int(part) for part in re.match(r"\d+(?:\.\d+)*", version)[0].split(".")] if version[:1].isdigit() else []  # type: ignore[index]  # it begins with a digit
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)
