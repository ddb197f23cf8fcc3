"""Choose a threshold with a guarantee on the error of accepted answers (selective risk), from labelled requests.

Each request has a score, and its answer is right or wrong; an answer is accepted if score >= threshold. A score of NaN is
unknown and never accepted. `select` chooses one of a few thresholds such that

    P( P(wrong | accepted) > alpha )  <=  delta,

where the outer probability is over the labelled requests and the inner one over a new request. Assumptions: all requests,
including the new one, are independent draws from one distribution, and the thresholds and starts of the `Grid` were fixed
without the scores and labels of the labelled requests. Nothing is assumed about the score.

*One threshold.* Of n accepted requests, k are wrong; given n, k is binomial. If the true risk exceeds alpha,
``p = P(Bin(n, alpha) <= k)`` is at most u with probability at most u (Clopper and Pearson 1934; conditional on n, hence also
unconditionally).

*All thresholds* are tested from strict to liberal. Each of J starts holds delta / J. The level at a position is the share of
its start, plus the level of the previous position if that one was rejected (its risk shown to be at most alpha). The most
liberal rejected threshold is chosen. This is the fallback procedure (Wiens 2003): fixed-sequence testing with several
starts, whose levels are passed on. *Proof* that all rejections are correct simultaneously with probability >= 1 - delta: let
j be the first position that is rejected wrongly, and i < j the last one before it with a true risk above alpha. Position i
was not rejected, so it passes no level on; the level at j is at most the sum of the starts in (i, j]. Such intervals, one
for each position with a risk above alpha, are disjoint, so by the union bound the probability is at most the sum over all
starts, delta. The tests may be dependent. "Holm" is Holm's step-down procedure (1979) on the same p-values.

*Starts must not be placed by the labelled requests' own scores*, not even without labels: given the number of scores in each
band between two thresholds, the number of wrong answers is a sum of binomials, each with its band's own risk, and no longer
binomial with the overall risk. So `grid_from` places them by *expected* numbers, estimated from other requests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, betainccinv

from workflow_composer.errors import ConfigError, InfeasibleTarget, InputError

METHODS = ("fixed_sequence", "holm")
# MULTIPLES: expected acceptances at each start, in multiples of the minimum that can pass. REACH: the last of several starts
# is moved to at least this share of all requests, since scores may be concentrated at the top.
# benchmarks/selective_risk.py --part starts compares them with other choices.
MULTIPLES = (2, 4, 8)
REACH = 0.4

Floats = NDArray[np.float64]


def p_value(wrong: ArrayLike, accepted: ArrayLike, alpha: float) -> Floats:
    """Return P(Bin(accepted, alpha) <= wrong): small if the risk is below ``alpha``; 1 if no answer is accepted.

    Takes arrays of one shape and returns that shape.

    >>> round(float(p_value(3, 100, 0.10)), 5)
    0.00784
    """
    return np.asarray(bdtr(np.asarray(wrong, np.float64), np.asarray(accepted, np.int64), alpha), np.float64)


def upper_bound(wrong: int, accepted: int, delta: float) -> float:
    """Return Clopper and Pearson's one-sided upper bound: the risk at which ``wrong`` or fewer have probability ``delta``.

    For one threshold fixed beforehand, it covers the risk with probability >= 1 - ``delta``. 1.0 if none is accepted.

    >>> round(upper_bound(3, 100, 0.05), 4), upper_bound(0, 0, 0.05), upper_bound(2, 2, 0.05)
    (0.0757, 1.0, 1.0)
    """
    return 1.0 if wrong >= accepted else float(betainccinv(wrong + 1, accepted - wrong, delta))


def lower_bound(wrong: int, accepted: int, delta: float) -> float:
    """Return the lower bound: the risk at which ``wrong`` or more have probability ``delta``; 0.0 if none is wrong."""
    return 1.0 - upper_bound(accepted - wrong, accepted, delta)


def fewest_accepted(alpha: float, level: float) -> int:
    """Return the minimum number of acceptances that can reach ``level``: (1 - alpha) ** n <= level, with none wrong.

    >>> fewest_accepted(0.10, 0.10), fewest_accepted(0.02, 0.05 / 3)
    (22, 203)
    """
    fewest = max(1, math.ceil(math.log(level) / math.log1p(-alpha)))
    near = range(max(1, fewest - 1), fewest + 1)  # rounding may put the formula off by one
    return next((count for count in near if float(p_value(0, count, alpha)) <= level), fewest + 1)


def highest_coverage(base_error: float, alpha: float) -> float:
    """Return the maximum coverage of any score at risk ``alpha``: right answers make up 1 - alpha of the accepted ones.

    coverage * (1 - alpha) <= P(right) = 1 - ``base_error``.

    >>> highest_coverage(0.46, 0.10), highest_coverage(0.05, 0.10)
    (0.6, 1.0)
    """
    return min(1.0, (1.0 - base_error) / (1.0 - alpha))


@dataclass(frozen=True)
class Grid:
    """Thresholds in test order, strict to liberal, and the positions at which testing starts.

    ``-inf`` accepts every known score. Raises `InputError` unless thresholds decrease and starts are increasing positions.
    """

    thresholds: tuple[float, ...]
    starts: tuple[int, ...]

    def __post_init__(self) -> None:
        falling = all(a > b for a, b in zip(self.thresholds, self.thresholds[1:], strict=False))
        if not self.thresholds or not falling or any(math.isnan(threshold) for threshold in self.thresholds):
            raise InputError("a grid needs at least one threshold, and its thresholds must be decreasing numbers")
        if not self.starts or list(self.starts) != sorted(set(self.starts) & set(range(len(self.thresholds)))):
            raise InputError(f"the starts of a grid must be increasing positions from 0 to {len(self.thresholds) - 1}")


def fixed_grid() -> Grid:
    """Return thresholds from 0.95 to 0 in steps of 0.05, for scores that are probabilities; starts at 0.80 and 0.65.

    It does not depend on data, so all labelled requests can be used to calibrate.
    """
    return Grid(tuple(round(0.05 * step, 2) for step in range(19, -1, -1)), (3, 6))


def grid_from(
    reference_scores: ArrayLike,
    *,
    size: int = 20,
    n: int,
    alpha: float,
    level: float,
    multiples: Sequence[float] = MULTIPLES,
    reach: float = REACH,
) -> Grid:
    """Return thresholds that accept evenly spaced shares of ``reference_scores`` [m], the scores of *other* requests.

    ``n``: number of calibration requests; ``level``: their delta. The strictest threshold is the first start; the most
    liberal one accepts all known scores. Starts are placed where the expected number of acceptances is ``multiples`` times
    the minimum that can pass at a start's share of ``level``; there are fewer starts if ``n`` is too small for all, and they
    are stretched to a share ``reach`` of the requests if it is large. Ties can leave fewer than ``size`` thresholds. No
    labels are needed.
    """
    reference = np.asarray(reference_scores, np.float64)
    known = np.sort(reference[~np.isnan(reference)])[::-1]
    if not len(known):
        return Grid((-math.inf,), (0,))
    wanted = [min(1.0, count / max(n, 1)) for count in _start_counts(n, alpha, level, multiples, reach)]
    share_known = len(known) / len(reference)
    shares = np.linspace(min(1.0, wanted[0] / share_known), 1.0, size)[:-1]
    places = np.maximum(np.ceil(shares * len(known) - 1e-9).astype(np.int64), 1) - 1
    # -inf replaces the smallest known score and accepts it, too.
    thresholds = [*sorted(set(known[places].tolist()) - {known[-1], -math.inf}, reverse=True), -math.inf]
    expected = np.array([np.mean(reference >= threshold) for threshold in thresholds])
    starts = {int(np.argmax(expected >= min(share, share_known) - 1e-9)) for share in wanted}
    return Grid(tuple(thresholds), tuple(sorted(starts)))


def _start_counts(n: int, alpha: float, level: float, multiples: Sequence[float], reach: float) -> list[float]:
    """Return the expected acceptances at each start: as many ``multiples`` as keep the last start within 95 % of ``n``.

    If the last of several would be below ``reach`` of ``n``, they are stretched to it on a logarithmic scale.
    """
    for starts in range(len(multiples), 0, -1):
        fewest = fewest_accepted(alpha, level / starts)
        counts = np.array(multiples[:starts], np.float64) * fewest
        if counts[-1] <= 0.95 * n:
            if starts > 1 and counts[-1] < reach * n:
                way = np.log(counts / counts[0]) / np.log(counts[-1] / counts[0])
                counts = counts[0] * (reach * n / counts[0]) ** way
            return [float(count) for count in counts]
    # One start, halfway between the minimum that can pass and ``n``; at ``n`` if there are fewer than the minimum.
    return [(fewest + n) / 2 if fewest < n else float(max(n, 1))]


def rejected(p_values: ArrayLike, starts: Sequence[int], delta: float, method: str = "fixed_sequence") -> NDArray[np.bool_]:
    """Return at which thresholds a risk above alpha is rejected, with P(any wrong rejection) <= ``delta``.

    ``p_values`` [..., thresholds] run from strict to liberal; the result has the same shape. Holm ignores ``starts``. Raises
    `ConfigError` for an unknown method.
    """
    p = np.asarray(p_values, np.float64)
    if method == "fixed_sequence":
        found = np.zeros(p.shape, np.bool_)
        level = np.zeros(p.shape[:-1])
        for position in range(p.shape[-1]):
            # Because of rounding, shares of delta may sum to slightly more than delta.
            level = np.minimum(level + (delta / len(starts) if position in starts else 0.0), delta)
            # A p-value may underflow to 0, but nothing passes at level 0.
            found[..., position] = (p[..., position] <= level) & (level > 0)
            level = np.where(found[..., position], level, 0.0)
        return found
    if method == "holm":
        order = np.argsort(p, axis=-1, kind="stable")
        passed = np.take_along_axis(p, order, axis=-1) * np.arange(p.shape[-1], 0, -1) <= delta
        found = np.empty(p.shape, np.bool_)
        np.put_along_axis(found, order, np.logical_and.accumulate(passed, axis=-1), axis=-1)
        return found
    raise ConfigError(f"unknown test method {method!r}", hint=f"known methods: {', '.join(METHODS)}")


def most_liberal(found: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the last rejected position along the last axis; -1 if there is none."""
    size = found.shape[-1]
    return np.where(found.any(axis=-1), size - 1 - np.argmax(found[..., ::-1], axis=-1), -1)


