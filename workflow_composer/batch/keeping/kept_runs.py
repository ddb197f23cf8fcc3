"""The runs that can be read again: their files, the settings of their votes, and their rows as records."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from workflow_composer.answers.form import AnswerForm, OutputForm
from workflow_composer.answers.output_form import output_form
from workflow_composer.batch.keeping.notes import read_note
from workflow_composer.batch.run.answer_file import answers_in
from workflow_composer.batch.run.lines import header_of, whole_lines
from workflow_composer.batch.run.records import RowRecord, TierRecord
from workflow_composer.config.named_code import named_code
from workflow_composer.errors import InputError, InvalidAnswer
from workflow_composer.plan import Voting
from workflow_composer.storage.lines import lines as lines_of
from workflow_composer.storage.lines import objects

JOURNAL = "journal.jsonl"
REGRADED = "regraded"
_NOT_RUNS = ("probes", REGRADED)

Kind = Literal["execute", "generate", "record"]


@dataclass(frozen=True, slots=True)
class KeptRun:
    """A run whose rows can be read again.

    ``name`` is its path below what was named; empty if it is that itself. ``identity`` are the settings it was answered
    with, ``voting`` those of its votes; ``targets`` are the confidences from which single tiers accept. ``records`` yields
    its rows in their order. ``recorded``: without labels, its grades are those of a recording. ``form``: answers have this
    form (`ask`).
    """

    name: str
    path: Path
    kind: Kind
    identity: Mapping[str, Any]
    voting: Voting
    records: Callable[[], Iterator[RowRecord]]
    targets: Mapping[str, float] = field(default_factory=dict)
    recorded: bool = False
    form: OutputForm | None = None


def kept_runs(path: Path) -> list[KeptRun]:
    """Return the runs at a path: a folder of `execute` with its data sets and policies, the output of `generate`, `record`
    or `ask`.

    Raises `InputError` if there is none.
    """
    if path.is_dir():
        journals = sorted(place for place in path.glob(f"**/{JOURNAL}") if not _is_left_out(place.parent, path))
        if not journals:
            raise InputError(f"{path} has no run with kept answers", hint="name the folder that execute wrote, or a file")
        return [_executed(place, _name(place.parent, path)) for place in journals]
    path = _journal_of_table(path)
    first = next((line for line in lines_of(path) if line.strip()), b"")
    if first.startswith(b'["'):
        return [_executed(path, "")]
    if first.startswith(b'{"index":'):
        return [_generated(path)]
    found = _object(first)
    if {"question", "model", "sample", "answer"} <= found.keys():
        return _recorded(path)
    raise InputError(
        f"{path} holds no kept answers", hint="name the output of execute (a folder), of generate or of record (a file)"
    )


def _journal_of_table(path: Path) -> Path:
    """Return the journal of a table that `ask` wrote, or the path itself."""
    from workflow_composer.batch.asking.table_output import journal_beside

    journal = journal_beside(path)
    return journal if journal.is_file() else path


def _is_left_out(folder: Path, root: Path) -> bool:
    parts = folder.relative_to(root).parts
    return any(part in _NOT_RUNS or part.startswith("shard-") for part in parts)


def _name(folder: Path, root: Path) -> str:
    name = folder.relative_to(root).as_posix()
    return "" if name == "." else name


def _object(line: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def voting_from(votes: Mapping[str, Any]) -> Voting:
    """Return the settings of votes as a run noted them; what it did not note has its default."""
    known = {each.name for each in fields(Voting)}
    given = {name: value for name, value in votes.items() if name in known}
    if "form" in given:
        form = {name: value for name, value in given["form"].items() if name in {each.name for each in fields(AnswerForm)}}
        given["form"] = AnswerForm(**{**form, "extract": tuple(form.get("extract", ("auto",)))})
    return Voting(**given)


def _targets(identity: Mapping[str, Any]) -> dict[str, float]:
    tiers = (identity.get("profile") or {}).get("tiers") or {}
    return {name: tier["target"] for name, tier in tiers.items() if tier.get("target") is not None}


# ------------------------------------------------------------------------------------------------------ forms of runs


def _executed(path: Path, name: str) -> KeptRun:
    from workflow_composer.batch.report.results import records

    with path.open("rb") as file:
        first = next(whole_lines(file, path), None)
        if first is None:
            raise InputError(f"{path} is empty", hint="run the batch first")
        identity = header_of(first, path)
    voting = voting_from(identity.get("votes") or {})
    replayed = identity.get("replay") is not None
    return KeptRun(name, path, "execute", identity, voting, lambda: records(path), _targets(identity), recorded=replayed)


def _generated(path: Path) -> KeptRun:
    note = read_note(path) or {}
    options = note.get("options") or {}
    route = str(options.get("model") or "")
    if next(named_code(options.get("form")), None) is not None:
        raise InputError(f"the form in the note of {path} names code, which `ask` never does", hint="do not trust this run")
    form = output_form(options["form"]) if note.get("command") == "ask" and options.get("form") is not None else None
    return KeptRun(
        "",
        path,
        "generate",
        note,
        voting_from(note.get("votes") or {}),
        lambda: (_of_line(line, route) for line in answers_in(path)),
        _targets(note),
        form=None if form is None or form.is_text else form,
    )


def _of_line(line: Mapping[str, Any], route: str) -> RowRecord:
    """Return the record of a line of an answer file."""
    error, tokens = line.get("error"), line.get("tokens") or {}
    if error is not None and error["type"] == InvalidAnswer.__name__ and "text" in line:
        error, line = None, {name: value for name, value in line.items() if name != "error"}  # it may be read now
    tiers = tuple(_tier_of(tier) for tier in line["tiers"]) if "tiers" in line else _only_tier(line)
    return RowRecord(
        row=line["index"],
        id=str(line["index"] if line.get("id") is None else line["id"]),
        route=route or str(line.get("candidate") or ""),
        answer=line.get("answer"),
        confidence=line.get("confidence"),
        accepted=error is None,
        tier=min(int(line.get("tier") or 0), max(len(tiers) - 1, 0)),
        tiers=tiers,
        correct=line.get("correct"),
        prompt_tokens=int(tokens.get("prompt") or 0),
        completion_tokens=int(tokens.get("completion") or 0),
        cost=line["cost"],
        seconds=float(line.get("latency_ms") or 0.0) / 1000.0,
        error=None if error is None else (error["type"], error["message"]),
        key=line.get("content") or line["key"],
        question=line.get("question"),
        label=[line["label"], *line["other_labels"]] if line.get("other_labels") else line.get("label"),
        columns=line.get("columns") or {},
        read_by=line.get("read_by"),
        priced=line.get("cost_known", True),
    )


def _only_tier(line: Mapping[str, Any]) -> tuple[TierRecord, ...]:
    if "error" in line:
        return ()
    said: dict[str, Any] = {
        name: line[name] for name in ("finish_reason", "tool_calls", "reasoning") if line.get(name) not in (None, "stop")
    }
    tokens = line.get("tokens") or {}
    return (
        _tier(
            name=line.get("candidate") or "",
            model=line.get("model") or "",
            texts=[line.get("text") or ""],
            said=[said] if said else [],
            tokens=tokens,
            cost=line["cost"],
            correct=line.get("correct"),
            seconds=float(line.get("latency_ms") or 0.0) / 1000.0,
        ),
    )


def _tier_of(tier: Mapping[str, Any]) -> TierRecord:
    return _tier(
        name=tier["name"],
        model=tier["model"],
        texts=tier["texts"],
        said=tier["said"],
        tokens=tier["tokens"],
        cost=tier["cost"],
        candidate=tier["candidate"],
        votes=tuple((answer, count) for answer, count in tier["votes"]),
        confidence=tier["confidence"],
        accepted=tier["accepted"],
        reason=tier["reason"],
    )


def _tier(
    *,
    name: str,
    model: str,
    texts: list[str],
    said: list[Mapping[str, Any]],
    tokens: Mapping[str, Any],
    cost: float,
    candidate: str = "",
    correct: bool | None = None,
    **more: Any,
) -> TierRecord:
    fields_of_tier = {
        "votes": (),
        "unreadable": 0,
        "confidence": None,
        "accepted": True,
        "reason": "",
        "seconds": 0.0,
        "right": () if correct is None else (correct,),
        **more,
    }
    return TierRecord(
        name=name,
        model=model,
        samples=len(texts),
        prompt_tokens=int(tokens.get("prompt") or 0),
        completion_tokens=int(tokens.get("completion") or 0),
        cost=cost,
        texts=tuple(texts),
        said=tuple(said),
        candidate=candidate or name,
        **fields_of_tier,
    )


def _recorded(path: Path) -> list[KeptRun]:
    """Return one run per model of a recording, over the questions that it answered."""
    models = dict.fromkeys(str(line["model"]) for _, line in objects(path))
    several = len(models) > 1
    return [KeptRun(model if several else "", path, "record", {}, Voting(), _of_recording(path, model)) for model in models]


def _of_recording(path: Path, model: str) -> Callable[[], Iterator[RowRecord]]:
    def records() -> Iterator[RowRecord]:
        rows: dict[str, int] = {}
        for _, line in objects(path):
            row = rows.setdefault(line["question"].strip(), len(rows))
            if line["model"] == model and line["sample"] == 0:
                yield _of_recorded(line, row)

    return records


def _of_recorded(line: Mapping[str, Any], row: int) -> RowRecord:
    said = {name: line[name] for name in ("finish_reason", "reasoning") if line.get(name)}
    tokens = {"prompt": line.get("prompt_tokens"), "completion": line["tokens"]}
    cost = float(line.get("cost") or 0.0)
    tier = _tier(
        name=line["model"],
        model=line["model"],
        texts=[line["answer"]],
        said=[said] if said else [],
        tokens=tokens,
        cost=cost,
        correct=line.get("correct"),
    )
    return RowRecord(
        row=row,
        id=str(line.get("id") or row),
        route=line["model"],
        answer=None,
        confidence=None,
        accepted=True,
        tier=0,
        tiers=(tier,),
        correct=line.get("correct"),
        prompt_tokens=tier.prompt_tokens,
        completion_tokens=tier.completion_tokens,
        cost=cost,
        seconds=0.0,
        question=line["question"],
        label=line.get("label"),
        columns=line.get("columns") or {},
        read_by=line.get("read_by"),
        priced=line.get("cost") is not None,
    )
