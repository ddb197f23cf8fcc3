"""What runs of workflows are doing, as others see it: a small file for each run, which the service's dashboard and API read.

The file has states, numbers and the drawing of the workflow. It has no value: of what a step of a single row has said, the
length and a digest that can be compared within its run only.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import platform
import re
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_composer.storage.replacing import replacing
from workflow_composer.support.places import state_folder

if TYPE_CHECKING:
    from workflow_composer.config.strategy import StrategyConfig
    from workflow_composer.workflows.definition.model import Workflow
    from workflow_composer.workflows.keeping.row_keeper import RunCounts
    from workflow_composer.workflows.running.results import StepResult

RUNNING, LOST, CANCELLED, FAILED = "running", "lost", "cancelled", "failed"
"""States that are not those of a run's report: under way; its process has said nothing for `SILENT` seconds; ended from
outside; ended by an error.
"""
SAVE_EVERY = 1.0
"""Seconds between two writes of what a run is doing."""
SILENT = 60.0
KEPT = 200
"""Runs whose files are kept in a folder."""
_FOLDER = "workflow-runs"
_IDENTITY = re.compile(r"[A-Za-z0-9_-]{1,100}")
_PRUNE_EVERY = 50
_MOST_MODELS = 20


def runs_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder of the runs that a user's commands begin."""
    return state_folder(environ) / _FOLDER


def new_run_id() -> str:
    """Return the ID of a run of the command line."""
    return f"run-{secrets.token_hex(12)}"


@dataclass(slots=True)
class SeenStep:
    """A step of the workflow, in all rows: how often it is ``under_way``, and how often it has ended in each state.

    ``items`` are those of its lists, by state. ``said`` is of a single row: its answer's length in characters, and a digest.
    """

    under_way: int = 0
    states: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    items: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    cost: float = 0.0
    models: set[str] = field(default_factory=set)
    said: Mapping[str, Any] | None = None

    @property
    def data(self) -> dict[str, Any]:
        """The same as JSON data; money in dollars."""
        found = {"running": self.under_way, "states": dict(self.states), "failures": dict(self.kinds)}
        found |= {"items": dict(self.items), "calls": self.calls, "kept": 0, "cost": round(self.cost, 9)}
        return found | {"models": sorted(self.models)[:_MOST_MODELS], "answer": self.said}


class LiveRun:
    """A run while it goes on: the `StepWatch` of its rows. ``rows`` is their number, None for one message of the service.

    Belongs to one event loop. A step that another pass over the same rows computes again is not counted again.
    """

    def __init__(
        self,
        identity: str,
        workflow: Workflow,
        config: StrategyConfig | None,
        *,
        rows: int | None = None,
        output: str = "",
    ) -> None:
        from workflow_composer.workflows.definition.drawing import picture

        self.id = identity
        self.state = RUNNING
        self.single = rows is None
        self.rows: Counter[str] = Counter()
        self._total = 1 if rows is None else rows
        self._began = time.time()
        self._ended: float | None = None
        self._salt = secrets.token_bytes(16)
        self._steps = {name: SeenStep() for name in workflow.order}
        self._closed: set[str] = set()
        self._asked: tuple[RunCounts, ...] = ()
        self._fixed: dict[str, Any] = {
            "id": identity,
            "workflow": workflow.name,
            "source": "service" if rows is None else "command",
            "host": platform.node(),
            "output": output,
            "graph": picture(workflow, config).data,
        }
        self._about: dict[str, dict[str, Any]] = {
            name: {"name": name, "private": step.labels.private, "of_run": step.level == "run"}
            for name, step in ((name, workflow.steps[name]) for name in workflow.order)
        }

    def begun(self, name: str) -> None:
        """Count a step of a row that begins."""
        if name not in self._closed:
            self._steps[name].under_way += 1

    def ended(self, name: str, result: StepResult | None) -> None:
        """Count a step of a row that has ended; None: it was ended from outside."""
        if name in self._closed:
            return
        step = self._steps[name]
        step.under_way -= 1
        if result is None:
            return
        step.states[result.state] += 1
        if result.kind is not None and result.state == "failed":
            step.kinds[result.kind] += 1
        if result.model:
            step.models.add(result.model)
        if self.single:
            step.calls, step.cost = result.attempts, result.cost
            step.said = None if result.value is None else self._told_of(result.value)

    def item(self, name: str, result: StepResult) -> None:
        """Count an item of a step's list that has ended."""
        if name not in self._closed:
            self._steps[name].items[result.state] += 1

    def row(self, state: str) -> None:
        """Count a row that has ended."""
        self.rows[state] += 1

    def pass_begins(self, *asked: RunCounts) -> None:
        """Begin a pass over the rows: steps that have been counted are not counted again."""
        self._closed |= {name for name, step in self._steps.items() if step.states}
        self.rows.clear()
        self.asks(*asked)

    def asks(self, *asked: RunCounts) -> None:
        """Take calls, money and kept answers from these counts from now on, instead of the steps' results."""
        self._asked = asked

    def end(self, state: str) -> None:
        """End the run."""
        if self._ended is None:
            self.state, self._ended = state, time.time()

    def _told_of(self, value: Any) -> dict[str, Any]:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), key=self._salt, digest_size=8).hexdigest()
        return {"length": len(text), "digest": digest}

    @property
    def data(self) -> dict[str, Any]:
        """The run as JSON data; times in epoch seconds, money in dollars."""
        from workflow_composer.workflows.keeping.keys import top_of

        steps: dict[str, dict[str, Any]] = {name: self._about[name] | step.data for name, step in self._steps.items()}
        for counts in self._asked:
            for path, one in list(counts.items()):
                told = steps[top_of(path)]
                told["calls"] += one.calls
                told["kept"] += one.kept + one.shared
                told["cost"] = round(told["cost"] + one.cost, 9)
        return self._fixed | {
            "state": self.state,
            "began": round(self._began, 3),
            "updated": round(time.time(), 3),
            "ended": None if self._ended is None else round(self._ended, 3),
            "rows": {"total": self._total, **self.rows},
            "calls": sum(step["calls"] for step in steps.values()),
            "cost": round(sum(step["cost"] for step in steps.values()), 9),
            "steps": list(steps.values()),
        }


