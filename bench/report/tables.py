"""Rows as tables: one for each machine and bench, of the newest rows, with what they all share in the caption."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from adadistill.bench.report.figures import head, shown
from adadistill.bench.report.row_sets import machine, newest
from adadistill.bench.row_schema import BENCHES, COMMON, Field, Row


@dataclass(frozen=True, slots=True)
class Bar:
    """A row in a chart."""

    label: str
    median: float
    p20: float
    p80: float


@dataclass(frozen=True, slots=True)
class Table:
    """Plain text throughout: whoever writes it out escapes it."""

    title: str
    caption: str
    heads: list[str]
    lines: list[list[str]]
    numeric: list[bool]
    """For each column, whether it holds figures."""
    bars: list[Bar]
    bars_of: str
    """What the bars are, with its unit; empty where there are none."""


@dataclass(frozen=True, slots=True)
class Machine:
    """All tables of a machine."""

    name: str
    tables: list[Table]


def machines(rows: Sequence[Row]) -> list[Machine]:
    """Tables of the newest rows, the machine that measured last first."""
    kept = newest(rows)
    names = list(dict.fromkeys(machine(row) for row in reversed(kept)))
    order = list(BENCHES)
    found = []
    for name in names:
        mine = [row for row in kept if machine(row) == name]
        by_bench = {bench: [row for row in mine if row["bench"] == bench] for bench in order}
        found.append(Machine(name, [bench_table(bench, listed) for bench, listed in by_bench.items() if listed]))
    return found


def bench_table(bench: str, rows: Sequence[Row]) -> Table:
    """A table of rows of one bench and machine."""
    schema = BENCHES[bench]
    keys: dict[str, Field] = {**schema.keys, "threads": COMMON["threads"]}
    varying = [name for name in keys if len({json.dumps(row.get(name)) for row in rows}) > 1]
    shared = {name: shown(rows[0].get(name), keys[name]) for name in keys if name not in varying}
    measured = {
        name: field
        for name, field in schema.values.items()
        if field.kind != "json" and any(row.get(name) not in (None, False) for row in rows)
    }
    lines = [
        [
            *(shown(row.get(name), keys[name]) for name in varying),
            *(shown(row.get(name), field) for name, field in measured.items()),
            row["date"][:10],
            commit(row),
        ]
        for row in rows
    ]
    figures = [keys[name].kind in ("integer", "number") for name in varying]
    figures += [field.kind in ("spread", "number") for field in measured.values()]
    first = next((name for name, field in measured.items() if field.kind == "spread"), None)
    return Table(
        title=f"{schema.title} ({bench})",
        caption=_caption(shared, rows),
        heads=[*varying, *(head(name, field) for name, field in measured.items()), "date", "commit"],
        lines=lines,
        numeric=[*figures, False, False],
        bars=[] if first is None else _bars(rows, first, varying, keys),
        bars_of="" if first is None else head(first, measured[first]),
    )


def commit(row: Row) -> str:
    """First letters of the commit; a star where files had been changed."""
    text = row.get("commit") or ""
    return text[:7] + ("*" if text.endswith("+changes") else "")


def _caption(shared: dict[str, str], rows: Sequence[Row]) -> str:
    """What all rows have in common, versions, and what the machine could do."""
    parts = [f"{name} {text}" for name, text in shared.items() if text not in ("", "none")]
    parts.append("torch " + " / ".join(sorted({row["torch"] for row in rows})))
    probes: dict[str, float] = next((row["probes"] for row in reversed(rows) if row.get("probes")), {})  # newest
    parts += [f"{name} {shown(spread, Field('spread'))}" for name, spread in probes.items()]
    if not probes:
        parts.append("machine not probed")
    return "; ".join(parts)


def _bars(rows: Sequence[Row], name: str, varying: Sequence[str], keys: dict[str, Field]) -> list[Bar]:
    def label(row: Row) -> str:
        told = {key: shown(row.get(key), keys[key]) for key in varying}
        named = [text if keys[key].kind == "text" else f"{key} {text}" for key, text in told.items() if text]
        return ", ".join(text for text in named if text != "none") or "all"

    return [Bar(label(row), **row[name]) for row in rows if row.get(name) is not None]
