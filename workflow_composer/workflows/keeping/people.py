"""Questions that wait for people, and their answers: a file beside the journal, to which `answer` appends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflow_composer.answers.output_form import output_form
from workflow_composer.batch.run.journal import unwritable
from workflow_composer.errors import InputError, nearest
from workflow_composer.storage.appending import append_lines
from workflow_composer.storage.lines import encoded, objects
from workflow_composer.workflows.definition.model import Step
from workflow_composer.workflows.keeping.answers import KeptAnswer, StepQuestion
from workflow_composer.workflows.keeping.journal import JournalEntry, WorkflowJournal
from workflow_composer.workflows.keeping.keys import path_of

ASKED = "asked"
"""Kind of the journal's entries that hold an open question."""

_OTHER = "another --output"


def answers_beside(journal: Path) -> Path:
    """Return the file of people's answers."""
    return journal.with_name(journal.name + ".answers")


class PeopleAnswers:
    """What people have answered, by row and question; the first answer to a question counts."""

    def __init__(self, path: Path) -> None:
        self._found: dict[tuple[str, str], Mapping[str, Any]] = {}
        if path.exists():
            for _, line in objects(path):
                self._found.setdefault((line["row"], line["digest"]), line)

    def __len__(self) -> int:
        return len(self._found)

    def of(self, row: str, digest: str) -> KeptAnswer | None:
        """Return the answer to a question."""
        found = self._found.get((row, digest))
        if found is None:
            return None
        return KeptAnswer(value=found["value"], facts={"person": True, "by": found.get("by", ""), "at": found.get("at")})


class OpenQuestions:
    """Writes questions for people into the journal, each once: the `People` of a run."""

    def __init__(self, journal: WorkflowJournal, now: Any) -> None:
        self._journal, self._now = journal, now

    def wait(self, question: StepQuestion, step: Step, text: str) -> float:
        """Write a question down; return when it was first asked (seconds of the epoch)."""
        for entry in self._journal.entries(question.row):
            if entry.fields["kind"] == ASKED and entry.digest == question.digest and entry.place == question.place:
                return float(entry.fields["at"])
        at = float(self._now())
        form = None if step.form is None else step.form.spec
        self._journal.append(ASKED, question, at=at, text=text, form=form)
        return at


@dataclass(frozen=True, slots=True)
class WaitingQuestion:
    """A question that waits: of which row (its number from 1), at which step, and what may be answered."""

    number: int
    row: str
    place: str
    digest: str
    text: str
    form: Any

    @classmethod
    def of(cls, number: int, entry: JournalEntry) -> WaitingQuestion:
        """Return the question in an entry of the journal."""
        fields = entry.fields
        return cls(number, fields["row"], entry.place, entry.digest, fields["text"], fields.get("form"))

    @property
    def step(self) -> str:
        """The step's path."""
        return path_of(self.place)

    @property
    def allowed(self) -> str:
        """What may be answered, in words."""
        return "any text" if self.form is None else repr(output_form(self.form))

    def data(self, *, with_text: bool) -> dict[str, Any]:
        """Return it as JSON data; its text may be private."""
        found = {"row": self.number, "step": self.step, "place": self.place, "answer": self.form, "digest": self.digest}
        return found | ({"question": self.text} if with_text else {"characters": len(self.text)})

    def value(self, text: str) -> Any:
        """Read an answer. Raises `InputError` if it is not of the form that is asked for."""
        if self.form is None:
            return text
        form = output_form(self.form)
        found = form.read(text)
        if found.problem is not None:
            allowed = [word for word in self.form if isinstance(word, str)] if isinstance(self.form, list) else []
            hint = nearest(text, allowed) or (f"answer one of: {', '.join(allowed)}" if allowed else f"the form is {form!r}")
            raise InputError(f"row {self.number}, {self.place}: {found.problem}", hint=hint)
        return form.plain(found.value)


def write_answer(path: Path, question: WaitingQuestion, value: Any, *, by: str, at: float) -> None:
    """Append a person's answer. Raises `WorkflowComposerError` if it cannot be written."""
    line = {"row": question.row, "digest": question.digest, "place": question.place, "value": value, "by": by, "at": at}
    try:
        append_lines(path, encoded(line))
    except OSError as error:
        raise unwritable(path, error, other=_OTHER) from error


def waiting_in(entries: Iterator[JournalEntry]) -> dict[tuple[str, str, str], JournalEntry]:
    """Return the questions of a journal by row, place and digest."""
    return {(entry.fields["row"], entry.place, entry.digest): entry for entry in entries if entry.fields["kind"] == ASKED}
