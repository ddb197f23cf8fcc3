"""The figures of a calibration: well-formed whatever the answers are like, and true to the numbers."""

import warnings
from xml.etree import ElementTree

import numpy as np
import pytest

from workflow_composer.calibration.certify import plots
from workflow_composer.errors import ConfigError

SVG = "{http://www.w3.org/2000/svg}"
NAN, INFINITE = float("nan"), float("inf")


def texts(path):
    return [element.text for element in ElementTree.parse(path).iter(f"{SVG}text")]


def draw_all(folder, scores, correct, *, threshold, bound=0.1, ending="svg", title="maths, tier small"):
    paths = [folder / f"{name}.{ending}" for name in ("risk", "reliability", "threshold")]
    plots.risk_against_coverage(paths[0], scores, correct, alpha=0.1, threshold=threshold, bound=bound, title=title)
    plots.reliability(paths[1], scores, correct, title=title)
    plots.threshold_among_answers(paths[2], scores, correct, threshold=threshold, title=title)
    return paths


@pytest.fixture(scope="module")
def answers():
    """Eight of ten right above .5, two of ten below."""
    scores = np.linspace(0.005, 0.995, 100)
    return scores, np.where(scores > 0.5, np.arange(100) % 5 > 0, np.arange(100) % 5 == 0)


@pytest.mark.parametrize(
    ("scores", "correct", "threshold", "bound"),
    [
        ([], [], None, 1.0),
        ([NAN, NAN], [True, False], -INFINITE, 1.0),
        ([0.7], [False], 0.7, 0.95),
        ([0.0, 0.5, 1.0], [True] * 3, -INFINITE, 0.6),
        ([0.0, 0.5, 1.0, 1.0], [False] * 4, 1.0, 1.0),
        ([0.4] * 50, [True, False] * 25, 0.9, 0.0),
    ],
)
def test_any_answers_give_three_drawings_without_a_warning(tmp_path, scores, correct, threshold, bound):
    """None, none with a score, one, all right, all wrong, equal scores none of which is accepted."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in draw_all(tmp_path, scores, correct, threshold=threshold, bound=bound):
            assert "maths, tier small" in texts(path)


def test_the_certified_point_is_named_with_its_numbers(tmp_path, answers):
    """Half of the requests, and the bound."""
    path = tmp_path / "risk.svg"
    plots.risk_against_coverage(path, *answers, alpha=0.25, threshold=0.5, bound=0.231)
    assert {"certified: 50 % accepted; upper bound 23.1 % wrong", "limit 0.25"} <= set(texts(path))
    plots.risk_against_coverage(path, *answers, alpha=0.25, threshold=None, bound=1.0)
    assert not any("certified" in text for text in texts(path))


def test_answers_of_unknown_score_count_as_requests_that_are_not_accepted(tmp_path):
    """Two of four are accepted, though all that have a score are."""
    path = tmp_path / "risk.svg"
    plots.risk_against_coverage(path, [0.9, 0.8, NAN, NAN], [True] * 4, alpha=0.1, threshold=-INFINITE, bound=0.5)
    assert "certified: 50 % accepted; upper bound 50.0 % wrong" in texts(path)


def test_the_counts_are_those_of_the_answers(tmp_path, answers):
    """In the tenths of reliability, and on both sides of the threshold."""
    _, reliability, threshold = draw_all(tmp_path, *answers, threshold=0.5)
    assert texts(reliability).count("10") == 10
    assert {"accepted at 0.5 or more: 40 right, 10 wrong", "right (50)", "wrong (50)"} <= set(texts(threshold))
    plots.threshold_among_answers(threshold, *answers, threshold=None)
    assert "no threshold: nothing is accepted" in texts(threshold)
    plots.threshold_among_answers(threshold, *answers, threshold=-INFINITE)
    assert "all accepted: 50 right, 50 wrong" in texts(threshold)


def test_the_same_numbers_give_the_same_file(tmp_path, answers):
    """So that a picture under version control changes when the numbers do."""
    first = [path.read_bytes() for path in draw_all(tmp_path, *answers, threshold=0.5)]
    assert first == [path.read_bytes() for path in draw_all(tmp_path, *answers, threshold=0.5)]


def test_pictures_come_as_png_too_and_as_nothing_else(tmp_path, answers):
    """The ending decides; a folder that is not there is made."""
    for path in draw_all(tmp_path / "new", *answers, threshold=0.5, ending="png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match=r"unsupported plot format: risk\.pdf"):
        draw_all(tmp_path, *answers, threshold=0.5, ending="pdf")


def test_long_titles_and_signs_of_mathematics_stay_text(tmp_path, answers):
    """A group's name may be anything."""
    (path, *_) = draw_all(tmp_path, *answers, threshold=0.5, title="$x$ <b> " + "very " * 40 + "long")
    title = next(text for text in texts(path) if text.startswith("$x$ <b>"))
    assert len(title) < 90
