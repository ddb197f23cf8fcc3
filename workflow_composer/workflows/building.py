r"""A workflow written in Python: the same steps as in a file, checked in the same way.

::

    flow = WorkflowBuilder("triage", inputs={"note": "private", "pmid": "text"})
    flow.prompt("kind", "A case or a trial?\n\n{{ note }}", answer=["case", "trial"], release="choices")
    flow.prompt("summary", "Summarise:\n\n{{ note }}", when='kind == "case"', answer=Summary)  # a pydantic class
    flow.output(pmid="pmid", kind="kind", summary="{{ summary | default(null) }}")
    workflow = flow.build(config)

Names and fields stay texts, as in a file: they are checked against the forms of answers when the workflow is built, and a
fault names the line of the Python file in which the step is.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from workflow_composer.config.yaml_source import KeyPath, SourceText
from workflow_composer.types import EMPTY
from workflow_composer.workflows.definition.loading import made_workflow
from workflow_composer.workflows.definition.source import FileFaults, Word

if TYPE_CHECKING:
    from workflow_composer.config.strategy import StrategyConfig
    from workflow_composer.workflows.definition.model import InputType, Workflow
    from workflow_composer.workflows.step_kinds import StepKind


class StepFields(TypedDict, total=False):
    """What every step may have; each as the key of the same name in a file."""

    when: str
    for_each: str
    at_most: int
    answer: Any
    on_error: Literal["row", "skip", "stop"] | Mapping[str, Any]
    timeout: str
    share: bool


class AnsweredFields(StepFields, total=False):
    """What a step that makes a value by itself may have."""

    until: str
    reduce: Literal["rows"]
    group_by: str
    keep: str
    release: str | Mapping[str, Any]


class PromptFields(AnsweredFields, total=False):
    """What a question to a model may have."""

    task: str
    model: str
    context: str | Sequence[str]
    system: str
    tools: Sequence[Mapping[str, Any]]
    temperature: float
    tokens: int
    retries: int
    accept: Mapping[str, Any]
    fold: str


class ProgramFields(AnsweredFields, total=False):
    """What a program or a function may have. ``given`` is the key ``with`` of a file."""

    given: Mapping[str, str]
    files: Mapping[str, str]
    limits: Mapping[str, str]
    trusted: bool


class NestedFields(StepFields, total=False):
    """What a nested workflow may have; ``given`` as for a program."""

    given: Mapping[str, str]
    release: str | Mapping[str, Any]


class PersonFields(StepFields, total=False):
    """What a question to a person may have."""

    waits: Mapping[str, Any]
    release: str | Mapping[str, Any]


class RunSettings(TypedDict, total=False):
    """What a workflow as a whole may have."""

    budget: Mapping[str, float | str]
    deadline: Mapping[str, str]
    key: str
    stream: str


class WorkflowBuilder:
    """Collects the steps of a workflow. ``folder`` is where programs, schemas and nested files are (default: here)."""

    def __init__(
        self,
        name: str,
        *,
        inputs: Mapping[str, InputType],
        folder: str | Path = ".",
        **settings: Unpack[RunSettings],
    ) -> None:
        self._folder = Path(folder)
        caller = sys._getframe(1)
        self._source = SourceText(caller.f_code.co_filename, self._folder, {(): caller.f_lineno}, kind="workflow")
        self._tree: dict[str, Any] = {"workflow": name, "inputs": dict(inputs), **settings, "steps": {}}
        self._faults = FileFaults(self._source)

    def prompt(self, name: str, prompt: str, **fields: Unpack[PromptFields]) -> None:
        """Add a question to a model."""
        self._add(name, {"prompt": prompt, **fields})

    def command(self, name: str, *argv: str, **fields: Unpack[ProgramFields]) -> None:
        """Add a program."""
        self._add(name, {"command": argv, **fields})

    def python(self, name: str, target: str, **fields: Unpack[ProgramFields]) -> None:
        """Add a function, as ``module:function``."""
        self._add(name, {"python": target, **fields})

    def step(
        self, name: str, kind: str, settings: Mapping[str, Any] | str | None = None, **fields: Unpack[ProgramFields]
    ) -> None:
        """Add a step of a plugin's kind, with its settings."""
        self._add(name, {kind: {} if settings is None else settings, **fields})

    def workflow(self, name: str, path: str, **fields: Unpack[NestedFields]) -> None:
        """Add another workflow, by its file's path."""
        self._add(name, {"workflow": path, **fields})

    def person(self, name: str, question: str, **fields: Unpack[PersonFields]) -> None:
        """Add a question to a person."""
        self._add(name, {"human": question, **fields})

    def output(self, **columns: str) -> None:
        """Set the columns of the output: expressions, or texts with ``{{ … }}``."""
        self._tree["output"] = columns
        self._told(("output",), 2)

    def tables(self, **tables: str) -> None:
        """Set further tables: names of steps of the run."""
        self._tree["tables"] = tables
        self._told(("tables",), 2)

    def build(
        self,
        config: StrategyConfig,
        *,
        columns: Sequence[str] | None = None,
        kinds: Mapping[str, StepKind] = EMPTY,
    ) -> Workflow:
        """Check everything and return the workflow. Raises `WorkflowFileError`, with all faults.

        ``kinds`` are those that plugins offer, such as ``ModelOrchestrator.step_kinds``.
        """
        faults = FileFaults(self._source)
        faults.take(self._faults)
        tree = {key: self._written(value, (key,)) for key, value in self._tree.items()}
        return made_workflow(tree, faults, self._folder / "workflow.py", config=config, columns=columns, kinds=kinds)

    def _add(self, name: str, step: Mapping[str, Any]) -> None:
        path = ("steps", name)
        if name in self._tree["steps"]:
            self._faults.add(path, "there is already a step of this name", "choose another name")
            return
        self._tree["steps"][name] = {"with" if key == "given" else key: value for key, value in step.items()}
        self._told(path, 3)

    def _told(self, path: KeyPath, frames: int) -> None:
        """Remember the caller's line; ``frames`` is how far up it is."""
        self._source.lines[path] = sys._getframe(frames).f_lineno

    def _written(self, value: Any, path: KeyPath) -> Any:
        """Return data as a file's reader would: texts as written, with their line; types and forms as they are."""
        if isinstance(value, Mapping):
            return {str(key): self._written(part, (*path, str(key))) for key, part in value.items()}
        if isinstance(value, (list, tuple)):
            return tuple(self._written(part, path) for part in value)
        line = self._source.line(path) or 1
        if isinstance(value, str):
            return Word.at(value, line)
        if value is None or isinstance(value, (bool, int, float)):
            return Word.at("" if value is None else str(value).lower(), line, quoted=False)
        return value
