"""Finds the answers of one row in a journal, each at most once, and says why something must be asked (again)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from workflow_composer.answers.form import EMPTY_REPLY
from workflow_composer.support.fast_dataclass import quick
from workflow_composer.types import EMPTY
from workflow_composer.workflows.keeping.answers import KeptAnswer, KeptFailure, StepQuestion
from workflow_composer.workflows.keeping.journal import ANSWER, FAILED, SHARED, JournalEntry, WorkflowJournal
from workflow_composer.workflows.keeping.keys import WRITTEN, path_of
from workflow_composer.workflows.keeping.people import PeopleAnswers
from workflow_composer.workflows.keeping.progress import QuestionProgress, Used
from workflow_composer.workflows.keeping.versions import RunVersions
from workflow_composer.workflows.running.results import CHEAPER, FailureKind

CONTENT_FAULTS: frozenset[FailureKind] = frozenset({"invalid", "refused", "cut_off"})
"""Failures that asking the same question would probably only repeat."""


_NOT_YET = "not asked yet"


@dataclass(frozen=True, slots=True)
class AskingRules:
    """What a run asks. ``redo`` says whether kept answers at a path are asked anew, ``left_out`` why a path is not asked
    (empty: it is), ``retry`` names the kinds of failures that are tried again beside those that always are. ``paths`` are
    those of the workflow's steps. ``asks`` is False where it is only found out what would be asked. ``another_model`` says
    in words which model of a path is now another one than when an entry was made, whose answer is then not used.
    """

    redo: Callable[[str, JournalEntry], bool] = lambda path, entry: False
    left_out: Callable[[str], str] = lambda path: ""
    retry: frozenset[str] = frozenset()
    paths: frozenset[str] = frozenset()
    asks: bool = True
    another_model: Callable[[str, JournalEntry], str] = lambda path, entry: ""

    def anew(self, path: str, entry: JournalEntry) -> bool:
        """Whether what an entry says of a path is not used."""
        return self.redo(path, entry) or bool(self.another_model(path, entry))


@dataclass(slots=True)
class StepCounts:
    """What was asked and kept at one path in this run. ``cost`` in dollars; ``why`` something was asked again, and
    ``again_cost`` what the answers had cost that are not used.
    """

    asked: int = 0
    kept: int = 0
    shared: int = 0
    failed: int = 0
    calls: int = 0
    cost: float = 0.0
    kept_cost: float = 0.0
    again_cost: float = 0.0
    seconds: float = 0.0
    models: Counter[tuple[str, str]] = field(default_factory=Counter)
    kept_models: Counter[tuple[str, str]] = field(default_factory=Counter)
    why: Counter[str] = field(default_factory=Counter)

    def add_asked(self, other: StepCounts) -> None:
        """Add what another pass over the same rows has asked; it found the same kept answers again."""
        for name in ("asked", "failed", "calls", "cost", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.models += other.models
        self.why += other.why


@quick
@dataclass(frozen=True, slots=True)
class Lineage:
    """Where one answer comes from: its question's digest, the facts kept with it, the digest of the file it was asked by."""

    digest: str
    origin: str
    facts: Mapping[str, Any] = field(default_factory=lambda: EMPTY)
    file: str = ""

    @property
    def data(self) -> dict[str, Any]:
        """The same as JSON data: origin, model, attempts, cost (dollars), seconds, digest, file, and what else is known."""
        facts = dict(self.facts)
        attempts = int(facts.pop("calls", 0) or 0) + int(facts.pop("runs", 0) or 0)
        told = {name: facts.pop(name, usual) for name, usual in (("model", ""), ("cost", 0.0), ("seconds", 0.0))}
        if "candidate" in facts:  # the profile's name of the model, and the one that its server reported
            told = {"model": facts.pop("candidate"), "served": told.pop("model"), **told}
        return {
            "origin": self.origin,
            "attempts": attempts,
            **told,
            "digest": self.digest,
            "file": self.file,
            **_briefly(facts),
        }


_NOT_SHOWN = frozenset({"reply", "replies", "refused", "said"})
"""Facts that may hold what a model wrote, or what a check or a form said of it."""


def _briefly(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name not in _NOT_SHOWN}


class RunCounts(dict[str, StepCounts]):
    """`StepCounts` by path."""

    def at(self, place: str) -> StepCounts:
        """Return those of a place's path."""
        path = path_of(place)
        found = self.get(path)
        if found is None:
            found = self[path] = StepCounts()
        return found


