"""The numbers of a report as texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from workflow_composer.batch.report.comparison import COST, SECONDS, TOKENS, RunFigures
from workflow_composer.batch.report.document import Cell
from workflow_composer.batch.report.statistics import IntervalEstimate

UNKNOWN = "-"
"""A figure that there is not, such as a difference of a run from itself."""

UNITS = {COST: "cost of 1,000", TOKENS: "tokens", SECONDS: "seconds"}


def share(estimate: IntervalEstimate) -> tuple[str, str]:
    """A share of questions in percent, with its interval."""
    return f"{estimate.value:.1%}", interval(estimate, lambda value: f"{value:.1%}")


def shown_share(estimate: IntervalEstimate) -> str:
    """The same as one text."""
    return f"{estimate.value:.1%} ({interval(estimate, lambda value: f'{value:.1%}')})"


def interval(estimate: IntervalEstimate, form: Callable[[float], str]) -> str:
    """An interval, or nothing if it is undefined."""
    return "" if math.isnan(estimate.low) else f"{form(estimate.low)} to {form(estimate.high)}"


def points(share: float) -> str:
    """A difference of shares in percentage points."""
    return f"{100 * share:+.1f}"


def times(ratio: float) -> str:
    """A ratio."""
    return f"{ratio:.2f}"


def money(amount: float) -> str:
    """Dollars with three significant digits."""
    return f"-${number(-amount)}" if amount < 0 else f"${number(amount)}"


def number(amount: float) -> str:
    """Format three significant digits without an exponent.

    >>> number(1234.5), number(0.0000512), number(0.5), number(0)
    ('1,234', '0.0000512', '0.500', '0')
    """
    if amount == 0 or not math.isfinite(amount):
        return "0" if amount == 0 else UNKNOWN
    return f"{amount:,.{max(2 - math.floor(math.log10(abs(amount))), 0)}f}"


def whole(amount: float) -> str:
    """A count per question."""
    return f"{amount:,.0f}"


def cost(run: RunFigures) -> Cell:
    """The cost of 1,000 questions: with its interval, as a lower bound, or unknown."""
    per_row = run.cost_per_row
    if not run.unpriced:
        return money(1000 * per_row.value), interval(per_row, lambda value: money(1000 * value))
    if not run.cost:
        return "unknown"
    return f"at least {money(1000 * per_row.value)}", f"{plural(run.unpriced, 'row')} unknown"


def tokens(run: RunFigures) -> Cell:
    """The tokens of a question: with their interval, as a lower bound, or unknown."""
    per_row = run.tokens_per_row
    if not run.uncounted:
        return whole(per_row.value), interval(per_row, whole)
    if not per_row.value:
        return "unknown"
    return f"at least {whole(per_row.value)}", f"{plural(run.uncounted, 'row')} unknown"


def seconds(run: RunFigures) -> Cell:
    """The seconds of a question."""
    return number(run.seconds_per_row.value), interval(run.seconds_per_row, number)


def p_value(p: float | None) -> str:
    """A p-value; a difference that is not significant says so.

    >>> p_value(0.00001), p_value(0.031), p_value(0.4), p_value(None)
    ('under 0.001', '0.031', '0.40', '-')
    """
    if p is None:
        return UNKNOWN
    return "under 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def plural(count: int, noun: str) -> str:
    """A count with its noun."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """Names as a list in a sentence."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def cut(text: str, most: int = 300) -> str:
    """A text of at most this length."""
    return text if len(text) <= most else f"{text[:most]}…"
