"""``regrade``: read the kept answers of a run in another way, compare, vote and grade them again. No model is called.

The samples are those that were drawn, so a vote that now ends otherwise may lack samples or a further tier; such rows are
counted. The files of the run itself are only read.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_composer.answers import Question, Reader, reader
from workflow_composer.batch.datasets.dataset import Row
from workflow_composer.batch.keeping.kept_runs import JOURNAL, KeptRun
from workflow_composer.batch.run.answering import Answering, Job
from workflow_composer.batch.run.journal import unwritable
from workflow_composer.batch.run.lines import header_line, record_line
from workflow_composer.batch.run.records import RowRecord, TierRecord
from workflow_composer.errors import InputError, WorkflowComposerError
from workflow_composer.execution.voting.ballot import Ballot
from workflow_composer.execution.voting.vote_kinds import AnswerVotes, ToolVotes
from workflow_composer.markers import parse_route
from workflow_composer.plan import Candidate, Member, Voting
from workflow_composer.storage.lines import encoded, objects
from workflow_composer.storage.replacing import replacing
from workflow_composer.types import LLMResponse, RoutingDecision, Sample, TierResult, TokenLogprob, Usage, Verdict

if TYPE_CHECKING:
    from workflow_composer.batch.report.provenance import RunAbout

_OTHER = "another --output"


@dataclass(slots=True)
class Counts:
    """What was counted before or after: graded rows, right ones, and answers that could not be read."""

    graded: int = 0
    right: int = 0
    unreadable: int = 0

    def add(self, record: RowRecord, *, read: bool = True) -> None:
        """Count a row; ``read``: its answer was looked for."""
        self.graded += record.correct is not None
        self.right += record.correct is True
        self.unreadable += read and record.error is None and record.answer is None

    @property
    def accuracy(self) -> float | None:
        """The share of right answers among the graded ones; None if there are none."""
        return self.right / self.graded if self.graded else None


@dataclass(slots=True)
class Regraded:
    """The result of reading a run again. ``changed`` rows have another answer; ``further`` rows would have asked a further
    tier, whose answer is not there.
    """

    run: KeptRun
    journal: Path
    voting: Voting
    rows: int = 0
    before: Counts = field(default_factory=Counts)
    after: Counts = field(default_factory=Counts)
    changed: int = 0
    further: int = 0


class Regrader:
    """Reads the rows of one run again. ``voting`` replaces the run's own."""

    def __init__(self, run: KeptRun, voting: Voting) -> None:
        self._run = run
        self._voting = voting
        self._targets = run.targets if voting.target == run.voting.target else {}
        self._reader = reader(voting.form)
        self._steps: dict[str, int] = {}

    async def again(self, record: RowRecord) -> RowRecord:
        """Return the record of a row as it is read now; a failed row stays as it is. Raises `InputError` without texts."""
        if record.error is not None:
            return record
        if not record.tiers or any(len(tier.texts) != tier.samples for tier in record.tiers):
            raise InputError(
                f"{self._run.path}: the texts of row {record.row} were not kept",
                hint="answer the rows again without --no-texts, into another output",
            )
        labels = _labels(record.label)
        if not labels and record.correct is not None and not self._run.recorded:
            raise InputError(
                f"{self._run.path}: the label of row {record.row} was not kept: an earlier version wrote the run",
                hint="answer the rows again with this version; earlier runs keep their grades",
            )
        results = [await self._judged(at, tier) for at, tier in enumerate(record.tiers)]
        decided = _decided(results)
        row = Row(record.row, record.id, _question(record), labels[0] if labels else None, labels[1:])
        job = Job(row, record.route)
        answering = Answering(_never, self._reader, recorded=_grades_of(record), keep_texts=True)
        found = await answering.record(job, _response(record, results, decided))
        return _with_what_stays(found, record)

    async def _judged(self, at: int, tier: TierRecord) -> TierResult:
        """Return a tier's result with the verdict on its samples as they are read now."""
        samples = samples_of(tier)
        verdict = await self._vote(tier, samples) if len(samples) > 1 or tier.confidence is not None else None
        if verdict is None:
            verdict = self._single(tier, samples)
        usage = Usage(tier.prompt_tokens, tier.completion_tokens)
        candidate = tier.candidate or tier.name
        return TierResult(
            at, tier.name, candidate, tier.model, samples, verdict, usage, tier.cost, tier.seconds * 1000.0, fixed=tier.fixed
        )

    async def _vote(self, tier: TierRecord, samples: Sequence[Sample]) -> Verdict | None:
        if len(samples) == 1:
            return None
        voting = replace(self._voting, target=self._targets.get(tier.name, self._voting.target))
        member = Member((Candidate(tier.candidate or tier.name, local=True),), len(samples))
        kind = AnswerVotes(self._reader)
        names = dict.fromkeys(_name_of(call) for sample in samples for call in sample.tool_calls)
        calls = ToolVotes([{"name": name} for name in names], kind) if names else None
        ballot = Ballot(voting, [member], last=True, kind=calls or kind)
        for sample in samples:
            await ballot.add(sample)
        return ballot.verdict()

    def _single(self, tier: TierRecord, samples: Sequence[Sample]) -> Verdict:
        """Return the verdict on a single sample: what its rule said, unless it now can, or cannot, be read."""
        readable = bool(samples) and (self._reader.read_said(samples[0]) is not None or bool(samples[0].tool_calls))
        was_unread = tier.unreadable >= tier.samples > 0
        accepted = (tier.accepted or was_unread) if readable else (tier.accepted and was_unread)
        return Verdict(accepted, tier.confidence, tier.reason, 0, (), int(not readable))

    def lacks_a_tier(self, record: RowRecord) -> bool:
        """Whether the row's last kept answer was not accepted although its route has further tiers."""
        if record.error is not None or not record.tiers or record.tiers[-1].accepted:
            return False
        return len(record.tiers) < self._steps_of(record.route)

    def _steps_of(self, route: str) -> int:
        if route not in self._steps:
            try:
                self._steps[route] = len(parse_route(route).tiers)
            except WorkflowComposerError:  # a name, or a route of a plugin
                self._steps[route] = 1
        return self._steps[route]


