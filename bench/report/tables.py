"""Rows as a document: for each machine a table and bars of each bench, of the newest rows; last the targets.

What all rows of a table share stands in its caption.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from adadistill.bench.report.row_sets import machine, newest
from adadistill.bench.report.targets import targets_table
from adadistill.bench.row_schema import BENCHES, COMMON, Fields, Row, field_text, unit_of
from adadistill.core.report.charts import Bar, bar_chart
from adadistill.core.report.document import Block, Cell, Document, Figure, Figures, Heading, Number, Paragraph, Table

_ABOUT = (
    "Medians, with p20 - p80 in brackets; a star marks a commit with uncommitted changes. Bars show medians, lines p20 "
    "to p80."
)


def bench_document(rows: Sequence[Row]) -> Document:
    """Everything, the machine that measured last first."""
    kept = newest(rows)
    blocks: list[Block] = [Paragraph(_ABOUT)]
    for name in dict.fromkeys(machine(row) for row in reversed(kept)):
        blocks.append(Heading(2, name))
        for bench in BENCHES:
            listed = [row for row in kept if machine(row) == name and row["bench"] == bench]
            blocks += _bench_blocks(bench, listed) if listed else []
    blocks += [Heading(2, "Targets"), targets_table(rows)]
    return Document(title="adadistill: measured", blocks=blocks)


def head(name: str) -> str:
    """The head of a column, the unit taken out of the name: `step [ms]` of step_ms, `images/s` of images_per_s."""
    unit = unit_of(name).text
    if unit in ("", "%", "x"):
        return name
    token = unit.lower().replace("/", "_per_").replace(" ", "_")
    return unit if name == token else f"{name.removesuffix('_' + token)} [{unit}]"


def _bench_blocks(bench: str, rows: Sequence[Row]) -> list[Block]:
    """Rows of one bench and machine."""
    schema = BENCHES[bench]
    keys: Fields = {**schema.keys, "threads": COMMON["threads"]}
    varying = [name for name in keys if len({json.dumps(row.get(name)) for row in rows}) > 1]
    shared = {name: field_text(name, rows[0].get(name)) for name in keys if name not in varying}
    measured = [
        name
        for name, kind in schema.values.items()
        if kind != "json" and any(row.get(name) not in (None, False) for row in rows)
    ]
    columns = [*varying, *measured]
    table = Table(
        caption=_caption(shared, rows),
        heads=[*varying, *map(head, measured), "date", "commit"],
        rows=[[*(_cell(name, row.get(name)) for name in columns), row["date"][:10], _commit(row)] for row in rows],
    )
    blocks: list[Block] = [Heading(3, f"{schema.title} ({bench})")]
    first = next((name for name in measured if schema.values[name].startswith("spread")), None)
    drawn = [] if first is None else [row for row in rows if row.get(first) is not None]
    if first is not None and len(drawn) > 1:
        bars = [Bar(_bar_label(row, varying, keys), **row[first]) for row in drawn]
        what = f"{schema.title}, {head(first)}"
        blocks.append(Figures([Figure(svg=bar_chart(bars, head(first)), caption=what)]))
    return [*blocks, table]


def _cell(name: str, value: object) -> Cell:
    if value is None:
        return None
    number = value.get("median") if isinstance(value, dict) else value
    text = field_text(name, value)
    return Number(number, text) if isinstance(number, int | float) and not isinstance(number, bool) else text


def _commit(row: Row) -> str:
    """First letters of the commit; a star where files had been changed."""
    text = row.get("commit") or ""
    return text[:7] + ("*" if text.endswith("+changes") else "")


def _caption(shared: Mapping[str, str], rows: Sequence[Row]) -> str:
    """What all rows have in common, versions, and what the machine could do."""
    parts = [f"{name} {text}" for name, text in shared.items() if text not in ("", "none")]
    parts.append("torch " + " / ".join(sorted({row["torch"] for row in rows})))
    probes: Row = next((row["probes"] for row in reversed(rows) if row.get("probes")), {})  # newest
    parts += [f"{name} {field_text('', spread)}" for name, spread in probes.items()] or ["machine not probed"]
    return "; ".join(parts)


def _bar_label(row: Row, varying: Sequence[str], keys: Fields) -> str:
    told = {name: field_text(name, row.get(name)) for name in varying}
    named = [text if keys[name] == "text" else f"{name} {text}" for name, text in told.items() if text]
    return ", ".join(text for text in named if text != "none") or "all"
