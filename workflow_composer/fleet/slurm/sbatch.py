"""Build the sbatch command line of a server's job; ``fleet submit --dry-run`` prints it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from workflow_composer.fleet.settings import RoleSpec, SlurmSettings

PYTHON_VARIABLE = "WORKFLOW_COMPOSER_PYTHON"
"""Environment variable by which the job script finds the Python with this package."""

SCRIPT = "slurm_vllm_job.sh"
PREFIX = "wc-"


def job_name(server: str) -> str:
    """The job name of a server.

    >>> job_name("coder-2")
    'wc-coder-2'
    """
    return PREFIX + server


def server_of(name: str) -> str | None:
    """The server of a job name; None if it is not a fleet's job."""
    return name.removeprefix(PREFIX) if name.startswith(PREFIX) else None


_TIME = re.compile(
    r"(?:(?P<days>\d+)-(?P<dh>\d+)(?::(?P<dm>\d+))?(?::(?P<ds>\d+))?|(?:(?P<h>\d+):(?=\d+:))?(?P<m>\d+)(?::(?P<s>\d+))?)"
)


def time_limit(text: str) -> float | None:
    """Convert a SLURM time limit to seconds; None for no limit or an unknown form.

    >>> [time_limit(text) for text in ("90", "90:30", "24:00:00", "1-0", "2-12:30:10")]
    [5400.0, 5430.0, 86400.0, 86400.0, 217810.0]
    >>> time_limit("UNLIMITED")
    """
    found = _TIME.fullmatch(text.strip())
    if found is None:
        return None
    days, dh, dm, ds, h, m, s = (int(part or 0) for part in found.groups())
    return float(days * 86400 + (dh + h) * 3600 + (dm + m) * 60 + ds + s)


def job_script(package: Path = Path(__file__).parents[1]) -> Path:
    """The job script shipped with the package; in a source checkout it is in ``scripts/llm/``."""
    installed = package / SCRIPT
    return installed if installed.is_file() else package.parent.parent / "scripts" / "llm" / SCRIPT


def sbatch_command(
    slurm: SlurmSettings, role: RoleSpec, server: str, *, fleet_file: Path, logs: Path, python: str, script: Path
) -> list[str]:
    """Return the command that queues a server.

    The script runs by ``--wrap``, not as a file: sbatch would read the file's ``#SBATCH`` defaults, which cannot express
    "no partition" or "no GPU". Each program replaces itself by the next (``exec``), so that SLURM's signal to the batch
    shell reaches the server's supervisor.
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
    """The resource options of the job; unset ones are left to the cluster's defaults."""
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
