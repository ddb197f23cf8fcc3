"""A fleet in a folder of its own, whose vLLM is a fake, and the care that nothing of it outlives a test."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.fleet.fake_vllm import install
from workflow_composer.fleet.file import Fleet, load_fleet

LIMIT = 30.0


def free_port() -> int:
    """A port on which nothing listens just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def until(condition: Any, what: str, seconds: float = LIMIT) -> Any:
    """Wait for a condition; its value."""
    ends = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < ends, f"not within {seconds} s: {what}"
        time.sleep(0.02)
    return found


class Folder:
    """A fleet's folder: its file, its environment, and the processes of its servers."""

    def __init__(self, path: Path, environ: dict[str, str]) -> None:
        self.path = path
        self.environ = environ
        self.port = free_port()
        self.model = path / "model"
        self.model.mkdir()
        (self.model / "config.json").write_text("{}")

    @property
    def engine_file(self) -> Path:
        return self.path / "engine"

    @property
    def processes(self) -> list[int]:
        """The numbers of vLLM's two processes, once they are known."""
        return [int(word) for word in self.engine_file.read_text().split()] if self.engine_file.exists() else []

    def write(self, roles: dict[str, dict[str, Any]] | None = None, **settings: Any) -> Path:
        """Write the fleet file; by default one role ``small``. ``settings`` are further keys of the file."""
        usual = {"model": "./model", "port": self.port, "drain_seconds": 0.3, "start_seconds": LIMIT}
        roles = {"small": {}} if roles is None else roles
        tree = {
            "state": "state",
            "registry": "registry",
            "logs": str(self.path / "logs"),
            "python": sys.executable,
            "roles": {name: usual | role for name, role in roles.items()},
            **settings,
        }
        file = self.path / "fleet.yaml"
        file.write_text(yaml.safe_dump(tree, sort_keys=False))
        return file

    def fleet(self, roles: dict[str, dict[str, Any]] | None = None, **settings: Any) -> Fleet:
        """Write the file and load it."""
        return load_fleet(self.write(roles, **settings), self.environ)

    def end(self) -> None:
        """End what a failed test has left running: supervisors first, vLLM's processes where they are left."""
        for lock in self.path.glob("state/*.run"):
            with contextlib.suppress(ValueError, ProcessLookupError, OSError):
                pid = int(lock.read_text().strip("[]").split(",")[0])
                if pid != os.getpid() and b"fleet" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
        for pid in self.processes:
            with contextlib.suppress(ProcessLookupError, OSError):
                if str(self.path).encode() in Path(f"/proc/{pid}/environ").read_bytes():
                    os.kill(pid, signal.SIGKILL)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    """A fleet whose vLLM is a fake for the CPU."""
    package = install(tmp_path / "packages")
    path = tmp_path / "fleet"
    path.mkdir()
    environ = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environ |= {"PYTHONPATH": str(package), "FAKE_VLLM_ENGINE": str(path / "engine"), "PYTHONDONTWRITEBYTECODE": "1"}
    found = Folder(path, environ)
    yield found
    found.end()


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system in memory, of the size that it is given; skips where none can be mounted."""
    places: list[Path] = []

    def mount(size: str) -> Path:
        place = tmp_path / f"disk{len(places)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=777", "tmpfs", str(place)]
        if os.getuid() or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a file system needs root's rights")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def small_disk(mount: Callable[[str], Path]) -> Path:
    """A file system of one mebibyte."""
    return mount("1m")
