"""Rows that benches left, as far as a plan can use them: rates of a kind of device, with where they come from.

Rows are JSON objects, one a line, as `bench/results/*.jsonl` holds them. Of several that fit, that of the largest
problem is taken, whatever size is planned, so that a plan never gets faster by having more to do; of equal ones the
newest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adadistill.core.backbones import BackboneConfig
from adadistill.core.device_kinds import DeviceKind

_OUR_SOFTMAX_FORMS = ("torch", "chunks", "fused")
_MOST_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Measured:
    """A rate out of one row."""

    value: float
    source: str
    """File, date and commit of the row, and what it was measured at."""


class MeasuredRows:
    """The rows of one kind of device.

    Args:
        files: JSONL files.

    Raises:
        ValueError: a line is no JSON object; names file and line.
        OSError: a file cannot be read.
    """

    def __init__(self, files: Iterable[Path], device: DeviceKind) -> None:
        self._device = device
        self._rows = [row for file in files for row in _read(file) if _is_of(row, device)]

    def student_s_per_image(
        self, config: BackboneConfig, image_size: int, *, precision: str, compiled: bool, cores: int
    ) -> tuple[Measured, int] | None:
        """Seconds per image of a whole step of this student on one device, and the identities it was measured with.

        `precision` is float32, bfloat16 or float64: `auto` of a row is what it means on its device.
        """
        automatic = "float32" if self._device.is_cpu else "bfloat16"
        wanted = (config.arch, config.width, image_size, "compiled" if compiled else "eager", precision)

        def fits(row: dict[str, Any]) -> bool:
            computed_in = automatic if row["precision"] == "auto" else row["precision"]
            whole = all(_number(row[key]) for key in ("step_ms", "batch_size", "identities"))
            found = (row["arch"], row["width"], row["image_size"], row["mode"], computed_in)
            in_parts = row.get("micro_batch_size") is not None
            return whole and not in_parts and row.get("way", "replayed") == "replayed" and found == wanted

        row = self._best(("step", "step_replayed_batch"), fits, lambda row: (row["batch_size"], 0.0))
        if row is None:
            return None
        seconds = 1e-3 * row["step_ms"] / row["batch_size"] * self._core_share(row, cores)
        source = _source(row, f"batch {row['batch_size']}, {row['identities']} identities")
        return Measured(seconds, source), row["identities"]

    def softmax_flop_per_s(self, dim: int, *, cores: int) -> Measured | None:
        """Operations per second of the margin softmax with fixed centres, by its fastest form."""

        def fits(row: dict[str, Any]) -> bool:
            whole = all(_number(value) for value in (row["batch"], row["classes"], _median_ms(row)))
            return whole and row["form"] in _OUR_SOFTMAX_FORMS and row["dim"] == dim

        row = self._best(("margin_softmax",), fits, lambda row: (row["batch"] * row["classes"], -_median_ms(row)))
        if row is None:
            return None
        rate = 4 * row["batch"] * row["classes"] * row["dim"] / (1e-3 * _median_ms(row))
        shape = f"form {row['form']}, batch {row['batch']}, {row['classes']} classes"
        return Measured(rate / self._core_share(row, cores), _source(row, shape))

    def teacher_images_per_s(
        self, arch: str, image_size: int, *, forms: tuple[str, ...], cores: int
    ) -> Measured | None:
        """Of a teacher of this architecture at width 1, in the first of the forms that was measured."""
        for form in forms:

            def fits(row: dict[str, Any], form: str = form) -> bool:
                network = (row["arch"], row["width"], row["image_size"], row["form"]) == (arch, 1.0, image_size, form)
                return network and _number(row["images_per_s"]["median"]) and _number(row["batch_size"])

            row = self._best(("teacher",), fits, lambda row: (row["batch_size"], 0.0))
            if row is not None:
                rate = row["images_per_s"]["median"] / self._core_share(row, cores)
                return Measured(rate, _source(row, f"form {form}, batch {row['batch_size']}"))
        return None

    def loaded_per_worker(self, pipelines: tuple[str, ...], augment: str) -> Measured | None:
        """Images per second and worker of the first pipeline of these names that was measured."""
        for pipeline in pipelines:

            def fits(row: dict[str, Any], pipeline: str = pipeline) -> bool:
                named = (row["pipeline"], row["stage"], row.get("augment", "none")) == (pipeline, "batch", augment)
                return named and _number(row["workers"]) and _number(row["images_per_s"]["median"])

            row = self._best(("loader",), fits, lambda row: (0, 0.0))
            if row is not None:
                rate = row["images_per_s"]["median"] / row["workers"]
                return Measured(rate, _source(row, f"pipeline {pipeline}, {row['workers']} workers"))
        return None

    def probe(self, name: str, *, cores: int) -> Measured | None:
        """What the machine reached at a plain task (`gemm_bfloat16_tflop_per_s`, `copy_gb_per_s`), newest."""
        rows = [row for row in self._rows if _number(_probed(row, name))]
        if not rows:
            return None
        row = max(rows, key=lambda row: str(row.get("date", "")))
        return Measured(_probed(row, name) / self._core_share(row, cores), _source(row, f"probe {name}"))

    def _core_share(self, row: dict[str, Any], cores: int) -> float:
        """How much longer work takes on so many cores than on those of the row; 1 on devices other than CPUs."""
        threads = row["threads"] if _number(row.get("threads")) else 1
        return float(threads / cores) if self._device.is_cpu else 1.0

    def _best(
        self,
        benches: tuple[str, ...],
        fits: Callable[[dict[str, Any]], bool],
        rank: Callable[[dict[str, Any]], tuple[int, float]],
    ) -> dict[str, Any] | None:
        """The fitting row of the highest rank, the newest of several; rows of other layouts fit nothing."""
        found: list[tuple[tuple[int, str, float], dict[str, Any]]] = []
        for row in self._rows:
            try:
                if row["bench"] in benches and fits(row):
                    size, quality = rank(row)
                    found.append(((size, str(row.get("date", ""))[:10], quality), row))
            except (KeyError, TypeError, ValueError):
                continue
        return max(found, key=lambda pair: pair[0])[1] if found else None


def _read(file: Path) -> list[dict[str, Any]]:
    if file.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{file} is larger than {_MOST_BYTES >> 20} MiB: that is no file of rows")
    rows = []
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise ValueError(f"{file}, line {number} is no JSON; rows are JSON objects, one a line") from None
        if not isinstance(row, dict) or not isinstance(row.get("bench"), str):
            raise ValueError(f"{file}, line {number} is no row of a bench: an object with `bench` is wanted")
        rows.append({**row, "_file": file.name})
    return rows


def _is_of(row: dict[str, Any], device: DeviceKind) -> bool:
    names = row.get("devices")
    names = [str(name) for name in names] if isinstance(names, list) else []
    if device.is_cpu:
        return not names or row.get("device") == "cpu"
    on_gpu = row.get("device") != "cpu"
    return on_gpu and any(known in name for known in device.row_names for name in names)


def _median_ms(row: dict[str, Any]) -> Any:
    """Of rows of either layout."""
    return row["ms"]["median"] if isinstance(row.get("ms"), dict) else row.get("median_ms")


def _probed(row: dict[str, Any], name: str) -> Any:
    probes = row.get("probes")
    found = probes.get(name) if isinstance(probes, dict) else None
    return found.get("median") if isinstance(found, dict) else None


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


def _source(row: dict[str, Any], at: str) -> str:
    commit = str(row.get("commit", "unknown commit"))
    return f"{row['_file']}, {str(row.get('date', 'undated'))[:10]}, commit {commit[:12]}: {at}"
