"""What the project claims to reach, as data, and where its rows stand: reached, missed, or not measured.

A target looks at the rows of one bench. Where it is a ratio, each row is set against its partner: the newest row of the
same machine that differs only in the fields the target names. Of several forms of the same thing the best counts, of
several shapes the worst.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from adadistill.bench.report.row_sets import machine, matching, newest
from adadistill.bench.row_schema import BENCHES, Row, unit_of
from adadistill.core.report.document import Table
from adadistill.core.report.text import short_number


@dataclass(frozen=True, slots=True)
class Target:
    """One claim."""

    what: str
    reach: str
    """As people read it."""
    where: Mapping[str, object]
    """Fields of the rows that count; empty where no bench measures it yet."""
    value: str = ""
    limit: float = 0.0
    than: Literal["at least", "at most"] = "at least"
    against: Mapping[str, object] = field(default_factory=dict)
    """Fields in which the partner differs; the ratio says how many times better than the partner a row is."""
    device: Literal["cuda", "cpu"] = "cuda"


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a target stands."""

    measured: str = "not measured"
    where: str | None = None
    """The machine; None where nothing was measured."""


_OURS = {"bench": "margin_softmax", "form": ("chunks", "fused")}
_STEP = {"bench": "step", "way": "replayed", "width": 1.0, "image_size": 112}
_PACKED = {"bench": "loader", "stage": "batch", "augment": "none"}

TARGETS: tuple[Target, ...] = (
    Target("Margin softmax, loss and embedding gradient", ">= 15 x the origin's eager head, TF32 off",
           _OURS, "ms", 15.0, against={"form": "origin"}),
    Target("The same, of the run's GEMM rate", ">= 65 %", _OURS, "share_of_gemm_rate", 0.65),
    Target("Its memory beside inputs and outputs", "<= 64 MiB at every C", _OURS, "extra_mib", 64.0, "at most"),
    Target("Identities on one GPU, exact softmax, half-precision centres", ">= 100,000,000", {}),
    Target("MobileFaceNet step, images on the device", ">= 40,000 images/s on an H200",
           {**_STEP, "arch": "mobilefacenet"}, "images_per_s", 40_000.0),
    Target("IR-50 step, images on the device", ">= 9,400 images/s on an H200",
           {**_STEP, "arch": ("iresnet50", "ir50")}, "images_per_s", 9_400.0),
    Target("Teacher IR-50, compiled bfloat16", ">= 35,000 images/s on an H200",
           {"bench": "teacher", "arch": "ir50", "form": "bfloat16-compiled"}, "images_per_s", 35_000.0),
    Target("The same", ">= 4 x eager float32",
           {"bench": "teacher", "arch": "ir50", "form": "bfloat16-compiled"}, "images_per_s", 4.0,
           against={"form": "float32"}),
    Target("Cached against in-loop teacher", ">= 95 % of 1 + t_teacher / t_student", {}),
    Target("Loader, JPEG records to the device", ">= 150,000 images/s on 16 cores and an H200",
           {**_PACKED, "pipeline": ("cpu", "dali, hw 0", "dali, hw 0.35", "dali, hw 0.65", "dali, hw 1",
                                    "dali, decode on cpu")}, "images_per_s", 150_000.0),
    Target("Loader, packed planes from RAM", ">= 1,000,000 images/s",
           {**_PACKED, "pipeline": "packed planes, page_cache"}, "images_per_s", 1e6),
    Target("Loader, packed planes from device memory", ">= 5,000,000 images/s",
           {**_PACKED, "pipeline": "packed planes, device"}, "images_per_s", 5e6),
    Target("Input stall of a MobileFaceNet step", "<= 2 %",
           {"bench": "step", "way": "fed", "arch": "mobilefacenet", "width": 1.0}, "input_stall", 0.02, "at most"),
    Target("Bytes on the wire per rank and step, 8 ranks x 1,024", "<= 1/12 of the origin's; <= 1/25 from the cache",
           {}),
    Target("Loader on the CPU, 2 workers", ">= 2.5 x torch DataLoader with Pillow",
           {**_PACKED, "workers": 2, "pipeline": ("cpu", "dali", "packed rgb, page_cache",
                                                  "packed planes, page_cache")},
           "images_per_s", 2.5, against={"pipeline": "torch DataLoader + Pillow"}, device="cpu"),
)  # fmt: skip


def targets_table(rows: Sequence[Row]) -> Table:
    """What the project set out to reach, and where it stands by these rows."""
    standings = [(target, standing(target, rows)) for target in TARGETS]
    return Table(
        caption="What the project set out to reach, and where it stands",
        heads=["What", "To reach", "Measured", "On"],
        rows=[[target.what, target.reach, found.measured, found.where] for target, found in standings],
    )


def standing(target: Target, rows: Sequence[Row]) -> Standing:
    """Where a target stands by these rows."""
    here = [row for row in newest(rows) if row["device"].startswith(target.device)]
    counted = matching(here, target.where) if target.where else []
    last = machine(counted[-1]) if counted else None
    best: dict[tuple[str, ...], float] = {}  # by shape: all keys but those of which several forms count
    several = {name for name, value in target.where.items() if isinstance(value, tuple)}
    chosen = max if target.than == "at least" else min
    for row in counted:
        value = _value(row, target, here) if machine(row) == last else None
        if value is not None:
            shape = tuple(str(row.get(name)) for name in BENCHES[row["bench"]].keys if name not in several)
            best[shape] = chosen(best.get(shape, value), value)
    if not best:
        return Standing()
    low, high = min(best.values()), max(best.values())
    reached = low >= target.limit if target.than == "at least" else high <= target.limit
    text = _text(low, target) if low == high else f"{_text(low, target)} to {_text(high, target)}"
    return Standing(f"{'reached' if reached else 'missed'}: {text}", last)


def _value(row: Row, target: Target, rows: Sequence[Row]) -> float | None:
    own = _median(row.get(target.value))
    if own is None or not target.against:
        return own
    names = [name for name in BENCHES[row["bench"]].keys if name not in target.against]
    same: dict[str, object] = {"bench": row["bench"], **{name: row.get(name) for name in names}, **target.against}
    partners = [other for other in matching(rows, same) if machine(other) == machine(row)]
    other = _median(partners[-1].get(target.value)) if partners else None
    if not other or not own:
        return None
    return other / own if unit_of(target.value).better == "lower" else own / other


def _median(value: object) -> float | None:
    if isinstance(value, dict):
        return float(value["median"])
    return float(value) if isinstance(value, int | float) else None


def _text(value: float, target: Target) -> str:
    if target.against:
        return f"{short_number(value)} x"
    unit = unit_of(target.value).text
    return f"{value:.1%}" if unit == "%" else f"{short_number(value)} {unit}"
