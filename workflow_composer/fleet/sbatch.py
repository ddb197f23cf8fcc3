"""The sbatch command line of a server's job: pure, and printed as it is by ``fleet submit --dry-run``."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from workflow_composer.fleet.settings import RoleSpec, SlurmSettings

PYTHON_VARIABLE = "WORKFLOW_COMPOSER_PYTHON"
"""The Python with this package: the job script's way back to it."""

SCRIPT = "slurm_vllm_job.sh"
PREFIX = "wc-"


def job_name(server: str) -> str:
    """What a server's job is called.

    >>> job_name("coder-2")
    'wc-coder-2'
    """
    return PREFIX + server


def server_of(name: str) -> str | None:
    """The server whose job is called so; None where it is no job of a fleet."""
    return name.removeprefix(PREFIX) if name.startswith(PREFIX) else None


_TIME = re.compile(
    r"(?:(?P<days>\d+)-(?P<dh>\d+)(?::(?P<dm>\d+))?(?::(?P<ds>\d+))?|(?:(?P<h>\d+):(?=\d+:))?(?P<m>\d+)(?::(?P<s>\d+))?)"
)


def time_limit(text: str) -> float | None:
    """Seconds of a time limit in SLURM's form; None for what has no limit, or what only SLURM may understand.

    >>> [time_limit(text) for text in ("90", "90:30", "24:00:00", "1-0", "2-12:30:10")]
    [5400.0, 5430.0, 86400.0, 86400.0, 217810.0]
    >>> time_limit("UNLIMITED")
    """
    found = _TIME.fullmatch(text.strip())
    if found is None:
        return None
    days, dh, dm, ds, h, m, s = (int(part or 0) for part in found.groups())
    return float(days * 86400 + (dh + h) * 3600 + (dm + m) * 60 + ds + s)


def job_script(package: Path = Path(__file__).parent) -> Path:
    """The job script that comes with the package; in a source checkout it lies among the scripts."""
    installed = package / SCRIPT
    return installed if installed.is_file() else package.parent.parent / "scripts" / "llm" / SCRIPT


def sbatch_command(
    slurm: SlurmSettings, role: RoleSpec, server: str, *, fleet_file: Path, logs: Path, python: str, script: Path
) -> list[str]:
    """The command that queues a server.

    The script is wrapped, not handed over: sbatch would copy it and read its ``#SBATCH`` defaults, which have no way of
    saying "no partition" or "no GPU". Each program on the way is replaced by the next (``exec``), so that SLURM's signal to
    the batch shell reaches the process that looks after the server.
    """
    inner = ["env", f"{PYTHON_VARIABLE}={python}", "bash", str(script), server, "--fleet", str(fleet_file)]
    return [
        "sbatch",
        "--parsable",
        f"--job-name={job_name(server)}",
        *_asked(slurm, role),
        "--nodes=1",
        "--ntasks=1",
        "--requeue",
        "--open-mode=append",
        f"--output={logs / server}-slurm-%j.log",
        f"--signal=B:USR1@{slurm.drain_before}",
        *slurm.options,
        f"--wrap=exec {shlex.join(inner)}",
    ]


def _asked(slurm: SlurmSettings, role: RoleSpec) -> list[str]:
    """What the job needs, each as one option; what the file leaves out is left to the cluster."""
    gpus = f"gpu:{slurm.gpu_type}:{role.gpus}" if slurm.gpu_type else f"gpu:{role.gpus}"
    options = {
        "--partition": slurm.partition,
        "--account": slurm.account,
        "--qos": slurm.qos,
        "--time": slurm.time,
        "--gres": gpus if slurm.gpus else None,
        "--constraint": slurm.constraint,
        "--cpus-per-task": slurm.cpus_per_task,
        "--mem": slurm.memory,
    }
    return [f"{option}={value}" for option, value in options.items() if value is not None]
