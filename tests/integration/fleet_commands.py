"""The commands of a fleet as a person types them, and the accidents that befall its servers."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.paths import ROOT
from workflow_composer.fleet.processes import command_line, descendants, find
from workflow_composer.fleet.state import StateStore

FOREIGN = ("WORKFLOW_COMPOSER", "BIOPIPELINES", "VLLM", "PYTHON")
"""Variables that would change what is tested."""


class Fleet:
    """A fleet file in a folder, and ``python -m workflow_composer fleet`` on it."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], environ: Mapping[str, str]) -> None:
        self.folder = folder
        self.file = folder / "fleet.yaml"
        own = {"registry": str(folder / "registry"), "state": str(folder / "state"), "logs": str(folder / "logs")}
        self.file.write_text(json.dumps(own | dict(settings)))
        kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        self.environ = kept | {"PYTHONPATH": str(ROOT)} | dict(environ)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command."""
        command = [sys.executable, "-m", "workflow_composer", "fleet", *arguments, "--fleet", str(self.file)]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environ, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True
        )

    def run(self, *arguments: str, seconds: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        with self.start(*arguments) as process:
            try:
                out, err = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def up(self, seconds: float = 120.0) -> None:
        """Start what does not run."""
        done = self.run("up", seconds=seconds)
        assert done.returncode == 0, done.stdout + done.stderr

    def forget(self) -> None:
        """Forget earlier incidents, restarts, checks and alerts."""
        shutil.rmtree(self.folder / "state" / "monitor", ignore_errors=True)
        (self.folder / "alerts.jsonl").unlink(missing_ok=True)
        states = StateStore(self.folder / "state")
        for state in states.all():
            states.update(state.server, restarts=())

    def monitor(self) -> subprocess.CompletedProcess[str]:
        """One round, as cron runs it."""
        return self.run("monitor", seconds=300.0)

    def status(self, *arguments: str) -> dict[str, dict[str, Any]]:
        """What `fleet status --json` says, by server."""
        done = self.run("status", "--json", *arguments)
        assert done.returncode == 0, done.stderr
        return {line["server"]: line for line in json.loads(done.stdout)}

    def state(self, server: str) -> dict[str, Any]:
        """What the fleet's state says of a server."""
        found: dict[str, Any] = json.loads((self.folder / "state" / f"{server}.json").read_text())
        return found

    def log(self, server: str) -> str:
        """The end of a server's log."""
        with contextlib.suppress(OSError):
            return Path(self.state(server)["log"]).read_text(errors="replace")[-3000:]
        return ""

    def vllm(self, server: str) -> int:
        """The process of a server's vLLM: the one below its guard that leads a group."""
        state = self.state(server)
        for process in descendants(state["pid"]):
            words = command_line(process.pid)
            if "vllm.entrypoints.openai.api_server" in words and "guard.py" not in " ".join(words[:5]):
                return process.pid
        raise AssertionError(f"{server} has no vLLM: {state}")

    def kill(self, server: str) -> None:
        """SIGKILL its vLLM, as the system does when memory runs out; returns when its supervisor has noticed."""
        os.kill(self.vllm(server), signal.SIGKILL)
        until(lambda: self.state(server)["status"] == "failed", f"{server}'s supervisor notices")

    def freeze(self, server: str) -> None:
        """SIGSTOP its vLLM and all its processes: the port stays open, and nothing is answered."""
        os.killpg(self.vllm(server), signal.SIGSTOP)

    def rounds_until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Run the monitor again and again until the condition holds."""
        ends = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < ends, "not in time: " + json.dumps(self.status(), indent=1)
            self.monitor()

    def processes(self) -> list[int]:
        """Every process that belongs to this fleet: supervisors, guards, vLLM."""
        return [pid for entry in Path("/proc").iterdir() if entry.name.isdigit() and self._ours(pid := int(entry.name))]

    def _ours(self, pid: int) -> bool:
        if pid == os.getpid() or find(pid) is None:
            return False
        with contextlib.suppress(OSError):
            return str(self.folder).encode() in Path(f"/proc/{pid}/environ").read_bytes()
        return False

    def end(self) -> None:
        """Stop everything, whatever has happened."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.run("down", seconds=120.0)
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Wait until it holds. Raises AssertionError."""
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, f"not within {seconds:g} s: {what}"
        time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """Ports that nobody has now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def alerting(folder: Path) -> list[str]:
    """A command that keeps every alert it is given; `alerts` reads them."""
    script = folder / "tell.py"
    script.write_text(f"import sys\nopen({str(folder / 'alerts.jsonl')!r}, 'a').write(sys.stdin.read() + '\\n')\n")
    return [sys.executable, str(script)]


def alerts(folder: Path) -> list[tuple[str, str]]:
    """Server and kind of every alert that the command was given."""
    with contextlib.suppress(FileNotFoundError):
        lines = (folder / "alerts.jsonl").read_text().splitlines()
        return [(alert["server"], alert["kind"]) for alert in map(json.loads, lines)]
    return []
