"""Programs, functions, checks and steps of plugins in workflows that the service offers as models."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integration.workflows.test_served import serving
from workflow_composer.server.settings import ADMIN_VARIABLE

pytestmark = pytest.mark.integration

TOKEN = "token-of-this-test-0123456789"  # it is none
PROGRAMS = """
    workflow: programs
    inputs: {t: text}
    steps:
      a: {command: [python, upper.py], with: {t: t}, answer: text}
      b: {python: "own:twice", with: {t: a}, answer: text}
      c: {prompt: "first {{ b }}", accept: {command: [python, long.py]}, retries: 1}
    output: {c: "{{ b }} {{ c }}"}
"""
STEPS = """
    workflow: steps
    inputs: {t: text}
    steps:
      a: {marked: {folder: FOLDER}, with: {t: t}}
    output: {a: a}
"""
PLUGIN = """
import time
from pathlib import Path
from workflow_composer import hookimpl

def marked(settings, t):
    folder = Path(settings["folder"])
    if t == "slow":
        (folder / "begun").touch()
        while not (folder / "go").exists():
            time.sleep(0.01)
    return f"{t} MARK"

def check(settings, given):
    return None

@hookimpl
def register_steps(register):
    register("marked", marked, check=check, answer="text")
"""


def text_of(answer):
    status, _, body = answer
    assert status == 200, body
    return body["choices"][0]["message"]["content"]


def test_programs_functions_and_checks_run_in_the_service(desk):
    (desk.folder / "upper.py").write_text("import json, sys\nprint(json.load(sys.stdin)['t'].upper())\n")
    (desk.folder / "own.py").write_text("def twice(t):\n    return t * 2\n")
    (desk.folder / "long.py").write_text("import sys\nsys.exit(len(sys.stdin.read()) < 5)\n")
    desk.file(PROGRAMS, "programs.yaml")
    desk.profile(workflows=["programs.yaml"])
    desk.small.says("first", "no", "long enough")
    with serving(desk) as client:
        assert text_of(client.asked("ab", "workflow:programs")) == "ABAB long enough"
        assert desk.small.count("first ABAB") == 2


def test_a_plugins_step_is_swapped_while_a_message_is_under_way(desk):
    (desk.folder / "mine.py").write_text(PLUGIN.replace("MARK", "one"))
    desk.file(STEPS.replace("FOLDER", str(desk.folder)), "steps.yaml")
    desk.profile(workflows=["steps.yaml"], plugins=["./mine.py"])
    environ = {**desk.environ(), ADMIN_VARIABLE: TOKEN}
    desk.environ = lambda: environ

    def reload(client):
        status, _, text = client.send("/admin/plugins/reload", {}, Authorization=f"Bearer {TOKEN}")
        return status, json.loads(text)

    with serving(desk, "--workers", "2") as client, ThreadPoolExecutor() as pool:
        assert text_of(client.asked("x", "workflow:steps")) == "x one"
        slow = pool.submit(client.asked, "slow", "workflow:steps")
        while not (desk.folder / "begun").exists():
            assert not slow.done(), slow.result()
            time.sleep(0.01)
        (desk.folder / "mine.py").write_text(PLUGIN.replace("MARK", "two"))
        assert reload(client)[0] == 200
        assert {text_of(client.asked("x", "workflow:steps")) for _ in range(4)} == {"x two"}
        (desk.folder / "go").touch()
        assert text_of(slow.result(60)) == "slow one"
        (desk.folder / "mine.py").write_text(PLUGIN.replace("return None", "return 'not here'"))
        status, found = reload(client)
        assert status == 400
        assert "steps.yaml:4" in found["error"]["message"]
        assert text_of(client.asked("x", "workflow:steps")) == "x two"
