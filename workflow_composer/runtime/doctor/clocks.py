"""Clocks that disagree: entries of the registry expire by them, certificates of TLS and budgets of days begin by them."""

from __future__ import annotations

import email.utils
from collections.abc import Iterator

from workflow_composer.runtime.doctor.finding import Finding

TOLERATED = 30.0
"""Seconds by which clocks may differ: the registry's entries expire after 45, and ``Date`` has whole seconds."""
REMEDY = "synchronize the clocks (`timedatectl set-ntp true`, or chrony)"


def of_server(name: str, date: str, ours: float) -> Iterator[Finding]:
    """Compare the ``Date`` of a response with our time, in seconds since 1970, when it arrived."""
    try:
        ahead = email.utils.parsedate_to_datetime(date).timestamp() - ours
    except ValueError:
        return
    if abs(ahead) > TOLERATED:
        problem = f"its clock is {apart(ahead)} this machine's"
        yield Finding("warning", "clock", name, f"{name}: {problem}; one of the two is wrong", REMEDY)


def apart(seconds: float) -> str:
    """Say how far a clock is before or behind another.

    >>> apart(90), apart(-7200)
    ('90 s ahead of', '2 h behind')
    """
    return f"{span(abs(seconds))} {'ahead of' if seconds > 0 else 'behind'}"


def span(seconds: float) -> str:
    """Say a duration in one unit.

    >>> span(90), span(300), span(7200), span(400_000)
    ('90 s', '5 min', '2 h', '5 days')
    """
    units = (("days", 86400), ("h", 3600), ("min", 60))
    return next((f"{seconds / size:.0f} {unit}" for unit, size in units if seconds >= 2 * size), f"{seconds:.0f} s")
