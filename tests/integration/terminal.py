"""The command line at a terminal: a pseudo-terminal whose screen tests read, and whose keys they press."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pexpect

from tests.integration.stub_server import StubServer
from tests.paths import ROOT

PATIENCE = 60
CTRL_D = "\x04"
UP = "\x1b[A"
_STYLES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
FOREIGN = ("WORKFLOW_COMPOSER", "BIOPIPELINES", "PYTHONUNBUFFERED", "PROMPT_TOOLKIT", "INPUTRC")


def profile_of(server: StubServer, name: str = "stub", **fields: Any) -> dict[str, Any]:
    """A profile whose one model is the server's."""
    return {
        "profile_name": name,
        "allow_cloud": False,
        "models": {"small": {"backend": "vllm", "base_url": server.url, "model": "stub-model"}},
        "task_routing": {"*": "small"},
        "retries": {"attempts": 1},
    } | fields


class Terminal:
    """The command line in a folder, at a terminal."""

    def __init__(self, folder: Path, *arguments: str, redirected: str = "", **environ: str) -> None:
        """``redirected``: a shell's words for streams that go elsewhere, such as ``2>errors.txt``."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
        state = {"PYTHONPATH": str(ROOT), "TERM": "xterm", "XDG_STATE_HOME": str(folder / "state"), "LC_ALL": "C.UTF-8"}
        command = [sys.executable, "-m", "workflow_composer", *arguments]
        if redirected:
            command = ["sh", "-c", f'exec "$@" {redirected}', "sh", *command]
        self.child = pexpect.spawn(
            command[0],
            command[1:],
            cwd=str(folder),
            env=kept | state | environ,
            encoding="utf-8",
            timeout=PATIENCE,
            dimensions=(50, 250),
        )

    def until(self, text: str) -> str:
        """Wait until the screen shows this text; return what came before it since the last call, without styles."""
        self.child.expect_exact(text)
        return _STYLES.sub("", self.child.before)

    def say(self, line: str, prompt: str = "stub> ") -> str:
        """Type a line; return what is shown until the next prompt, without the line itself."""
        self.child.sendline(line)
        self.until(line[-40:])
        return self.until(prompt)

    def press(self, keys: str) -> None:
        """Press keys."""
        self.child.send(keys)

    def end(self) -> tuple[int | None, str]:
        """Wait for the end of the program; return its exit code and the rest of the screen."""
        self.child.expect(pexpect.EOF)
        rest = _STYLES.sub("", self.child.before)
        self.child.close()
        return self.child.exitstatus, rest

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.close(force=True)


def write_profile(folder: Path, profile: dict[str, Any]) -> None:
    """Write a profile under its name."""
    (folder / f"{profile['profile_name']}.yaml").write_text(json.dumps(profile))
