"""Workers do not import what lies in the working directory, except the functions that the named profile names."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from urllib.parse import urlsplit

import pytest

from tests.paths import ROOT

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
    if workers == "2":  # one alone is the program itself, whose path its caller chooses
        assert not list(tmp_path.glob("intruder-*"))