async def regrade(run: KeptRun, voting: Voting, folder: Path) -> Regraded:
    """Read a run again and write its records into a journal in ``folder``; return the counts.

    Raises `InputError` if the folder is the run's own, if texts or labels were not kept, or if the votes need a model.
    """
    if voting.by != "answer":
        raise InputError(
            f"{run.path}: its votes were grouped by embedding, which needs a model",
            hint="give --vote-by answer to compare final answers instead",
        )
    target = folder / JOURNAL
    if await asyncio.to_thread(_same_file, target, run.path):
        raise InputError(f"{folder} holds the run itself", hint=f"choose {_OTHER}")
    found, again = Regraded(run, target, voting), Regrader(run, voting)
    try:
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        with replacing(target, private=True) as file:
            file.write(header_line(_header(run, voting)))
            for record in run.records():
                now = await again.again(record)
                _count(found, record, now)
                found.further += again.lacks_a_tier(now)
                file.write(record_line(now))
    except OSError as error:
        raise unwritable(target, error, other=_OTHER) from error
    if run.kind == "generate":
        _write_lines(run, folder)
    return found


async def regrade_recording(path: Path, voting: Voting, folder: Path) -> Path:
    """Write a recording with the grades of its answers as they are read now; return its path. Lines without label stay."""
    target, answers = folder / path.name, reader(voting.form)
    with replacing(target, private=True) as file:
        for _, line in objects(path):
            file.write(encoded({**line, **await _grades_in(line, answers)}))
    return target


async def _grades_in(line: Mapping[str, Any], answers: Reader) -> dict[str, Any]:
    """Return the grade of a recorded answer as it is read now; nothing without a label."""
    labels = _labels(line.get("label"))
    if not labels:
        return {}
    read = answers.extract_said(Sample(line["answer"], line.get("finish_reason") or "stop"), labels[0])
    answer = None if read is None else read.answer
    right = [await Question(answers, label).is_correct(answer) for label in labels]
    return {"correct": any(right), "read_by": None if read is None else read.how}


