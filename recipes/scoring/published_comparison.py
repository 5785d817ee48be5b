"""What others published, beside our network: only rows of the same data and of the same protocol."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from adadistill.core.report.document import Block, Cell, Number, Paragraph, Table
from adadistill.core.scoring.published import RANKS, VERIFICATION, PublishedRow, comparable
from adadistill.core.scoring.result import BenchmarkResult
from adadistill.core.scoring.verification import PUBLISHED_PAIRS

_IJB_PAIRS = {"IJBB": 8_010_270, "IJBC": 15_658_489}
_IJB_KEY = re.compile(r"(Norm:(?:True|False)_Det:(?:True|False))_tpr_at_fpr_(\S+)")


def published_blocks(scored: Sequence[tuple[str, str, BenchmarkResult]]) -> list[Block]:
    """A table for each benchmark and protocol that somebody published on.

    Args:
        scored: title of a benchmark, name of our network, and what it reached.
    """
    blocks: list[Block] = []
    for title, network, result in scored:
        for protocol, ours in _comparable_scores(result).items():
            rows = [row for row in comparable(protocol) if row.percent.keys() & ours.keys()]
            if rows:
                blocks.append(_comparison(title, network, protocol, ours, rows))
    odd = [title for title, _, result in scored if not _is_published(result)]
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


def _comparable_scores(result: BenchmarkResult) -> dict[str, dict[str, float]]:
    """Protocol -> name in published rows -> our share. Empty where data or protocol are not the published ones."""
    found: dict[str, dict[str, float]] = {}
    if not _is_published(result):
        return found
    for score in result.scores:
        if score.value is None:
            continue
        key = score.key.removeprefix(f"{result.kind}.{result.name}.")
        if result.kind == "verification" and key == "Accuracy-Flip":
            found.setdefault(VERIFICATION, {})[result.name] = score.value
        elif result.kind == "tinyface" and key.startswith("rank-"):
            found.setdefault(RANKS, {})[f"tinyface {key}"] = score.value
        elif result.kind == "ijb" and (match := _IJB_KEY.fullmatch(key)):
            far = {"0.0001": "1e-4", "1e-05": "1e-5"}.get(match[2], match[2])
            found.setdefault(match[1], {})[f"{result.name[:4].upper()} {far}"] = score.value
    return found


def _is_published(result: BenchmarkResult) -> bool:
    """Whether data of this name and size were published on."""
    if result.kind == "verification":
        return PUBLISHED_PAIRS.get(result.name) == result.counts.get("pairs")
    if result.kind == "ijb":
        return _IJB_PAIRS.get(result.name[:4].upper()) == result.counts.get("pairs")
    return result.counts.get("probes") == 3728
