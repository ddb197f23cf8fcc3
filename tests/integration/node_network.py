"""Run by `test_fleet_addresses` in a network of its own: a SLURM whose nodes have addresses of their own, and a fleet on it.

Each node is a network namespace at the end of a virtual cable, as a machine of a cluster is. Prints one line of JSON.
Usage: python -m tests.integration.node_network DIRECTORY (as root, in fresh network and mount namespaces).
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.integration.commanded_vllm import make_commanded_vllm
from tests.integration.fleet_rig import Nodes, make
from workflow_composer import ModelOrchestrator
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.metrics.sink import MemorySink

CONTROLLER = "10.77.0.254"
ADDRESSES = {"n1": "10.77.0.1", "n2": "10.77.0.2"}


class Cabled(Nodes):
    """Nodes in namespaces of their own."""

    def address(self, node: str) -> str:
        """The node's end of its cable."""
        return ADDRESSES[node]

    def inside(self, node: str) -> list[str]:
        """In the node's namespace."""
        return ["ip", "netns", "exec", space(node)]


def space(node: str) -> str:
    """The name of a node's namespace."""
    return f"wc{os.getpid()}-{node}"


def ip(*words: str) -> None:
    """Run ``ip``."""
    subprocess.run(["ip", *words], check=True)


@contextlib.contextmanager
def cables() -> Iterator[None]:
    """A switch, to which the controller and the nodes are connected."""
    ip("link", "set", "lo", "up")
    ip("link", "add", "switch", "type", "bridge")
    ip("address", "add", f"{CONTROLLER}/24", "dev", "switch")
    ip("link", "set", "switch", "up")
    try:
        for node, address in ADDRESSES.items():
            ip("netns", "add", space(node))
            ip("link", "add", f"to-{node}", "type", "veth", "peer", "name", "eth0", "netns", space(node))
            ip("link", "set", f"to-{node}", "master", "switch", "up")
            ip("-n", space(node), "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", space(node), "link", "set", device, "up")
        yield
    finally:
        for node in ADDRESSES:
            subprocess.run(["ip", "netns", "delete", space(node)], check=False)


def ask(registry: Path, count: int) -> list[str]:
    """Ask the role this many times; texts of answers, or errors."""
    profile = StrategyConfig(
        profile_name="nodes",
        allow_cloud=False,
        task_routing={"*": "coder"},
        vllm_endpoints={"coder": "registry:coder"},
        registry=str(registry),
        retries={"attempts": 1},
    )
    with ModelOrchestrator(profile, metrics=MemorySink(), environ={}) as orchestrator:
        found = []
        for _ in range(count):
            try:
                found.append(orchestrator.generate("6 * 7?").text)
            except Exception as error:
                found.append(repr(error))
        return found


def main(folder: Path) -> None:
    """Two replicas on two nodes, then the cable of one is cut."""
    fake = make_commanded_vllm(folder / "fake")
    edit = lambda text: text.replace("(127.0.0.1)", f"({CONTROLLER})")  # noqa: E731
    with cables(), Cabled(("n1", "n2"), edit=edit, cpus=1) as cluster:
        fleet = make(cluster, folder / "fleet", fake, "coder", replicas=2)
        del fleet.settings["listen"]
        fleet.write()
        fleet.command("submit", "--wait")
        hosts = {entry.host: entry.node for entry in fleet.fleet.registry.entries("coder") if entry.state == "ready"}
        before = ask(folder / "fleet" / "registry", 6)
        ip("link", "set", "to-n1", "down")
        after = ask(folder / "fleet" / "registry", 4)
        ip("link", "set", "to-n1", "up")
        fleet.command("down")
        left = [entry.host for entry in fleet.fleet.registry.entries("coder")]
    print(json.dumps({"hosts": sorted(hosts), "before": before, "after": after, "left": left}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
