"""The example plugin as a stranger would use it: installed by pip into an environment, used, uninstalled."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.paths import EXAMPLES, ROOT

PROFILE = """\
profile_name: by_length
models:
  small: {backend: fake}
  large: {backend: fake}
routers:
  - length: {short: small, long: large, characters: 10}
  - provider
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """A fresh environment that sees this one's packages, so that only the plugin is installed into it."""
    home = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    made = home / "bin" / "python"
    site = subprocess.run(
        [made, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True, check=True
    )
    Path(site.stdout.strip(), "parent.pth").write_text(f"{sysconfig.get_path('purelib')}\n{ROOT}\n")
    return made


def call(python, *arguments, cwd, check=True):
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("WORKFLOW_COMPOSER", "BIOPIPELINES"))}
    done = subprocess.run([python, *arguments], cwd=cwd, capture_output=True, text=True, check=False, env=environ)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def plugins(python, cwd):
    listed = json.loads(call(python, "-m", "workflow_composer", "plugins", "--json", cwd=cwd).stdout)
    return {plugin["name"]: plugin for plugin in listed["plugins"]}


def test_the_example_is_installed_used_and_uninstalled(python, tmp_path):
    """Found by its entry point, chosen by a profile, gone without a trace."""
    profile = tmp_path / "by_length.yaml"
    profile.write_text(PROFILE)
    assert "length-router" not in plugins(python, tmp_path)

    install = ("-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index")
    call(python, *install, str(EXAMPLES / "length-router"), cwd=tmp_path)
    found = plugins(python, tmp_path)["length-router"]
    assert (found["status"], found["version"], found["provides"]) == ("loaded", "1.0.0", ["router:length"])
    for question, expected in (("short", "small"), ("a much longer question", "large")):
        command = ("-m", "workflow_composer", "-s", str(profile), "generate", question, "--json")
        answer = json.loads(call(python, *command, cwd=tmp_path).stdout)
        assert answer["model"] == expected
        assert answer["decision"]["router"] == "length"

    call(python, "-m", "pip", "uninstall", "-q", "-y", "length-router", cwd=tmp_path)
    assert "length-router" not in plugins(python, tmp_path)
    failed = call(python, "-m", "workflow_composer", "-s", str(profile), "generate", "x", cwd=tmp_path, check=False)
    assert failed.returncode == 2
    assert "unknown router 'length'" in failed.stderr
