"""Figures of a report: ROC and DET curves and score histograms out of benchmark results, each with its numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from adadistill.core.report.charts import MOST_LINES, Axis, line_chart
from adadistill.core.report.document import Cell, Figure, Number, Table
from adadistill.core.scoring.result import Curve, Histogram

_DRAWN_POINTS = 240
_RATES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
_LOWEST_RATE = 1e-7


def roc_and_det(title: str, curves: Mapping[str, Curve], *, different: int) -> list[Figure]:
    """The curves of several networks, as ROC and as DET.

    Args:
        title: of the set, for captions.
        different: number of different pairs; tables leave out rates below one of them.
        curves: by network, at most `MOST_LINES`; others are left out.
    """
    curves = dict(list(curves.items())[:MOST_LINES])
    floor = _lowest_rate(curves.values())
    if floor is None:
        return []
    far = Axis(label="false-accept rate", low=floor, high=1.0, scale="log")
    roc = {name: _corners(curve, floor) for name, curve in curves.items()}
    rates = [rate for rate in _RATES if rate * different >= 1.0 - 1e-9]
    figures = [
        Figure(
            svg=line_chart(roc, x=far, y=Axis(label="true-accept rate", percent=True)),
            caption=f"ROC on {title}: higher is better. False-accept rates below {floor:g} cannot be told.",
            table=_rates_table(title, curves, rates),
        )
    ]
    misses = [1.0 - rate for points in roc.values() for _, rate in points if rate < 1.0]
    lowest = 10.0 ** math.floor(math.log10(max(min(misses, default=1e-3), _LOWEST_RATE)))
    if lowest < 1.0:
        det = {name: [(x, max(1.0 - y, lowest)) for x, y in points] for name, points in roc.items()}
        figures.append(
            Figure(
                svg=line_chart(det, x=far, y=Axis(label="false-reject rate", low=lowest, high=1.0, scale="log")),
                caption=f"DET on {title}: lower is better, both axes logarithmic.",
                table=_rates_table(title, curves, rates, rejects=True),
            )
        )
    return figures


def score_histogram(title: str, network: str, histogram: Histogram) -> Figure | None:
    """Scores of same and of different pairs of one network; None where it holds no pairs."""
    filled = np.flatnonzero(histogram.same + histogram.different)
    if not filled.size:
        return None
    first, last = max(int(filled[0]) - 1, 0), min(int(filled[-1]) + 2, len(histogram.same))
    edges = histogram.edges[first : last + 1]
    lines: dict[str, list[tuple[float, float]]] = {}
    rows: list[Sequence[Cell]] = []
    for kind, counts in (("same", histogram.same), ("different", histogram.different)):
        total = int(counts.sum())
        shares = np.concatenate([[0.0], np.repeat(counts[first:last] / max(total, 1), 2), [0.0]])
        lines[f"{kind} ({total:,})"] = list(zip(np.repeat(edges, 2).tolist(), shares.tolist(), strict=True))
        quantiles = [_quantile(histogram.edges, counts, share) for share in (0.05, 0.5, 0.95)]
        rows.append(
            [kind, Number(total, f"{total:,}"), *(None if q is None else Number(q, f"{q:.3f}") for q in quantiles)]
        )
    return Figure(
        svg=line_chart(lines, x=Axis(label="cosine"), y=Axis(label="share of pairs", low=0.0, percent=True)),
        caption=f"{network} on {title}: scores of same and of different pairs.",
        table=Table(
            caption=f"Cosines on {title}, {network}",
            heads=["Pairs", "Number", "5 %", "Median", "95 %"],
            rows=rows,
        ),
    )


def tar_at(curve: Curve, far: float) -> float | None:
    """The highest true-accept rate of a drawn curve at a false-accept rate at or under `far`; None where scores tie, so
    that the curve leaps over `far` from nothing accepted falsely."""
    place = int(np.searchsorted(curve.false_accept_rates, far + 1e-12, side="right")) - 1
    if place < 0:
        return None
    leaps = place + 1 < len(curve.true_accept_rates) and (
        curve.true_accept_rates[place + 1] > curve.true_accept_rates[place]
    )
    return None if leaps and curve.false_accept_rates[place] == 0.0 else float(curve.true_accept_rates[place])


def _rates_table(title: str, curves: Mapping[str, Curve], rates: Sequence[float], *, rejects: bool = False) -> Table:
    what = "False-reject" if rejects else "True-accept"
    rows: list[Sequence[Cell]] = []
    for name, curve in curves.items():
        cells: list[Cell] = []
        for accepted in (tar_at(curve, rate) for rate in rates):
            value = None if accepted is None else 1.0 - accepted if rejects else accepted
            cells.append(None if value is None else Number(value, f"{100.0 * value:.2f}"))
        rows.append([name, *cells])
    return Table(
        caption=f"{what} rate in percent at false-accept rates that are met, {title}",
        heads=["Network", *(f"FAR {rate:g}" for rate in rates)],
        rows=rows,
    )


def _lowest_rate(curves: Iterable[Curve]) -> float | None:
    """The decade of the lowest false-accept rate above zero in any curve; None where there is none below one."""
    positive = [
        float(curve.false_accept_rates[curve.false_accept_rates > 0.0].min())
        for curve in curves
        if (curve.false_accept_rates > 0.0).any()
    ]
    if not positive or min(positive) >= 1.0:
        return None
    return max(10.0 ** math.floor(math.log10(min(positive)) + 1e-9), _LOWEST_RATE)


def _corners(curve: Curve, floor: float) -> list[tuple[float, float]]:
    """A curve as steps within the axis, at most some hundreds of them, spread evenly over its logarithm."""
    rates = np.geomspace(floor, 1.0, _DRAWN_POINTS)
    known = np.unique(np.concatenate([rates, curve.false_accept_rates[curve.false_accept_rates >= floor][:60]]))
    places = np.searchsorted(curve.false_accept_rates, known * (1.0 + 1e-12), side="right") - 1
    heights = np.where(places >= 0, curve.true_accept_rates[np.maximum(places, 0)], 0.0)
    return [(float(x), float(y)) for x, y in zip(known, heights, strict=True)]


def _quantile(edges: npt.NDArray[np.float64], counts: npt.NDArray[np.int64], share: float) -> float | None:
    """Linear within a bin; None without pairs."""
    total = int(counts.sum())
    if total == 0:
        return None
    below = np.concatenate([[0.0], np.cumsum(counts) / total])
    return float(np.interp(share, below, edges))
