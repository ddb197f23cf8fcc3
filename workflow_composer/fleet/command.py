"""From a role and what the machine has to vLLM's command line. Pure: looks at nothing, starts nothing.

What the hardware cannot do is replaced where something as good takes its place, with a note, and refused otherwise.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from workflow_composer.errors import FleetError
from workflow_composer.fleet.hardware import GIGA, Build, Gpu, Hardware
from workflow_composer.fleet.options import faults
from workflow_composer.fleet.settings import RoleSpec

MODULE = "vllm.entrypoints.openai.api_server"
"""Started as a module: in the build for the CPU, the command ``vllm`` looks for a distribution that it is not."""
API_KEY = "VLLM_API_KEY"
_CACHE_SPACE = "VLLM_CPU_KVCACHE_SPACE"
_BINDING = "VLLM_CPU_OMP_THREADS_BIND"

BFLOAT16_FROM = 80
"""Compute capability from which GPUs have bfloat16 (vllm/platforms/cuda.py, `check_if_supports_dtype`)."""

MARLIN_FROM = 80
"""Compute capability from which GPUs have the Marlin kernels."""
WITHOUT_MARLIN: Mapping[str, str] = MappingProxyType({"awq_marlin": "awq", "gptq_marlin": "gptq"})
"""What reads the same weights by kernels that more GPUs have. Whether a GPU has them is vLLM's to judge."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command line. ``environ`` is added to the environment, ``without`` taken out of it; ``notes`` say what was replaced.

    ``secret`` names the variable from which the API's key comes; the key itself is in neither, only in `environment`.
    """

    argv: tuple[str, ...]
    environ: Mapping[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    secret: str = ""

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The whole environment to start it with."""
        kept = {name: value for name, value in environ.items() if name not in self.without}
        key = {API_KEY: environ[self.secret]} if self.secret else {}
        return {**kept, **self.environ, **key}

    @property
    def shown(self) -> str:
        """The line as one would type it; a key stands as the variable that it comes from."""
        added = [f"{name}={shlex.quote(value)}" for name, value in self.environ.items()]
        key = [f'{API_KEY}="${self.secret}"'] if self.secret else []
        unset = [part for name in self.without for part in ("-u", name)]
        env = ["env", *unset, *added, *key] if unset else [*added, *key]
        return " ".join([*env, shlex.join(self.argv)])


def device(role: RoleSpec, hardware: Hardware, build: Build) -> str:
    """``cuda`` or ``cpu``: where the role runs. Raises `FleetError` where it cannot."""
    wanted = role.device
    if wanted == "auto":
        wanted = "cpu" if build.device == "cpu" else "cuda"
    if wanted != build.device:
        other = "GPUs" if build.device == "cuda" else "the CPU"
        raise FleetError(
            f"role {role.name!r} has device: {wanted}, and the vLLM of {build.python} is built for {other}",
            hint=f"device: {build.device}, or the Python of another vLLM by `python` or $WORKFLOW_COMPOSER_VLLM_PYTHON",
        )
    if wanted == "cuda" and not hardware.gpus:
        raise FleetError(
            f"no GPU here: {hardware.no_gpu}",
            hint="start it where there is one, such as by `fleet submit`; or device: cpu with vLLM's build for the CPU",
        )
    if wanted == "cuda" and len(hardware.gpus) < role.gpus:
        raise FleetError(
            f"role {role.name!r} spans {role.gpus} GPUs, and there are {len(hardware.gpus)} here", hint="a smaller `gpus`"
        )
    return wanted


