"""Run by `test_egress_namespace` in a network of its own: does what must send nothing, and reports every packet.

The network has a default route, a resolver and a proxy, all beyond a virtual cable whose far end is read here, so whatever
leaves the machine is seen. Usage: python -m tests.integration.sealed_network DIRECTORY (as root, in fresh namespaces).
"""

from __future__ import annotations

import asyncio
import json
import select
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.integration.stub_backends import call as a_call
from tests.integration.stub_backends import cloud_backend, local_backend
from tests.integration.stub_server import Reply, StubServer
from workflow_composer import ModelOrchestrator
from workflow_composer.backends.http.client import Client
from workflow_composer.backends.http.egress import EgressPolicy
from workflow_composer.backends.replicas.registry import Entry, ServerRegistry
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.types import Timeouts

RESOLVER, FAR, PROXY, CLOUD = "203.0.113.53", "203.0.113.7", "203.0.113.66", "203.0.113.9"

CABLE = """
link set lo up
link add near type veth peer name far
link set near up
link set far up
address add 192.0.2.2/24 dev near
neighbour add 192.0.2.1 lladdr 02:00:00:00:00:01 dev near
route add default via 192.0.2.1
-6 address add 2001:db8::2/64 dev near nodad
-6 neighbour add 2001:db8::1 lladdr 02:00:00:00:00:01 dev near
-6 route add default via 2001:db8::1 dev near
"""


class Wire:
    """The far end of the cable."""

    def __init__(self) -> None:
        for line in CABLE.strip().splitlines():
            subprocess.run(["ip", *line.split()], check=True)
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._socket.bind(("far", 0))

    def packets(self) -> list[str]:
        """What has left since the last question: protocol and destination. Waits until it has been quiet for a while."""
        found = []
        while select.select([self._socket], [], [], 0.3)[0]:
            frame, (_, _, kind, *_) = self._socket.recvfrom(65535)
            if kind != socket.PACKET_OUTGOING and (summary := _summary(frame)):
                found.append(summary)
        return found


def _summary(frame: bytes) -> str | None:
    kind = frame[12:14]
    if kind == b"\x08\x00":
        header = 14 + (frame[14] & 15) * 4
        return _flow(frame[23], socket.inet_ntop(socket.AF_INET, frame[30:34]), frame[header:])
    if kind == b"\x86\xdd":
        if frame[20] == 0 or (frame[20] == 58 and 130 <= frame[54] <= 143):
            return None  # the kernel looks for neighbours and routers
        return _flow(frame[20], socket.inet_ntop(socket.AF_INET6, frame[38:54]), frame[54:])
    return f"ethertype {kind.hex()}"


def _flow(protocol: int, address: str, payload: bytes) -> str:
    name = {6: "tcp", 17: "udp"}.get(protocol)
    return f"{name} {address} {struct.unpack('!H', payload[2:4])[0]}" if name else f"protocol {protocol} {address}"


def main(directory: Path) -> dict[str, Any]:
    """Outcome and packets of each action."""
    wire = Wire()
    _replace("/etc/resolv.conf", f"nameserver {RESOLVER}\noptions timeout:1 attempts:1\n", directory)
    _replace("/etc/hosts", f"127.0.0.1 localhost\n::1 localhost\n{FAR} gpu-far\n", directory)
    wire.packets()
    report: dict[str, Any] = {}
    for name, action in ACTIONS.items():
        try:
            outcome = action()
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"
        report[name] = {"outcome": str(outcome), "packets": wire.packets()}
    return report


def _replace(path: str, text: str, directory: Path) -> None:
    file = directory / Path(path).name
    file.write_text(text)
    subprocess.run(["mount", "--bind", file, path], check=True)


# ----------------------------------------------------------------------------------------------------- it can be seen


def udp() -> None:
    """One datagram."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", (CLOUD, 9))


def udp6() -> None:
    """One datagram, IPv6."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", ("2001:db8:1::9", 9))


def tcp() -> None:
    """One attempt to connect."""
    with socket.socket() as sock:
        sock.setblocking(False)
        sock.connect_ex((CLOUD, 443))


def dns() -> None:
    """One name."""
    socket.getaddrinfo("control.example", 80)


