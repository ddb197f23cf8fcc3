"""Labelled requests: each tier's signals or score, and whether its answer was right, from a pairs file or a recording."""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from workflow_composer.calibration.scores.signal_table import Answer, Floats, SignalTable
from workflow_composer.errors import InputError
from workflow_composer.storage.lines import decoded, lines, objects
from workflow_composer.types import ANY_TASK, TokenLogprob

KEYS = ("score", "correct", "id", "group", "tier", "cost")
"""Keys of a line in a pairs file; the first two are required."""

FORM = "a line needs score and correct; id, group, tier and cost are optional; docs/calibration.md has an example"

_TRUE, _FALSE = ("true", "1", "1.0", "yes"), ("false", "0", "0.0", "no")


class RecordedAnswer(Protocol):
    """The required fields of a recorded answer (`workflow_composer.backends.recordings.Recorded`)."""

    @property
    def question(self) -> str: ...  # noqa: D102  # documented in docs/recordings.md
    @property
    def model(self) -> str: ...  # noqa: D102  # likewise
    @property
    def sample(self) -> int: ...  # noqa: D102  # likewise
    @property
    def correct(self) -> bool | None: ...  # noqa: D102  # likewise
    @property
    def tokens(self) -> int: ...  # noqa: D102  # likewise
    @property
    def prompt_tokens(self) -> int: ...  # noqa: D102  # likewise
    @property
    def logprobs(self) -> tuple[TokenLogprob, ...] | None: ...  # noqa: D102  # likewise
    @property
    def score(self) -> float | None: ...  # noqa: D102  # likewise
    @property
    def cost(self) -> float | None: ...  # noqa: D102  # likewise
    @property
    def group(self) -> str | None: ...  # noqa: D102  # likewise


@dataclass(frozen=True)
class TierColumn:
    """One tier's answers: ``signals``, from which a score is learned, or ``given`` scores [n]."""

    name: str
    signals: SignalTable | None = None
    given: Floats | None = None
    top_logprobs: int | None = None


@dataclass(frozen=True)
class CalibrationTable:
    """``n`` requests answered by every tier. ``correct`` [n, tiers]; ``costs`` [n, tiers] in dollars, None: unknown.

    ``digest`` is the SHA-256 of the file. ``notes`` say what was left out.
    """

    ids: tuple[str, ...]
    groups: tuple[str, ...]
    tiers: tuple[TierColumn, ...]
    correct: NDArray[np.bool_]
    costs: Floats | None
    source: str
    digest: str
    notes: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def names(self) -> tuple[str, ...]:
        """The tiers' names, cheapest first."""
        return tuple(tier.name for tier in self.tiers)


Price = tuple[float, float]
"""Dollars per million prompt tokens and per million completion tokens."""


# ------------------------------------------------------------------------------------------------------------ recordings


def from_records(
    records: Iterable[RecordedAnswer],
    tiers: Mapping[str, str],
    *,
    path: Path,
    prices: Mapping[str, Price] | None = None,
) -> CalibrationTable:
    """Build the table from a recording. ``tiers``: tier -> recorded model, cheapest first; ``prices``: known prices by tier.

    Only the first sample of each question counts. Costs are as recorded, else tokens times prices. Raises `InputError`.
    """
    models = {model: at for at, model in enumerate(tiers.values())}
    found: dict[str, list[RecordedAnswer | None]] = {}
    recorded: set[str] = set()
    for record in records:
        recorded.add(record.model)
        at = models.get(record.model)
        if at is None:
            continue
        row = found.setdefault(record.question.strip(), [None] * len(models))
        earlier = row[at]
        if earlier is None or record.sample < earlier.sample:
            row[at] = record
    if missing := [model for model in models if model not in recorded]:
        there = ", ".join(sorted(recorded)) or "none"
        raise InputError(f"{path} has no answers of {', '.join(missing)}; recorded models: {there}", hint="set --tiers")
    rows, notes = _graded(found, list(tiers), path)
    return CalibrationTable(
        ids=tuple(_identifier(question) for question in rows),
        groups=tuple(_group_of(row) for row in rows.values()),
        tiers=tuple(_recorded_tier(name, [row[at] for row in rows.values()]) for at, name in enumerate(tiers)),
        correct=np.array([[bool(record.correct) for record in row] for row in rows.values()], dtype=np.bool_),
        costs=_costs(list(rows.values()), [(prices or {}).get(name) for name in tiers]),
        source=path.name,
        digest=file_digest(path),
        notes=notes,
    )


