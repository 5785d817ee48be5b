"""Values of rows as people read them."""

from __future__ import annotations

import math

from adadistill.bench.row_schema import Field


def figure(value: float) -> str:
    """Three significant digits or more, thousands set apart: 46.7, 11,564, 0.00123, 5.6e-07."""
    if value == 0 or math.isnan(value):
        return "0" if value == 0 else "nan"
    size = abs(value)
    if size >= 1e15 or size < 1e-4:
        return f"{value:.2e}"
    if size >= 100:
        return f"{value:,.0f}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(size)))}f}".rstrip("0").rstrip(".")


def shown(value: object, field: Field) -> str:
    """A field's value; its unit stands in the head of the column, except for `%` and `x`."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict) and field.kind == "spread":
        middle, low, high = (_number(value[name], field) for name in ("median", "p20", "p80"))
        return middle if low == middle == high else f"{middle} ({low} - {high})"
    if isinstance(value, dict):
        return ", ".join(f"{name} {figure(one)}" for name, one in value.items() if isinstance(one, int | float))
    if isinstance(value, list):
        return ", ".join(figure(one) if isinstance(one, int | float) else str(one) for one in value) or "none"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return _number(value, field) if isinstance(value, float) else str(value)


def _number(value: float, field: Field) -> str:
    if field.unit == "%":
        return f"{value:.1%}"
    return figure(value) + ("x" if field.unit == "x" else "")


def head(name: str, field: Field) -> str:
    """Head of a column, the unit taken out of the name: `step [ms]` of step_ms, `images/s` of images_per_s."""
    if field.unit in ("", "%", "x"):
        return name
    token = field.unit.lower().replace("/", "_per_").replace(" ", "_")
    if name == token:
        return field.unit
    return f"{name.removesuffix('_' + token)} [{field.unit}]"
