"""A training run in a report: curves out of `metrics.jsonl`, and the scores that it logged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from adadistill.core.report.document import Cell, Figure, Number, Table
from adadistill.core.report.line_chart import MOST_SERIES, Axis, Series, line_chart

_DRAWN_POINTS = 400
_TABLE_ROWS = 6


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
)  # fmt: skip


def training_figures(rows: Iterable[Mapping[str, Any]]) -> list[Figure]:
    """Charts of the logged steps; values that a run does not have are left out.

    Args:
        rows: lines of `metrics.jsonl`. Where a resumed run logged a step again, the later line counts.
    """
    by_step = {row["step"]: row for row in rows if row.get("event") == "train" and _is_count(row.get("step"))}
    steps = [by_step[step] for step in sorted(by_step)]
    if len(steps) < 2:
        return []
    figures = []
    for panel in _PANELS:
        lines = {}
        for key, name in panel.keys.items():
            points = [(float(row["step"]), float(row[key])) for row in steps if _is_drawable(row.get(key), panel)]
            if points:
                lines[name] = points
        if lines:
            figures.append(_figure(panel, lines, float(steps[0]["step"]), float(steps[-1]["step"])))
    return figures


def logged_scores(rows: Iterable[Mapping[str, Any]]) -> tuple[Table | None, Figure | None]:
    """Scores of the evaluations during training: a table by epoch, and a chart of the accuracies."""
    accuracies: dict[str, dict[int, float]] = {}
    for row in rows:
        name, epoch, value = row.get("set"), row.get("epoch"), _headline(row)
        if row.get("event") == "evaluation" and isinstance(name, str) and _is_count(epoch) and _is_share(value):
            accuracies.setdefault(name, {})[epoch] = float(value)  # type: ignore[index, arg-type]
    if not accuracies:
        return None, None
    epochs = sorted({epoch for values in accuracies.values() for epoch in values})
    table_rows: list[Sequence[Cell]] = []
    for epoch in epochs:
        values = [accuracies[name].get(epoch) for name in accuracies]
        cells: list[Cell] = [None if value is None else Number(value, f"{100.0 * value:.2f}") for value in values]
        table_rows.append([f"after epoch {epoch}", *cells])
    caption = "Headline scores in percent during training (of verification sets the ten-fold accuracy)"
    table = Table(caption=caption, heads=["When", *accuracies], rows=table_rows)
    if len(epochs) < 2:
        return table, None
    shown = dict(list(accuracies.items())[:MOST_SERIES])
    lowest = min(value for values in shown.values() for value in values.values())
    chart = line_chart(
        [Series(name, sorted(values.items())) for name, values in shown.items()],
        x=Axis(label="epochs trained", low=0.0, high=float(epochs[-1])),
        y=Axis(label="score", low=min(0.95, math.floor(20.0 * lowest) / 20.0), high=1.0, percent=True),
        description=f"Scores by epoch on {', '.join(shown)}",
    )
    return table, Figure(svg=chart, caption=caption, key=list(shown), table=table)


def _figure(panel: _Panel, lines: Mapping[str, list[tuple[float, float]]], first: float, last: float) -> Figure:
    values = [value for points in lines.values() for _, value in points]
    low, high = min(values), max(values)
    if panel.scale == "log":
        low, high = 10.0 ** math.floor(math.log10(low) + 1e-9), 10.0 ** math.ceil(math.log10(high) - 1e-9)
        high = high if high > low else 10.0 * low
    else:
        low = min(low, 0.0) if panel.from_zero else low
        room = 0.04 * (high - low) or 0.5 * abs(high) or 1.0
        low, high = (low if panel.from_zero and low == 0.0 else low - room), high + room
    chart = line_chart(
        [Series(name, _thinned(points)) for name, points in lines.items()],
        x=Axis(label="step", low=first, high=last),
        y=Axis(label=panel.label, low=low, high=high, scale=panel.scale),
        description=f"{panel.title} over training: {', '.join(lines)}",
    )
    by_step = {name: dict(points) for name, points in lines.items()}
    steps = sorted({step for points in by_step.values() for step in points})
    shown = sorted({steps[round(i * (len(steps) - 1) / (_TABLE_ROWS - 1))] for i in range(_TABLE_ROWS)})
    rows: list[Sequence[Cell]] = []
    for step in shown:
        at = [by_step[name].get(step) for name in by_step]
        rows.append([f"{step:.0f}", *(None if value is None else Number(value, f"{value:.4g}") for value in at)])
    table = Table(caption=f"{panel.title} at some steps", heads=["Step", *lines], rows=rows)
    return Figure(svg=chart, caption=f"{panel.title}, as logged", key=list(lines), table=table)


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means over neighbours where there are more points than can be seen."""
    size = -(-len(points) // _DRAWN_POINTS)
    if size == 1:
        return points
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _is_drawable(value: object, panel: _Panel) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return False
    return abs(value) < 1e12 and (panel.scale == "linear" or value > 1e-12)


def _headline(row: Mapping[str, Any]) -> object:
    """Accuracy of a verification set, the headline score of another benchmark."""
    scores, key = row.get("scores"), row.get("headline")
    return scores.get(key) if isinstance(scores, dict) and isinstance(key, str) else row.get("accuracy")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


def _is_share(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0.0 <= value <= 1.0
