"""Workflows as models for the libraries of OpenAI and Anthropic, unmodified: every form of API, whole and streamed."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from tests.integration.clients import clients_python
from tests.integration.workflows.test_served import CHAIN, serving
from tests.paths import ROOT

pytestmark = [
    pytest.mark.integration,
    pytest.mark.clients,
    pytest.mark.skipif(clients_python() is None, reason="WORKFLOW_COMPOSER_CLIENTS_PYTHON names no Python with the clients"),
]


def called(client, model="workflow:chain"):
    script = str(ROOT / "tests" / "integration" / "workflows" / "library_calls.py")
    command = [clients_python() or "python", script, client.place.geturl(), model]
    environ = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environ, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_every_form_of_api_answers_whole_and_streamed(desk):
    desk.file(CHAIN, "chain.yaml")
    desk.small.says("first", "one").says("second", "two three")
    desk.profile(workflows=["chain.yaml"])
    with serving(desk) as client:
        assert called(client) == {
            "listed": True,
            "one": "workflow:chain",
            "chat": "two three",
            "chat_stream": [["two", " three"], 10],
            "chat_helper": [True, "two three"],
            "completion": "two three",
            "response": "two three",
            "response_stream": ["response.created", "response.completed", "two three"],
            "message": ["two three", "end_turn", 4],
            "message_stream": ["message_start", "message_stop", "two three"],
            "tokens": True,
        }


def test_a_failure_is_the_library_s_error_names_the_step_and_is_paid_once(desk):
    desk.file(
        CHAIN.replace('a: {prompt: "first {{ t }}"}', 'a: {prompt: "first {{ t }}", answer: number, retries: 0}'),
        "chain.yaml",
    )
    desk.profile(workflows=["chain.yaml"])
    with serving(desk) as client:
        found = called(client)
        asked = {name: told for name, told in found.items() if name not in ("listed", "one", "tokens")}
        assert all(told.startswith("InternalServerError: ") and "a: the answer" in told for told in asked.values()), asked
        assert desk.calls == len(asked)
