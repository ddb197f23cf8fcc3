"""Under which versions a journal's entries were written: of the workflow's file, and of what servers said they serve.

A server at an address, or a role of a fleet, may serve another model tomorrow. Where a profile does not name the model, what
the server tells is part of what is asked: answers of another model are asked again, and used again if it comes back.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from workflow_composer.types import EMPTY
from workflow_composer.workflows.definition.model import NestedBody, PromptBody, Workflow
from workflow_composer.workflows.keeping.journal import NOTE, JournalEntry, WorkflowJournal

FILE_DIGITS = 12

ServedModels = Mapping[str, Mapping[str, str]]
"""By the profile's name: ``model``, the one that the server tells, and ``engine``, if the fleet's registry says it."""


class RunVersions:
    """The versions of a run, and those of earlier entries of its journal."""

    def __init__(self, journal: WorkflowJournal) -> None:
        self._journal = journal
        self._file = ""
        self._served: ServedModels = {}
        self._offsets = [note.offset for note in journal.notes]
        self._notes = [note.fields for note in journal.notes]

    def begin(self, *, file: str, served: ServedModels) -> None:
        """Take what holds from now on. A model of which its server says nothing now is believed to be as it was."""
        self._file = file[:FILE_DIGITS]
        self._served = {**(self._notes[-1]["served"] if self._notes else EMPTY), **served}

    def write(self, at: float) -> None:
        """Note it in the journal, if it is not what holds there; ``at`` in seconds of the epoch."""
        said: dict[str, Any] = {"file": self._file, "served": {name: dict(one) for name, one in self._served.items()}}
        if self._notes and all(self._notes[-1][name] == said[name] for name in said):
            return
        self._offsets.append(self._journal.append(NOTE, None, at=round(at, 3), **said))
        self._notes.append(said)

    def file_of(self, entry: JournalEntry | None = None) -> str:
        """Return the digest (hex) of the file with which an entry was made (None: this run's); empty if that is unknown."""
        return self._file if entry is None else str(self._at(entry).get("file", ""))

    def another_model(self, names: Iterable[str], entry: JournalEntry) -> str:
        """Return in words which of these models is now another one than when an entry was made; empty: none that is known.

        ``names`` are those of the profile: of models, or of roles.
        """
        if not self._served or not self._notes:
            return ""
        then: ServedModels = self._at(entry).get("served", EMPTY)
        if then is self._served or then == self._served:
            return ""
        for name in names:
            was, now = then.get(name, EMPTY).get("model"), self._served.get(name, EMPTY).get("model")
            if was and now and was != now:
                return f"{name} was {was} and is {now}"
        return ""

    def told(self) -> Iterator[str]:
        """Yield what has changed since the latest note and makes nothing be asked again: the engines of a fleet."""
        before: ServedModels = self._notes[-1]["served"] if self._notes else EMPTY
        for name, now in self._served.items():
            was = before.get(name, EMPTY)
            if was.get("engine") and now.get("engine") and was["engine"] != now["engine"]:
                yield f"{name} was served by {was['engine']} and is by {now['engine']}; its answers are kept"

    def _at(self, entry: JournalEntry) -> Mapping[str, Any]:
        number = bisect_right(self._offsets, entry.offset)
        return self._notes[number - 1] if number else EMPTY


def models_by_path(workflow: Workflow, names_of: Any, prefix: str = "") -> dict[str, frozenset[str]]:
    """Return the models that each prompt step, and the judge of its answers, may ask, by the step's path.

    ``names_of`` returns the profile's names for the ``model`` and the ``task`` of a step.
    """
    found: dict[str, frozenset[str]] = {}
    for path, step in workflow.every_step():
        named = set()
        if isinstance(step.body, PromptBody):
            named |= names_of(step.model, step.task)
        for check, suffix in ((step.accept, ""), (None if step.release is None else step.release.check, "!release")):
            if check is not None and isinstance(check.body, PromptBody):
                judges = names_of(check.model, None)
                if suffix:
                    found[prefix + path + suffix] = frozenset(judges)
                else:
                    named |= judges
        if named:
            found[prefix + path] = frozenset(named)
        if isinstance(step.body, NestedBody):
            found |= models_by_path(step.body.workflow, names_of, f"{prefix}{path}/")
    return found
