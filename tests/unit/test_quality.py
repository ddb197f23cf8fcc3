"""The code's form: formatted, linted, typed, layered, with nothing left lying about."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.paths import ROOT

PACKAGE = sorted((ROOT / "workflow_composer").rglob("*.py"))
LONGEST = 400


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
    """At most 400 lines; and what is begun is finished."""
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
