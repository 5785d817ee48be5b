"""Lines on linear and logarithmic axes: inside the frame, with readable ticks, and text that stays text."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adadistill.core.report.document import Document
from adadistill.core.report.html_page import html_page
from adadistill.core.report.line_chart import COLOURS, DARK_COLOURS, MOST_SERIES, Axis, Series, line_chart

LINEAR = Axis(label="score", low=0.0, high=1.0)
LOG = Axis(label="rate", low=1e-4, high=1.0, scale="log")


def lines_of(svg: str) -> list[str]:
    """The paths of the data, by series."""
    return [str(one.get("d")) for one in ElementTree.fromstring(svg) if "--series" in str(one.get("style"))]


def points_of(line: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](\S+) ([\d.]+)", line)]


@given(
    st.lists(st.tuples(st.floats(), st.floats()), max_size=30),
    st.sampled_from([LINEAR, LOG]),
    st.sampled_from([LINEAR, LOG]),
)
def test_whatever_the_points_are_the_line_stays_in_its_frame(points, x, y):
    for line in lines_of(line_chart([Series("a", points)], x=x, y=y, description="d")):
        assert all(58.0 <= across <= 426.0 and 12.0 <= down <= 254.0 for across, down in points_of(line))


def test_a_decade_has_the_same_width_everywhere():
    svg = line_chart([Series("a", [(1e-4, 0), (1e-3, 0.5), (1e-2, 1)])], x=LOG, y=LINEAR, description="d")
    first, second, third = points_of(lines_of(svg)[0])
    assert second[0] - first[0] == pytest.approx(third[0] - second[0], abs=0.11)
    assert first[1] - second[1] == pytest.approx(second[1] - third[1], abs=0.11)


def test_a_value_that_is_not_finite_interrupts_the_line():
    points = [(0, 0), (0.2, 0.1), (0.4, math.nan), (0.6, 0.3), (0.8, 0)]
    (line,) = lines_of(line_chart([Series("a", points)], x=LINEAR, y=LINEAR, description="d"))
    assert line.count("M") == 2
    assert len(points_of(line)) == 4


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_linear_axes_have_a_handful_of_ticks_within(low, width):
    axis = Axis(label="x", low=low, high=low + width)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 7
    assert all(axis.low - 1e-6 * width <= tick <= axis.high + 1e-6 * width for tick in ticks)


def test_ticks_are_what_people_would_write():
    assert [LINEAR.tick_label(tick) for tick in LINEAR.ticks()] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    assert [LOG.tick_label(tick) for tick in LOG.ticks()] == ["1e-4", "0.001", "0.01", "0.1", "1"]
    percent = Axis(label="x", low=0.9, high=1.0, percent=True)
    assert [percent.tick_label(tick) for tick in percent.ticks()] == ["90%", "92%", "94%", "96%", "98%", "100%"]


def test_labels_are_escaped_and_bad_axes_refused():
    svg = line_chart([], x=Axis(label="<script>", low=0, high=1), y=LINEAR, description='"><b>')
    ElementTree.fromstring(svg)
    assert "<script>" not in svg
    assert "<b>" not in svg
    with pytest.raises(ValueError, match="runs from 1 to 1"):
        Axis(label="x", low=1, high=1)
    with pytest.raises(ValueError, match="starts above 0"):
        Axis(label="x", low=0, high=1, scale="log")
    with pytest.raises(ValueError, match="8 lines at most, got 9"):
        line_chart([Series("a", [])] * (MOST_SERIES + 1), x=LINEAR, y=LINEAR, description="d")


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG defines it."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("colours", "page"), [(COLOURS, "#ffffff"), (DARK_COLOURS, "#14181d")])
def test_lines_are_seen_on_light_and_on_dark_pages(colours, page):
    assert f"--page: {page}" in html_page(Document(title="x"))
    for colour in colours:
        darker, lighter = sorted((luminance(colour), luminance(page)))
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, colour
