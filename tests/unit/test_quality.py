"""The code's form: formatted, linted, typed, layered, with nothing left lying about."""

import ast
import fnmatch
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.paths import ROOT

PACKAGE = sorted((ROOT / "workflow_composer").rglob("*.py"))


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
    """Modules that a file imports, names that it takes from them, functions and methods that it calls, with the lines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner, method = node.func.value, node.func.attr
            if isinstance(owner, ast.Name) and owner.id in {"os", "shutil"}:
                yield f"{owner.id}.{method}", node.lineno
            elif method in {"replace", "rename"}:
                if [keyword.arg for keyword in node.keywords] == ([] if len(node.args) == 1 else ["target"]):
                    yield f"path.{method}", node.lineno
            else:
                yield f"method.{method}", node.lineno


def _mechanism(use):
    """Whose use it is: that of a module or of one below it, of a function, of a method."""
    parts = use.split(".")
    names = {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
    return next((one for one in MECHANISMS for name in names if fnmatch.fnmatchcase(name, one)), None)


LISTENER = {"server/service.py", *(f"server/workers/{name}.py" for name in ("control", "listeners", "supervisor", "worker"))}
MECHANISMS = {
    "openai": {"backends/http/proxied.py"},
    "httpx*": {"backends/http/proxied.py"},
    "httpcore*": set(),
    "http.client": set(),
    "urllib.request": {"backends/http/proxied.py"},
    "urllib3": set(),
    "aiohttp": set(),
    "requests": {"fleet/monitor/alerts.py", "server/tracing.py"},  # webhooks, and the OTLP exporter's
    # addresses, whose a socket is, whether a port is free, and the resolver's errors
    "socket": {
        "backends/http/egress.py",
        "backends/http/listeners.py",
        "fleet/launch/preflight.py",
        "support/scarcity.py",
        *LISTENER,
    },
    "method.create_connection": {"backends/http/client.py"},
    "method.open_connection": set(),
    "method.open_unix_connection": {"server/workers/control.py"},
    "method.create_server": {"server/service.py"},
    "method.start_server": set(),
    "fcntl": {"storage/locks.py"},
    "tempfile": {
        "cli/workflow/scripted_test.py",
        "cli/workflow/try_out.py",
        "storage/lines.py",
        "storage/replacing.py",
        "workflows/from_python.py",
        "workflows/programs/sandbox.py",
    },
    "os.fsync": {"storage/replacing.py"},
    "os.fdatasync": set(),
    "os.replace": set(),
    "os.rename*": set(),
    "os.link": set(),
    "shutil.move": set(),
    "path.replace": {"storage/replacing.py"},
    "path.rename": set(),
    "method.hardlink_to": set(),
}
"""What is done in one place only: modules that are imported, functions and methods (of paths, with one argument) called."""


def test_files_and_servers_are_reached_in_one_place_only():
    """Whoever needs it uses that place; nobody begins another."""
    found = {}
    for path in PACKAGE:
        place = path.relative_to(ROOT / "workflow_composer").as_posix()
        for use, line in _uses(path):
            mechanism = _mechanism(use)
            if mechanism is not None:
                found.setdefault(mechanism, set()).add(place if place in MECHANISMS[mechanism] else f"{place}:{line}")
    assert found == {use: places for use, places in MECHANISMS.items() if places}


@pytest.mark.parametrize(
    ("line", "mechanism"),
    [
        ("import socket", "socket"),
        ("from socket import create_connection", "socket"),
        ("import http.client as h", "http.client"),
        ("from http import client", "http.client"),
        ("from urllib import request", "urllib.request"),
        ("import httpx", "httpx*"),
        ("from httpcore2 import AsyncConnectionPool", "httpcore*"),
        ("from requests.adapters import HTTPAdapter", "requests"),
        ("await asyncio.open_connection(host, port)", "method.open_connection"),
        ("from os import fsync", "os.fsync"),
        ("os.rename(a, b)", "os.rename*"),
        ("shutil.move(a, b)", "shutil.move"),
        ("path.with_suffix('.x').replace(path)", "path.replace"),
        ("path.rename(target=path)", "path.rename"),
        ("'text'.replace('a', 'b')", None),
        ("dataclasses.replace(value, field=1, other=2)", None),
        ("from http import HTTPStatus", None),
    ],
)
def test_a_mechanism_is_seen_however_it_is_spelled(tmp_path, line, mechanism):
    """By whatever import, and whatever the module is called afterwards."""
    (tmp_path / "module.py").write_text(line)
    assert {_mechanism(use) for use, _ in _uses(tmp_path / "module.py")} - {None} == ({mechanism} if mechanism else set())
