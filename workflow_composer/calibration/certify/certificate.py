"""Certificates: the result of a calibration as a file, complete enough to use and to reproduce it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from workflow_composer.calibration.scores.scores import ScoreModel
from workflow_composer.errors import CertificateMismatch, InputError
from workflow_composer.storage.replacing import replace_file
from workflow_composer.types import ANY_TASK, LLMRequest, texts

# ---------------------------------------------------------------------------------------------------------------- matching
#
# Check whether a certificate applies to a profile's models when it loads, and to each request.


_LONGEST = 60
"""Maximum number of characters of a quoted value."""


def check(
    certificate: Certificate, identities: Sequence[ModelIdentity], floors: Mapping[str, int], *, where: str = ""
) -> None:
    """Compare a certificate with the tiers' models, cheapest first, and with the tasks' lowest tiers.

    ``floors``: task -> index of its lowest tier; the task ``*`` stands for all tasks not listed. Raises
    `CertificateMismatch`, which names each field that differs with both values.
    """
    faults: list[str] = []
    names = [tier.name for tier in certificate.tiers]
    wanted = [identity.name for identity in identities]
    if len(names) != len(wanted):
        faults.append(f"tiers: {', '.join(names)} in the certificate, {', '.join(wanted)} here")
    else:
        for tier, identity in zip(certificate.tiers, identities, strict=True):
            for field in ModelIdentity.__slots__:
                made, here = getattr(tier.identity, field), getattr(identity, field)
                if made != here and not (field == "top_logprobs" and tier.score is None):
                    faults.append(f"tier {tier.name}, {field}: {_shown(made)} in the certificate, {_shown(here)} here")
    if len(names) == len(wanted):
        faults += _floor_faults(certificate, floors)
    if faults:
        prefix = f"{where}: " if where else ""
        raise CertificateMismatch(
            f"{prefix}the certificate does not match this profile: {'; '.join(faults)}",
            hint="calibrate again with this profile, or use the profile for which the certificate was made",
        )


def floor_of(task: str, floors: Mapping[str, int]) -> int:
    """Return the index of the lowest tier for a task."""
    return floors.get(task, floors.get(ANY_TASK, 0))


def _floor_faults(certificate: Certificate, floors: Mapping[str, int]) -> list[str]:
    """Describe tasks whose lowest tier differs from the certificate's, including tasks of its group for any task."""
    names, faults = [tier.name for tier in certificate.tiers], []
    for task in sorted({*certificate.groups, *floors}):
        group, here = certificate.group(task), floor_of(task, floors)
        if group is not None and group.first != here:
            faults.append(f"task {task}, floor: {names[group.first]} in the certificate, {names[here]} here")
    return faults


def uncovered(certificate: Certificate, request: LLMRequest, temperature: float | None) -> str:
    """Return why the certificate does not cover a request, naming the field; empty if it does.

    ``temperature``: the certificate's temperature.
    """
    if certificate.group(request.task_type) is None:
        return f"task {request.task_type!r} was not calibrated"
    made = certificate.request
    asked_temperature = temperature if request.temperature is None else request.temperature
    asked_stop = (request.stop,) if isinstance(request.stop, str) else request.stop
    fields = (
        ("temperature", temperature, asked_temperature),
        ("max_tokens", made.max_tokens, request.max_tokens),
        ("top_p", made.top_p, request.top_p),
        ("stop", made.stop, asked_stop),
        ("tools", None, request.tools or None),
        ("response_format", None, request.response_format),
        ("extra fields", None, tuple(request.extra) or None),
    )
    for field, known, asked in fields:
        if known != asked:
            return f"{field}: {_shown(known)} in the certificate, {_shown(asked)} in the request"
    most = max((tier.identity.top_logprobs or 0 for tier in certificate.tiers if tier.score is not None), default=None)
    if (
        most is not None and (request.top_logprobs or 0) > most
    ):  # scores would use more alternatives than they were learned from
        return f"top_logprobs: {most} in the certificate, {request.top_logprobs} in the request"
    if digest_of(system_of(request)) != made.system:
        return "system message: differs from the certificate's" if made.system else "system message: none in the certificate"
    return ""


def system_of(request: LLMRequest) -> str | None:
    """Return the text of the system messages; None if there are none."""
    found = [
        text for message in request.messages if message.get("role") in ("system", "developer") for text in texts(message)
    ]
    return "\n".join(found) if found else None


def _shown(value: object) -> str:
    if value is None:
        return "none"
    text = f"{value:g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


FORMAT = "workflow-composer/certificate/1"


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Identity of a tier's model, used to detect changes. None: not stated.

    ``logprobs``: kind of its log-probabilities, "raw" (the model's own) or "processed" (after temperature, top-p and
    penalties). ``top_logprobs``: number of alternatives requested for each token.
    """

    name: str
    model: str | None = None
    backend: str | None = None
    logprobs: str | None = None
    top_logprobs: int | None = None
    temperature: float | None = None


@dataclass(frozen=True, slots=True)
class CertifiedTier:
    """One tier's model and its score model; ``score`` None: answers bring their own score (from a gate or a judge)."""

    name: str
    identity: ModelIdentity
    score: ScoreModel | None


