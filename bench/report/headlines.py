"""The README's five figures: which rows they come from, as data, and the text that is made of them.

Each headline takes the newest row that fits, on whatever machine that was, and compares it with the newest fitting rows
of that same machine. Rows that differ only in `seed` are averaged. What no row can say (figures of other people's code
that ran elsewhere, reservations) stands in the README outside the markers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from adadistill.bench.report.row_sets import machine, matching, newest, when
from adadistill.bench.row_schema import BENCHES, Row
from adadistill.core.report.markdown_page import replace_marked
from adadistill.core.report.text import markdown_text

BEGIN = "<!-- measured: begin. Written by `python -m adadistill.bench report --readme README.md`; edit headlines.py -->"
END = "<!-- measured: end -->"


@dataclass(frozen=True, slots=True)
class Value:
    """One figure of a row."""

    where: Mapping[str, object]
    value: str
    """Field; the median of a spread, the mean of a list; a dot goes into JSON (`scores.teacher.accuracies`)."""
    text: str
    """What is written, with the figure as Python's format specification says."""


@dataclass(frozen=True, slots=True)
class Headline:
    """One line."""

    what: str
    """With fields of the first row in braces."""
    here: tuple[Value, ...]
    compared: tuple[Value, ...] = ()
    same: tuple[str, ...] = ()
    """Fields in which all rows of the line agree with the first."""


_FACES = {"bench": "real_faces", "epochs": 20, "set": "faces_holdout"}
_BATCH = {"bench": "loader", "stage": "batch", "augment": "none"}
_SOFTMAX = {"bench": "margin_softmax", "batch": 512, "classes": 100_000, "dim": 512}

