"""The process of one of several workers; only the supervisor runs it."""

from __future__ import annotations

import base64
import os
import pickle
import socket
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.errors import WorkflowComposerError
from workflow_composer.orchestrator import ModelOrchestrator
from workflow_composer.server.admin.strategy_switcher import Local, Plugins, SwitchAudit, Version
from workflow_composer.server.logs import ServiceLog, writing
from workflow_composer.server.service import Worker, run
from workflow_composer.server.settings import ServerSettings
from workflow_composer.server.tracing import collector
from workflow_composer.server.workers.control import WorkerChannel
from workflow_composer.support.own_program import FUNCTION_PATH

_SWITCH_SECONDS = 30.0


class Remote:
    """Client of the supervisor's switchboard in a worker."""

    def __init__(self, channel: WorkerChannel) -> None:
        self._channel = channel

    async def preview(self, source: str) -> Mapping[str, Any]:
        """See `Switchboard`."""
        found = dict(await self._channel.ask("preview", source=source, limit=_SWITCH_SECONDS))
        found.pop("id", None)
        return found

    async def switch(self, source: str, *, who: str, why: str = "") -> Version:
        """See `Switchboard`."""
        return _version(await self._channel.ask("switch", source=source, who=who, why=why, limit=_SWITCH_SECONDS))

    async def rollback(self, number: int | None, *, who: str) -> Version:
        """See `Switchboard`."""
        return _version(await self._channel.ask("rollback", version=number, who=who, limit=_SWITCH_SECONDS))

    async def reload_plugins(
        self, *, who: str, why: str = "", dry_run: bool = False, back: bool = False
    ) -> Mapping[str, Any]:
        """See `Switchboard`."""
        asked = {"who": who, "why": why, "dry_run": dry_run, "back": back}
        found = dict(await self._channel.ask("reload_plugins", limit=_SWITCH_SECONDS, **asked))
        found.pop("id", None)
        return found

    async def versions(self) -> Sequence[Version]:
        """See `Switchboard`."""
        found = await self._channel.ask("versions")
        return [_version(one) for one in found["versions"]]


def _version(data: Mapping[str, Any]) -> Version:
    return Version(**{name: data[name] for name in Version.__slots__})


async def work(number: int, listening: socket.socket, control: socket.socket) -> None:
    """Serve until stopped, or until the supervisor exits."""
    log = ServiceLog(worker=number)
    with writing(log):
        await _work(number, listening, control, log)


async def _work(number: int, listening: socket.socket, control: socket.socket, log: ServiceLog) -> None:
    local: Local | None = None

    async def prepare(data: Mapping[str, Any]) -> Mapping[str, Any]:
        assert local is not None  # called only after the worker is ready
        await local.prepare(*_unpacked(data["config"]))
        return {}

    async def commit(data: Mapping[str, Any]) -> Mapping[str, Any]:
        assert local is not None
        await local.commit()
        return {}

    async def discard(data: Mapping[str, Any]) -> Mapping[str, Any]:
        assert local is not None
        await local.discard()
        return {}

    async def alive(data: Mapping[str, Any]) -> Mapping[str, Any]:
        return {}

    channel = WorkerChannel({"prepare": prepare, "commit": commit, "discard": discard, "alive": alive})
    await channel.open(control)
    told = await channel.ask("settings")
    settings = ServerSettings.from_dict(told["settings"], admin_token=told["token"])
    audit = SwitchAudit(settings.state_directory / "audit.jsonl", report=log.warning)

    def switchboard(orchestrator: ModelOrchestrator) -> Remote:
        return Remote(channel)

    config, plugins = _unpacked(told["config"])
    worker = Worker(settings, os.environ, log, audit, config, switchboard, number=number, plugins=plugins)
    async with worker:
        local = Local(worker.orchestrator, collector=collector(os.environ))

        async def orphaned() -> None:
            await channel.closed.wait()
            worker.stop()

        worker.begin(orphaned())
        await channel.ask("ready", version=told["version"], limit=_SWITCH_SECONDS)
        await worker.work(listening)
    channel.close()


def _unpacked(text: str) -> tuple[StrategyConfig, Plugins]:
    config, plugins = pickle.loads(zlib.decompress(base64.b64decode(text)))  # noqa: S301  # from the supervisor
    assert isinstance(config, StrategyConfig)
    return config, plugins


def main() -> None:
    """Serve on the inherited sockets: arguments are the worker's number, two descriptors, and whether functions that a
    profile names are looked up in the working directory.
    """
    number, listening, control, sees_here = map(int, sys.argv[1:])
    if sees_here:
        FUNCTION_PATH.append(str(Path.cwd()))
    with socket.socket(fileno=listening) as sock, socket.socket(fileno=control) as channel:
        sock.setblocking(False)
        channel.setblocking(False)
        try:
            run(work(number, sock, channel))
        except WorkflowComposerError as error:  # report in the supervisor's log
            log = ServiceLog(worker=number)
            with writing(log):
                log.warning("a worker cannot start", error=str(error))
            sys.exit(error.exit_code)
