"""Printing tables and JSON."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from workflow_composer.errors import AnswersUnreadable

if TYPE_CHECKING:
    from workflow_composer.batch.run.tally import Tally

SOME_FAILED = 1
"""Exit code of a run in which some rows failed."""

# ------------------------------------------------------------------------------------------------------------------ unread
#
# The message about unreadable answers: how many, why, and the remedy.


ENDING = 'have the model end with a line such as "The answer is 18." (--system)'


def tell_unread(unreadable: int, answers: int, *, cut_off: int, remedy: str, whose: str = "") -> None:
    """Print the number of unreadable answers and the remedies to standard error; print nothing if there are none."""
    if not unreadable:
        return
    start = f"{whose}: " if whose else ""
    click.echo(f"{start}{unreadable} of {answers} answers could not be read; they count as wrong", err=True)
    if cut_off:
        click.echo(f"hint: {cut_off} of them reached the token limit: raise --max-tokens", err=True)
    if unreadable > cut_off:
        click.echo(f"hint: {remedy}", err=True)


def code_of(tallies: Iterable[Tally]) -> int:
    """Return the exit code of finished runs: 1 if rows failed, 7 if too many graded answers cannot be read, otherwise 0."""
    runs = list(tallies)
    if any(tally.errors for tally in runs):
        return SOME_FAILED
    return AnswersUnreadable.exit_code if any(tally.graded and tally.is_unreliable for tally in runs) else 0


# ------------------------------------------------------------------------------------------------------------------- costs


def cost_text(amount: float, unknown: int, unit: str = "row") -> str:
    """Format a cost of which ``unknown`` rows (or other units) are not (or only partly) known.

    >>> cost_text(1.25, 0), cost_text(1.25, 3), cost_text(0.0, 3)
    ('$1.25', 'at least $1.25 (3 rows unknown)', 'unknown')
    """
    if not unknown:
        return dollars(amount)
    return f"at least {dollars(amount)} ({unknown} {unit}{'s' * (unknown != 1)} unknown)" if amount else "unknown"


def known_cost(amount: float, unknown: int) -> float | None:
    """Return a cost for JSON: None if nothing of it is known."""
    return None if unknown and not amount else amount


def tell_no_price(amount: float, unknown: int) -> None:
    """Explain a cost that is not known, on standard error."""
    if unknown and not amount:
        click.echo(
            "note: the cost is unknown, because the profile has no prices or the server reports no tokens; "
            "a model that is free of charge has input_price: 0 and output_price: 0",
            err=True,
        )


def print_json(value: Any, *, err: bool = False) -> None:
    """Print a value as JSON, in ASCII so that any terminal or pipe can carry it."""
    click.echo(json.dumps(value, indent=2), err=err)


def print_differences(differences: Sequence[str], same: str, *, json: bool) -> int:
    """Print the differences between a certificate and its data, or else ``same``; return the exit code."""
    if json:
        print_json({"verified": not differences, "differences": list(differences)})
    else:
        for line in differences or (same,):
            click.echo(line)
    return 1 if differences else 0


def print_table(headers: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> None:
    """Print a table: with borders on a terminal, as plain columns otherwise."""
    texts = [["" if cell is None else str(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _draw(headers, texts, title)
        return
    if title:
        click.echo(title)
    lines = [list(headers), *texts]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _draw(headers: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(printable(title)) if title else None, title_justify="left")
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console().print(table)


def printable(text: str) -> str:
    """Return the text without control characters except newlines and tabs, so that it cannot control the terminal."""
    if text.isprintable():
        return text
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


def dollars(amount: float) -> str:
    """Format an amount with enough decimal places to show it.

    >>> dollars(12.5), dollars(0.0123), dollars(0.0000042), dollars(0)
    ('$12.50', '$0.0123', '$0.0000042', '$0.00')
    """
    if amount == 0 or abs(amount) >= 1:
        return f"${amount:.2f}"
    places = 2
    while places < 12 and abs(amount) < 10 ** (1 - places):
        places += 1
    return f"${amount:.{places + 1}f}".rstrip("0").ljust(5, "0")


def percent(share: float | None) -> str:
    """Format a share between 0 and 1 in percent; a dash if it is None."""
    return "-" if share is None else f"{share:.1%}"
