"""``plugins new``: what it writes works as it stands."""

import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from tests.paths import ROOT
from workflow_composer.cli.group import cli
from workflow_composer.errors import InputError
from workflow_composer.plugins.host import PluginHost
from workflow_composer.plugins.scaffold import KINDS, files_of, write_files


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_passes_its_own_test_and_can_be_loaded(tmp_path, kind):
    """Its test by pytest in its folder; its code as an installed plugin and as a folder."""
    write_files("my-thing", kind, tmp_path)
    home = tmp_path / "my-thing"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join((str(home), str(ROOT)))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=home, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    host = PluginHost()
    assert host.add_file(home / "my_thing") == "my_thing"
    assert next(info for info in host.plugins if info.name == "my_thing").provides[0].startswith(f"{kind}:my")


@pytest.mark.parametrize("name", ["", "My", "my_thing", "../x", "a b", "7up", "-x", "x-"])
def test_a_name_that_is_none_is_refused(name):
    """Before anything is written."""
    with pytest.raises(InputError):
        files_of(name, "router")


def test_what_is_there_is_not_overwritten(tmp_path, monkeypatch):
    """The second call says so."""
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(cli, ["plugins", "new", "one"]).exit_code == 0
    code = tmp_path / "one" / "one" / "__init__.py"
    code.write_text("mine")
    failed = CliRunner().invoke(cli, ["plugins", "new", "one"])
    assert isinstance(failed.exception, InputError)
    assert code.read_text() == "mine"
