"""The active strategy, its earlier versions, and switches of all workers at once.

A switch is a two-phase commit: every worker builds and checks the new strategy; after all have succeeded, every worker
publishes it. If one fails, none switches. Running requests finish under the strategy with which they started.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from workflow_composer.config.strategy import StrategyConfig, profiles, search_path
from workflow_composer.errors import ChannelClosed, ConfigError, ProfileNotFound, WorkflowComposerError
from workflow_composer.plugins.sources import FILES_VARIABLE, PluginSource, changes, digest, in_file, in_files, installed
from workflow_composer.runtime.snapshot import Snapshot
from workflow_composer.server.workers.egress_check import prove_egress
from workflow_composer.storage.appending import append_lines

if TYPE_CHECKING:
    from workflow_composer.orchestrator import ModelOrchestrator


# ---------------------------------------------------------------------------------------------------------------- watching
#
# Watch the active profile's file: switch to a saved change once it is complete.


EVERY = 0.5
"""Seconds between checks. A file is read after two checks found it unchanged, which avoids half-written files."""

Stamp = tuple[int, int, int] | None


class Reports(Protocol):
    """Where reloads are reported: the service's log."""

    def event(self, event: str) -> None:
        """Report a success."""
        ...

    def refusal(self, event: str) -> None:
        """Report a refusal."""
        ...


async def reload(strategies: Strategies, who: str, log: Reports, *, plugins: bool = True) -> None:
    """Reload the profile and, by default, the plugins; report what is unfit and keep what is active."""
    try:
        version = await strategies.reload(who=who, plugins=plugins)
    except WorkflowComposerError as error:
        log.refusal(f"{who}: reload failed, nothing has changed: {error.message}")
    else:
        log.event(f"{who}: nothing has changed" if version is None else f"{who}: version {version.number} is active")


async def watch(strategies: Strategies, log: Reports, *, every: float = EVERY) -> None:
    """Watch the profile's file until cancelled."""
    source = (await strategies.versions())[-1].source
    seen: dict[str, Stamp] = {source: _stamp(Path(source))}  # so that the first check sees earlier saves
    moving: Stamp = None
    while True:
        await asyncio.sleep(every)
        source = (await strategies.versions())[-1].source
        stamp = _stamp(Path(source))
        if source not in seen:
            seen = {source: stamp}
        elif stamp is not None and stamp != seen[source]:
            if stamp == moving:
                seen[source] = stamp
                await reload(strategies, source, log, plugins=False)
            moving = stamp


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


# ------------------------------------------------------------------------------------------------------------------- audit
#
# The append-only audit log of switches and refusals: one JSON object per line.


_PATIENCE = 0.5
"""Seconds to wait for another process's lock."""


