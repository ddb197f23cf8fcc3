"""Answers of random tokens, for the tests of everything that reads log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hypothesis import strategies as st

from workflow_composer.calibration.scores.scores import FEATURES, Calibrator, ScoreModel
from workflow_composer.calibration.scores.signals import FLOOR, FeedbackRules
from workflow_composer.types import Sample, TokenLogprob

CHOSEN_ONLY = ("mean_logprob", "min_logprob", "sequence_logprob", "log_length", "binary_entropy", "low_confidence_ratio")
"""Features that need no alternatives."""


def sure(*logprobs: float, text: str = "x ") -> Sample:
    """An answer whose tokens have these log-probabilities, with nothing known of their alternatives."""
    return Sample(text * len(logprobs), "stop", logprobs=tuple(TokenLogprob(text, value) for value in logprobs))


def spread(*tokens: Sequence[float], text: str = "x ") -> Sample:
    """An answer of which each token's most likely outcomes have these probabilities; the first is the token."""
    made = [
        TokenLogprob(text, math.log(ps[0]), tuple((f"{text}{i}", math.log(p)) for i, p in enumerate(ps))) for ps in tokens
    ]
    return Sample(text * len(made), "stop", logprobs=tuple(made))


@st.composite
def token(draw: st.DrawFn, alternatives: int) -> TokenLogprob:
    """One token beside so many alternatives; now and then it is none of them.

    Beside a single one it always is that one: else some tokens would tell of a margin, and others not.
    """
    weights = sorted(
        draw(st.lists(st.floats(1e-6, 1.0), min_size=alternatives + 1, max_size=alternatives + 1)), reverse=True
    )
    total = math.fsum(weights) * draw(st.floats(1.0, 3.0))
    values = [math.log(weight / total) for weight in weights]
    chosen = draw(st.sampled_from({0: [*values, -9999.0, 0.0], 1: values[:1]}.get(alternatives, values)))
    return TokenLogprob("x ", chosen, tuple((str(i), value) for i, value in enumerate(values[:alternatives])))


@st.composite
def answers(draw: st.DrawFn, longest: int = 12) -> list[TokenLogprob]:
    """One to ``longest`` tokens, all beside as many alternatives."""
    alternatives = draw(st.sampled_from([0, 1, 2, 5]))
    return draw(st.lists(token(alternatives), min_size=1, max_size=longest))


def cuts(draw: st.DrawFn, tokens: Sequence[TokenLogprob]) -> list[list[TokenLogprob]]:
    """The same tokens in pieces, as a stream could bring them."""
    places = sorted(draw(st.sets(st.integers(1, len(tokens) - 1)))) if len(tokens) > 1 else []
    return [list(tokens[i:j]) for i, j in zip([0, *places], [*places, len(tokens)], strict=True)]


def rules() -> st.SearchStrategy[FeedbackRules]:
    """Rules of every strictness."""
    return st.builds(
        FeedbackRules,
        safety_threshold=st.floats(0.0, 1.0),
        entropy=st.floats(0.01, 15.0),
        binary_entropy=st.floats(0.01, 1.0),
        min_logprob=st.floats(FLOOR, -0.01),
        low_confidence_ratio=st.floats(0.0, 1.0),
    )


@st.composite
def scores(draw: st.DrawFn) -> ScoreModel:
    """Any score over any features."""
    features = tuple(draw(st.lists(st.sampled_from(FEATURES), min_size=1, max_size=4, unique=True)))
    weights = draw(st.lists(st.floats(-3.0, 3.0), min_size=len(features), max_size=len(features)))
    if draw(st.booleans()):
        calibrator = Calibrator("platt", ((draw(st.floats(0.0, 3.0)), draw(st.floats(-2.0, 2.0))),))
    else:
        places = sorted(draw(st.sets(st.integers(-50, 50), min_size=1, max_size=5)))
        heights = sorted(draw(st.lists(st.floats(0.0, 1.0), min_size=len(places), max_size=len(places))))
        calibrator = Calibrator("isotonic", tuple((x / 10, y) for x, y in zip(places, heights, strict=True)))
    ones = (1.0,) * len(features)
    return ScoreModel(features, (0.0,) * len(features), ones, tuple(weights), draw(st.floats(-3.0, 3.0)), calibrator)
