"""GPU leases of a node: servers that start at the same time must not all choose the same free GPU."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from workflow_composer.errors import FleetError
from workflow_composer.fleet.launch.hardware import Gpu
from workflow_composer.fleet.state import remedy
from workflow_composer.storage.locks import WAIT, locked
from workflow_composer.storage.replacing import replace_file
from workflow_composer.storage.saved import read_saved, value_of


@dataclass(frozen=True, slots=True)
class Claim:
    """GPU memory that a process will use: bytes by GPU name."""

    pid: int
    gpus: dict[str, float]


class Claims:
    """The leases of one node's GPUs, in a file beside the fleet's state. A lease ends with its process."""

    def __init__(self, directory: Path, node: str, *, wait: float = WAIT) -> None:
        self._path = directory / f"{node}.gpus"
        self._wait = wait

    def take(self, server: str, gpus: Sequence[Gpu], count: int, need: Callable[[Gpu], float]) -> tuple[Gpu, ...]:
        """Lease the ``count`` GPUs with the most free memory; their ``free`` excludes leased memory. Raises `FleetError`."""
        with self._locked() as claims:
            others = {name: claim for name, claim in claims.items() if name != _mine(server) and _alive(claim)}
            left = [replace(gpu, free=min(gpu.free, int(gpu.total - _claimed(gpu, others)))) for gpu in gpus]
            chosen = tuple(sorted(left, key=lambda gpu: (-gpu.free, gpu.index))[:count])
            mine = {_name(gpu): need(gpu) for gpu in chosen}
            self._write({**others, _mine(server): Claim(os.getpid(), mine)})
        return chosen

    def release(self, server: str) -> None:
        """Release the server's GPUs."""
        if not self._path.exists():
            return
        with contextlib.suppress(FleetError), self._locked() as claims:
            if _mine(server) in claims:
                self._write({name: claim for name, claim in claims.items() if name != _mine(server)})

    @contextlib.contextmanager
    def _locked(self) -> Iterator[dict[str, Claim]]:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with locked(self._path, wait=self._wait):
                yield self._read()
        except OSError as error:
            hint = remedy(error, "the fleet keeps its state there; set `state` in the fleet file to a writable folder")
            raise FleetError(f"{self._path} cannot be written: {error.strerror}", hint=hint) from error

    def _read(self) -> dict[str, Claim]:
        """Read the leases; a damaged one is skipped, the others are kept."""
        found: dict[str, Claim] = {}
        with contextlib.suppress(OSError, ValueError):
            for name, item in read_saved(dict[str, Any], self._path.read_bytes()).items():
                with contextlib.suppress(ValueError):
                    found[name] = value_of(Claim, item)
        return found

    def _write(self, claims: dict[str, Claim]) -> None:
        text = json.dumps({name: asdict(claim) for name, claim in claims.items()}, indent=1)
        replace_file(self._path, text + "\n", mode=0o644)


def _mine(server: str) -> str:
    """The lease's name, with the process id: a server's successor may start while the old one drains."""
    return f"{server}#{os.getpid()}"


def _name(gpu: Gpu) -> str:
    return gpu.uuid or str(gpu.index)


def _claimed(gpu: Gpu, claims: dict[str, Claim]) -> float:
    return sum(claim.gpus.get(_name(gpu), 0.0) for claim in claims.values())


def _alive(claim: Claim) -> bool:
    """Whether the lease's process still runs; an invalid lease does not count."""
    if claim.pid <= 0 or not all(map(math.isfinite, claim.gpus.values())):
        return False
    try:
        os.kill(claim.pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
