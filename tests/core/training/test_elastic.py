"""Other numbers of processes and parts: the same training on any that divide the batch; saved on one, resumed on all.

Real processes with gloo, see `elastic_worker.py`. Global batches of 16, so that four processes or parts have 4 images:
batch norm over two would turn rounding into differences.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from forked_python import forked_python
from tiny_training import PlainStudent, tiny_recipe, write_tiny_records
from torch import Tensor

from adadistill.core.checkpoints import load_checkpoint, newest_valid_checkpoint
from adadistill.core.distributed import Ranks
from adadistill.core.training.run import run_training

WORKER = Path(__file__).parent.parent / "elastic_worker.py"
SIZES = (1, 2, 4)
BATCH = {"data__global_batch_size": 16, "log__every": 1, "optim__milestones": "[]"}
QUARTERS = {**BATCH, "data__micro_batch_size": 4}
"""Four parts in one process, two in each of two, one in each of four."""
TRAINABLE = {"teacher": "null", "centres__kind": "trainable", "geometry_margin__mode": "off"}
SHARDED = {**TRAINABLE, "centres__placement": "sharded"}


def _objectives(data: Path) -> dict[str, dict[str, Any]]:
    return {
        "distilled": {
            "teacher__embeddings": "null",
            "teacher__checkpoint": str(data / "teacher"),
            "teacher__check": "false",
        },
        "trainable": TRAINABLE,
        "sharded": SHARDED,
        "regression": {"centres__kind": "none", "geometry_margin__mode": "off", "regression__weight": 64.0},
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny records, and `teacher`: a network that was trained on them."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_records(folder)
    run_training(
        tiny_recipe(folder, optim__epochs=1, optim__milestones="[]", **TRAINABLE), folder / "teacher", ranks=Ranks()
    )
    return folder


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of every run of this file, each by its name."""
    folder = tmp_path_factory.mktemp("elastic")
    saving, resuming = [], []
    for size in SIZES:
        jobs = [
            _job(data, f"{name}-{size}", "norm", {**QUARTERS, "precision": "float64", "optim__epochs": 2, **changes})
            for name, changes in _objectives(data).items()
        ]
        if size == 2:
            bad = {**QUARTERS, "optim__epochs": 1, "checkpoint__every_steps": 1}
            jobs.append(_job(data, "damaged", "norm", bad, damage=[1, 0, 1, 1]))
        saving.append({"world_size": size, "jobs": [*jobs, *_saved(data, size)]})
        resuming.append({"world_size": size, "jobs": _resumed(data, folder, size)})
    (folder / "plan.json").write_text(json.dumps([*saving, *resuming]))
    done = subprocess.run(
        [forked_python(), str(WORKER), str(folder / "plan.json"), str(folder)],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def _job(data: Path, name: str, student: str, overrides: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "data": str(data), "student": student, "overrides": overrides, **more}


# 3 steps an epoch: saved in the middle of the second, two steps before the end.
ELASTIC: dict[str, tuple[str, dict[str, Any]]] = {
    "norms in quarters": ("norm", {**QUARTERS, "geometry_margin__mode": "headroom"}),
    "no norms, sharded": ("plain", {**BATCH, **SHARDED}),
}
SAVING = {"optim__epochs": 2, "checkpoint__every_steps": 4, "checkpoint__keep": 9}


def _saved(data: Path, size: int) -> list[dict[str, Any]]:
    return [
        _job(data, f"{name}-from-{size}", student, {**changes, **SAVING})
        for name, (student, changes) in ELASTIC.items()
    ]


def _resumed(data: Path, folder: Path, size: int) -> list[dict[str, Any]]:
    return [
        _job(
            data, f"{name}-from-{saved}-to-{size}", student, {**changes, **SAVING},
            resume=str(folder / f"{name}-from-{saved}" / "checkpoints" / "step-00000004"),
        )
        for name, (student, changes) in ELASTIC.items()
        for saved in SIZES
    ]  # fmt: skip


def _final(folder: Path) -> dict[str, Tensor]:
    checkpoint, skipped = newest_valid_checkpoint(folder)
    assert checkpoint is not None
    assert not skipped
    return {**checkpoint.model, **checkpoint.optimiser, **checkpoint.row_sharded}


def _losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["event"] == "train"]


