"""Settings of the fleet file: roles and how to start their servers, SLURM options, monitoring.

Each key is declared once, with type, default and meaning; ``docs/fleet.md`` is generated from these declarations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from workflow_composer.backends.replicas.registry import ROLE
from workflow_composer.config.profile_models import (
    EnvName,
    Name,
    Names,
    NameToName,
    Place,
    ProfilePart,
    Seconds,
    frozen,
    frozen_mapping,
    plain,
)

# ----------------------------------------------------------------------------------------------------------------- options
#
# vLLM options that users may not add: those set by keys of the fleet file, and unsupported ones.


OWNED = {
    "--api-key": "api_key_env, since every user of the machine can read command lines",
    "--convert": "task",
    "--dtype": "dtype",
    "--enable-prefix-caching": "prefix_caching",
    "--gpu-memory-utilization": "gpu_memory_utilization",
    "--device-memory-utilization": "gpu_memory_utilization",
    "--host": "listen",
    "--max-model-len": "max_model_len",
    "--model": "model",
    "--model-tag": "model",
    "--no-enable-prefix-caching": "prefix_caching",
    "--port": "port",
    "--quantization": "quantization",
    "-q": "quantization",
    "--runner": "task",
    "--served-model-name": "served_name",
    "--task": "task",
    "--tensor-parallel-size": "gpus",
    "-tp": "gpus",
}
"""vLLM option -> key of the fleet file that sets it."""

REFUSED = {
    "--headless": "fleet servers need an API",
    "--ssl-certfile": "fleet servers speak plain HTTP in their own network",
    "--ssl-keyfile": "fleet servers speak plain HTTP in their own network",
    "--uds": "fleet servers listen on a TCP port",
}
"""vLLM option -> why fleet servers do not support it."""


def faults(arguments: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Yield the invalid ones of additional options: index, what was found, what to do instead.

    >>> list(faults(["--max-num-seqs=8", "--port", "9"]))
    [(1, "the option '--port'", 'use the fleet-file key port')]
    """
    for index, argument in enumerate(arguments):
        # vLLM accepts underscores for dashes, and nested values such as --config.key=1.
        name = argument.partition("=")[0]
        name = name.replace("_", "-") if name.startswith("--") else name
        if name in OWNED:
            yield index, f"the option {name!r}", f"use the fleet-file key {OWNED[name]}"
        elif name in REFUSED:
            yield index, f"the option {name!r}", REFUSED[name]


SBATCH_OWNED = {
    "--array": "one job runs one server; use the role's key replicas",
    "--clusters": "jobs of another cluster cannot be watched from here; submit on a login node of that cluster",
    "--comment": "it says which fleet a job belongs to",
    "--error": "use the fleet-file key logs",
    "--help": "it submits nothing",
    "--job-name": "it is wc- and the server's name",
    "--open-mode": "a requeued job appends to its log",
    "--output": "use the fleet-file key logs",
    "--signal": "use the fleet-file key slurm.drain_before",
    "--test-only": "it submits nothing; use `fleet submit --dry-run`",
    "--usage": "it submits nothing",
    "--version": "it submits nothing",
    "--wait": "use `fleet submit --wait`",
    "--wrap": "the fleet runs its own script",
}
"""sbatch option -> why users may not add it: the fleet would lose its job, or its log."""
_SBATCH_SHORT = {
    "-a": "--array", "-e": "--error", "-h": "--help", "-J": "--job-name", "-M": "--clusters", "-o": "--output",
    "-V": "--version", "-W": "--wait",
}  # fmt: skip


