"""Programs that edit files and run commands, unmodified: the model behind the service calls their tools."""

from __future__ import annotations

import pytest

from tests.integration.clients import VARIABLE, clients_python
from tests.integration.unmodified.frame import CODEX, entered, staged
from tests.integration.unmodified.standin import Call

pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(clients_python() is None, reason=f"{VARIABLE} names no Python with the clients"),
]

FILES = {"greeting.txt": "hello world\n", "other.txt": "untouched\n"}


@pytest.fixture
def stage(tmp_path):
    with staged(tmp_path) as found:
        yield found


def here(client):
    """Skip the test where the client is not installed."""
    if client.home is None:
        pytest.skip(f"{client.package} is not installed beside the clients of {VARIABLE}")
    return client


def test_codex_edits_a_file_and_runs_a_command(stage):
    patch = "*** Begin Patch\n*** Update File: greeting.txt\n@@\n-hello world\n+goodbye world\n*** End Patch"
    stage.follows(
        Call("exec_command", {"cmd": f"apply_patch <<'EOF'\n{patch}\nEOF"}),
        Call("exec_command", {"cmd": "ls; cat greeting.txt"}),
        "The greeting says goodbye.",
    )
    done = stage.run(here(CODEX), files=FILES)
    assert done.code == 0, done.err
    assert (done.folder / "greeting.txt").read_text() == "goodbye world\n"
    edited, listed = stage.results()
    assert "greeting.txt" in edited
    assert "goodbye world\n" in listed
    assert "other.txt" in listed
    assert done.out.strip() == "The greeting says goodbye."
    entered(CODEX, "edits a file", "runs a command", *sorted(stage.proven() - {"chat"}))
