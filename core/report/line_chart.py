"""Lines over two axes as SVG text: ROC and DET curves, histograms, training curves.

Written by hand rather than by a plotting library: the element is small, equal data give equal text, letters stay
readable on a phone, and colours follow the page, dark or light (`html_page.py` defines `--series-N`). Lines differ in
their dashes too, for print and for readers who do not tell the colours apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from adadistill.core.report.text import html_text

COLOURS = ("#0b5cad", "#c2410c", "#00795c", "#8b2fa8", "#8a6100", "#b3124f", "#3f6212", "#475569")
DARK_COLOURS = ("#6db3ff", "#ff9a62", "#4fd6b0", "#d79bf0", "#e6bf52", "#ff8fb5", "#b2d66b", "#aeb9c6")
"""On white and on the dark page each has a contrast of 4.5 or more."""
DASHES = ("", "7 3", "2 3", "9 3 2 3", "", "7 3", "2 3", "9 3 2 3")
MOST_SERIES = len(COLOURS)

_WIDTH, _HEIGHT = 440, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 46


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """One axis; what lies outside of it is drawn on its edge."""

    label: str
    low: float
    high: float
    scale: Literal["linear", "log"] = "linear"
    percent: bool = False
    """Ticks of shares as percent."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"axis {self.label!r} runs from {self.low} to {self.high}")
        if self.scale == "log" and self.low <= 0.0:
            raise ValueError(f"a logarithmic axis starts above 0, {self.label!r} at {self.low}")

    def place(self, value: float) -> float:
        """Where a value lies, from 0 to 1."""
        value = min(max(value, self.low), self.high)
        if self.scale == "log":
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Values with a label, four to seven of them where the scale allows."""
        if self.scale == "log":
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            stride = 1 + (last - first) // 7
            return [10.0**power for power in range(first, last + 1, stride)]
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = power * next((size for size in (1, 2, 2.5, 5) if size * power >= rough - 1e-12 * power), 10)
        count = math.floor(self.high / step + 1e-9) - math.ceil(self.low / step - 1e-9) + 1
        return [(math.ceil(self.low / step - 1e-9) + index) * step for index in range(count)]

    def tick_label(self, value: float) -> str:
        """A tick as text."""
        if self.percent:
            return f"{100.0 * value:.6g}%"
        if value == 0.0:
            return "0"
        if abs(value) >= 10_000 or abs(value) < 0.001:
            text = f"{value:.0e}" if self.scale == "log" else f"{value:.3g}"
            return text.replace("e-0", "e-").replace("e+0", "e")
        return f"{value:.6g}"


@dataclass(frozen=True, slots=True)
class Series:
    """One line; points with a value that is not finite interrupt it."""

    label: str
    points: Sequence[tuple[float, float]]


def line_chart(series: Sequence[Series], *, x: Axis, y: Axis, description: str) -> str:
    """An `<svg>` element.

    Args:
        series: at most `MOST_SERIES`, in the order of the key.
        description: for readers who cannot see it.
    """
    if len(series) > MOST_SERIES:
        raise ValueError(f"a chart shows {MOST_SERIES} lines at most, got {len(series)}")
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html_text(description)}" '
        'font-family="system-ui, sans-serif" font-size="12.5" fill="currentColor">'
    ]
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for value in x.ticks():
        across = _across(x, value)
        parts.append(f'<path d="M{across:.1f} {_TOP}V{bottom}" stroke="currentColor" stroke-opacity="0.13"/>')
        parts.append(f'<text x="{across:.1f}" y="{bottom + 17}" text-anchor="middle">{x.tick_label(value)}</text>')
    for value in y.ticks():
        down = _down(y, value)
        parts.append(f'<path d="M{_LEFT} {down:.1f}H{right}" stroke="currentColor" stroke-opacity="0.13"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{down + 4:.1f}" text-anchor="end">{y.tick_label(value)}</text>')
    parts.append(f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" fill="none" stroke="currentColor" stroke-opacity="0.6"/>')
    middle = (_LEFT + right) / 2
    parts.append(f'<text x="{middle:.0f}" y="{_HEIGHT - 8}" text-anchor="middle">{html_text(x.label)}</text>')
    parts.append(
        f'<text transform="translate(13 {(_TOP + bottom) / 2:.0f}) rotate(-90)" text-anchor="middle">'
        f"{html_text(y.label)}</text>"
    )
    for index, one in enumerate(series):
        parts.append(f'<path d="{_path(one, x, y)}" fill="none" {_stroke(index)} stroke-linejoin="round"/>')
    return "".join([*parts, "</svg>"])


def key_mark(index: int) -> str:
    """A short piece of the line of a series, for the key."""
    return f'<svg viewBox="0 0 32 11" aria-hidden="true"><path d="M1 5.5H31" {_stroke(index)}/></svg>'


def _stroke(index: int) -> str:
    dash = f' stroke-dasharray="{DASHES[index]}"' if DASHES[index] else ""
    return f'style="stroke: var(--series-{index})" stroke-width="2"{dash}'


def _path(one: Series, x: Axis, y: Axis) -> str:
    parts, pen_is_down, before = [], False, ""
    for across, up in one.points:
        if not (math.isfinite(across) and math.isfinite(up)):
            pen_is_down = False
            continue
        place = f"{_across(x, across):.1f} {_down(y, up):.1f}"
        if pen_is_down and place == before:
            continue
        parts.append(("L" if pen_is_down else "M") + place)
        pen_is_down, before = True, place
    if len(parts) == 1:  # one point would leave no ink
        parts.append("h0.1")
    return "".join(parts)


def _across(axis: Axis, value: float) -> float:
    return _LEFT + axis.place(value) * (_WIDTH - _RIGHT - _LEFT)


def _down(axis: Axis, value: float) -> float:
    return _HEIGHT - _BOTTOM - axis.place(value) * (_HEIGHT - _BOTTOM - _TOP)