@dataclass(frozen=True, slots=True)
class TierGuarantee:
    """Result for one tier of one group.

    Of ``reached`` requests, ``accepted`` had a score of at least ``threshold`` (None: accept nothing; minus infinity: accept
    every known score), and ``wrong`` of these were wrong. ``bound`` is the upper bound of P(wrong | accepted) at ``level``,
    this tier's share of delta. A score below ``straight_up`` escalates directly to the last tier.
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
        """Share of accepted requests among those that reached the tier."""
        return self.accepted / self.reached if self.reached else 0.0


@dataclass(frozen=True, slots=True)
class Group:
    """A task type and its tiers from ``first`` (its floor) on, in the certificate's order.

    ``returned_bound``: upper bound, at ``returned_level``, of the error of all returned answers, including exhausted
    requests. ``last_wrong``: upper bound, at ``last_level``, of the last tier's error on the requests accepted by any other
    tier, and so of the error of audits by the last tier; 1 if no other tier accepts any.
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
        """Number of rows accepted by any tier."""
        return sum(tier.accepted for tier in self.tiers)

    @property
    def wrong(self) -> int:
        """Number of accepted rows with a wrong answer."""
        return sum(tier.wrong for tier in self.tiers)

    @property
    def coverage(self) -> float:
        """Share of accepted rows."""
        return self.accepted / self.rows if self.rows else 0.0


@dataclass(frozen=True, slots=True)
class CalibrationData:
    """The data and split behind the certificate, sufficient to reproduce it.

    ``fit_share`` of each group's ``rows`` was used to learn scores and design the tests, the rest to calibrate.
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
    """Parameters shared by all calibration requests. ``system``: digest of the system message; None: no system message."""

    system: str | None = None
    max_tokens: int | None = None
    top_p: float | None = None
    stop: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Certificate:
    """A risk guarantee: if requests are exchangeable with the calibration rows, then with probability at least
    1 - ``delta`` over these rows, at most a share ``alpha`` of the accepted answers is wrong, in every group and at every
    tier.
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
        """Return a task's group, else the group for any task; None if neither was calibrated."""
        return self.groups.get(task, self.groups.get(ANY_TASK))

    @property
    def temperature(self) -> float | None:
        """The temperature of all tiers; None if they differ or it is not stated."""
        found = {tier.identity.temperature for tier in self.tiers}
        return found.pop() if len(found) == 1 else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, including the statement in words."""
        data = asdict(self)
        data["groups"] = {name: _group_to_dict(group) for name, group in self.groups.items()}
        data["tiers"] = [
            asdict(tier) | {"score": None if tier.score is None else tier.score.to_dict()} for tier in self.tiers
        ]
        return {"format": FORMAT, "statement": self.statement, **data}

    @property
    def statement(self) -> str:
        """The guarantee in words. Part of `digest`, so its wording must not change."""
        return (
            f"If requests are exchangeable with the {self.data.calibrated} calibration rows, then with probability at least "
            f"{1 - self.delta:g} over these rows, of the answers that the cascade accepts at most {self.alpha:g} are wrong, "
            "for every group and every tier at once."
        )

    @property
    def digest(self) -> str:
        """A hash that identifies exactly this certificate."""
        text = json.dumps(self.to_dict(), sort_keys=True, allow_nan=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Write the file atomically. Raises OSError."""
        text = json.dumps(self.to_dict(), indent=2) + "\n"
        replace_file(path, text)

    @classmethod
    def load(cls, path: Path) -> Certificate:
        """Read a certificate file. Raises `InputError` if it is missing or invalid."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            hint = "create one with `calibrate`"
            raise InputError(f"cannot read the certificate {path}: {error.strerror}", hint=hint) from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: not a certificate: {error}") from None
        try:
            return cls.from_dict(data)
        except InputError as error:
            raise InputError(f"{path}: {error.message}", hint=error.hint) from None

    @classmethod
    def from_dict(cls, data: Any) -> Certificate:
        """Build a certificate from parsed JSON, the inverse of `to_dict`. Raises `InputError`, which names the field."""
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise InputError(f"not a certificate in format {FORMAT}", hint="create one with `calibrate`")
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
    """Hash a system message; certificates contain no prompts."""
    return None if text is None else hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _part(kind: type[Any], data: Mapping[str, Any]) -> Any:
    known = {field.name for field in fields(kind)}
    if unknown := sorted(set(data) - known):
        raise ValueError(f"unknown key {unknown[0]!r} in {kind.__name__}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
    for field in fields(kind):
        if field.name in values and not _fits(values[field.name], str(field.type)):
            raise ValueError(f"{kind.__name__}.{field.name} must be {field.type}, not {values[field.name]!r}")
    return kind(**values)


def _fits(value: Any, annotation: str) -> bool:
    """Whether a value from JSON matches a field's type annotation."""
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
            tier["threshold"] = "-inf"  # JSON has no infinity
    return data


def _group(data: Mapping[str, Any], tiers: int) -> Group:
    infinite = {"threshold": -math.inf}
    found = tuple(
        _part(TierGuarantee, {**entry, **(infinite if entry["threshold"] == "-inf" else {})}) for entry in data["tiers"]
    )
    group: Group = _part(Group, {**data, "tiers": found})
    if not 0 <= group.first < tiers or len(found) != tiers - group.first:
        raise ValueError(
            f"a group has {len(found)} tiers from index {group.first} on, but the certificate has {tiers} tiers"
        )
    return group


def _share(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise ValueError(f"{name} must be between 0 and 1, not {value!r}")
    return float(value)