def sbatch_faults(options: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Yield the invalid ones of additional sbatch options: index, what was found, what to do instead.

    sbatch takes each long option by any beginning of its name, and the value of a short one without a space.

    >>> [found for _, found, _ in sbatch_faults(["--exclude=node7", "--com=mine", "-Mother", "--nice", "-w", "node1"])]
    ["the option '--com'", "the option '-M'"]
    """
    for index, option in enumerate(options):
        name = option.partition("=")[0] if option.startswith("--") else option[:2]
        long = _SBATCH_SHORT.get(name, name)
        if len(long) < 4 or not option.startswith("-"):
            continue
        if owned := next((known for known in SBATCH_OWNED if known.startswith(long)), ""):
            yield index, f"the option {name!r}", SBATCH_OWNED[owned]


Port = Annotated[int, Field(ge=1, le=65535)]
Role = Annotated[str, Field(pattern=f"^{ROLE.pattern}$")]


def short_names(model: str) -> tuple[str, ...]:
    """Return the ids under which a model is served besides its own: the part behind the last ``/``.

    >>> short_names("Qwen/Qwen2.5-7B-Instruct-AWQ"), short_names("bge-m3")
    (('Qwen2.5-7B-Instruct-AWQ',), ())
    """
    short = model.rstrip("/").rpartition("/")[2]
    return (short,) if short.strip(".~") and short != model else ()


class RoleSpec(ProfilePart):
    """One role: a model and how its servers are started."""

    name: Role = Field(description="The role's name, taken from its key; do not set it.")
    model: Name = Field(description="Model to serve: a model id, or a folder (with a `/`), relative to the fleet file.")
    served_name: Name | None = Field(
        default=None, description="The model id that requests use. Default: `model` as written."
    )
    aliases: Names = Field(
        default=(),
        description="Further model ids that requests may use. Default: without `served_name`, the part of `model` behind "
        "its last `/`.",
    )
    port: Port = Field(description="Port of the first server; a SLURM job uses the next free port if it is in use.")
    replicas: int = Field(
        default=1, ge=1, le=64, description="Number of servers to run; each further one gets the next port."
    )
    on_request: bool = Field(
        default=False, description="Start it only if `fleet up` or `fleet submit` names it, not with all others."
    )
    task: Literal["generate", "pooling"] = Field(default="generate", description="`pooling`: an embedding model.")
    device: Literal["auto", "cuda", "rocm", "cpu"] = Field(
        default="auto",
        description="`auto`: the device that the installed vLLM is built for. `cuda` and `rocm` are believed where no "
        "nvidia-smi shows the GPUs.",
    )
    gpus: int = Field(default=1, ge=1, le=64, description="GPUs per server (tensor parallel).")
    gpu_hour_price: float | None = Field(
        default=None,
        ge=0,
        description="Dollars per hour of one server, all its GPUs together, busy or idle; for the reservation that "
        "`metrics` shows. Default: that of the profile's model.",
    )
    memory_gb: float | None = Field(
        default=None,
        gt=0,
        description="GPU memory (on a CPU: main memory) in gigabytes that must be free before the model is loaded.",
    )
    dtype: Literal["auto", "half", "bfloat16", "float32"] = Field(
        default="auto", description="Number format; `auto` is half on GPUs without bfloat16 (a T4), float32 on a CPU."
    )
    quantization: Name | None = Field(default=None, description="vLLM's name of the method, such as `awq`.")
    max_model_len: int | None = Field(default=None, ge=1, description="Context length in tokens. Default: the model's.")
    gpu_memory_utilization: float | None = Field(
        default=None, gt=0, le=1, description="Share of the GPU's memory for weights and KV cache. Default: vLLM's."
    )
    prefix_caching: bool = Field(
        default=True, description="Enable prefix caching; with `pooling`, if the model supports it."
    )
    api_key_env: EnvName | None = Field(
        default=None,
        description="Environment variable with the API key that requests must send. None: a server that listens beyond "
        "this machine gets a random key, which your clients find in the registry.",
    )
    keyless: bool = Field(
        default=False, description="Whether a server without `api_key_env` answers everybody who can reach its port."
    )
    arguments: Names = Field(default=(), description="Additional vLLM command-line options.")
    environment: NameToName = frozen_mapping("Environment variables for the server.")
    start_seconds: Seconds = Field(default=900.0, description="Startup time limit in seconds.")
    drain_seconds: Seconds = Field(default=60.0, description="Seconds to finish active requests when a server stops.")

    @property
    def served(self) -> str:
        """The model id that requests use."""
        return self.served_name or self.model

    @property
    def local_model(self) -> bool:
        """Whether the model is a local folder rather than a model id."""
        return self.model.startswith("/")


class SlurmSettings(ProfilePart):
    """Settings of SLURM jobs."""

    partition: Name | None = Field(default="t4flex", description="Partition.")
    account: Name | None = Field(default=None, description="Account.")
    qos: Name | None = Field(default=None, description="Quality of service.")
    time: Name = Field(
        default="24:00:00", description="Time limit in SLURM's format; a successor job takes over before it ends."
    )
    gpu_type: Name | None = Field(default=None, description="Type of GPU, such as `t4`: `--gres=gpu:t4:1`.")
    gpus: bool = Field(default=True, description="Whether jobs request GPUs.")
    constraint: Name | None = Field(default=None, description="Required node features.")
    cpus_per_task: int | None = Field(default=4, ge=1, description="CPU cores per job.")
    memory: Name | None = Field(default="16G", description="Memory per node, in SLURM's format.")
    drain_before: int = Field(
        default=600,
        ge=10,
        le=86400,
        description="Seconds before the time limit at which a job queues its successor; it drains when that is ready.",
    )
    max_requeues: int = Field(default=5, ge=0, description="How many times in a row a failed job is requeued.")
    requeue_pause: Seconds = Field(
        default=60.0,
        description="Seconds before a failed job is restarted; doubled after each further failure, up to 30 min.",
    )
    options: Names = Field(default=(), description="Additional sbatch options, such as `--exclude=node7`.")
    sbatch_variables: Names = Field(
        default=(),
        description="Variables of the environment that sbatch may read, such as `SBATCH_ACCOUNT`; all other `SBATCH_*` are "
        "removed.",
    )


class AlertSettings(ProfilePart):
    """Where alerts go: one when a server fails and one when it recovers; every alert is also logged."""

    command: Names = Field(default=(), description="Command to run; it receives the alert as JSON on standard input.")
    webhook: Place | None = Field(default=None, description="URL to which the alert is posted as JSON.")
    email: Names = Field(default=(), description="E-mail addresses; sent through the host's sendmail.")


class MonitorSettings(ProfilePart):
    """Settings of the monitor."""

    interval: Seconds = Field(default=300.0, description="Seconds between two checks with `--watch`.")
    answer_seconds: Seconds = Field(
        default=30.0, description="Seconds within which the health check and one token must arrive."
    )
    queue_limit: int = Field(
        default=100, ge=1, description="Number of waiting requests from which a server counts as overloaded."
    )
    cache_limit: float = Field(default=0.98, gt=0, le=1, description="KV-cache usage that counts as full.")
    restarts: int = Field(
        default=5, ge=0, description="Restarts within six hours before the monitor gives up and requests manual action."
    )
    backoff: Seconds = Field(default=10.0, description="Seconds before the second restart; doubled for each further one.")
    history_days: int = Field(default=7, ge=1, le=366, description="Days to keep the history of checks.")
    alerts: AlertSettings = Field(default=AlertSettings(), description="Where alerts go.")


class FleetSettings(ProfilePart):
    """The fleet file."""

    registry: Place | None = Field(
        default=None,
        description="Folder of the registry, relative to the fleet file. Default: "
        "`~/.local/state/workflow-composer/registry`.",
    )
    state: Place | None = Field(
        default=None,
        description="Folder of the fleet's state, relative to the fleet file. Default: "
        "`~/.local/state/workflow-composer/fleet`.",
    )
    logs: Place = Field(default="logs", description="Folder of the servers' logs, relative to the working directory.")
    python: Place | None = Field(
        default=None,
        description="Python interpreter with vLLM. Default: $WORKFLOW_COMPOSER_VLLM_PYTHON, else the running one.",
    )
    listen: Name | None = Field(
        default=None, description="Address to listen on. Default: 127.0.0.1; in a SLURM job, all addresses of the node."
    )
    roles: Annotated[Mapping[str, RoleSpec], BeforeValidator(plain), AfterValidator(frozen)] = frozen_mapping(
        "Name -> role."
    )
    slurm: SlurmSettings = Field(default=SlurmSettings(), description="Settings of SLURM jobs.")
    monitor: MonitorSettings = Field(default=MonitorSettings(), description="Settings of the monitor.")
