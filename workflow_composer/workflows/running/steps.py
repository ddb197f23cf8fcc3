"""Steps in their order, each as soon as what it reads is there: conditions, lists, loops, nested workflows, and trouble."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from workflow_composer.workflows.definition.evaluation import kind_of
from workflow_composer.workflows.definition.model import ForEach, NestedBody, PromptBody, Reading, Step
from workflow_composer.workflows.running.failing import of_value
from workflow_composer.workflows.running.one_question import Spot, ask, released
from workflow_composer.workflows.running.results import Scope, State, StepResult, ValueFault
from workflow_composer.workflows.running.world import World

_MISSING: Mapping[State, str] = {
    "skipped": "which was skipped",
    "failed": "which failed",
    "withheld": "which was withheld",
    "not_run": "which was not run",
}
_FIELDS = re.compile(r"\s*(\w+)((?:\.\w+)*)\s*")


async def run_steps(steps: Mapping[str, Step], order: Sequence[str], names: Scope, spot: Spot) -> dict[str, StepResult]:
    """Run these steps and return their results; independent ones run at the same time.

    ``order`` has each step after those that it reads; ``names`` are those around them.
    """
    results: dict[str, StepResult] = dict(names.results)
    inside = Scope(names.plain, results)
    if spot.world.at_once == 1:
        for name in order:
            results[name] = await run_step(steps[name], inside, spot)
        return {name: results[name] for name in order}
    among = frozenset(order)
    left = {name: read_by(steps[name]) & among for name in order}
    running: dict[asyncio.Task[StepResult], str] = {}
    try:
        while left or running:
            ready = [
                name for name, reads in left.items() if not any(one in left or one in running.values() for one in reads)
            ]
            for name in ready:
                del left[name]
            if len(ready) == 1 and not running:
                results[ready[0]] = await run_step(steps[ready[0]], inside, spot)
                continue
            for name in ready:
                running[asyncio.ensure_future(run_step(steps[name], inside, spot))] = name
            ended, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(ended, key=lambda task: order.index(running[task])):
                results[running.pop(task)] = task.result()
    finally:
        await _ended(running)
    return {name: results[name] for name in order}


def read_by(step: Step) -> frozenset[str]:
    """Return the names that a step and the steps within it read."""
    if step.for_each is None:
        return (step.reads | step.needs) - {step.name}
    inner = step.for_each.steps.values()
    return (step.reads | step.needs).union(*(read_by(one) for one in inner)) - {step.name}


async def run_step(step: Step, names: Scope, spot: Spot) -> StepResult:
    """Run one step, if its condition holds and what it needs is there."""
    watch = None if spot.prefix else spot.world.watch
    if watch is None:
        return tolerated(step, await _attempted(step, names, spot, spot.prefix + step.name), spot)
    result = None
    watch.begun(step.name)
    try:
        result = tolerated(step, await _attempted(step, names, spot, step.name), spot)
    finally:
        watch.ended(step.name, result)
    return result


async def _attempted(step: Step, names: Scope, spot: Spot, place: str) -> StepResult:
    if step.when is not None and not step.per_item:
        unmet = unmet_by(step.when.needs - {step.name}, names) or _forbidden(step.when, names)
        if unmet is not None:
            return unmet
    if (unmet := unmet_by(step.needs - {step.name}, names)) is not None:
        return unmet
    if (person := _awaited(step.reads - {step.name}, names)) is not None:
        return person
    if step.for_each is not None:
        return await _over_items(step, step.for_each, names, spot, place)
    return await _repeated(step, names, spot, place)


def tolerated(step: Step, result: StepResult, spot: Spot) -> StepResult:
    """Return what a failure means for the step's value, as its ``on_error`` says."""
    if result.state != "failed":
        return result
    match step.on_error.action:
        case "skip":
            return replace(result, state="skipped")
        case "default":
            return replace(result, state="done", value=step.on_error.default, origin="default")
        case "stop":
            spot.world.stopped.stop(f"{spot.prefix}{step.name} failed, and its on_error is stop")
    return result


