"""A row for tests that need one, and what every row of a bench that ran tiny here must say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from adadistill.bench.probes import machine_probes
from adadistill.bench.row_schema import Row

SPREAD = {"median": 2.0, "p20": 1.0, "p80": 3.0}


def prelu_row(**changes: Any) -> Row:
    """A whole row of the PReLU bench, from a machine called A."""
    where = {"schema": 2, "date": "2026-11-25T00:00:00+00:00", "commit": "abcdef0123+changes", "python": "3.11",
             "torch": "2.13", "devices": [], "cpu": "A", "cpu_count": 2, "threads": 1, "device": "cpu",
             "probes": {"copy_gb_per_s": SPREAD}}  # fmt: skip
    return {"bench": "prelu", **where, "form": "ours", "batch": 2, "channels": 64, "side": 56, "ms": SPREAD,
            "gb_per_s": 1.5, "share_of_copy_rate": 0.25, **changes}  # fmt: skip


def assert_made_here(rows: Sequence[Row]) -> None:
    """They come from this machine's CPU and hold what it was found to do."""
    for row in rows:
        assert row["device"] == "cpu"
        assert row["probes"] == machine_probes(torch.device("cpu"))
