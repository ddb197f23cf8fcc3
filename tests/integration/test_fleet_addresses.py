"""A fleet on nodes with network addresses of their own: published, reached and left as in a cluster's network."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.integration.slurm_cluster import why_not
from tests.paths import ROOT

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.skipif(why_not() is not None, reason=why_not() or ""),
    pytest.mark.skipif(shutil.which("ip") is None, reason="the program `ip` is missing"),
]


def test_servers_are_reached_at_their_nodes_addresses(tmp_path):
    """Each is published under the address that SLURM has for its node; when a node's cable is cut, the other answers."""
    ended = subprocess.run(
        ["unshare", "--net", "--mount", sys.executable, "-m", "tests.integration.node_network", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["hosts"] == ["10.77.0.1", "10.77.0.2"]
    assert found["before"] == ["#### 42"] * 6
    assert found["after"] == ["#### 42"] * 4
    assert found["left"] == []
