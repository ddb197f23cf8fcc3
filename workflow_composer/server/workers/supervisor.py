"""Several workers behind one address: started, watched, started again, switched together, ended together.

The sockets are bound once and inherited (`workflow_composer.server.workers.listeners`), so no request is turned away while a
worker is replaced: what waits in its socket's queue waits for its successor.

The supervisor serves nothing itself. A worker that notices the supervisor's end drains and ends, too.
"""

from __future__ import annotations

import asyncio
import base64
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.errors import ConfigError
from workflow_composer.metrics.live import forget
from workflow_composer.orchestrator import ModelOrchestrator
from workflow_composer.server.admin.strategy_switcher import Strategies, SwitchAudit, plain, reload, watch
from workflow_composer.server.auth.keys import read_keys
from workflow_composer.server.logs import ServiceLog
from workflow_composer.server.settings import ServerSettings
from workflow_composer.server.tracing import collector
from workflow_composer.server.workers.control import WorkerChannel
from workflow_composer.server.workers.egress_check import prove_egress
from workflow_composer.server.workers.listeners import announce, close

MOST_FAILURES = 5
"""So many workers in a row that ended before they served are enough."""
_LONGEST_PAUSE = 5.0


def supervise(settings: ServerSettings, listening: list[socket.socket], environ: Mapping[str, str]) -> None:
    """Run the workers until SIGTERM or Ctrl-C. Raises `ConfigError` where they cannot be started."""
    asyncio.run(WorkerSupervisor(settings, listening, environ).run())


class WorkerProcess:
    """One worker, seen from the supervisor; takes part in switches."""

    def __init__(self, number: int, process: subprocess.Popen[bytes], channel: WorkerChannel) -> None:
        self.number = number
        self.process = process
        self.channel = channel
        self.ready = asyncio.Event()
        self.began = time.monotonic()

    async def prepare(self, config: StrategyConfig) -> None:
        """Have it build another strategy. Raises `ConfigError`."""
        await self.channel.ask("prepare", config=_packed(config))

    async def commit(self) -> None:
        """Have it publish that. One that cannot is ended: it would go on serving another strategy than the rest."""
        try:
            await self.channel.ask("commit")
        except (ConfigError, TimeoutError):
            self.process.kill()
            raise

    async def discard(self) -> None:
        """Have it forget that."""
        await self.channel.ask("discard")


