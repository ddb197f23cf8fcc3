"""The same question asked of others: MAPIE, Learn-then-Test, the SGR procedure; and how conformal risk control differs."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from workflow_composer.calibration.certify import risk
from workflow_composer.calibration.certify.risk import Grid, fixed_grid, select

THRESHOLDS = tuple(round(0.95 - 0.05 * step, 2) for step in range(19))


def requests(seed: int, n: int):
    """Scores rounded so that ties with thresholds occur, and answers right with a probability that depends on them."""
    rng = np.random.default_rng(seed)
    scores = np.round(rng.beta(2, 1.2, size=n), 2)
    return scores, rng.random(n) < 1 / (1 + np.exp(-(9 * scores - 4.2)))


def counted(scores, labels):
    """Accepted and wrong at each threshold."""
    accepts = scores[:, None] >= np.array(THRESHOLDS)
    return accepts.sum(axis=0), (accepts & ~labels[:, None]).sum(axis=0)


def mapie_controller(scores, labels, alpha, delta, method):
    """MAPIE's control of precision, calibrated on the same thresholds from strict to liberal."""
    control = pytest.importorskip("mapie.risk_control", reason="MAPIE is not installed (pip install mapie)")
    controller = control.BinaryClassificationController(
        lambda column: np.column_stack([1 - column.ravel(), column.ravel()]),
        risk="precision",
        target_level=1 - alpha,
        confidence_level=1 - delta,
        list_predict_params=np.array(THRESHOLDS),
        fwer_method=method,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where nothing passes, and that the risk should be monotone
        controller.calibrate(scores.reshape(-1, 1), labels.astype(int))
    return controller


SETTINGS = pytest.mark.parametrize(("n", "alpha", "delta"), [(60, 0.2, 0.1), (300, 0.1, 0.05), (2000, 0.05, 0.1)])
METHODS = pytest.mark.parametrize(("ours", "theirs"), [("holm", "bonferroni_holm"), ("fixed_sequence", "fixed_sequence")])


@SETTINGS
def test_p_values_are_mapies_but_for_its_rounding(n, alpha, delta):
    """Equal, or MAPIE's is larger: it counts ceil(accepted * share wrong), which floating point can raise by one.

    Most are equal, and where they are not, MAPIE's is at most the p-value of one more wrong answer.
    """
    equal = []
    for seed in range(10):
        scores, labels = requests(seed, n)
        accepted, wrong = counted(scores, labels)
        found = np.asarray(mapie_controller(scores, labels, alpha, delta, "bonferroni_holm").p_values).ravel()
        expected = risk.p_value(wrong, accepted, alpha)
        equal.append(np.isclose(found, expected, rtol=1e-6))
        assert np.all(found >= expected * (1 - 1e-6))
        assert np.all(found <= risk.p_value(np.minimum(wrong + 1, accepted), accepted, alpha) * (1 + 1e-6))
    assert np.mean(equal) > 0.5


@SETTINGS
@METHODS
def test_the_threshold_is_mapies_where_its_p_values_are_and_never_stricter(n, alpha, delta, ours, theirs):
    """One start at the strictest threshold, as there."""
    same = 0
    for seed in range(20):
        scores, labels = requests(seed, n)
        controller = mapie_controller(scores, labels, alpha, delta, theirs)
        valid = np.asarray(controller.valid_predict_params, float).ravel()
        found = select(scores, labels, Grid(THRESHOLDS, (0,)), alpha=alpha, delta=delta, method=ours).threshold
        expected = float(valid.min()) if len(valid) else None
        same += found == expected
        assert expected is None or (found is not None and found <= expected)
    assert same >= 10


@METHODS
def test_the_procedures_reject_what_mapies_do(ours, theirs):
    """On any p-values."""
    control = pytest.importorskip("mapie.risk_control.fwer_control", reason="MAPIE is not installed (pip install mapie)")
    for seed in range(200):
        p = np.random.default_rng(seed).beta(0.3, 3, size=12)
        expected = np.isin(np.arange(12), control.control_fwer(p, 0.1, theirs))
        assert risk.rejected(p, (0,), 0.1, ours).tolist() == expected.tolist()


def test_several_starts_reject_all_that_learn_then_test_does_with_them_and_more():
    """There each start walks on alone at delta / J (Angelopoulos and others 2021, algorithm 1); here levels add up."""
    more = 0
    for seed in range(300):
        p = np.random.default_rng(seed).beta(0.3, 3, size=12)
        alone = np.zeros(12, bool)
        for start in (0, 4, 8):
            for position in range(start, 12):
                if p[position] > 0.1 / 3:
                    break
                alone[position] = True
        found = risk.rejected(p, (0, 4, 8), 0.1)
        assert np.all(found | ~alone)
        more += bool((found & ~alone).any())
    assert more > 0


def sgr(scores, labels, alpha, delta):
    """Geifman and El-Yaniv 2017, algorithm 2: a binary search over the sorted scores, with the bound at delta / steps."""
    order = np.argsort(scores)
    low, high, steps, threshold = 0, len(scores) - 1, math.ceil(math.log2(len(scores))), None
    for _ in range(steps):
        middle = math.ceil((low + high) / 2)
        chosen = order[middle:]
        if risk.upper_bound(int(np.sum(~labels[chosen])), len(chosen), delta / steps) < alpha:
            high, threshold = middle, float(scores[order[middle]])
        else:
            low = middle
    return threshold


def test_the_sgr_procedure_accepts_less_at_the_same_target():
    """Both answer the same question; its binary search pays for every step, ours for three starts."""
    shares = []
    for seed in range(60):
        scores, labels = requests(seed, 500)
        theirs = sgr(scores, labels, 0.1, 0.1)
        ours = select(scores, labels, fixed_grid(), alpha=0.1, delta=0.1).threshold
        shares.append([0.0 if found is None else np.mean(scores >= found) for found in (ours, theirs)])
    ours, theirs = np.mean(shares, axis=0)
    assert ours > theirs > 0.3


def test_conformal_risk_control_answers_another_question():
    """It keeps the mean of "accepted and wrong" at alpha: the accepted answers alone are wrong more often than that."""
    joint, among = [], []
    for seed in range(60):
        scores, labels = requests(seed, 500)
        _, wrong = counted(scores, labels)
        last = np.flatnonzero((wrong + 1) / 501 <= 0.1)[-1]
        new_scores, new_labels = requests(seed + 1000, 5000)
        accepts = new_scores >= THRESHOLDS[last]
        joint.append(np.mean(accepts & ~new_labels))
        among.append(np.mean(~new_labels[accepts]))
    assert np.mean(joint) <= 0.1
    assert np.mean(among) > 0.12
