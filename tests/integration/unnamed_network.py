"""Run by `test_unnamed_namespace` in a network of its own: the program's commands with cloud keys and no strategy named.

Beyond the virtual cable, everything is captured and a name server answers every question, so that whoever asks for a name or
calls a cloud is seen. Usage: python -m tests.integration.unnamed_network DIRECTORY (as root, in fresh namespaces).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.integration.sealed_network import CLOUD, RESOLVER, Wire, _replace, _summary
from tests.integration.service import Service, echoing
from tests.integration.stub_server import MODEL
from tests.paths import ROOT
from workflow_composer.backends.replicas.registry import REGISTRY_VARIABLE, Entry, ServerRegistry

KEYS = ("DEEPSEEK_API_KEY", "ANTHROPIC_API_KEY", "OPENAI_API_KEY")
QUIET = 0.4
"""Seconds without a packet after which a command has sent its last."""


class AnsweringWire(Wire):
    """The far end of the cable, with a name server: every name has the address `CLOUD`."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: list[str] = []
        self._came = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def packets(self) -> list[str]:
        """What has left since the last question: protocol and destination, and the names that were asked for."""
        while self._came.wait(QUIET):
            self._came.clear()
        seen, self._seen = self._seen, []
        return seen

    def _watch(self) -> None:
        while True:
            select.select([self._socket], [], [])
            frame, (_, _, kind, *_) = self._socket.recvfrom(65535)
            if kind == socket.PACKET_OUTGOING or (summary := _summary(frame)) is None:
                continue
            self._seen.append(summary)
            self._came.set()
            if summary == f"udp {RESOLVER} 53":
                self._answer(frame)

    def _answer(self, frame: bytes) -> None:
        """Answer a question for a name: an address of IPv4, and none of IPv6."""
        header = 14 + (frame[14] & 15) * 4
        ports, query = frame[header : header + 4], frame[header + 8 :]
        end = query.index(b"\0", 12)
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode())
            at += 1 + query[at]
        self._seen.append(f"name {'.'.join(labels)}")
        asked = query[12 : end + 5]
        is_v4 = asked[-4:-2] == b"\0\1"
        record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + socket.inet_aton(CLOUD) if is_v4 else b""
        dns = query[:2] + struct.pack("!HHHHH", 0x8180, 1, int(is_v4), 0, 0) + asked + record
        udp = ports[2:] + ports[:2] + struct.pack("!HH", 8 + len(dns), 0) + dns
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + frame[30:34] + frame[26:30]
        total = sum(struct.unpack("!10H", ip))
        total = (total & 0xFFFF) + (total >> 16)
        ip = ip[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + ip[12:]
        self._socket.send(frame[6:12] + frame[:6] + b"\x08\x00" + ip + udp)


class Machine:
    """A working directory and an environment with cloud keys; optionally a registered server, or a hidden engine."""

    def __init__(self, folder: Path, *, engine: bool) -> None:
        folder.mkdir()
        self.folder = folder
        places = [str(ROOT)]
        if not engine:
            (folder / "sitecustomize.py").write_text("import sys\nsys.modules['mistralrs'] = None\n")
            places.insert(0, str(folder))
        self.environ = {
            **{name: os.environ[name] for name in ("PATH", "HOME", "COVERAGE_PROCESS_START") if name in os.environ},
            **dict.fromkeys(KEYS, "k"),
            "PYTHONPATH": os.pathsep.join(places),
            "XDG_CONFIG_HOME": str(folder),
            "XDG_STATE_HOME": str(folder),
            REGISTRY_VARIABLE: str(folder / "registry"),
        }

    def command(self, *arguments: str) -> str:
        """Run a command of the program to its end: its exit code and what it has printed."""
        done = subprocess.run(
            [sys.executable, "-m", "workflow_composer", *arguments],
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return f"{done.returncode} {done.stdout}{done.stderr}"

    def serve(self, strategy: str | None) -> str:
        """Start the service and ask it once; the status and the strategy that answered, or why it did not start."""
        try:
            with Service(strategy, folder=self.folder, environ=self.environ) as service:
                status, headers, _ = service.ask("secret", timeout=4)
        except AssertionError as error:
            return str(error)
        return f"{status} {headers.get('x-workflow-composer-strategy')}"

    def actions(self, strategy: str | None = None) -> dict[str, Callable[[], str]]:
        """What a person does: look, look where a prompt would go, ask, serve, and have a profile written."""
        named = ("-s", strategy) if strategy else ()
        return {
            "status": lambda: self.command(*named, "status"),
            "route": lambda: self.command(*named, "route", "secret"),
            "generate": lambda: self.command(*named, "generate", "--timeout", "4", "secret"),
            "serve": lambda: self.serve(strategy),
            "init": lambda: self.command("init", "--yes", "--output", "found.yaml", "--force"),
        }


def main(directory: Path) -> dict[str, Any]:
    """Outcome and packets of each action on each machine."""
    wire = AnsweringWire()
    _replace("/etc/resolv.conf", f"nameserver {RESOLVER}\noptions timeout:1 attempts:1\n", directory)
    _replace("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n", directory)
    report: dict[str, Any] = {}

    def note(title: str, actions: dict[str, Callable[[], str]]) -> None:
        for name, action in actions.items():
            outcome = action()
            report[f"{title}: {name}"] = {"outcome": outcome, "packets": wire.packets()}

    wire.packets()
    keys = Machine(directory / "keys", engine=False)
    note("keys", keys.actions())
    note("engine", Machine(directory / "engine", engine=True).actions())
    with echoing() as stub:
        servers = Machine(directory / "servers", engine=False)
        place = {"host": stub.host, "port": stub.port, "model": MODEL}
        ServerRegistry(directory / "servers" / "registry").publish(
            Entry(server="g", role="generalist", state="ready", started=1.0, updated=0.0, **place)
        )
        note("servers", servers.actions())
    note("control", keys.actions("cloud_only"))
    return report


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        found = main(Path(sys.argv[1]))
    print(json.dumps(found))
