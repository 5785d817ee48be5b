"""Results as aligned text, for terminals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adadistill.core.scoring.result import BenchmarkResult


def aligned_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A head, a rule and rows; the first column is flush left, the others flush right."""
    cells = [head, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in cells]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def score_table(result: BenchmarkResult) -> str:
    """One row a score, with its protocol, shares in percent; then one line for each note."""
    rows = [
        (
            score.label,
            "-" if score.value is None else f"{100.0 * score.value:.2f}" if score.is_share else f"{score.value:.4f}",
            score.protocol,
        )
        for score in result.scores
    ]
    wide = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{label.ljust(wide[0])}  {value.rjust(wide[1])}  {protocol}" for label, value, protocol in rows]
    notes = dict.fromkeys(f"{score.label}: {score.note}" for score in result.scores if score.note is not None)
    return "\n".join([f"{result.name}, rates in %:", *lines, *notes])
