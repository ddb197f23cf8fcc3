"""A SLURM of several nodes on loopback, and folders of fleets that share it: the rig of the fleet's cases."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import yaml

from tests.integration import slurm_cluster
from tests.integration.slurm_cluster import SlurmCluster
from tests.integration.slurm_fleet import SlurmFleet, free_port

ADDRESSES = dict.fromkeys(("n1", "n2", "n3"), "127.0.0.1")


class Nodes(SlurmCluster):
    """A cluster of these nodes; a second one beside it has another name. ``edit`` changes its slurm.conf."""

    def __init__(
        self,
        nodes: tuple[str, ...] = ("n1", "n2", "n3"),
        *,
        name: str = "wctest",
        edit: Callable[[str], str] = lambda text: text,
        **settings: object,
    ) -> None:
        self.nodes = nodes
        self.name = name
        self.conf_edit = edit
        super().__init__(**settings)

    def address(self, node: str) -> str:
        """The address of a node."""
        return "127.0.0.1"

    def inside(self, node: str) -> list[str]:
        """What precedes a command that runs on a node."""
        return []

    def _start(self) -> None:
        munge = self.place / "munge"
        munge.mkdir(mode=0o755)
        (munge / "key").write_bytes(os.urandom(1024))
        (munge / "key").chmod(0o400)
        for path in (munge, munge / "key"):
            shutil.chown(path, "munge", "munge")
        (self.place / "state").mkdir(mode=0o755)
        host = socket.gethostname().split(".")[0]
        controller, *ports = slurm_cluster._free_ports(1 + len(self.nodes))
        names = {"place": self.place, "munge": munge, "host": host, "node": "X"}
        text = slurm_cluster._CONF.format(**names, controller_port=controller, node_port=ports[0], **self._settings)
        own = ("NodeName=", "SlurmdPidFile", "SlurmdLogFile", "SlurmdSpoolDir")
        lines = [line.replace("Nodes=X", "Nodes=" + ",".join(self.nodes)) for line in text.splitlines()]
        lines = [line.replace("ClusterName=wctest", f"ClusterName={self.name}") for line in lines]
        lines = [line for line in lines if not line.startswith(own)]
        first = next(index for index, line in enumerate(lines) if line.startswith("PartitionName"))
        lines[first:first] = [self._node(node, host, port) for node, port in zip(self.nodes, ports, strict=True)]
        lines += [f"{what}={self.place}/{where}" for what, where in _PER_NODE.items()]
        self.conf.write_text(self.conf_edit("\n".join(lines) + "\n"))
        gpus = [self.place / f"gpu{number}" for number in range(self._settings["gpus"])]
        for gpu in gpus:
            gpu.touch()
        listed = ["AutoDetect=off", *(f"Name=gpu Type=t4 File={gpu}" for gpu in gpus)]
        (self.place / "gres.conf").write_text("\n".join(listed) + "\n")
        files = [f"--{what}-file={munge}/{what}" for what in ("key", "pid", "log", "seed")]
        as_munge = ["--reuid=munge", "--regid=munge", "--clear-groups"]
        self._daemon(["munged", "--foreground", "--force", f"--socket={munge}/socket", *files], as_munge)
        self._until((munge / "socket").exists, "munged")
        self._daemon(["slurmctld", "-D", "-i", "-f", str(self.conf)])
        for node in self.nodes:
            (self.place / f"spool-{node}").mkdir(mode=0o755)
            self._daemon([*self.inside(node), "slurmd", "-D", "-N", node, "-f", str(self.conf)])
        states = lambda: self.run("sinfo", "-h", "-N", "-p", "t4flex", "-o", "%T", check=False)  # noqa: E731
        self._until(lambda: states().count("idle") == len(self.nodes), "the nodes")

    def _node(self, node: str, host: str, port: int) -> str:
        has = f"CPUs={self._settings['cpus']} RealMemory=64000 Gres=gpu:t4:{self._settings['gpus']}"
        return f"NodeName={node} NodeAddr={self.address(node)} NodeHostname={host} Port={port} {has}"

    def slurmd(self, node: str) -> subprocess.Popen[bytes]:
        """The daemon of a node."""
        return next(daemon for daemon in self._daemons if "slurmd" in daemon.args and node in daemon.args)

    def stop(self) -> None:
        """End all jobs, then the daemons, and remove the folder."""
        self._end_jobs()
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons.clear()
        shutil.rmtree(self.place, ignore_errors=True)


_PER_NODE = {"SlurmdPidFile": "slurmd-%n.pid", "SlurmdLogFile": "slurmd-%n.log", "SlurmdSpoolDir": "spool-%n"}


def make(cluster: SlurmCluster, folder: Path, fake: Path, role: str, *, replicas: int = 1, **slurm: object) -> SlurmFleet:
    """A folder with a fleet file, with registry, state and logs in it; its role serves ``m-ROLE``."""
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text('{"architectures":["X"]}')
    made = SlurmFleet(cluster, folder, {"PYTHONPATH": str(fake)}, **{"drain_before": 600, **slurm})
    made.settings["monitor"] = {"answer_seconds": 3, "backoff": 1}
    made.settings["roles"][role] = {
        "model": "./model",
        "served_name": f"m-{role}",
        "device": "cpu",
        "port": free_port(),
        "drain_seconds": 3,
        "start_seconds": 20,
        "replicas": replicas,
    }
    made.write()
    return made


def copy_of(fleet: SlurmFleet, folder: Path, **changes: object) -> SlurmFleet:
    """The same fleet file in another folder."""
    shutil.copytree(fleet.folder / "model", folder / "model")
    made = SlurmFleet(fleet.cluster, folder, {})
    made.environ = dict(fleet.environ)
    made.settings = {**yaml.safe_load(fleet.file.read_text()), **changes}
    made.write()
    return made
