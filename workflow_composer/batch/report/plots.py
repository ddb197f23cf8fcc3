"""The report's figures, as SVG with the colours of the page, in light and dark mode.

Runs are labelled with their numbers in the report's tables, so that names of any length fit. Each function returns one SVG
drawing; its texts stay texts.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from workflow_composer.batch.report.comparison import CASCADE, COST, SECONDS, SINGLE, TOKENS, VOTE, Comparison, RunFigures
from workflow_composer.batch.report.document import one_line
from workflow_composer.batch.report.statistics import IntervalEstimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {
    "ink": "#010a01", "soft": "#010a02", "line": "#010a03", "card": "#010a04",
    "single": "#010a05", "vote": "#010a06", "cascade": "#010a07", "accent": "#010a08",
    **{f"tier-{at}": f"#010a1{at}" for at in range(6)},
}  # fmt: skip
"""Placeholder colours for matplotlib; the drawing has CSS variables of the page instead."""

_MARKS = {SINGLE: ("single", "o"), VOTE: ("vote", "s"), CASCADE: ("cascade", "D")}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "workflow_composer",
    "text.parse_math": False,
    "text.color": _COLOURS["ink"],
    "axes.edgecolor": _COLOURS["line"],
    "axes.labelcolor": _COLOURS["soft"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _COLOURS["line"],
    "grid.linewidth": 0.7,
    "xtick.color": _COLOURS["soft"],
    "ytick.color": _COLOURS["soft"],
    "font.size": 11.5,
    "legend.frameon": False,
}
_WIDTH = 5.8
"""Width in inches of 72 points; the page scales it, so that its texts stay readable on a telephone."""

_LABEL = 18
"""Longest name (characters) that is written next to its point."""

MOST_PANELS = 6
"""Most runs in the calibration figure; the tables have all runs."""


def accuracy_against_cost(comparison: Comparison) -> str:
    """Plot accuracy against the cost of 1,000 questions of each ranked run, with intervals; a line joins the Pareto front.

    Where costs are unknown or 0, tokens or seconds for each question take their place.
    """
    runs = [(at + 1, run) for at, run in enumerate(comparison.runs) if run.is_ranked]
    scale, label, form, better = _AXES[comparison.basis]
    costs = [scale * run.amount(comparison.basis).value for _, run in runs]
    with _figure(4.6) as figure:
        axes = figure.subplots()
        best = sorted((cost, _percent(run)) for (_, run), cost in zip(runs, costs, strict=True) if run.best)
        axes.plot(*zip(*best, strict=True), color=_COLOURS["accent"], linewidth=1.2, linestyle=(0, (4, 3)), zorder=2)
        for _, run in runs:
            _point(axes, run, run.amount(comparison.basis), scale)
        if min(costs) > 0 and max(costs) > 8 * min(costs):
            axes.set_xscale("log")
            steps = (1, 2, 5) if max(costs) < 100 * min(costs) else (1,)
            axes.xaxis.set_major_locator(_ticker().LogLocator(subs=steps))
            axes.xaxis.set_minor_locator(_ticker().NullLocator())
        axes.xaxis.set_major_formatter(_ticker().FuncFormatter(lambda value, _: form(value)))
        axes.yaxis.set_major_formatter(_ticker().FuncFormatter(lambda value, _: f"{value:g} %"))
        axes.margins(0.11, 0.09)
        axes.set_ylim(top=min(axes.get_ylim()[1], 104))
        axes.set_xlabel(label)
        axes.set_ylabel("right answers")
        for kind, (colour, mark) in _MARKS.items():
            if any(run.kind == kind for _, run in runs):
                axes.plot([], [], mark, color=_COLOURS[colour], label=kind, markersize=8)
        axes.plot([], [], color=_COLOURS["accent"], linestyle=(0, (4, 3)), label=f"no run is both better and {better}")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, handletextpad=0.5, columnspacing=1.6)
        _name_points(
            figure, axes, [(number, run, (cost, _percent(run))) for (number, run), cost in zip(runs, costs, strict=True)]
        )
        return _svg(figure)


def _point(axes: Axes, run: RunFigures, spent: IntervalEstimate, scale: float) -> None:
    colour, mark = _MARKS[run.kind]
    accuracy, cost = run.accuracy, scale * spent.value
    assert accuracy is not None
    right = _percent(run)
    ink = _COLOURS[colour]
    if not math.isnan(accuracy.low):
        axes.plot([cost, cost], [100 * accuracy.low, 100 * accuracy.high], color=ink, linewidth=1.6, alpha=0.6, zorder=1)
        axes.plot([scale * spent.low, scale * spent.high], [right, right], color=ink, linewidth=1.6, alpha=0.6, zorder=1)
    axes.plot(cost, right, mark, color=ink, markersize=9, markeredgecolor=_COLOURS["card"], markeredgewidth=1, zorder=3)


def _name_points(figure: Figure, axes: Axes, points: Sequence[tuple[int, RunFigures, tuple[float, float]]]) -> None:
    """Label each point with its number, and its name if short, at the position around it with the least overlap."""
    figure.draw_without_rendering()  # computes the positions of points
    scale = 72 / figure.dpi
    at = [axes.transData.transform(place) * scale for _, _, place in points]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in at]
    for (number, run, place), (x, y) in zip(points, at, strict=True):
        label = f"{number} {_short(run.name)}" if len(run.name) <= _LABEL else str(number)
        wide = 7.0 * len(label)
        shifts = [(dx, dy) for step in (1, 2, 3) for dx in (8 * step, -wide - 8 * step) for dy in (6 * step, -8 - 6 * step)]
        dx, dy = min(shifts, key=lambda shift: sum(_overlap((x, y), shift, wide, box) for box in taken))
        taken.append((x + dx, y + dy, x + dx + wide, y + dy + 10))
        ink = _COLOURS[_MARKS[run.kind][0]]
        line = {"arrowstyle": "-", "color": ink, "linewidth": 0.6, "shrinkB": 4} if abs(dy) > 14 else None
        axes.annotate(
            label, place, (dx, dy), textcoords="offset points", fontweight="bold", color=ink, zorder=4, arrowprops=line
        )


def _overlap(point: tuple[float, float], shift: tuple[float, float], wide: float, box: tuple[float, ...]) -> float:
    """Return the overlap of a box with a label of this width, shifted from its point."""
    left, low = point[0] + shift[0], point[1] + shift[1]
    across = min(left + wide, box[2]) - max(left, box[0])
    up = min(low + 10, box[3]) - max(low, box[1])
    return max(across, 0.0) * max(up, 0.0)


def shares(numbered: Sequence[tuple[int, RunFigures]], tiers: Sequence[str]) -> str:
    """Plot a bar per run: the share of questions that each tier decided, and of failed ones."""
    runs = [run for _, run in numbered]
    with _figure(0.9 + 0.36 * len(runs)) as figure:
        axes = figure.subplots()
        left, longest = [0.0] * len(runs), 6
        for tier in tiers:
            found = [sum(use.decided for use in run.tiers if use.name == tier) / max(run.rows, 1) for run in runs]
            if any(found):
                _bars(axes, found, left, _COLOURS[tier_colour(tier, tiers)], _short(tier))
                longest = max(longest, len(_short(tier)))
        failed = [run.failed / max(run.rows, 1) for run in runs]
        if any(failed):
            _bars(axes, failed, left, _COLOURS["line"], "failed")
        axes.set_yticks(range(len(runs)), [f"run {number}" for number, _ in numbered])
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.xaxis.set_major_formatter(_ticker().FuncFormatter(lambda value, _: f"{value:g} %"))
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=max(60 // (longest + 5), 1), handlelength=1, handleheight=1
        )
        return _svg(figure)


def _bars(axes: Axes, found: Sequence[float], left: list[float], colour: str, name: str) -> None:
    """Draw the next segment of each bar and advance ``left``."""
    widths = [100 * share for share in found]
    axes.barh(range(len(widths)), widths, left=left, height=0.68, color=colour, label=name, edgecolor=_COLOURS["card"])
    for at, width in enumerate(widths):
        left[at] += width


def reliability(runs: Sequence[tuple[int, RunFigures]]) -> str:
    """Plot a panel per run: the share of right answers in each bin of confidence; a point's area shows the bin's count."""
    columns = len(runs) if len(runs) <= 4 else 3
    rows = math.ceil(len(runs) / columns)
    with _figure(rows * (min(_WIDTH / columns, 4.2) + 0.55)) as figure:
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for panel in panels.flat[len(runs) :]:
            panel.set_visible(False)
        for panel, (number, run) in zip(panels.flat, runs, strict=False):
            panel.plot([0, 1], [0, 1], color=_COLOURS["soft"], linewidth=1, linestyle=(0, (3, 3)), zorder=1)
            most = max(part.count for part in run.bins)
            ink = _COLOURS[_MARKS[run.kind][0]]
            for part in run.bins:
                sure, right = part.confidence, part.right
                if not math.isnan(right.low):
                    panel.plot([sure, sure], [right.low, right.high], color=ink, linewidth=1.3, alpha=0.6, zorder=2)
                size = 16 + 170 * part.count / most
                panel.scatter([sure], [right.value], s=size, color=ink, edgecolors=_COLOURS["card"], zorder=3)
            panel.set_title(f"run {number}", loc="left", fontsize=10.5, fontweight="bold", color=ink)
            panel.set_xlim(-0.06, 1.06)
            panel.set_ylim(-0.06, 1.06)
            panel.set_aspect("equal")
        for panel in panels.flat[max(len(runs) - columns, 0) : len(runs)]:
            panel.set_xlabel("confidence")
            panel.tick_params(labelbottom=True)
        for panel in panels[:, 0]:
            panel.set_ylabel("share of right answers")
        return _svg(figure)


def escalations(runs: Sequence[tuple[int, RunFigures]]) -> str:
    """Plot, for each step of each run, the share of escalated questions that were right before and after."""
    steps = [(number, step) for number, run in runs for step in run.steps if step.known]
    names = [f"{number}: {_short(step.before_tier)} to {_short(step.tier)}" for number, step in steps]
    with _figure(1.05 + 0.55 * len(steps)) as figure:
        axes = figure.subplots()
        for at, (_, step) in enumerate(steps):
            before, after = 100 * step.before, 100 * step.after
            axes.plot([before, after], [at, at], color=_COLOURS["cascade"], linewidth=2.5, alpha=0.45, zorder=2)
            axes.plot(before, at, "o", color=_COLOURS["card"], markeredgecolor=_COLOURS["single"], markersize=8, zorder=3)
            axes.plot(after, at, "D", color=_COLOURS["cascade"], markersize=8, markeredgecolor=_COLOURS["card"], zorder=3)
        axes.plot([], [], "o", color=_COLOURS["card"], markeredgecolor=_COLOURS["single"], label="before", markersize=8)
        axes.plot([], [], "D", color=_COLOURS["cascade"], markeredgecolor=_COLOURS["card"], label="after", markersize=8)
        for at, name in enumerate(names):  # above its line, because names of two tiers leave no room beside it
            axes.annotate(
                name, (0, at), (2, 9), xycoords=("axes fraction", "data"), textcoords="offset points", fontsize=10.5
            )
        axes.set_yticks(range(len(steps)), [""] * len(steps))
        axes.set_ylim(len(steps) - 0.4, -0.8)
        axes.xaxis.set_major_formatter(_ticker().FuncFormatter(lambda value, _: f"{value:g} %"))
        axes.set_xlabel("right answers among the escalated questions")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, columnspacing=1.4)
        return _svg(figure)


def tier_colour(tier: str, tiers: Sequence[str]) -> str:
    """Return the name of a tier's colour: from light to strong as tiers go from cheap to strong."""
    at = list(tiers).index(tier)
    steps = len(_tier_steps())
    return _tier_steps()[at if len(tiers) <= steps else round(at * (steps - 1) / (len(tiers) - 1))]


