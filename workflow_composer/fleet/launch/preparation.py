"""Everything before vLLM is started: choose device and GPUs, build the command, run the preflight checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from workflow_composer.errors import FleetError
from workflow_composer.fleet.file import Fleet
from workflow_composer.fleet.launch.command import Command, believed, device, vllm_command
from workflow_composer.fleet.launch.gpu_leases import Claims
from workflow_composer.fleet.launch.hardware import Gpu, Hardware, look, vllm_build
from workflow_composer.fleet.launch.preflight import faults, needed
from workflow_composer.fleet.settings import RoleSpec


@dataclass(frozen=True, slots=True)
class Prepared:
    """A command ready to start. ``release`` frees the GPUs leased for it; ``engine`` is vLLM with its version."""

    command: Command
    release: Callable[[], None]
    engine: str = ""


def prepare(fleet: Fleet, server: str, role: RoleSpec, port: int, listen: str, options: Sequence[str] = ()) -> Prepared:
    """Choose and check everything. Raises `FleetError` with one line for each fault."""
    environ = {**fleet.environ, **role.environment}
    build = vllm_build(fleet.python, environ)
    hardware = _hardware(role, environ)
    claims = Claims(fleet.states.directory, hardware.node)
    gpus: tuple[Gpu, ...] = ()
    if device(role, hardware, build) == "cuda":
        gpus = claims.take(server, hardware.gpus, role.gpus, lambda gpu: needed(role, gpu))
    try:
        command = vllm_command(
            role, build, port=port, listen=listen, environ=environ, gpus=gpus, visible=len(gpus) == len(hardware.gpus),
            options=options,
        )  # fmt: skip
        found = faults(role, port=port, listen=listen, hardware=hardware, gpus=gpus, logs=fleet.logs, environ=environ)
        _raise_if_any(tuple(found))
    except BaseException:
        claims.release(server)
        raise
    return Prepared(command, lambda: claims.release(server), f"vllm {build.version}".strip())


def _raise_if_any(problems: tuple[str, ...]) -> None:
    if problems:
        raise FleetError("; ".join(problems), problems=problems)


def plan(fleet: Fleet, role: RoleSpec, port: int, listen: str, options: Sequence[str] = ()) -> Command:
    """Return the command for a dry run: no GPU is leased, and a port in use is not a fault.

    Raises `FleetError` if the role cannot run here.
    """
    environ = {**fleet.environ, **role.environment}
    build = vllm_build(fleet.python, environ)
    hardware = _hardware(role, environ)
    gpus: tuple[Gpu, ...] = ()
    if device(role, hardware, build) == "cuda":
        gpus = _freest(hardware)[: role.gpus]
    return vllm_command(
        role, build, port=port, listen=listen, environ=environ, gpus=gpus, visible=len(gpus) == len(hardware.gpus),
        options=options,
    )  # fmt: skip


def _hardware(role: RoleSpec, environ: Mapping[str, str]) -> Hardware:
    """This machine's hardware, with GPUs that only the role's ``device`` says."""
    found = look(environ)
    assumed = believed(role, found)
    return replace(found, gpus=assumed, no_gpu="") if assumed else found


def _freest(hardware: Hardware) -> tuple[Gpu, ...]:
    return tuple(sorted(hardware.gpus, key=lambda gpu: -gpu.free))
