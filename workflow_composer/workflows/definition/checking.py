"""Checks the names in a workflow: every name and field that is used exists, in branches not taken as well."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from workflow_composer.config.yaml_source import KeyPath
from workflow_composer.workflows.definition.model import CommandBody, HumanBody, NestedBody, PromptBody, Reading, Step
from workflow_composer.workflows.definition.ordering import about_rows, readings_of
from workflow_composer.workflows.definition.shapes import NUMBER, TEXT, UNKNOWN, Shape, list_of, object_of, shape_of_form
from workflow_composer.workflows.definition.source import FileFaults
from workflow_composer.workflows.definition.survey import KnownNames

_BRACED = re.compile(r"(?<!\{)\{([A-Za-z_]\w*)\}(?!\})")
_OF_INPUTS = {"text": TEXT, "private": TEXT, "number": NUMBER, "json": UNKNOWN}


def answer_shape(step: Step, outputs: Mapping[str, Shape] | None = None) -> Shape:
    """Return the shape of one answer of a step, without its list or groups."""
    if step.form is not None:
        return shape_of_form(step.form)
    if isinstance(step.body, NestedBody):
        return object_of(dict.fromkeys(step.body.workflow.output, UNKNOWN))
    return TEXT if isinstance(step.body, (PromptBody, HumanBody)) else UNKNOWN


def value_shape(step: Step) -> Shape:
    """Return the shape of a step's value."""
    if step.for_each is not None:
        if step.for_each.steps:
            inner = {name: value_shape(one) for name, one in step.for_each.steps.items()}
            made = list_of(object_of(inner))
            return Shape(made.schema, made.root, "fan")
        return list_of(answer_shape(step))
    if step.reduce is not None and step.reduce.group_by is not None:
        return list_of(object_of({"group": UNKNOWN, "rows": NUMBER, "value": answer_shape(step)}))
    return answer_shape(step)