def _tier_steps() -> list[str]:
    return [name for name in _COLOURS if name.startswith("tier-")]


# --------------------------------------------------------------------------------------------------------- the drawing


@contextmanager
def _figure(height: float, width: float = _WIDTH) -> Iterator[Figure]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]  # its stubs list every key that a style may have
        yield Figure(figsize=(width, height), layout="constrained", facecolor="none")


def _svg(figure: Figure) -> str:
    """Return the figure as SVG, with placeholder colours replaced by CSS variables."""
    written = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # fonts only measure text here; the browser renders it
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    drawing = written.getvalue()
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing[drawing.index("<svg") :], flags=re.DOTALL)
    variables = {colour: f"var(--{name})" for name, colour in _COLOURS.items()}
    return re.sub("#010a[0-9a-f]{2}", lambda found: variables[found[0]], drawing)


def _ticker() -> Any:
    from matplotlib import ticker

    return ticker


def _percent(run: RunFigures) -> float:
    assert run.accuracy is not None
    return 100 * run.accuracy.value


def _dollars(amount: float) -> str:
    return f"${amount:,.0f}" if amount >= 10 else f"${amount:.3g}"


def _plain(amount: float) -> str:
    return f"{amount:,.0f}" if amount >= 10 else f"{amount:.3g}"


_AXES: Mapping[str, tuple[float, str, Callable[[float], str], str]] = {
    COST: (1000.0, "cost of 1,000 questions", _dollars, "cheaper"),
    TOKENS: (1.0, "tokens for each question", _plain, "shorter"),
    SECONDS: (1.0, "seconds for each question", _plain, "faster"),
}
"""For each basis: its factor, the label of the axis, the form of its ticks, and what less of it means."""


def _short(name: str) -> str:
    """Return a name for a figure: one line, shortened, and not hidden (matplotlib hides labels that begin with ``_``)."""
    name = one_line(name)
    name = name if len(name) <= 30 else f"{name[:18]}…{name[-10:]}"
    return f" {name}" if name.startswith("_") else name
