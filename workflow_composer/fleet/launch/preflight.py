"""Preflight checks before vLLM is started: port, memory, disk, model. Each fault is one line with its remedy."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from workflow_composer.fleet.launch.hardware import GIGA, Gpu, Hardware
from workflow_composer.fleet.monitor.observers import Api
from workflow_composer.fleet.settings import RoleSpec
from workflow_composer.storage.replacing import try_to_write

LEAST_DISK = 32 * 1024 * 1024
"""Free bytes required in the log folder: enough for hours of a server's normal log."""
VLLM_SHARE = 0.92
"""vLLM's default of ``--gpu-memory-utilization``."""


def faults(
    role: RoleSpec,
    *,
    port: int,
    listen: str,
    hardware: Hardware,
    gpus: Sequence[Gpu],
    logs: Path,
    environ: Mapping[str, str],
) -> Iterator[str]:
    """Yield everything that prevents the role from starting here, one line each."""
    for fault in (
        port_fault(listen, port),
        memory_fault(role, hardware, gpus),
        disk_fault(logs),
        model_fault(role, environ),
    ):
        if fault:
            yield fault


# ------------------------------------------------------------------------------------------------------------------ port


def port_fault(listen: str, port: int) -> str | None:
    """Return why the port cannot be used, with the process that uses it if known; None if it is free."""
    try:
        try_to_listen(listen, port)
    except socket.gaierror:
        return f"this machine has no address {listen}; `listen` in the fleet file names one"
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return f"port {port} is in use: {_who(listen, port)}; stop it or choose another port"
        if error.errno == errno.EADDRNOTAVAIL:
            return f"this machine has no address {listen}; `listen` in the fleet file names one"
        return f"cannot listen on port {port}: {os.strerror(error.errno or 0)}; choose a port above 1023"
    return None


