"""Proof that nothing private leaves by a workflow: packets of runs that try, captured on the machine's only way out."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.integration.sealed_network import CLOUD, PROXY, RESOLVER
from tests.integration.test_egress_namespace import NAMESPACES, ROOT, _why_not
from tests.integration.workflow_network import NOTE, TRIED

SENT = f"udp {CLOUD} 9"
CALLED = f"tcp {CLOUD} 80"
SEEN = {"fallback": CALLED, "route of a plugin": CALLED, "judge": CALLED, "name beyond": f"tcp {CLOUD} 8001"}
SEEN |= {"proxy": f"tcp {PROXY} 3128"}
NEVER_FOLLOWED = {"redirect"}
OF_THE_PROFILE = {f"udp {RESOLVER} 53", "name gpu.beyond.example"}
"""What `name beyond` asks for: where the profile's own server is, which is known before anything is sent to it."""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What became of each attempt, and what left meanwhile."""
    if reason := _why_not():
        pytest.skip(reason)
    done = subprocess.run(
        [*NAMESPACES, sys.executable, "-m", "tests.integration.workflow_network", tmp_path_factory.mktemp("wired")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("title", [title for title in TRIED if title not in NEVER_FOLLOWED])
def test_what_is_not_private_is_seen(report, title):
    """The control: the same step leaves the machine with an input that is not private."""
    assert SEEN.get(title, SENT) in report[f"{title}: text"]["packets"]


@pytest.mark.parametrize("title", TRIED)
def test_nothing_private_leaves(report, title):
    """Not one packet: no datagram, no connection, no name."""
    found = report[f"{title}: private"]
    assert set(found["packets"]) <= (OF_THE_PROFILE if title == "name beyond" else set()), found["outcome"]
    assert NOTE not in found["outcome"]


@pytest.mark.parametrize("title", ["function", "command", "step of a plugin", "check of a release", "hook after"])
def test_the_attempts_were_made(report, title):
    """A program that cannot send has run, and the request whose hooks are not called was answered."""
    assert report[f"{title}: private"]["outcome"].startswith("done: ")