# ---------------------------------------------------------------------------------------------------------- conditions


def unmet_by(needed: frozenset[str], names: Scope) -> StepResult | None:
    """Return what a step is that lacks a step which it needs; None: all are done."""
    missing = [(name, found) for name in sorted(needed) if (found := names.results.get(name)) and found.state != "done"]
    for states in (("failed", "withheld", "not_run"), ("skipped",)):
        for name, found in missing:
            if found.state in states:
                state: State = "skipped" if found.state == "skipped" else "not_run"
                stopped = found.kind if found.kind == "stopped" else None
                return StepResult(state=state, kind=stopped, reason=f"needs {name}, {_MISSING[found.state]}")
    return StepResult(state="waiting", reason=f"waits for {missing[0][0]}") if missing else None


def _awaited(read: frozenset[str], names: Scope) -> StepResult | None:
    """Return that a step waits with one that it reads, because a person's answer is no missing value; None: it does not."""
    for name in sorted(read):
        found = names.results.get(name)
        if found is not None and found.state == "waiting":
            return StepResult(state="waiting", reason=f"waits for {name}")
    return None


def _forbidden(when: Reading, names: Scope) -> StepResult | None:
    try:
        if when.holds(names):
            return None
    except ValueFault as fault:
        return _wrong(fault)
    return StepResult(state="skipped", reason=f"not when: {when.text}")


def _wrong(fault: ValueFault) -> StepResult:
    return StepResult(state="failed", kind="value", reason=of_value(fault).reason)


# --------------------------------------------------------------------------------------------------------------- lists


async def _over_items(step: Step, loop: ForEach, names: Scope, spot: Spot, place: str) -> StepResult:
    """Do a step for each item of its list, many at once, and return their results in the list's order."""
    try:
        items = loop.items.evaluate(names)
    except ValueFault as fault:
        return _wrong(fault)
    if not isinstance(items, (list, tuple)):
        reason = f"`{loop.items.text}`: a list is needed, found {kind_of(items)}"
        return StepResult(state="failed", kind="value", reason=reason)
    if len(items) > loop.at_most:
        reason = f"`{loop.items.text}` has {len(items):,} items, and at most {loop.at_most:,} are allowed (at_most)"
        return StepResult(state="failed", kind="value", reason=reason)
    gone = _not_done(loop.items, items, names)
    left = spot.world.calls_left()
    least = 0 if left == math.inf else (len(items) - len(gone)) * _calls_of_each(step, loop, spot.world)
    if least > left:
        reason = f"its {len(items):,} items need {least:,} calls, and all steps together may make {left:,} more (most_calls)"
        return StepResult(state="failed", kind="budget", reason=reason)

    async def one(at: int) -> StepResult:
        if at in gone:
            return StepResult(state="skipped", reason=f"item {at + 1} of {loop.items.text} is missing")
        scope = names.inner({loop.item: items[at]})
        result = tolerated(step, await _item(step, loop, scope, spot, f"{place}[{at}]"), spot)
        if watch is not None:
            watch.item(step.name, result)
        return result

    watch = None if spot.prefix else spot.world.watch
    return together(await each(len(items), one, spot.world.at_once))


def _calls_of_each(step: Step, loop: ForEach, world: World) -> int:
    """Return how many calls an item makes at least, if nothing of it fails."""
    if step.when is not None and step.per_item:
        return 0
    return _sure_calls(loop.steps, loop.order, world) if step.body is None else _calls_of_one(step, world)


def _sure_calls(steps: Mapping[str, Step], order: Sequence[str], world: World) -> int:
    """Return the calls of these steps that depend on no condition and on no list."""
    unsure: set[str] = set()
    calls = 0
    for name in order:
        step = steps[name]
        if step.when is not None or step.needs & unsure:
            unsure.add(name)
        elif step.for_each is None:
            calls += _calls_of_one(step, world)
    return calls


