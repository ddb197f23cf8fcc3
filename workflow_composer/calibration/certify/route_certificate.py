"""Certificates of adaptive routing: created from recorded routes, saved to a file, verified by recomputation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import workflow_composer
from workflow_composer.calibration.certify.calibrate import differences
from workflow_composer.calibration.certify.pairs import file_digest
from workflow_composer.calibration.certify.risk import (
    check_levels,
    fewest_accepted,
    most_liberal,
    p_value,
    rejected,
    upper_bound,
)
from workflow_composer.errors import InputError
from workflow_composer.moe.models.replaying import Paths, Replay, fit_tables, replay
from workflow_composer.moe.routing.routes import RecordedRoutes, read_routes
from workflow_composer.moe.routing.tables import RouteTables
from workflow_composer.storage.replacing import replace_file

# -------------------------------------------------------------------------------------------------------------- route risk
#
# Quality of adaptive routing, certified per prompt: how many prompts lose more than a margin.
#
# Tokens of a prompt are dependent, so the unit is the prompt. At a threshold t on the tables' confidence, prompt i has a
# loss L_i(t) and is *bad* if L_i(t) > margin. If prompts are exchangeable and each is routed with its own state, the number
# of bad ones among n is binomial with the true share R(t), and the tests of `risk` apply: thresholds are tested from strict
# to liberal by P(Bin(n, alpha) <= bad) in the fallback procedure (Wiens 2003), so that with probability at least 1 - delta
# every threshold that passes has R(t) <= alpha. Thresholds and starts come from other prompts (the fitting part).


GRID = (0.98, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.4)
"""Fixed thresholds on confidence, strict to liberal."""


@dataclass(frozen=True, slots=True)
class ThresholdTest:
    """One threshold: ``bad`` prompts lost more than the margin; ``asked`` is the mean share of gate calls."""

    threshold: float
    bad: int
    p_value: float
    passed: bool
    mean_loss: float
    asked: float


@dataclass(frozen=True, slots=True)
class RouteSelection:
    """The most liberal threshold that passed (None: none passed), and the results of all tests.

    ``bound``: Clopper and Pearson's upper bound, at level delta, of the share of bad prompts at that threshold; 1 if none
    passed.
    """

    threshold: float | None
    prompts: int
    starts: tuple[int, ...]
    tested: tuple[ThresholdTest, ...]
    bound: float
    reason: str


def starts_from(losses: NDArray[np.float64], margin: float, alpha: float) -> tuple[int, ...]:
    """Return the starts of the tests: the strictest threshold, and the most liberal one with few bad prompts in ``losses``.

    ``losses`` [prompts, thresholds] must come from other prompts than the calibration's. "Few" is half of ``alpha``.
    """
    bad = (losses > margin).mean(axis=0)
    safe = np.flatnonzero(bad <= alpha / 2)
    return tuple(sorted({0, int(safe[-1])})) if len(safe) else (0,)


def select_route_threshold(
    thresholds: Sequence[float],
    losses: NDArray[np.float64],
    asked: NDArray[np.float64],
    *,
    starts: Sequence[int],
    margin: float,
    alpha: float,
    delta: float,
) -> RouteSelection:
    """Test ``thresholds`` [t], strict to liberal, on ``losses`` [n, t] of n prompts; ``asked`` [n, t]: shares of gate calls.

    Raises `InputError` for other shapes or values that are not finite.
    """
    check_levels(alpha, delta)
    if (
        losses.ndim != 2
        or losses.shape[1] != len(thresholds)
        or asked.shape != losses.shape
        or not np.isfinite(losses).all()
    ):
        raise InputError(f"losses must be finite and have shape (prompts, {len(thresholds)}); found shape {losses.shape}")
    n = len(losses)
    bad = (losses > margin).sum(axis=0)
    p = p_value(bad, np.full(len(thresholds), n), alpha) if n else np.ones(len(thresholds))
    passed = rejected(p, starts, delta)
    tested = tuple(
        ThresholdTest(float(t), int(b), float(q), bool(ok), float(lost), float(share))
        for t, b, q, ok, lost, share in zip(thresholds, bad, p, passed, _mean(losses), _mean(asked), strict=True)
    )
    position = int(most_liberal(passed))
    if position < 0:
        fewest = fewest_accepted(alpha, delta / len(starts))
        few = f"{fewest} prompts are needed even where none is bad, and there are {n}"
        reason = few if n < fewest else f"at no threshold were so few prompts bad that a share of {alpha:g} can be excluded"
        return RouteSelection(None, n, tuple(starts), tested, 1.0, reason)
    bound = min(upper_bound(int(bad[position]), n, delta), alpha)
    reason = f"{bad[position]} of {n} prompts were bad; at a share of {alpha:g} so few have probability {p[position]:.2g}"
    return RouteSelection(float(thresholds[position]), n, tuple(starts), tested, bound, reason)


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = values.mean(axis=0) if len(values) else np.zeros(values.shape[1])
    return found


FORMAT = "workflow-composer/var-certificate/1"
_NOT_COMPARED = ("created", "version", "source")


@dataclass(frozen=True, slots=True)
class RouteCertificate:
    """The result, and everything needed to reproduce it.

    Of ``prompts`` recorded prompts, a share ``fit_share`` (drawn with ``seed``) was used for fitting: one half to learn the
    tables, the other half to place the starts; the rest calibrated. ``tables``: layer -> digest. ``digest``: SHA-256 of the
    recording.
    """

    margin: float
    alpha: float
    delta: float
    paths: Paths
    selection: RouteSelection
    layers: tuple[int, ...]
    num_experts: int
    tables: Mapping[str, str]
    prompts: int
    fitted: int
    fit_share: float
    seed: int
    digest: str
    source: str
    created: str
    version: str

    @property
    def statement(self) -> str:
        """The guarantee in words."""
        share, found = self.paths.learned_share, self.selection
        asked = f"In each prompt and layer, at most {share:g} * (n + 1) of the first n tokens call the gate, for every n."
        if found.threshold is None:
            return f"{asked} Quality is not guaranteed: {found.reason}."
        return (
            f"{asked} If prompts are exchangeable with the {found.prompts} calibration prompts, then with probability at "
            f"least {1 - self.delta:g} over these, at most a share {self.alpha:g} of prompts loses more than "
            f"{self.margin:g} of the gate's weight if tables are used at a confidence of at least {found.threshold:g}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, including the statement in words."""
        return {"format": FORMAT, "statement": self.statement, **asdict(self)}

    def save(self, path: Path) -> None:
        """Write the file atomically. Raises OSError."""
        replace_file(path, json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> RouteCertificate:
        """Read a certificate file. Raises `InputError` if it is missing or invalid."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(
                f"cannot read the certificate {path}: {error.strerror}", hint="create one with `var certify`"
            ) from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: not a certificate: {error}") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise InputError(f"{path}: not a certificate in format {FORMAT}", hint="create one with `var certify`")
        try:
            return _from_dict(data)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InputError(f"{path}: damaged certificate: {error}") from None


@dataclass(frozen=True, slots=True, eq=False)
class Certified:
    """A certificate, its tables, and the replay of the calibration prompts."""

    certificate: RouteCertificate
    tables: Mapping[int, RouteTables]
    replay: Replay


def certify_routes(
    path: Path,
    *,
    margin: float = 0.05,
    alpha: float = 0.1,
    delta: float = 0.1,
    paths: Paths | None = None,
    fit_share: float = 0.5,
    seed: int = 0,
) -> Certified:
    """Learn tables from a part of a recording (`read_routes`), and certify a threshold on the rest.

    Raises `InputError` if the recording cannot be read or has fewer than four prompts.
    """
    check_levels(alpha, delta)
    check_levels(fit_share, delta)
    used = paths or Paths()
    routes = read_routes(path)
    prompts = np.unique(routes.sequences)
    if len(prompts) < 4:
        raise InputError(
            f"{path}: at least four prompts are required, not {len(prompts)}", hint="give each prompt its own `sequence`"
        )
    drawn = np.random.default_rng(seed).permutation(prompts)
    fitted = min(max(2, round(fit_share * len(prompts))), len(prompts) - 1)
    teach, place, calibrate = drawn[: fitted // 2], drawn[fitted // 2 : fitted], drawn[fitted:]
    num_experts = routes.expert_count
    tables = fit_tables(_of(routes, teach), used, num_experts)
    starts = starts_from(replay(_of(routes, place), tables, GRID, used).losses, margin, alpha)
    found = replay(_of(routes, calibrate), tables, GRID, used)
    selection = select_route_threshold(
        found.thresholds, found.losses, found.shares[:, :, 2], starts=starts, margin=margin, alpha=alpha, delta=delta
    )
    certificate = RouteCertificate(
        margin=margin,
        alpha=alpha,
        delta=delta,
        paths=used,
        selection=selection,
        layers=routes.layers,
        num_experts=num_experts,
        tables={str(layer): f"{table.digest:016x}" for layer, table in tables.items()},
        prompts=len(prompts),
        fitted=fitted,
        fit_share=fit_share,
        seed=seed,
        digest=file_digest(path),
        source=path.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        version=workflow_composer.__version__,
    )
    return Certified(certificate, tables, found)


def verify_routes(certificate: RouteCertificate, path: Path) -> list[str]:
    """Recompute the certificate from the recording; return one line per difference, empty if it is reproduced."""
    again = certify_routes(
        path,
        margin=certificate.margin,
        alpha=certificate.alpha,
        delta=certificate.delta,
        paths=certificate.paths,
        fit_share=certificate.fit_share,
        seed=certificate.seed,
    )
    found = differences("", certificate, again.certificate)
    return [line for line in found if line.partition(":")[0] not in _NOT_COMPARED]


def _of(routes: RecordedRoutes, prompts: np.ndarray[Any, Any]) -> RecordedRoutes:
    return routes.take(np.isin(routes.sequences, prompts))


def _from_dict(data: Mapping[str, Any]) -> RouteCertificate:
    values = {field.name: data[field.name] for field in fields(RouteCertificate)}
    chosen = dict(values["selection"])
    chosen["tested"] = tuple(ThresholdTest(**test) for test in chosen["tested"])
    chosen["starts"] = tuple(chosen["starts"])
    for name in ("margin", "alpha", "delta", "fit_share"):
        values[name] = _share(values[name], name)
    values["selection"] = RouteSelection(**chosen)
    values["paths"] = Paths(**values["paths"])
    values["layers"] = tuple(int(layer) for layer in values["layers"])
    values["tables"] = {str(layer): str(digest) for layer, digest in values["tables"].items()}
    return RouteCertificate(**values)


def _share(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ValueError(f"{name} must be a number from 0 to below 1, not {value!r}")
    return float(value)
