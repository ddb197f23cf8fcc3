"""Build the sbatch command line of a server's job; ``fleet submit --dry-run`` prints it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

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


_MARK = re.compile(r"workflow-composer fleet=(?P<fleet>\w+) server=(?P<server>\S+) file=(?P<file>\S*)")


@dataclass(frozen=True, slots=True)
class JobMark:
    """Which fleet a job belongs to, and which server it runs: its comment. ``file`` is the path of the fleet file."""

    fleet: str
    server: str
    file: str

    @property
    def text(self) -> str:
        """The job's comment.

        >>> JobMark("ab12", "coder-2", "/fleets/my fleet.yaml").text
        'workflow-composer fleet=ab12 server=coder-2 file=/fleets/my%20fleet.yaml'
        """
        return f"workflow-composer fleet={self.fleet} server={self.server} file={quote(self.file)}"

    @classmethod
    def read(cls, comment: str) -> JobMark | None:
        """Parse a comment; None if it is none of ours. A site may add to it."""
        found = _MARK.search(comment)
        return cls(found["fleet"], found["server"], unquote(found["file"])) if found else None


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


def asked_time(slurm: SlurmSettings) -> str:
    """The time limit that sbatch is asked for: options of the fleet file overrule its key.

    >>> [asked_time(SlurmSettings(time="24:00:00", options=options)) for options in ([], ["-t", "5"], ["--time=1:00:00"])]
    ['24:00:00', '5', '1:00:00']
    """
    found = slurm.time
    for option, value in zip(slurm.options, (*slurm.options[1:], ""), strict=False):
        if option in ("-t", "--time"):
            found = value
        elif option.startswith("--time="):
            found = option.partition("=")[2]
        elif re.fullmatch(r"-t[0-9].*", option):
            found = option[2:]
    return found


def job_script(package: Path = Path(__file__).parents[1]) -> Path:
    """The job script shipped with the package; in a source checkout it is in ``scripts/llm/``."""
    installed = package / SCRIPT
    return installed if installed.is_file() else package.parent.parent / "scripts" / "llm" / SCRIPT


def sbatch_command(
    slurm: SlurmSettings,
    role: RoleSpec,
    mark: JobMark,
    *,
    logs: Path,
    python: str,
    script: Path,
    environ: Mapping[str, str],
    begin: float = 0.0,
    without: str = "",
) -> list[str]:
    """Return the command that queues a server, to start in ``begin`` seconds at the earliest, not on the node ``without``.

    The script runs by ``--wrap``, not as a file: sbatch would read the file's ``#SBATCH`` defaults, which cannot express
    "no partition" or "no GPU". Each program replaces itself by the next (``exec``), so that SLURM's signal to the batch
    shell reaches the server's supervisor.
    """
    inner = ["env", f"{PYTHON_VARIABLE}={python}", "bash", str(script), mark.server, "--fleet", mark.file]
    return [
        "sbatch",
        "--parsable",
        f"--job-name={job_name(mark.server)}",
        f"--comment={mark.text}",
        *_asked(slurm, role),
        "--nodes=1",
        "--ntasks=1",
        "--requeue",
        "--open-mode=append",
        f"--output={logs / mark.server}-slurm-%j.log",
        f"--export={','.join(['ALL', *exported(environ)])}",
        *([f"--begin=now+{round(begin)}"] if begin else []),
        f"--signal=B:USR1@{slurm.drain_before}",
        *([f"--exclude={without}"] if without else []),
        *slurm.options,
        f"--wrap=exec {shlex.join(inner)}",
    ]


_PLACES = (
    "WORKFLOW_COMPOSER_REGISTRY", "WORKFLOW_COMPOSER_REGISTRY_KEY", "WORKFLOW_COMPOSER_FLEET_STATE",
    "WORKFLOW_COMPOSER_VLLM_PYTHON", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "HF_HOME", "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE", "VLLM_CACHE_ROOT", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE",
)  # fmt: skip
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
_PLAIN = re.compile(r"[\w./:@%+~-]+")


def exported(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield what ``--export`` lists behind ``ALL``: registry, state, caches and proxies that the environment sets.

    Proxies are listed by name alone, since their values may hold passwords, and so are values that sbatch could misread.
    """
    for name in _PLACES:
        if value := environ.get(name, "").strip():
            place = str(Path(value).expanduser().absolute()) if "/" in value else value
            yield f"{name}={place}" if _PLAIN.fullmatch(place) else name
    yield from (name for proxy in _PROXIES for name in (proxy, proxy.upper()) if environ.get(name))


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
