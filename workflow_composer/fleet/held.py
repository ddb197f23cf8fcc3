"""How long servers have held their GPUs, idle time included, and what that costs: the reservation.

A supervisor writes when its server has begun, every five minutes, and when it has ended, as lines of JSON in a file of the
fleet's state. Of a server that was killed the last minutes are missing. Servers that no fleet runs are known by the hours
that their profile states (``gpu_hours_per_day``). A reservation is a figure of its own: no request's cost contains it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from workflow_composer.errors import WorkflowComposerError
from workflow_composer.fleet.places import own_files, usual_state
from workflow_composer.storage.appending import append_lines
from workflow_composer.storage.lines import encoded, lines
from workflow_composer.storage.locks import WAIT, locked
from workflow_composer.storage.replacing import replace_file

if TYPE_CHECKING:
    from workflow_composer.config.strategy import StrategyConfig

FILE_NAME = "held.jsonl"
EVERY = 300.0
"""Seconds between two lines of a server."""
_LONG = 4 * 2**20
"""Bytes beyond which the lines of one run of a server are joined."""
_NAMES_STATE = re.compile(rb"""\bstate["']?\s*:""")
HOUR, DAY = 3600.0, 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldSpan:
    """One run of a server, from its start to the last line about it (Unix times).

    ``price`` is the fleet file's, in dollars per hour, for all ``gpus`` of the server together.
    """

    server: str
    role: str
    node: str = ""
    gpus: int = 1
    price: float | None = None
    began: float
    until: float

    def seconds(self, start: float, end: float) -> float:
        """Return the part of it between two times."""
        return max(0.0, min(self.until, end) - max(self.began, start))


class HeldLog:
    """The file. Several supervisors may write at once, each under the lock beside it."""

    def __init__(self, path: Path, *, wait: float = WAIT) -> None:
        self.path = path
        self._wait = wait
        self._read: tuple[tuple[int, int], list[HeldSpan]] = ((0, 0), [])

    def add(self, span: HeldSpan) -> None:
        """Append what is known of a run by now. Raises OSError."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        append_lines(self.path, encoded(asdict(span)), wait=self._wait, mode=0o644)
        if self.path.stat().st_size > _LONG:
            with locked(self.path, wait=self._wait):
                joined = b"".join(encoded(asdict(one)) for one in self._spans())
                replace_file(self.path, joined.decode(), mode=0o644)

    def spans(self) -> list[HeldSpan]:
        """Return every run, each once; lines that are none are passed over. Reads a file that has not changed once only."""
        try:
            found = self.path.stat()
        except OSError:
            return []
        now = (found.st_mtime_ns, found.st_size)
        if self._read[0] != now:
            self._read = (now, self._spans())
        return self._read[1]

    def _spans(self) -> list[HeldSpan]:
        known: dict[tuple[str, str, float], HeldSpan] = {}
        with contextlib.suppress(OSError):
            for line in lines(self.path):
                span = _span(line)
                if span is None:
                    continue
                place = (span.server, span.node, span.began)
                if place not in known or known[place].until < span.until:
                    known[place] = span
        return list(known.values())


_NAMES = tuple(each.name for each in fields(HeldSpan))


def _span(line: bytes) -> HeldSpan | None:
    """Read a line; None if it is none of this file. Fields of later versions are passed over."""
    try:
        data = json.loads(line)
        span = HeldSpan(**{name: data[name] for name in _NAMES if name in data})
    except (ValueError, TypeError, RecursionError):
        return None
    numbers = (span.began, span.until, 0.0 if span.price is None else span.price, span.gpus)
    right = all(isinstance(each, (int, float)) and math.isfinite(each) for each in numbers)
    return span if right and all(isinstance(each, str) for each in (span.server, span.role, span.node)) else None


class HeldTime:
    """One run of a server, as its supervisor reports it. A line that cannot be written is left out."""

    def __init__(self, log: HeldLog, span: HeldSpan, *, clock: Callable[[], float] = time.time) -> None:
        self._log = log
        self._span = span
        self._clock = clock
        self._written = -EVERY
        self.beat()

    def beat(self, *, ended: bool = False) -> None:
        """Write a line if the last one is old, or if the server has ended."""
        now = self._clock()
        if ended or not 0.0 <= now - self._written < EVERY:
            self._written = now
            self._span = replace(self._span, until=max(now, self._span.until))
            with contextlib.suppress(OSError):
                self._log.add(self._span)


# --------------------------------------------------------------------------------------------------------- the reservation


@dataclass(frozen=True, slots=True)
class ReservedRole:
    """What the servers of one role, or of one model of a profile, were held for; ``cost`` in dollars, None if unknown.

    ``source`` says who knows the hours: the fleet, or the profile that states them.
    """

    name: str
    source: Literal["fleet", "profile"]
    servers: int
    hours: float
    cost: float | None


@dataclass(frozen=True, slots=True)
class ReservedCost:
    """The reservation of a period (Unix times)."""

    since: float
    until: float
    roles: tuple[ReservedRole, ...]

    @property
    def hours(self) -> float:
        """Hours of all servers."""
        return sum(role.hours for role in self.roles)

    @property
    def cost(self) -> float | None:
        """Dollars of all servers whose price is known; None if that of none is."""
        known = [role.cost for role in self.roles if role.cost is not None]
        return sum(known) if known else None

    @property
    def unpriced(self) -> int:
        """Roles without a price, so that `cost` is only a part."""
        return sum(role.cost is None for role in self.roles)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "since": self.since,
            "until": self.until,
            "hours": self.hours,
            "cost": self.cost,
            "unpriced": self.unpriced,
            "servers": [asdict(role) for role in self.roles],
        }


class Reservations:
    """Reservations of periods, from the fleet's file and a profile."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._log: HeldLog | None = None

    def of(
        self,
        config: StrategyConfig | None,
        since: float,
        until: float,
        *,
        used: Callable[[], StrategyConfig | None] = lambda: None,
    ) -> ReservedCost | None:
        """Return the reservation of a period; None if neither the fleet nor the profile knows of a server in it.

        Reads files. Prices are those of the fleet file, else of the profile's model at the same role. ``used`` returns the
        profile for prices that are still missing, if none is given.
        """
        if self._log is None:
            self._log = HeldLog(_directory(self._environ) / FILE_NAME)
        spans = [span for span in self._log.spans() if span.seconds(since, until)]
        if config is None and any(span.price is None for span in spans):
            config = used()
        roles = _of_fleet(spans, {} if config is None else _prices(config), since, until)
        if config is not None:
            roles += _of_profile(config, {role.name for role in roles}, since, until)
        return ReservedCost(since, until, tuple(roles)) if roles else None