@dataclass(frozen=True)
class Selection:
    """Result of calibration for one tier.

    ``threshold``: accept if score >= threshold; None: accept nothing. ``accepted``, ``wrong`` (of the accepted) and
    ``reached`` (all requests that reached the tier) are counts on the labelled requests, the first two 0 without a
    threshold. ``level``: the tier's share of delta. ``labels_needed``: if nothing was certified, about how many *more*
    labelled requests would suffice with probability .8; None if no number would. ``reason``: compared when a certificate is
    verified, so its wording must not change.

    ``bound`` is Clopper and Pearson's upper bound at ``level`` for the chosen threshold (1.0 without one). It never exceeds
    alpha: the threshold passed at some level L <= ``level``, so P(Bin(accepted, alpha) <= wrong) <= ``level``, and the bound
    is the risk at which that probability, which decreases with the risk, equals ``level``. It describes the evidence; the
    *guarantee* is alpha, because the same labels chose the threshold.
    """

    threshold: float | None
    accepted: int
    wrong: int
    reached: int
    bound: float
    level: float
    p_value: float | None
    labels_needed: int | None
    reason: str

    @property
    def coverage(self) -> float:
        """Share of the labelled requests that the threshold accepts; 0.0 without requests."""
        return self.accepted / self.reached if self.reached else 0.0