class RowKeeper:
    """The `Keeper` of one row's computation; the entries of the row are in memory until it ends."""

    def __init__(
        self,
        journal: WorkflowJournal,
        row: str,
        rules: AskingRules,
        counts: RunCounts,
        *,
        known: bool = False,
        people: PeopleAnswers | None = None,
        versions: RunVersions | None = None,
    ) -> None:
        self._journal, self._rules, self._counts, self._known = journal, rules, counts, known
        self._people = people
        self._file_of: Callable[..., str] = (lambda entry=None: "") if versions is None else versions.file_of
        self.cost = 0.0
        self.lineage: dict[str, Lineage] = {}
        self._answers: dict[str, list[JournalEntry]] = {}
        self._failures: dict[tuple[str, str], JournalEntry] = {}
        self._latest: dict[str, JournalEntry] = {}
        self._ended: dict[tuple[str, str], int] = {}
        self._progress: dict[str, QuestionProgress] = {}
        for entry in journal.entries(row):
            self._take(entry)

    def _take(self, entry: JournalEntry) -> None:
        kind = entry.fields["kind"]
        if kind in (ANSWER, SHARED):
            same = self._answers.setdefault(entry.digest, [])
            if same and not self._rules.another_model(path_of(entry.place), entry):
                same[:] = [other for other in same if other.place != entry.place]  # asked anew
            same.append(entry)
            self._failures.pop((entry.digest, entry.place), None)
            self._ended[entry.digest, entry.place] = entry.offset
        elif kind == FAILED:
            self._failures[entry.digest, entry.place] = entry
            if entry.fields["fault"] in CONTENT_FAULTS:  # refused replies would only be refused again
                self._ended[entry.digest, entry.place] = entry.offset
        self._latest[entry.place] = entry

    @property
    def was_cheaper(self) -> bool:
        """Whether a question of the row was answered cheaply, because the budget was low."""
        return any(CHEAPER in (entry.fields.get("parts") or ()) for entry in self._latest.values())

    def find(self, question: StepQuestion) -> KeptAnswer | None:
        """Return the answer to the same question, of the same place if there is one, else one that nobody has taken."""
        found = self._kept(question)
        counts = self._counts.at(question.place)
        if found is None:
            return self._of_others(question, counts)
        if found.offset >= self._journal.began:  # of an earlier pass of this run
            self.lineage[question.place] = Lineage(question.digest, "asked", found.answer.facts, self._file_of(found))
            return found.answer
        counts.kept += 1
        self.lineage[question.place] = Lineage(question.digest, "kept", found.answer.facts, self._file_of(found))
        counts.kept_cost += cost_of(found.answer.facts)
        for served in _served_by(found.answer.facts):
            counts.kept_models[served] += 1
        return found.answer

    def _of_others(self, question: StepQuestion, counts: StepCounts) -> KeptAnswer | None:
        """Return a person's answer, or one that another row shares."""
        found = None if self._people is None else self._people.of(question.row, question.digest)
        if found is not None:
            self.lineage[question.place] = Lineage(question.digest, "person", found.facts)
            return found
        entry = self._journal.shared(question.digest) if question.share else None
        if entry is None or self._rules.anew(path_of(question.place), entry):
            return None
        counts.shared += 1
        self.lineage[question.place] = Lineage(question.digest, "shared", entry.answer.facts, self._file_of(entry))
        return KeptAnswer(value=entry.answer.value, facts=entry.answer.facts, shared=True)

    def _kept(self, question: StepQuestion) -> JournalEntry | None:
        path = path_of(question.place)
        same = self._answers.get(question.digest)
        if not same:
            return None
        usable = [entry for entry in same if not self._rules.anew(path, entry)]
        if not usable:
            return None
        here = [entry for entry in usable if entry.place == question.place]
        moved = [entry for entry in usable if path_of(entry.place) not in self._rules.paths]
        chosen = (here or moved or usable)[0]
        same.remove(chosen)
        return chosen

    def refused(self, question: StepQuestion) -> KeptFailure | None:
        """Return why a question must not be asked now; count why it is asked if it is asked again."""
        path = path_of(question.place)
        if told := self._rules.left_out(path):
            return KeptFailure(state="not_run", reason=told)
        failure = self._failures.get((question.digest, question.place))
        if failure is not None and not self._rules.anew(path, failure) and not self._is_tried_again(failure):
            facts: Mapping[str, Any] = failure.fields.get("facts") or EMPTY
            self.lineage[question.place] = Lineage(question.digest, "kept", facts, self._file_of(failure))
            return KeptFailure(kind=failure.fields["fault"], reason=failure.fields["reason"], facts=facts)
        if told := self._why(question, failure):
            counts = self._counts.at(question.place)
            counts.why[told] += 1
            before = self._latest.get(question.place)
            counts.again_cost += 0.0 if before is None else cost_of(before.answer.facts)
        self.lineage.setdefault(question.place, Lineage(question.digest, "asked"))
        return None if self._rules.asks else KeptFailure(state="not_run", reason=_NOT_YET)

    def unvisited(self) -> Iterator[JournalEntry]:
        """Yield the latest entries of places that the row's computation has not come to, though the workflow has them."""
        for place, entry in self._latest.items():
            if place not in self.lineage and path_of(place) in self._rules.paths:
                yield entry

    def _is_tried_again(self, failure: JournalEntry) -> bool:
        if failure.offset >= self._journal.began:
            return False
        fault = failure.fields["fault"]
        return fault not in CONTENT_FAULTS or fault in self._rules.retry or EMPTY_REPLY in failure.fields["reason"]

    def _why(self, question: StepQuestion, failure: JournalEntry | None) -> str:
        """Return why a question is asked although the journal knows the row; empty if it never was."""
        if failure is not None:
            return f"it failed before ({failure.fields['fault']})"
        before = self._latest.get(question.place)
        if before is None:
            return "the row is new or its inputs changed" if self._known and not self._latest else ""
        if before.digest == question.digest:
            another = self._rules.another_model(path_of(question.place), before)
            return another or ("asked for" if before.fields["kind"] != FAILED else "it failed before")
        return changed_parts(before.fields.get("parts") or EMPTY, question.parts)

    def progress(self, question: StepQuestion) -> QuestionProgress:
        """Return what a question has got since it was last answered, or refused for what models said."""
        counts = self._counts.at(question.place)

        def told(used: Used) -> None:
            counts.calls += used.calls
            counts.cost += used.cost
            counts.seconds += used.seconds
            self.cost += used.cost

        kept = [entry for entry in self._journal.replies(question.row, question.digest) if self._goes_on(entry, question)]
        made = self._progress[question.place] = QuestionProgress(self._journal, question, kept, told)
        return made

    def _goes_on(self, entry: JournalEntry, question: StepQuestion) -> bool:
        """Whether an entry belongs to the try at this question that was interrupted."""
        place = entry.place.rpartition("~")[0]
        is_own = place == question.place or path_of(place) not in self._rules.paths
        ended = self._ended.get((entry.digest, place), -1)
        return is_own and entry.offset > ended and not self._rules.anew(path_of(question.place), entry)

    def keep(self, question: StepQuestion, answer: KeptAnswer) -> None:
        """Write an answer before it is used."""
        cost = self._count(question, answer.facts)
        kind = SHARED if question.share else ANSWER
        self._journal.append(kind, question, cost=cost, value=answer.value, facts=dict(answer.facts))
        self.lineage[question.place] = Lineage(question.digest, "asked", answer.facts, self._file_of())

    def failed(self, question: StepQuestion, kind: FailureKind, facts: Mapping[str, Any]) -> None:
        """Write a failure."""
        cost = self._count(question, facts)
        rest = {name: value for name, value in facts.items() if name != "reason"}
        self._journal.append(FAILED, question, cost=cost, fault=kind, reason=str(facts.get("reason", "")), facts=rest)
        self._counts.at(question.place).failed += 1
        self.lineage[question.place] = Lineage(question.digest, "asked", rest, self._file_of())

    def _count(self, question: StepQuestion, facts: Mapping[str, Any]) -> float:
        """Count what was asked; return the dollars of it that no other entry has."""
        counts, progress = self._counts.at(question.place), self._progress.pop(question.place, None)
        calls, cost, seconds = int(facts.get("calls") or 0), cost_of(facts), float(facts.get("seconds") or 0.0)
        if progress is not None:
            calls, cost, seconds = progress.rest(facts)
            counts.kept_cost += progress.kept.cost
        counts.asked += 1
        counts.calls += calls
        counts.cost += cost
        self.cost += cost
        counts.seconds += seconds
        for served in _served_by(facts):
            counts.models[served] += 1
        return cost


