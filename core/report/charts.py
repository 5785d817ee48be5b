"""Every chart of every report, drawn by matplotlib as an SVG document: lines, bars, and intervals of differences.

matplotlib is the extra `report` and is imported here alone; without it each chart is None, and the page says so. Equal
data give equal text. Labels are drawn as they are, never as mathematics. Lines differ in their dashes too, for print
and for readers who do not tell the colors apart.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from adadistill.core.report.text import one_line

COLORS = ("#0b5cad", "#c2410c", "#00795c", "#8b2fa8", "#8a6100", "#b3124f", "#3f6212", "#475569")
DARK_COLORS = ("#6db3ff", "#ff9a62", "#4fd6b0", "#d79bf0", "#e6bf52", "#ff8fb5", "#b2d66b", "#aeb9c6")
"""What a dark page shows instead. On its page each has a contrast of 4.5 or more."""
BLACK = "#000000"
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
MOST_LINES = len(COLORS)
MOST_BARS = 32
NO_DRAWINGS = (
    "Curves are left out, for matplotlib is not installed: pip install 'adadistill[report]' adds them. The tables hold "
    "their numbers."
)
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "adadistill", "text.parse_math": False, "font.size": 8.0,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "axes.grid": True, "grid.alpha": 0.15,
    "grid.color": BLACK, "axes.formatter.use_mathtext": False, "legend.frameon": False,
}  # fmt: skip
_LONGEST_LABEL = 60
_WIDE = 30.0
"""Ratio of the longest bar to the shortest above which their axis is logarithmic."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """One axis of a line chart."""

    label: str
    low: float | None = None
    """Where it begins; None leaves that to what is drawn. The same holds for `high`."""
    high: float | None = None
    scale: Literal["linear", "log"] = "linear"
    percent: bool = False
    """Whether its ticks show shares as percent."""

    def tick(self, value: float) -> str:
        """A value on it, as text."""
        return f"{100.0 * value:.6g}%" if self.percent else f"{value:.6g}"


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar, with a line from p20 to p80."""

    label: str
    median: float
    p20: float
    p80: float


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean, the values that it is of, and its interval; or the reason why there is none."""

    label: str
    mean: float | None
    values: Sequence[float] = ()
    interval: tuple[float, float] | None = None
    instead: str = ""


def line_chart(lines: Mapping[str, Sequence[tuple[float, float]]], *, x: Axis, y: Axis) -> str | None:
    """Lines by their label, `MOST_LINES` at most; a point with a value that is not finite interrupts its line."""
    if len(lines) > MOST_LINES:
        raise ValueError(f"a chart shows {MOST_LINES} lines at most, got {len(lines)}")

    def draw(figure: Any) -> None:
        plot = figure.add_subplot(xscale=x.scale, yscale=y.scale)
        handles = []
        for index, points in enumerate(lines.values()):
            marker = "." if len(points) == 1 else None  # one point would leave no ink
            across, up = [point[0] for point in points], [point[1] for point in points]
            style = DASHES[index % len(DASHES)]
            handles += plot.plot(across, up, color=COLORS[index], linestyle=style, linewidth=1.5, marker=marker)
        plot.set(xlim=(x.low, x.high), ylim=(y.low, y.high), xlabel=_label(x.label), ylabel=_label(y.label))
        for axis, of in ((plot.xaxis, x), (plot.yaxis, y)):
            axis.set_major_formatter(_ticks(of.tick))
            axis.set_minor_formatter(_ticks(lambda _: ""))
        names = [_label(name) for name in lines]
        columns = 1 if any(len(name) > 25 for name in names) else 2
        figure.legend(handles, names, loc="outside lower left", ncols=columns)

    return _drawn(draw, width=4.6, height=3.1 + 0.13 * len(lines))


def bar_chart(bars: Sequence[Bar], axis: str) -> str | None:
    """Medians as bars, p20 to p80 as lines; `MOST_BARS` at most, the largest."""
    kept = sorted(bars, key=lambda bar: bar.median)[-MOST_BARS:]

    def draw(figure: Any) -> None:
        plot = figure.add_subplot()
        middles = [bar.median for bar in kept]
        ends = [[bar.median - bar.p20 for bar in kept], [bar.p80 - bar.median for bar in kept]]
        plot.barh(range(len(kept)), middles, xerr=ends, color=COLORS[0], ecolor=COLORS[-1], height=0.7)
        plot.set_yticks(range(len(kept)), [_label(bar.label) for bar in kept])
        plot.set_xlabel(_label(axis))
        plot.grid(visible=False, axis="y")
        if min(middles) > 0.0 and max(middles) > _WIDE * min(middles):
            plot.set_xscale("log")
            plot.xaxis.set_minor_formatter(_ticks(lambda _: ""))
        plot.xaxis.set_major_formatter(_ticks(lambda value: f"{value:,.10g}"))

    return _drawn(draw, width=8.0, height=0.7 + 0.26 * len(kept))


def interval_chart(panels: Mapping[str, Sequence[Interval]], axis: str) -> str | None:
    """Panels by their title, below each other: a line for each interval, a diamond for its mean, dots for values."""

    def draw(figure: Any) -> None:
        plots = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
        for plot, (title, rows) in zip(plots, panels.items(), strict=True):
            plot.axvline(0.0, color=BLACK, linewidth=0.8)
            for place, row in enumerate(rows):
                _draw_interval(plot, place, row)
            plot.set_yticks(range(len(rows)), [_label(row.label) for row in rows])
            plot.set_ylim(len(rows) - 0.5, -0.5)
            plot.set_title(_label(title), loc="left", fontsize=8, fontweight="bold")
            plot.grid(visible=False, axis="y")
        plots[-1].set_xlabel(_label(axis))

    rows = sum(len(panel) for panel in panels.values())
    return _drawn(draw, width=7.5, height=1.1 * len(panels) + 0.4 * rows)


def _draw_interval(plot: Any, place: int, row: Interval) -> None:
    if row.mean is None:
        plot.annotate(row.instead, (0.0, place), xytext=(4, 0), textcoords="offset points", va="center")
        return
    if row.interval is not None:
        plot.plot(row.interval, [place] * 2, color=COLORS[0], linewidth=2.5, alpha=0.55)
    plot.plot(row.values, [place] * len(row.values), "o", color=COLORS[1], markersize=3.5)
    plot.plot(row.mean, place, "D", color=COLORS[0], markersize=6)


def _drawn(draw: Callable[[Any], None], *, width: float, height: float) -> str | None:
    """An SVG document, made without a display; None without matplotlib."""
    try:
        from matplotlib import style
        from matplotlib.figure import Figure
    except ImportError:
        return None
    out = io.StringIO()
    with style.context(["default", _STYLE]):  # whatever the user's own settings are
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return out.getvalue()


def _ticks(text: Callable[[float], str]) -> Any:
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _: text(value))


def _label(text: str) -> str:
    line = one_line(text, longest=_LONGEST_LABEL)
    return f" {line}" if line.startswith("_") else line  # which matplotlib would take for a name of its own