def select(
    scores: ArrayLike, correct: ArrayLike, grid: Grid, *, alpha: float, delta: float, method: str = "fixed_sequence"
) -> Selection:
    """Return the most liberal threshold of ``grid`` at which the risk is certified to be at most ``alpha``.

    ``scores`` [n], NaN: unknown; ``correct`` [n], True or 1 if the answer is right. The module's docstring states the
    guarantee. Raises `InputError` for invalid input and `ConfigError` for an unknown method.
    """
    score, right = checked(scores, correct, dimensions=1)
    check_levels(alpha, delta)
    accepts = score[:, None] >= np.array(grid.thresholds)
    accepted, wrong = accepts.sum(axis=0), (accepts & ~right[:, None]).sum(axis=0)
    p = p_value(wrong, accepted, alpha)
    position = int(most_liberal(rejected(p, grid.starts, delta, method)))
    if position < 0:
        tests = len(grid.starts) if method == "fixed_sequence" else len(grid.thresholds)
        needed = _labels_needed(accepted, wrong, len(score), grid, alpha=alpha, level=delta / tests)
        reason = _why_nothing(score, accepted, alpha, delta / tests)
        return Selection(None, 0, 0, len(score), 1.0, delta, None, needed, reason)
    n, k = int(accepted[position]), int(wrong[position])
    reason = f"{k} of {n} accepted answers were wrong; at an error of {alpha:g} so few have probability {p[position]:.2g}"
    # At most alpha, see `Selection`; the minimum removes rounding errors of the inverse.
    bound = min(upper_bound(k, n, delta), alpha)
    return Selection(grid.thresholds[position], n, k, len(score), bound, delta, float(p[position]), None, reason)


