"""Which strategy is active, which were before, and how all workers go over to another one at once.

A switch has two steps: every worker builds and checks the new strategy; only when all of them have it, every one publishes
it. If one cannot, nobody switches. Requests under way end under the strategy under which they began.
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
# The active profile's file, watched: what is saved is switched to, once it is whole.


pass  # MERGED

EVERY = 0.5
"""Seconds between two looks; a file is read when two looks in a row found it alike, so that half a file is not."""

Stamp = tuple[int, int, int] | None


async def reload(strategies: Strategies, who: str, report: Callable[[str], None]) -> None:
    """Read the profile again; a broken one is reported, and the one before serves on."""
    try:
        version = await strategies.reload(who=who)
    except WorkflowComposerError as error:
        report(f"{who}: the profile stays as it was: {error.message}")
    else:
        report(f"{who}: nothing has changed" if version is None else f"{who}: version {version.number} is active")


async def watch(strategies: Strategies, report: Callable[[str], None], *, every: float = EVERY) -> None:
    """Watch until cancelled."""
    source = (await strategies.versions())[-1].source
    seen: dict[str, Stamp] = {source: _stamp(Path(source))}  # what is saved before the first look is seen at it, too
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
# The audit log: who switched what and when, and what was refused. One line of JSON each, appended and never rewritten.


_PATIENCE = 0.5
"""Seconds to wait for another process that appends."""


class SwitchAudit:
    """Appends to a file. What cannot be written is reported, and keeps nobody from switching."""

    def __init__(self, path: Path, *, report: Callable[[str], None] = lambda text: None) -> None:
        self.path = path
        self._report = report

    def write(self, what: str, *, who: str, outcome: str, **fields: object) -> None:
        """One line. ``who`` is a key's ID, an address, SIGHUP or a file; never a token."""
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
            self._report(f"the audit log {self.path} cannot be written: {error.strerror}; it was: {lost}")


pass  # MERGED

T = TypeVar("T")

PREPARE_SECONDS = 10.0
MOST_VERSIONS = 100


@dataclass(frozen=True, slots=True)
class Version:
    """A strategy that is or was active. ``digest`` is of the profile's contents."""

    number: int
    strategy: str
    source: str
    digest: str
    at: str
    who: str
    why: str = ""


class Participant(Protocol):
    """A worker that takes part in switches."""

    async def prepare(self, config: StrategyConfig) -> None:
        """Build and check. Raises `ConfigError`."""
        ...

    async def commit(self) -> None:
        """Publish what was prepared."""
        ...

    async def discard(self) -> None:
        """Forget what was prepared."""
        ...


class Local:
    """The orchestrator of this process as a participant."""

    def __init__(self, orchestrator: ModelOrchestrator, *, collector: str | None = None) -> None:
        self._orchestrator = orchestrator
        self._collector = collector
        self._prepared: Snapshot | None = None
        self._taking_turns = asyncio.Lock()  # a slow preparation that was given up must not end behind a later one

    async def prepare(self, config: StrategyConfig) -> None:
        """Build the snapshot, and prove where it cannot send anything."""
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
            raise ConfigError("nothing was prepared")
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
    """What can be asked about strategies, whichever process knows the answer."""

    async def preview(self, source: str) -> Mapping[str, Any]:
        """What a switch would change; nothing does."""
        ...

    async def switch(self, source: str, *, who: str, why: str = "") -> Version:
        """Switch all workers."""
        ...

    async def rollback(self, number: int | None, *, who: str) -> Version:
        """Go back to an earlier version, as it was then; None: the one before."""
        ...

    async def versions(self) -> Sequence[Version]:
        """All versions, the active one last."""
        ...