@pytest.mark.parametrize("name", list(_objectives(Path())))
@pytest.mark.parametrize("size", [1, 2])
def test_parts_in_fewer_processes_train_as_processes_of_one_part_do(runs: Path, name: str, size: int):
    spread, together = _final(runs / f"{name}-4"), _final(runs / f"{name}-{size}")
    assert spread.keys() == together.keys()
    assert {
        "layers.1.running_mean",
        "layers.1.num_batches_tracked",
        "momentum.student.layers.0.weight",
    } <= spread.keys()
    assert ("class_centres" in spread) == ("norm_mean" in spread) == (name != "regression")
    for key, value in spread.items():
        assert (together[key] - value).abs().max() <= 1e-10 * value.abs().max(), key
    assert spread["layers.1.num_batches_tracked"] == 6, "a step counts once, in however many parts"
    # Metrics are summed in float32.
    assert len(_losses(runs / f"{name}-4")) == 6
    assert _losses(runs / f"{name}-{size}") == pytest.approx(_losses(runs / f"{name}-4"), rel=1e-6)


def test_a_non_finite_image_in_one_part_rejects_the_whole_step(runs: Path):
    found = json.loads((runs / "damaged.json").read_text())
    assert found["error"] == "NonFiniteError"
    # Of the second process the first part. Batch norm spreads it over the samples of its part, and no further.
    assert sorted(found["record_ids"]) == sorted(found["batches"][1][8:12])
    checkpoint, _ = newest_valid_checkpoint(runs / "damaged")
    assert checkpoint is not None
    assert checkpoint.step == 1
    assert all(torch.isfinite(value).all() for value in checkpoint.model.values())


@pytest.mark.parametrize("name", list(ELASTIC))
@pytest.mark.parametrize("saved", SIZES)
def test_a_run_resumes_on_any_number_of_ranks(runs: Path, name: str, saved: int):
    whole = runs / f"{name}-from-{saved}"
    went_on = json.loads(whole.with_suffix(".json").read_text())["batches"][4:]
    checkpoint = load_checkpoint(whole / "checkpoints" / "step-00000004")
    restored = []
    for size in SIZES:
        folder = runs / f"{name}-from-{saved}-to-{size}"
        found = json.loads(folder.with_suffix(".json").read_text())
        restored.append(found["restored"])
        assert found["batches"] == went_on
        assert len(went_on) == 2
        assert _losses(folder)[0] == pytest.approx(_losses(whole)[4], rel=1e-6)
        assert _final(folder).keys() == _final(whole).keys()
    assert "class_centres" in restored[0]
    assert len(restored[0]) > len(checkpoint.row_sharded), "momentum too"
    assert restored[0] == restored[1] == restored[2]
    if saved == 2:  # as it was, it is the same run; above two ranks gloo's order of sums follows DDP's buckets
        same = _final(runs / f"{name}-from-2-to-2")
        assert all(torch.equal(value, same[key]) for key, value in _final(whole).items())


def test_a_resumed_run_may_take_its_batches_in_other_parts(data: Path, tmp_path: Path):
    student, (_, changes) = PlainStudent(), ELASTIC["no norms, sharded"]
    settings = {**changes, **SAVING}
    run_training(tiny_recipe(data, **settings), tmp_path / "whole", ranks=Ranks(), student=student)
    run_training(
        tiny_recipe(data, **settings, data__micro_batch_size=8), tmp_path / "parts", ranks=Ranks(),
        student=PlainStudent(), resume=str(tmp_path / "whole" / "checkpoints" / "step-00000004"),
    )  # fmt: skip
    assert _losses(tmp_path / "parts") == pytest.approx(_losses(tmp_path / "whole")[4:], rel=1e-5)
