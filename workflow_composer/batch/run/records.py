"""RowRecord: the record of one finished row, and its JSON form.

The journal, the result files and the report all hold this one record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, NamedTuple


class Head(NamedTuple):
    """The fields of a finished row that are counted; ``error`` is (type, message) if the row failed.

    ``deciding`` names the deciding tier. ``correct`` is None without a label; a failed row with one is False. ``cost``
    (dollars) is a lower bound unless the row is ``priced``. An answer is ``unreadable`` if no final answer was found in it,
    and ``cut_off`` if that is because it reached its token limit.

    ``key`` is a digest of the row's content, empty in earlier journals; ``served`` pairs each candidate that answered with
    the model that its server reported.
    """

    row: int
    error: tuple[str, str] | None
    deciding: str
    correct: bool | None
    cost: float
    unreadable: bool = False
    cut_off: bool = False
    key: str = ""
    served: tuple[tuple[str, str], ...] = ()
    priced: bool = True


@dataclass(frozen=True, slots=True)
class TierRecord:
    """What one tier did for a row. ``votes``: answer and count, leader first. Cost in dollars, time in seconds.

    ``texts`` are the samples' texts, empty if they were not kept; ``right`` tells for each sample, in order of arrival,
    whether it is correct, empty if unknown. ``cut_off`` counts the samples that reached their token limit. ``candidate`` is
    the profile's name of the model. ``said`` has one mapping per sample with what its text does not hold (`said_of`); empty
    if there is nothing of the kind, or if texts were not kept. ``fixed``: the number of samples did not depend on the
    answers (`TierResult`). ``priced`` as in `RowRecord`.
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
    candidate: str = ""
    said: tuple[Mapping[str, Any], ...] = ()
    fixed: bool = False
    priced: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TierRecord:
        """Return the record of `to_dict` data, also after JSON. Raises KeyError or TypeError for other data."""
        rest = {
            "votes": tuple((a, n) for a, n in data["votes"]),
            "right": tuple(data["right"]),
            "texts": tuple(data["texts"]),
            "said": tuple(data.get("said", ())),
        }
        return cls(**{**data, **rest})


@dataclass(frozen=True, slots=True)
class RowRecord:
    """A finished row: ``row`` is its number in the data set, from 0; ``route`` is its routing string.

    ``tier`` is the position of the deciding tier in ``tiers``. ``answer`` is None if no answer could be read or the row
    failed; a failed row has the exception's type and message in ``error``. ``correct`` is None if the row has no label, and
    False if it has one and failed. Cost (dollars), tokens and ``seconds`` include failed attempts and rejected tiers; the
    cost of a row that is not ``priced`` is a lower bound, because a price or a server's count of tokens is missing.
    ``key`` is a digest of the row's content and route. ``question`` (a text or messages), ``label`` and ``columns`` are the
    row's, if texts are kept. ``read_by`` names the method that read the answer.
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
    key: str = ""
    question: Any = None
    label: Any = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    read_by: str | None = None
    priced: bool = True

    @property
    def unreadable(self) -> bool:
        """Whether the row has an answer in which no final answer was found."""
        return self.answer is None and self.error is None

    @property
    def cut_off(self) -> bool:
        """Whether the row is unreadable because an answer of the deciding tier reached its token limit."""
        return self.unreadable and bool(self.tiers) and self.tiers[self.tier].cut_off > 0

    @property
    def served(self) -> tuple[tuple[str, str], ...]:
        """The candidates that answered, each with the model that its server reported."""
        return tuple({tier.candidate: (tier.candidate, tier.model) for tier in self.tiers if tier.candidate}.values())

    @property
    def deciding(self) -> str:
        """The deciding tier's name; empty if the row failed."""
        return self.tiers[self.tier].name if self.tiers and self.error is None else ""

    @property
    def head(self) -> Head:
        """The fields that are counted."""
        found = (self.deciding, self.correct, self.cost, self.unreadable, self.cut_off, self.key, self.served, self.priced)
        return Head(self.row, self.error, *found)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        data = {name: getattr(self, name) for name in self.__slots__}
        return data | {"tiers": [tier.to_dict() for tier in self.tiers], "columns": dict(self.columns)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RowRecord:
        """Return the record of `to_dict` data, also after JSON. Raises KeyError or TypeError for other data."""
        error = data["error"]
        rest = {"tiers": tuple(map(TierRecord.from_dict, data["tiers"])), "error": tuple(error) if error else None}
        return cls(**{**data, **rest})


def defaults(kind: type, names: Sequence[str]) -> dict[str, Any]:
    """Return the default values of these fields of a dataclass."""
    found = {each.name: each for each in fields(kind) if each.name in names}
    return {
        name: each.default_factory() if each.default_factory is not MISSING else each.default for name, each in found.items()
    }