class WorkerSupervisor:
    """Starts and watches the workers."""

    def __init__(self, settings: ServerSettings, listening: list[socket.socket], environ: Mapping[str, str]) -> None:
        self._settings = settings
        self._listening = listening
        self._environ = environ
        self._log = ServiceLog()
        self._workers: dict[int, WorkerProcess] = {}
        self._stop = asyncio.Event()
        self._failures = 0
        self._fault: ConfigError | None = None
        self._audit = SwitchAudit(settings.state_directory / "audit.jsonl", report=self._log.warning)

    async def run(self) -> None:
        """Until stopped."""
        settings = self._settings
        settings.state_directory.mkdir(parents=True, exist_ok=True)
        forget(settings.state_directory)
        config = await self._checked()
        self._strategies = Strategies(config, self._ready, self._audit, environ=self._environ)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        tasks = [loop.create_task(self._keep(number)) for number in range(settings.workers)]
        loop.add_signal_handler(
            signal.SIGHUP, lambda: tasks.append(loop.create_task(reload(self._strategies, "SIGHUP", self._log.event)))
        )
        try:
            if await self._all_ready():
                announce(settings, self._listening[0], self._strategies.active.profile_name)
            if settings.watch:
                tasks.append(loop.create_task(watch(self._strategies, self._log.event)))
            await self._stop.wait()
        finally:
            await self._end(tasks)
        if self._fault is not None:
            raise self._fault

    async def _checked(self) -> StrategyConfig:
        """The profile. What would keep every worker from serving is told here, once. Raises `ConfigError`."""
        if self._settings.keys_file is not None:
            read_keys(self._settings.keys_file)
        async with ModelOrchestrator(self._settings.strategy, environ=self._environ) as chosen:
            snapshot = chosen.prepare_strategy(chosen.config)
            try:
                await prove_egress(snapshot, collector=collector(self._environ))
            finally:
                await snapshot.retire()
            return chosen.config

    def _ready(self) -> list[WorkerProcess]:
        return [worker for worker in self._workers.values() if worker.ready.is_set() and not worker.channel.closed.is_set()]

    async def _all_ready(self) -> bool:
        while not self._stop.is_set():
            if len(self._ready()) == self._settings.workers:
                return True
            await asyncio.sleep(0.01)
        return False

    async def _keep(self, number: int) -> None:
        """Have a worker of this number, always; one that dies again and again gets pauses, and in the end gives up."""
        while not self._stop.is_set():
            worker = self._workers[number] = await self._start(number)
            await worker.channel.closed.wait()
            code = await asyncio.to_thread(worker.process.wait)
            if self._stop.is_set():
                return
            age = time.monotonic() - worker.began
            self._failures = 0 if worker.ready.is_set() else self._failures + 1
            self._log.warning("a worker has ended and is started again", worker=number, code=code, seconds=round(age, 1))
            if self._failures >= MOST_FAILURES:
                hint = "the log above says why; try with --workers 1"
                self._fault = ConfigError(f"{self._failures} workers in a row ended before they served", hint=hint)
                self._stop.set()
                return
            if self._failures > 1:
                await asyncio.sleep(min(_LONGEST_PAUSE, 0.1 * 2.0**self._failures))

    async def _start(self, number: int) -> WorkerProcess:
        ours, theirs = socket.socketpair()
        environ = {**os.environ, **self._environ}
        command = [sys.executable, "-m", "workflow_composer.server.workers.worker"]
        descriptors = (self._listening[number].fileno(), theirs.fileno())
        arguments = [str(number), *map(str, descriptors)]
        # Of its own group: a Ctrl-C on the terminal reaches the supervisor, which then lets the workers drain.
        process = subprocess.Popen(  # noqa: ASYNC220, S603  # returns at once; it is this program
            [*command, *arguments], pass_fds=descriptors, env=environ, start_new_session=True, stdin=subprocess.DEVNULL
        )
        theirs.close()
        worker = WorkerProcess(number, process, WorkerChannel(self._answers(number)))
        await worker.channel.open(ours)
        return worker

    def _answers(self, number: int) -> dict[str, Any]:
        """What a worker may ask."""
        strategies = self._strategies

        async def settings(data: Mapping[str, Any]) -> Mapping[str, Any]:
            return {
                "settings": self._settings.to_dict(),
                "config": _packed(strategies.active),
                "token": self._settings.admin_token,
            }

        async def ready(data: Mapping[str, Any]) -> Mapping[str, Any]:
            worker = self._workers[number]
            await strategies.join(worker, data["digest"], worker.ready.set)
            return {}

        async def preview(data: Mapping[str, Any]) -> Mapping[str, Any]:
            return await strategies.preview(data["source"])

        async def switch(data: Mapping[str, Any]) -> Mapping[str, Any]:
            return plain(await strategies.switch(data["source"], who=data["who"], why=data["why"]))

        async def rollback(data: Mapping[str, Any]) -> Mapping[str, Any]:
            return plain(await strategies.rollback(data["version"], who=data["who"]))

        async def versions(data: Mapping[str, Any]) -> Mapping[str, Any]:
            return {"versions": [plain(version) for version in await strategies.versions()]}

        handlers = (settings, ready, preview, switch, rollback, versions)
        return {handler.__name__: handler for handler in handlers}

    async def _end(self, tasks: list[asyncio.Task[Any]]) -> None:
        """Let every worker drain, then see that it is gone."""
        self._stop.set()
        close(self._listening)  # whoever comes now is refused at once, instead of waiting for nobody
        for worker in self._workers.values():
            with suppress(ProcessLookupError):
                worker.process.send_signal(signal.SIGTERM)
        limit = self._settings.drain_seconds + 5.0
        for worker in self._workers.values():
            try:
                await asyncio.to_thread(worker.process.wait, limit)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                await asyncio.to_thread(worker.process.wait)
            worker.channel.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _packed(config: StrategyConfig) -> str:
    """A profile for a process of our own; nobody else can write to the channel."""
    return base64.b64encode(pickle.dumps(config)).decode("ascii")
