"""A training run in a report: curves out of `metrics.jsonl`, and the scores that it logged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from adadistill.core.report.charts import MOST_LINES, Axis, line_chart
from adadistill.core.report.document import Cell, Figure, Number, Table

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
    size = -(-len(points) // _DRAWN_POINTS)
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
