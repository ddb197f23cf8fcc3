"""RowRecord: what is written down about one finished row, and its form as JSON.

The journal, the result files and the report all hold this one record.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple


class Head(NamedTuple):
    """What counting needs to know of a finished row; ``error`` (type, message) where the row failed.

    ``deciding`` names the tier that decided. An answer is ``unreadable`` where no final answer was found in it, and
    ``cut_off`` where that is because its length ended it.
    """

    row: int
    error: tuple[str, str] | None
    deciding: str
    correct: bool | None
    cost: float
    unreadable: bool = False
    cut_off: bool = False


@dataclass(frozen=True, slots=True)
class TierRecord:
    """What one tier did for a row. ``votes``: answer and count, leader first. Cost in dollars, time in seconds.

    ``texts`` are the samples' texts, unless they were left out; ``right`` says for each sample, in the order in which it
    came, whether it is right; both are empty where that is not known. ``cut_off`` of the samples were ended by their length;
    they count as ``unreadable``.
    """

    name: str
    model: str
    samples: int
    votes: tuple[tuple[str, int], ...]
    unreadable: int
    confidence: float | None
    accepted: bool
    reason: str
    prompt_tokens: int
    completion_tokens: int
    cost: float
    seconds: float
    right: tuple[bool, ...] = ()
    texts: tuple[str, ...] = ()
    cut_off: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TierRecord:
        """The inverse of `to_dict`, after JSON. Raises KeyError or TypeError where ``data`` is something else."""
        rest = {
            "votes": tuple((a, n) for a, n in data["votes"]),
            "right": tuple(data["right"]),
            "texts": tuple(data["texts"]),
        }
        return cls(**{**data, **rest})


@dataclass(frozen=True, slots=True)
class RowRecord:
    """A finished row: ``row`` is its number in the data set, from 0; ``route`` the routing string that it was sent by.

    ``tier`` is the position of the deciding tier in ``tiers``. ``answer`` is None where none could be read or the row
    failed; ``error`` is then the exception's type and message. ``correct`` is None where the row has no label. Costs
    (dollars), tokens and ``seconds`` count everything, failed attempts and rejected tiers included.
    """

    row: int
    id: str
    route: str
    answer: str | None
    confidence: float | None
    accepted: bool
    tier: int
    tiers: tuple[TierRecord, ...]
    correct: bool | None
    prompt_tokens: int
    completion_tokens: int
    cost: float
    seconds: float
    error: tuple[str, str] | None = None

    @property
    def deciding(self) -> str:
        """The deciding tier's name; empty where the row failed."""
        return self.tiers[self.tier].name if self.tiers and self.error is None else ""

    @property
    def head(self) -> Head:
        """What counting needs."""
        return Head(self.row, self.error, self.deciding, self.correct, self.cost)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data = {name: getattr(self, name) for name in self.__slots__}
        return data | {"tiers": [tier.to_dict() for tier in self.tiers]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RowRecord:
        """The inverse of `to_dict`, after JSON. Raises KeyError or TypeError where ``data`` is something else."""
        error = data["error"]
        rest = {"tiers": tuple(map(TierRecord.from_dict, data["tiers"])), "error": tuple(error) if error else None}
        return cls(**{**data, **rest})
