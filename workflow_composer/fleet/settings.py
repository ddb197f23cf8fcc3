"""The fleet file: which servers there are, how each is started, what SLURM is asked for, and how they are watched.

Each key is declared once, with type, default and meaning; ``docs/fleet.md`` is generated from these declarations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from workflow_composer.backends.registry import ROLE
from workflow_composer.profiles.models import (
    EnvName,
    Name,
    Names,
    NameToName,
    Part,
    Place,
    Seconds,
    frozen,
    frozen_mapping,
    plain,
)

Port = Annotated[int, Field(ge=1, le=65535)]
Role = Annotated[str, Field(pattern=f"^{ROLE.pattern}$")]


class RoleSpec(Part):
    """One role: a model and how its servers are started."""

    name: Role = Field(description="The role's name: the key; not written again.")
    model: Name = Field(description="What to serve: a model's id, or a folder (with a `/`), relative to the fleet file.")
    served_name: Name | None = Field(default=None, description="The id that requests name. Default: `model` as written.")
    port: Port = Field(description="The port of the first server; a SLURM job takes the next free one where it is taken.")
    replicas: int = Field(default=1, ge=1, le=64, description="Servers that should run; each further one has the next port.")
    task: Literal["generate", "pooling"] = Field(default="generate", description="`pooling`: a model that gives vectors.")
    device: Literal["auto", "cuda", "cpu"] = Field(
        default="auto", description="`auto`: the GPU where there is one, else the CPU where this vLLM is built for it."
    )
    gpus: int = Field(default=1, ge=1, le=64, description="GPUs that one server spans (tensor parallel).")
    memory_gb: float | None = Field(
        default=None,
        gt=0,
        description="Gigabytes of the GPU, or of the machine, that must be free before anything is loaded.",
    )
    dtype: Literal["auto", "half", "bfloat16", "float32"] = Field(
        default="auto", description="Number format; `auto` is half on GPUs without bfloat16 (a T4), float32 on a CPU."
    )
    quantization: Name | None = Field(default=None, description="vLLM's name of the method, such as `awq`.")
    max_model_len: int | None = Field(default=None, ge=1, description="Context length in tokens. Default: the model's own.")
    gpu_memory_utilization: float | None = Field(
        default=None, gt=0, le=1, description="Share of the GPU's memory for weights and cache. Default: vLLM's own."
    )
    prefix_caching: bool = Field(
        default=True, description="Keep the cache of prompts' beginnings; with `pooling`, where the model has one."
    )
    api_key_env: EnvName | None = Field(
        default=None,
        description="The variable with the key that requests must carry. None: anyone who reaches the port may ask.",
    )
    arguments: Names = Field(default=(), description="Further vLLM options, as on its command line.")
    environment: NameToName = frozen_mapping("Environment variables for the server.")
    start_seconds: Seconds = Field(default=900.0, description="Seconds until it must be healthy.")
    drain_seconds: Seconds = Field(default=60.0, description="Seconds that requests under way have when it stops.")

    @property
    def served(self) -> str:
        """The id that requests name."""
        return self.served_name or self.model

    @property
    def local_model(self) -> bool:
        """Whether the model is a folder of this machine, rather than an id to look up."""
        return self.model.startswith("/")


class SlurmSettings(Part):
    """What SLURM is asked for."""

    partition: Name | None = Field(default="t4flex", description="Partition.")
    account: Name | None = Field(default=None, description="Account.")
    qos: Name | None = Field(default=None, description="Quality of service.")
    time: Name = Field(default="24:00:00", description="Time limit in SLURM's form; service goes on across it.")
    gpu_type: Name | None = Field(default=None, description="Type of GPU, such as `t4`: `--gres=gpu:t4:1`.")
    gpus: bool = Field(default=True, description="Whether jobs ask for GPUs at all.")
    constraint: Name | None = Field(default=None, description="Node features that are required.")
    cpus_per_task: int | None = Field(default=4, ge=1, description="Cores.")
    memory: Name | None = Field(default="16G", description="Memory of the node, in SLURM's form.")
    drain_before: int = Field(
        default=600,
        ge=10,
        le=86400,
        description="Seconds before the time limit at which a job queues its successor; it drains when that answers.",
    )
    max_requeues: int = Field(
        default=5, ge=0, description="How often in a row a failed job is queued again before it stays ended."
    )
    requeue_pause: Seconds = Field(
        default=60.0, description="Seconds until a failed job starts again; doubled by each further failure, up to 30 min."
    )
    options: Names = Field(default=(), description="Further sbatch options, such as `--exclude=node7`.")


class AlertSettings(Part):
    """Who is told, once when something fails and once when it works again; every alert is in the log, too."""

    command: Names = Field(default=(), description="A command to run; the alert comes as JSON on its standard input.")
    webhook: Place | None = Field(default=None, description="An address to which the alert is posted as JSON.")
    email: Names = Field(default=(), description="Addresses, through the host's sendmail.")


class MonitorSettings(Part):
    """How servers are watched."""

    interval: Seconds = Field(default=300.0, description="Seconds between two checks with `--watch`.")
    answer_seconds: Seconds = Field(default=30.0, description="Seconds in which health and one token must come back.")
    queue_limit: int = Field(default=100, ge=1, description="Waiting requests from which a server counts as overloaded.")
    cache_limit: float = Field(default=0.98, gt=0, le=1, description="Share of the cache in use that counts as full.")
    restarts: int = Field(default=5, ge=0, description="Restarts within six hours, after which a person must look.")
    backoff: Seconds = Field(default=10.0, description="Seconds before the second restart; doubles each time.")
    history_days: int = Field(default=7, ge=1, le=366, description="Days that the history of checks is kept.")
    alerts: AlertSettings = Field(default=AlertSettings(), description="Who is told.")


class FleetSettings(Part):
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
        default=None, description="The Python that has vLLM. Default: $WORKFLOW_COMPOSER_VLLM_PYTHON, else the running one."
    )
    listen: Name | None = Field(
        default=None, description="Address to listen on. Default: 127.0.0.1; in a SLURM job, every address of the node."
    )
    roles: Annotated[Mapping[str, RoleSpec], BeforeValidator(plain), AfterValidator(frozen)] = frozen_mapping(
        "Name -> role."
    )
    slurm: SlurmSettings = Field(default=SlurmSettings(), description="What SLURM is asked for.")
    monitor: MonitorSettings = Field(default=MonitorSettings(), description="How servers are watched.")
