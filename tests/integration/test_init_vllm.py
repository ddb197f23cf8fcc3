"""``init`` and one question beside real vLLM servers on the CPU: one that embeds first, one that chats."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import yaml

from tests.integration.test_egress_namespace import NAMESPACES, ROOT, _why_not
from tests.integration.vllm_server import VARIABLE, vllm_python

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(vllm_python() is None, reason=f"{VARIABLE} names no Python with vLLM"),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What the commands said."""
    if reason := _why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("init-vllm")
    done = subprocess.run(
        [*NAMESPACES, sys.executable, "-m", "tests.integration.init_vllm", folder],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_embedding_server_alone_gets_a_clear_word(report):
    """Although it is the first, and vLLM does not say in its list of models what the model is for."""
    assert report["embeds"]["code"] == 3
    assert "only embedding models answer (words)" in report["embeds"]["err"]


def test_two_commands_lead_to_a_right_answer(report):
    """The second name of the model is an alias."""
    assert report["init"]["code"] == 0, report["init"]["err"]
    assert "found:     vLLM at localhost:8001: numbers" in report["init"]["out"]
    assert (report["generate"]["code"], "42" in report["generate"]["out"]) == (0, True), report["generate"]
    profile = yaml.safe_load(report["profile"])
    assert profile["allow_cloud"] is False
    assert profile["models"]["numbers"]["context_length"] == 512
    assert profile["vllm_endpoints"] == {"local": "http://localhost:8001/v1"}


def test_the_doctor_agrees(report):
    """With the profile as it was written."""
    assert report["doctor"]["code"] == 0, report["doctor"]