class NameChecks:
    """Checks the readings of a workflow against what its names stand for. Faults go to ``faults``.

    ``notes`` are what is probably not meant, such as ``{name}`` for ``{{ name }}``. ``hidden`` maps names that are never
    there to the reason, such as a column that the inputs do not name.
    """

    def __init__(
        self, inputs: Mapping[str, str], steps: Mapping[str, Step], hidden: Mapping[str, str], faults: FileFaults
    ) -> None:
        self.inputs = {name: _OF_INPUTS[kind] for name, kind in inputs.items()}
        self.steps, self.faults, self.hidden = steps, faults, dict(hidden)
        self.notes: list[str] = []
        self.shapes = {name: value_shape(step) for name, step in steps.items()}
        for name, step in steps.items():
            self._hide_inner(step, name)

    def _hide_inner(self, step: Step, path: str) -> None:
        for name, inner in (step.for_each.steps if step.for_each is not None else {}).items():
            self.hidden.setdefault(name, f"it is a step within {path}; write {path}.{name}")
            self._hide_inner(inner, f"{path}.{name}")

    def run(self) -> None:
        """Check all steps."""
        for name, step in self.steps.items():
            self._step(step, ("steps", name), self._around(step))

    def columns(self, readings: Mapping[str, Reading], path: KeyPath) -> dict[str, Shape]:
        """Check what a row of the output says; return the shapes of its columns."""
        known = KnownNames({**self.inputs, **self.shapes}, self.steps.keys(), self.hidden)
        return {name: self._reading(reading, known, (*path, name)) for name, reading in readings.items()}

    def tables(self, readings: Mapping[str, Reading], path: KeyPath) -> None:
        """Check what further tables say."""
        known = self._of_run("it has a value for each row, and a table of its own is made once")
        for name, reading in readings.items():
            self._reading(reading, known, (*path, name))

    def _of_run(self, why: str) -> KnownNames:
        shapes = {name: shape for name, shape in self.shapes.items() if self.steps[name].level == "run"}
        hidden = {name: why for name in (*self.inputs, *self.steps) if name not in shapes}
        return KnownNames(shapes, shapes.keys(), {**self.hidden, **hidden})

    def _around(self, step: Step) -> KnownNames:
        """Return the names that a top-level step may use."""
        if step.reduce is None:
            return KnownNames({**self.inputs, **self.shapes}, self.steps.keys(), self.hidden)
        known = self._of_run("it has a value for each row; write {% for r in rows %}{{ r.… }}{% endfor %}")
        row = object_of({name: {**self.inputs, **self.shapes}[name] for name in step.reduce.rows} | self._of_rows(step))
        rows = list_of(row)
        own = {"rows": Shape(rows.schema, rows.root, "rows")}
        if step.reduce.group_by is not None:
            own["group"] = UNKNOWN
        return KnownNames({**known.shapes, **own}, known.steps, known.hidden)

    def _of_rows(self, step: Step) -> dict[str, Shape]:
        """Return everything that a row has, so that a typing error in one of them gets its hint."""
        return dict(self.inputs) | {
            name: shape for name, shape in self.shapes.items() if self.steps[name].level == "row" and name != step.name
        }

    def _step(self, step: Step, path: KeyPath, around: KnownNames) -> None:
        own = around
        if step.for_each is not None:
            own = self._in_loop(step, path, around)
        mine = answer_shape(step)
        for key, reading in readings_of(step):
            known = around if key == ("for_each",) or (key == ("when",) and not step.per_item) else own
            if key[0] in ("accept", "release") or (step.until is not None and key[0] not in ("when", "for_each")):
                known = known._replace(shapes={**known.shapes, step.name: mine})
            elif step.name in known.shapes:
                shapes = {name: shape for name, shape in known.shapes.items() if name != step.name}
                why = "a step does not read its own value, unless it has until"
                known = KnownNames(shapes, set(known.steps) - {step.name}, {**known.hidden, step.name: why})
            if key == ("fold",):
                known = known._replace(shapes={**known.shapes, "parts": list_of(mine)})
            self._reading(reading, known, (*path, *key))
        of_row = KnownNames({**self.inputs, **self.shapes}, self.steps.keys(), self.hidden)
        for key, reading in about_rows(step):
            self._reading(reading, of_row, (*path, *key))
        for name, inner in (step.for_each.steps if step.for_each is not None else {}).items():
            self._step(inner, (*path, "steps", name), own)

    def _in_loop(self, step: Step, path: KeyPath, around: KnownNames) -> KnownNames:
        loop = step.for_each
        assert loop is not None
        if loop.item in around.shapes:
            what = "a step or an input, or the item of an outer list"
            self.faults.add((*path, "for_each"), f"{loop.item!r} is already {what}", "choose another name for the item")
        shape, _ = loop.items.check(around)  # type: ignore[attr-defined]  # readings of a file can be checked
        inner = {name: value_shape(one) for name, one in loop.steps.items()}
        for name in inner:
            if name in around.shapes:
                self.faults.add(
                    (*path, "steps", name), f"there is already a step or an input {name!r}", "choose another name"
                )
        hidden = {name: why for name, why in around.hidden.items() if name not in inner}
        return KnownNames({**around.shapes, loop.item: shape.item, **inner}, {*around.steps, *inner}, hidden)

    def _reading(self, reading: Reading, known: KnownNames, path: KeyPath) -> Shape:
        for name in _BRACED.findall(reading.text) if "{" in reading.text else ():
            if name in known.shapes:
                self.notes.append(f"line {reading.line}: {{{name}}} stands as it is written; {{{{ {name} }}}} is its value")
        shape, found = reading.check(known)  # type: ignore[attr-defined]  # as above
        for fault in found:
            self.faults.at(path, fault.line, fault.message, fault.hint)
        return shape  # type: ignore[no-any-return]  # as above


def programs_without_form(steps: Sequence[tuple[str, Step]]) -> list[str]:
    """Return a note for each program whose fields are checked only when it has run."""
    return [
        f"{path}: no answer: is written, so that its fields are checked only when it has run"
        for path, step in steps
        if (step.form is None and isinstance(step.body, (CommandBody,)))
        or (type(step.body).__name__ == "PythonBody" and step.form is None)
    ]
