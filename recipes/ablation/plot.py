"""The figure of an ablation: differences to the baseline with their intervals, one panel for each verification set."""

from __future__ import annotations

from pathlib import Path

from adadistill.core.seed_statistics import LEVEL
from adadistill.recipes.ablation.report import AblationResult, SetResult

_ACCENT, _SEED, _ZERO = "#1f4e79", "#e08214", "#888888"
_MOST_SEEDS_SHOWN = 20  # beyond, dots hide the interval


class PlotMissingError(RuntimeError):
    """matplotlib is not installed; the text says how to get it."""


def plot_differences(result: AblationResult, path: Path) -> None:
    """Draw the figure to a file; its suffix chooses the format (`.svg`, `.png`, `.pdf`). Needs no display.

    Args:
        result: of two variants at least.

    Raises:
        PlotMissingError: matplotlib is not installed.
    """
    try:
        import matplotlib  # type: ignore[import-not-found, unused-ignore]
        from matplotlib.figure import Figure  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise PlotMissingError(
            f"the figure needs matplotlib ({error}); install it with pip install 'adadistill[report]' and run the same "
            "command again, which trains nothing that is finished"
        ) from error
    compared = [variant.label for variant in result.plan.variants if variant.label != result.plan.baseline]
    height = 1.3 + 0.42 * len(compared)
    # Text stays text, and equal results give equal files.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "adadistill", "font.size": 9}):
        figure = Figure(figsize=(7.5, height * len(result.sets)), layout="constrained")
        panels = figure.subplots(len(result.sets), 1, squeeze=False, sharex=True)[:, 0]
        for axes, one in zip(panels, result.sets, strict=True):
            _draw(axes, one, compared)
        panels[-1].set_xlabel(f"difference to {result.plan.baseline}, percentage points")
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def _draw(axes, one: SetResult, compared: list[str]) -> None:  # type: ignore[no-untyped-def]
    """One panel: a line for the interval, a mark for the mean, a dot for each seed."""
    rows = {variant.label: variant for variant in one.variants}
    axes.axvline(0.0, color=_ZERO, linewidth=1.0)
    for place, label in enumerate(compared):
        found = rows[label].difference
        if found is None:
            axes.annotate(
                "failed" if rows[label].failures else "not finished",
                (0.0, place), xytext=(4, 0), textcoords="offset points", va="center", color=_ZERO,
            )  # fmt: skip
            continue
        if found.interval is not None:
            axes.plot([100 * end for end in found.interval], [place] * 2, color=_ACCENT, linewidth=2.5, alpha=0.55)
        if len(found.differences) <= _MOST_SEEDS_SHOWN:
            axes.plot(
                [100 * value for value in found.differences], [place] * len(found.differences),
                "o", color=_SEED, markersize=3.5, alpha=0.9,
            )  # fmt: skip
        axes.plot(100 * found.mean, place, "D", color=_ACCENT, markersize=6)
    axes.set_yticks(range(len(compared)), compared)
    axes.set_ylim(len(compared) - 0.5, -0.5)
    axes.set_title(
        f"{one.name}: mean (diamond), seeds (dots), {100 * LEVEL:g} % interval (line)",
        loc="left",
        fontsize=9,
        fontweight="bold",
    )
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
