"""The command that adds an extra to this installation.

The package may be in no index under its name, and a stranger may take a free name. The command therefore names the checkout,
the wheel or the address that this installation came from, or else the extra's libraries, and never the package alone.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

DISTRIBUTION = "workflow-composer"

_PACKAGE = Path(__file__).parents[1]
_EXTRA = re.compile(r"\A([^;]+?)\s*;(?:.*\band\b)?\s*extra\s*==\s*['\"]([\w-]+)['\"]\s*\Z")
"""A requirement of an extra, in a distribution's metadata: the library with its bounds, and the extra."""


def install_command(*extras: str) -> str:
    """Return the command line that installs extras for the Python that runs this."""
    wanted = ",".join(extras)
    return f"{_installer()} {_from_checkout(wanted) or _from_origin(wanted) or _libraries(extras)}"


def install_library(*requirements: str) -> str:
    """Return the command line that installs other people's libraries for the Python that runs this."""
    return f"{_installer()} {' '.join(map(shlex.quote, requirements))}"


def _installer() -> str:
    python = shlex.quote(sys.executable or "python")
    if importlib.util.find_spec("pip") is None and shutil.which("uv"):
        return f"uv pip install --python {python}"
    return f"{python} -m pip install"


def _from_checkout(wanted: str) -> str:
    """Return the checkout that this package is run from, installed or not."""
    folder = _PACKAGE.parent
    about = folder / "pyproject.toml"
    try:
        is_ours = f'name = "{DISTRIBUTION}"' in about.read_text(encoding="utf-8")
    except OSError:
        return ""
    return f"-e {shlex.quote(f'{folder}[{wanted}]')}" if is_ours else ""


def _from_origin(wanted: str) -> str:
    """Return the folder, the wheel or the address that the package was installed from, if it is still there (PEP 610)."""
    from importlib.metadata import PackageNotFoundError, distribution  # slow to import, and rarely needed

    try:
        origin: Any = json.loads(distribution(DISTRIBUTION).read_text("direct_url.json") or "{}")
        url = origin["url"]
    except (PackageNotFoundError, ValueError, KeyError, TypeError):
        return ""
    if vcs := origin.get("vcs_info"):
        return shlex.quote(f"{DISTRIBUTION}[{wanted}] @ {vcs['vcs']}+{url}@{vcs['commit_id']}")
    parts = urlsplit(url)
    if parts.scheme != "file":
        return shlex.quote(f"{DISTRIBUTION}[{wanted}] @ {url}")
    path = Path(unquote(parts.path))
    return shlex.quote(f"{path}[{wanted}]") if path.exists() else ""


def _libraries(extras: tuple[str, ...]) -> str:
    """Return the libraries of the extras, with their bounds; without metadata, what to do in a checkout."""
    from importlib.metadata import PackageNotFoundError, requires

    try:
        lines = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        lines = []
    found = [match for line in lines if (match := _EXTRA.match(line))]
    libraries = [shlex.quote(match[1].replace(" ", "")) for match in found if match[2] in extras]
    return " ".join(libraries) or shlex.quote(f".[{','.join(extras)}]") + "   # in a checkout of the package"