def _why_nothing(score: Floats, accepted: NDArray[np.int64], alpha: float, level: float) -> str:
    fewest, known = fewest_accepted(alpha, level), int(np.sum(~np.isnan(score)))
    if not len(score):
        return "there are no labelled requests"
    if not known:
        return "no score is known"
    if accepted.max() < fewest:
        return f"too few labels: {fewest} must be accepted even where none is wrong, and {accepted.max()} were"
    return f"no threshold's answers were wrong rarely enough to show an error of at most {alpha:g}"


def _labels_needed(
    accepted: NDArray[np.int64], wrong: NDArray[np.int64], rows: int, grid: Grid, *, alpha: float, level: float
) -> int | None:
    """Estimate how many more labels let some threshold pass at ``level`` with probability .8, at the observed errors.

    Accurate within 8 %; None if more than a million acceptances would be needed. The error at a threshold is estimated as
    (wrong + alpha / 2) / (accepted + 1), so that no error among few answers does not count as perfect. Only starts count,
    because nothing passes unless a start does; if ``rows`` allowed only one start at the end, more rows would place others,
    and every threshold counts.
    """
    n = max(rows, 1)
    if not rows:  # assume that every request may be accepted
        accepted, wrong = np.ones_like(accepted), np.zeros_like(wrong)
    places = np.arange(len(grid.thresholds)) if grid.starts[0] == len(grid.thresholds) - 1 else np.array(grid.starts)
    seen = places[accepted[places] > 0]
    error = ((wrong[seen] + alpha / 2) / (accepted[seen] + 1))[:, None]
    counts = np.unique(np.geomspace(fewest_accepted(alpha, level), 1e6, 150).astype(np.int64))
    # The .8 quantile of the number of wrong answers, by the normal approximation with continuity correction.
    errors = np.minimum(np.floor(counts * error + 0.8416 * np.sqrt(counts * error * (1 - error)) + 0.5), counts)
    passes = (p_value(errors, counts, alpha) <= level) & (error < alpha)
    totals = (counts[np.argmax(passes, axis=1)] * n / accepted[seen])[passes.any(axis=1)]
    return max(math.ceil(totals.min()) - rows, 1) if len(totals) else None