# -------------------------------------------------------------------------------------------------- it must not happen


def orchestrated(use: Callable[[ModelOrchestrator], Any]) -> Any:
    """Something done with the shipped profile that keeps data local; every server is down."""
    with ModelOrchestrator("t4_local_only", metrics=None) as models:
        return use(models)


def far_name() -> Any:
    """A local endpoint whose name resolves to an address out in the world."""
    return run(local_backend("http://gpu-far:8001/v1", model="m"), "complete")


def far_name_probed() -> Any:
    """The same, by a probe."""
    return run(local_backend("http://gpu-far:8001/v1", model="m"), "health")


def redirect() -> Any:
    """A local server that sends its callers elsewhere."""
    with StubServer() as server:
        server.script(Reply.redirect(f"http://{FAR}/v1/chat/completions"))
        return run(local_backend(server.url), "complete")


def registered(host: str, use: Callable[[ModelOrchestrator], Any], *, role: str = "coder") -> Any:
    """Something done under a profile that keeps data local, after somebody has registered a server there."""
    with tempfile.TemporaryDirectory() as folder:
        places = {"server": "s", "role": role, "host": host, "port": 8001, "model": "m", "state": "ready"}
        ServerRegistry(Path(folder)).publish(Entry(**places, started=time.time(), updated=0.0))
        config = StrategyConfig(
            profile_name="local",
            allow_cloud=False,
            vllm_endpoints={"coder": "registry:coder"},
            task_routing={"*": "coder"},
            registry=folder,
        )
        with ModelOrchestrator(config, metrics=None) as models:
            return use(models)


def registered_near() -> Any:
    """The positive control: a registered server on this machine answers."""
    with StubServer(port=8001) as server:
        return registered(server.host, lambda models: models.generate("secret").text)


def foreign_client() -> Any:
    """A plugin's backend that asks the package's client for a foreign host."""

    async def ask() -> Any:
        policy = EgressPolicy.of(StrategyConfig.load("t4_local_only"))
        async with Client(policy) as client:
            return await client.ask("http://data-in-a-name.example/")

    return asyncio.run(ask())


def cloud_call() -> Any:
    """What a profile that allows the cloud does: it tries, through the environment's proxy."""
    return run(cloud_backend(f"http://{CLOUD}/v1"), "complete")


def cloud_call_by_proxy() -> Any:
    """The same, through the environment's proxy."""
    environ = {"STUB_KEY": "k", "http_proxy": f"http://{PROXY}:3128"}
    return run(cloud_backend(f"http://{CLOUD}/v1", environ), "complete")


def run(backend: Any, what: str) -> Any:
    """One call of a backend, in a loop of its own."""

    async def work() -> Any:
        try:
            if what == "health":
                return await backend.health(timeout=2)
            return await backend.complete(a_call(timeouts=Timeouts(connect=0.3)))
        finally:
            await backend.close()

    return asyncio.run(work())


ACTIONS: dict[str, Callable[[], Any]] = {
    "seen: udp": udp,
    "seen: udp6": udp6,
    "seen: tcp": tcp,
    "seen: dns": dns,
    "seen: cloud call": cloud_call,
    "seen: cloud call by proxy": cloud_call_by_proxy,
    "sealed: generate": lambda: orchestrated(lambda models: models.generate("secret", task_type="code_generation")),
    "sealed: stream": lambda: orchestrated(lambda models: list(models.stream("secret"))),
    "sealed: embed": lambda: orchestrated(lambda models: models.embed(["secret"])),
    "sealed: status": lambda: orchestrated(lambda models: models.status().resources.vllm_endpoints),
    "sealed: far name": far_name,
    "sealed: far name probed": far_name_probed,
    "sealed: redirect": redirect,
    "sealed: foreign client": foreign_client,
    "sealed: registered near": registered_near,
    "sealed: registered far": lambda: registered(FAR, lambda models: models.generate("secret")),
    "sealed: registered far name": lambda: registered("gpu-far", lambda models: models.generate("secret")),
    "sealed: registered far status": lambda: registered("gpu-far", lambda models: models.status().resources),
    "sealed: registered for another": lambda: registered("127.0.0.1", lambda models: models.generate("secret"), role="math"),
    "seen at the end: udp": udp,
}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
