"""Which strategy and which plugins are active: published by one assignment, replaced by switches and reloads.

`ModelOrchestrator` inherits this part. No request sees a mix: it reads the active snapshot once.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.errors import WorkflowComposerError
from workflow_composer.plugins.host import NextGeneration, Part, PluginHost, PluginInfo, PluginRegistry
from workflow_composer.runtime.snapshot import Snapshot
from workflow_composer.support.loop_thread import LoopThread

if TYPE_CHECKING:
    from workflow_composer.workflows.serving import ServedWorkflow
    from workflow_composer.workflows.step_kinds import StepKind


class ActiveStrategy(ABC):
    """The active snapshot and its replacement."""

    plugins: PluginHost
    forwarded: frozenset[str]
    """Names of a client's headers that the active profile forwards: an attribute, since every request asks for it."""
    _active: Snapshot
    _chosen_by: str
    _thread: LoopThread

    def __init__(self) -> None:
        self._publishing = threading.Lock()
        self._retiring: set[asyncio.Task[None]] = set()
        self._closed = False
        self._parents: Snapshot | None = None

    @abstractmethod
    def _build(self, config: StrategyConfig, offered: PluginRegistry) -> Snapshot:
        """Build a snapshot of a profile with the plugins of the host, and those of the profile's own files."""

    def _begin(self, first: Snapshot) -> None:
        """Publish the first snapshot."""
        self._active = first
        self.forwarded = frozenset(first.config.forward_headers)
        self.plugins.add_follower(self)
        _all.add(self)

    async def apublish(self, new: Snapshot) -> None:
        """Activate a prepared profile with one assignment. Raises `WorkflowComposerError` if the orchestrator is closed."""
        with self.plugins.changing, self._publishing:
            old, closed = self._active, self._closed
            if not closed:
                if new.with_plugins:
                    self.plugins.publish(NextGeneration(new.offered, ()))
                self._active, self._chosen_by = self._newest(new, new.config), "switch"
                self.forwarded = frozenset(new.config.forward_headers)
        if closed:
            await new.retire()
            raise WorkflowComposerError("the orchestrator is closed")
        await old.retire()
        if new.config != old.config or not new.with_plugins:
            new.plugins.notify("on_strategy_switch", old=old.config.to_dict(), new=new.config.to_dict())

    @property
    def workflows(self) -> Mapping[str, ServedWorkflow]:
        """The workflows that the active profile offers as models, by name."""
        return self._active.workflows

    @property
    def step_kinds(self) -> Mapping[str, StepKind]:
        """The kinds of workflow steps that plugins offer, those in the active profile's files included, by name."""
        return self._active.plugins.step_kinds

    # ------------------------------------------------------------------------------------------------------- plugins

    def reload_plugins(self) -> tuple[PluginInfo, ...]:
        """Load new and changed plugins, drop those that are gone, and return all of them.

        Routers, backends, batch policies and hooks change together; requests in progress finish with the plugins with which
        they began. Raises `WorkflowComposerError` if a plugin is unfit: everything then stays as it was.
        """
        with self.plugins.changing:
            self.plugins.publish(self.plugins.prepare(self.plugins.generation(self.plugins.reread())))
        return self.plugins.plugins

    async def areload_plugins(self) -> tuple[PluginInfo, ...]:
        """Asynchronous `reload_plugins`; plugins are imported on the calling loop."""
        return self.reload_plugins()

    def follow_plugins(self, registry: PluginRegistry) -> PluginChange:
        """Build the active profile with other plugins, and ask their routers for a plan; nothing changes yet."""
        new = self._tried(self._build(self._active.config, registry))
        return PluginChange(new, lambda: self._adopt(new), self._retire)

    def _tried(self, new: Snapshot) -> Snapshot:
        """Return a snapshot whose plugins' routers have been asked for plans. Raises `PluginError` if one is unfit."""
        try:
            new.try_plugins()
        except BaseException:
            self._retire(new)
            raise
        return new

    def _adopt(self, new: Snapshot) -> None:
        with self._publishing:
            old, closed = self._active, self._closed
            if not closed:
                self._active = self._newest(new, old.config)
        self._retire(new if closed else old)

    def _newest(self, new: Snapshot, config: StrategyConfig) -> Snapshot:
        """Return ``new`` or, if plugins and profile have changed at the same time, a snapshot that has both."""
        if new.offered is self.plugins.registry and new.config is config:
            return new
        self._retire(new)
        return self._build(config, self.plugins.registry)

    def _retire(self, snapshot: Snapshot) -> None:
        """Let a snapshot end with its last request: on the caller's event loop, else on the orchestrator's own."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._thread.start(snapshot.retire())
        else:
            task = loop.create_task(snapshot.retire())
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    # ------------------------------------------------------------------------------------------------ requests, the end

    def _acquire(self) -> Snapshot:
        """Return the active snapshot, acquired; retry if it closed between reading and acquiring."""
        while (active := (read := self._active).acquire()) is None:
            if read is self._active and not self._revived(read):
                raise WorkflowComposerError("the orchestrator is closed")
        return active

    def _refuse(self) -> None:
        with self._publishing:
            self._closed, self._parents = True, None
            self._active.refuse()

    def _revived(self, read: Snapshot) -> bool:
        """Replace the snapshot that a forked child has from its parent; return whether another one is active now."""
        with self._publishing:
            if read is self._parents:
                self._active, self._parents = self._build(read.config, self.plugins.registry), None
            return read is not self._active

    def forked(self) -> None:
        """Start afresh in a forked child: the next request builds a snapshot of the same profile."""
        self._publishing = threading.Lock()
        self.plugins.changing = threading.RLock()
        if self._active.forked():
            self._parents = self._active
            _left_behind.append(self._active)

    def _files_now(self) -> Mapping[str, Part]:
        active: Snapshot | None = getattr(self, "_active", None)  # none yet while the first one is built
        return {} if active is None else active.plugins.parts


@dataclass(frozen=True, slots=True)
class PluginChange:
    """A snapshot of the active profile with other plugins, ready to be published."""

    snapshot: Snapshot
    publish: Callable[[], None]
    retire: Callable[[Snapshot], None]

    def discard(self) -> None:
        """Close the snapshot unused."""
        self.retire(self.snapshot)


_all: weakref.WeakSet[ActiveStrategy] = weakref.WeakSet()
_left_behind: list[Snapshot] = []
"""The parent's snapshots in a forked child: closing their connections would be noticed by nobody but warned about."""


def _after_fork() -> None:
    for one in _all:
        one.forked()


os.register_at_fork(after_in_child=_after_fork)