def cost_of(facts: Mapping[str, Any]) -> float:
    """Return the dollars that a question has cost, in all its tries."""
    return float(facts.get("cost") or 0.0)


def _served_by(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the profile's name of the model that answered, with the name that its server reported."""
    model = str(facts.get("model") or "")
    return [(str(facts.get("candidate") or model), model)] if model else []


_NAMED = {
    "messages": "what its prompt reads changed",
    "given": "what it is given changed",
    "files": "its files changed",
    "checked": "what its check reads changed",
    WRITTEN: "its prompt changed",
    "form": "its answer's form changed",
    "model": "its model changed",
    "target": "its model changed",
    "models": "the models that it may use changed",
    "votes": "its votes changed",
    "temperature": "its temperature changed",
    "tokens": "its token limit changed",
    "tools": "its tools changed",
    "context": "its context changed",
    "accept": "its check changed",
    "program": "its program changed",
    "argv": "its command changed",
    CHEAPER: "only its first models were asked, because the budget was low",
    "release": "the check of its release changed",
    "released": "what it releases changed",
}


def changed_parts(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Return in words what is different in a question.

    >>> changed_parts({"messages": "a", "written": "x"}, {"messages": "b", "written": "y"})
    'its prompt changed'
    """
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if WRITTEN in names and "messages" in names:
        names.remove("messages")  # changed with it
    elif WRITTEN in names:
        names.remove(WRITTEN)  # the same messages, written differently
    told = dict.fromkeys(_NAMED.get(name, f"its {name} changed") for name in names)
    return ", ".join(told) or "it changed"
