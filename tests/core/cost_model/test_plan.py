"""Plans are sane: more work takes longer, more memory is more memory, what cannot fit is refused, all inputs marked."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adadistill.core.communication import SHARDED_CENTRES, bytes_by_part
from adadistill.core.cost_model.devices import DEVICES
from adadistill.core.cost_model.measured_rows import MeasuredRows
from adadistill.core.cost_model.plan import make_plan
from adadistill.core.cost_model.step_model import Launch, Plan, PlanError
from adadistill.core.recipe import Recipe, load_recipe, shipped_recipes

LAUNCH = Launch(
    device=DEVICES["h200"], ranks=1, nodes=1, memory_gb=141.0, cores=12, network_gbit_per_s=100.0,
    images=5_822_653, identities=85_742,
)  # fmt: skip
DISTILLED = "ms1mv2_ir50_to_mobilefacenet"
STORED = "teacher={cvlface: null, embeddings: t.npy}"


def _plan(recipe: Recipe | str = DISTILLED, *overrides: str, rows: Path | None = None, **launch: Any) -> Plan:
    found = load_recipe(recipe, overrides) if isinstance(recipe, str) else recipe
    where = replace(LAUNCH, **launch)
    return make_plan(found, where, MeasuredRows([] if rows is None else [rows], where.device))


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_can_be_planned(name: str):
    for device in ("h200", "cpu"):
        plan = _plan(name, device=DEVICES[device], memory_gb=400.0)  # one device, whatever the batch
        assert plan.fits
        assert plan.images_per_s > 0
        assert plan.images_per_s_range[0] <= plan.images_per_s <= plan.images_per_s_range[1]
        assert plan.bottleneck in {*plan.step_ms, "loader"}
        assert all(entry.basis == "assumed" and entry.source for entry in plan.inputs)


def test_a_larger_batch_takes_more_memory_and_time_and_no_fewer_images():
    plans = [_plan(DISTILLED, f"data.global_batch_size={size}") for size in (64, 256, 1024, 2048)]
    for small, large in itertools.pairwise(plans):
        assert small.needed_memory_gb < large.needed_memory_gb
        assert all(small.step_ms[part] <= large.step_ms[part] for part in small.step_ms)
        assert small.images_per_s <= large.images_per_s * (1 + 1e-9)


@pytest.mark.parametrize("recipe", [DISTILLED, "ms1mv2_ir50_adaface_teacher"])
def test_more_identities_take_more_memory_and_time(recipe: str):
    plans = [_plan(recipe, identities=count) for count in (10_000, 85_742, 2_059_906)]
    for few, many in itertools.pairwise(plans):
        assert few.memory_gb["centres"] < many.memory_gb["centres"]
        assert few.step_ms["softmax"] < many.step_ms["softmax"]
        assert few.images_per_s >= many.images_per_s


def test_the_published_steps_are_where_their_arithmetic_puts_them():
    # 85,742 x 1024 x 512 x 4 operations at 790 TFLOP/s; IR-50 at 3 x 12.6 GFLOP beside its unfused traffic.
    plan = _plan(DISTILLED, "data.global_batch_size=1024", STORED)
    assert plan.step_ms["softmax"] == pytest.approx(0.228, rel=0.01)
    assert 30_000 < plan.images_per_s_range[0] < plan.images_per_s_range[1] <= 111_000
    teacher = _plan("ms1mv2_ir50_adaface_teacher", "data.global_batch_size=1024")
    assert 7_000 < teacher.images_per_s_range[0] < teacher.images_per_s_range[1] < 22_000


def test_a_stored_teacher_takes_its_network_out_of_the_step():
    looped, stored = _plan(DISTILLED), _plan(DISTILLED, STORED)
    assert "teacher network" in looped.memory_gb.keys() - stored.memory_gb.keys()
    assert "teacher" in looped.step_ms.keys() - stored.step_ms.keys()
    assert looped.images_per_s < stored.images_per_s


def test_few_cores_make_the_loader_the_bottleneck():
    plan = _plan(DISTILLED, STORED, "data.global_batch_size=1024", cores=1)
    assert plan.bottleneck == "loader"
    assert plan.images_per_s == pytest.approx(10_000, rel=0.01)


def test_what_cannot_fit_is_refused_with_the_reason_and_what_would():
    with pytest.raises(
        PlanError, match=r"need \d+\.\d GB, h200 has 129\.7 of 141 GB.*centres .*centres\.half=bfloat16"
    ):
        _plan(DISTILLED, identities=60_000_000)
    with pytest.raises(PlanError, match=r"activations .*data\.global_batch_size="):
        _plan(DISTILLED, "data.global_batch_size=8192")


def test_half_precision_centres_make_room():
    assert _plan(DISTILLED, "centres.half=bfloat16", identities=55_000_000).memory_gb["centres"] < 57.0


def test_a_hundred_million_identities_fit_one_h200_in_half_precision():
    plan = _plan(DISTILLED, "centres.half=bfloat16", STORED, identities=100_000_000)
    assert plan.memory_gb["centres"] == pytest.approx((2 * 512 + 4) * 0.1)
    assert plan.memory_gb["centres"] + plan.memory_gb["softmax workspace"] <= 125.0


def test_exact_precisions_read_exact_centres():
    assert _plan(DISTILLED, identities=1_000_000).memory_gb["centres"] == pytest.approx(6 * 0.512)
    exact = _plan(DISTILLED, "precision=float32", identities=1_000_000)
    assert exact.memory_gb["centres"] == pytest.approx(8 * 0.512)


def test_trainable_centres_are_sharded_only_where_they_do_not_fit():
    teacher = "ms1mv2_ir50_adaface_teacher"
    small = _plan(teacher, ranks=8)
    assert small.placement == "replicated"
    assert "replicated" in small.reasons[-1]
    large = _plan(teacher, ranks=8, identities=20_000_000)
    assert large.placement == "sharded"
    assert "do not fit" in large.reasons[-1]
    assert SHARDED_CENTRES in bytes_by_part(large.transfers)
    assert large.memory_gb["centres"] == pytest.approx(20 * 20e6 * 512 / 8 / 1e9)


def test_a_batch_that_the_devices_cannot_share_is_replaced_and_said_to_be():
    plan = _plan(DISTILLED, ranks=7)
    assert "384 does not divide by 7" in plan.reasons[0]
    assert plan.batch_per_device & (plan.batch_per_device - 1) == 0
    kept = _plan(DISTILLED, ranks=8)
    assert kept.batch_per_device == 48
    assert "384 over 8" in kept.reasons[0]


def test_more_devices_are_faster_but_no_more_than_so_many_times():
    one = _plan(DISTILLED, "data.global_batch_size=512")
    eight = _plan(DISTILLED, "data.global_batch_size=4096", ranks=8)
    assert one.images_per_s < eight.images_per_s <= 8 * one.images_per_s
    slow, fast = (
        _plan(DISTILLED, "data.global_batch_size=4096", ranks=16, nodes=2, network_gbit_per_s=rate)
        for rate in (1.0, 400.0)
    )
    assert slow.step_ms["transfers"] > fast.step_ms["transfers"]
    assert slow.bottleneck == "transfers"


def test_a_store_that_is_spread_takes_its_share_of_the_memory():
    spread = ("data.packed=p", "data.packed_in=device_share")
    plan = _plan(DISTILLED, *spread, ranks=8)
    assert plan.memory_gb["packed store"] == pytest.approx(5_822_653 * 18_816 / 8 / 1e9)
    with pytest.raises(PlanError, match="packed store"):
        _plan(DISTILLED, "data.packed=p", "data.packed_in=device", packed_layout="rgb")


def test_measured_rows_replace_what_is_assumed_and_are_named(tmp_path: Path):
    row = {
        "bench": "step", "date": "2026-11-20", "commit": "abcdef0123456789", "devices": ["NVIDIA H200"],
        "device": "cuda", "way": "replayed", "arch": "mobilefacenet", "width": 1.0, "image_size": 112,
        "batch_size": 1024, "identities": 85_742, "precision": "bfloat16", "mode": "eager", "step_ms": 40.0,
        "probes": {"gemm_bfloat16_tflop_per_s": {"median": 700}, "copy_gb_per_s": {"median": 4000}},
    }  # fmt: skip
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    plan = _plan(DISTILLED, STORED, "data.global_batch_size=1024", rows=tmp_path / "rows.jsonl", cores=32)
    by_name = {entry.name: entry for entry in plan.inputs}
    assert by_name["student"].basis == "measured"
    assert by_name["student"].source.startswith("rows.jsonl, 2026-11-20, commit abcdef012345: batch 1024")
    assert plan.step_ms["student"] + plan.step_ms["softmax"] == pytest.approx(40.0)
    assert by_name["matrix products, bfloat16"].value == 700.0
    assert by_name["loader"].basis == "assumed"
    assert {entry.basis for entry in plan.inputs} == {"measured", "assumed"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"ranks": 0},
        {"ranks": 3, "nodes": 2},
        {"images": 0},
        {"memory_gb": -1.0},
        {"network_gbit_per_s": float("nan")},
        {"teacher_arch": "resnet"},
    ],
)
def test_a_launch_that_is_none_is_refused(wrong: dict[str, Any]):
    with pytest.raises(PlanError):
        replace(LAUNCH, **wrong)


def test_an_epoch_without_a_step_is_refused():
    with pytest.raises(PlanError, match="larger than the 100 images"):
        _plan(DISTILLED, images=100)


def test_a_batch_in_parts_needs_less_memory_and_a_third_more_of_the_student():
    size = "data.global_batch_size=1024"
    whole, parts = _plan(DISTILLED, size), _plan(DISTILLED, size, "data.micro_batch_size=256")
    assert parts.memory_gb["activations"] == pytest.approx(whole.memory_gb["activations"] / 4)
    assert parts.memory_gb["prefetched batches"] == whole.memory_gb["prefetched batches"]
    assert parts.step_ms["student"] == pytest.approx(4 / 3 * whole.step_ms["student"])
    assert parts.step_ms["softmax"] == whole.step_ms["softmax"]
    assert any("4 of data.micro_batch_size 256" in reason for reason in parts.reasons)
    assert _plan(DISTILLED, size, "data.micro_batch_size=1024").step_ms == whole.step_ms
    with pytest.raises(ValueError, match=r"300 does not divide the 1024 images .* 512, 1024"):
        _plan(DISTILLED, size, "data.micro_batch_size=300")


def test_what_does_not_fit_whole_is_told_the_parts_that_do():
    size = ("data.global_batch_size=4096", STORED)
    with pytest.raises(PlanError, match=r"data\.micro_batch_size=\d+, the same batch in parts") as refused:
        _plan(DISTILLED, *size, memory_gb=12.0)
    advice = str(refused.value).split("data.micro_batch_size=")[1].split(",")[0]
    assert _plan(DISTILLED, *size, f"data.micro_batch_size={advice}", memory_gb=12.0).fits


def test_rows_of_steps_in_parts_are_no_rate_of_whole_ones(tmp_path: Path):
    rows = Path(__file__).resolve().parents[3] / "bench" / "results" / "step.jsonl"
    cut = [{**json.loads(line), "micro_batch_size": 8} for line in rows.read_text().splitlines()]
    (tmp_path / "parts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in cut))
    where = {"device": DEVICES["cpu"], "memory_gb": 64.0, "cores": 2}
    whole, parts = (_plan(rows=file, **where).inputs for file in (rows, tmp_path / "parts.jsonl"))
    assert "student" in {entry.name for entry in whole if entry.basis == "measured"}
    assert "student" not in {entry.name for entry in parts}
