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


async def reload(strategies: Strategies, who: str, report: Callable[[str], None]) -> None:
    """Reload the profile; report an invalid one and keep the active one."""
    try:
        version = await strategies.reload(who=who)
    except WorkflowComposerError as error:
        report(f"{who}: reload failed, the active profile is unchanged: {error.message}")
    else:
        report(f"{who}: nothing has changed" if version is None else f"{who}: version {version.number} is active")


async def watch(strategies: Strategies, report: Callable[[str], None], *, every: float = EVERY) -> None:
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
                await reload(strategies, source, report)
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

PREPARE_SECONDS = 10.0
MOST_VERSIONS = 100


@dataclass(frozen=True, slots=True)
class Version:
    """An active or earlier strategy. ``digest`` is the digest of the profile's contents."""

    number: int
    strategy: str
    source: str
    digest: str
    at: str
    who: str
    why: str = ""


class Participant(Protocol):
    """A worker, as a participant in switches."""

    async def prepare(self, config: StrategyConfig) -> None:
        """Build and check the new strategy. Raises `ConfigError`."""
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

    async def prepare(self, config: StrategyConfig) -> None:
        """Build the snapshot and run the egress check."""
        async with self._taking_turns:
            await self._forget()
            prepared = self._orchestrator.prepare_strategy(config)
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
        """Return what a switch would change, without switching."""
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
    ) -> None:
        self._environ = os.environ if environ is None else environ
        self._participants = participants
        self._audit = audit
        self._configs: dict[int, StrategyConfig] = {}
        self._versions: list[Version] = []
        self._switching = asyncio.Lock()
        # The folder of the operator's profile; None for a profile made in Python, which has no sibling profiles.
        self._folder = _folder_of(config)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._add(config, "start", "")

    @property
    def active(self) -> StrategyConfig:
        """Return the active profile."""
        return self._configs[self._versions[-1].number]

    async def preview(self, source: str) -> Mapping[str, Any]:
        """See `Switchboard`."""
        return {"from": self.active.profile_name, **difference(self.active, self._load(source))}

    async def switch(self, source: str, *, who: str, why: str = "") -> Version:
        """See `Switchboard`."""
        return await self._whole(self._switch(lambda: self._load(source), source, who=who, why=why, what="switch"))

    async def reload(self, *, who: str) -> Version | None:
        """Reload the active profile's file; None if it is unchanged."""

        async def work() -> Version | None:
            source = self.active.source

            def load() -> StrategyConfig:
                return self.active.reread(environ=self._environ)

            return await self._go(load, source, who=who, why="", what="reload", unless=self._versions[-1].digest)

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
        config = self._configs[number]
        why = f"rollback to {number}"
        return await self._switch(lambda: config, f"version {number}", who=who, why=why, what="rollback")

    async def _switch(self, load: Callable[[], StrategyConfig], source: str, *, who: str, why: str, what: str) -> Version:
        version = await self._go(load, source, who=who, why=why, what=what, unless="")
        assert version is not None  # no digest is empty
        return version

    async def _go(
        self, load: Callable[[], StrategyConfig], source: str, *, who: str, why: str, what: str, unless: str
    ) -> Version | None:
        """Switch, unless the profile has this digest; record refusals too."""
        before = self._versions[-1]
        try:
            config = load()
            if digest_of(config) == unless:
                return None
            await self._everywhere(config)
        except WorkflowComposerError as error:
            said = f"refused: {error.message}"
            self._audit.write(what, who=who, source=source, before=before.strategy, outcome=said, why=why)
            raise
        version = self._add(config, who, why)
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
        )
        return version

    async def join(self, participant: Participant, digest: str, enter: Callable[[], None]) -> None:
        """Add a started worker as a participant under the active strategy; no switch can interleave.

        ``digest`` is the digest of the profile with which it started.
        """
        async with self._switching:
            if digest != self._versions[-1].digest:
                await participant.prepare(self.active)
                await participant.commit()
            enter()

    async def _everywhere(self, config: StrategyConfig) -> None:
        try:
            await self._together(config)
        except ChannelClosed:  # a worker has died; the others switch without it
            await self._together(config)

    async def _together(self, config: StrategyConfig) -> None:
        participants = self._participants()
        if not participants:
            raise ConfigError("no worker is ready", hint="retry in a moment")
        try:
            async with asyncio.timeout(PREPARE_SECONDS):
                found = await asyncio.gather(*(one.prepare(config) for one in participants), return_exceptions=True)
        except TimeoutError:
            found = [ConfigError(f"a worker did not prepare the strategy within {PREPARE_SECONDS:g} s")]
        faults = [one for one in found if isinstance(one, BaseException)]
        if faults:
            await asyncio.gather(*(one.discard() for one in participants), return_exceptions=True)
            raise faults[0] if isinstance(faults[0], WorkflowComposerError) else ConfigError(f"a worker failed: {faults[0]}")
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

    def _add(self, config: StrategyConfig, who: str, why: str) -> Version:
        number = self._versions[-1].number + 1 if self._versions else 1
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        version = Version(number, config.profile_name, config.source, digest_of(config), at, who, why)
        self._versions.append(version)
        self._configs[number] = config
        if len(self._versions) > MOST_VERSIONS:
            self._configs.pop(self._versions.pop(0).number, None)
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