class RunBoard:
    """The runs of a folder, and of further ones that are only read. For one event loop; reading is for a thread.

    A folder that cannot be written costs nothing but the sight of its runs; what this process itself runs is seen all the
    same.
    """

    def __init__(self, folder: Path, *others: Path) -> None:
        self._folder, self._others = folder, others
        self._own: dict[str, LiveRun] = {}
        self._read: dict[Path, tuple[int, dict[str, Any]]] = {}
        self._begun = 0

    @asynccontextmanager
    async def showing(self, run: LiveRun) -> AsyncIterator[LiveRun]:
        """Show a run from its begin to its end; one that does not end by `LiveRun.end` is cancelled."""
        self._own[run.id] = run
        for known in list(self._own)[:-KEPT]:
            if self._own[known].state != RUNNING:
                del self._own[known]
        ticking = asyncio.create_task(self._save_now_and_then(run))
        try:
            yield run
        except Exception:
            run.end(FAILED)
            raise
        finally:
            ticking.cancel()
            run.end(CANCELLED)
            data = run.data
            await asyncio.shield(asyncio.to_thread(self._save, data))

    async def _save_now_and_then(self, run: LiveRun) -> None:
        while True:
            if not run.single:
                await asyncio.to_thread(self._save, run.data)
            await asyncio.sleep(SAVE_EVERY)
            if run.single:
                await asyncio.to_thread(self._save, run.data)

    def _save(self, data: Mapping[str, Any]) -> None:
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with replacing(self._folder / f"{data['id']}.json", mode=0o600, synced=False) as file:
                file.write(json.dumps(data).encode())
        if data["ended"] is not None:
            self._begun += 1
            if self._begun % _PRUNE_EVERY == 1:
                self._prune()

    def _prune(self) -> None:
        for path, _ in _newest(self._folder)[KEPT:]:
            with suppress(OSError):
                path.unlink()

    # ---------------------------------------------------------------------------------------------------------- reading

    def runs(self, most: int, mine: Callable[[str], bool]) -> list[dict[str, Any]]:
        """Return the latest of those runs whose ID is ``mine``, without their drawings; blocks."""
        files = [pair for folder in (self._folder, *self._others) for pair in _newest(folder) if mine(pair[0].stem)]
        files.sort(key=lambda pair: -pair[1])
        own = {identity: run.data for identity, run in list(self._own.items()) if mine(identity)}
        found = [one for path, changed in files[: most + len(own)] if (one := self._of(path, changed)) is not None]
        every = {one["id"]: _judged(one) for one in found} | own
        latest = sorted(every.values(), key=lambda one: (one["state"] != RUNNING, -one["began"]))[:most]
        return [{name: value for name, value in one.items() if name != "graph"} for one in latest]

    def find(self, identity: str) -> dict[str, Any] | None:
        """Return a run with its drawing; None: there is none; blocks."""
        if _IDENTITY.fullmatch(identity) is None:
            return None
        if (own := self._own.get(identity)) is not None:
            return own.data
        for folder in (self._folder, *self._others):
            with suppress(OSError, ValueError):
                return _judged(_whole(json.loads((folder / f"{identity}.json").read_bytes())))
        return None

    def _of(self, path: Path, changed: int) -> dict[str, Any] | None:
        known = self._read.get(path)
        if known is None or known[0] != changed:
            try:
                known = (changed, _whole(json.loads(path.read_bytes())))
            except (OSError, ValueError):
                return None
            self._read[path] = known
            for old in list(self._read)[: -2 * KEPT]:
                del self._read[old]
        return known[1]


def _newest(folder: Path) -> list[tuple[Path, int]]:
    """Return the files of runs with the time of their last change (ns), the newest first."""
    found = []
    with suppress(OSError):
        for path in folder.glob("*.json"):
            if _IDENTITY.fullmatch(path.stem):
                with suppress(OSError):
                    found.append((path, path.stat().st_mtime_ns))
    return sorted(found, key=lambda pair: -pair[1])


_FIELDS: Iterable[tuple[str, type | tuple[type, ...]]] = (
    *((name, str) for name in ("id", "workflow", "source", "state")),
    *((name, (int, float)) for name in ("began", "updated")),
    ("rows", dict),
    ("steps", list),
    ("graph", dict),
)


def _whole(found: Any) -> dict[str, Any]:
    """Return what a file says. Raises ValueError if it is no run."""
    if not isinstance(found, dict) or not all(isinstance(found.get(name), kind) for name, kind in _FIELDS):
        raise ValueError("this is no run of a workflow")
    return found


def _judged(run: dict[str, Any]) -> dict[str, Any]:
    """Return a run that is read from a file, lost if its process has long been silent."""
    if run["state"] == RUNNING and time.time() - run["updated"] > SILENT:
        return run | {"state": LOST}
    return run
