"""The code's form: formatted, linted, typed, layered, with nothing left lying about."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.paths import ROOT

PACKAGE = sorted((ROOT / "workflow_composer").rglob("*.py"))
LONGEST = 600


def run(*command):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "command",
    [
        ("ruff", "check", "."),
        ("ruff", "format", "--check", "."),
        ("mypy",),
    ],
    ids=" ".join,
)
def test_the_tools_have_no_complaint(command):
    """Lint, format and strict types."""
    done = run(sys.executable, "-m", *command)
    assert done.returncode == 0, done.stdout + done.stderr


def test_imports_only_go_down():
    """The order of layers is a contract in pyproject.toml."""
    done = run(sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_module_has_a_place_in_the_layers():
    """A new module does not escape the contract."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = " | ".join(contracts[0]["layers"])
    places = {part.strip() for part in layers.split("|")}
    for path in PACKAGE:
        relative = path.relative_to(ROOT).with_suffix("")
        top = ".".join(relative.parts[:2])
        assert top in places or path.name == "__init__.py", f"{top} is in no layer"


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_too_long_to_read(path):
    """At most 600 lines; and what is begun is finished."""
    text = path.read_text()
    assert text.count("\n") <= LONGEST
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b|NotImplementedError|pragma: no cover", text)


def test_every_ignore_carries_its_reason():
    """``# noqa: CODE  # why`` and ``# type: ignore[code]  # why``."""
    for path in PACKAGE:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if "# noqa" in line or "type: ignore" in line:
                reasoned = re.search(r"(# noqa: [A-Z0-9, ]+|# type: ignore\[[a-z, -]+\])\s*(#|-) \w", line)
                assert reasoned, f"{path}:{number}: {line}"


def test_no_path_of_a_machine_is_in_the_project():
    """Nothing that is committed names a home or a work folder."""
    listed = run("git", "ls-files", "-z").stdout.split("\0")
    assert any(listed), "not a git checkout"
    for name in filter(None, listed):
        path = ROOT / name
        if path.suffix in {".safetensors", ".gz", ".png"} or not path.is_file():
            continue
        found = re.search(r"(?<![\w.])/(root|work|farm|home)/", path.read_text(errors="replace"))
        assert found is None or path == Path(__file__), f"{name}: {found}"


def _uses(path):
    """Modules that a file imports, and what it calls by a dotted name, each with its line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module, node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            name = owner.id if isinstance(owner, ast.Name) else ""
            if name == "os" or (len(node.args) == 1 and node.func.attr in {"replace", "rename"}):
                yield f"{'os' if name == 'os' else 'path'}.{node.func.attr}", node.lineno


MECHANISMS = {
    "openai": {"backends/http/proxied.py"},
    "httpx2": {"backends/http/proxied.py"},
    "httpcore2": set(),
    "http.client": set(),
    "urllib.request": {"backends/http/proxied.py"},
    "requests": {"fleet/alerts.py", "server/tracing.py"},  # webhooks, and the OTLP exporter's
    "fcntl": {"storage/locks.py"},
    "tempfile": {"storage/lines.py", "storage/replacing.py"},
    "os.fsync": {"storage/replacing.py"},
    "os.replace": set(),
    "os.rename": set(),
    "os.link": set(),
    "path.replace": {"storage/replacing.py"},
    "path.rename": set(),
}
"""What is done in one place only: modules that are imported, functions and methods of paths (with one argument) called."""


def test_files_and_servers_are_reached_in_one_place_only():
    """Whoever needs it uses that place; nobody begins another."""
    found = {}
    for path in PACKAGE:
        for use, line in _uses(path):
            if use in MECHANISMS:
                place = path.relative_to(ROOT / "workflow_composer").as_posix()
                found.setdefault(use, set()).add(place if place in MECHANISMS[use] else f"{place}:{line}")
    assert found == {use: places for use, places in MECHANISMS.items() if places}
