"""A score: what it computes, that it never falls as its logit rises, and which files are none."""

from __future__ import annotations

import copy
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflow_composer.calibration.scores.scores import FEATURES, Calibrator, ScoreModel, logistic
from workflow_composer.calibration.scores.signals import UNKNOWN, FeedbackSignal, analyze
from workflow_composer.errors import InputError

PLATT = Calibrator("platt", ((1.5, -0.2),))
STEPS = Calibrator("isotonic", ((-1.0, 0.1), (0.0, 0.4), (2.0, 0.9)))
MODEL = ScoreModel(("mean_logprob", "log_length"), (-0.5, 2.0), (0.5, 1.0), (2.0, -1.0), 0.3, PLATT)


def test_features_are_fields_of_a_signal():
    assert set(FEATURES) <= set(FeedbackSignal.__dataclass_fields__)


def test_a_score_is_a_standardised_regression_put_through_its_calibrator():
    signal = analyze([-0.25] * 20)
    logit = 0.3 + 2.0 * (-0.25 + 0.5) / 0.5 - (math.log(20) - 2.0)
    assert MODEL.probability(signal) == pytest.approx(logistic(1.5 * logit - 0.2))


def test_a_missing_feature_makes_the_score_unknown():
    needs_entropy = ScoreModel(("entropy",), (0.0,), (1.0,), (1.0,), 0.0, PLATT)
    assert needs_entropy.probability(analyze([-0.1])) is None
    assert MODEL.probability(UNKNOWN) is None


@pytest.mark.parametrize(("x", "p"), [(-5, 0.1), (-1, 0.1), (-0.5, 0.25), (0, 0.4), (1, 0.65), (2, 0.9), (7, 0.9)])
def test_isotonic_steps_are_joined_and_constant_beyond_their_ends(x, p):
    assert STEPS(x) == pytest.approx(p)


@given(st.lists(st.floats(-50, 50), min_size=2), st.sampled_from([PLATT, STEPS]))
def test_calibrators_keep_the_order(logits, calibrator):
    found = [calibrator(x) for x in sorted(logits)]
    assert found == sorted(found)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_the_logistic_function_never_overflows(x):
    assert 0.0 <= logistic(x) <= 1.0
    assert logistic(x) + logistic(-x) == pytest.approx(1.0)


@given(st.data())
def test_nothing_within_the_ranges_scores_higher_than_the_highest(data):
    ranges = [
        sorted(0.0 + bound for bound in data.draw(st.tuples(st.floats(-9, 9), st.floats(-9, 9)))) for _ in MODEL.features
    ]
    values = [data.draw(st.floats(low, high)) for low, high in ranges]
    assert MODEL.calibrator(MODEL.logit(values)) <= MODEL.highest(ranges) + 1e-12


@pytest.mark.parametrize("calibrator", [PLATT, STEPS])
def test_a_score_survives_json(calibrator):
    model = ScoreModel(*(getattr(MODEL, name) for name in MODEL.__slots__[:-1]), calibrator)
    assert ScoreModel.from_dict(json.loads(json.dumps(model.to_dict()))) == model


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        (["features"], ["mean_logprob", "mood"], "unknown features: mood"),
        (["features"], ["mean_logprob"], "one center, scale and weight per feature"),
        (["features"], None, "invalid score model"),
        (["center"], [0.0], "one center, scale and weight per feature"),
        (["scale"], [1.0, 0.0], "scales of a score model must be positive"),
        (["weights"], [1.0, math.nan], "is not a finite number"),
        (["weights"], [1.0, True], "is not a finite number"),
        (["weights"], [1.0, "2"], "is not a finite number"),
        (["intercept"], math.inf, "is not a finite number"),
        (["calibrator", "form"], "spline", "unknown calibrator 'spline'"),
        (["calibrator", "knots"], [[-1.0, 0.0]], "non-negative slope"),
        (["calibrator", "knots"], [[1.0, 0.0], [1.0, 0.0]], "one non-negative slope"),
        (["calibrator", "knots"], [[1.0]], "invalid score model"),
        (["calibrator"], {"form": "isotonic", "knots": []}, "must be increasing"),
        (["calibrator"], {"form": "isotonic", "knots": [[0.0, 0.1], [0.0, 0.2]]}, "must be increasing"),
        (["calibrator"], {"form": "isotonic", "knots": [[0.0, 0.2], [1.0, 0.1]]}, "must be increasing"),
    ],
)
def test_damaged_scores_are_refused(path, value, fault):
    data = copy.deepcopy(MODEL.to_dict())
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(InputError, match=fault):
        ScoreModel.from_dict(data)


@pytest.mark.parametrize("key", ["features", "center", "scale", "weights", "intercept", "calibrator"])
def test_a_score_without_one_of_its_parts_is_refused(key):
    data = MODEL.to_dict()
    del data[key]
    with pytest.raises(InputError, match="invalid score model: KeyError"):
        ScoreModel.from_dict(data)
