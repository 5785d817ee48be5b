"""Rows of measurements: one JSON object a line, each with what the number depends on.

Every bench and every measured training run appends to `bench/results/*.jsonl` through here, so that a figure quoted
anywhere can be traced to a device, versions, a commit and a date.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from adadistill.core.run_folder import describe_environment

RESULTS = Path(__file__).resolve().parent / "results"

_KEPT = ("date", "commit", "python", "torch", "cuda", "devices", "cpu", "cpu_count")


def append_row(path: str | Path | None, *, bench: str, **values: Any) -> dict[str, Any]:
    """Add one row to a JSONL file and return it.

    Args:
        path: the file; None only builds the row. A relative path is taken under $OUT where that is set, else under
            `bench/results`.
        bench: name of what was measured.
        values: JSON values; units belong into the names (`images_per_s`, `wait_ms`).
    """
    environment = describe_environment(world_size=1)
    row = {"bench": bench, **{key: environment[key] for key in _KEPT}, "threads": torch.get_num_threads(), **values}
    if path is not None:
        target = Path(path) if Path(path).is_absolute() else results_folder() / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    return row


def results_folder() -> Path:
    """Where relative result files go: $OUT where a machine sets it, else `bench/results`."""
    return Path(os.environ["OUT"]) if os.environ.get("OUT") else RESULTS


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a file.

    Raises:
        ValueError: a line is no JSON object with `bench`, `date` and `torch`; names it.
    """
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        row = json.loads(line)
        missing = {"bench", "date", "torch"} - set(row) if isinstance(row, dict) else {"everything"}
        if missing:
            raise ValueError(f"{path}, line {number}: a row lacks {sorted(missing)}")
        rows.append(row)
    return rows


def spread(samples: Sequence[float]) -> dict[str, float]:
    """Median, p20 and p80 of repeated measurements."""
    if len(samples) == 1:
        return {"median": samples[0], "p20": samples[0], "p80": samples[0]}
    fifths = statistics.quantiles(samples, n=5, method="inclusive")
    return {"median": statistics.median(samples), "p20": fifths[0], "p80": fifths[3]}
