"""What makes a question the same: digests of everything on which its answer depends, and of nothing else.

Names of steps, concurrency, budgets and time limits are no part of it; the messages as they are sent are, and with them
everything that a prompt reads.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from workflow_composer.answers.form import as_data
from workflow_composer.batch.keeping.identity import meaning_of, voting_of
from workflow_composer.types import ANY_TASK, EMPTY
from workflow_composer.workflows.definition.model import (
    AnswerCheck,
    CommandBody,
    HumanBody,
    NestedBody,
    PromptBody,
    PythonBody,
    Reading,
    Step,
)
from workflow_composer.workflows.definition.routes import models_for
from workflow_composer.workflows.keeping.answers import StepQuestion

if TYPE_CHECKING:
    from workflow_composer.answers.form import OutputForm
    from workflow_composer.config.strategy import StrategyConfig

FORMAT = 1
"""Version of the digests: answers that another version keeps are asked again."""

READER = 1
"""Version of the reading of answers by their forms: raised when a form reads the same reply differently."""

WRITTEN = "written"
"""The part of a question that is no part of its digest: the prompt as the file has it. It tells why a question changed."""

_DIGITS, _PART_DIGITS = 32, 8

ProgramDigests = Callable[[CommandBody | PythonBody], Mapping[str, str]]
"""Returns names and digests (hex) of what a program or function consists of: files of its argv, sources of its module."""


def digest_of_data(value: Any, digits: int = _DIGITS) -> str:
    """Return a digest (hex) of JSON data, in which mappings have no order and numbers are not texts.

    >>> digest_of_data({"a": 1, "b": "x"}) == digest_of_data({"b": "x", "a": 1}), digest_of_data(1) == digest_of_data("1")
    (True, False)
    """
    return hashlib.blake2b(_encode(value).encode(), digest_size=digits // 2).hexdigest()


def _as_data(value: Any) -> Any:
    try:
        return as_data(value)
    except TypeError:
        return str(value)  # dates and decimals of a Parquet table


_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=_as_data).encode


def question_of(
    step: Step,
    *,
    row: str,
    place: str,
    asked: Mapping[str, Any],
    meaning: Mapping[str, str] = EMPTY,
) -> StepQuestion:
    """Return the question that a step really asks, once.

    ``row`` is the row's id ("" for a step of the run). ``place`` is the step's path with its items, such as
    ``teams[0].m[1]``, behind ``OUTER/`` for a step of a nested workflow, before ``#2`` for a second try of `until`,
    ``!release`` for its release, and ``~3`` for the third reply to a question.
    ``asked`` is what the names in the step have become, as JSON data, without a default for anything: ``messages`` of a
    prompt; ``given`` and ``files`` (name: text) of a command; ``given`` of a function; ``prompt`` for a person; and, if the
    step has an ``accept``, ``checked``: what its readings read, without the answer itself. ``meaning`` is what
    `StepMeanings.of` returns for the step.
    """
    parts = {**meaning, **{name: digest_of_data(value, _PART_DIGITS * 2) for name, value in asked.items()}}
    # The same text as that of the data [FORMAT, kind, parts]: names and digests need no escapes.
    whole = ",".join([f'"{name}":"{parts[name]}"' for name in sorted(parts) if name != WRITTEN])
    text = f'[{FORMAT},"{kind_of(step)}",{{{whole}}}]'
    digest = hashlib.blake2b(text.encode(), digest_size=_DIGITS // 2).hexdigest()
    return StepQuestion(row=row, place=place, digest=digest, parts=parts, share=step.share)


_ITEMS = re.compile(r"\[\d+\]|[#~]\d+|\.(?:rows|parts)\d+(?=\[)")


@functools.lru_cache(maxsize=4096)
def path_of(place: str) -> str:
    """Return the path of a step from a place.

    >>> path_of("teams[0].m[12]"), path_of("outer[3]/inner#2~1"), path_of("overview[2].parts1[0]")
    ('teams.m', 'outer/inner', 'overview')
    """
    return _ITEMS.sub("", place)


def top_of(path: str) -> str:
    """Return the workflow's own step in which a step is.

    >>> top_of("teams.m"), top_of("outer/inner.x"), top_of("a"), top_of("b!release")
    ('teams', 'outer', 'a', 'b')
    """
    return re.split("[./!]", path, maxsplit=1)[0]


def kind_of(step: Step) -> str:
    """Return what kind of step it is: prompt, command, python, workflow, human, steps (a loop's own), or a plugin's."""
    if isinstance(step.body, PythonBody) and step.body.plugin is not None:
        return step.body.plugin.name
    return "steps" if step.body is None else _KINDS[type(step.body)]


_KINDS = {PromptBody: "prompt", CommandBody: "command", PythonBody: "python", NestedBody: "workflow", HumanBody: "human"}


class StepMeanings:
    """What the answers of a step depend on, beside what is filled in: models, form, limits, programs. Computed once a step.

    ``context_of`` returns the pins of the context templates that a request of the step gets. ``programs`` see
    `ProgramDigests`.
    """

    def __init__(
        self,
        config: StrategyConfig,
        *,
        programs: ProgramDigests = lambda body: {},
        context_of: Callable[[Step], Sequence[str]] = lambda step: (),
    ) -> None:
        self._config, self._programs, self._context_of = config, programs, context_of
        self._known: dict[tuple[int, bool], tuple[Step, Mapping[str, str]]] = {}

    def of(self, step: Step, *, release: bool = False) -> Mapping[str, str]:
        """Return names and digests (hex) of the parts; ``release``: those of the check of its release."""
        known = self._known.get((id(step), release))
        if known is None:
            parts = self._of_release(step) if release else self._parts(step)
            found = {name: digest_of_data(value, _PART_DIGITS * 2) for name, value in parts.items()}
            known = self._known[id(step), release] = (step, found)  # the step is kept, so that no other one gets its id
        return known[1]

    def _of_release(self, step: Step) -> dict[str, Any]:
        check = None if step.release is None else step.release.check
        return {} if check is None else {"release": self._check(check)}

    def _parts(self, step: Step) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if step.form is not None:
            found["form"] = form_meaning(step.form)
        if step.accept is not None:
            found["accept"] = self._check(step.accept)
        body = step.body
        if isinstance(body, PromptBody):
            found |= self._model(step.model, step.task)
            if step.labels.private and self._config.allow_cloud and self._reaches_cloud(step):
                found["models"] = "own"  # other models answer than for the same question of a step that is not private
            found |= {"temperature": step.temperature, "tokens": step.tokens, "tools": [dict(t) for t in body.tools or ()]}
            found["context"] = list(self._context_of(step))
            found[WRITTEN] = [body.prompt.text, None if body.system is None else body.system.text]
        elif isinstance(body, (CommandBody, PythonBody)):
            found |= self._program(body)
        elif isinstance(body, HumanBody):
            found[WRITTEN] = body.prompt.text
        return found

    def _reaches_cloud(self, step: Step) -> bool:
        return any(not spec.local for spec in models_for(self._config, step.model, step.task))

    def _model(self, model: str | None, task: str | None) -> dict[str, Any]:
        """Return the models and votes of a target, or of a task."""
        tasks = [task or ANY_TASK] if model is None else []
        return {
            "model": meaning_of(self._config, [] if model is None else [model], tasks),
            "votes": voting_of(self._config).meaning,
            "target": model,
        }

    def _program(self, body: CommandBody | PythonBody) -> dict[str, Any]:
        named: dict[str, Any] = {"argv": body.argv} if isinstance(body, CommandBody) else {"target": body.target}
        if isinstance(body, PythonBody) and body.plugin is not None:
            named = {"settings": body.settings}  # where the plugin lies, and what its function is called, does not matter
        return {**named, "program": dict(self._programs(body))}

    def _check(self, check: AnswerCheck) -> dict[str, Any]:
        readings = {**_texts(check.files), **_texts(check.given)}
        if isinstance(check.body, PromptBody):
            return {**self._model(check.model, None), "ask": check.body.prompt.text}
        return {**self._program(check.body), "readings": readings}


def form_meaning(form: OutputForm) -> list[Any]:
    """Return what a form is: as it was written, its schema (which a file may hold), and the version of the reading."""
    return [READER, form.spec, form.json_schema()]


def _texts(readings: Mapping[str, Reading]) -> dict[str, str]:
    return {name: reading.text for name, reading in readings.items()}