HEADLINES: tuple[Headline, ...] = (
    Headline(
        "Real faces (`bench real_faces`): MobileFaceNet, 4,145 faces of 816 people, stored teacher, {epochs} epochs, "
        "batch 128; accuracy on 1,800 pairs of strangers, mean of {seeds}, standard error of one 0.8 points",
        (
            Value({**_FACES, "kind": "distilled"}, "accuracy", "**{:.2%}** distilled"),
            Value({**_FACES, "kind": "distilled_onnx_cache"}, "accuracy",
                  "**{:.2%}** at 128-d, by a real ONNX teacher through its cache"),
        ),
        (Value({**_FACES, "kind": "baseline"}, "accuracy", "{:.2%}: same network and budget, ArcFace, no teacher"),),
    ),
    Headline(
        "One step beside the origin's, in turn, batch {batch_size}, {identities} identities, real faces, {precision} "
        "(`bench beside_origin`), images/s",
        (
            Value({"bench": "beside_origin", "variant": "eager float32"}, "images_per_s", "{:.1f} eager"),
            Value({"bench": "beside_origin", "variant": "compiled float32"}, "images_per_s", "**{:.1f}** compiled"),
        ),
        (
            Value({"bench": "beside_origin", "variant": "origin"}, "images_per_s", "{:.1f}: an origin-style step"),
            Value({"bench": "beside_origin", "variant": "origin keeping memory"}, "images_per_s",
                  "{:.1f}: the same with our allocator setting"),
        ),
        same=("batch_size", "identities", "precision", "arch", "width"),
    ),
    Headline(
        "Loader to normalised float32 batches of 112 x 112 faces (`bench loader`), {workers} workers, images/s",
        (
            Value({**_BATCH, "pipeline": "cpu"}, "images_per_s", "{:,.0f} CPU pipeline"),
            Value({**_BATCH, "pipeline": "dali"}, "images_per_s", "{:,.0f} DALI"),
            Value({**_BATCH, "pipeline": "packed rgb, page_cache"}, "images_per_s", "{:,.0f} packed RGB"),
            Value({**_BATCH, "pipeline": "packed planes, page_cache"}, "images_per_s", "{:,.0f} packed planes"),
        ),
        (
            Value({**_BATCH, "pipeline": "torch DataLoader + Pillow"}, "images_per_s", "{:,.0f}: DataLoader + Pillow"),
            Value({**_BATCH, "pipeline": "DALI as insightface writes it"}, "images_per_s",
                  "{:,.0f}: DALI as insightface writes it"),
        ),
        same=("batch_size", "workers", "mean_record_bytes"),
    ),
    Headline(
        "Margin softmax, loss and gradient, B {batch}, C {classes}, D {dim} (`bench kernels.bench_margin_softmax`)",
        (
            Value({**_SOFTMAX, "form": "torch"}, "ms", "**{:,.0f} ms**"),
            Value({**_SOFTMAX, "form": "torch"}, "extra_mib", "{:,.0f} MiB beside inputs and outputs"),
        ),
        (
            Value({**_SOFTMAX, "form": "origin"}, "ms", "{:,.0f} ms"),
            Value({**_SOFTMAX, "form": "origin"}, "extra_mib", "{:,.0f} MiB: the published head"),
            Value({**_SOFTMAX, "form": "linear_cross_entropy"}, "ms", "{:,.0f} ms"),
            Value({**_SOFTMAX, "form": "linear_cross_entropy"}, "extra_mib",
                  "{:,.0f} MiB: torch's `linear_cross_entropy`, which has no margin"),
        ),
    ),
    Headline(
        "`make demo`: 3,000 pairs of synthetic strangers, mean of {seeds} seeds",
        (
            Value({"bench": "demo"}, "scores.distilled.accuracies", "**{:.1%} distilled**"),
        ),
        (
            Value({"bench": "demo"}, "scores.untrained.accuracies", "{:.1%}: untrained"),
            Value({"bench": "demo"}, "scores.no_teacher.accuracies", "{:.1%}: no teacher"),
            Value({"bench": "demo"}, "scores.teacher.accuracies", "{:.1%}: teacher"),
        ),
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Line:
    machine: str
    rows: list[Row]
    cells: list[str]


def measured_text(rows: Sequence[Row]) -> str:
    """What stands between the markers: a table for each machine that has a newest row, the latest machine first."""
    kept = sorted(newest(rows), key=when)
    lines = [line for headline in HEADLINES if (line := _line(headline, kept)) is not None]
    names = sorted({line.machine for line in lines}, key=lambda name: max(_dates(lines, name)), reverse=True)
    parts = []
    for name in names:
        dates = _dates(lines, name)
        torch = " / ".join(sorted({row["torch"] for line in lines if line.machine == name for row in line.rows}))
        span = min(dates) if min(dates) == max(dates) else f"{min(dates)} to {max(dates)}"
        parts += [f"{markdown_text(name)}; torch {markdown_text(torch)}; {markdown_text(span)}:", ""]
        parts += ["| What | Here | For comparison, same machine |", "| --- | --- | --- |"]
        parts += [f"| {' | '.join(line.cells)} |" for line in lines if line.machine == name]
        parts.append("")
    return "\n".join(parts)


def with_measured_text(readme: str, rows: Sequence[Row]) -> str:
    """The README with what stands between its markers written anew.

    Raises:
        ValueError: it has not exactly one of each marker, in this order.
    """
    return replace_marked(readme, BEGIN, END, measured_text(rows))


def _line(headline: Headline, rows: Sequence[Row]) -> _Line | None:
    """The line, or None where its first figure was never measured."""
    anchors = _rows_for(headline.here[0], rows)
    if not anchors:
        return None
    mine = [
        row
        for row in rows
        if machine(row) == machine(anchors[0])
        and all(row.get(name) == anchors[0].get(name) for name in ("threads", *headline.same))
    ]
    used: list[Row] = []
    cells = []
    for values in (headline.here, headline.compared):
        written = []
        for value in values:
            chosen = _rows_for(value, mine)
            figures = [found for row in chosen if (found := _figure(row, value.value)) is not None]
            if figures:
                used += chosen
                written.append(value.text.format(fmean(figures)))
        cells.append("; ".join(written))
    fields = {name: _plain(value) for name, value in anchors[0].items()}
    if "seed" in BENCHES[anchors[0]["bench"]].keys:
        fields["seeds"] = "1 seed" if len(anchors) == 1 else f"{len(anchors)} seeds"
    return _Line(machine(anchors[0]), used, [headline.what.format(**fields), *cells])


def _rows_for(value: Value, rows: Sequence[Row]) -> list[Row]:
    """The newest row that fits and has the figure, and those that differ from it in their seed alone."""
    fitting = [row for row in matching(rows, value.where) if _figure(row, value.value) is not None]
    if not fitting:
        return []
    last = fitting[-1]
    names = [name for name in BENCHES[last["bench"]].keys if name != "seed"]
    return [
        row
        for row in fitting
        if machine(row) == machine(last)
        and row["threads"] == last["threads"]
        and all(row.get(name) == last.get(name) for name in names)
    ]


def _figure(row: Row, path: str) -> float | None:
    found: object = row
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    if isinstance(found, dict):
        found = found.get("median")
    if isinstance(found, list) and found and all(isinstance(one, int | float) for one in found):
        return fmean(found)
    return float(found) if isinstance(found, int | float) else None


def _plain(value: object) -> str:
    return f"{value:,}" if type(value) is int else markdown_text(str(value))


def _dates(lines: Sequence[_Line], name: str) -> list[str]:
    return [row["date"][:10] for line in lines if line.machine == name for row in line.rows]
