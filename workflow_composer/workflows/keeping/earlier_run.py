"""What a run has left beside its table, for those who look at it later: `show`, `answer`, `diff`, `forget`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflow_composer.batch.asking.table_output import JOURNAL, journal_beside
from workflow_composer.batch.run.journal import open_own
from workflow_composer.errors import InputError
from workflow_composer.storage.lines import objects
from workflow_composer.storage.locks import lock_beside
from workflow_composer.workflows.keeping.journal import (
    ANSWER,
    FAILED,
    SHARED,
    JournalEntry,
    check_header,
    journal_entries,
)
from workflow_composer.workflows.keeping.people import PeopleAnswers, WaitingQuestion, answers_beside, waiting_in
from workflow_composer.workflows.keeping.written import lineage_beside

_OTHER = "another run"


@dataclass(frozen=True, slots=True)
class EarlierRun:
    """A run by the path of its output; the journal's own path is understood, too."""

    journal: Path

    @classmethod
    def of(cls, output: Path) -> EarlierRun:
        """Find a run. Raises `InputError` if there is none."""
        journal = output if output.name.endswith(JOURNAL) else journal_beside(output)
        if not journal.exists():
            raise InputError(f"no run: {journal} does not exist", hint="name the output of a `workflow run`")
        with journal.open("rb") as file:
            check_header(file.readline(), journal)
        return cls(journal)

    @property
    def answers(self) -> Path:
        """The file of people's answers."""
        return answers_beside(self.journal)

    def entries(self) -> Iterator[JournalEntry]:
        """Yield the journal's entries."""
        return journal_entries(self.journal)

    def lineage(self) -> Iterator[Mapping[str, Any]]:
        """Yield where the values of each row come from, as far as the run has written it."""
        path = lineage_beside(self.journal)
        if path.exists():
            yield from (line for _, line in objects(path))

    def waiting(self) -> list[WaitingQuestion]:
        """Return the questions of the rows that wait for a person and have no answer yet, in the order of the rows."""
        asked, people = waiting_in(self.entries()), PeopleAnswers(self.answers)
        found = []
        for row in [*self.lineage(), {"row": 0, "id": "0" * 16}]:
            own = [entry for (row_id, _, _), entry in asked.items() if row_id == row["id"]] if asked else []
            places = row.get("steps", {})
            for entry in own:
                latest = places.get(entry.place, {}).get("digest", entry.digest) == entry.digest
                if latest and people.of(row["id"], entry.digest) is None:
                    found.append(WaitingQuestion.of(row["row"], entry))
        return found

    def summary(self) -> dict[str, Any]:
        """Return counts of the journal: answers, failures, dollars spent, and the models that answered."""
        kinds, models, spent = Counter[str](), dict[str, Counter[str]](), 0.0
        for entry in self.entries():
            kinds[entry.fields["kind"]] += 1
            spent += float(entry.fields.get("cost") or 0.0)
            facts = entry.fields.get("facts") or {}
            if model := facts.get("model"):
                models.setdefault(str(facts.get("candidate") or model), Counter())[str(model)] += 1
        return {
            "journal": str(self.journal),
            "answers": kinds[ANSWER] + kinds[SHARED],
            "failures": kinds[FAILED],
            "spent": round(spent, 9),
            "models": {name: dict(counts) for name, counts in models.items()},
        }

    def forget(self) -> list[Path]:
        """Remove everything that the run has kept; return what was removed. Raises `InputError` while the run goes on."""
        open_own(self.journal, other=_OTHER).close()
        removed = []
        for path in (lineage_beside(self.journal), self.answers, self.journal):
            with suppress(FileNotFoundError):
                path.unlink()
                removed.append(path)
            with suppress(FileNotFoundError):
                lock_beside(path).unlink()
        return removed


def differing(first: EarlierRun, second: EarlierRun) -> dict[str, Any]:
    """Return, by step, how many rows of two runs are the same, and how many have another question, model or state."""
    before = {row["id"]: row["steps"] for row in first.lineage()}
    counts: dict[str, Counter[str]] = {}
    only_second = 0
    for row in second.lineage():
        steps = before.pop(row["id"], None)
        if steps is None:
            only_second += 1
            continue
        for place in dict.fromkeys([*steps, *row["steps"]]):
            counts.setdefault(place, Counter())[_difference(steps.get(place), row["steps"].get(place))] += 1
    table = [[place, *(found[name] for name in _DIFFERENCES)] for place, found in counts.items()]
    differs = bool(before) or only_second > 0 or any(any(line[2:]) for line in table)
    return {"differs": differs, "table": table, "only_first": len(before), "only_second": only_second}


_DIFFERENCES = ("same", "question", "model", "state")


def _difference(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> str:
    if one is None or other is None or one.get("state") != other.get("state"):
        return "state"
    if one.get("digest") != other.get("digest"):
        return "question"
    served = [found.get("served") or found.get("model") for found in (one, other)]
    return "same" if served[0] == served[1] else "model"
