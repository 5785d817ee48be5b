"""Which row a plan takes: of its kind of device, its network and format, the largest problem, the newest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adadistill.core.backbones import BackboneConfig
from adadistill.core.device_kinds import DEVICES
from adadistill.core.measured_rows import MeasuredRows

H200, CPU = DEVICES["h200"], DEVICES["cpu"]
GPU = {"devices": ["NVIDIA H200"], "device": "cuda", "commit": "0123456789abcdef", "date": "2026-11-20T00:00:00"}
STEP = {
    "bench": "step_replayed_batch", "arch": "mobilefacenet", "width": 1.0, "image_size": 112, "batch_size": 512,
    "identities": 1000, "precision": "auto", "mode": "eager", "step_ms": 100.0,
}  # fmt: skip
SOFTMAX = {"bench": "margin_softmax", "form": "chunks", "batch": 1024, "classes": 1000, "dim": 512, "median_ms": 2.0}


def _rows(tmp_path: Path, rows: list[dict[str, Any]], device: Any = H200) -> MeasuredRows:
    path = tmp_path / "found.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return MeasuredRows([path], device)


def _student(rows: MeasuredRows, **changes: Any) -> float | None:
    arguments: dict[str, Any] = {"precision": "bfloat16", "compiled": False, "cores": 4, **changes}
    found = rows.student_s_per_image(BackboneConfig(), 112, **arguments)
    return None if found is None else found[0].value


def test_a_row_counts_for_its_own_device_network_format_and_mode(tmp_path: Path):
    rows = _rows(tmp_path, [{**GPU, **STEP}])
    assert _student(rows) == pytest.approx(0.1 / 512)
    assert _student(rows, precision="float32") is None
    assert _student(rows, precision="float64") is None
    assert _student(rows, compiled=True) is None
    assert _student(_rows(tmp_path, [{**GPU, **STEP, "arch": "mbf"}])) is None
    assert _student(_rows(tmp_path, [{**GPU, **STEP, "devices": ["NVIDIA H100"]}])) is None
    assert _student(_rows(tmp_path, [{**GPU, **STEP, "device": "cpu"}])) is None
    assert _student(_rows(tmp_path, [{**GPU, **STEP}], CPU), precision="float32") is None


def test_rows_of_a_fed_step_are_no_rows_of_the_step(tmp_path: Path):
    now = {**GPU, **STEP, "bench": "step", "way": "replayed"}
    fed = {**now, "way": "fed", "batch_size": 1024, "step_ms": 900.0}
    assert _student(_rows(tmp_path, [now, fed])) == pytest.approx(0.1 / 512)


def test_rows_of_steps_in_parts_are_no_rate_of_whole_ones(tmp_path: Path):
    assert _student(_rows(tmp_path, [{**GPU, **STEP, "micro_batch_size": 8}])) is None


def test_the_largest_problem_counts_then_the_newest_row(tmp_path: Path):
    old, new = {**GPU, **STEP}, {**GPU, **STEP, "step_ms": 50.0, "date": "2026-11-21T00:00:00"}
    small = {**GPU, **STEP, "batch_size": 8, "step_ms": 80.0, "date": "2026-11-22T00:00:00"}
    assert _student(_rows(tmp_path, [new, old, small])) == pytest.approx(0.05 / 512)


def test_the_softmax_takes_the_fastest_of_our_forms_on_one_day(tmp_path: Path):
    spread = {"median": 1.0, "p20": 0.9, "p80": 1.1}
    other = {key: value for key, value in SOFTMAX.items() if key != "median_ms"} | {"form": "fused", "ms": spread}
    rows = [{**GPU, **SOFTMAX}, {**GPU, **other}, {**GPU, **SOFTMAX, "form": "origin", "median_ms": 0.1}]
    found = _rows(tmp_path, rows).softmax_flop_per_s(512, cores=1)
    assert found is not None
    assert found.value == pytest.approx(4 * 1024 * 1000 * 512 / 1e-3)
    assert found.source.startswith("found.jsonl, 2026-11-20, commit 0123456789ab: form fused")
    assert _rows(tmp_path, rows).softmax_flop_per_s(256, cores=1) is None


def test_a_cpu_is_as_fast_as_its_cores_are_many(tmp_path: Path):
    row = {**STEP, "precision": "float32", "devices": [], "threads": 2}
    rows = _rows(tmp_path, [row], CPU)
    assert _student(rows, precision="float32", cores=2) == pytest.approx(0.1 / 512)
    assert _student(rows, precision="float32", cores=8) == pytest.approx(0.025 / 512)


def test_probes_teachers_and_loaders_are_found_by_name(tmp_path: Path):
    probes = {"copy_gb_per_s": {"median": 4000.0}}
    rate = {"images_per_s": {"median": 900.0}}
    teacher = {"bench": "teacher", "arch": "ir50", "width": 1.0, "image_size": 112, "form": "bfloat16", "batch_size": 8}
    loader = {"bench": "loader", "pipeline": "dali", "stage": "batch", "augment": "none", "workers": 3}
    rows = _rows(tmp_path, [{**GPU, **teacher, **rate, "probes": probes}, {**GPU, **loader, **rate}])
    copies, embeds = rows.probe("copy_gb_per_s", cores=1), rows.teacher_images_per_s(
        "ir50", 112, forms=("bfloat16-compiled", "bfloat16"), cores=1
    )  # fmt: skip
    loads = rows.loaded_per_worker(("dali",), "none")
    assert [found and found.value for found in (copies, embeds, loads)] == [4000.0, 900.0, 300.0]
    assert rows.probe("gemm_bfloat16_tflop_per_s", cores=1) is None
    assert rows.loaded_per_worker(("dali",), "adaface") is None


@pytest.mark.parametrize("line", ["{", "[]", '{"date": 1}', '{"bench": 3}', pytest.param("[" * 100_000, id="deep")])
def test_what_is_no_row_is_named(tmp_path: Path, line: str):
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({**GPU, **STEP}) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=r"r\.jsonl, line 2"):
        MeasuredRows([path], H200)


@pytest.mark.parametrize(
    "damage", [{"step_ms": None}, {"step_ms": "1"}, {"batch_size": 0}, {"identities": "x"}, {"mode": []}]
)
def test_a_row_of_another_layout_is_passed_over(tmp_path: Path, damage: dict[str, Any]):
    assert _student(_rows(tmp_path, [{**GPU, **STEP, **damage}])) is None
