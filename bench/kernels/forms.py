"""The forms of one kernel timed in turn, a row for each with its share of what a copy moves in the same process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from adadistill.bench.probes import copy_gb_per_s
from adadistill.bench.rows import append_row
from adadistill.bench.timing import alternating_ms, spread


def measure_forms(
    forms: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    moved_bytes: int,
    repeats: int,
    rows: str | None,
    of_form: Mapping[str, Mapping[str, Any]] | None = None,
    **values: Any,
) -> None:
    """Time the forms, call by call in turn, and write their rows.

    Args:
        moved_bytes: what any form must read and write.
        rows: as `append_row` takes it.
        of_form: further values of each form.
        values: what all rows hold: `bench` and its keys.
    """
    for name, measured in alternating_ms(forms, device, repeats).items():
        times = spread(measured)
        gb_per_s = moved_bytes / times["median"] / 1e6
        append_row(
            rows, form=name, device=device, ms=times, gb_per_s=gb_per_s,
            share_of_copy_rate=gb_per_s / copy_gb_per_s(device), **values, **(of_form or {}).get(name, {}),
        )  # fmt: skip
