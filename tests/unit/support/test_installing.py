"""The command that adds an extra names what this installation came from, never a name that anybody may take."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import click
import pytest

from tests.paths import ROOT
from workflow_composer.cli.group import cli
from workflow_composer.support import installing
from workflow_composer.support.installing import install_command, install_library


class Distribution:
    """An installation's metadata."""

    def __init__(self, origin, requires=()):
        self.origin = origin
        self.requires = requires

    def read_text(self, name):
        assert name == "direct_url.json"
        return None if self.origin is None else json.dumps(self.origin)


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """The package as if it were installed in an environment, from an origin."""

    def install(origin, requires=()):
        monkeypatch.setattr(installing, "_PACKAGE", tmp_path / "site-packages" / "workflow_composer")
        monkeypatch.setattr(metadata, "distribution", lambda name: Distribution(origin))
        monkeypatch.setattr(metadata, "requires", lambda name: list(requires))

    return install


START = f"{sys.executable} -m pip install "


def test_a_checkout_is_named_where_the_package_is_run_from_one():
    """By its path, so that it works from any folder."""
    assert install_command("batch", "serve") == f"{START}-e '{ROOT}[batch,serve]'"


def test_the_named_checkout_can_be_installed(tmp_path):
    """Its extra is one of pyproject.toml's, and pip resolves it; nothing is fetched or changed."""
    options = "--dry-run --no-deps --no-build-isolation --quiet"
    command = install_command("ray").replace(" install -e ", f" install {options} ")
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr


def test_a_wheel_or_folder_is_named_while_it_is_there(installed, tmp_path):
    """Else the libraries of the extra are, with their bounds."""
    wheel = tmp_path / "a folder" / "workflow_composer-0.1.0-py3-none-any.whl"
    requires = ["click<9,>=8.1", "mistralrs<1,>=0.9; extra == 'embedded'", 'numpy >=1.26 ; extra == "moe"']
    requires += ["uvloop<1,>=0.21; (sys_platform != 'win32') and extra == 'serve'"]
    installed({"url": wheel.as_uri(), "archive_info": {}}, requires)
    assert install_command("embedded") == f"{START}'mistralrs<1,>=0.9'"
    assert install_command("moe") == f"{START}'numpy>=1.26'"
    assert install_command("serve") == f"{START}'uvloop<1,>=0.21'"
    wheel.parent.mkdir()
    wheel.touch()
    assert install_command("embedded") == f"{START}'{wheel}[embedded]'"


def test_an_address_is_named(installed):
    """Of a repository, with its commit, or of a wheel on a server."""
    installed({"url": "https://git.example.com/composer.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}})
    assert install_command("batch").endswith("'workflow-composer[batch] @ git+https://git.example.com/composer.git@abc'")
    installed({"url": "https://files.example.com/workflow_composer-0.1.0-py3-none-any.whl", "archive_info": {}})
    assert install_command("batch").endswith(" @ https://files.example.com/workflow_composer-0.1.0-py3-none-any.whl'")


def test_without_an_origin_the_libraries_are_named(installed):
    """As after an installation from a mirror: the name may be somebody else's elsewhere."""
    installed(None, ["pyarrow<28,>=17; extra == 'batch'", "pandas<4,>=2.2; extra == 'batch'"])
    assert install_command("batch") == f"{START}'pyarrow<28,>=17' 'pandas<4,>=2.2'"
    installed(None)
    assert install_command("batch").startswith(f"{START}'.[batch]'")


def test_other_libraries_are_installed_into_this_python(monkeypatch):
    """By uv where the environment has no pip."""
    assert install_library("socksio") == f"{START}socksio"
    monkeypatch.setattr(installing.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(installing.shutil, "which", lambda name: "uv")
    assert install_library("socksio") == f"uv pip install --python {sys.executable} socksio"


# ------------------------------------------------------------------------------------------------------------- all texts


@pytest.mark.parametrize(
    ("line", "is_wrong"),
    [
        ("pip install workflow-composer", True),
        ("pip install 'workflow-composer[batch]'", True),
        ("$ .venv/bin/python -m pip install -q -U workflow_composer", True),
        ("uv add workflow-composer", True),
        ("pipx run workflow-composer", True),
        ("uvx workflow-composer", True),
        ("pip install '.[batch]'", False),
        ("pip install 'dist/workflow_composer-0.1.0-py3-none-any.whl[serve]' && workflow-composer serve", False),
        ("pip install -e '.[dev]' && python -m workflow_composer status", False),
        ("pip install --require-hashes -r requirements/serve.txt", False),
        ("pip install 'workflow-composer[batch] @ git+https://example.com/x'", False),
    ],
)
def test_an_installation_from_an_index_is_seen(line, is_wrong):
    """However it is written; what names a file, a folder or an address is none."""
    assert bool(from_an_index(line)) is is_wrong


def from_an_index(text):
    """The lines that would ask an index for the package."""
    found = []
    for line in text.splitlines():
        for command in re.split(r"&&|;|\|\|", line):
            match = re.search(r"\b(?:pip3?|uv)\b.{0,60}?\b(?:install|add)\b(.*)|\b(?:pipx\s+run|uvx)\b(.*)", command)
            rest = "" if match is None else match[1] or match[2] or ""
            if re.search(r"(?<![\w/.-])workflow[-_]composer(?![\w/.-])(?!\[[^\]]*\] @ )", rest):
                found.append(line)
    return found


def test_no_text_asks_an_index_for_the_package():
    """Documents, examples, code with its errors, profiles, scripts: the name belongs to nobody."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    kinds = {".md", ".py", ".yaml", ".yml", ".toml", ".txt", ".sh", ".html", ".js", ".cfg", ".ini", ""}
    wrong = {}
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        is_text = path.suffix in kinds and path.is_file() and path != Path(__file__)
        if is_text and (found := from_an_index(path.read_text(errors="replace"))):
            wrong[name] = found
    assert wrong == {}


def commands(command, path=()):
    """Every command with its words."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from commands(command.get_command(context, name), (*path, name))


def test_no_help_asks_an_index_for_the_package():
    """As it is printed."""
    found = {}
    for path, command in commands(cli):
        context = click.Context(command, info_name=" ".join(("workflow_composer", *path)))
        if wrong := from_an_index(command.get_help(context)):
            found[path] = wrong
    assert found == {}
