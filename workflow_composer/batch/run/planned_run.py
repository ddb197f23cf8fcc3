"""``execute``: answer a data set under one batch policy, with its journal and its result files."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_composer import __version__
from workflow_composer.answers import Kind, kind_of_labels, reader
from workflow_composer.batch.keeping.identity import cascade_settings, meaning_of, voting_of
from workflow_composer.batch.keeping.notes import read_note, write_note
from workflow_composer.batch.keeping.shards import Shard, refuse_other_counts, shard_folders
from workflow_composer.batch.report.provenance import RunAbout, about, other_runs
from workflow_composer.batch.report.results import records, write_results
from workflow_composer.batch.run.answering import Answering, Job
from workflow_composer.batch.run.journal import RowJournal, RowKeys, fingerprint
from workflow_composer.batch.run.limiter import Limiter
from workflow_composer.batch.run.lines import head_of, whole_lines
from workflow_composer.batch.run.records import Head, RowRecord
from workflow_composer.batch.run.runner import Generate, GoOn, RunBudget, heard, run
from workflow_composer.batch.run.tally import Tally
from workflow_composer.storage.replacing import replace_file

if TYPE_CHECKING:
    from workflow_composer.batch.datasets.recorded_answers import RecordedAnswers
    from workflow_composer.batch.planning.plan_table import PlanTable
    from workflow_composer.config.strategy import StrategyConfig

JOURNAL = "journal.jsonl"
_LIMITS = frozenset({"timeout", "budget"})
"""Fields of a request that decide whether a row is answered, not how."""


class PlannedRun:
    """Answers rows of data sets by their planned routes, under one profile and with the same options.

    ``fields`` are fields of `LLMRequest` for every row, plus ``system``; ``pins`` identify the exact texts of the contexts
    that ``fields``, or else the profile, name. ``recorded`` grades rows without a label. ``planning`` are the settings of
    policies; ``command`` are the arguments of the command line.
    """

    def __init__(
        self,
        config: StrategyConfig,
        *,
        fields: Mapping[str, Any],
        pins: tuple[str, ...] = (),
        recorded: RecordedAnswers | None = None,
        limit: int | None = None,
        keep_texts: bool = True,
        planning: Mapping[str, Any] | None = None,
        command: Sequence[str] = (),
        shard: Shard | None = None,
    ) -> None:
        self._config = config
        self._fields = dict(fields)
        self._pins = pins
        self._recorded = recorded
        self._limit = limit
        self._keep_texts = keep_texts
        self._planning = dict(planning or {})
        self._command = tuple(command)
        self._shard = shard
        self.voting = voting_of(config)

    async def answer(
        self,
        generate: Generate,
        rows: Any,
        table: PlanTable,
        journal: RowJournal,
        *,
        tally: Tally,
        concurrency: int | None,
        budget: RunBudget,
        progress: Callable[[Tally], None],
        stop: asyncio.Event,
        go_on: GoOn,
    ) -> None:
        """Answer the rows that are not in the journal yet."""
        limiter = Limiter.of(concurrency)
        answering = Answering(
            heard(generate, limiter),
            reader(self.voting.form),
            fields=self._fields,
            recorded=None if self._recorded is None else self._recorded.right,
            keep_texts=self._keep_texts,
            kind=_kind_of(rows),
        )
        jobs = (job for job in self._jobs(rows, table) if not journal.is_done(job.row.row))
        await run(
            jobs,
            answering,
            journal,
            tally=tally,
            limiter=limiter,
            budget=budget,
            progress=progress,
            stop=stop,
            go_on=go_on,
        )

    def opened(self, folder: Path, rows: Any, table: PlanTable, tally: Tally) -> RowJournal:
        """Create the folder and open its journal; count the answers of earlier runs in ``tally``."""
        place, total = self.folder_of(folder), len(table.frame)
        place.mkdir(parents=True, exist_ok=True)

        def each() -> Iterator[str]:
            return (job.key if self._holds(job.row.row) else "" for job in self._every(rows, table))

        def earlier(head: Head) -> None:
            mine = head.row < total and self._holds(head.row)
            tally.add_earlier(head._replace(row=0 if mine else total))

        keys = RowKeys(each, self._limit is None, self._identity_before(rows, table))
        identity = self._identity(rows, table)
        if self._shard is not None:
            refuse_other_counts(self._shard, shard_folders(folder))
        self._note_origin(place, rows, table.breakdown.policy)
        journal = RowJournal.open(place / JOURNAL, identity, rows=total, each=earlier, keys=keys)
        try:
            if self._shard is not None:
                self._adopt(journal, folder, rows, table, earlier)
                note = {"run_of": identity, "input": {"rows": total, "sha256": rows.sha256()}, "shard": str(self._shard)}
                write_note(journal.path, note)
        except BaseException:
            journal.close()
            raise
        return journal

    def folder_of(self, folder: Path) -> Path:
        """Return the folder of this run's files: that of the run, or its shard's."""
        return folder if self._shard is None else folder / self._shard.name

    def _holds(self, row: int) -> bool:
        return self._shard is None or self._shard.holds(row)

    def _adopt(
        self, journal: RowJournal, folder: Path, rows: Any, table: PlanTable, earlier: Callable[[Head], None]
    ) -> None:
        """Copy answers of this shard's rows from the run's own journal, and from shards with rows in another order."""
        digest = rows.sha256()
        sources = [folder / JOURNAL] if (folder / JOURNAL).exists() else []
        for place in shard_folders(folder).values():
            path = place / JOURNAL
            other = (read_note(path) or {}).get("input", {}).get("sha256") if path.exists() else digest
            if path.resolve() != journal.path and other != digest:
                sources.append(path)
        if not sources:
            return
        wanted: dict[str, list[int]] = {}
        for job in self._jobs(rows, table):
            if not journal.is_done(job.row.row):
                wanted.setdefault(job.key, []).append(job.row.row)
        for path in sources:
            for head in journal.adopt(path, self._identity(rows, table), wanted):
                earlier(head)

    def _jobs(self, rows: Any, table: PlanTable) -> Iterator[Job]:
        return (job for job in self._every(rows, table) if self._holds(job.row.row))

    def _every(self, rows: Any, table: PlanTable) -> Iterator[Job]:
        return (Job(row, route) for row, route in zip(islice(rows.rows(), self._limit), table.routes(), strict=True))

    def _identity(self, rows: Any, table: PlanTable) -> dict[str, Any]:
        """Return the identity of the run, in which the rows have no part: a difference in any value means another run."""
        policy, votes = table.breakdown.policy, self.voting.meaning
        is_route = set(table.breakdown.routes) <= {policy}
        fields = {name: value for name, value in self._fields.items() if name not in _LIMITS}
        return {
            "version": __version__.rpartition(".")[0],
            "dataset": rows.name,
            "policy": policy,
            "planning": {} if is_route else self._planning,
            "profile": meaning_of(self._config, [policy] if is_route else self._config.tiers),
            "votes": votes | {"draws": cascade_settings(self._config).draws},
            "fields": {**fields, "context": list(self._pins)} if self._pins else fields,
            "replay": None if self._recorded is None else self._recorded.digest,
        }

    def _identity_before(self, rows: Any, table: PlanTable) -> dict[str, Any]:
        """Return the identity as earlier versions wrote it, with the digest of all rows."""
        return {
            "version": __version__.rpartition(".")[0],
            "dataset": rows.name,
            "digest": rows.sha256(),
            "routes": fingerprint(table.routes()),
            "strategy": self._config.profile_name,
            "models": {name: f"{spec.backend}:{spec.model}" for name, spec in self._config.models.items()},
            "votes": self.voting.meaning,
            "fields": {**self._fields, "context": list(self._pins)} if self._pins else self._fields,
            "replay": None if self._recorded is None else self._recorded.digest,
        }

    def _note_origin(self, folder: Path, rows: Any, policy: str) -> None:
        """Write what the run rests on beside its journal, unless an earlier run with the same origin has."""
        votes = self.voting
        settings = (
            f"votes: {votes.measure} from {votes.target:g}, stopping: {votes.stopping}, "
            f"drawn {votes.draw.replace('_', ' ')}; "
            f"answers extracted by {', '.join(votes.form.extract)}, compared by {votes.form.compare}"
        )
        origin = RunAbout.now(
            policy,
            command=self._command,
            profile=self._config,
            data=rows.name,
            data_digest=rows.sha256(),
            settings=settings,
        )
        before = about(folder)
        if before is None or not before.is_like(origin):
            origin.save(folder)

    def report(self, title: str, folder: Path, runs: Mapping[str, Path], rows: Any) -> tuple[Path, Path]:
        """Write a report on runs (name and folder) over ``rows``, as Markdown and as a self-contained HTML page.

        Further runs of the report's folder are compared, too, if they have the same rows.
        """
        from workflow_composer.batch.report.report import build_report

        wanted = max(rows_in(place / JOURNAL, self._limit) for place in runs.values())
        others, notes = other_runs(folder, JOURNAL, known=runs, rows=wanted, count=partial(rows_in, limit=self._limit))
        every = {**runs, **others}
        sources = {name: partial(records, place / JOURNAL, self._limit) for name, place in every.items()}
        origins = {name: found for name, place in every.items() if (found := about(place)) is not None}
        if self._recorded is not None:
            notes.append("The answers were replayed from a recording, so the seconds that the models took are unknown.")
        if self._recorded is not None and self._recorded is not rows:
            notes += [line for name, place in runs.items() if (line := self._agreement(name, place, rows))]
        texts = build_report(
            sources,
            title=title,
            tiers=tuple(self._config.tiers),
            notes=notes,
            origins=origins,
            timed=self._recorded is None,
        )
        places = folder / "report.md", folder / "report.html"
        for place, text in zip(places, texts, strict=True):
            replace_file(place, text, mode=0o600)  # it may quote an answer
        return places

    def _agreement(self, name: str, folder: Path, rows: Any) -> str:
        """Return how often the grades are those of the recording, for single answers; empty if there are none."""
        assert self._recorded is not None  # the caller has checked
        found = agreement(records(folder / JOURNAL, self._limit), rows.rows(), self._recorded.right)
        same, known = found
        return f"{name}: {same / known:.1%} of {known:,} grades are those of the recording." if known else ""


def agreement(
    found: Iterable[RowRecord], rows: Iterable[Any], right: Callable[[str, str, int], bool | None]
) -> tuple[int, int]:
    """Return how many grades of single answers are those of a recording (``right``), and how many both know."""
    questions = {row.row: row.question for row in rows}
    same = known = 0
    for record in found:
        tier = record.tiers[record.tier] if record.tiers else None
        if record.error is not None or record.correct is None or tier is None or tier.samples != 1:
            continue
        recorded = right(tier.model, str(questions.get(record.row, "")), 0)
        known += recorded is not None
        same += recorded is record.correct
    return same, known


def rows_in(journal: Path, limit: int | None) -> int:
    """Return the number of rows of a journal, up to ``limit``, that have ended."""
    with journal.open("rb") as file:
        lines = whole_lines(file, journal)
        next(lines, None)
        return len({row for line in lines if (row := head_of(line).row) < (limit or row + 1)})


def finish(folder: Path, tally: Tally, rows: int) -> None:
    """Write a run's result files, of the first ``rows`` rows; count in ``tally`` the rows as they stand there."""
    written = write_results(folder / JOURNAL, folder, rows=rows)
    tally.unreadable, tally.cut_off, tally.unpriced = written.unreadable, written.cut_off, written.unpriced
    tally.graded, tally.correct = written.graded, written.correct


def spent_in(journal: Path) -> float:
    """Return the cost (dollars) of all runs of a journal; 0 if it does not exist. Raises `InputError` if it is damaged."""
    if not journal.exists():
        return 0.0
    with journal.open("rb") as file:
        lines = whole_lines(file, journal)
        next(lines, None)
        return sum(head_of(line).cost for line in lines)


def slug(policy: str) -> str:
    """Return a readable, unique folder name for a policy or a route."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", policy).strip(".")
    if plain == policy and len(plain) <= 120:
        return plain
    return f"{plain[:100]}-{hashlib.sha256(policy.encode()).hexdigest()[:8]}"


_LABELS = 1000
"""As many of a data set's first labels tell the kind of its answers."""


def _kind_of(rows: Any) -> Kind | None:
    return kind_of_labels(label for row in islice(rows.rows(), _LABELS) if (label := row.label) is not None)
