"""Certificates: what a calibration has yielded, as a file that says all that is needed to use it and to check it again."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from workflow_composer.calibration.scores import ScoreModel
from workflow_composer.errors import InputError
from workflow_composer.storage.replacing import replace_file
from workflow_composer.types import ANY_TASK

FORMAT = "workflow-composer/certificate/1"


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """The model behind a tier, as far as a change of it can be noticed. None: not stated.

    ``logprobs`` says what its log-probabilities are: "raw" (the model's own) or "processed" (after temperature, top-p and
    penalties). ``top_logprobs``: alternatives that were asked for beside each token.
    """

    name: str
    model: str | None = None
    backend: str | None = None
    logprobs: str | None = None
    top_logprobs: int | None = None
    temperature: float | None = None


@dataclass(frozen=True, slots=True)
class CertifiedTier:
    """One tier's model, and how a score is made of its answers; None: the answer's own score (a gate's, a judge's)."""

    name: str
    identity: ModelIdentity
    score: ScoreModel | None


@dataclass(frozen=True, slots=True)
class TierGuarantee:
    """What was found for one tier of one group.

    Of ``reached`` requests that came to the tier, ``accepted`` had a score of at least ``threshold`` (None: nothing can be
    accepted; minus infinity: whatever has a score), ``wrong`` of them falsely. ``bound`` is the upper bound of
    P(wrong | accepted) at ``level``, this tier's share of delta. ``straight_up``: a score below goes straight to the last
    tier.
    """

    threshold: float | None
    reached: int
    accepted: int
    wrong: int
    bound: float
    level: float
    base_error: float
    reason: str
    labels_needed: int | None = None
    straight_up: float | None = None

    @property
    def coverage(self) -> float:
        """Share of the requests that reached the tier and were accepted."""
        return self.accepted / self.reached if self.reached else 0.0


@dataclass(frozen=True, slots=True)
class Group:
    """A task type and its tiers, from ``first`` (its floor) up, in the certificate's order.

    ``returned_bound``: at ``returned_level``, the error of all answers that are returned, exhausted requests included.
    ``last_wrong``: at ``last_level``, the last tier's error on the requests that any one of the tiers below it accepts:
    what an audit by the last tier may be wrong about; 1 where none accepts any.
    """

    first: int
    rows: int
    tiers: tuple[TierGuarantee, ...]
    returned_wrong: int
    returned_bound: float
    returned_level: float
    last_wrong: float = 1.0
    last_level: float = 0.0

    @property
    def accepted(self) -> int:
        """Rows accepted by any tier."""
        return sum(tier.accepted for tier in self.tiers)

    @property
    def wrong(self) -> int:
        """Rows accepted by any tier, and wrong."""
        return sum(tier.wrong for tier in self.tiers)

    @property
    def coverage(self) -> float:
        """Share of rows that are accepted."""
        return self.accepted / self.rows if self.rows else 0.0


@dataclass(frozen=True, slots=True)
class CalibrationData:
    """Where the numbers come from: enough to make them again.

    ``fit_share`` of each group's ``rows`` was kept for learning scores and fixing what is tested, the rest calibrated.
    """

    source: str
    digest: str
    rows: int
    fitted: int
    calibrated: int
    seed: int
    group_by: str | None = None
    fit_share: float = 0.3


@dataclass(frozen=True, slots=True)
class RequestForm:
    """What else the requests had in common. ``system`` is the digest of the system message; None: there was none."""

    system: str | None = None
    max_tokens: int | None = None
    top_p: float | None = None
    stop: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Certificate:
    """Under the assumption that requests are exchangeable with the calibration's: with probability at least 1 - ``delta``
    over the calibration rows, of the answers that the cascade accepts, at most a share ``alpha`` is wrong, in every group
    and at every tier.
    """

    alpha: float
    delta: float
    method: str
    tiers: tuple[CertifiedTier, ...]
    groups: Mapping[str, Group]
    data: CalibrationData
    request: RequestForm
    created: str
    version: str
    notes: tuple[str, ...] = ()

    def group(self, task: str) -> Group | None:
        """The group that a task belongs to: its own, else the one for any task; None where neither was calibrated."""
        return self.groups.get(task, self.groups.get(ANY_TASK))

    @property
    def temperature(self) -> float | None:
        """The temperature of all tiers; None where they differ or it is not stated."""
        found = {tier.identity.temperature for tier in self.tiers}
        return found.pop() if len(found) == 1 else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, the statement in words included."""
        data = asdict(self)
        data["groups"] = {name: _group_to_dict(group) for name, group in self.groups.items()}
        data["tiers"] = [
            asdict(tier) | {"score": None if tier.score is None else tier.score.to_dict()} for tier in self.tiers
        ]
        return {"format": FORMAT, "statement": self.statement, **data}

    @property
    def statement(self) -> str:
        """What is guaranteed, in words."""
        return (
            f"If requests are exchangeable with the {self.data.calibrated} calibration rows, then with probability at least "
            f"{1 - self.delta:g} over these rows, of the answers that the cascade accepts at most {self.alpha:g} are wrong, "
            "for every group and every tier at once."
        )

    @property
    def digest(self) -> str:
        """A short name for exactly this certificate."""
        text = json.dumps(self.to_dict(), sort_keys=True, allow_nan=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all. Raises OSError."""
        text = json.dumps(self.to_dict(), indent=2) + "\n"
        replace_file(path, text)

    @classmethod
    def load(cls, path: Path) -> Certificate:
        """Read a file. Raises `InputError` where it is none."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            hint = "make one with `calibrate`"
            raise InputError(f"no certificate: {path}: {error.strerror}", hint=hint) from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: not a certificate: {error}") from None
        try:
            return cls.from_dict(data)
        except InputError as error:
            raise InputError(f"{path}: {error.message}", hint=error.hint) from None

    @classmethod
    def from_dict(cls, data: Any) -> Certificate:
        """The inverse of `to_dict`, after JSON. Raises `InputError`, naming the place."""
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise InputError(f"not a certificate of the form {FORMAT}", hint="make one with `calibrate`")
        try:
            tiers = tuple(_tier(entry) for entry in data["tiers"])
            groups = {str(name): _group(entry, len(tiers)) for name, entry in data["groups"].items()}
            request = _part(RequestForm, data["request"])
            found = cls(
                alpha=_share(data["alpha"], "alpha"),
                delta=_share(data["delta"], "delta"),
                method=str(data["method"]),
                tiers=tiers,
                groups=groups,
                data=_part(CalibrationData, data["data"]),
                request=request,
                created=str(data["created"]),
                version=str(data["version"]),
                notes=tuple(map(str, data.get("notes", ()))),
            )
        except KeyError as error:
            raise InputError(f"the certificate lacks {error}") from None
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(f"damaged certificate: {error}") from None
        if not tiers or not groups:
            raise InputError("the certificate has no tiers or no groups")
        return found


def digest_of(text: str | None) -> str | None:
    """The digest of a system message: certificates do not carry prompts."""
    return None if text is None else hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _part(kind: type[Any], data: Mapping[str, Any]) -> Any:
    known = {field.name for field in fields(kind)}
    if unknown := sorted(set(data) - known):
        raise ValueError(f"unknown key {unknown[0]!r} in {kind.__name__}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
    for field in fields(kind):
        if field.name in values and not _fits(values[field.name], str(field.type)):
            raise ValueError(f"{kind.__name__}.{field.name} is {values[field.name]!r}; it must be {field.type}")
    return kind(**values)


def _fits(value: Any, annotation: str) -> bool:
    """Whether a value from JSON is of a field's type, as the field is annotated."""
    kinds = annotation.split(" | ")
    if isinstance(value, bool):
        return "bool" in kinds
    if isinstance(value, float):
        return "float" in kinds and not math.isnan(value)
    named = {int: {"int", "float"}, str: {"str"}, type(None): {"None"}, tuple: {kind for kind in kinds if "tuple[" in kind}}
    return bool(named.get(type(value), set()) & set(kinds))


def _tier(data: Mapping[str, Any]) -> CertifiedTier:
    score = None if data["score"] is None else ScoreModel.from_dict(data["score"])
    return CertifiedTier(str(data["name"]), _part(ModelIdentity, data["identity"]), score)


def _group_to_dict(group: Group) -> dict[str, Any]:
    data = asdict(group)
    for tier in data["tiers"]:
        if tier["threshold"] == -math.inf:
            tier["threshold"] = "-inf"  # JSON has no word for it
    return data


def _group(data: Mapping[str, Any], tiers: int) -> Group:
    infinite = {"threshold": -math.inf}
    found = tuple(
        _part(TierGuarantee, {**entry, **(infinite if entry["threshold"] == "-inf" else {})}) for entry in data["tiers"]
    )
    group: Group = _part(Group, {**data, "tiers": found})
    if not 0 <= group.first < tiers or len(found) != tiers - group.first:
        raise ValueError(f"a group has {len(found)} tiers from {group.first} on, the certificate {tiers}")
    return group


def _share(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise ValueError(f"{name} is {value!r}; it must be between 0 and 1")
    return float(value)
