"""What the runs of a folder rest on: the command, the profile, the data, written beside each journal when a run begins."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from workflow_composer import __version__
from workflow_composer.batch.report.cells import UNKNOWN, cut, plural
from workflow_composer.batch.report.comparison import Comparison, RunFigures
from workflow_composer.batch.report.document import Block, Bullets, Cell, ReportTable
from workflow_composer.errors import MarkerError
from workflow_composer.markers import is_routing_string, parse_route
from workflow_composer.storage.replacing import replace_file
from workflow_composer.storage.saved import read_saved, saved

ABOUT = "about.json"
_SHOWN_DIGEST = 12


@dataclass(frozen=True, slots=True)
class RunAbout:
    """The origin of a run. ``policy`` is its name; ``date`` is in ISO 8601 (UTC); digests are SHA-256 (hex).

    ``command`` has the arguments of the command line; ``models`` maps each model of the profile to what serves it;
    ``settings`` says in words how votes are counted and answers are read.
    """

    policy: str
    date: str
    version: str
    command: tuple[str, ...]
    profile: str
    profile_digest: str
    data: str
    data_digest: str
    models: dict[str, str]
    settings: str

    @classmethod
    def now(
        cls, policy: str, *, command: Sequence[str], profile: Any, data: str, data_digest: str, settings: str
    ) -> RunAbout:
        """Return the origin of a run that begins now, under a profile (`StrategyConfig`)."""
        text = json.dumps(profile.to_dict(), sort_keys=True, default=str)
        return cls(
            policy=policy,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            version=__version__,
            command=tuple(command),
            profile=profile.profile_name,
            profile_digest=hashlib.sha256(text.encode()).hexdigest(),
            data=data,
            data_digest=data_digest,
            models={name: f"{spec.backend}:{spec.model or name}" for name, spec in profile.models.items()},
            settings=settings,
        )

    def is_like(self, other: RunAbout) -> bool:
        """Whether both rest on the same version, profile and data."""
        mine, others = (
            (each.policy, each.version, each.profile_digest, each.data_digest, each.settings) for each in (self, other)
        )
        return mine == others

    def save(self, folder: Path) -> None:
        """Write it into a run's folder."""
        replace_file(folder / ABOUT, saved(self), mode=0o600)


def about(folder: Path) -> RunAbout | None:
    """Return the origin of the run in a folder; None if it is missing or unreadable, as in folders of earlier versions."""
    try:
        return read_saved(RunAbout, (folder / ABOUT).read_bytes())
    except (OSError, ValueError):
        return None


def other_runs(
    folder: Path, journal: str, *, known: Mapping[str, Path], rows: int, count: Callable[[Path], int]
) -> tuple[dict[str, Path], list[str]]:
    """Return further runs (name and folder) in a report's folder with the same rows, the earliest first.

    ``known`` are the report's own runs, ``rows`` how many rows they have; ``count`` counts those of a journal. The second
    value has a line for each run that is left out.
    """
    origins = [origin for place in known.values() if (origin := about(place)) is not None]
    digests = {origin.data_digest for origin in origins}
    found: list[tuple[str, str, Path]] = []
    lines = []
    for place in sorted(folder.iterdir()):
        origin = about(place)
        if place in known.values() or origin is None or not (place / journal).is_file():
            continue
        has = count(place / journal)
        if origin.data_digest not in digests:
            lines.append(f"{origin.policy}, an earlier run in this folder, has other data and is not compared.")
        elif has < rows:
            lines.append(
                f"{origin.policy}, an earlier run in this folder, has {has:,} of {plural(rows, 'row')}; not compared."
            )
        else:
            found.append((origin.date, origin.policy, place))
    return {policy: place for _, policy, place in sorted(found)}, lines


# ------------------------------------------------------------------------------------------------------------ the section


def rests_on(comparison: Comparison, origins: Mapping[str, RunAbout]) -> tuple[Block, ...]:
    """Return the section of a report that says what its runs rest on."""
    table = ReportTable(
        "Runs",
        ("#", "run", "date", "rows", "with a label", "models", "temperature", "answers read by"),
        tuple(_row(number, run, origins.get(run.name)) for number, run in enumerate(comparison.runs, 1)),
        frozenset({0, 3, 4}),
        1,
        "Models are those that the servers named. An answer is read by the first way that finds it.",
    )
    lines = list(dict.fromkeys(line for origin in origins.values() for line in _lines(origin)))
    return (table, Bullets(tuple(lines))) if lines else (table,)


def _row(number: int, run: RunFigures, origin: RunAbout | None) -> tuple[Cell, ...]:
    models = dict.fromkeys(model for tier in run.tiers for model in tier.models if model)
    return (
        str(number),
        run.name,
        UNKNOWN if origin is None else origin.date.replace("T", " ").removesuffix("+00:00"),
        f"{run.rows:,}",
        f"{run.graded:,}",
        ", ".join(models) or UNKNOWN,
        _temperatures(run),
        ", ".join(f"{how or 'unknown'} {count:,}" for how, count in run.read_by) or UNKNOWN,
    )


def _temperatures(run: RunFigures) -> str:
    """Return the temperatures in a run's routes; a plain name asks for one greedy answer."""
    found: dict[float, None] = {}
    for route in run.route_names:
        try:
            tiers = parse_route(route).tiers if is_routing_string(route) else ()
        except MarkerError:
            continue
        members = [member for tier in tiers for member in tier.members]
        found.update(dict.fromkeys(member.temperature or 0.0 for member in members) if members else {0.0: None})
    return ", ".join(f"{temperature:g}" for temperature in found) or UNKNOWN


def _lines(origin: RunAbout) -> Iterator[str]:
    models = ", ".join(f"{name} = {served}" for name, served in origin.models.items())
    yield f"Data: {origin.data}, SHA-256 {origin.data_digest[:_SHOWN_DIGEST]}…"
    yield f"Profile: {origin.profile}, SHA-256 {origin.profile_digest[:_SHOWN_DIGEST]}…; {origin.settings}"
    yield f"Models of the profile: {cut(models)}"
    yield f"Version: workflow-composer {origin.version}"
    if origin.command:
        yield f"Command: workflow-composer {cut(shlex.join(origin.command), 500)}"
