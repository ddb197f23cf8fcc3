"""The supervisor of several workers behind one address: starts, restarts, switches and stops them.

Workers inherit sockets that are bound once (`workflow_composer.server.workers.listeners`), so no connection is refused while
a worker is replaced: its successor accepts those in the socket's backlog.

The supervisor itself serves no requests. A worker drains and exits if the supervisor exits.
"""

from __future__ import annotations

import asyncio
import base64
import os
import pickle
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.errors import ChannelClosed, ConfigError
from workflow_composer.metrics.live import forget
from workflow_composer.orchestrator import ModelOrchestrator
from workflow_composer.runtime.destinations import tell_where
from workflow_composer.server.admin.strategy_switcher import Strategies, SwitchAudit, plain, reload, watch
from workflow_composer.server.auth.keys import read_keys
from workflow_composer.server.logs import ServiceLog, writing
from workflow_composer.server.settings import ServerSettings
from workflow_composer.server.tracing import collector
from workflow_composer.server.workers.control import WorkerChannel
from workflow_composer.server.workers.egress_check import prove_egress
from workflow_composer.server.workers.listeners import announce, close
from workflow_composer.support.own_program import own_command, sees_functions_here

MOST_FAILURES = 5
"""Consecutive workers that exit before they serve, after which the supervisor stops."""
_LONGEST_PAUSE = 5.0
ASK_EVERY = 1.0
"""Seconds between two questions whether a worker is alive, and for which its answer is awaited."""
MOST_MISSED = 5
"""Consecutive questions without an answer, after which a worker is replaced."""
_PATIENCE_AT_THE_START = 30
"""So many times as long a worker may take before it is ready: it imports libraries and loads models."""


def supervise(settings: ServerSettings, listening: list[socket.socket], environ: Mapping[str, str]) -> None:
    """Run the workers until SIGTERM or Ctrl-C. Raises `ConfigError` if they cannot be started."""
    log = ServiceLog()
    with writing(log):
        asyncio.run(WorkerSupervisor(settings, listening, environ, log).run())


class WorkerProcess:
    """The supervisor's view of one worker, a participant in switches."""

    def __init__(self, number: int, process: subprocess.Popen[bytes], channel: WorkerChannel) -> None:
        self.number = number
        self.process = process
        self.channel = channel
        self.ready = asyncio.Event()
        self.began = time.monotonic()

    async def prepare(self, config: StrategyConfig) -> None:
        """Make the worker build another strategy. Raises `ConfigError`."""
        await self.channel.ask("prepare", config=_packed(config))

    async def commit(self) -> None:
        """Make the worker publish it. Stop a worker that fails to, because it would keep serving the old strategy."""
        try:
            await self.channel.ask("commit")
        except (ConfigError, TimeoutError):
            self.process.kill()
            raise

    async def discard(self) -> None:
        """Make the worker discard it."""
        await self.channel.ask("discard")


class WorkerSupervisor:
    """Starts and watches the workers."""

    def __init__(
        self, settings: ServerSettings, listening: list[socket.socket], environ: Mapping[str, str], log: ServiceLog
    ) -> None:
        self._settings = settings
        self._listening = listening
        self._environ = environ
        self._log = log
        self._workers: dict[int, WorkerProcess] = {}
        self._stop = asyncio.Event()
        self._failures = 0
        self._fault: ConfigError | None = None
        self._audit = SwitchAudit(settings.state_directory / "audit.jsonl", report=self._log.warning)

    async def run(self) -> None:
        """Run the workers until stopped."""
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
                if not settings.json:
                    tell_where(self._strategies.active, self._environ)
            if settings.watch:
                tasks.append(loop.create_task(watch(self._strategies, self._log.event)))
            await self._stop.wait()
        finally:
            await self._end(tasks)
        if self._fault is not None:
            raise self._fault

    async def _checked(self) -> StrategyConfig:
        """Load and check the profile, so that its errors are reported once. Raises `ConfigError`."""
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
        """Keep worker ``number`` running: restart it with growing pauses, and stop after repeated failures."""
        while not self._stop.is_set():
            worker = self._workers[number] = await self._start(number)
            watched = asyncio.create_task(self._watch(worker))
            await worker.channel.closed.wait()
            watched.cancel()
            code = await asyncio.to_thread(worker.process.wait)
            if self._stop.is_set():
                return
            age = time.monotonic() - worker.began
            self._failures = 0 if worker.ready.is_set() else self._failures + 1
            self._log.warning("a worker has exited and is being restarted", worker=number, code=code, seconds=round(age, 1))
            if self._failures >= MOST_FAILURES:
                hint = "see the log above for the cause; try --workers 1"
                self._fault = ConfigError(
                    f"{self._failures} consecutive workers exited before they served a request", hint=hint
                )
                self._stop.set()
                return
            if self._failures > 1:
                await asyncio.sleep(min(_LONGEST_PAUSE, 0.1 * 2.0**self._failures))

    async def _watch(self, worker: WorkerProcess) -> None:
        """Kill a worker that no longer answers: one that was stopped (SIGSTOP), or whose event loop is blocked.

        Missed answers are counted, not seconds: a machine that was suspended misses one at most.
        """
        missed = 0.0
        while missed < MOST_MISSED:
            await asyncio.sleep(ASK_EVERY)
            try:
                await worker.channel.ask("alive", limit=ASK_EVERY)
            except TimeoutError:
                missed += 1 if worker.ready.is_set() else 1.0 / _PATIENCE_AT_THE_START
            except (ConfigError, ChannelClosed):  # it has exited
                return
            else:
                missed = 0.0
        silent = round(2 * ASK_EVERY * MOST_MISSED, 1)
        self._log.warning("a worker does not respond and is being replaced", worker=worker.number, seconds=silent)
        worker.process.kill()

    async def _start(self, number: int) -> WorkerProcess:
        ours, theirs = socket.socketpair()
        environ = {**os.environ, **self._environ}
        descriptors = (self._listening[number].fileno(), theirs.fileno())
        arguments = [*map(str, (number, *descriptors)), str(int(sees_functions_here()))]
        # In its own process group: Ctrl-C reaches only the supervisor, which then drains the workers.
        process = subprocess.Popen(  # noqa: ASYNC220, S603  # returns at once; it is this program
            own_command("workflow_composer.server.workers.worker", arguments),
            pass_fds=descriptors,
            env=environ,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        worker = WorkerProcess(number, process, WorkerChannel(self._answers(number)))
        await worker.channel.open(ours)
        return worker

    def _answers(self, number: int) -> dict[str, Any]:
        """Return the handlers of worker requests."""
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
        """Drain every worker and wait for its exit."""
        self._stop.set()
        close(self._listening)  # refuse new connections at once
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
    """Return a pickled profile for a worker; only the service's processes can write to the channel."""
    return base64.b64encode(pickle.dumps(config)).decode("ascii")