def _graded(
    found: Mapping[str, Sequence[RecordedAnswer | None]], tiers: Sequence[str], path: Path
) -> tuple[dict[str, list[RecordedAnswer]], tuple[str, ...]]:
    """Return the questions that were answered by all tiers and graded."""
    rows: dict[str, list[RecordedAnswer]] = {}
    ungraded = 0
    for question, row in found.items():
        whole = [record for record in row if record is not None]
        if len(whole) < len(row):
            _refuse_holes(path, [[record is not None for record in row] for row in found.values()], tiers)
        if any(record.correct is None for record in whole):
            ungraded += 1
        else:
            rows[question] = whole
    return _checked_count(rows, ungraded, path)


def _checked_count(rows: dict[str, Any], ungraded: int, path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    if not rows:
        what = f"none of the {ungraded} requests is graded" if ungraded else "no requests"
        raise InputError(f"{path}: {what}", hint="set `correct` to true or false for every tier's answer")
    if not ungraded:
        return rows, ()
    return rows, (
        f"{ungraded} of {ungraded + len(rows)} requests were left out because an answer is not graded. The guarantee holds "
        "only if whether an answer is graded does not depend on whether it is right.",
    )


def _refuse_holes(path: Path, there: Sequence[Sequence[bool]], tiers: Sequence[str]) -> None:
    """Raise `InputError`: if only doubtful requests reached a tier, the complete rows are not a random sample."""
    lacking = {tier: len(there) - sum(row[at] for row in there) for at, tier in enumerate(tiers)}
    parts = ", ".join(f"{tier} {count}" for tier, count in lacking.items() if count)
    raise InputError(
        f"{path}: some of the {len(there)} requests were not answered by every tier; missing: {parts}",
        hint="let every tier answer all requests (leaving some out would bias the guarantee), or set fewer --tiers",
    )


def _recorded_tier(name: str, records: Sequence[RecordedAnswer]) -> TierColumn:
    """Use signals if there are log-probabilities, else the recorded scores; else everything is unknown."""
    if not any(record.logprobs for record in records) and any(record.score is not None for record in records):
        given = [math.nan if record.score is None else record.score for record in records]
        return TierColumn(name, given=np.array(given, dtype=np.float64))
    widths = [len(token.top) for record in records for token in record.logprobs or ()]
    signals = SignalTable.of_answers([_answer(record) for record in records])
    return TierColumn(name, signals=signals, top_logprobs=min(widths, default=0) or None)


def _answer(record: RecordedAnswer) -> Answer | None:
    if not record.logprobs:
        return None
    top = [[value for _, value in token.top] for token in record.logprobs]
    return [token.logprob for token in record.logprobs], top if all(top) else None


def _costs(rows: Sequence[Sequence[RecordedAnswer]], prices: Sequence[Price | None]) -> Floats | None:
    costs = np.full((len(rows), len(prices)), np.nan)
    for at, row in enumerate(rows):
        for tier, (record, price) in enumerate(zip(row, prices, strict=True)):
            if record.cost is not None:
                costs[at, tier] = record.cost
            elif price is not None:
                costs[at, tier] = (record.prompt_tokens * price[0] + record.tokens * price[1]) / 1e6
    return None if np.isnan(costs).any() else costs


def _group_of(row: Sequence[RecordedAnswer]) -> str:
    return next((record.group for record in row if record.group is not None), ANY_TASK)


def _identifier(question: str) -> str:
    return hashlib.blake2b(question.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


# ----------------------------------------------------------------------------------------------------------------- pairs


@dataclass(frozen=True, slots=True)
class _Pair:
    score: float
    correct: bool | None
    group: str | None
    cost: float | None
    line: int


def from_pairs(
    path: Path, tiers: Sequence[str] = (), *, rows: Iterable[tuple[int, Mapping[str, Any]]] | None = None
) -> CalibrationTable:
    """Build the table from a pairs file: JSON lines, or CSV with a header (``.csv``); either may be gzipped (``.gz``).

    Lines with the same ``id`` are one request at several tiers. ``tiers``: their order, cheapest first; default: the order
    of first appearance in the file. ``rows``: the file's line numbers and lines, if it has another format. Raises
    `InputError` with file and line.
    """
    found: dict[str, dict[str, _Pair]] = {}
    named: dict[str, None] = {}
    for line, data in _lines(path) if rows is None else rows:
        try:
            key, tier, pair = _pair(data, line)
        except ValueError as error:
            raise InputError(f"{path}:{line}: {error}", hint=FORM) from None
        name = tier if tier is not None else tiers[0] if len(tiers) == 1 else "model"
        named.setdefault(name)
        row = found.setdefault(key, {})
        if name in row:
            where = f"same id and tier as line {row[name].line}"
            raise InputError(f"{path}:{line}: {where}", hint="write one line per request and tier")
        row[name] = pair
    order = _ordered(path, list(named), tiers)
    graded, notes = _graded_pairs(path, found, order)
    costs = np.array([[math.nan if pair.cost is None else pair.cost for pair in row] for row in graded.values()])
    return CalibrationTable(
        ids=tuple(graded),
        groups=tuple(_pairs_group(path, row) for row in graded.values()),
        tiers=tuple(
            TierColumn(name, given=np.array([row[at].score for row in graded.values()])) for at, name in enumerate(order)
        ),
        correct=np.array([[bool(pair.correct) for pair in row] for row in graded.values()], dtype=np.bool_),
        costs=None if np.isnan(costs).any() else costs,
        source=path.name,
        digest=file_digest(path),
        notes=notes,
    )


def _ordered(path: Path, named: list[str], tiers: Sequence[str]) -> list[str]:
    if not named:
        raise InputError(f"{path}: no requests", hint=FORM)
    if missing := [tier for tier in tiers if tier not in named]:
        raise InputError(f"{path} has no tier {missing[0]!r}; its tiers: {', '.join(named)}", hint="set --tiers")
    return list(tiers) or named


def _graded_pairs(
    path: Path, found: Mapping[str, Mapping[str, _Pair]], order: Sequence[str]
) -> tuple[dict[str, list[_Pair]], tuple[str, ...]]:
    there = [[tier in row for tier in order] for row in found.values()]
    wanted = {key: row for (key, row), has in zip(found.items(), there, strict=True) if any(has)}
    there = [has for has in there if any(has)]
    if not all(map(all, there)):
        _refuse_holes(path, there, order)
    rows = {key: [row[tier] for tier in order] for key, row in wanted.items()}
    graded = {key: row for key, row in rows.items() if all(pair.correct is not None for pair in row)}
    return _checked_count(graded, len(rows) - len(graded), path)


def _pairs_group(path: Path, row: Sequence[_Pair]) -> str:
    named = {pair.group: pair.line for pair in row if pair.group is not None}
    if len(named) > 1:
        (one, _), (other, line) = list(named.items())[:2]
        raise InputError(f"{path}:{line}: the same id has two groups, {one!r} and {other!r}", hint=FORM)
    return next(iter(named), ANY_TASK)


def _pair(data: Mapping[str, Any], line: int) -> tuple[str, str | None, _Pair]:
    """Parse one line into id, tier and pair. Raises ValueError."""
    if unknown := sorted(set(data) - set(KEYS)):
        raise ValueError(f"unknown key {unknown[0]!r}; known keys: {', '.join(KEYS)}")
    if "score" not in data or "correct" not in data:
        raise ValueError(f"{'score' if 'score' not in data else 'correct'} is missing")
    tier = _text(data, "tier")
    key = _text(data, "id")
    if key is None and tier is not None:
        raise ValueError("id is missing: it is required with tier, to match the lines of one request")
    score = _number(data["score"], "score")
    # A cost of which only a part is known, or nothing (then some files have 0), is not known.
    cost = math.nan if data.get("cost_known") is False else _number(data.get("cost"), "cost")
    if not (math.isnan(cost) or cost >= 0):
        raise ValueError(f"cost must not be negative, not {cost:g}")
    pair = _Pair(score, _grade(data["correct"]), _text(data, "group"), None if math.isnan(cost) else cost, line)
    return key if key is not None else f"line {line}", tier, pair


def _text(data: Mapping[str, Any], key: str) -> str | None:
    value = data.get(key)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(f"{key} must be a string, not {value!r}")  # noqa: TRY004  # the caller handles all faults of a line alike
    return str(value)


def _number(value: Any, key: str) -> float:
    """Parse a number; NaN if it is missing."""
    if value is None or value == "":
        return math.nan
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{key} must be a number, or empty if unknown, not {value!r}")
    return number


def _grade(value: Any) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in ("", "null"):
        return None
    if word not in (*_TRUE, *_FALSE):
        raise ValueError(f"correct must be true or false, not {value!r}")
    return word in _TRUE


# ----------------------------------------------------------------------------------------------------------------- files


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file. Raises `InputError` if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None


def _lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the lines of a file as mappings, with line numbers."""
    yield from _csv_lines(path) if path.name.removesuffix(".gz").endswith(".csv") else objects(path, form=FORM)


def _csv_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(decoded(line, f"{path}:{number}") for number, line in enumerate(lines(path), 1))
    try:
        for row in reader:
            if None in row or None in row.values():
                fault = f"the number of columns differs from the header's {len(reader.fieldnames or ())}"
                raise InputError(f"{path}:{reader.line_num}: {fault}", hint=FORM)
            yield reader.line_num, {str(key).strip(): value for key, value in row.items()}
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not CSV: {error}", hint=FORM) from None
