"""Who gets to read a question, its answer, or words of either, and what each may have of a private one: the one list.

Whatever is added and reads a request (a judge, a gate, a second opinion, a log) gets a line here, and asks `may_read` where
it would read. What a line's rule promises is kept by the place that the line names.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from workflow_composer.types import LLMRequest


class ReadRule(NamedTuple):
    """What a reader may have of a private request: whether its texts at all, and where or what in words."""

    texts: bool
    told: str


OWN = ReadRule(True, "only on the person's own machines, by no proxy, and with nothing to fall back to elsewhere")
OFFLINE = ReadRule(True, "without a network, unless the step is trusted and the profile agrees")
HERE = ReadRule(True, "on this machine, for the person who runs it")
NOTHING = ReadRule(False, "nothing")
FIGURES = ReadRule(False, "kinds, numbers, digests and lengths")


class DataReader(Enum):
    """A reader: what it is, and its rule."""

    MODEL = ("a model that answers, by whatever route", OWN)
    JUDGE = ("a model that judges answers, of accept and release", OWN)
    EMBEDDING = ("a model that groups votes by their meaning", OWN)
    ROUTER = ("a router that plans, within this process", HERE)
    PROGRAM = ("a program or function: a step, a check of accept or release, a step of a plugin", OFFLINE)
    PERSON = ("a person who is asked", HERE)
    JOURNAL = ("the journal, the tables that are written, and open questions", HERE)
    CHANGER = ("before_route of plugins", NOTHING)
    LISTENER = ("after_answer, on_fallback and on_escalation of plugins", NOTHING)
    LEARNER = ("a router that learns from requests or answers, and its audits", NOTHING)
    DECISION_LOG = ("the log of decisions with debugging on, and the prompt in its metric line", NOTHING)
    RECORD = ("logs, metrics, traces, error texts, reports, the dashboard, file names, arguments of processes", FIGURES)

    @property
    def what(self) -> str:
        """What it is, in words."""
        return self.value[0]

    @property
    def rule(self) -> ReadRule:
        """What it may have of a private request."""
        return self.value[1]


def may_read(reader: DataReader, request: LLMRequest) -> bool:
    """Return whether a reader may have the texts of a request and of its answer."""
    return not request.private or reader.rule.texts