def try_to_listen(listen: str, port: int) -> None:
    """Raises OSError where no server can listen there, and `socket.gaierror` for an address that is none."""
    with socket.socket(socket.AF_INET6 if ":" in listen else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((listen, port))
        probe.listen(1)  # vLLM binds with SO_REUSEPORT, with which two servers may share a port; this one may not


def reachable(listen: str) -> str:
    """The address at which this machine reaches a server that listens on ``listen``."""
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(listen, listen)  # noqa: S104  # looked up, not bound


def is_loopback(listen: str) -> bool:
    """Whether only this machine reaches a server that listens on this address."""
    return listen in {"localhost", "::1"} or listen.startswith("127.")


def _who(listen: str, port: int) -> str:
    models = Api(reachable(listen), port).models(timeout=2)
    process = _listener(port)
    by = f" (process {process[0]}, {process[1]})" if process else ""
    if models is not None:
        return f"a server there serves {', '.join(models)[:200] or 'no model'}{by}"
    return f"process {process[0]} ({process[1]}) listens on it" if process else "another process listens on it"


def _listener(port: int) -> tuple[int, str] | None:
    """The id and name of the process that listens on a port; None if it belongs to another user."""
    inodes = {inode for inode in _inodes(port) if inode != "0"}
    for folder in Path("/proc").glob("[0-9]*") if inodes else ():
        with contextlib.suppress(OSError):
            for link in (folder / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if link.readlink().name[8:-1] in inodes:
                        return int(folder.name), (folder / "comm").read_text(errors="replace").strip()
    return None


def _inodes(port: int) -> Iterator[str]:
    listening = "0A"
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text(encoding="ascii").splitlines()[1:]:
                cells = line.split()
                if cells[3] == listening and int(cells[1].rpartition(":")[2], 16) == port:
                    yield cells[9]


# ----------------------------------------------------------------------------------------------------------- memory, disk


def needed(role: RoleSpec, gpu: Gpu) -> float:
    """Bytes that must be free on this GPU: the larger of the role's `memory_gb` and vLLM's share of the memory."""
    share = role.gpu_memory_utilization or VLLM_SHARE
    return max((role.memory_gb or 0) * GIGA, share * gpu.total)


def memory_fault(role: RoleSpec, hardware: Hardware, gpus: Sequence[Gpu]) -> str | None:
    """Return which memory is too small, of a GPU or of the machine; None if it is enough."""
    for gpu in gpus:
        if not gpu.total:
            continue  # of unknown size
        if gpu.total < (role.memory_gb or 0) * GIGA:
            return (
                f"role {role.name!r} needs {role.memory_gb:g} GB, but GPU {gpu.index} ({gpu.name}) has only"
                f" {gpu.total / GIGA:.1f} GB; choose a smaller model or more `gpus`"
            )
        if gpu.free < needed(role, gpu):
            return (
                f"role {role.name!r} needs {needed(role, gpu) / GIGA:.1f} GB free on GPU {gpu.index} ({gpu.name}), but only"
                f" {gpu.free / GIGA:.1f} of {gpu.total / GIGA:.1f} GB are free; stop other processes on it, or lower"
                " gpu_memory_utilization or memory_gb"
            )
    if not gpus and role.memory_gb and hardware.memory is not None and hardware.memory < role.memory_gb * GIGA:
        return (
            f"role {role.name!r} needs {role.memory_gb:g} GB of memory, but only {hardware.memory / GIGA:.1f} GB are free;"
            " stop other processes, or lower memory_gb"
        )
    return None


def busy_fault(role: RoleSpec, gpus: Sequence[Gpu]) -> str | None:
    """Return which GPU is large enough but used by another process; None if there is none. Another node may be free."""
    for gpu in gpus:
        if gpu.free < needed(role, gpu) <= gpu.total and gpu.total >= (role.memory_gb or 0) * GIGA:
            return f"GPU {gpu.index} ({gpu.name}) is used by another process"
    return None


def disk_fault(logs: Path) -> str | None:
    """Return why no log can be written to this folder (not writable, or too little space); None if it can."""
    remedy = "set `logs` in the fleet file to another folder"
    try:
        logs.mkdir(parents=True, exist_ok=True)
        try_to_write(logs)
        free = shutil.disk_usage(logs).free
    except OSError as error:
        what = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error.strerror).lower()
        return f"cannot write logs to {logs}: {what}; {remedy}"
    if free < LEAST_DISK:
        return f"the disk of {logs} is full: {free // 1_000_000} MB free, {LEAST_DISK // 1_000_000} MB required; {remedy}"
    return None


# ----------------------------------------------------------------------------------------------------------------- model


def model_fault(role: RoleSpec, environ: Mapping[str, str]) -> str | None:
    """Return why the model's files are missing, as far as can be seen without a network; None if nothing is wrong."""
    if role.local_model:
        config = Path(role.model) / "config.json"
        if not Path(role.model).is_dir():
            return f"no such folder: {role.model}; correct `model` of role {role.name!r}"
        try:
            json.loads(config.read_bytes())
        except OSError as error:
            return f"{config}: {str(error.strerror).lower()}; a model folder must contain config.json"
        except ValueError:
            return f"{config} is not valid JSON; a model folder must contain the model's config.json"
        return None
    environ = {**environ, **role.environment}
    offline = any(
        environ.get(name, "").lower() in ("1", "true", "yes", "on") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )
    elsewhere = any(option.split("=")[0] in ("--download-dir", "--load-format") for option in role.arguments)
    if (
        offline
        and not elsewhere
        and not (cache := _hub_cache(environ) / f"models--{role.model.replace('/', '--')}").is_dir()
    ):
        return (
            f"model {role.model} is not on this machine ({cache}), and offline mode (HF_HUB_OFFLINE) forbids downloading it;"
            f" `fleet fetch {role.name}` downloads it where there is network access; or set `model` to a folder"
        )
    return None


def _hub_cache(environ: Mapping[str, str]) -> Path:
    if named := environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(named)
    return hub_home(environ) / "hub"


def hub_home(environ: Mapping[str, str]) -> Path:
    """The folder of the Hugging Face libraries: cache of models, tokens."""
    if named := environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(named).parent
    cache = environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME") or "/") / ".cache"
    return Path(environ.get("HF_HOME") or Path(cache) / "huggingface")
