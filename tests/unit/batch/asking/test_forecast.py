"""What a run will cost and take."""

from __future__ import annotations

import pytest

from workflow_composer.answers.output_form import output_form
from workflow_composer.batch.asking.forecast import Measured, forecast, seconds_per_token
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.plan import Candidate, Tier, Voting

LINE = {"cost": 0.5, "latency_ms": 1000.0}


def test_means_over_the_rows_with_an_answer():
    """Failed rows are left out; an unknown cost makes the mean unknown."""
    lines = [LINE, {"cost": 1.5, "latency_ms": 3000.0}, {**LINE, "cost": 99.0, "error": {}}]
    assert Measured.of(lines) == Measured(2, 1.0, 2.0)
    assert Measured.of([LINE, {**LINE, "cost_known": False}]).cost is None
    assert Measured.of([lines[-1]]) is None


@pytest.fixture
def config():
    models = {
        "cheap": {"backend": "fake", "input_price": 1.0, "output_price": 10.0},
        "dear": {"backend": "fake", "input_price": 100.0, "output_price": 100.0},
        "free": {"backend": "fake"},
    }
    return StrategyConfig(profile_name="p", models=models, task_routing={"*": "cheap"}, routers=["provider"])


def tier(name, samples=1, draw="at_once"):
    voting = Voting(draw=draw) if samples > 1 else None
    return Tier.of([Candidate(name, local=True)], name, samples, 0.0, voting=voting)


class ShownPlan:
    """As much of a plan as is looked at."""

    def __init__(self, *tiers):
        self.tiers = tiers


def test_the_price_is_that_of_the_first_tier_up_to_that_of_all(config):
    """Four characters a prompt token; eight tokens an answer that is a word; votes at once pay for the prompt each time."""
    words = output_form(["a", "b"])
    found = forecast(ShownPlan(tier("cheap"), tier("dear")), config, words, rows=100, characters=40_000, most_tokens=None)
    assert (found.prompt_tokens, found.answer_tokens) == (10_000, 8)
    assert found.least == pytest.approx((10_000 * 1 + 800 * 10) / 1e6)
    assert found.most == pytest.approx(found.least + (10_000 + 800) * 100 / 1e6)
    votes = forecast(ShownPlan(tier("cheap", 3)), config, words, rows=100, characters=40_000, most_tokens=None)
    assert votes.least == pytest.approx((30_000 * 1 + 2400 * 10) / 1e6)
    needed = forecast(ShownPlan(tier("cheap", 3, "as_needed")), config, words, rows=100, characters=40_000, most_tokens=None)
    assert needed.least == pytest.approx((10_000 * 1 + 2400 * 10) / 1e6)


def test_the_form_and_the_limit_tell_how_long_answers_are(config):
    """A field has more tokens than a word, a text the most; none has more than the limit."""
    plan = ShownPlan(tier("free"))
    forms = (output_form("number"), output_form({"a": "text", "b": "number"}), output_form("text"))
    lengths = [forecast(plan, config, form, rows=1, characters=4, most_tokens=None).answer_tokens for form in forms]
    assert lengths == sorted(set(lengths))
    assert forecast(plan, config, forms[2], rows=1, characters=4, most_tokens=5).answer_tokens == 5
    assert forecast(plan, config, forms[2], rows=1, characters=4, most_tokens=5).unpriced == ("free",)


def test_no_metrics_no_time(tmp_path):
    """The file may be missing, or be a folder."""
    assert seconds_per_token(tmp_path / "none", "x") is None
    assert seconds_per_token(tmp_path, "x") is None