def vllm_command(
    role: RoleSpec,
    build: Build,
    *,
    port: int,
    listen: str,
    environ: Mapping[str, str],
    gpus: Sequence[Gpu] = (),
    visible: bool = False,
    options: Sequence[str] = (),
) -> Command:
    """The command that serves the role on these GPUs; on the CPU where none is given.

    ``visible``: the environment lets it see just these GPUs already. Raises `FleetError` where it cannot run there.
    """
    _refuse(options)
    notes: list[str] = []
    argv = [build.python, "-m", MODULE, "--model", role.model, "--served-model-name", role.served]
    argv += ["--host", listen, "--port", str(port)]
    if role.task == "pooling":
        argv += ["--runner", "pooling"]
    argv += ["--dtype", _dtype(role, gpus, notes)]
    if method := _quantization(role, gpus, notes):
        argv += ["--quantization", method]
    if role.max_model_len:
        argv += ["--max-model-len", str(role.max_model_len)]
    if gpus and role.gpu_memory_utilization:
        argv += ["--gpu-memory-utilization", f"{role.gpu_memory_utilization:g}"]
    if role.gpus > 1:
        argv += ["--tensor-parallel-size", str(role.gpus)]
    if not role.prefix_caching:
        argv.append("--no-enable-prefix-caching")
    elif role.task == "generate":  # encoders keep no cache and do not start when told to share it: vLLM knows which can
        argv.append("--enable-prefix-caching")
    if not gpus:
        # Compiling takes minutes and a C++ compiler; who wants it adds --no-enforce-eager.
        argv.append("--enforce-eager")
    argv += [*role.arguments, *options]
    added = _environment(role, gpus, visible=visible, environ=environ)
    without = () if role.api_key_env or API_KEY not in environ else (API_KEY,)
    return Command(tuple(argv), added, without, tuple(notes), _key(role, environ))


def _refuse(options: Sequence[str]) -> None:
    for _, found, instead in faults(options):
        hint = "give --port before the `--`" if "'--port'" in found else f"{instead} of the fleet file"
        raise FleetError(f"{found} cannot be given here", hint=hint)


def _dtype(role: RoleSpec, gpus: Sequence[Gpu], notes: list[str]) -> str:
    if not gpus:
        # Methods of quantisation compute in 16 bits; vLLM knows in which.
        return "float32" if role.dtype == "auto" and not role.quantization else role.dtype
    weakest = min(gpus, key=lambda gpu: gpu.capability or 999)
    if weakest.capability is None or weakest.capability >= BFLOAT16_FROM or role.dtype not in ("auto", "bfloat16"):
        return role.dtype
    if role.dtype == "bfloat16":
        notes.append(f"{weakest.described} has no bfloat16: half is used")
    return "half"


def _quantization(role: RoleSpec, gpus: Sequence[Gpu], notes: list[str]) -> str | None:
    method, weakest = role.quantization, min(gpus, key=lambda gpu: gpu.capability or 999, default=None)
    if (
        method is None
        or weakest is None
        or method not in WITHOUT_MARLIN
        or (weakest.capability or MARLIN_FROM) >= MARLIN_FROM
    ):
        return method
    notes.append(f"{weakest.described} has no kernels for {method}: {WITHOUT_MARLIN[method]} is used")
    return WITHOUT_MARLIN[method]


def _environment(role: RoleSpec, gpus: Sequence[Gpu], *, visible: bool, environ: Mapping[str, str]) -> dict[str, str]:
    """What is added to the environment; what a person has set there already stays."""
    # vLLM reports its use to its makers unless told not to.
    added = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if role.local_model:
        added |= {"HF_HUB_OFFLINE": "1"}
    if not gpus:
        # vLLM would bind every server's worker, which spins while it waits, to the same first cores.
        added |= {_CACHE_SPACE: str(cache_space(role)), _BINDING: "nobind"}
    added = {name: value for name, value in added.items() if name not in environ}
    if gpus and not visible:
        # Without the order of the bus, CUDA counts the fastest first and nvidia-smi does not.
        added |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(str(gpu.index) for gpu in gpus)}
    return {**added, **role.environment}


def cache_space(role: RoleSpec) -> int:
    """GiB of the machine's memory for the cache on a CPU: a quarter of ``memory_gb``, or 2."""
    return max(1, round((role.memory_gb or 8) * GIGA / 4 / (1 << 30)))


def _key(role: RoleSpec, environ: Mapping[str, str]) -> str:
    name = role.api_key_env
    if name is None:
        return ""
    if not environ.get(name):
        raise FleetError(f"the environment variable {name} is not set", hint=f"role {role.name!r} has api_key_env: {name}")
    return name
