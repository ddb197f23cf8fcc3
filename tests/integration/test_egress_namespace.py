"""Proof that nothing leaves: every packet of a machine whose profile forbids the cloud, captured on its only way out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.sealed_network import CLOUD, PROXY, RESOLVER

ROOT = Path(__file__).parents[2]
NAMESPACES = ["unshare", "--net", "--mount"]
if os.geteuid() != 0:
    NAMESPACES += ["--user", "--map-root-user"]


def _why_not() -> str:
    missing = [command for command in ("unshare", "ip", "mount") if not shutil.which(command)]
    if missing:
        return f"needs {', '.join(missing)} (util-linux, iproute2)"
    trial = [*NAMESPACES, "ip", "link", "add", "near", "type", "veth", "peer", "name", "far"]
    done = subprocess.run(trial, capture_output=True, text=True, check=False)
    return f"needs network namespaces with virtual cables: {done.stderr.strip()}" if done.returncode else ""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What `sealed_network` did and what left meanwhile; the environment names proxies beyond the cable."""
    if reason := _why_not():
        pytest.skip(reason)
    directory = tmp_path_factory.mktemp("sealed")
    proxy = f"http://{PROXY}:3128"
    proxies = {name: proxy for upper in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY") for name in (upper, upper.lower())}
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "COVERAGE_PROCESS_START") if name in os.environ}
    done = subprocess.run(
        [*NAMESPACES, sys.executable, "-m", "tests.integration.sealed_network", directory],
        cwd=ROOT,
        env={**kept, **proxies, "OPENAI_API_KEY": "k", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("action", "packet"),
    [
        ("udp", f"udp {CLOUD} 9"),
        ("udp6", "udp 2001:db8:1::9 9"),
        ("tcp", f"tcp {CLOUD} 443"),
        ("dns", f"udp {RESOLVER} 53"),
        ("cloud call", f"tcp {CLOUD} 80"),
        ("cloud call by proxy", f"tcp {PROXY} 3128"),
    ],
)
def test_what_leaves_is_seen(report, action, packet):
    """The positive control: datagrams, connections, look-ups and calls that a profile allows are captured."""
    assert packet in report[f"seen: {action}"]["packets"]


@pytest.mark.parametrize(
    ("action", "outcome"),
    [
        ("generate", "LocalModelUnavailable"),
        ("stream", "LocalModelUnavailable"),
        ("embed", "LocalModelUnavailable"),
        ("status", "'coder': False"),
        ("far name", "EgressDenied"),
        ("far name probed", "local_networks"),
        ("redirect", "ModelNotFound"),
        ("foreign client", "EgressDenied"),
        ("registered near", "an answer"),
        ("registered far", "has the public address"),
        ("registered far name", "has the public address"),
        ("registered far status", "local_networks"),
        ("registered for another", "no server of coder is ready"),
    ],
)
def test_nothing_leaves(report, action, outcome):
    """Not one packet: no connection, no look-up, nothing to a proxy; and the caller is told."""
    assert outcome in report[f"sealed: {action}"]["outcome"]
    assert report[f"sealed: {action}"]["packets"] == []


def test_the_capture_works_to_the_end(report):
    """Silence in between was no broken capture."""
    assert report["seen at the end: udp"]["packets"] == [f"udp {CLOUD} 9"]
