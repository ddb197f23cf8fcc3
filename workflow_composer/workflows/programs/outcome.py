"""What became of a program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramOutcome:
    """A program's end: its exit code, its standard output, and the last part of its standard error, as text.

    ``ended_by`` is the limit that ended it; None: it ended by itself.
    """

    exit_code: int
    output: str
    errors: str
    seconds: float
    ended_by: Literal["time", "memory", "processes", "output"] | None = None
