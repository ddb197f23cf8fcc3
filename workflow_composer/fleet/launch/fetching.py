"""Download the models of roles into the cache of models, on a machine with network access."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable

from workflow_composer.errors import FleetError
from workflow_composer.fleet.file import Fleet
from workflow_composer.fleet.launch.exit_reasons import reason
from workflow_composer.fleet.settings import RoleSpec

_DOWNLOAD = "import sys; from huggingface_hub import snapshot_download; print(snapshot_download(sys.argv[1]))"
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_TAIL = 20_000


def fetch(fleet: Fleet, role: RoleSpec, say: Callable[[str], None]) -> str:
    """Download a role's model with the Python that has vLLM, and return its folder; ``say`` gets the progress.

    A folder is returned as it is. Raises `FleetError` with the reason.
    """
    if role.local_model:
        return role.model
    program = shutil.which(fleet.python, path=fleet.environ.get("PATH"))
    if program is None:
        raise FleetError(f"Python not found: {fleet.python}", hint="set `python` in the fleet file")
    environ = {name: value for name, value in {**fleet.environ, **role.environment}.items() if name not in _OFFLINE}
    said = ""
    with subprocess.Popen(  # noqa: S603  # a list of arguments, no shell
        [program, "-c", _DOWNLOAD, role.model],
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        try:
            for line in process.stdout or ():
                said = (said + line)[-_TAIL:]
                say(line.rstrip())
            code = process.wait()
        except BaseException:
            process.kill()
            raise
    if code:
        raise FleetError(f"{role.model} cannot be downloaded: {reason(said, code)}")
    return said.splitlines()[-1] if said else ""