class Strategies:
    """The switchboard itself, in the process that knows all workers.

    ``participants`` gives those that take part in a switch now. Raises `ConfigError` and leaves everything as it was where a
    switch cannot be made.
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
        # The folder of the operator's profile; one made in Python has none, and nothing may be named beside it.
        self._folder = _folder_of(config)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._add(config, "start", "")

    @property
    def active(self) -> StrategyConfig:
        """The active profile."""
        return self._configs[self._versions[-1].number]

    async def preview(self, source: str) -> Mapping[str, Any]:
        """See `Switchboard`."""
        return {"from": self.active.profile_name, **difference(self.active, self._load(source))}

    async def switch(self, source: str, *, who: str, why: str = "") -> Version:
        """See `Switchboard`."""
        return await self._whole(self._switch(lambda: self._load(source), source, who=who, why=why, what="switch"))

    async def reload(self, *, who: str) -> Version | None:
        """Read the active profile's file again; None where nothing has changed in it."""

        async def work() -> Version | None:
            source = self.active.source

            def load() -> StrategyConfig:
                return StrategyConfig.load(Path(source), environ=self._environ)

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
        """Do it alone, and to its end, also where who asked for it goes away meanwhile: it must be written down, too."""

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
                raise ConfigError("there is no earlier version")
            number = self._versions[-2].number
        if number not in self._configs:
            known = ", ".join(str(version.number) for version in self._versions)
            raise ConfigError(f"there is no version {number}", hint=f"there are: {known}")
        config = self._configs[number]
        why = f"back to {number}"
        return await self._switch(lambda: config, f"version {number}", who=who, why=why, what="rollback")

    async def _switch(self, load: Callable[[], StrategyConfig], source: str, *, who: str, why: str, what: str) -> Version:
        version = await self._go(load, source, who=who, why=why, what=what, unless="")
        assert version is not None  # no digest is empty
        return version

    async def _go(
        self, load: Callable[[], StrategyConfig], source: str, *, who: str, why: str, what: str, unless: str
    ) -> Version | None:
        """Go over, unless that is the profile of this digest; what is refused is written down, too."""
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
        """Let a worker that has just started take part, under what is active now; no switch comes in between.

        ``digest`` is that of the profile with which it has started.
        """
        async with self._switching:
            if digest != self._versions[-1].digest:
                await participant.prepare(self.active)
                await participant.commit()
            enter()

    async def _everywhere(self, config: StrategyConfig) -> None:
        try:
            await self._together(config)
        except ChannelClosed:  # a worker has died; those that are left can switch without it
            await self._together(config)

    async def _together(self, config: StrategyConfig) -> None:
        participants = self._participants()
        if not participants:
            raise ConfigError("no worker is ready", hint="try again in a moment")
        try:
            async with asyncio.timeout(PREPARE_SECONDS):
                found = await asyncio.gather(*(one.prepare(config) for one in participants), return_exceptions=True)
        except TimeoutError:
            found = [ConfigError(f"a worker did not get ready within {PREPARE_SECONDS:g} s")]
        faults = [one for one in found if isinstance(one, BaseException)]
        if faults:
            await asyncio.gather(*(one.discard() for one in participants), return_exceptions=True)
            raise faults[0] if isinstance(faults[0], WorkflowComposerError) else ConfigError(f"a worker failed: {faults[0]}")
        # A worker that dies now, or cannot publish what it has prepared, is started again with what is active then.
        await asyncio.gather(*(one.commit() for one in participants), return_exceptions=True)

    def _load(self, source: str) -> StrategyConfig:
        """A profile by name, or by the path of a file beside the one that the operator began with."""
        if "\0" in source:
            raise ProfileNotFound("no profile's name holds a null byte", hint="name one of those that are offered")
        found = _places(self._folder, self._environ)
        named = Path(source)
        if os.sep in source:  # a path, of the very file that its name stands for
            place = found.get(named.stem)
            place = place if place is not None and named.resolve() == place.resolve() else None
        else:
            place = found.get(source) or found.get(named.stem if named.suffix in {".yaml", ".yml"} else source)
        if place is None:
            raise ProfileNotFound(f"no profile {source!r} may be named here", hint=f"there are: {', '.join(sorted(found))}")
        return StrategyConfig.load(place, environ=self._environ)

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
    """Profiles by name: those beside the one that the operator began with, and those of the search path before them."""
    beside = {path.stem: path for path in sorted(folder.glob("*.y*ml"))} if folder is not None else {}
    return {**beside, **profiles(search_path(environ))}


def available(config: StrategyConfig, environ: Mapping[str, str]) -> list[str]:
    """The names of the profiles that a service may be switched to while this one is active."""
    return sorted({config.profile_name, *_places(_folder_of(config), environ)})


def _folder_of(config: StrategyConfig) -> Path | None:
    return config.directory.absolute() if Path(config.source).is_file() else None


def digest_of(config: StrategyConfig) -> str:
    """A digest of a profile's contents."""
    text = json.dumps(config.to_dict(), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def difference(old: StrategyConfig, new: StrategyConfig) -> dict[str, Any]:
    """What differs between two profiles, key by key, secrets hidden (profiles are written without any)."""
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
    """A version as plain data."""
    return asdict(version)
