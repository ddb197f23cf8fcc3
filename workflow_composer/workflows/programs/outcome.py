"""What became of a program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

EndedBy = Literal["time", "memory", "processes", "output"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramOutcome:
    """A program's end: its exit code, its standard output, and the last part of its standard error, as text.

    ``ended_by`` is the limit that ended it; None: it ended by itself. An exit code below zero is the number of the signal
    that ended it. ``written`` counts the bytes of standard output; ``shortened``: only the end of it was kept.
    """

    exit_code: int
    output: str
    errors: str
    seconds: float
    ended_by: EndedBy | None = None
    written: int = 0
    shortened: bool = False

    @property
    def passed(self) -> bool:
        """Whether it ended by itself, with exit code 0."""
        return self.exit_code == 0 and self.ended_by is None

    def end(self) -> str:
        """Say how it ended, and nothing of what it wrote: fit for reports on private data."""
        if self.ended_by is not None:
            what = {"time": "it ran too long", "memory": "it used too much memory", "output": "it wrote too much"}
            return f"the program was ended: {what.get(self.ended_by, 'it started too many processes')}"
        if self.exit_code < 0:
            return f"the program was ended by signal {-self.exit_code}"
        return f"the program ended with exit code {self.exit_code}"
