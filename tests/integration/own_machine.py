"""A person's machine in a network of its own: model servers on their usual ports, and a terminal.

`Machine.types` types a command on a terminal (pexpect) and gives back the terminal; `Machine.runs` runs it to its end
without one. Each command runs in fresh namespaces with a loopback interface of its own, so that tests may use the usual
ports side by side.
The servers are those of `local_servers`, each in a process of its own, as the user that it is given::

    machine = Machine(folder, Stand("ollama", 11434, "llama3.1:8b"))
    screen = machine.types("init")
    screen.expect("wrote config/strategies/local.yaml")
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import pexpect

from tests.integration.test_egress_namespace import NAMESPACES, ROOT

PATIENCE = 180
"""Seconds for whatever a test waits for on a screen."""


class Stand:
    """A server to start: kind, port, and models as `local_servers` takes them; ``user`` is the number of who runs it."""

    def __init__(self, kind: str, port: int, *models: str, user: int = 0) -> None:
        self.arguments = [kind, str(port), str(user), *models]


class Machine:
    """A working directory, an environment without keys but those of ``keys``, and servers. ``users``: name -> number."""

    def __init__(
        self,
        folder: Path,
        *stands: Stand,
        keys: Mapping[str, str] | None = None,
        users: Mapping[str, int] | None = None,
    ) -> None:
        folder.mkdir(exist_ok=True, parents=True)
        self.folder = folder
        self.stands = stands
        self._users = dict(users or {})
        self._environ = {
            **{name: os.environ[name] for name in ("PATH", "COVERAGE_PROCESS_START") if name in os.environ},
            **(keys or {}),
            "HOME": str(folder),
            "XDG_CONFIG_HOME": str(folder / ".config"),
            "XDG_STATE_HOME": str(folder / ".state"),
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "TERM": "dumb",
            "COLUMNS": "200",
            "LINES": "50",
        }

    @property
    def profile(self) -> Path:
        """Where `init` writes."""
        return self.folder / "config" / "strategies" / "local.yaml"

    def types(self, *arguments: str) -> pexpect.spawn:
        """Type ``python -m workflow_composer ARGUMENTS`` on a terminal."""
        command = self._command(["-m", "workflow_composer", *arguments])
        return self._spawn(command)

    def types_line(self, line: str) -> pexpect.spawn:
        """Type a line as it stands on a screen: ``python`` is this interpreter."""
        return self._spawn(self._command(["-c", _SHELL, line]))

    def _spawn(self, command: Sequence[str]) -> pexpect.spawn:
        return pexpect.spawn(
            command[0],
            list(command[1:]),
            cwd=self.folder,
            env=self._environ,
            encoding="utf-8",
            timeout=PATIENCE,
            dimensions=(50, 200),
            echo=False,
        )

    def runs(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the same without a terminal."""
        return subprocess.run(
            self._command(["-m", "workflow_composer", *arguments]),
            cwd=self.folder,
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    def _command(self, arguments: Sequence[str]) -> list[str]:
        setting = json.dumps({"stands": [stand.arguments for stand in self.stands], "users": self._users})
        return [*NAMESPACES, sys.executable, "-m", "tests.integration.own_machine", setting, *arguments]


_SHELL = """
import os, sys
os.execvp("bash", ["bash", "-c", "python() { " + repr(sys.executable) + ' "$@"; }; ' + sys.argv[1]])
"""


def whole(screen: pexpect.spawn) -> tuple[str, int]:
    """What is left on a screen when its program ends, and its exit code."""
    screen.expect(pexpect.EOF)
    screen.close()
    return (screen.before or "").replace("\r", ""), screen.exitstatus if screen.exitstatus is not None else -1


def interrupted(screen: pexpect.spawn) -> tuple[str, int]:
    """Press Ctrl-C until the program ends, and return as `whole`.

    Python loses a signal that arrives just before it waits for a line, so that once may not be enough.
    """
    for _ in range(PATIENCE):
        screen.sendintr()
        if screen.expect([pexpect.EOF, pexpect.TIMEOUT], timeout=1) == 0:
            break
    return whole(screen)


def main(setting: str, arguments: Sequence[str]) -> int:
    """Start the servers in these namespaces, run Python with the arguments, and return its exit code."""
    wanted = json.loads(setting)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    if wanted["users"]:
        known = Path("/etc/passwd").read_text().splitlines()
        taken = {str(number) for number in wanted["users"].values()}
        lines = [line for line in known if line.split(":")[0] not in wanted["users"] and line.split(":")[2] not in taken]
        lines += [f"{name}:x:{number}:{number}::/nonexistent:/usr/sbin/nologin" for name, number in wanted["users"].items()]
        own = Path.cwd() / ".passwd"
        own.write_text("\n".join(lines) + "\n")
        subprocess.run(["mount", "--bind", own, "/etc/passwd"], check=True)
    with ExitStack() as stack:
        for stand in wanted["stands"]:
            command = [sys.executable, "-m", "tests.integration.local_servers", *stand]
            process = stack.enter_context(
                subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline(), "the server did not start"
        with subprocess.Popen([sys.executable, *arguments]) as command:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C on the terminal is for the command, which ends by itself
            return command.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
