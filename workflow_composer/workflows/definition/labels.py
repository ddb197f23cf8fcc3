"""Where private inputs flow in a workflow, by data and by control: a walk over the steps in their order.

A step reads private *data* if anything that it says names a private value; it is under private *control* if whether, how
often or over what it runs depends on one. What it answers carries both, unless a release takes the data away; the control
stays, since that a step has run tells as well. A step that may use the cloud must have neither.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from workflow_composer.workflows.definition.checking import answer_shape
from workflow_composer.workflows.definition.model import Labels, NestedBody, OnError, Reading, Step, Workflow
from workflow_composer.workflows.definition.ordering import about_rows, readings_of
from workflow_composer.workflows.definition.shapes import Shape

Ways = Mapping[str, tuple[str, ...]]
"""Private inputs, each with the names by which it came, the input first."""

_CONTROL = ("when", "for_each", "until")


@dataclass(frozen=True)
class NameFlow:
    """What a name carries: as a value, as whether there is a value, and as what it took to get it.

    ``facts`` (tries, cost, model, error) follow from everything that the step has read: no release covers them.
    """

    value: Ways = field(default_factory=dict)
    state: Ways = field(default_factory=dict)
    facts: Ways = field(default_factory=dict)


class Labelling:
    """Labels a workflow's steps. ``inputs`` is what its inputs carry, ``control`` what decides whether it runs at all."""

    def __init__(self, workflow: Workflow, inputs: Mapping[str, Ways], control: Ways | None = None) -> None:
        self.workflow = workflow
        self.control = control or {}
        self.names = {name: NameFlow(inputs.get(name, {})) for name in workflow.inputs}

    def done(self) -> Workflow:
        """Return the workflow with labels."""
        steps = self._labelled(self.workflow.steps, self.workflow.order, self.names, self.control)
        return replace(self.workflow, steps=steps)

    def output(self) -> Ways:
        """Return what the output carries; after `done`."""
        return _join(_reading(reading, self.names) for reading in self.workflow.output.values())

    def _labelled(
        self, steps: Mapping[str, Step], order: Iterable[str], names: dict[str, NameFlow], control: Ways
    ) -> dict[str, Step]:
        made = {}
        for name in order:
            made[name], names[name] = self._step(steps[name], names, control)
        return {name: made.get(name, step) for name, step in steps.items()}

    def _step(self, step: Step, names: Mapping[str, NameFlow], control: Ways) -> tuple[Step, NameFlow]:
        inner = dict(names)
        loop = step.for_each
        if loop is not None:
            inner[loop.item] = NameFlow(_reading(loop.items, names))
        if step.reduce is not None:
            over = _join(inner[name].value for name in step.reduce.rows if name in inner)
            inner["rows"] = NameFlow(over)
        read = [(key, _reading(one, inner)) for key, one in (*readings_of(step), *about_rows(step))]
        control = _join([control, *(way for key, way in read if key[0] in (*_CONTROL, "group_by", "keep"))])
        control = _join([control, *(inner[name].state for name in step.needs if name in inner)])
        data: Ways = _join(way for key, way in read if key[0] not in ("when", "for_each", "group_by", "keep"))
        if step.reduce is not None:
            control = _join([control, *(inner[name].state for name in step.reduce.rows if name in inner)])
        around = {name: (*way, step.name) for name, way in control.items()}
        if isinstance(step.body, NestedBody):
            step, data = self._nested(step, step.body, inner, around)
        if loop is not None and loop.steps:
            within = self._labelled(loop.steps, loop.order, inner, around)
            step = replace(step, for_each=replace(loop, steps=within))
            data = _join([data, *(inner[name].value for name in within)])
        return self._with_labels(step, data, control)

    def _with_labels(self, step: Step, data: Ways, control: Ways) -> tuple[Step, NameFlow]:
        control = {name: (*way, step.name) for name, way in control.items()}
        data = {name: (*way, step.name) for name, way in data.items()}
        out = control if step.release is not None else {**control, **data}
        first = next(iter(data.values()), next(iter(control.values()), ()))
        bits = _bits_of(step) if step.release is not None and step.release.how == "choices" else None
        labels = Labels(frozenset(data), frozenset(control), frozenset(out), first, bits)
        return replace(step, labels=labels), NameFlow(out, control, {**control, **data})

    def _nested(self, step: Step, body: NestedBody, names: Mapping[str, NameFlow], control: Ways) -> tuple[Step, Ways]:
        given = {name: _reading(reading, names) for name, reading in step.given.items()}
        private = {
            name: {name: (f"{step.name}.{name}",)} for name, kind in body.workflow.inputs.items() if kind == "private"
        }
        inputs = {name: given.get(name) or private.get(name, {}) for name in body.workflow.inputs}
        inner = Labelling(body.workflow, inputs, control)
        made = inner.done()
        return replace(step, body=NestedBody(workflow=made)), _join([*given.values(), inner.output()])


def labelled(workflow: Workflow) -> Workflow:
    """Return a workflow with labels, of which its own private inputs are the origin."""
    return Labelling(workflow, private_inputs(workflow)).done()


def private_inputs(workflow: Workflow) -> dict[str, Ways]:
    """Return the inputs that are private."""
    return {name: {name: (name,)} for name, kind in workflow.inputs.items() if kind == "private"}


def _reading(reading: Reading, names: Mapping[str, NameFlow]) -> Ways:
    """Return what a text or expression carries. Asking only for a step's state tells what decides it, not its value."""
    of_values: frozenset[str] = getattr(reading, "values", reading.reads)
    facts: frozenset[str] = getattr(reading, "facts", reading.reads)
    found = [(name, names[name]) for name in sorted(reading.reads) if name in names]
    carried = [flow.value if name in of_values else flow.state for name, flow in found]
    return _join([*carried, *(flow.facts for name, flow in found if name in facts)])


def _join(ways: Iterable[Ways]) -> dict[str, tuple[str, ...]]:
    """Return all private inputs, each by its shortest way."""
    made: dict[str, tuple[str, ...]] = {}
    for one in ways:
        for name, way in one.items():
            if name not in made or len(way) < len(made[name]):
                made[name] = way
    return made


def _bits_of(step: Step) -> float | None:
    """Return how many bits a released answer of a closed form tells at most; null as a default is one answer more."""
    shape = answer_shape(step)
    bits = closed_bits(shape)
    if bits is None or step.on_error != OnError("default", None) or shape.may_be_null:
        return bits
    return math.log2(2**bits + 1)


def closed_bits(shape: Shape) -> float | None:
    """Return how many bits an answer of a closed form tells at most; None if it is not closed."""
    more = math.log2 if not shape.may_be_null else lambda count: math.log2(count + 1)
    if shape.choices:
        return more(len(shape.choices))
    if shape.kind == "truth":
        return more(2)
    if shape.kind != "object" or not shape.closed:
        return None
    parts = [closed_bits(part) for part in shape.fields.values()]
    if not parts or any(part is None for part in parts):
        return None
    return more(2 ** sum(part for part in parts if part is not None))
