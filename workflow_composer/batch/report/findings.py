"""The first lines of a report: the ranking, what each cascade is worth, and whatever would surprise a reader."""

from __future__ import annotations

from collections.abc import Iterator

from workflow_composer.batch.report.cells import cut, listed, money, number, p_value, plural, points, shown_share, whole
from workflow_composer.batch.report.comparison import (
    CASCADE,
    COST,
    SECONDS,
    SIGNIFICANT,
    TOKENS,
    Comparison,
    RunFigures,
)
from workflow_composer.batch.run.tally import MOST_UNREADABLE

REMEDY = (
    'Have the model end with a line such as "The answer is 18." (--system), or say where the answer stands '
    "(--extract line, whole, json:FIELD, …)."
)
LONGER = "Raise max_tokens (--max-tokens)."


def findings(comparison: Comparison) -> list[str]:
    """Return the sentences, the most important first."""
    return [
        *_ranking(comparison),
        *(line for run in comparison.runs for line in _warnings(run)),
        *(
            f"{run.name}: {shown_share(run.accuracy)} right {_beside(run, comparison)}".rstrip() + "."
            for run in comparison.runs
            if run.kind == CASCADE and run.is_ranked and run.accuracy is not None
        ),
        *_all_the_same(comparison),
        *_costs(comparison),
    ]


def _ranking(comparison: Comparison) -> Iterator[str]:
    if len(comparison.runs) < 2 or not comparison.ranking:
        return
    parts = []
    for place, (run, p) in enumerate(comparison.ranking, 1):
        assert run.accuracy is not None  # it is ranked
        tie = "" if p is None or p < SIGNIFICANT else f", not told apart from the one before, p = {p_value(p)}"
        parts.append(f"{place}. {run.name} {run.accuracy.value:.1%}{tie}")
    yield f"By right answers: {'; '.join(parts)}."


def _warnings(run: RunFigures) -> Iterator[str]:
    """Yield what would make a reader doubt the figures of a run."""
    if run.unread:
        yield _unreadable(run)
    if run.accuracy is not None and not run.is_ranked:
        yield (
            f"{run.name} is not ranked: more than {MOST_UNREADABLE:.0%} of its answers could not be read, so its accuracy "
            "tells more about the reading than about the model."
        )
    if run.rows and run.failed == run.rows:
        yield f"{run.name}: every row failed; the errors are listed below."
    elif run.accuracy is not None and not run.right and run.unread + run.failed < run.graded:
        yield f"{run.name}: no answer is right. {_first_wrong(run)}"


def _all_the_same(comparison: Comparison) -> Iterator[str]:
    """Yield the answers that are all that some runs have to say."""
    runs: dict[str, list[str]] = {}
    for run in comparison.runs:
        if run.only_answer is not None:
            runs.setdefault(run.only_answer, []).append(run.name)
    for answer, names in runs.items():
        yield f'{listed(names)}: every answer that could be read is "{cut(answer, 60)}".'


def _unreadable(run: RunFigures) -> str:
    answered = run.rows - run.failed
    causes = [
        (run.cut_off, f"{run.cut_off:,} of them reached their token limit. {LONGER}"),
        (run.empty, f"{run.empty:,} of them are empty."),
        (run.unread - run.cut_off - run.empty, REMEDY),
    ]
    told = " ".join(text for count, text in causes if count > 0)
    wrong = " and count as wrong" if run.graded else ""
    count = f"{run.unread:,} of {answered:,} answers ({run.unreadable.value:.1%})"
    return f"{run.name}: {count} could not be read{wrong}. {told}"


def _first_wrong(run: RunFigures) -> str:
    if run.first_wrong is None:
        return "Compare an answer with its label."
    row, answer, label = run.first_wrong
    beside = "" if label is None else f' where the label is "{cut(label, 60)}"'
    return (
        f'The first one read is "{cut(answer, 60)}" (row {row}){beside}; see --extract and --compare if it should be right.'
    )


def _costs(comparison: Comparison) -> Iterator[str]:
    if comparison.basis == COST:
        return
    bases = {TOKENS: "tokens and seconds" if comparison.timed else "tokens", SECONDS: "seconds"}
    compared = bases.get(comparison.basis, "right answers only")
    unknown = [run for run in comparison.runs if run.unpriced]
    if unknown:
        rows = sum(run.unpriced for run in unknown)
        yield (
            f"The cost of {plural(rows, 'row')} is unknown, because the profile has no prices or a server counted no "
            f"tokens: runs are compared by {compared}."
        )
    else:
        yield f"By the profile's prices every model is free of charge: runs are compared by {compared}."


def _beside(run: RunFigures, comparison: Comparison) -> str:
    reference, basis = comparison.reference, comparison.basis
    amount = run.amount(basis).value
    takes = {
        COST: f"at {money(1000 * amount)} for 1,000 questions",
        TOKENS: f"with {whole(amount)} tokens for each question",
        SECONDS: f"in {number(amount)} seconds for each question",
    }
    parts = [takes[basis]] if basis in takes else []
    if run.lead is not None and run.name != reference:
        distance = 100 * run.lead.value
        more = "more" if distance >= 0 else "less"
        inside = f"{points(run.lead.low)} to {points(run.lead.high)}"
        parts.append(f"{abs(distance):.1f} points {more} than {reference} (95 % interval {inside})")
    if basis in run.ratios and run.name != reference:
        ratio = run.ratios[basis]
        parts.append(f"at {ratio.value:.2f} times its {'cost' if basis == COST else basis}")
    return ", ".join(parts)
