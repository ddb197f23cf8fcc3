"""Steps of the run: over all rows or groups of them, and what follows from such steps.

Rows are taken in their order, put into groups by typed keys (1 is not "1"), and divided into parts that fit into one prompt,
the same each time. A group that fits is one question; the answers to the parts of another one are joined by ``fold``.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from workflow_composer.answers.json_text import canonical
from workflow_composer.workflows.definition.model import PromptBody, Reading, Reduce, Step
from workflow_composer.workflows.running.failing import of_value
from workflow_composer.workflows.running.one_question import Spot, ask, released
from workflow_composer.workflows.running.prompt_room import parts_of, probable_tokens
from workflow_composer.workflows.running.results import RowOutcome, Scope, StepResult, ValueFault
from workflow_composer.workflows.running.steps import each, run_step, together, tolerated, unmet_by
from workflow_composer.workflows.running.world import World

_ROWS, _PARTS = "rows", "parts"
_SHOWN = 5
"""Rows named in a note."""


async def run_over_rows(step: Step, rows: AsyncIterable[RowOutcome], world: World) -> StepResult:
    """Run a step of the run and return its result; ``rows`` are read, in their order, only if it is a `Reduce`.

    With ``group_by`` the value is a list with an object for each group, in the order of first appearance: ``group`` (the
    key), ``rows`` (their number) and ``value`` (None where the group failed). ``notes`` say how many rows were left out.
    """
    names = Scope({}, world.run_results)
    spot = Spot(world=world, row="", purse=world.purse, folder=world.folder)
    reduce = step.reduce
    if reduce is None:
        return await run_step(step, names, spot)
    if step.when is not None:
        try:
            if not step.when.holds(names):
                return StepResult(state="skipped", reason=f"not when: {step.when.text}")
        except ValueFault as fault:
            return tolerated(step, _wrong(fault), spot)
    asked = [one for one in (reduce.group_by, reduce.keep) if one is not None]
    needs = step.needs.union(*(one.needs for one in asked)) - {step.name}
    if (unmet := unmet_by(needs, names)) is not None:  # steps of the run; those of a row are looked at row by row
        return unmet
    taken = _Taken(reduce)
    number = 0
    async for row in rows:
        number += 1
        taken.take(number, row)
    over = _Over(step, reduce, names, spot)
    if reduce.group_by is None:
        group = next(iter(taken.groups.values()), _RowGroup(None))
        result = await over.reduced(group, step.name, step.name)
    else:
        result = await _by_group(step, list(taken.groups.values()), over, spot)
    return replace(result, notes=(*taken.notes(), *over.notes))


async def _by_group(step: Step, groups: Sequence[_RowGroup], over: _Over, spot: Spot) -> StepResult:
    async def one(at: int) -> StepResult:
        key = str(at + 1) if step.labels.private else _shown(groups[at].key)
        found = await over.reduced(groups[at], f"{step.name}[{at}]", f"group {key}")
        return tolerated(step, found, spot)

    items = await each(len(groups), one, spot.world.at_once)
    result = together(items, what="group")
    value = [  # also where a group has failed, for the table of the groups; nothing else reads a step that is not done
        {"group": group.key, "rows": len(group.rows), "value": item.value} for group, item in zip(groups, items, strict=True)
    ]
    return replace(result, value=value)


def _wrong(fault: ValueFault) -> StepResult:
    return StepResult(state="failed", kind="value", reason=of_value(fault).reason)


def _shown(key: Any) -> str:
    return "(empty)" if key is None else key if isinstance(key, str) else canonical(key)


# ---------------------------------------------------------------------------------------------------------------- rows


@dataclass(slots=True)
class _RowGroup:
    """The rows of one key, as objects of their inputs and their steps' values, with their numbers from 1."""

    key: Any
    rows: list[dict[str, Any]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)


class _Taken:
    """Groups of rows, and how many were left out why."""

    def __init__(self, reduce: Reduce) -> None:
        self._reduce = reduce
        self.groups: dict[str, _RowGroup] = {}
        self._left_out: dict[str, list[int]] = {}

    def take(self, number: int, row: RowOutcome) -> None:
        """Put a row into its group, or leave it out."""
        try:
            why = self._forbidden(row)
            key = None if why or self._reduce.group_by is None else self._reduce.group_by.evaluate(row.scope)
        except ValueFault as fault:
            why, key = of_value(fault).reason, None
        if why:
            self._left_out.setdefault(why, []).append(number)
            return
        group = self.groups.setdefault(canonical(key), _RowGroup(key))
        group.rows.append({name: row.scope.value(name) for name in self._reduce.rows})
        group.numbers.append(number)

    def _forbidden(self, row: RowOutcome) -> str:
        """Return why a row is left out; empty: it is not. Raises `ValueFault`."""
        keep, group_by = self._reduce.keep, self._reduce.group_by
        readings: list[Reading] = [one for one in (keep, group_by) if one is not None]
        for name in sorted({name for reading in readings for name in reading.needs}):
            found = row.scope.results.get(name)
            if found is not None and found.state != "done":
                return f"{name} is {found.state.replace('_', ' ')}"
        if keep is None:
            return f"the row is {row.state}" if row.state in ("failed", "waiting", "stopped") else ""
        return "" if keep.holds(row.scope) else f"not `{keep.text}`"

    def notes(self) -> tuple[str, ...]:
        """Return in words how many rows were left out, and why."""
        return tuple(
            f"{len(numbers):,} row{'s' if len(numbers) > 1 else ''} left out: {why}"
            for why, numbers in self._left_out.items()
        )


