"""The order of steps, and which are of a row and which of the whole run: what follows from the names that they read."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter

from workflow_composer.workflows.definition.model import Level, Reading, Step

OWN_NAMES = frozenset({"rows", "parts", "group"})
"""What the texts of a step over rows may name besides steps of the run."""


class StepCycle(Exception):
    """Steps that read each other in a circle. ``names`` lists them, the first one twice."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(" -> ".join(names))
        self.names = names


def readings_of(step: Step) -> Iterator[tuple[tuple[str, ...], Reading]]:
    """Yield what a step says, with the key path within the step, but for its inner steps and what a reduce asks of rows."""
    body = step.body
    for key in ("prompt", "system"):
        found = getattr(body, key, None)
        if found is not None:
            yield ("human" if type(body).__name__ == "HumanBody" else key,), found
    if step.when is not None:
        yield ("when",), step.when
    if step.for_each is not None:
        yield ("for_each",), step.for_each.items
    if step.until is not None:
        yield ("until",), step.until.condition
    if step.reduce is not None and step.reduce.fold is not None:
        yield ("fold",), step.reduce.fold
    yield from (((("with", name), found)) for name, found in step.given.items())
    yield from (((("files", name), found)) for name, found in step.files.items())
    for where, check in ((("accept",), step.accept), (("release", "check"), step.release.check if step.release else None)):
        if check is not None:
            asked = getattr(check.body, "prompt", None)
            if asked is not None:
                yield (*where, "ask"), asked
            yield from (((*where, "with", name), found) for name, found in check.given.items())
            yield from (((*where, "files", name), found) for name, found in check.files.items())


def about_rows(step: Step) -> Iterator[tuple[tuple[str, ...], Reading]]:
    """Yield what a reduce asks of each row."""
    if step.reduce is not None:
        for key, found in (("group_by", step.reduce.group_by), ("keep", step.reduce.keep)):
            if found is not None:
                yield (key,), found


def with_names(step: Step) -> Step:
    """Return a step, and those within it, with the names that they read and need, and inner ones in order.

    Raises `StepCycle`.
    """
    item = {step.for_each.item} if step.for_each is not None else set()
    hidden = {step.name, *item, *(OWN_NAMES if step.reduce is not None else ())}
    own = [reading for _, reading in readings_of(step)]
    reads = frozenset[str]().union(*(one.reads for one in own), *(one.reads for _, one in about_rows(step))) - hidden
    needs = frozenset[str]().union(*(one.needs for one in own)) - hidden
    loop = step.for_each
    if loop is not None and loop.steps:
        inner = {name: with_names(one) for name, one in loop.steps.items()}
        order = in_order({name: one.reads & inner.keys() for name, one in inner.items()})
        loop = replace(loop, steps=inner, order=order)
        reads |= frozenset[str]().union(*(one.reads for one in inner.values())) - inner.keys() - item
    return replace(step, reads=reads, needs=needs, for_each=loop)


def in_order(reads: Mapping[str, frozenset[str]]) -> tuple[str, ...]:
    """Return names so that each comes after those that it reads, else in the order given. Raises `StepCycle`."""
    sorter = TopologicalSorter(reads)
    try:
        sorter.prepare()
    except CycleError as error:
        raise StepCycle(list(reversed(error.args[1]))) from None
    order: list[str] = []
    places = {name: at for at, name in enumerate(reads)}
    ready = list(sorter.get_ready())
    while ready:
        name = min(ready, key=places.__getitem__)
        ready.remove(name)
        order.append(name)
        sorter.done(name)
        ready += sorter.get_ready()
    return tuple(order)


def rows_used(step: Step) -> frozenset[str] | None:
    """Return the fields of ``rows`` that a reduce uses; None: all."""
    used: set[str] = set()
    for _, reading in readings_of(step):
        if "rows" in reading.reads:
            of_rows: frozenset[str] | None = getattr(reading, "of_rows", None)
            if of_rows is None:
                return None
            used |= of_rows
    return frozenset(used)


def levels_and_rows(steps: Mapping[str, Step], inputs: Collection[str]) -> tuple[dict[str, Step], tuple[str, ...]]:
    """Return the steps with their levels and the columns of a reduce's rows, and their order. Raises `StepCycle`."""
    reads = {name: step.reads & steps.keys() for name, step in steps.items()}
    used = {name: rows_used(step) for name, step in steps.items() if step.reduce is not None}
    for name, columns in used.items():
        reads[name] |= (columns or frozenset()) & steps.keys()
    order = in_order(reads)
    levels: dict[str, Level] = {}
    for name in order:
        step = steps[name]
        of_run = (
            bool(reads[name]) and all(levels[one] == "run" for one in reads[name]) and not step.reads.intersection(inputs)
        )
        levels[name] = "run" if step.reduce is not None or of_run else "row"
    for name, columns in used.items():
        if columns is None:
            after = _after(name, reads)
            reads[name] |= {one for one in steps if levels[one] == "row" and one not in after}
    order = in_order(reads)
    made = {name: replace(step, level=levels[name]) for name, step in steps.items()}
    for name, columns in used.items():
        reduce = made[name].reduce
        assert reduce is not None
        of_row = [one for one in (*inputs, *steps) if one in inputs or (levels[one] == "row" and one in reads[name])]
        kept = tuple(one for one in of_row if columns is None or one in columns)
        made[name] = replace(made[name], reduce=replace(reduce, rows=kept))
    return made, order


def _after(name: str, reads: Mapping[str, frozenset[str]]) -> set[str]:
    """Return a step and all that read it, directly or not."""
    found, new = {name}, {name}
    while new:
        new = {one for one, read in reads.items() if read & new} - found
        found |= new
    return found
