"""What others published, beside our network: only rows of the same data and of the same protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from adadistill.core.report.document import Block, Cell, Number, Paragraph, Table
from adadistill.core.scoring.evaluation_config import KINDS
from adadistill.core.scoring.published import PublishedRow, comparable
from adadistill.core.scoring.result import BenchmarkResult


def published_blocks(scored: Sequence[tuple[str, str, BenchmarkResult]]) -> list[Block]:
    """A table for each benchmark and protocol that somebody published on.

    Args:
        scored: title of a benchmark, name of our network, and what it reached.
    """
    blocks: list[Block] = []
    for title, network, result in scored:
        for protocol, ours in (KINDS[result.kind].published(result) or {}).items():
            rows = [row for row in comparable(protocol) if row.percent.keys() & ours.keys()]
            if rows:
                blocks.append(_comparison(title, network, protocol, ours, rows))
    odd = [title for title, _, result in scored if KINDS[result.kind].published(result) is None]
    if odd:
        blocks.append(
            Paragraph(f"{', '.join(odd)}: no published set, or not of the published size. Nothing stands beside it.")
        )
    elif not blocks:
        blocks.append(Paragraph("No row was published under these protocols."))
    return blocks


def _comparison(
    title: str, network: str, protocol: str, ours: Mapping[str, float], published: Sequence[PublishedRow]
) -> Table:
    """Our network first, then what others reported under the same protocol."""
    names = [name for name in ours if any(name in row.percent for row in published)]
    rows: list[Sequence[Cell]] = [
        [network, None, *(Number(ours[name], f"{100.0 * ours[name]:.2f}") for name in names), "this report"]
    ]
    for row in published:
        values = [row.percent.get(name) for name in names]
        cells = [None if value is None else Number(value / 100.0, f"{value:.2f}") for value in values]
        rows.append([row.network, row.trained_on, *cells, row.source])
    return Table(
        caption=f"{title}, percent. Protocol of every row: {protocol}. Training data, networks and schedules differ.",
        heads=["Network", "Trained on", *names, "Source"],
        rows=rows,
        strong=frozenset({0}),
    )
