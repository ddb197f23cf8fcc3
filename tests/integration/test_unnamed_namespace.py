"""Proof that nothing is sent while no strategy is named: packets of a machine with cloud keys, captured on its way out."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.integration.sealed_network import CLOUD, RESOLVER
from tests.integration.test_egress_namespace import NAMESPACES, ROOT, _why_not
from tests.integration.unnamed_network import KEYS
from workflow_composer.runtime.resources import embedded_available


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What the commands printed and what left meanwhile."""
    if reason := _why_not():
        pytest.skip(reason)
    directory = tmp_path_factory.mktemp("unnamed")
    done = subprocess.run(
        [*NAMESPACES, sys.executable, "-m", "tests.integration.unnamed_network", directory],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("action", ["generate", "serve"])
def test_a_named_cloud_is_seen(report, action):
    """The control: the same with `-s cloud_only` asks for the cloud's name and connects to what it is told."""
    packets = report[f"control: {action}"]["packets"]
    assert "name api.deepseek.com" in packets
    assert f"udp {RESOLVER} 53" in packets
    assert f"tcp {CLOUD} 443" in packets


@pytest.mark.parametrize("action", ["status", "route", "generate", "serve"])
def test_keys_alone_send_nothing_and_say_how_they_are_used(report, action):
    """Not one packet, not one name."""
    found = report[f"keys: {action}"]
    assert found["packets"] == []
    assert all(key in found["outcome"] for key in KEYS)
    assert "are set; `-s cloud_only` uses them" in found["outcome"]


@pytest.mark.parametrize("action", ["status", "route", "generate", "serve"])
def test_own_servers_answer_and_nothing_leaves(report, action):
    """With the keys beside them."""
    found = report[f"servers: {action}"]
    assert found["packets"] == []
    assert "t4_local_only" in found["outcome"] or action in ("route", "generate")
    assert found["outcome"].startswith("200" if action == "serve" else "0 ")


@pytest.mark.parametrize(("machine", "code"), [("keys", "3"), ("servers", "0")])
def test_init_without_questions_sends_nothing_either(report, machine, code):
    """It takes the registered server, and never a cloud."""
    found = report[f"{machine}: init"]
    assert found["packets"] == []
    assert found["outcome"].startswith(f"{code} "), found["outcome"]
    assert "OPENAI_API_KEY" in found["outcome"]


@pytest.mark.skipif(not embedded_available(), reason="the embedded engine is not installed")
@pytest.mark.parametrize("action", ["status", "route", "generate", "serve"])
def test_the_embedded_engine_looks_nothing_up(report, action):
    """Whatever it answers in this process."""
    found = report[f"engine: {action}"]
    assert found["packets"] == []
    assert "no strategy was named" not in found["outcome"]
