"""Build vLLM's command line from a role and the machine's hardware. Pure functions: nothing is read or started.

A setting that the hardware does not support is replaced by an equivalent one, with a note, or else rejected.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from workflow_composer.errors import FleetError
from workflow_composer.fleet.launch.hardware import GIGA, NOT_FOUND, Build, Gpu, Hardware, unknown_gpus
from workflow_composer.fleet.settings import RoleSpec, faults

MODULE = "vllm.entrypoints.openai.api_server"
"""Started as a module: the CPU build's ``vllm`` command looks for the metadata of another distribution and fails."""
API_KEY = "VLLM_API_KEY"
SAFE_PATH = "PYTHONSAFEPATH"
"""As ``python -P``, which Pythons before 3.11 refuse."""
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
    """A command line. ``environ`` is added to the environment, ``without`` removed; ``notes`` say what was replaced.

    ``secret`` is the variable that holds the API key; the key itself appears only in the result of `environment`.
    """

    argv: tuple[str, ...]
    environ: Mapping[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    secret: str = ""

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The complete environment of the process, whose Python imports nothing from the working directory."""
        kept = {name: value for name, value in environ.items() if name not in self.without}
        key = {API_KEY: environ[self.secret]} if self.secret else {}
        return {SAFE_PATH: "1", **kept, **self.environ, **key}

    @property
    def shown(self) -> str:
        """The command line for a shell; the API key is shown as a reference to its variable."""
        added = [f"{name}={shlex.quote(value)}" for name, value in self.environ.items()]
        key = [f'{API_KEY}="${self.secret}"'] if self.secret else []
        unset = [part for name in self.without for part in ("-u", name)]
        env = ["env", *unset, *added, *key] if unset else [*added, *key]
        return " ".join([*env, shlex.join(self.argv)])


def device(role: RoleSpec, hardware: Hardware, build: Build) -> str:
    """Return ``cuda`` (AMD's GPUs, too) or ``cpu``, where the role runs. Raises `FleetError` if it cannot run here.

    A role that names the device is believed where nothing shows the GPUs.
    """
    wanted = "cuda" if role.device == "rocm" else role.device
    if wanted == "auto":
        wanted = "cpu" if build.device == "cpu" else "cuda"
    if wanted != build.device or (role.device == "rocm" and "rocm" not in build.version):
        other = "GPUs" if build.device == "cuda" else "the CPU"
        raise FleetError(
            f"role {role.name!r} sets device: {role.device}, but the vLLM of {build.python} is built for {other}",
            hint=f"set device: {build.device}, or set `python` or $WORKFLOW_COMPOSER_VLLM_PYTHON to another vLLM's Python",
            lasting=True,
        )
    if believed(role, hardware):
        return wanted
    if wanted == "cuda" and not hardware.gpus:
        raise FleetError(
            f"no GPU here: {hardware.no_gpu}",
            hint="run it on a node with a GPU (`fleet submit`), or set device: cpu and use vLLM's CPU build",
        )
    if wanted == "cuda" and len(hardware.gpus) < role.gpus:
        raise FleetError(
            f"role {role.name!r} needs {role.gpus} GPUs, but this node has {len(hardware.gpus)}", hint="lower `gpus`"
        )
    return wanted


def believed(role: RoleSpec, hardware: Hardware) -> tuple[Gpu, ...]:
    """Return GPUs of unknown size for a role that names the device, on a machine without a program that lists them."""
    named = role.device in ("cuda", "rocm") and not hardware.gpus and hardware.no_gpu == NOT_FOUND
    return unknown_gpus([""] * role.gpus) if named else ()


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
    """Return the command that serves the role on these GPUs, or on the CPU if none are given.

    ``visible``: the environment already restricts it to these GPUs. Raises `FleetError` if they cannot run the role.
    """
    _refuse(options)
    notes: list[str] = []
    argv = [build.python, "-m", MODULE, "--model", role.model, "--served-model-name", role.served]
    argv += [alias for alias in role.aliases if alias != role.served]
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
    elif role.task == "generate":  # pooling models without a cache fail to start with this option; vLLM's default is right
        argv.append("--enable-prefix-caching")
    if not gpus:
        # Compilation takes minutes and needs a C++ compiler; to enable it, add --no-enforce-eager.
        argv.append("--enforce-eager")
    argv += [*role.arguments, *options]
    added = _environment(role, gpus, visible=visible, environ=environ)
    without = () if role.api_key_env or API_KEY not in environ else (API_KEY,)
    return Command(tuple(argv), added, without, tuple(notes), key_variable(role, environ))


def _refuse(options: Sequence[str]) -> None:
    for _, found, instead in faults(options):
        hint = "put --port before the `--`" if "'--port'" in found else instead
        raise FleetError(f"{found} is not allowed here", hint=hint, lasting=True)


def _dtype(role: RoleSpec, gpus: Sequence[Gpu], notes: list[str]) -> str:
    if not gpus:
        # Quantized models compute in a 16-bit type; vLLM chooses which.
        return "float32" if role.dtype == "auto" and not role.quantization else role.dtype
    weakest = min(gpus, key=lambda gpu: gpu.capability or 999)
    if weakest.capability is None or weakest.capability >= BFLOAT16_FROM or role.dtype not in ("auto", "bfloat16"):
        return role.dtype
    if role.dtype == "bfloat16":
        notes.append(f"{weakest.described} has no bfloat16: using half")
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
    """The variables to add to the environment; variables that are already set are kept."""
    # vLLM sends usage statistics unless these are set.
    added = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if role.local_model:
        added |= {"HF_HUB_OFFLINE": "1"}
    if not gpus:
        # vLLM would bind the busy-waiting workers of all servers to the same first cores.
        added |= {_CACHE_SPACE: str(cache_space(role)), _BINDING: "nobind"}
    added = {name: value for name, value in added.items() if name not in environ}
    if gpus and not visible:
        # CUDA numbers the fastest GPU first by default; nvidia-smi numbers by PCI bus.
        added |= {
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": ",".join(gpu.visible or str(gpu.index) for gpu in gpus),
        }
    return {**added, **role.environment}


def cache_space(role: RoleSpec) -> int:
    """Size in GiB of the KV cache in main memory on a CPU: a quarter of ``memory_gb``, or 2."""
    return max(1, round((role.memory_gb or 8) * GIGA / 4 / (1 << 30)))


def key_variable(role: RoleSpec, environ: Mapping[str, str]) -> str:
    """Return the variable that holds the role's API key; empty if it has none. Raises `FleetError` if it is not set."""
    name = role.api_key_env
    if name is None:
        return ""
    if not environ.get(name):
        raise FleetError(
            f"environment variable {name} is not set",
            hint=f"role {role.name!r} reads its API key from it (api_key_env)",
            lasting=True,
        )
    return name
