"""The report on a data set's runs: Markdown, and one HTML page with the same numbers and figures.

Records are streamed once and summed (`RunSummary`); `workflow_composer.batch.report.comparison` computes the figures. This
module only formats them as text and tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from workflow_composer.batch.report import plots
from workflow_composer.batch.report.comparison import CASCADE, Comparison, RunFigures, compare
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
from workflow_composer.batch.report.run_summary import DRAWS, RunSummary
from workflow_composer.batch.report.statistics import GROUPS, IntervalEstimate
from workflow_composer.batch.run.records import RowRecord
from workflow_composer.errors import InputError

Records = Callable[[], Iterable[RowRecord]]
"""Returns an iterable over all records of a run, each time it is called."""

_UNKNOWN = "-"


def build_report(
    runs: Mapping[str, Records],
    *,
    title: str,
    tiers: Sequence[str] = (),
    reference: str | None = None,
    notes: Sequence[str] = (),
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[str, str]:
    """Return Markdown and HTML that compare runs (name -> records) over the same rows of one data set.

    Baselines are ordinary runs. ``tiers`` are ordered from cheap to strong (default: order of occurrence); ``reference``
    names the run that others are compared with (default: the most expensive single-tier run); ``notes`` are lines at the
    top. If runs have different rows, only their common rows are compared, and the report says so.

    Raises `InputError` if there is no run, or no row that all runs have.
    """
    summaries, left_out = _summaries(runs)
    comparison = compare(summaries, reference=reference, resamples=resamples, seed=seed)
    met = dict.fromkeys(use.name for run in comparison.runs for use in run.tiers)
    order = [*(tier for tier in tiers if tier in met), *(tier for tier in met if tier not in tiers)]
    document = Document(
        title=title,
        subtitle=f"{comparison.questions:,} questions, {_plural(len(summaries), 'run')}",
        summary=(*notes, *_findings(comparison), *_left_out(left_out)),
        sections=[section for section in _sections(comparison, order) if section.blocks],
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


def _left_out(rows: int) -> list[str]:
    if not rows:
        return []
    return [f"{_plural(rows, 'row')} missing in some runs {'is' if rows == 1 else 'are'} left out."]


# ------------------------------------------------------------------------------------------------------- the summary


def _findings(comparison: Comparison) -> list[str]:
    """Return a sentence on each cascade, compared with the reference."""
    return [
        f"{run.name}: {_share(run.accuracy)} right {_beside(run, comparison.reference)}."
        for run in comparison.runs
        if run.kind == CASCADE and run.accuracy is not None
    ]


def _beside(run: RunFigures, reference: str | None) -> str:
    parts = [f"at {_money(1000 * run.cost_per_row.value)} for 1,000 questions"]
    if run.lead is not None and run.name != reference:
        points = 100 * run.lead.value
        more = "more" if points >= 0 else "less"
        inside = f"{_points(run.lead.low)} to {_points(run.lead.high)}"
        parts.append(f"{abs(points):.1f} points {more} than {reference} (95 % interval {inside})")
    if run.ratio is not None and run.name != reference:
        parts.append(f"at {run.ratio.value:.2f} times its cost")
    return ", ".join(parts)


# ------------------------------------------------------------------------------------------------------- the sections


def _sections(comparison: Comparison, tiers: Sequence[str]) -> list[Section]:
    numbered = list(enumerate(comparison.runs, 1))
    return [
        Section("Accuracy and cost", _accuracy(comparison)),
        Section("Accepted answers", _accepted([(n, run) for n, run in numbered if run.doubted])),
        Section("Which tier decided", _shares([(n, run) for n, run in numbered if len(run.tiers) > 1], tiers)),
        Section("What each escalation bought", _escalations([(n, run) for n, run in numbered if run.steps])),
        Section("Calibration of confidence", _confidence([(n, run) for n, run in numbered if run.bins])),
        Section("At least one right sample (pass@k)", _passes([(n, run) for n, run in numbered if run.passes])),
        Section("Errors and unreadable answers", _faults(numbered)),
        Section("How to read this report", _reading(comparison)),
    ]


def _accuracy(comparison: Comparison) -> tuple[Block, ...]:
    graded = any(run.accuracy is not None for run in comparison.runs)
    blocks: list[Block] = []
    if graded:
        best = [f"run {n} ({run.name})" for n, run in enumerate(comparison.runs, 1) if run.best]
        blocks.append(
            Figure(
                plots.accuracy_against_cost(comparison),
                "Accuracy of each run against its cost for 1,000 questions. No run is both better and cheaper than "
                f"{_listed(best)}. The table below has the numbers.",
                "Bars are 95 % intervals. Numbers refer to the table.",
            )
        )
    else:
        blocks.append("The data set has no labels, so accuracy is unknown.")
    blocks.append(_accuracy_table(comparison, graded=graded))
    return tuple(blocks)


def _accuracy_table(comparison: Comparison, *, graded: bool) -> ReportTable:
    reference = comparison.reference if graded else None
    compared = ["difference in points", "cost ratio"] if reference is not None else []
    head = ("#", "run", "right", "cost of 1,000", *compared, "tokens", "seconds")
    rows = []
    for number, run in enumerate(comparison.runs, 1):
        row: list[Cell] = [str(number), (run.name, run.kind + (", reference" if run.name == reference else ""))]
        row += [_accuracy_cell(run), _cost_cell(run)]
        if reference is not None:
            row += [_lead_cell(run, reference), _ratio_cell(run, reference)]
        rows.append((*row, f"{run.tokens_per_row:,.0f}", _number(run.seconds_per_row)))
    note = "Tokens (prompt and answer) and seconds are means per question, including rejected tiers and failed attempts."
    if reference is not None:
        note += f" Points and cost ratio compare with {reference}, question by question."
    return _table("Every run on the same questions", head, rows, note)


def _table(caption: str, head: tuple[str, ...], rows: Sequence[tuple[Cell, ...]], note: str = "") -> ReportTable:
    """Return a table of numbers whose second column is the name."""
    return ReportTable(caption, head, tuple(rows), frozenset(range(len(head))) - {1}, 1, note)


def _accepted(runs: Sequence[tuple[int, RunFigures]]) -> tuple[Block, ...]:
    if not runs:
        return ()
    rows = []
    for number, run in runs:
        share: Cell = (f"{run.accepted.value:.1%}", _interval(run.accepted, lambda value: f"{value:.1%}"))
        right = run.accepted_right
        wrong: Cell = _UNKNOWN
        if right is not None:
            wrong = (f"{1 - right.value:.1%}", f"{1 - right.high:.1%} to {1 - right.low:.1%}")
        rows.append((str(number), run.name, share, wrong, f"{run.doubted:,}"))
    head = ("#", "run", "accepted", "wrong among accepted", "returned but not accepted")
    note = (
        "If no tier accepts its answer, the last tier's is returned. A certificate limits the wrong ones among the accepted."
    )
    return (_table("Accepted answers, and errors among them", head, rows, note),)


def _shares(runs: Sequence[tuple[int, RunFigures]], tiers: Sequence[str]) -> tuple[Block, ...]:
    if not runs:
        return ()
    tiers = [tier for tier in tiers if any(use.name == tier for _, run in runs for use in run.tiers)]
    rows = []
    for number, run in runs:
        uses = {use.name: use for use in run.tiers}
        cells = []
        for tier in tiers:
            use = uses.get(tier)
            cells.append(
                _UNKNOWN if use is None else (f"{use.decided / run.rows:.1%}", f"ran for {use.rows / run.rows:.1%}")
            )
        rows.append((str(number), run.name, *cells))
    table = _table("Share of questions that each tier decided", ("#", "run", *tiers), rows)
    alt = "For each run, the share of questions that each tier decided; the table below has the numbers."
    return (Figure(plots.shares(runs, tiers), alt), table)


def _escalations(runs: Sequence[tuple[int, RunFigures]]) -> tuple[Block, ...]:
    if not runs:
        return ()
    rows = []
    for number, run in runs:
        for step in run.steps:
            known = step.known > 0
            price = _UNKNOWN if not known else "no gain" if step.per_right is None else _money(step.per_right)
            passed_on = (f"{step.rows:,}", f"{step.share:.1%}")
            right = (f"{step.before:.1%}", f"{step.after:.1%}") if known else (_UNKNOWN, _UNKNOWN)
            gain: Cell = (_points(step.gain.value), _interval(step.gain, _points)) if known else _UNKNOWN
            steps = f"{step.before_tier} to {step.tier}"
            rows.append((str(number), steps, passed_on, *right, gain, _money(step.cost), price))
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
        gap: Cell = (f"{run.calibration.value:.3f}", _interval(run.calibration, lambda value: f"{value:.3f}"))
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
            (f"{part.right.value:.1%}", _interval(part.right, lambda value: f"{value:.1%}")),
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
            by_k = {k: (f"{share.value:.1%}", f"{rows_:,}") for k, share, rows_ in found.at}
            rows.append((str(number), found.tier, *(by_k.get(k, _UNKNOWN) for k in used)))
    head = ("#", "tier", *(f"pass@{k}" for k in used))
    note = (
        "The probability that at least one of k samples is right, estimated from all samples of a tier; in brackets the "
        "number of questions with at least k samples. Votes that end early, and cascades that end before a tier, exclude "
        "the easier questions: compare only cells with equal numbers of questions."
    )
    return (_table("pass@k", head, rows, note),)


def _faults(runs: Sequence[tuple[int, RunFigures]]) -> tuple[Block, ...]:
    rows = []
    for number, run in runs:
        samples, unreadable = sum(use.samples for use in run.tiers), sum(use.unreadable for use in run.tiers)
        votes: Cell = (f"{unreadable:,}", f"{unreadable / samples:.1%} of {samples:,}") if samples else _UNKNOWN
        rows.append((str(number), run.name, f"{run.failed:,}", f"{run.unread:,}", votes, f"{run.doubted:,}"))
    head = ("#", "run", "failed rows", "unreadable answers", "unreadable samples", "returned but not accepted")
    blocks: list[Block] = [_table("Failures", head, rows)]
    errors = [
        (str(number), kind, f"{count:,}", f"row {row}: {_cut(message)}")
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
    return (
        Bullets(
            (
                "Right: the answer was graded as correct against the data set's label. A failed row counts as wrong; rows "
                "without a label count only in costs.",
                "Costs are by the profile's prices and include rejected tiers and failed attempts.",
                f"Intervals: the middle 95 % over {comparison.resamples:,} data sets resampled from these questions with "
                f"replacement (percentile bootstrap). All runs use the same resamples, so differences are paired.{dealt}",
                "The intervals cover the choice of questions, if they are a random sample of the questions of interest. "
                "With fewer than about 50 questions, or if nearly all answers are right, they are too narrow.",
                "They do not cover variation between repeated runs (each question was run once), wrong labels or wrong "
                "grading, other kinds of questions, other prices, or the selection of the best of many runs, which looks "
                "better than it is.",
            )
        ),
    )


# ---------------------------------------------------------------------------------------------------------- the numbers


def _accuracy_cell(run: RunFigures) -> Cell:
    if run.accuracy is None:
        return _UNKNOWN
    return f"{run.accuracy.value:.1%}", _interval(run.accuracy, lambda value: f"{value:.1%}")


def _cost_cell(run: RunFigures) -> Cell:
    return _money(1000 * run.cost_per_row.value), _interval(run.cost_per_row, lambda value: _money(1000 * value))


def _lead_cell(run: RunFigures, reference: str) -> Cell:
    if run.lead is None or run.name == reference:
        return _UNKNOWN
    return _points(run.lead.value), _interval(run.lead, _points)


def _ratio_cell(run: RunFigures, reference: str) -> Cell:
    if run.ratio is None or run.name == reference:
        return _UNKNOWN
    return f"{run.ratio.value:.2f}", _interval(run.ratio, lambda value: f"{value:.2f}")


def _share(accuracy: IntervalEstimate) -> str:
    return f"{accuracy.value:.1%} ({_interval(accuracy, lambda value: f'{value:.1%}')})"


def _interval(estimate: IntervalEstimate, form: Callable[[float], str]) -> str:
    return "" if math.isnan(estimate.low) else f"{form(estimate.low)} to {form(estimate.high)}"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def _money(amount: float) -> str:
    return f"-${_number(-amount)}" if amount < 0 else f"${_number(amount)}"


def _number(amount: float) -> str:
    """Format three significant digits without an exponent.

    >>> _number(1234.5), _number(0.0000512), _number(0.5), _number(0)
    ('1,234', '0.0000512', '0.500', '0')
    """
    if amount == 0 or not math.isfinite(amount):
        return "0" if amount == 0 else _UNKNOWN
    return f"{amount:,.{max(2 - math.floor(math.log10(abs(amount))), 0)}f}"


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _cut(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:300]}…"
