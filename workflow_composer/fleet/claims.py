"""Which server of a node has which GPU: servers that start together must not all choose the one that is free just now."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from workflow_composer.errors import FleetError
from workflow_composer.fleet.hardware import Gpu
from workflow_composer.fleet.registry import replace_file


class Claims:
    """The claims on one node's GPUs, in a file beside the fleet's state. A claim ends with its process."""

    def __init__(self, directory: Path, node: str) -> None:
        self._path = directory / f"{node}.gpus"

    def take(self, server: str, gpus: Sequence[Gpu], count: int, need: Callable[[Gpu], float]) -> tuple[Gpu, ...]:
        """Claim the ``count`` GPUs with the most memory left, each with what is left of it. Raises `FleetError`."""
        with self._locked() as claims:
            others = {name: claim for name, claim in claims.items() if name != _mine(server) and _alive(claim)}
            left = [replace(gpu, free=min(gpu.free, int(gpu.total - _claimed(gpu, others)))) for gpu in gpus]
            chosen = tuple(sorted(left, key=lambda gpu: (-gpu.free, gpu.index))[:count])
            mine = {_name(gpu): need(gpu) for gpu in chosen}
            self._write({**others, _mine(server): {"pid": os.getpid(), "gpus": mine}})
        return chosen

    def release(self, server: str) -> None:
        """Give back what the server has claimed."""
        if not self._path.exists():
            return
        with contextlib.suppress(FleetError), self._locked() as claims:
            if _mine(server) in claims:
                self._write({name: claim for name, claim in claims.items() if name != _mine(server)})

    @contextlib.contextmanager
    def _locked(self) -> Iterator[dict[str, Any]]:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._path.with_suffix(".gpus.lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield self._read()
        except OSError as error:
            raise FleetError(
                f"{self._path} cannot be written: {error.strerror}", hint="the fleet's state is kept there"
            ) from error

    def _read(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            data = json.loads(self._path.read_bytes())
            return data if isinstance(data, dict) else {}
        return {}

    def _write(self, claims: dict[str, Any]) -> None:
        replace_file(self._path, json.dumps(claims, indent=1) + "\n")


def _mine(server: str) -> str:
    """The claim's name: a server's successor may start while it drains."""
    return f"{server}#{os.getpid()}"


def _name(gpu: Gpu) -> str:
    return gpu.uuid or str(gpu.index)


def _claimed(gpu: Gpu, claims: dict[str, Any]) -> float:
    return sum(float(claim["gpus"].get(_name(gpu), 0)) for claim in claims.values())


def _alive(claim: Any) -> bool:
    try:
        os.kill(int(claim["pid"]), 0)
    except (ProcessLookupError, KeyError, TypeError, ValueError):
        return False
    except PermissionError:
        return True
    return isinstance(claim.get("gpus"), dict)
