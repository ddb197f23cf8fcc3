"""Write the lock files, the bills of materials and the table of download sizes that `docs/deployment.md` shows.

    python scripts/lock_dependencies.py            # the newest versions that pyproject.toml allows
    python scripts/lock_dependencies.py --keep     # change only what no longer fits pyproject.toml
    python scripts/lock_dependencies.py --sizes    # print the table of download sizes; write nothing

For each entry of `LOCKS` it writes ``requirements/NAME.txt``: every package with its version and the SHA-256 of its files,
for every system and every Python that the package supports, to be installed with ``pip install --require-hashes -r``. Except
for those of `APART`, it also writes ``requirements/NAME.cdx.json``: the bill of materials (CycloneDX, with licences and who
needs whom) of an installation from that file on Linux. `uv` resolves and `cyclonedx-bom` describes; both are installed into
a temporary environment, at the versions below.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).resolve().parents[1]
PROJECT = ROOT / "pyproject.toml"
FOLDER = ROOT / "requirements"
TOOLS = ("uv==0.13.8", "cyclonedx-bom==7.5.0")
OLDEST = "3.11"
"""The oldest Python of pyproject.toml; the lock files hold for it and every later one."""
PLATFORM = "x86_64-manylinux_2_28"
LOCKS: Mapping[str, tuple[str, ...]] = {
    "serve-embedded": ("serve", "embedded"),
    "serve": ("serve",),
    "serve-otel": ("serve", "otel"),
    "batch": ("batch", "calibration"),
    "moe": ("moe",),
    "vllm": ("vllm",),
}
"""File -> extras. Later files take over the versions of the first, except those of `APART`."""
APART = frozenset({"moe", "vllm"})
"""Files of environments of their own, with several gigabytes for GPUs. They have no bill of materials, for which this script
would have to install them.
"""
LICENCES: Mapping[str, str] = {"antlr4-python3-runtime": "BSD-3-Clause", "protobuf": "BSD-3-Clause"}
"""What the repositories of packages say whose own data does not name a licence."""
UNMEASURED = frozenset({"dev", "ray"})
"""Extras without a row in the table of sizes: one for developers, one without packages."""


class Tools:
    """`uv` and `cyclonedx-py`, installed in a folder."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        self._programs = folder / "bin"
        subprocess.run([str(self._programs / "pip"), "install", "--quiet", *TOOLS], check=True)

    def run(self, program: str, *arguments: str | Path) -> None:
        """Run a program, silently unless it fails. Raises CalledProcessError after printing what it said."""
        shown = {**os.environ, "UV_CUSTOM_COMPILE_COMMAND": "python scripts/lock_dependencies.py"}
        command = [str(self._programs / program), *map(str, arguments)]
        done = subprocess.run(command, env=shown, capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            done.check_returncode()


def compile_lock(tools: Tools, name: str, *, keep: bool) -> Path:
    """Write a lock file and return its path."""
    target, first = FOLDER / f"{name}.txt", FOLDER / f"{next(iter(LOCKS))}.txt"
    if not keep:
        target.unlink(missing_ok=True)  # uv prefers the versions of an existing file
    bound = () if target == first or name in APART else ("--constraint", first)
    wanted = [word for extra in LOCKS[name] for word in ("--extra", extra)]
    options = ("--universal", "--generate-hashes", "--no-config", "--no-annotate", "--python-version", OLDEST)
    tools.run("uv", "pip", "compile", *options, *wanted, *bound, PROJECT, "--output-file", target)
    return target


def describe(tools: Tools, name: str, lock: Path, folder: Path) -> None:
    """Install a lock file into a new environment below ``folder`` and write the bill of materials of what is there."""
    python, target = folder / name / "bin" / "python", FOLDER / f"{name}.cdx.json"
    tools.run("uv", "venv", "--no-config", "--python", sys.executable, folder / name)
    tools.run("uv", "pip", "install", "--no-config", "--require-hashes", "--python", python, "--requirement", lock)
    tools.run("uv", "pip", "install", "--no-config", "--no-deps", "--python", python, ROOT)
    project = ("--pyproject", PROJECT, "--output-reproducible", "--spec-version", "1.6", "--output-file", target)
    tools.run("cyclonedx-py", "environment", *project, python)
    bill = json.loads(target.read_text(encoding="utf-8"))
    for component in bill["components"]:
        if not component.get("licenses") and component["name"] in LICENCES:
            component["licenses"] = [{"license": {"acknowledgement": "concluded", "id": LICENCES[component["name"]]}}]
    target.write_text(json.dumps(_without_links(bill), indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _without_links(value: Any) -> Any:
    """Leave out the links that packages and tools advertise: most of the file, and no part of what is installed."""
    if isinstance(value, dict):
        left_out = {"externalReferences", "timestamp", "serialNumber"}
        return {key: _without_links(inner) for key, inner in value.items() if key not in left_out}
    return [_without_links(inner) for inner in value] if isinstance(value, list) else value


# ------------------------------------------------------------------------------------------------------- download sizes


def extras() -> list[str]:
    """Return the extras that the table of sizes lists, in the order of pyproject.toml."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    return [name for name in project["optional-dependencies"] if name not in UNMEASURED]


def packages(tools: Tools, folder: Path, wanted: Sequence[str]) -> dict[str, int]:
    """Resolve some extras for Linux on x86-64; return the size of the file that pip would download for each package."""
    target = folder / f"pylock.{'-'.join(wanted) or 'none'}.toml"
    options = ("--format", "pylock.toml", "--no-config", "--python-version", OLDEST, "--python-platform", PLATFORM)
    named = [word for extra in wanted for word in ("--extra", extra)]
    tools.run("uv", "pip", "compile", *options, *named, PROJECT, "--output-file", target)
    found = tomllib.loads(target.read_text(encoding="utf-8")).get("packages", [])
    return {package["name"]: _size(package) for package in found}


def _size(package: Mapping[str, Any]) -> int:
    ranks = {tag: rank for rank, tag in enumerate(_tags())}
    best, size = len(ranks), package.get("sdist", {}).get("size", 0)
    for wheel in package.get("wheels", ()):
        tags = parse_wheel_filename(wheel["url"].rpartition("/")[2].replace("%2B", "+"))[3]
        rank = min((ranks[tag] for tag in tags if tag in ranks), default=len(ranks))
        if rank < best:
            best, size = rank, wheel["size"]
    return int(size)


def _tags() -> list[Tag]:
    version = tuple(map(int, OLDEST.split(".")))
    linux = [f"manylinux_2_{minor}_x86_64" for minor in range(28, 4, -1)]
    platforms = [*linux, "manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]
    interpreter = f"cp{OLDEST.replace('.', '')}"
    return [*cpython_tags(version, platforms=platforms), *compatible_tags(version, interpreter, platforms)]


def sizes(tools: Tools, folder: Path) -> str:
    """Return the table: what each extra adds to the package alone."""
    base = packages(tools, folder, ())
    rows = ["| extra | downloads | packages |", "|---|---|---|", f"| (none) | {_shown(sum(base.values()))} | {len(base)} |"]
    for extra in extras():
        more = {name: size for name, size in packages(tools, folder, (extra,)).items() if name not in base}
        rows.append(f"| `{extra}` | + {_shown(sum(more.values()))} | + {len(more)} |")
    return "\n".join(rows)


def _shown(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e6:.1f} MB"


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="change only what no longer fits pyproject.toml")
    parser.add_argument("--sizes", action="store_true", help="print the table of download sizes; write nothing")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tools = Tools(folder / "tools")
        if chosen.sizes:
            print(sizes(tools, folder))
            return
        FOLDER.mkdir(exist_ok=True)
        for name in LOCKS:
            lock = compile_lock(tools, name, keep=chosen.keep)
            if name not in APART:
                describe(tools, name, lock, folder)


if __name__ == "__main__":
    main()
