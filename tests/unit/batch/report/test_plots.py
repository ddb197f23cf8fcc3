"""The figures: well-formed drawings, whatever the runs are like, whose marks stand where the numbers say."""

import re
import warnings
from xml.etree import ElementTree

import pytest

from tests.unit.batch.finished import cascade, greedy, row, tier
from workflow_composer.batch.report import plots
from workflow_composer.batch.report.comparison import compare
from workflow_composer.batch.report.run_summary import RunSummary

SVG = "{http://www.w3.org/2000/svg}"
WIDE = "mv_cascade_" + "Qwen/Qwen2.5-Math-7B-Instruct_k8_t0.7_" * 4


def compared(**runs):
    return compare([RunSummary.of(name, rows) for name, rows in runs.items()], resamples=50)


def texts(drawing):
    return [element.text for element in ElementTree.fromstring(drawing).iter(f"{SVG}text")]


def places(drawing, colour):
    """Where marks of a colour are drawn."""
    uses = ElementTree.fromstring(drawing).iter(f"{SVG}use")
    return [(float(use.get("x")), float(use.get("y"))) for use in uses if f"var(--{colour})" in use.get("style", "")]


@pytest.fixture
def comparison():
    return compared(
        small=greedy(40, "small", lambda n: n < 20, cost=0.01),
        large=greedy(40, "large", lambda n: n < 36, cost=0.5),
        run=cascade(40, lambda n: n >= 20, lambda n: n < 20, lambda n: n < 36),
    )


class TestAccuracyAgainstCost:
    def test_better_runs_stand_higher_and_dearer_ones_further_right(self, comparison):
        """SVG's y grows downwards."""
        small, large = places(plots.accuracy_against_cost(comparison), "single")[:2]
        assert large[1] < small[1]
        assert large[0] > small[0]

    def test_points_are_named_by_their_numbers(self, comparison):
        """And by their names, where these are short."""
        assert {"1 small", "2 large", "3 run"} <= set(texts(plots.accuracy_against_cost(comparison)))
        long = compared(**{WIDE: greedy(5, "small", bool)})
        assert "1" in texts(plots.accuracy_against_cost(long))

    def test_labels_of_runs_in_one_place_do_not_cover_each_other(self):
        """Six runs with the same figures have six labels in six places."""
        drawing = plots.accuracy_against_cost(compared(**{name: greedy(30, "small", lambda n: n < 20) for name in "abcdef"}))
        labels = [e for e in ElementTree.fromstring(drawing).iter(f"{SVG}text") if re.fullmatch("[1-6] [a-f]", e.text or "")]
        assert len({(e.get("x"), e.get("y"), e.get("transform")) for e in labels}) == 6

    @pytest.mark.parametrize("cost", [0.0, 1e-9, 1e6])
    def test_any_cost_can_be_drawn(self, cost):
        """Runs that cost nothing, too, which no logarithm can show."""
        drawing = plots.accuracy_against_cost(
            compared(free=greedy(5, "small", bool, cost=0.0), dear=greedy(5, "large", bool, cost=cost))
        )
        assert "NaN" not in drawing
        assert ElementTree.fromstring(drawing).tag == f"{SVG}svg"


class TestOthers:
    def test_bars_are_as_long_as_the_shares(self, comparison):
        """Half of the cascade's questions each."""
        drawing = plots.shares([(3, comparison.runs[2])], ("small", "large"))
        paths = [e for e in ElementTree.fromstring(drawing).iter(f"{SVG}path") if "var(--tier-" in e.get("style", "")]
        widths = []
        for path in paths[:2]:
            xs = [float(x) for x in re.findall(r"[ML] ([\d.]+) ", path.get("d"))]
            widths.append(max(xs) - min(xs))
        assert widths[0] == pytest.approx(widths[1], rel=0.01)
        assert {"small", "large", "run 3"} <= {text.strip() for text in texts(drawing)}

    def test_tiers_of_any_number_and_name_have_colours(self):
        """Nine of them, hidden names, other alphabets, without a warning about fonts."""
        names = ["_hidden", "数学", *(f"tier-{at}" for at in range(7))]
        runs = compared(run=[row(at, tier(name, True)) for at, name in enumerate(names)])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            drawing = plots.shares([(1, runs.runs[0])], names)
        assert set(names) <= {text.strip() for text in texts(drawing)}
        assert {plots.tier_colour(names[0], names), plots.tier_colour(names[-1], names)} == {"tier-0", "tier-5"}

    @pytest.mark.parametrize("count", range(1, 7))
    def test_calibration_is_drawn_for_any_number_of_runs(self, comparison, count):
        """Each panel with its number, each column with its axis."""
        drawing = plots.reliability([(number, comparison.runs[2]) for number in range(1, count + 1)])
        found = texts(drawing)
        assert [f"run {number}" for number in range(1, count + 1)] == [text for text in found if text.startswith("run ")]
        assert found.count("confidence") == min(count, 3 if count > 4 else count)

    def test_escalations_join_before_and_after(self, comparison):
        """None right before, four in five after."""
        drawing = plots.escalations([(3, comparison.runs[2])])
        before, after = (places(drawing, colour)[0] for colour in ("single", "cascade"))
        assert after[0] > before[0]
        assert "3: small to large" in texts(drawing)

    def test_every_colour_is_the_pages(self, comparison):
        """Nothing is drawn in a colour that would not follow it into the dark."""
        drawings = [
            plots.accuracy_against_cost(comparison),
            plots.shares([(3, comparison.runs[2])], ("small", "large")),
            plots.reliability([(3, comparison.runs[2])]),
            plots.escalations([(3, comparison.runs[2])]),
        ]
        for drawing in drawings:
            assert not re.findall(r"#[0-9a-f]{6}", drawing)
            assert set(re.findall(r"var\(--([a-z0-9-]+)\)", drawing)) <= set(plots._COLOURS)
