"""Three plots of a calibration: risk against coverage, reliability, and the threshold in the score distribution.

Each function draws one figure from plain arrays into a file, SVG or PNG by its extension, and needs matplotlib (the
``batch`` extra). ``scores`` and ``correct`` [n] are those of the calibration rows; unknown scores (NaN) are never accepted
but count as requests.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workflow_composer.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".svg", ".png")

_INK, _SOFT, _LINE, _CARD = "#1d2430", "#5a6472", "#dde1e7", "#ffffff"
_RIGHT, _WRONG, _ACCENT = "#1f6fb4", "#c8452f", "#0b8a6a"
_DASHES = (0, (4, 3))
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "workflow_composer",
    "text.parse_math": False,
    "text.color": _INK,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.7,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "font.size": 10.5,
    "legend.frameon": False,
}
_SIZE = (7.2, 4.6)
_ROW = 72
"""Number of legend characters that fit in one row."""
_RESOLUTION = 150
_BINS = 10
_COLUMNS = 20
_CONFIDENCE = 1.96

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def risk_against_coverage(
    path: Path,
    scores: ArrayLike,
    correct: ArrayLike,
    *,
    alpha: float,
    threshold: float | None,
    bound: float,
    title: str = "",
) -> None:
    """Plot the error of accepted answers against the share of requests accepted, highest scores first.

    The certified point is at the share accepted at ``threshold`` (None: nothing certified), with a line up to ``bound``, the
    upper bound of its risk; alpha is the limit. Raises `ConfigError` for a file that is neither SVG nor PNG.
    """
    score, right = _known(scores, correct)
    requests = max(1, np.size(scores))
    order = np.argsort(-score, kind="stable")
    last = np.append(np.diff(score[order]) != 0, True)[: len(order)]  # equal scores are accepted together
    taken = np.arange(1, len(order) + 1)
    risk = np.cumsum(~right[order]) / taken
    with _drawing(path, title) as axes:
        axes.plot(taken[last] / requests, risk[last], color=_RIGHT, linewidth=1.6, label="accepted answers", zorder=2)
        axes.axhline(alpha, color=_WRONG, linewidth=1.2, linestyle=_DASHES, label=f"limit {alpha:g}", zorder=1)
        top = max(alpha, bound if threshold is not None else 0.0, float(risk[last].max(initial=0.0)))
        if threshold is not None:
            accepted = score >= threshold
            share, wrong = accepted.sum() / requests, float((~right[accepted]).mean()) if accepted.any() else 0.0
            axes.plot([share, share], [wrong, bound], color=_ACCENT, linewidth=2.2, zorder=3)
            axes.plot(share, bound, "_", color=_ACCENT, markersize=12, markeredgewidth=2.2, zorder=3)
            label = f"certified: {100 * share:.0f} % accepted; upper bound {100 * bound:.1f} % wrong"
            axes.plot(share, wrong, "o", color=_ACCENT, markersize=8, markeredgecolor=_CARD, label=label, zorder=4)
        axes.set_xlim(0, 1.02)
        axes.set_ylim(-0.02 * top, min(1.02, 1.12 * top + 0.01))
        _percent(axes, "share of requests accepted", "wrong among the accepted")
        _legend(axes)


def reliability(path: Path, scores: ArrayLike, correct: ArrayLike, *, title: str = "") -> None:
    """Plot the share of right answers with Wilson's 95 % interval in each tenth of the score range, and the counts below.

    On the diagonal, eight in ten answers with a score of .8 are right. Raises `ConfigError` as `risk_against_coverage` does.
    """
    score, right = _known(scores, correct)
    place = np.minimum((score * _BINS).astype(np.int64), _BINS - 1)
    counts = np.bincount(place, minlength=_BINS)
    used = counts > 0
    mean = np.bincount(place, score, minlength=_BINS)[used] / counts[used]
    share = np.bincount(place, right, minlength=_BINS)[used] / counts[used]
    low, high = _wilson(share, counts[used])
    with _drawing(path, title, rows=(3.4, 1)) as (upper, lower):
        upper.plot([0, 1], [0, 1], color=_SOFT, linewidth=1, linestyle=_DASHES, label="as promised", zorder=1)
        upper.vlines(mean, low, high, color=_RIGHT, linewidth=1.6, alpha=0.6, zorder=2)
        upper.plot(mean, share, "o", color=_RIGHT, markersize=7, markeredgecolor=_CARD, label="answers", zorder=3)
        upper.set_ylim(-0.03, 1.03)
        _percent(upper, "", "right answers")
        upper.tick_params(labelbottom=False)
        _legend(upper)
        lower.bar((np.arange(_BINS) + 0.5) / _BINS, counts, width=0.92 / _BINS, color=_RIGHT, alpha=0.75)
        for at, count in enumerate(counts):
            if count:
                lower.annotate(
                    f"{count:,}", ((at + 0.5) / _BINS, count), (0, 2), textcoords="offset points", ha="center", fontsize=8.5
                )
        lower.set_ylim(0, 1.32 * max(1, counts.max(initial=1)))
        lower.set_yticks([])
        lower.grid(visible=False)
        _percent(lower, "score", "count", y=False)
        for axes in (upper, lower):
            axes.set_xlim(-0.02, 1.02)


def threshold_among_answers(
    path: Path, scores: ArrayLike, correct: ArrayLike, *, threshold: float | None, title: str = ""
) -> None:
    """Plot histograms of the scores of right (upwards) and wrong answers (downwards), with the threshold.

    Raises `ConfigError` as `risk_against_coverage` does.
    """
    score, right = _known(scores, correct)
    edges = np.linspace(0, 1, _COLUMNS + 1)
    centers, width = (edges[:-1] + edges[1:]) / 2, 0.9 / _COLUMNS
    good, bad = (np.histogram(score[which], edges)[0] for which in (right, ~right))
    with _drawing(path, title) as axes:
        axes.bar(centers, good, width, color=_RIGHT, label=f"right ({good.sum():,})")
        axes.bar(centers, -bad, width, color=_WRONG, label=f"wrong ({bad.sum():,})")
        axes.axhline(0, color=_SOFT, linewidth=0.8)
        if threshold is not None:
            accepted = score >= threshold
            where = min(max(threshold, -0.01), 1.01)  # a threshold may be minus infinity
            axes.axvspan(where, 1.02, color=_ACCENT, alpha=0.1, linewidth=0)
            counts = f"{int((accepted & right).sum()):,} right, {int((accepted & ~right).sum()):,} wrong"
            said = f"accepted at {threshold:.3g} or more" if math.isfinite(threshold) else "all accepted"
            axes.axvline(where, color=_ACCENT, linewidth=1.8, label=f"{said}: {counts}")
        else:
            axes.plot([], [], " ", label="no threshold: nothing is accepted")
        most = max(good.max(), bad.max())
        axes.set_ylim(*(sign * 1.08 * max(1.0, side.max(), 0.12 * most) for sign, side in ((-1, bad), (1, good))))
        axes.set_xlim(-0.02, 1.02)
        axes.yaxis.set_major_locator(_ticker().MaxNLocator(nbins=7, integer=True))
        axes.yaxis.set_major_formatter(_ticker().FuncFormatter(lambda value, _: f"{abs(value):,.0f}"))
        _percent(axes, "score", "answers", y=False)
        _legend(axes)


def _known(scores: ArrayLike, correct: ArrayLike) -> tuple[Floats, Bools]:
    score, right = np.asarray(scores, np.float64), np.asarray(correct, np.bool_)
    known = ~np.isnan(score)
    return score[known], right[known]


def _wilson(share: Floats, count: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Wilson's interval at 95 %."""
    square = _CONFIDENCE**2 / count
    middle = (share + square / 2) / (1 + square)
    half = _CONFIDENCE / (1 + square) * np.sqrt(share * (1 - share) / count + square / (4 * count))
    return middle - half, middle + half