def calibrate_conformal(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: float = 0.1,
    delta: float = 0.1,
    thresholds: Sequence[float] | None = None,
    reference: ArrayLike | None = None,
    coverage: float | None = None,
    method: str = "fixed_sequence",
) -> Selection:
    """Find a threshold whose accepted answers are wrong at a rate of at most ``alpha``, with confidence 1 - ``delta``.

    ``scores`` [n]: higher means more confident; NaN: unknown. ``labels`` [n]: True if the answer is right. The thresholds to
    test are ``thresholds`` (fixed beforehand, in any order), or placed by ``reference`` (scores of *other* requests, no
    labels needed), or those of `fixed_grid`, for scores in [0, 1]. With ``thresholds``, starts are where ``reference``
    predicts 2, 4 and 8 times the minimum number of acceptances; without ``reference``, at quarters of the list.

    ``coverage``: share of requests that should be accepted. Raises `InfeasibleTarget` if no score can accept as many:
    coverage <= (1 - mu) / (1 - alpha), with mu the lower confidence bound (at ``delta``) of the share of wrong answers, so a
    target is rejected wrongly with probability at most delta. The reason names a feasible target that was not reached.

    Unlike the ceil((1 - alpha) (n + 1))-th smallest score, which uses no labels and fixes only how *often* answers are
    accepted, this bounds how often accepted answers are *wrong*. Raises `InputError` for invalid input.

    >>> import numpy as np
    >>> scores = np.linspace(0, 1, 400)
    >>> found = calibrate_conformal(scores, scores > 0.5, reference=np.linspace(0, 1, 300))
    >>> found.threshold is not None and found.bound <= 0.1 and 0.4 < found.coverage < 0.6
    True
    >>> calibrate_conformal(scores, np.arange(400) % 3 > 0).reason
    "no threshold's answers were wrong rarely enough to show an error of at most 0.1"
    """
    score, right = checked(scores, labels, dimensions=1)
    check_levels(alpha, delta)
    if reference is not None and (reference is scores or np.may_share_memory(np.asarray(reference), np.asarray(scores))):
        raise InputError(
            "the reference scores must not be the calibration scores", hint="use scores of other requests, or omit them"
        )
    if coverage is not None:
        _check_feasible(right, coverage, alpha, delta)
    grid = _grid(score, thresholds, reference, alpha, delta)
    found = select(score, right, grid, alpha=alpha, delta=delta, method=method)
    if coverage is not None and found.coverage < coverage:
        reason = f"{found.reason}; accepts {found.coverage:.3f} of the requests, fewer than the {coverage:g} asked for"
        return replace(found, reason=reason)
    return found


def _grid(
    score: Floats, thresholds: Sequence[float] | None, reference: ArrayLike | None, alpha: float, delta: float
) -> Grid:
    if thresholds is None:
        if reference is not None:
            return grid_from(reference, n=len(score), alpha=alpha, level=delta)
        if np.any((score < 0) | (score > 1)):
            hint = "pass reference scores of other requests, or thresholds fixed beforehand"
            raise InputError("the default thresholds require scores in [0, 1]", hint=hint)
        return fixed_grid()
    ordered = tuple(sorted({float(threshold) for threshold in thresholds}, reverse=True))
    if reference is None:
        return Grid(ordered, tuple(sorted({len(ordered) * quarter // 4 for quarter in range(3)})))
    other = np.asarray(reference, np.float64)
    expected = np.array([np.mean(other >= threshold) for threshold in ordered]) * len(score)
    counts = _start_counts(len(score), alpha, delta, MULTIPLES, REACH)
    return Grid(ordered, tuple(sorted({min(int(np.sum(expected < count)), len(ordered) - 1) for count in counts})))


def _check_feasible(right: NDArray[np.bool_], coverage: float, alpha: float, delta: float) -> None:
    if not 0 < coverage <= 1:
        raise InputError(f"coverage must be greater than 0 and at most 1, not {coverage!r}")
    base = lower_bound(int(np.sum(~right)), len(right), delta)
    if coverage > (highest := highest_coverage(base, alpha)):
        raise InfeasibleTarget(
            f"no score can accept {coverage:g} of the requests at an error of {alpha:g}: mu, the share of wrong answers, is "
            f"at least {base:.3f} (confidence {1 - delta:g}), so coverage is at most (1 - mu) / (1 - alpha) = {highest:.3f}",
            hint="request less coverage, raise alpha, or use a more accurate model",
        )


def checked(scores: ArrayLike, correct: ArrayLike, *, dimensions: int) -> tuple[Floats, NDArray[np.bool_]]:
    """Return scores as floats and labels as booleans. Raises `InputError` unless they have one shape with ``dimensions``."""
    try:
        score, label = np.asarray(scores, np.float64), np.asarray(correct, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"scores and labels must be numbers: {error}", hint="an unknown score is NaN") from error
    if score.shape != label.shape or score.ndim != dimensions:
        raise InputError(
            f"scores have shape {score.shape}, but labels have shape {label.shape}", hint="pass one label per score"
        )
    if not np.isin(label, (0.0, 1.0)).all():
        raise InputError("every label must be true or false, 1 or 0", hint="omit requests with unknown labels")
    return score, label.astype(np.bool_)


def check_levels(alpha: float, delta: float) -> None:
    """Raise `InputError` unless both lie strictly between 0 and 1."""
    for name, value in (("alpha", alpha), ("delta", delta)):
        if not 0 < value < 1:
            raise InputError(f"{name} must be between 0 and 1 (exclusive), not {value!r}", hint="a typical value is 0.10")