def _same_file(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _header(run: KeptRun, voting: Voting) -> dict[str, Any]:
    rows = 1 + max((record.row for record in run.records()), default=-1) if run.kind != "execute" else run.identity["rows"]
    identity = run.identity if run.kind == "execute" else {"of": run.kind}
    return {**identity, "rows": rows, "votes": voting.meaning, "regraded": str(run.path)}


def _count(found: Regraded, before: RowRecord, after: RowRecord) -> None:
    kind = found.run.kind
    was_read = kind == "execute" or (kind == "generate" and before.correct is not None)
    found.rows += 1
    found.before.add(before, read=was_read)
    found.after.add(after)
    found.changed += before.answer != after.answer if was_read else before.correct != after.correct


def _write_lines(run: KeptRun, folder: Path) -> None:
    """Write the lines of an answer file with their new answers and grades."""
    from workflow_composer.batch.report.results import records

    lines = {line["index"]: line for _, line in objects(run.path)}
    with replacing(folder / run.path.name, private=True) as file:
        for record in records(folder / JOURNAL):
            line = dict(lines[record.row])
            if record.error is None:
                chosen = record.tiers[record.tier]
                line |= {"answer": record.answer, "read_by": record.read_by, "confidence": record.confidence}
                line |= {"tier": record.tier, "model": chosen.model, "candidate": chosen.candidate}
                line |= {} if record.correct is None else {"correct": record.correct}
            file.write(encoded(line))


# ------------------------------------------------------------------------------------------------- records to results


def samples_of(tier: TierRecord) -> tuple[Sample, ...]:
    """Return the samples of a tier as far as they were kept. The mean log-probability stands for those of all tokens."""
    said: Iterable[Mapping[str, Any]] = tier.said or ({},) * len(tier.texts)
    found = []
    for text, more in zip(tier.texts, said, strict=True):
        mean = more.get("logprob")
        logprobs = None if mean is None else (TokenLogprob("", mean),)
        calls = tuple(more.get("tool_calls", ()))
        reason = more.get("finish_reason", "stop")
        found.append(Sample(text, reason, calls, logprobs, more.get("score"), more.get("reasoning", "")))
    return tuple(found)


def _decided(results: Sequence[TierResult]) -> int:
    """Return the tier whose answer counts: the first accepted, else the last that can be read, as while answering."""
    best = 0
    for at, result in enumerate(results):
        if result.verdict.accepted:
            return at
        readable = result.verdict.unreadable < len(result.samples)
        if readable or results[best].verdict.unreadable >= len(results[best].samples):
            best = at
    return best


def _response(record: RowRecord, results: Sequence[TierResult], decided: int) -> LLMResponse:
    chosen = results[decided]
    names = (chosen.candidate, chosen.model)
    decision = RoutingDecision("", "", *names, local=True, tier=decided, fallback_depth=0, task_type="*", reason="")
    return LLMResponse(
        text=chosen.samples[chosen.verdict.choice].text,
        decision=decision,
        samples=chosen.samples,
        usage=Usage(record.prompt_tokens, record.completion_tokens),
        cost=record.cost,
        attempts=(),
        request_id="",
        latency_ms=record.seconds * 1000.0,
        overhead_ms=0.0,
        confidence=chosen.verdict.confidence,
        accepted=chosen.verdict.accepted,
        climbed=tuple(results),
    )


def _with_what_stays(found: RowRecord, before: RowRecord) -> RowRecord:
    """Return the new record with what a new reading does not change, and the texts as they were kept."""
    tiers = tuple(
        replace(now, said=then.said, texts=then.texts, priced=then.priced)
        for now, then in zip(found.tiers, before.tiers, strict=True)
    )
    return replace(
        found,
        tiers=tiers,
        key=before.key,
        question=before.question,
        label=before.label,
        columns=before.columns,
        priced=before.priced,
        seconds=before.seconds,
    )


def _grades_of(record: RowRecord) -> Any:
    """Return the grades of a row without a label, by sample, as its recording gave them."""
    by_model = {tier.model: tier.right for tier in record.tiers}

    def right(model: str, question: str, sample: int) -> bool | None:
        known = by_model.get(model, ())
        return known[sample] if sample < len(known) else None

    return right


def _labels(label: Any) -> tuple[str, ...]:
    if label is None:
        return ()
    return tuple(map(str, label)) if isinstance(label, list) else (str(label),)


def _question(record: RowRecord) -> str:
    return record.question if isinstance(record.question, str) else json.dumps(record.question, ensure_ascii=False)


def _name_of(call: Mapping[str, Any]) -> str:
    return str((call.get("function") or call.get("custom") or {}).get("name"))


async def _never(*_: Any, **__: Any) -> LLMResponse:
    raise AssertionError("reading answers again calls no model")


def regraded_reports(found: Sequence[Regraded], folder: Path) -> Iterator[Path]:
    """Write the result files of each run and a report of the runs of each folder; yield the reports' paths."""
    from functools import partial

    from workflow_composer.batch.report.report import build_report
    from workflow_composer.batch.report.results import records, write_results
    from workflow_composer.storage.replacing import replace_file

    groups: dict[Path, dict[str, Regraded]] = {}
    for each in found:
        place = each.journal.parent
        write_results(each.journal, place)
        groups.setdefault(place.parent if each.run.name else place, {})[place.name] = each
    for place, runs in groups.items():
        origins = {name: origin for name, each in runs.items() if (origin := _origin(each)) is not None}
        sources = {name: partial(records, each.journal) for name, each in runs.items()}
        note = "Read again from kept answers, without a call; costs and times are those of the runs."
        title = next(iter(runs.values())).run.identity.get("dataset") or folder.name
        for name, text in zip(
            ("report.md", "report.html"), build_report(sources, title=title, notes=[note], origins=origins), strict=True
        ):
            replace_file(place / name, text, mode=0o600)
            yield place / name


def _origin(regraded: Regraded) -> RunAbout | None:
    """Return the origin of a run of `execute`, with the settings by which its answers were read again."""
    from workflow_composer.batch.report.provenance import about

    found, voting = about(regraded.run.path.parent), regraded.voting
    if found is None:
        return None
    how = f"answers read again by {', '.join(voting.form.extract)} and compared by {voting.form.compare}"
    return replace(found, settings=f"votes: {voting.measure} from {voting.target:g}; {how}")