def _calls_of_one(step: Step, world: World) -> int:
    judged = step.accept is not None and isinstance(step.accept.body, PromptBody)
    if isinstance(step.body, NestedBody):
        flow = step.body.workflow
        return _sure_calls(flow.steps, flow.order, world) + judged
    return (world.calls_of(step) if isinstance(step.body, PromptBody) else 0) + judged


async def each(count: int, do: Callable[[int], Awaitable[StepResult]], at_once: int) -> list[StepResult]:
    """Return ``do(number)`` for the numbers from 0, in their order; so many run at once, each begun in its turn.

    How many calls they make at once is for the run's gate.
    """
    found: dict[int, StepResult] = {}
    numbers = iter(range(count))

    async def work() -> None:
        for at in numbers:
            found[at] = await do(at)

    if count == 1:
        return [await do(0)]
    tasks = [asyncio.ensure_future(work()) for _ in range(min(count, at_once))]
    try:
        await asyncio.gather(*tasks)
    finally:
        await _ended(tasks)
    return [found[at] for at in range(count)]


async def _ended(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """End what is still running after an error of another one, or a cancellation."""
    running = [task for task in tasks if not task.done()]
    for task in running:
        task.cancel()
    if running:
        await asyncio.gather(*running, return_exceptions=True)


def _not_done(reading: Reading, items: Sequence[Any], names: Scope) -> set[int]:
    """Return the numbers of those items that are results of another list and are not done."""
    found = _FIELDS.fullmatch(reading.text)
    results = names.results[found[1]].items if found and found[1] in names.results else ()
    if found is None or len(results) != len(items):
        return set()
    field = found[2].removeprefix(".").partition(".")[0]
    gone = set()
    for at, result in enumerate(results):
        one = result.inner.get(field, result) if field else result
        if items[at] is None and (one.state != "done" or result.state != "done"):
            gone.add(at)
    return gone


async def _item(step: Step, loop: ForEach, names: Scope, spot: Spot, place: str) -> StepResult:
    if step.when is not None and step.per_item and (unmet := _forbidden(step.when, names)) is not None:
        return unmet
    if step.body is not None:
        return await _repeated(step, names, spot, place)
    ends = spot.ends if step.timeout is None else min(spot.ends, asyncio.get_running_loop().time() + step.timeout)
    inner = await run_steps(loop.steps, loop.order, names, replace(spot, prefix=f"{place}.", ends=ends))
    return _whole(inner, {name: result.value for name, result in inner.items()}, inner)


def together(items: Sequence[StepResult], *, what: str = "item") -> StepResult:
    """Return the result of a step of whose items these are the results: the list of their values, null where not done."""
    made = StepResult(state="done", value=[item.value for item in items], items=tuple(items))
    if (wrong := _worst(items)) is not None:
        at, count = wrong
        more = f" (and {count - 1:,} more)" if count > 1 else ""
        reason = f"{what} {at + 1} of {len(items)}: {items[at].reason}{more}"
        made = replace(made, state=items[at].state, kind=items[at].kind, reason=reason, value=None)
    return made.having_used(items)


def _worst(results: Sequence[StepResult]) -> tuple[int, int] | None:
    """Return the number of the first result of the worst state, and how many have it; None: nothing is wrong with any."""
    for state in ("failed", "withheld", "not_run", "waiting"):
        wrong = [at for at, result in enumerate(results) if result.state == state]
        if wrong:
            return wrong[0], len(wrong)
    return None


def _whole(needed: Mapping[str, StepResult], value: Any, inner: Mapping[str, StepResult]) -> StepResult:
    """Return the result of several steps as one, whose value needs these of them: failed if one of them is, and so on."""
    made = StepResult(state="done", value=value, inner=inner)
    results = list(needed.values())
    if (wrong := _worst(results)) is not None:
        first = results[wrong[0]]
        made = replace(
            made, state=first.state, kind=first.kind, value=None, reason=f"{list(needed)[wrong[0]]}: {first.reason}"
        )
    return made.having_used(inner.values())


# --------------------------------------------------------------------------------------------------- once, or until …


async def _repeated(step: Step, names: Scope, spot: Spot, place: str) -> StepResult:
    """Do the step once, or until its condition holds; its name means its latest value."""
    until = step.until
    if until is None:
        return await _once(step, names, spot, place)
    tries: list[StepResult] = []
    scope = names
    while len(tries) < until.at_most:
        number = len(tries) + 1
        result = await _once(step, scope, spot, place if number == 1 else f"{place}#{number}")
        tries.append(result)
        result = result.having_used(tries)
        if result.state != "done":
            return result
        scope = names.inner({}, {step.name: result})
        try:
            if until.condition.holds(scope):
                return result
        except ValueFault as fault:
            return _wrong(fault).having_used(tries)
    reason = f"`{until.condition.text}` was not true after {until.at_most} times"
    return StepResult(state="failed", kind="invalid", reason=reason).having_used(tries)


async def _once(step: Step, names: Scope, spot: Spot, place: str) -> StepResult:
    if isinstance(step.body, NestedBody):
        result = await _nested(step, step.body, names, spot, place)
    else:
        result = await ask(step, names, spot, place)
    return await released(step, result, names, spot, place)


async def _nested(step: Step, body: NestedBody, names: Scope, spot: Spot, place: str) -> StepResult:
    """Run another workflow for the row, with its own names, within its own limits of money and time and these."""
    flow = body.workflow
    try:
        given = {name: reading.evaluate(names) for name, reading in step.given.items()}
    except ValueFault as fault:
        return _wrong(fault)
    limits = [limit for limit in (flow.row_budget, flow.run_budget) if limit is not None]
    seconds = [limit for limit in (step.timeout, flow.row_deadline, flow.run_deadline) if limit is not None]
    now = asyncio.get_running_loop().time()
    within = replace(
        spot,
        prefix=f"{place}/",
        folder=flow.folder,
        purse=spot.purse.part(min(limits)) if limits else spot.purse,
        ends=min([spot.ends, *(now + limit for limit in seconds)]),
    )
    inside = Scope({**dict.fromkeys(flow.inputs), **given})
    inner = await run_steps(flow.steps, flow.order, inside, within)
    output, faults = output_of(flow.output, Scope(inside.plain, inner))
    needed = {name: inner[name] for name in steps_behind(flow.steps, flow.output)}
    result = _whole(needed, output, inner)
    if result.state == "done" and faults:
        return replace(result, state="failed", kind="value", value=None, reason=faults[0])
    return result


# ------------------------------------------------------------------------------------------------------------- outputs


def steps_behind(steps: Mapping[str, Step], readings: Mapping[str, Reading]) -> list[str]:
    """Return the steps that these readings read, through others too, in their order in the file."""
    found: set[str] = set()
    left = {name for reading in readings.values() for name in reading.reads}
    while left:
        name = left.pop()
        if name in steps and name not in found:
            found.add(name)
            left |= read_by(steps[name])
    return [name for name in steps if name in found]


def output_of(output: Mapping[str, Reading], names: Scope) -> tuple[dict[str, Any], list[str]]:
    """Return the value of every output column, None where a step that it needs is not done, and what is wrong."""
    values: dict[str, Any] = {}
    faults: list[str] = []
    for column, reading in output.items():
        values[column] = None
        if any(name in names.results and names.results[name].state != "done" for name in reading.needs):
            continue
        try:
            values[column] = reading.evaluate(names)
        except ValueFault as fault:
            faults.append(f"output {column}: {of_value(fault).reason}")
    return values, faults
