"""What every row of a bench that ran tiny here must say."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from adadistill.bench.probes import machine_probes
from adadistill.bench.row_schema import Row


def assert_made_here(rows: Sequence[Row]) -> None:
    """They come from this machine's CPU and hold what it was found to do."""
    for row in rows:
        assert row["device"] == "cpu"
        assert row["probes"] == machine_probes(torch.device("cpu"))
