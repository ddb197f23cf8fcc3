"""Answers of a run beside the right ones: how often each step and each column is right, and at which step a row went wrong.

The right answers are columns of the table, which no step needs to read.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from workflow_composer.answers.equality import Question
from workflow_composer.answers.form import OutputForm
from workflow_composer.answers.json_text import canonical
from workflow_composer.answers.reading import reader
from workflow_composer.errors import InputError, nearest
from workflow_composer.workflows.keeping.rows import RunTable, input_value

if TYPE_CHECKING:
    from workflow_composer.workflows.definition.model import Workflow
    from workflow_composer.workflows.running.results import RowOutcome

LATER = "after all graded steps"
"""Where a row went wrong in which every graded step is right."""


class RunGrades:
    """Grades of the rows of a run. ``labels`` has the table's column of right answers by step or output column.

    A name of both grades both. Raises `InputError` for a name that is neither, a step over all rows, or a missing column.
    """

    def __init__(self, workflow: Workflow, labels: Mapping[str, str], table: RunTable) -> None:
        known = (*(name for name, step in workflow.steps.items() if step.level == "row"), *workflow.output)
        for name, column in labels.items():
            if name not in known:
                hint = nearest(name, known) or f"steps and columns: {', '.join(dict.fromkeys(known))}"
                raise InputError(f"--label: there is no step or output column {name!r}", hint=hint)
            columns = dict.fromkeys(table.names)
            if column not in columns and not any(column in row.values for row in table.rows()):
                hint = nearest(column, columns) or f"the table has: {', '.join(map(repr, list(columns)[:12]))}"
                raise InputError(f"--label {name}: the table has no column {column!r}", hint=hint)
        self._labels = labels
        self._steps = [name for name in workflow.order if name in labels and workflow.steps[name].level == "row"]
        self._ends = [name for name in workflow.output if name in labels]
        self._forms = {name: workflow.steps[name].form for name in self._steps}
        self.steps = {name: Counter[str]() for name in self._steps}
        self.ends = {name: Counter[str]() for name in self._ends}
        self.lost: Counter[str] = Counter()
        self.wrong = self.rows = 0

    async def add(self, outcome: RowOutcome, values: Mapping[str, Any]) -> dict[str, bool]:
        """Grade a row by its values in the table; return what is right and what is not, by step or column."""
        marks: dict[str, bool] = {}
        for name in self._steps:
            found = outcome.steps.get(name)
            value = None if found is None or found.state != "done" else found.value
            mark = await is_right(value, values.get(self._labels[name]), self._forms[name])
            if mark is not None:
                marks[name] = mark
        right_so_far = True
        for name, mark in marks.items():
            self.steps[name].update(graded=1, right=mark, reached=right_so_far, kept=right_so_far and mark)
            right_so_far &= mark
        ends = {}
        for name in self._ends:
            mark = await is_right(outcome.output.get(name), values.get(self._labels[name]), None)
            if mark is not None:
                ends[name] = mark
                self.ends[name].update(graded=1, right=mark)
        last = list(ends.values()) or list(marks.values())[-1:]
        self.rows += bool(last)
        if not all(last):
            self.wrong += 1
            self.lost[next((name for name, mark in marks.items() if not mark), LATER)] += 1
        return {**ends, **marks}

    @property
    def data(self) -> dict[str, Any]:
        """The counts as JSON data.

        ``rows`` have a graded end (a column; without graded columns, the last graded step), of which ``wrong`` are wrong,
        and ``lost_at`` says at which step first. Of each step ``after_right`` counts the rows in which all graded steps
        before it are right.
        """
        steps = {
            name: _told(one) | {"after_right": {"graded": one["reached"], "right": one["kept"]}}
            for name, one in self.steps.items()
        }
        ends = {name: _told(one) for name, one in self.ends.items()}
        lost = dict(self.lost.most_common())
        return {"rows": self.rows, "wrong": self.wrong, "lost_at": lost, "steps": steps, "columns": ends}


def _told(one: Mapping[str, int]) -> dict[str, Any]:
    graded, right = one["graded"], one["right"]
    return {"graded": graded, "right": right, "accuracy": right / graded if graded else None}


def lines_of(data: Mapping[str, Any]) -> list[str]:
    """Return the counts of `RunGrades.data` as lines for people; the step that loses most comes last.

    >>> told = {"graded": 4, "right": 3, "after_right": {"graded": 4, "right": 3}}
    >>> lines_of({"rows": 4, "wrong": 1, "lost_at": {"a": 1}, "steps": {"a": told}, "columns": {}})
    ['a: 3 of 4 right (75 %)', '1 of 4 rows is wrong in the end: 1 since a']
    """
    lines = []
    for name, one in {**data["steps"], **{f"column {name}": one for name, one in data["columns"].items()}}.items():
        told = f"{name}: {one['right']} of {one['graded']} right" + _percent(one["right"], one["graded"])
        after = one.get("after_right") or one
        if after["graded"] not in (0, one["graded"]):
            share = _percent(after["right"], after["graded"])
            told += f"; {after['right']} of {after['graded']}{share} where all before it is right"
        lines.append(told)
    lost = [f"{number} {name if name == LATER else f'since {name}'}" for name, number in data["lost_at"].items()]
    if lost:
        verb = "is" if data["wrong"] == 1 else "are"
        lines.append(f"{data['wrong']} of {data['rows']} rows {verb} wrong in the end: {', '.join(lost)}")
    return lines


def _percent(right: int, graded: int) -> str:
    return f" ({right / graded:.0%})".replace("%", " %") if graded else ""


async def is_right(value: Any, label: Any, form: OutputForm | None) -> bool | None:
    """Return whether a value is what its label means; None without a label. A value that is missing is wrong.

    A label is read as an answer of the form is. Without a form, numbers, truth values, lists and objects are compared as
    JSON data, and texts by their final answers.
    """
    text, _ = input_value(label, "text")
    if text is None or not str(text).strip():
        return None
    if value is None:
        return False
    written = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
    if form is not None and not form.is_text:
        return _same_by(form, value, written)
    if isinstance(value, str):
        answer = reader().read(value, written)
        return answer is not None and await Question(reader(), written).is_correct(answer)
    meant, fault = input_value(label, "number" if _is_number(value) else "json")
    if isinstance(value, bool) and isinstance(meant, str):
        meant = {"true": True, "yes": True, "false": False, "no": False}.get(meant.strip().lower())
    return not fault and isinstance(meant, bool) == isinstance(value, bool) and canonical(meant) == canonical(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _same_by(form: OutputForm, value: Any, label: str) -> bool:
    found = form.read(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    meant = form.read(label)
    return found.problem is None and meant.problem is None and form.key(found.value) == form.key(meant.value)


async def graded(
    grades: RunGrades, rows: Iterable[Any], outcome_of: Callable[[int], RowOutcome | None]
) -> dict[int, dict[str, bool]]:
    """Grade all rows of a table; return what is right by their numbers. Rows that have not begun are not graded."""
    marks = {}
    for row in rows:
        outcome = outcome_of(row.number)
        if outcome is not None and outcome.state != "stopped" and (found := await grades.add(outcome, row.values)):
            marks[row.number] = found
    return marks
