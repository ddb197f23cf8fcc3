"""Reads the file of a workflow: `load_workflow`. Nothing is called, and every fault is reported at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_composer.config.yaml_source import KeyPath
from workflow_composer.errors import MarkerError, ProfileError, ProfileNotFound, RoutingError, WorkflowFileError, nearest
from workflow_composer.types import EMPTY
from workflow_composer.workflows.definition.checking import NameChecks, programs_without_form
from workflow_composer.workflows.definition.labels import labelled
from workflow_composer.workflows.definition.model import NestedBody, PromptBody, Step, Workflow
from workflow_composer.workflows.definition.ordering import StepCycle, levels_and_rows, with_names
from workflow_composer.workflows.definition.privacy import PrivacyChecks, privacy_notes
from workflow_composer.workflows.definition.routes import targets_of
from workflow_composer.workflows.definition.source import FileFaults, Word, as_plain, read_source, with_remedies
from workflow_composer.workflows.definition.steps import StepReader

if TYPE_CHECKING:
    from workflow_composer.config.strategy import StrategyConfig
    from workflow_composer.workflows.step_kinds import StepKind

KEYS = ("workflow", "inputs", "budget", "deadline", "when_low", "key", "steps", "output", "tables", "stream")
INPUT_TYPES = ("text", "number", "json", "private")
DEEPEST = 8
"""Most workflows within each other."""


def load_workflow(
    path: str | Path,
    *,
    config: StrategyConfig,
    columns: Sequence[str] | None = None,
    kinds: Mapping[str, StepKind] = EMPTY,
) -> Workflow:
    """Read a workflow, and check it against a profile and the columns of a table (None: no table is known yet).

    ``kinds`` are the kinds of steps that plugins offer, such as ``ModelOrchestrator.step_kinds``. Raises
    `WorkflowFileError` with all faults, and `ProfileNotFound` if there is no such file.
    """
    loader = _FileLoader(config, (), kinds)
    return _finished(loader, loader.load(Path(path), columns), config)


def made_workflow(
    tree: Mapping[str, Any],
    faults: FileFaults,
    path: Path,
    *,
    config: StrategyConfig,
    columns: Sequence[str] | None = None,
    kinds: Mapping[str, StepKind] = EMPTY,
) -> Workflow:
    """Return the workflow of a tree as `read_source` returns it; ``path`` is where its files are relative to.

    Raises `WorkflowFileError`.
    """
    loader = _FileLoader(config, (), kinds)
    return _finished(loader, loader.made(tree, faults, path, columns), config)


def _finished(loader: _FileLoader, made: Workflow, config: StrategyConfig) -> Workflow:
    made = labelled(made)
    PrivacyChecks(config, loader.faults).run(made)
    if problems := loader.faults.lines():
        raise WorkflowFileError(problems)
    return replace(made, notes=(*made.notes, *privacy_notes(made)))


class _FileLoader:
    """Loads one file; ``outer`` are the files that led to it, ``kinds`` those of plugins."""

    def __init__(self, config: StrategyConfig, outer: tuple[Path, ...], kinds: Mapping[str, StepKind]) -> None:
        self.config, self.outer, self.kinds = config, outer, kinds

    def load(self, path: Path, columns: Sequence[str] | None) -> Workflow:
        """Read a file. Raises `WorkflowFileError`."""
        try:
            tree, _, faults = read_source(path)
        except ProfileError as error:
            raise WorkflowFileError(with_remedies(error.problems)) from None
        return self.made(tree, faults, path, columns)

    def made(self, tree: Mapping[str, Any], faults: FileFaults, path: Path, columns: Sequence[str] | None) -> Workflow:
        """Return the workflow of a tree. Raises `WorkflowFileError`."""
        self.faults, self.path = faults, path
        made = self._workflow(tree, columns)
        if problems := self.faults.lines():
            raise WorkflowFileError(problems)
        return made

    def _workflow(self, tree: Mapping[str, Any], columns: Sequence[str] | None) -> Workflow:
        faults = self.faults
        faults.only(tree, (), KEYS)
        for key in ("workflow", "steps", "output"):
            if key not in tree and (key,) not in faults.source.faulty:
                faults.of_file(f"has no {key!r}; a workflow has a name, steps, and an output")
        name = faults.text(tree["workflow"], ("workflow",), "the workflow's name") if "workflow" in tree else None
        inputs = self._inputs(tree, columns)
        reader = StepReader(faults, self.path.parent, self._nested, columns_of_row="row" not in inputs, kinds=self.kinds)
        steps = reader.steps(tree["steps"], ("steps",)) if "steps" in tree else {}
        output = (
            reader.values(tree["output"], ("output",), 'columns by name, such as kind: "{{ kind }}"')
            if "output" in tree
            else {}
        )
        tables = (
            reader.values(tree["tables"], ("tables",), "tables by name, such as groups: by_company")
            if "tables" in tree
            else {}
        )
        self._clashes(inputs, steps)
        steps, order = self._ordered(steps, tuple(inputs))
        checks = NameChecks(inputs, steps, self._hidden(inputs, columns), faults)
        checks.run()
        checks.columns(output, ("output",))
        checks.tables(tables, ("tables",))
        made = Workflow(
            name=str(name or ""),
            path=self.path,
            inputs=inputs,  # type: ignore[arg-type]  # checked
            steps=steps,
            order=order,
            output=output,
            tables=tables,
            **self._settings(tree, inputs, steps, columns),
            digest=_digest(tree, steps),
        )
        for where, step in made.every_step():
            self._routes(step, ("steps", *where.replace(".", ".steps.").split(".")))
        notes = [*programs_without_form(list(made.every_step())), *checks.notes]
        return replace(made, notes=tuple(notes))

    # ---------------------------------------------------------------------------------------------------------- inputs

    def _inputs(self, tree: Mapping[str, Any], columns: Sequence[str] | None) -> dict[str, str]:
        found = self.faults.mapping(tree.get("inputs", {}), ("inputs",), "columns with their types, such as note: text")
        made: dict[str, str] = {}
        for name, kind in found.items():
            path = ("inputs", name)
            if name in ("rows", "parts"):
                self.faults.add(path, f"the name {name!r} means something else in expressions", "rename the column")
            made[name] = self.faults.one_of(kind, path, INPUT_TYPES) or "json"
            if columns is not None and name not in columns:
                listed = f"the table has: {', '.join(map(repr, columns[:12])) or 'no columns'}"
                self.faults.add(path, f"the table has no column {name!r}", listed, hint=nearest(name, columns))
        return made

    def _hidden(self, inputs: Mapping[str, str], columns: Sequence[str] | None) -> dict[str, str]:
        return {
            name: f"the table has this column, but inputs do not name it; add {name}: text to inputs"
            for name in columns or ()
            if name not in inputs
        }

    def _clashes(self, inputs: Mapping[str, str], steps: Mapping[str, Step]) -> None:
        for name in steps:
            if name in inputs:
                line = self.faults.source.line(("inputs", name))
                self.faults.add(("steps", name), f"the input in line {line} has the same name", "rename one of them")

    # ----------------------------------------------------------------------------------------------------------- steps

    def _ordered(self, steps: dict[str, Step], inputs: Sequence[str]) -> tuple[dict[str, Step], tuple[str, ...]]:
        named: dict[str, Step] = {}
        for name, step in steps.items():
            try:
                named[name] = with_names(step)
            except StepCycle as error:
                self.faults.add(("steps", name), f"steps read each other in a circle: {error}", "break the circle")
                return steps, tuple(steps)
        try:
            return levels_and_rows(named, inputs)
        except StepCycle as error:
            where = ("steps", error.names[0])
            self.faults.add(where, f"steps read each other in a circle: {error}", "break the circle, or use until")
            return named, tuple(named)

    def _nested(self, named: Word, path: KeyPath) -> Workflow | None:
        """Load the workflow that a step names."""
        file = self.path.parent / named
        stack = (*self.outer, self.path.resolve())
        if file.resolve() in stack:
            way = " -> ".join(one.name for one in (*stack[stack.index(file.resolve()) :], file))
            self.faults.add(path, f"the workflow contains itself: {way}", "use until for what is repeated")
            return None
        if len(stack) >= DEEPEST:
            self.faults.add(path, f"workflows are nested more than {DEEPEST} times", "join some of them")
            return None
        try:
            return _FileLoader(self.config, stack, self.kinds).load(file, None)
        except ProfileNotFound:
            self.faults.add(path, f"there is no file {file}", "give its path relative to this file")
        except WorkflowFileError as error:
            for problem in error.problems:
                self.faults.add(path, problem)
        return None

    def _routes(self, step: Step, path: KeyPath) -> None:
        """Check that the models and the task of a step exist, and the arguments of a nested workflow."""
        if step.model is not None:
            self._model(step.model, (*path, "model"))
        if step.accept is not None and step.accept.model is not None:
            self._model(step.accept.model, (*path, "accept", "judge"))
        if isinstance(step.body, PromptBody) and step.model is None and self.config.route_of(step.task or "*") is None:
            self._task(step, path)
        if isinstance(step.body, NestedBody):
            self._arguments(step, step.body.workflow, path)

    def _model(self, target: str, path: KeyPath) -> None:
        try:
            names = targets_of(self.config, target)
            if not names:
                self.faults.add(path, "the profile has no tiers for a cascade", "add tiers to it, or write a routing string")
        except MarkerError as error:
            self.faults.add(path, str(error), "example: mv_cascade_small_k4_t0.7_large_k1_t0.0")
            return
        for name in names:
            try:
                self.config.resolve(name)
            except RoutingError as error:
                self.faults.add(path, error.message, error.hint)

    def _task(self, step: Step, path: KeyPath) -> None:
        routed = self.config.task_routing
        if step.task is not None and routed:
            hint = nearest(step.task, routed)
            self.faults.add(
                (*path, "task"), f"the profile routes no task {step.task!r}", f"allowed: {', '.join(routed)}", hint=hint
            )

    def _arguments(self, step: Step, inner: Workflow, path: KeyPath) -> None:
        over = next((one.name for one in inner.steps.values() if one.reduce is not None), None)
        if over is not None:
            found = (
                f"the step {over!r} of the workflow {inner.name!r} is over all rows, which only the outermost workflow has"
            )
            self.faults.add((*path, "workflow"), found, "make it a step of this file, or reduce a list in a python step")
        for name in step.given:
            if name not in inner.inputs:
                hint = nearest(name, inner.inputs)
                found = f"the workflow {inner.name!r} has no input {name!r}"
                self.faults.add((*path, "with", name), found, f"allowed: {', '.join(inner.inputs)}", hint=hint)
        for name in inner.inputs:
            if name not in step.given:
                self.faults.add(
                    (*path, "workflow"),
                    f"the workflow {inner.name!r} needs the input {name!r}",
                    f"add it to with: {{{name}: …}}",
                )

    # -------------------------------------------------------------------------------------------------------- settings

    def _settings(
        self, tree: Mapping[str, Any], inputs: Mapping[str, str], steps: Mapping[str, Step], columns: Sequence[str] | None
    ) -> dict[str, Any]:
        faults = self.faults
        made: dict[str, Any] = {}
        for key, read, example in (
            ("budget", faults.dollars, "{run: $20, row: $0.05}"),
            ("deadline", faults.seconds, "{run: 6h, row: 2m}"),
        ):
            if key in tree:
                found = faults.mapping(tree[key], (key,), example)
                faults.only(found, (key,), ("run", "row"))
                for of in ("run", "row"):
                    if of in found:
                        made[f"{of}_{key}"] = read(found[of], (key, of))
        if "when_low" in tree:
            faults.one_of(tree["when_low"], ("when_low",), ("stop", "cheaper"))
            made["when_low"] = str(tree["when_low"])
        if "key" in tree:
            known = list(inputs if columns is None else columns)
            made["key"] = str(tree["key"])
            if made["key"] not in known:
                faults.add(
                    ("key",),
                    f"there is no column {made['key']!r}",
                    f"allowed: {', '.join(known)}",
                    hint=nearest(made["key"], known),
                )
        if "stream" in tree:
            made["stream"] = str(tree["stream"])
            shown = [name for name, step in steps.items() if isinstance(step.body, PromptBody) and step.level == "row"]
            faults.one_of(tree["stream"], ("stream",), shown)
        return made


def _digest(tree: Mapping[str, Any], steps: Mapping[str, Step]) -> str:
    """Return the digest of what the file says, without its comments and its layout, and of the workflows that it names."""
    inner = sorted(step.body.workflow.digest for step in _all(steps) if isinstance(step.body, NestedBody))
    said = json.dumps([as_plain(tree), inner], sort_keys=True, ensure_ascii=False, default=repr)
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()


def _all(steps: Mapping[str, Step]) -> Iterator[Step]:
    for step in steps.values():
        yield step
        yield from _all(step.for_each.steps if step.for_each is not None else {})
