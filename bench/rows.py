"""Rows of measurements: one JSON object a line, each with what the number depends on.

Every bench and every measured training run appends to `bench/results/*.jsonl` through here, so that a figure quoted
anywhere can be traced to a device, versions, a commit and a date. Each row is printed as it comes. What a row must
hold is in `row_schema.py`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from adadistill.bench.probes import machine_probes
from adadistill.bench.row_schema import BENCHES, SCHEMA, Row, check_row, field_text, read_rows
from adadistill.core.training.run_folder import describe_environment

__all__ = ["RESULTS", "append_row", "read_rows", "results_folder"]

RESULTS = Path(__file__).resolve().parent / "results"

_KEPT = ("date", "commit", "python", "torch", "cuda", "driver", "devices", "cpu", "cpu_count")


def append_row(path: str | Path | None, *, bench: str, device: str | torch.device, **values: Any) -> Row:
    """Print one row, add it to a JSONL file and return it.

    The machine is probed once a process for it (`probes.py`), so a bench that is sensitive to what ran before it asks
    for the probes before it measures.

    Args:
        path: the file; None only prints the row. A relative path is taken under $OUT where that is set, else under
            `bench/results`.
        bench: name of what was measured; an entry of `row_schema.BENCHES`.
        device: where it ran.
        values: JSON values, as the entry says; units belong into the names (`images_per_s`, `wait_ms`).

    Raises:
        RowError: a value is missing, unknown or of another kind; names it. Nothing is written then.
    """
    environment = describe_environment(world_size=1)
    row = {
        "bench": bench,
        "schema": SCHEMA,
        **{key: environment[key] for key in _KEPT},
        "threads": torch.get_num_threads(),
        "device": str(device),
        "probes": machine_probes(torch.device(device)),
        **values,
    }
    check_row(row, where=f"a row of {bench}")
    if path is not None:
        target = Path(path) if Path(path).is_absolute() else results_folder() / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
    print(row_line(row), flush=True)
    return row


def row_line(row: Row) -> str:
    """What a row says of what, without where it was measured: names and values on one line."""
    entry = BENCHES[row["bench"]]
    told = [
        f"{name} {field_text(name, row[name])}"
        for name, kind in {**entry.keys, **entry.values, **entry.notes}.items()
        if row.get(name) not in (None, {}) and kind != "json"
    ]
    return "  ".join([row["bench"], *told])


def results_folder() -> Path:
    """Where relative result files go: $OUT where a machine sets it, else `bench/results`."""
    return Path(os.environ["OUT"]) if os.environ.get("OUT") else RESULTS
