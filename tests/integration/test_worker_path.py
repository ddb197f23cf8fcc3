"""Nothing imports what lies in the working directory, except the functions that the named profile names."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from urllib.parse import urlsplit

import pytest

from tests.integration.fleet_commands import Fleet
from tests.paths import ROOT
from tests.unit.fleet.conftest import free_port
from tests.unit.fleet.fake_vllm import install

PROFILE = """
profile_name: p
allow_cloud: false
models: {m: {backend: fake}}
task_routing: {"*": mv_m_k2_t0.7}
routers: [{cascade: {extract: ["python:marks:mark"]}}, provider]
"""
MARKS = "import pathlib, os\npathlib.Path(f'mark-{os.getpid()}').touch()\ndef mark(text): return text[:1]\n"
INTRUDER = "import pathlib, os\npathlib.Path(f'intruder-{os.getpid()}').touch()\nraise ImportError('none here')\n"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_file_named_like_a_library_stays_unread_and_a_named_function_is_found(tmp_path, workers):
    """The event loop's library is optional, so that a file of its name would be taken without a word."""
    for name, text in (("p.yaml", PROFILE), ("marks.py", MARKS), ("uvloop.py", INTRUDER)):
        (tmp_path / name).write_text(text)
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(tmp_path / "state")}
    command = ["-m", "workflow_composer", "-s", "./p.yaml", "serve", "--port", "0", "--json", "--workers", workers]
    process = subprocess.Popen([sys.executable, *command], cwd=tmp_path, env=environ, stdout=subprocess.PIPE)
    try:
        place = urlsplit(json.loads(process.stdout.readline())["url"])
        connection = http.client.HTTPConnection(place.hostname, place.port, timeout=30)
        body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        assert connection.getresponse().status == 200
        connection.close()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        process.stdout.close()
    assert list(tmp_path.glob("mark-*"))
    assert not list(tmp_path.glob("intruder-*"))


def test_the_supervisor_of_a_server_and_vllm_import_nothing_from_where_it_was_started(tmp_path):
    """Nor does the command that starts it. The folder has files named like libraries that they use."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    for name in ("yaml", "pydantic", "httptools", "click", "argparse"):
        (tmp_path / f"{name}.py").write_text(INTRUDER)
    packages = f"{ROOT}:{install(tmp_path / 'packages')}"
    settings = {
        "python": sys.executable,
        "roles": {"small": {"model": "./model", "port": free_port(), "drain_seconds": 0.1}},
    }
    fleet = Fleet(tmp_path, settings, {"PYTHONPATH": packages})
    try:
        fleet.up()
        assert not list(tmp_path.glob("intruder-*"))
        (entry,) = (tmp_path / "registry").iterdir()
        assert json.loads(entry.read_text())["server"] == "small"
    finally:
        fleet.run("down")
        fleet.forget()


def test_the_job_script_imports_nothing_from_where_it_was_submitted(tmp_path):
    """Not even to look for a Python that has the package; this one is found by its path and refuses to run out of a job."""
    (tmp_path / "workflow_composer.py").write_text(INTRUDER)
    (tmp_path / "yaml.py").write_text(INTRUDER)
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "WORKFLOW_COMPOSER_PYTHON": sys.executable}
    command = ["bash", str(ROOT / "scripts" / "llm" / "slurm_vllm_job.sh"), "coder", "--dry-run"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False, timeout=120)
    assert "no Python with workflow_composer found" not in done.stderr
    assert not list(tmp_path.glob("intruder-*"))
    assert "--job-name=wc-coder" in done.stdout + done.stderr