# ------------------------------------------------------------------------------------------------------------- folding


class _Over:
    """Reduces groups of rows to values. ``notes`` name the rows that do not fit."""

    def __init__(self, step: Step, reduce: Reduce, names: Scope, spot: Spot) -> None:
        self._step, self._names, self._spot = step, names, spot
        self._fold: Step | None = None
        if reduce.fold is not None and isinstance(step.body, PromptBody):
            self._fold = replace(step, body=replace(step.body, prompt=reduce.fold))
        self._room = spot.world.room(step) if isinstance(step.body, PromptBody) else None
        self.notes: list[str] = []

    async def reduced(self, group: _RowGroup, place: str, told: str) -> StepResult:
        """Return the value of one group."""
        names = self._names.inner({"group": group.key})
        try:
            fitting = self._fitting(group, names, told)
            parts = self._divided(self._step, _ROWS, fitting, names)
        except ValueFault as fault:
            return _wrong(fault)
        if group.rows and not fitting:
            return StepResult(state="failed", kind="too_long", reason=f"{told}: no row of it fits into a prompt")
        if len(parts) == 1:
            result = await ask(self._step, names.inner({_ROWS: list(parts[0])}), self._spot, place)
        elif self._fold is None:
            reason = (
                f"{told}: its {len(group.rows):,} rows do not fit into one prompt ({self._room:,} tokens fit); write fold"
            )
            return StepResult(state="failed", kind="too_long", reason=reason)
        else:
            result = await self._folded(parts, names, place)
        return await released(self._step, result, names, self._spot, place)

    async def _folded(self, parts: Sequence[Sequence[Any]], names: Scope, place: str) -> StepResult:
        """Ask for each part, then join what came, part by part, until one value is left."""
        assert self._fold is not None  # the caller has looked
        step, name, level = self._step, _ROWS, 0
        asked: list[StepResult] = []
        while True:
            made = await self._each(step, name, parts, names, f"{place}.{name}{level}", joins=level > 0)
            asked += made
            whole = together(made, what="part")
            if whole.state != "done" or len(made) == 1:
                return replace(made[0] if whole.state == "done" else whole, items=()).having_used(asked)
            step, name, level = self._fold, _PARTS, level + 1
            try:
                parts = self._divided(step, name, whole.value, names)
            except ValueFault as fault:
                return _wrong(fault).having_used(asked)
            if len(parts) == len(made):
                reason = f"two partial results do not fit into one prompt ({self._room:,} tokens fit)"
                return StepResult(state="failed", kind="too_long", reason=reason).having_used(asked)

    async def _each(
        self, step: Step, name: str, parts: Sequence[Sequence[Any]], names: Scope, place: str, *, joins: bool
    ) -> list[StepResult]:
        """Ask for each part; a single partial result needs no joining."""

        async def one(at: int) -> StepResult:
            if joins and len(parts[at]) == 1:
                return StepResult(state="done", value=parts[at][0])
            return await ask(step, names.inner({name: list(parts[at])}), self._spot, f"{place}[{at}]")

        return await each(len(parts), one, self._spot.world.at_once)

    def _divided(self, step: Step, name: str, items: Sequence[Any], names: Scope) -> list[Sequence[Any]]:
        """Divide items into parts that fit into one prompt; without a known limit, they are one part."""
        if self._room is None:
            return [items]
        fits = self._fits(step, name, names)
        return [items] if not items or fits(items) else parts_of(items, fits)

    def _fits(self, step: Step, name: str, names: Scope) -> Callable[[Sequence[Any]], bool]:
        return lambda part: self._tokens(step, names.inner({name: list(part)})) <= (self._room or 0)

    def _tokens(self, step: Step, names: Scope) -> int:
        body = step.body
        assert isinstance(body, PromptBody)  # only prompts have a room
        texts = [reading.evaluate(names) for reading in (body.system, body.prompt) if reading is not None]
        said = step.form.instructions() if step.form is not None else ""
        return probable_tokens("\n".join([*texts, said]))

    def _fitting(self, group: _RowGroup, names: Scope, told: str) -> list[dict[str, Any]]:
        """Return the rows of a group, without those that do not fit even alone, which the notes name."""
        if self._room is None or self._tokens(self._step, names.inner({_ROWS: group.rows})) <= self._room:
            return group.rows
        sizes = [self._tokens(self._step, names.inner({_ROWS: [row]})) for row in group.rows]
        long = [(number, size) for number, size in zip(group.numbers, sizes, strict=True) if size > self._room]
        self.notes += [
            f"row {number} left out of {told}: it has about {size:,} tokens, and {self._room:,} fit"
            for number, size in long[:_SHOWN]
        ]
        if len(long) > _SHOWN:
            self.notes.append(f"{len(long) - _SHOWN:,} more rows left out of {told}, which do not fit")
        return [row for row, size in zip(group.rows, sizes, strict=True) if size <= self._room]
