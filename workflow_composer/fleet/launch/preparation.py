"""Everything before vLLM is started: choose device and GPUs, build the command, run the preflight checks."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from workflow_composer.errors import FleetError
from workflow_composer.fleet.file import Fleet
from workflow_composer.fleet.launch.command import Command, believed, device, key_variable, vllm_command
from workflow_composer.fleet.launch.gpu_leases import Claims
from workflow_composer.fleet.launch.hardware import Gpu, Hardware, look, vllm_build
from workflow_composer.fleet.launch.preflight import busy_fault, faults, hub_home, model_fault, needed
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
        _raise_if_any(
            tuple(found), lasting=model_fault(role, environ) is not None, elsewhere=busy_fault(role, gpus) is not None
        )
    except BaseException:
        claims.release(server)
        raise
    return Prepared(command, lambda: claims.release(server), f"vllm {build.version}".strip())


def _raise_if_any(problems: tuple[str, ...], *, lasting: bool, elsewhere: bool) -> None:
    if problems:
        raise FleetError("; ".join(problems), problems=problems, lasting=lasting, elsewhere=elsewhere)


def lasting_faults(fleet: Fleet, role: RoleSpec) -> tuple[str, ...]:
    """Return what would end a job of this role at every start, as far as this machine can tell for another.

    A Python or a cache of models that is not here may be on the nodes alone; the job itself judges these.
    """
    environ = {**fleet.environ, **role.environment}
    found: list[str] = []
    for check in (lambda: _engine(fleet, environ), lambda: key_variable(role, environ)):
        try:
            check()
        except FleetError as error:
            if error.lasting:
                found.append(f"{error.message}; {error.hint}" if error.hint else error.message)
    if hub_home(environ).is_dir() and (fault := model_fault(role, environ)):
        found.append(fault)
    return tuple(found)


def _engine(fleet: Fleet, environ: Mapping[str, str]) -> None:
    if shutil.which(fleet.python, path=environ.get("PATH")):
        vllm_build(fleet.python, environ)


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
