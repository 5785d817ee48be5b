"""Figures of a report, each with its numbers: ROC, DET and histograms out of results, curves out of `metrics.jsonl`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from adadistill.core.report.charts import MOST_LINES, Axis, line_chart
from adadistill.core.report.document import Cell, Figure, Number, Table
from adadistill.core.scoring.result import Curve, Histogram

_DRAWN_POINTS = 240
_TRAINING_POINTS = 400
_TABLE_ROWS = 6
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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Panel:
    """One chart: keys of `metrics.jsonl` that share an axis."""

    title: str
    label: str
    keys: Mapping[str, str]
    scale: Literal["linear", "log"] = "linear"
    from_zero: bool = False


_PANELS = (
    _Panel(title="Loss", label="loss", keys={"loss": "loss", "regression": "regression"}),
    _Panel(
        title="Terms before their weights",
        label="loss",
        keys={name: name.replace("_", " ") for name in ("distances", "angles", "similarities", "teacher_classes")},
    ),
    _Panel(
        title="Teacher, student and centres",
        label="mean over samples",
        keys={
            "centre_momentum": "centre momentum",
            "confidence": "confidence (teacher to centre)",
            "slow_confidence": "confidence, slow centres",
            "student_teacher_cosine": "student-teacher cosine",
            "target_cosine": "student-centre cosine",
        },
    ),
    _Panel(
        title="Geometry margin",
        label="mean over samples",
        keys={"geometry": "geometry term", "geometry_active": "share it acts on", "margins_clipped": "share clipped"},
        from_zero=True,
    ),
    _Panel(
        title="Embedding norms",
        label="norm",
        keys={"quality": "mean of the batch", "norm_mean": "running mean", "norm_std": "running deviation"},
        from_zero=True,
    ),
    _Panel(title="Learning rate", label="learning rate", keys={"lr": "learning rate"}, scale="log"),
    _Panel(title="Speed", label="images/s", keys={"images_per_s": "images/s"}, from_zero=True),
    _Panel(title="Gradient norm", label="norm before clipping", keys={"gradient_norm": "gradient norm"}, scale="log"),
)


def training_figures(rows: Iterable[Mapping[str, Any]]) -> list[Figure]:
    """Charts of the logged steps; values that a run does not have are left out.

    Args:
        rows: lines of `metrics.jsonl`. Where a resumed run logged a step again, the later line counts.
    """
    by_step = {row["step"]: row for row in rows if row.get("event") == "train" and _is_count(row.get("step"))}
    if len(by_step) < 2:
        return []
    figures = []
    for panel in _PANELS:
        lines: dict[str, dict[int, float]] = {}
        for key, name in panel.keys.items():
            points = {step: float(row[key]) for step, row in sorted(by_step.items()) if _is_drawable(row, key, panel)}
            if points:
                lines[name] = points
        if lines:
            figures.append(_figure(panel, lines))
    return figures


def logged_scores(rows: Iterable[Mapping[str, Any]]) -> tuple[Table | None, Figure | None]:
    """Scores of the evaluations during training: a table by epoch, and a chart of them after two epochs."""
    scores: dict[str, dict[int, float]] = {}
    for row in rows:
        name, epoch, value = row.get("set"), row.get("epoch"), _headline(row)
        if row.get("event") == "evaluation" and isinstance(name, str) and _is_count(epoch) and _is_share(value):
            scores.setdefault(name, {})[epoch] = float(value)  # type: ignore[index, arg-type]
    if not scores:
        return None, None
    epochs = sorted({epoch for values in scores.values() for epoch in values})
    caption = "Headline scores in percent during training (of verification sets the ten-fold accuracy)"
    table = _table_at(
        caption, "When", scores, {epoch: f"after epoch {epoch}" for epoch in epochs}, lambda value: f"{100 * value:.2f}"
    )
    if len(epochs) < 2:
        return table, None
    lines = {name: sorted(values.items()) for name, values in list(scores.items())[:MOST_LINES]}
    svg = line_chart(lines, x=Axis(label="epochs trained", low=0.0), y=Axis(label="score", percent=True))
    return table, Figure(svg=svg, caption=caption, table=table)


def _figure(panel: _Panel, lines: Mapping[str, Mapping[int, float]]) -> Figure:
    lowest = min(value for points in lines.values() for value in points.values())
    svg = line_chart(
        {name: _thinned(list(points.items())) for name, points in lines.items()},
        x=Axis(label="step"),
        y=Axis(label=panel.label, low=0.0 if panel.from_zero and lowest >= 0.0 else None, scale=panel.scale),
    )
    steps = sorted({step for points in lines.values() for step in points})
    shown = sorted({steps[round(i * (len(steps) - 1) / (_TABLE_ROWS - 1))] for i in range(_TABLE_ROWS)})
    caption = f"{panel.title} at some steps"
    table = _table_at(caption, "Step", lines, {step: str(step) for step in shown}, lambda value: f"{value:.4g}")
    return Figure(svg=svg, caption=f"{panel.title}, as logged", table=table)


def _table_at(
    caption: str, head: str, lines: Mapping[str, Mapping[int, float]], places: Mapping[int, str], shown: Any
) -> Table:
    """A row for each place, a column for each line."""
    rows: list[Sequence[Cell]] = []
    for place, name in places.items():
        values = [points.get(place) for points in lines.values()]
        rows.append([name, *(None if value is None else Number(value, shown(value)) for value in values)])
    return Table(caption=caption, heads=[head, *lines], rows=rows)


def _thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """Means over neighbours where there are more points than can be seen."""
    size = -(-len(points) // _TRAINING_POINTS)
    if size == 1:
        return points
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _is_drawable(row: Mapping[str, Any], key: str, panel: _Panel) -> bool:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    return abs(value) < 1e12 and (panel.scale == "linear" or value > 1e-12)


def _headline(row: Mapping[str, Any]) -> object:
    """Accuracy of a verification set, the headline score of another benchmark."""
    scores, key = row.get("scores"), row.get("headline")
    return scores.get(key) if isinstance(scores, dict) and isinstance(key, str) else row.get("accuracy")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.0 <= value <= 1.0
