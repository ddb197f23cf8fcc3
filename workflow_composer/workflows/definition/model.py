"""A workflow as data: what its file says, with names resolved and everything checked.

A step of a row is answered once per row, or once per item of a list (`ForEach`); a step of the run once for all rows
(`Reduce`, or whatever reads only steps of the run). Values flow by name; `running/results.py` says what a name stands for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from workflow_composer.answers.form import OutputForm
from workflow_composer.types import EMPTY
from workflow_composer.workflows.step_kinds import StepKind

InputType = Literal["text", "number", "json", "private"]
"""What an input's column holds; ``private`` is text that must not leave the person's own machines."""
Level = Literal["row", "run"]


class Names(Protocol):
    """What the names in an expression stand for: see `workflow_composer.workflows.running.results.Scope`."""

    def value(self, name: str) -> Any:
        """Return the value of a name; None for a step that has none."""
        ...

    def fact(self, name: str, fact: str) -> Any:
        """Return a fact of a step: ``_state``, ``_attempts``, ``_error``, ``_model`` or ``_cost``."""
        ...


class Reading(Protocol):
    """An expression or a template, checked when it was read.

    ``text`` is what was written, ``line`` where. ``needs`` are the names without which it has no value (those for which no
    default is written and that are not only asked for their state), ``reads`` all names in it.
    """

    text: str
    line: int
    needs: frozenset[str]
    reads: frozenset[str]

    def evaluate(self, names: Names) -> Any:
        """Return the value; a template's is text. Raises `ValueFault`."""
        ...

    def holds(self, names: Names) -> bool:
        """Return whether a condition holds. Raises `ValueFault` if it is not true or false."""
        ...


