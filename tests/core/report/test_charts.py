"""Charts are SVG whose text is text, equal for equal data, seen on light and dark pages."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adadistill.core.report.charts import (
    COLORS,
    DARK_COLORS,
    MOST_LINES,
    Axis,
    Bar,
    Interval,
    bar_chart,
    interval_chart,
    line_chart,
)
from adadistill.core.report.document import Document
from adadistill.core.report.html_page import html_page

HOSTILE = '</text><script>alert(1)</script>$\\frac{$"\x1b\n'
SCORE, RATE = Axis(label="score", low=0.0, high=1.0), Axis(label="rate", low=1e-4, high=1.0, scale="log")
CHARTS: dict[str, Callable[[str], str | None]] = {
    "lines": lambda name: line_chart({name: [(1e-3, 0.5), (1.0, 1.0)]}, x=RATE, y=SCORE),
    "bars": lambda name: bar_chart([Bar(name, 3.0, 2.0, 4.0), Bar("other", 3000.0, 2900.0, 3100.0)], name),
    "intervals": lambda name: interval_chart({name: [Interval(name, 0.5, [0.4, 0.6], (0.1, 0.9))]}, name),
}


def texts_of(svg: str | None) -> list[str]:
    assert svg is not None
    return [text for text in ElementTree.fromstring(svg).itertext() if text.strip()]


@pytest.mark.parametrize("chart", CHARTS.values(), ids=CHARTS)
def test_labels_are_drawn_as_they_are_and_equal_data_give_equal_text(chart):
    svg = chart(HOSTILE)
    assert any('</text><script>alert(1)</script>$\\frac{$"' in text for text in texts_of(svg))
    assert "<script>" not in svg
    assert svg == chart(HOSTILE)
    assert "_of_its_own" in "".join(texts_of(chart("_of_its_own")))


@pytest.mark.parametrize("chart", CHARTS.values(), ids=CHARTS)
def test_without_matplotlib_there_is_no_drawing(chart, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert chart("any") is None


@pytest.mark.filterwarnings("ignore:Data has no positive values")
@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.floats(), st.floats()), max_size=12), st.sampled_from([SCORE, RATE]))
def test_whatever_the_points_are_there_is_a_chart(points, axis):
    assert texts_of(line_chart({"a": points}, x=axis, y=SCORE))


def test_a_value_that_is_not_finite_interrupts_the_line():
    svg = line_chart({"a": [(0, 0), (0.2, 0.1), (0.4, math.nan), (0.6, 0.3), (0.8, 0)]}, x=SCORE, y=SCORE)
    paths = [str(one.get("d")) for one in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}path")]
    assert [(path.count("M"), path.count("L")) for path in paths].count((2, 2)) == 1


def test_ticks_are_what_people_would_write():
    assert {"0", "0.2", "1"} <= set(texts_of(line_chart({}, x=SCORE, y=SCORE)))
    assert {"0.0001", "0.01", "1"} <= set(texts_of(line_chart({}, x=RATE, y=SCORE)))
    percent = Axis(label="x", low=0.9, high=1.0, percent=True)
    assert {"90%", "100%"} <= set(texts_of(line_chart({}, x=SCORE, y=percent)))


def test_more_lines_than_colors_are_refused():
    with pytest.raises(ValueError, match="8 lines at most, got 9"):
        line_chart({str(index): [] for index in range(MOST_LINES + 1)}, x=SCORE, y=SCORE)


def luminance(color: str) -> float:
    """Relative luminance, as WCAG defines it."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("colors", "page"), [(COLORS, "#ffffff"), (DARK_COLORS, "#14181d")])
def test_lines_are_seen_on_light_and_on_dark_pages(colors, page):
    assert f"--page: {page}" in html_page(Document(title="x"))
    for color in colors:
        darker, lighter = sorted((luminance(color), luminance(page)))
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, color
