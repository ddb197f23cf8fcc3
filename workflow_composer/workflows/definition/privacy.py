"""Which steps may read private inputs, and which notes a person should read: faults and notes from the labels of steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from workflow_composer.config.yaml_source import KeyPath
from workflow_composer.execution.readers import OFFLINE, DataReader
from workflow_composer.workflows.definition.model import (
    AnswerCheck,
    CommandBody,
    HumanBody,
    NestedBody,
    PromptBody,
    PythonBody,
    Step,
    Workflow,
)
from workflow_composer.workflows.definition.ordering import about_rows, readings_of
from workflow_composer.workflows.definition.routes import models_for
from workflow_composer.workflows.definition.source import FileFaults

if TYPE_CHECKING:
    from workflow_composer.config.strategy import StrategyConfig

NOT_PROMISED = (
    "not promised: that a row failed, was withheld, waited for a person or met a limit of its budget can be seen from calls "
    "that are missing or go to another model, as can times and the lengths of released texts"
)


class PrivacyChecks:
    """Checks a labelled workflow against a profile. ``prefix`` is the key path of the step that calls it."""

    def __init__(self, config: StrategyConfig, faults: FileFaults) -> None:
        self.config, self.faults = config, faults
        self.workflow = ""
        self.own = [name for name, spec in config.backend_specs().items() if spec.local]

    def run(self, workflow: Workflow, prefix: KeyPath = (), inside: str = "") -> None:
        """Report every step that private inputs could leave by."""
        if not inside:
            self.workflow = workflow.name
        for name, step in workflow.steps.items():
            self._step(step, prefix or ("steps", name), inside + name)

    def _step(self, step: Step, path: KeyPath, told: str) -> None:
        if step.release is not None:
            self._release(step, path)
        if step.labels.private:
            self._private(step, path, told)
        if isinstance(step.body, NestedBody):
            self.run(step.body.workflow, path, f"{told}.")
        for name, inner in (step.for_each.steps if step.for_each is not None else {}).items():
            self._step(inner, path if path[:2] != ("steps", step.name) else (*path, "steps", name), f"{told}.{name}")

    def _private(self, step: Step, path: KeyPath, told: str) -> None:
        for reader, check in readers_of(step):
            if reader is DataReader.MODEL:
                self._question(step, step.model, path, told)
            elif reader is DataReader.JUDGE and check is not None:
                self._question(step, check.model, path, f"the judge of {told}")
            elif reader.rule is OFFLINE and not step.trusted and (step.limits if check is None else check.limits).network:
                what = "program" if check is None else "check"
                self._refuse(step, path, f"the {what} of {told} may use the network", "write network: none")
        if step.trusted:
            self._trusted(step, (*path, "trusted"), told)

    def _trusted(self, step: Step, path: KeyPath, told: str) -> None:
        """A program is trusted with private data by whoever answers for the profile."""
        named = f"{self.workflow}.{told}"
        if named not in self.config.trusted_programs:
            hint = f"add trusted_programs: [{named}] to it, or remove trusted"
            self.faults.add(path, f"the profile does not trust the programs of {told} with private inputs", hint)

    def _question(self, step: Step, model: str | None, path: KeyPath, told: str) -> None:
        models = models_for(self.config, model, step.task)
        far = [spec.name for spec in models if not spec.local and self.config.allow_cloud]
        if not far or (model is None and len(far) < len(models)):
            return  # a routed task goes to the models of one's own only
        what = f"{told} may use {', '.join(far)}, which {'is' if len(far) == 1 else 'are'} not on your own machines"
        self._refuse(step, path, what, "")

    def _refuse(self, step: Step, path: KeyPath, what: str, remedy: str) -> None:
        labels = step.labels
        way = " -> ".join(labels.path)
        kind = "reads" if labels.data else "depends, by whether or how often it runs, on"
        own = f"use a model of your own ({', '.join(self.own[:6])})" if self.own else "add a model of your own"
        hint = remedy or f"{own}, or release an earlier step with a reason (release: choices, {{check: …}}, human)"
        private = ", ".join(sorted(labels.data or labels.control))
        self.faults.add(path, f"{what}, but it {kind} the private input {private}: {way}", hint)

    def _release(self, step: Step, path: KeyPath) -> None:
        if step.release is not None and step.release.how == "choices" and step.labels.bits is None:
            hint = "give answer: a list of choices, or release by {check: …}"
            self.faults.add((*path, "release"), "choices releases only answers from a closed list", hint)


def readers_of(step: Step) -> Iterator[tuple[DataReader, AnswerCheck | None]]:
    """Yield who reads what a step says or answers, each with the check that it belongs to (None: the step itself)."""
    own: Mapping[type, DataReader] = {
        PromptBody: DataReader.MODEL,
        CommandBody: DataReader.PROGRAM,
        PythonBody: DataReader.PROGRAM,
        HumanBody: DataReader.PERSON,
    }
    if type(step.body) in own:
        yield own[type(step.body)], None
    for check in (step.accept, None if step.release is None else step.release.check):
        if check is not None:
            yield DataReader.JUDGE if isinstance(check.body, PromptBody) else DataReader.PROGRAM, check
    if step.release is not None and step.release.how == "human":
        yield DataReader.PERSON, None


def privacy_notes(workflow: Workflow) -> Iterator[str]:
    """Yield what a person should know: what leaves, by what reason, and what is not promised."""
    released = [(name, step) for name, step in every_released(workflow) if step.labels.data]
    for name, step in released:
        yield _left(name, step)
    total = [step.labels.bits for _, step in released if step.labels.bits is not None and step.for_each is None]
    if len(total) > 1:
        yield f"together at most {_number(sum(total))} bits a row leave by choices"
    if any(kind == "private" for kind in workflow.inputs.values()):
        yield from _states_told(workflow)
        yield NOT_PROMISED


def _states_told(workflow: Workflow, prefix: str = "") -> Iterator[str]:
    """Yield where a step that may use the cloud asks for the state of one that reads something private."""
    steps = dict(workflow.every_step())
    private = {step.name: step for step in steps.values() if step.labels.data}
    for path, step in steps.items():
        if step.labels.private:
            continue
        for name in sorted(read_by_state(step) & private.keys()):
            inputs = ", ".join(sorted(private[name].labels.data))
            yield f"{prefix}{path} tells whether {name}, which reads {inputs}, was done, failed or was withheld"
        if isinstance(step.body, NestedBody):
            yield from _states_told(step.body.workflow, f"{prefix}{path}.")


def read_by_state(step: Step) -> frozenset[str]:
    """Return the names of which a step, its list or its choice of rows asks only for the state."""
    readings = [reading for _, reading in (*readings_of(step), *about_rows(step))]
    return frozenset().union(*(one.reads - getattr(one, "values", one.reads) for one in readings)) - {step.name}


def every_released(workflow: Workflow, prefix: str = "") -> Iterator[tuple[str, Step]]:
    """Yield the steps that release something, those of nested workflows included."""
    for name, step in workflow.every_step():
        if step.release is not None:
            yield prefix + name, step
        if isinstance(step.body, NestedBody):
            yield from every_released(step.body.workflow, f"{prefix}{name}.")


def _left(name: str, step: Step) -> str:
    inputs = ", ".join(sorted(step.labels.data))
    release = step.release
    assert release is not None
    if release.how == "choices" and step.labels.bits is not None:
        bits = step.labels.bits
        one = math.isclose(bits, 1)
        per = "a row" if step.for_each is None else "for each item of a row"
        what = "bit" if one else "bits"
        return f"at most {_number(bits)} {what} of {inputs} {per} {'leaves' if one else 'leave'} through {name}"
    why = {"check": "where its check passes", "human": "where a person agrees", "declared": f"by declaration: {release.why}"}
    return f"what {name} makes of {inputs} leaves {why.get(release.how, '')}"


def _number(bits: float) -> str:
    return f"{bits:.1f}".removesuffix(".0")