# --------------------------------------------------------------------------------------------------------- the drawing


@contextmanager
def _drawing(path: Path, title: str, rows: tuple[float, ...] = ()) -> Iterator[Any]:
    """Yield one axes, or several stacked ones with these relative heights; save the figure at the end."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"unsupported plot format: {path.name}", hint=f"use the extension {' or '.join(FORMATS)}")
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]  # its stubs list every key that a style may have
        figure = Figure(figsize=_SIZE, layout="constrained", facecolor=_CARD)
        axes = figure.subplots(len(rows), 1, height_ratios=rows) if rows else figure.subplots()
        if title:
            figure.suptitle(_short(title), x=0.02, ha="left", fontsize=11.5, fontweight="bold")
        yield axes
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else {}  # reproducible files
        figure.savefig(path, dpi=_RESOLUTION, metadata=metadata)


def _percent(axes: Axes, across: str, up: str, *, y: bool = True) -> None:
    """Label both axes; show percent on the horizontal one, and with ``y`` on the vertical one."""
    percent = _ticker().FuncFormatter(lambda value, _: f"{100 * value:g} %")
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.xaxis.set_major_formatter(percent)
    if y:
        axes.yaxis.set_major_formatter(percent)


def _legend(axes: Axes) -> None:
    """Draw the legend above the plot, in one row if it fits, else in one column."""
    names = axes.get_legend_handles_labels()[1]
    columns = len(names) if sum(map(len, names)) <= _ROW else 1
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.015, 1.0), ncols=columns, fontsize=9.5, handlelength=1.6, columnspacing=1.2
    )


def _ticker() -> Any:
    from matplotlib import ticker

    return ticker


def _short(text: str) -> str:
    """One line that fits the figure."""
    line = " ".join(text.split())
    return line if len(line) <= 80 else f"{line[:60]}…{line[-18:]}"
