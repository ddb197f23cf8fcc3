"""The report on a data set's runs: Markdown, and one HTML page with the same numbers and figures.

Records are streamed once and summed (`RunSummary`); `workflow_composer.batch.report.comparison` computes the figures. This
module only formats them as text and tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from workflow_composer.batch.report import plots
from workflow_composer.batch.report.cells import (
    UNKNOWN,
    cost,
    cut,
    interval,
    listed,
    money,
    p_value,
    plural,
    points,
    seconds,
    share,
    times,
    tokens,
)
from workflow_composer.batch.report.comparison import (
    COST,
    NOTHING,
    SECONDS,
    SIGNIFICANT,
    TOKENS,
    Comparison,
    RunFigures,
    TierUse,
    compare,
)
from workflow_composer.batch.report.document import (
    Block,
    Bullets,
    Cell,
    Document,
    Figure,
    ReportTable,
    Section,
    as_html,
    as_markdown,
)
from workflow_composer.batch.report.findings import findings
from workflow_composer.batch.report.proportions import share_of
from workflow_composer.batch.report.provenance import RunAbout, rests_on
from workflow_composer.batch.report.run_summary import DRAWS, RunSummary
from workflow_composer.batch.report.statistics import GROUPS, IntervalEstimate
from workflow_composer.batch.run.records import RowRecord
from workflow_composer.batch.run.tally import MOST_UNREADABLE
from workflow_composer.errors import InputError

Records = Callable[[], Iterable[RowRecord]]
"""Returns an iterable over all records of a run, each time it is called."""


def build_report(
    runs: Mapping[str, Records],
    *,
    title: str,
    tiers: Sequence[str] = (),
    reference: str | None = None,
    notes: Sequence[str] = (),
    origins: Mapping[str, RunAbout] | None = None,
    timed: bool = True,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[str, str]:
    """Return Markdown and HTML that compare runs (name -> records) over the same rows of one data set.

    Baselines are ordinary runs. ``tiers`` are ordered from cheap to strong (default: order of occurrence); ``reference``
    names the run that others are compared with (default: see `compare`); ``notes`` are lines at the top; ``origins`` say
    what the runs rest on. Not ``timed``: the answers were replayed, so that seconds say nothing about the models. If runs
    have different rows, only their common rows are compared, and the report says so.

    Raises `InputError` if there is no run, or no row that all runs have.
    """
    summaries, left_out = _summaries(runs)
    comparison = compare(summaries, reference=reference, timed=timed, resamples=resamples, seed=seed)
    met = dict.fromkeys(use.name for run in comparison.runs for use in run.tiers)
    order = [*(tier for tier in tiers if tier in met), *(tier for tier in met if tier not in tiers)]
    document = Document(
        title=title,
        subtitle=f"{comparison.questions:,} questions, {plural(len(summaries), 'run')}",
        summary=(*findings(comparison), *_left_out(left_out), *notes),
        sections=[section for section in _sections(comparison, order, origins or {}) if section.blocks],
    )
    return as_markdown(document), as_html(document)


def _summaries(runs: Mapping[str, Records]) -> tuple[list[RunSummary], int]:
    """Return the sums of each run over the rows that all runs have, and the number of other rows."""
    if not runs:
        raise InputError("a report needs at least one run", hint="add a policy or a route")
    summaries = [RunSummary.of(name, records()) for name, records in runs.items()]
    longest = max(len(summary.seen) for summary in summaries)
    everywhere = _padded(summaries[0], longest)
    anywhere = everywhere.copy()
    for summary in summaries[1:]:
        everywhere &= _padded(summary, longest)
        anywhere |= _padded(summary, longest)
    if not everywhere.any():
        raise InputError("the runs have no rows in common", hint="compare runs over the same rows of one data set")
    left_out = int(anywhere.sum() - everywhere.sum())
    if left_out:
        summaries = [RunSummary.of(name, records(), only=everywhere) for name, records in runs.items()]
    return summaries, left_out


def _padded(summary: RunSummary, length: int) -> Any:
    import numpy as np

    return np.pad(summary.seen, (0, length - len(summary.seen)))


# ------------------------------------------------------------------------------------------------------- the sections


def _sections(comparison: Comparison, tiers: Sequence[str], origins: Mapping[str, RunAbout]) -> list[Section]:
    numbered = list(enumerate(comparison.runs, 1))
    return [
        Section(_TITLES[comparison.basis], _accuracy(comparison)),
        Section("Errors and unreadable answers", _faults(numbered)),
        Section("What each tier accepted", _by_tier([(n, run) for n, run in numbered if len(run.tiers) > 1])),
        Section("Accepted answers", _accepted([(n, run) for n, run in numbered if run.doubted])),
        Section("Which tier decided", _shares([(n, run) for n, run in numbered if len(run.tiers) > 1], tiers)),
        Section("What each escalation bought", _escalations([(n, run) for n, run in numbered if run.steps])),
        Section("Calibration of confidence", _confidence([(n, run) for n, run in numbered if run.bins])),
        Section("At least one right sample (pass@k)", _passes([(n, run) for n, run in numbered if run.passes or run.early])),
        Section("What this report rests on", rests_on(comparison, origins)),
        Section("How to read this report", _reading(comparison)),
    ]


_TITLES = {
    COST: "Accuracy and cost",
    TOKENS: "Accuracy and tokens",
    SECONDS: "Accuracy and seconds",
    NOTHING: "Accuracy",
}


def _accuracy(comparison: Comparison) -> tuple[Block, ...]:
    graded = any(run.accuracy is not None for run in comparison.runs)
    blocks: list[Block] = []
    best = [f"run {n} ({run.name})" for n, run in enumerate(comparison.runs, 1) if run.best]
    if best and comparison.basis:
        takes = {COST: "cost for 1,000 questions", TOKENS: "tokens for each question", SECONDS: "seconds for each question"}
        cheaper = {COST: "cheaper", TOKENS: "shorter", SECONDS: "faster"}[comparison.basis]
        blocks.append(
            Figure(
                plots.accuracy_against_cost(comparison),
                f"Accuracy of each run against its {takes[comparison.basis]}. No run is both better and {cheaper} than "
                f"{listed(best)}. The table below has the numbers.",
                "Bars are 95 % intervals. Numbers refer to the table. Runs with many unreadable answers are left out.",
            )
        )
    elif not graded:
        blocks.append("The data set has no labels, so accuracy is unknown.")
    blocks.append(_accuracy_table(comparison, graded=graded))
    return tuple(blocks)


def _accuracy_table(comparison: Comparison, *, graded: bool) -> ReportTable:
    reference = comparison.reference
    bases = {COST: [COST], TOKENS: [TOKENS, SECONDS] if comparison.timed else [TOKENS], SECONDS: [SECONDS], NOTHING: []}
    ratios = [] if reference is None else bases[comparison.basis]
    compared = ["difference in points"] if reference is not None and graded else []
    compared += [f"{basis} ratio" for basis in ratios]
    compared += ["p"] if reference is not None and graded else []
    head = ("#", "run", "right", "cost of 1,000", *compared, *(["rank"] if graded else []), "tokens", "seconds")
    places = {run.name: place for place, (run, _) in enumerate(comparison.ranking, 1)}
    rows = []
    for number, run in enumerate(comparison.runs, 1):
        apart = run.name == reference
        row: list[Cell] = [str(number), (run.name, run.kind + (", reference" if apart else ""))]
        row += [UNKNOWN if run.accuracy is None else share(run.accuracy), cost(run)]
        if reference is not None and graded:
            row.append(UNKNOWN if run.lead is None or apart else (points(run.lead.value), interval(run.lead, points)))
        row += [_ratio_cell(run, basis, apart=apart) for basis in ratios]
        if reference is not None and graded:
            row.append(p_value(run.p_value))
        if graded:
            row.append(str(places[run.name]) if run.name in places else ("not ranked", _why_not(run)))
        rows.append((*row, tokens(run), seconds(run) if comparison.timed else "unknown"))
    note = "Tokens (prompt and answer) and seconds are means per question, including rejected tiers and failed attempts."
    if reference is not None:
        note += f" Points, ratios and p compare with {reference}, question by question."
    return _table("Every run on the same questions", head, rows, note)


def _ratio_cell(run: RunFigures, basis: str, *, apart: bool) -> Cell:
    ratio = run.ratios.get(basis)
    return UNKNOWN if ratio is None or apart else (times(ratio.value), interval(ratio, times))


def _why_not(run: RunFigures) -> str:
    return "no labels" if run.accuracy is None else f"{run.unreadable.value:.1%} unreadable"


def _table(caption: str, head: tuple[str, ...], rows: Sequence[tuple[Cell, ...]], note: str = "") -> ReportTable:
    """Return a table of numbers whose second column is the name."""
    return ReportTable(caption, head, tuple(rows), frozenset(range(len(head))) - {1}, 1, note)


def _accepted(runs: Sequence[tuple[int, RunFigures]]) -> tuple[Block, ...]:
    if not runs:
        return ()
    rows = []
    for number, run in runs:
        right = run.accepted_right
        wrong: Cell = UNKNOWN
        if right is not None:
            wrong = (f"{1 - right.value:.1%}", f"{1 - right.high:.1%} to {1 - right.low:.1%}")
        rows.append((str(number), run.name, share(run.accepted), wrong, f"{run.doubted:,}"))
    head = ("#", "run", "accepted", "wrong among accepted", "returned but not accepted")
    note = (
        "If no tier accepts its answer, the last tier's is returned. A certificate limits the wrong ones among the accepted."
    )
    return (_table("Accepted answers, and errors among them", head, rows, note),)


def _by_tier(runs: Sequence[tuple[int, RunFigures]]) -> tuple[Block, ...]:
    """Return what each tier accepted and how often it was wrong: the risk that a cheap tier takes."""
    if not runs:
        return ()
    rows = []
    for number, run in runs:
        for use in run.tiers:
            wrong: Cell = UNKNOWN if not use.checked else (share(use.wrong)[0], f"{share(use.wrong)[1]}, of {use.checked:,}")
            rows.append((str(number), use.name, f"{use.rows:,}", share(use.accepted), wrong))
    head = ("#", "tier", "asked", "accepted", "wrong among accepted")
    note = "Answers that a tier accepted end the question. The last column counts those with a label."
    return (_table("Accepted answers of each tier, and errors among them", head, rows, note),)


def _shares(runs: Sequence[tuple[int, RunFigures]], tiers: Sequence[str]) -> tuple[Block, ...]:
    if not runs:
        return ()
    tiers = [tier for tier in tiers if any(use.name == tier for _, run in runs for use in run.tiers)]
    rows = []
    for number, run in runs:
        uses = {use.name: use for use in run.tiers}
        rows.append((str(number), run.name, *(_decided(uses.get(tier), run.rows) for tier in tiers)))
    table = _table("Share of questions that each tier decided", ("#", "run", *tiers), rows)
    alt = "For each run, the share of questions that each tier decided; the table below has the numbers."
    return (Figure(plots.shares(runs, tiers), alt), table)


def _decided(use: TierUse | None, rows: int) -> Cell:
    if use is None:
        return UNKNOWN
    value, inside = share(share_of(use.decided, rows))
    return value, f"{inside}; ran for {use.rows / rows:.1%}"


def _escalations(runs: Sequence[tuple[int, RunFigures]]) -> tuple[Block, ...]:
    if not runs:
        return ()
    rows = []
    for number, run in runs:
        for step in run.steps:
            known = step.known > 0
            spent = "unknown" if step.cost is None else money(step.cost)
            price = UNKNOWN if not known else "no gain" if step.per_right is None else money(step.per_right)
            if step.cost is None and step.per_right is not None:
                price = "unknown"
            passed_on = (f"{step.rows:,}", f"{step.share:.1%}: {share(share_of(step.rows, run.rows))[1]}")
            counts = (step.before * step.known, step.after * step.known)
            right = [share(share_of(round(count), step.known)) if known else UNKNOWN for count in counts]
            gain: Cell = (points(step.gain.value), interval(step.gain, points)) if known else UNKNOWN
            rows.append((str(number), f"{step.before_tier} to {step.tier}", passed_on, *right, gain, spent, price))
    head = ("#", "step", "escalated", "right before", "right after", "points gained", "cost", "per right answer")
    note = (
        "For the questions that escalated: the share that the first tier's leading answer had right, and the share of the "
        "next tier's answer. The cost is the next tier's for these questions; the last column divides it by the right "
        "answers gained."
    )
    blocks: list[Block] = []
    if any(step.known for _, run in runs for step in run.steps):
        alt = "Share of right answers before and after each escalation; the table below has the numbers."
        blocks.append(Figure(plots.escalations(runs), alt))
    return (*blocks, _table("Escalations", head, rows, note))


def _confidence(runs: Sequence[tuple[int, RunFigures]]) -> tuple[Block, ...]:
    if not runs:
        return ()
    drawn = runs[: plots.MOST_PANELS]
    alt = "Share of right answers against confidence, one panel per run; the tables below have the numbers."
    caption = "On the dashed line, confidence is perfectly calibrated. A point's area grows with its number of answers."
    if len(drawn) < len(runs):
        caption += f" Shown are the first {len(drawn)} of {len(runs)} runs."
    errors = []
    for number, run in runs:
        assert run.calibration is not None  # there are bins
        known = sum(part.count for part in run.bins)
        gap: Cell = (f"{run.calibration.value:.3f}", interval(run.calibration, lambda value: f"{value:.3f}"))
        errors.append((str(number), run.name, f"{known:,}", gap, f"{run.floor:.3f}"))
    overview = _table(
        "Expected calibration error (ECE)",
        ("#", "run", "answers with a confidence", "ECE", "if perfect"),
        errors,
        "The mean difference between confidence and the share of right answers, over ten bins of equal width. The last "
        "column is the value of perfectly calibrated confidences on as many answers, by chance alone.",
    )
    bins = [
        (
            str(number),
            f"{part.low:.1f} to {part.high:.1f}",
            f"{part.count:,}",
            f"{part.confidence:.3f}",
            share(part.right),
        )
        for number, run in runs
        for part in run.bins
    ]
    head = ("#", "confidence", "answers", "mean", "right")
    return (Figure(plots.reliability(drawn), alt, caption), overview, _table("Bins", head, bins))


def _passes(runs: Sequence[tuple[int, RunFigures]]) -> tuple[Block, ...]:
    if not runs:
        return ()
    used = [k for k in DRAWS if any(k == at for _, run in runs for found in run.passes for at, _, _ in found.at)]
    rows = []
    for number, run in runs:
        for found in run.passes:
            by_k = {k: (f"{passed.value:.1%}", _of(passed, count)) for k, passed, count in found.at}
            rows.append((str(number), found.tier, *(by_k.get(k, UNKNOWN) for k in used)))
    blocks: list[Block] = []
    if early := [f"{tier} (run {number})" for number, run in runs for tier in run.early]:
        blocks.append(
            f"Left out: {listed(early)}. Their votes may end early or go on, so that the number of samples depends on the "
            "answers, which biases the estimate. Run them with --stopping fixed to estimate pass@k."
        )
    note = (
        "The probability that at least one of k samples is right: the unbiased estimate from all samples of a tier, of rows "
        "whose number of samples was fixed in advance; with the number of questions that have at least k samples. Cascades "
        "that end before a tier exclude the easier questions: compare only cells with equal numbers of questions."
    )
    if rows:
        blocks.append(_table("pass@k", ("#", "tier", *(f"pass@{k}" for k in used)), rows, note))
    return tuple(blocks)


def _of(estimate: IntervalEstimate, count: int) -> str:
    return f"{share(estimate)[1]}, of {count:,}"


def _faults(runs: Sequence[tuple[int, RunFigures]]) -> tuple[Block, ...]:
    rows = []
    for number, run in runs:
        samples, unreadable = sum(use.samples for use in run.tiers), sum(use.unreadable for use in run.tiers)
        votes: Cell = (f"{unreadable:,}", f"{unreadable / samples:.1%} of {samples:,}") if samples else UNKNOWN
        unread = (f"{run.unread:,}", f"{run.unreadable.value:.1%}: {share(run.unreadable)[1]}") if run.unread else "0"
        counts = (f"{run.failed:,}", unread, f"{run.cut_off:,}", votes, f"{run.doubted:,}")
        rows.append((str(number), run.name, *counts))
    head = (
        "#",
        "run",
        "failed rows",
        "unreadable answers",
        "of these cut off",
        "unreadable samples",
        "returned but not accepted",
    )
    blocks: list[Block] = [_table("Failures", head, rows)]
    errors = [
        (str(number), kind, f"{count:,}", f"row {row}: {cut(message)}")
        for number, run in runs
        for kind, count, row, message in run.errors
    ]
    if errors:
        blocks.append(ReportTable("Errors", ("#", "error", "rows", "first occurrence"), tuple(errors), frozenset({0, 2}), 1))
    return tuple(blocks)


def _reading(comparison: Comparison) -> tuple[Block, ...]:
    dealt = (
        f" Questions were divided into {GROUPS:,} random groups, and groups were resampled." if comparison.grouped else ""
    )
    passes = ", pass@k" if any(run.passes for run in comparison.runs) else ""
    return (
        Bullets(
            (
                "Right: the answer was graded as correct against the data set's label. Failed rows and unreadable answers "
                "count as wrong; rows without a label count only in costs.",
                f"A run with more than {MOST_UNREADABLE:.0%} unreadable answers is not ranked.",
                "Costs are by the profile's prices and include rejected tiers and failed attempts. A missing price, or a "
                "missing count of tokens, makes a cost unknown; a sum with unknown parts is a lower bound.",
                "Intervals are 95 % intervals. Shares of questions: Wilson's score interval (Wilson 1927; Brown, Cai and "
                "DasGupta 2001). Differences of shares between runs or tiers on the same questions: adjusted Wald interval "
                f"for paired shares (Bonett and Price 2012). Means, ratios{passes} and ECE: the middle 95 % over "
                f"{comparison.resamples:,} data sets resampled from these questions with replacement (percentile "
                "bootstrap, Efron and Tibshirani 1993), the same resamples for all runs; they are too narrow with fewer "
                f"than about 50 questions.{dealt}",
                "p: McNemar's exact test (1947) on the questions that only one of two runs has right, adjusted by Holm's "
                f"method (1979) for the number of comparisons. Above {SIGNIFICANT:g} the runs are not told apart.",
                "The intervals cover the choice of questions, if they are a random sample of the questions of interest. "
                "They do not cover variation between repeated runs (each question was run once), wrong labels or wrong "
                "grading, other kinds of questions, other prices, or the selection of the best of many runs, which looks "
                "better than it is.",
            )
        ),
    )


def _left_out(rows: int) -> list[str]:
    if not rows:
        return []
    return [f"{plural(rows, 'row')} missing in some runs {'is' if rows == 1 else 'are'} left out."]