@dataclass(frozen=True, slots=True)
class ProgramLimits:
    """Bounds of a program: seconds of wall time, bytes of memory; ``network``: whether it may use one."""

    seconds: float = 60.0
    memory: int = 1 << 30
    network: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptBody:
    """A question to a model. ``system`` and ``context`` as in a request."""

    prompt: Reading
    system: Reading | None = None
    context: tuple[str, ...] | None = None
    tools: tuple[Mapping[str, Any], ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandBody:
    """A program: ``argv`` as written, never filled in; it gets the step's ``given`` as one JSON object on standard input."""

    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonBody:
    """A function ``module:name``, looked for beside the workflow's file first; it gets the step's ``given`` by keyword.

    That of a plugin's kind of step (``plugin``) comes from the plugin's code, and gets ``settings`` (JSON data) before them.
    """

    target: str
    plugin: StepKind | None = None
    settings: Any = None

    @property
    def title(self) -> str:
        """What to call it in messages."""
        return self.target if self.plugin is None else self.plugin.name


@dataclass(frozen=True, slots=True, kw_only=True)
class NestedBody:
    """Another workflow, whose inputs are the step's ``given`` and whose ``output`` is the value."""

    workflow: Workflow


@dataclass(frozen=True, slots=True, kw_only=True)
class HumanBody:
    """A question to a person."""

    prompt: Reading


Body = PromptBody | CommandBody | PythonBody | NestedBody | HumanBody


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerCheck:
    """Decides whether an answer is good: a program, a function, or a judge (one metered yes-or-no question to a model).

    A program passes with exit code 0; a function by returning True or None, and fails by False, a text that says why, or an
    exception.
    """

    body: CommandBody | PythonBody | PromptBody
    model: str | None = None
    files: Mapping[str, Reading] = field(default_factory=lambda: EMPTY)
    given: Mapping[str, Reading] = field(default_factory=lambda: EMPTY)
    limits: ProgramLimits = ProgramLimits()


@dataclass(frozen=True, slots=True)
class ForEach:
    """A step that is done for each item of a list."""

    item: str
    items: Reading
    at_most: int = 10_000
    steps: Mapping[str, Step] = field(default_factory=lambda: EMPTY)
    order: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reduce:
    """A step over all rows, or over each group of them. ``fold`` joins partial results (``parts``).

    ``rows`` are the inputs and steps that an element of the name ``rows`` has, an object of their values; ``group`` is the
    group's key.
    """

    group_by: Reading | None = None
    keep: Reading | None = None
    fold: Reading | None = None
    rows: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Until:
    """A step that is repeated until a condition holds, at most so many times; its name means its last value."""

    condition: Reading
    at_most: int


@dataclass(frozen=True, slots=True)
class OnError:
    """What the failure of a step means: the row ends, the step is skipped, the run stops, or a default value is taken."""

    action: Literal["row", "skip", "stop", "default"] = "row"
    default: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Why a private step's answer may leave: a closed list of choices, a check per row, a person, or a declared reason."""

    how: Literal["choices", "check", "human", "declared"]
    check: AnswerCheck | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Waits:
    """How long (seconds) a question waits for a person, and what happens then: a value, or failure."""

    at_most: float
    then: Any = None
    fails: bool = False


@dataclass(frozen=True, slots=True)
class Labels:
    """What a step reads of private inputs, as data and as control, and what its own value still carries after a release.

    Each is the set of private inputs; empty: public. ``path`` names the way of the first one, for messages; ``bits`` is how
    much of them one answer of a released step tells at most, None where that is not known.
    """

    data: frozenset[str] = frozenset()
    control: frozenset[str] = frozenset()
    out: frozenset[str] = frozenset()
    path: tuple[str, ...] = ()
    bits: float | None = None

    @property
    def private(self) -> bool:
        """Whether the step must stay on the person's own machines."""
        return bool(self.data or self.control)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step. ``given`` is what a program, a function or a nested workflow receives; ``files`` are written for a program.

    ``body`` is None only for a `ForEach` with steps of its own, whose items' values are objects {inner step: value}.
    ``form`` is None where any value is accepted. ``needs``, ``reads`` are the names of inputs, steps and items, over all
    expressions of the step. ``per_item``: ``when`` names the item and is asked for each. ``timeout`` in seconds, ``tokens``
    the limit of an answer.
    """

    name: str
    line: int
    body: Body | None
    task: str | None = None
    model: str | None = None
    temperature: float | None = None
    tokens: int | None = None
    given: Mapping[str, Reading] = field(default_factory=lambda: EMPTY)
    files: Mapping[str, Reading] = field(default_factory=lambda: EMPTY)
    limits: ProgramLimits = ProgramLimits()
    form: OutputForm | None = None
    retries: int = 2
    accept: AnswerCheck | None = None
    when: Reading | None = None
    per_item: bool = False
    for_each: ForEach | None = None
    reduce: Reduce | None = None
    until: Until | None = None
    on_error: OnError = OnError()
    timeout: float | None = None
    waits: Waits | None = None
    release: Release | None = None
    trusted: bool = False
    share: bool = False
    level: Level = "row"
    needs: frozenset[str] = frozenset()
    reads: frozenset[str] = frozenset()
    labels: Labels = Labels()


@dataclass(frozen=True, slots=True, kw_only=True)
class Workflow:
    """A workflow that may run: nothing in it is left to be found wrong but what depends on answers.

    ``order`` has every top-level step after those that it reads. ``output`` maps columns to readings in the file's order;
    ``tables`` names of further tables to readings of steps of the run. Budgets are in dollars, deadlines in seconds, of the
    run and of a row; None: no limit. ``when_low`` is what
    becomes of rows for which the run's budget gets low. ``digest`` (hex) is that of the file's meaning. ``notes``
    are what `check` adds.
    """

    name: str
    path: Path | None
    inputs: Mapping[str, InputType]
    steps: Mapping[str, Step]
    order: tuple[str, ...]
    output: Mapping[str, Reading]
    tables: Mapping[str, Reading] = field(default_factory=lambda: EMPTY)
    key: str | None = None
    stream: str | None = None
    run_budget: float | None = None
    row_budget: float | None = None
    run_deadline: float | None = None
    row_deadline: float | None = None
    when_low: Literal["stop", "cheaper"] = "stop"
    digest: str = ""
    notes: Sequence[str] = ()

    @property
    def folder(self) -> Path:
        """Where its programs, functions and schemas are looked for."""
        return Path() if self.path is None else self.path.parent

    def every_step(self) -> Iterator[tuple[str, Step]]:
        """Yield all steps with their paths, such as ``verdict`` or ``teams.member``; inner ones after their outer one."""
        yield from _every(self.steps, "")


def _every(steps: Mapping[str, Step], prefix: str) -> Iterator[tuple[str, Step]]:
    for name, step in steps.items():
        yield prefix + name, step
        if step.for_each is not None:
            yield from _every(step.for_each.steps, f"{prefix}{name}.")