def _directory(environ: Mapping[str, str]) -> Path:
    """Return the folder of the fleet's state, also if the fleet file cannot be read.

    A file that names no folder is not parsed: whoever reads metrics need not wait for what validates a fleet.
    """
    with contextlib.suppress(OSError):
        if not any(_NAMES_STATE.search(path.read_bytes()) for path in own_files(environ) if path.is_file()):
            return usual_state(environ)
    from workflow_composer.fleet.file import load_fleet

    try:
        return load_fleet(None, environ).states.directory
    except (WorkflowComposerError, OSError):
        return usual_state(environ)


def _of_fleet(spans: Iterable[HeldSpan], prices: Mapping[str, float], since: float, until: float) -> list[ReservedRole]:
    found: dict[str, list[tuple[HeldSpan, float]]] = {}
    for span in spans:
        if seconds := span.seconds(since, until):
            found.setdefault(span.role, []).append((span, seconds))
    rows = []
    for role, held in sorted(found.items()):
        costs = [_cost(seconds / HOUR, prices.get(role) if span.price is None else span.price) for span, seconds in held]
        known = [cost for cost in costs if cost is not None]
        hours = sum(seconds for _, seconds in held) / HOUR
        rows.append(
            ReservedRole(role, "fleet", len({span.server for span, _ in held}), hours, sum(known) if known else None)
        )
    return rows


def _of_profile(config: StrategyConfig, known: set[str], since: float, until: float) -> list[ReservedRole]:
    """Return the servers whose hours the profile states; models with one address share one server, at the highest price."""
    days = max(0.0, until - since) / DAY
    found: dict[str, ReservedRole] = {}
    for name, spec in config.models.items():
        role = _role(config, spec.endpoint)
        if spec.gpu_hours_per_day is None or not days or role in known:
            continue
        hours = spec.gpu_hours_per_day * days
        place = role or spec.base_url or name
        one = ReservedRole(role or name, "profile", 1, hours, _cost(hours, spec.gpu_hour_price))
        before = found.get(place)
        if before is None or (one.cost or 0.0) > (before.cost or 0.0):
            found[place] = one
    return list(found.values())


def _prices(config: StrategyConfig) -> dict[str, float]:
    found = {_role(config, spec.endpoint): spec.gpu_hour_price for spec in config.models.values()}
    return {role: price for role, price in found.items() if role is not None and price is not None}


def _role(config: StrategyConfig, endpoint: str | None) -> str | None:
    """Return the role of the fleet that serves an endpoint of a profile: that of the registry, else of the same name."""
    from workflow_composer.config.profile_models import registered_role

    place = None if endpoint is None else config.vllm_endpoints.get(endpoint)
    return (registered_role(place) if isinstance(place, str) else None) or endpoint


def _cost(hours: float, price: float | None) -> float | None:
    return None if price is None else hours * price


def held_by(log: HeldLog, server: str, role: str, gpus: int, price: float | None) -> HeldTime:
    """Begin a run of a server on this node."""
    now = time.time()
    span = HeldSpan(server=server, role=role, node=os.uname().nodename, gpus=gpus, price=price, began=now, until=now)
    return HeldTime(log, span)
