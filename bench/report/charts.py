"""Bars as SVG text, by matplotlib, which is imported here and nowhere else."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from html import escape
from typing import Any

from adadistill.bench.report.figures import figure as as_figure
from adadistill.bench.report.tables import Bar

MOST_BARS = 32
_LONGEST = 60
_WIDE = 30.0
"""Ratio of the longest bar to the shortest above which the axis is logarithmic."""


class MatplotlibMissingError(RuntimeError):
    """Charts were asked for, and matplotlib cannot be imported."""


def require_matplotlib() -> Any:
    """matplotlib, drawing without a display.

    Raises:
        MatplotlibMissingError: it is not installed.
    """
    try:
        import matplotlib
        import matplotlib.figure
        import matplotlib.ticker
    except ImportError as error:
        raise MatplotlibMissingError(
            f"charts need matplotlib, which cannot be imported ({error}). Install it with "
            "`pip install adadistill[report]`, or write the tables alone: --markdown FILE"
        ) from error
    return matplotlib


def bar_chart(bars: Sequence[Bar], axis: str) -> str:
    """An `<svg>` element: medians as bars, p20 to p80 as lines; at most `MOST_BARS`, the largest.

    The same bars give the same text, so pages can be compared. Labels are drawn as they are, never as mathematics.
    """
    matplotlib = require_matplotlib()
    kept = sorted(bars, key=lambda bar: bar.median)[-MOST_BARS:]
    salt = hashlib.sha256(repr((kept, axis)).encode()).hexdigest()
    style = {"svg.fonttype": "none", "svg.hashsalt": salt, "text.parse_math": False, "font.size": 9.0}
    with matplotlib.rc_context(style):
        figure = matplotlib.figure.Figure(figsize=(8.0, 0.7 + 0.26 * len(kept)), layout="constrained")
        plot = figure.add_subplot()
        middles = [bar.median for bar in kept]
        ends = [[bar.median - bar.p20 for bar in kept], [bar.p80 - bar.median for bar in kept]]
        plot.barh(range(len(kept)), middles, xerr=ends, color="#4878a8", ecolor="#888888", height=0.7)
        plot.set_yticks(range(len(kept)), [_label(bar.label) for bar in kept])
        plot.set_xlabel(axis)
        if min(middles) > 0.0 and max(middles) > _WIDE * min(middles):
            plot.set_xscale("log")
            plot.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        plot.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: as_figure(value)))
        for side in ("top", "right"):
            plot.spines[side].set_visible(False)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _element(out.getvalue(), alt=f"bar chart of {axis}")


def _element(text: str, *, alt: str) -> str:
    """The SVG without XML header and fixed size, in the colour of the text around it."""
    body = text[text.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    opening, rest = body.split(">", 1)
    opening = re.sub(r'\s(?:width|height)="[^"]*"', "", opening)
    return f'{opening} role="img" aria-label="{escape(alt, quote=True)}">{rest}'


def _label(text: str) -> str:
    text = "".join(one if one.isprintable() else "?" for one in text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