class SwitchAudit:
    """Appends to the audit log. A failed write is reported and does not prevent the switch."""

    def __init__(self, path: Path, *, report: Callable[[str], None] = lambda text: None) -> None:
        self.path = path
        self._report = report

    def write(self, what: str, *, who: str, outcome: str, **fields: object) -> None:
        """Append one line. ``who`` is a key's ID, an address, SIGHUP or a file; never a token."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {
            "at": at,
            "what": what,
            "who": who,
            "outcome": outcome,
            **{k: v for k, v in fields.items() if v not in (None, "")},
        }
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            append_lines(self.path, json.dumps(line, default=str).encode() + b"\n", wait=_PATIENCE, mode=0o600)
        except OSError as error:
            lost = f"{what} by {who}: {outcome}"
            self._report(f"cannot write the audit log {self.path}: {error.strerror}; lost entry: {lost}")


T = TypeVar("T")
Plugins = tuple[PluginSource, ...]

PREPARE_SECONDS = 10.0
MOST_VERSIONS = 100


@dataclass(frozen=True, slots=True)
class Version:
    """An active or earlier strategy and its plugins, each with the digest of its contents."""

    number: int
    strategy: str
    source: str
    digest: str
    at: str
    who: str
    why: str = ""
    plugins: str = ""


class Participant(Protocol):
    """A worker, as a participant in switches."""

    async def prepare(self, config: StrategyConfig, plugins: Plugins) -> None:
        """Build and check the new strategy with these plugins. Raises `ConfigError`, `PluginError`."""
        ...

    async def commit(self) -> None:
        """Publish the prepared strategy."""
        ...

    async def discard(self) -> None:
        """Discard the prepared strategy."""
        ...


class Local:
    """The orchestrator of this process as a participant."""

    def __init__(self, orchestrator: ModelOrchestrator, *, collector: str | None = None) -> None:
        self._orchestrator = orchestrator
        self._collector = collector
        self._prepared: Snapshot | None = None
        self._taking_turns = asyncio.Lock()  # a slow, abandoned preparation must not finish after a later one

    async def prepare(self, config: StrategyConfig, plugins: Plugins) -> None:
        """Build the snapshot and run the egress check."""
        async with self._taking_turns:
            await self._forget()
            prepared = self._orchestrator.prepare_strategy(config, plugins=plugins)
            try:
                await prove_egress(prepared, collector=self._collector)
            except BaseException:
                await prepared.retire()
                raise
            self._prepared = prepared

    async def commit(self) -> None:
        """Publish it."""
        prepared, self._prepared = self._prepared, None
        if prepared is None:
            raise ConfigError("no prepared strategy to publish")
        await self._orchestrator.apublish(prepared)

    async def discard(self) -> None:
        """Close it."""
        async with self._taking_turns:
            await self._forget()

    async def _forget(self) -> None:
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            await prepared.retire()


class Switchboard(Protocol):
    """Operations on strategies, local or through the supervisor."""

    async def preview(self, source: str) -> Mapping[str, Any]:
        """Return what a switch would change, once every worker has built and checked it as for a switch.

        Nothing is published. Raises what `switch` would raise.
        """
        ...

    async def switch(self, source: str, *, who: str, why: str = "") -> Version:
        """Switch all workers."""
        ...

    async def rollback(self, number: int | None, *, who: str) -> Version:
        """Switch back to an earlier version as it was then; None: the previous one."""
        ...

    async def versions(self) -> Sequence[Version]:
        """Return all versions, the active one last."""
        ...

    async def reload_plugins(
        self, *, who: str, why: str = "", dry_run: bool = False, back: bool = False
    ) -> Mapping[str, Any]:
        """Load new and changed plugins in all workers, or in none; with ``back``, those before the last such change.

        Return ``plugins`` (name, ``from``, ``to``) and the ``version``, None if nothing has changed or with ``dry_run``.
        """
        ...


class Strategies:
    """The switchboard of the process that controls all workers.

    ``participants`` returns the current participants. A failed switch raises `ConfigError` and changes nothing.
    """

    def __init__(
        self,
        config: StrategyConfig,
        participants: Callable[[], Sequence[Participant]],
        audit: SwitchAudit,
        *,
        environ: Mapping[str, str] | None = None,
        plugins: Plugins = (),
    ) -> None:
        self._environ = os.environ if environ is None else environ
        self._plugins: dict[int, Plugins] = {}
        self._participants = participants
        self._audit = audit
        self._configs: dict[int, StrategyConfig] = {}
        self._versions: list[Version] = []
        self._switching = asyncio.Lock()
        # The folder of the operator's profile; None for a profile made in Python, which has no sibling profiles.
        self._folder = _folder_of(config)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._add(config, plugins, "start", "")

    @property
    def active(self) -> StrategyConfig:
        """Return the active profile."""
        return self._configs[self._versions[-1].number]

    @property
    def plugins(self) -> Plugins:
        """Return the plugins in use, those of the profile's own files too."""
        return self._plugins[self._versions[-1].number]

    async def preview(self, source: str) -> Mapping[str, Any]:
        """See `Switchboard`."""

        async def work() -> Mapping[str, Any]:
            config = self._load(source)
            await self._everywhere(config, self._with_files_of(config), commit=False)
            return {"from": self.active.profile_name, **difference(self.active, config)}

        return await self._whole(work())

    async def switch(self, source: str, *, who: str, why: str = "") -> Version:
        """See `Switchboard`."""

        def load() -> tuple[StrategyConfig, Plugins]:
            config = self._load(source)
            return config, self._with_files_of(config)

        return await self._whole(self._switch(load, source, who=who, why=why, what="switch"))

    async def reload(self, *, who: str, plugins: bool = True) -> Version | None:
        """Reload the active profile's file and, by default, the plugins; None if all are unchanged."""

        async def work() -> Version | None:
            def load() -> tuple[StrategyConfig, Plugins]:
                config = self.active.reread(environ=self._environ)
                return config, found_plugins(self._environ, config) if plugins else self._with_files_of(config)

            return await self._go(load, self.active.source, who=who, what="reload", unless_same=True)

        return await self._whole(work())

    async def rollback(self, number: int | None, *, who: str) -> Version:
        """See `Switchboard`."""
        return await self._whole(self._rollback(number, who))

    async def versions(self) -> Sequence[Version]:
        """See `Switchboard`."""
        return tuple(self._versions)

    # ---------------------------------------------------------------------------------------------------------- switching

    async def _whole(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a switch exclusively and to its end, even if the caller is cancelled, so that it is always recorded."""

        async def alone() -> T:
            async with self._switching:
                return await work

        task = asyncio.get_running_loop().create_task(alone())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def _rollback(self, number: int | None, who: str) -> Version:
        if number is None:
            if len(self._versions) < 2:
                raise ConfigError("no earlier version to roll back to")
            number = self._versions[-2].number
        if number not in self._configs:
            known = ", ".join(str(version.number) for version in self._versions)
            raise ConfigError(f"unknown version {number}", hint=f"available versions: {known}")
        then = self._configs[number], self._plugins[number]
        return await self._switch(lambda: then, f"version {number}", who=who, why=f"rollback to {number}", what="rollback")

    async def reload_plugins(
        self, *, who: str, why: str = "", dry_run: bool = False, back: bool = False
    ) -> Mapping[str, Any]:
        """See `Switchboard`."""

        async def work() -> Mapping[str, Any]:
            config, before = self.active, self.plugins
            plugins = self._earlier() if back else found_plugins(self._environ, config)
            told = {"plugins": changes(before, plugins)}
            if dry_run:
                if told["plugins"]:
                    await self._everywhere(config, plugins, commit=False)
                return {**told, "version": None, "dry_run": True}
            what = "plugins rollback" if back else "plugins reload"
            version = await self._go(
                lambda: (config, plugins),
                config.source,
                who=who,
                why=why,
                what=what,
                unless_same=True,
                plugins=told["plugins"],
            )
            return {**told, "version": None if version is None else plain(version)}

        return await self._whole(work())

    def _earlier(self) -> Plugins:
        """Return the plugins before the last change of plugins. Raises `ConfigError`."""
        now = self._versions[-1].plugins
        for version in reversed(self._versions):
            if version.plugins != now:
                return self._plugins[version.number]
        raise ConfigError("no earlier plugins to roll back to")

    def _with_files_of(self, config: StrategyConfig) -> Plugins:
        """Return the installed plugins in use, and the files of a profile as they are now."""
        listed = {Path(place) for place in self.active.plugins}
        kept = tuple(source for source in self.plugins if source.file is None or source.file not in listed)
        return (*kept, *(in_file(place) for place in config.plugins))

    async def _switch(
        self, load: Callable[[], tuple[StrategyConfig, Plugins]], source: str, *, who: str, why: str, what: str
    ) -> Version:
        version = await self._go(load, source, who=who, why=why, what=what)
        assert version is not None  # it is made even if nothing has changed
        return version

    async def _go(
        self,
        load: Callable[[], tuple[StrategyConfig, Plugins]],
        source: str,
        *,
        who: str,
        what: str,
        why: str = "",
        unless_same: bool = False,
        **told: object,
    ) -> Version | None:
        """Switch; record refusals too."""
        before = self._versions[-1]
        try:
            config, plugins = load()
            if unless_same and (digest_of(config), digest(plugins)) == (before.digest, before.plugins):
                return None
            await self._everywhere(config, plugins)
        except WorkflowComposerError as error:
            said = f"refused: {error.message}"
            self._audit.write(what, who=who, source=source, before=before.strategy, outcome=said, why=why, **told)
            raise
        version = self._add(config, plugins, who, why)
        self._audit.write(
            what,
            who=who,
            source=source,
            before=before.strategy,
            after=version.strategy,
            version=version.number,
            digest=version.digest,
            outcome="done",
            why=why,
            **(told or {"plugins": changes(self._plugins[before.number], plugins)}),
        )
        return version

    async def join(self, participant: Participant, version: int, enter: Callable[[], None]) -> None:
        """Add a worker that started with a version as a participant under the active one; no switch can interleave."""
        async with self._switching:
            if version != self._versions[-1].number:
                await participant.prepare(self.active, self.plugins)
                await participant.commit()
            enter()

    async def _everywhere(self, config: StrategyConfig, plugins: Plugins, *, commit: bool = True) -> None:
        try:
            await self._together(config, plugins, commit)
        except ChannelClosed:  # a worker has died; the others switch without it
            await self._together(config, plugins, commit)

    async def _together(self, config: StrategyConfig, plugins: Plugins, commit: bool) -> None:
        participants = self._participants()
        if not participants:
            raise ConfigError("no worker is ready", hint="retry in a moment")
        try:
            async with asyncio.timeout(PREPARE_SECONDS):
                preparing = (one.prepare(config, plugins) for one in participants)
                found = await asyncio.gather(*preparing, return_exceptions=True)
        except TimeoutError:
            found = [ConfigError(f"a worker did not prepare the strategy within {PREPARE_SECONDS:g} s")]
        faults = [one for one in found if isinstance(one, BaseException)]
        if faults or not commit:
            await asyncio.gather(*(one.discard() for one in participants), return_exceptions=True)
        if faults:
            raise faults[0] if isinstance(faults[0], WorkflowComposerError) else ConfigError(f"a worker failed: {faults[0]}")
        if not commit:
            return
        # A worker that dies now, or fails to publish, is restarted with the strategy active then.
        await asyncio.gather(*(one.commit() for one in participants), return_exceptions=True)

    def _load(self, source: str) -> StrategyConfig:
        """Load a profile by name, or by the path of a file in the folder of the operator's profile."""
        if "\0" in source:
            raise ProfileNotFound("the profile's name contains a null byte", hint="use one of the available profiles")
        found = _places(self._folder, self._environ)
        named = Path(source)
        if os.sep in source:  # a path, which must be the file of its name
            place = found.get(named.stem)
            place = place if place is not None and named.resolve() == place.resolve() else None
        else:
            place = found.get(source) or found.get(named.stem if named.suffix in {".yaml", ".yml"} else source)
        if place is None:
            raise ProfileNotFound(
                f"unknown or forbidden profile {source!r}", hint=f"available profiles: {', '.join(sorted(found))}"
            )
        return StrategyConfig.load_found(place, environ=self._environ)

    def _add(self, config: StrategyConfig, plugins: Plugins, who: str, why: str) -> Version:
        number = self._versions[-1].number + 1 if self._versions else 1
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        code = digest(plugins)
        version = Version(number, config.profile_name, config.source, digest_of(config), at, who, why, code)
        self._versions.append(version)
        self._configs[number], self._plugins[number] = config, plugins
        if len(self._versions) > MOST_VERSIONS:
            oldest = self._versions.pop(0).number
            self._configs.pop(oldest, None)
            self._plugins.pop(oldest, None)
        return version


def _places(folder: Path | None, environ: Mapping[str, str]) -> dict[str, Path]:
    """Return profiles by name: those of the search path, then those in the folder of the operator's profile."""
    beside = {path.stem: path for path in sorted(folder.glob("*.y*ml"))} if folder is not None else {}
    return {**beside, **profiles(search_path(environ))}


def available(config: StrategyConfig, environ: Mapping[str, str]) -> list[str]:
    """Return the names of the profiles available for a switch while this one is active."""
    return sorted({config.profile_name, *_places(_folder_of(config), environ)})


def _folder_of(config: StrategyConfig) -> Path | None:
    return config.directory.absolute() if Path(config.source).is_file() else None


def digest_of(config: StrategyConfig) -> str:
    """Return a digest of a profile's contents."""
    text = json.dumps(config.to_dict(), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def found_plugins(environ: Mapping[str, str], config: StrategyConfig) -> Plugins:
    """Return the plugins that are there now: installed, in the files of the command line, and in the profile's own.

    Raises `PluginError`.
    """
    return (*installed(), *in_files(environ.get(FILES_VARIABLE, "")), *map(in_file, config.plugins))


def difference(old: StrategyConfig, new: StrategyConfig) -> dict[str, Any]:
    """Return the differences between two profiles by key, with secrets hidden."""
    before, after = old.to_dict(), new.to_dict()
    changes: dict[str, Any] = {}
    for key in after:
        if before[key] == after[key]:
            continue
        if isinstance(before[key], dict) and isinstance(after[key], dict):
            changes[key] = {
                "added": sorted(set(after[key]) - set(before[key])),
                "removed": sorted(set(before[key]) - set(after[key])),
                "changed": {
                    name: {"from": before[key][name], "to": after[key][name]}
                    for name in sorted(set(before[key]) & set(after[key]))
                    if before[key][name] != after[key][name]
                },
            }
        else:
            changes[key] = {"from": before[key], "to": after[key]}
    return {"to": new.profile_name, "source": new.source, "digest": digest_of(new), "changes": changes}


def plain(version: Version) -> dict[str, Any]:
    """Return a version as plain data."""
    return asdict(version)
