"""Several gloo processes against one: the same training, and replicas that agree in every bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_processes import run_ranks
from tiny_training import write_tiny_records
from torch import Tensor

from adadistill.core.checkpoints import load_checkpoint, newest_valid_checkpoint

WORKER = Path(__file__).parent.parent / "distributed_worker.py"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_records(folder)
    return folder


def _launch(data: Path, folder: Path, world_size: int, *, student: str, damage: list[int] | None = None, **overrides):
    """Train with `world_size` processes; what each rank ended with: (state, ending) by rank."""
    folder.mkdir()
    plan = {
        "data": str(data), "run": str(folder / "run"), "overrides": overrides, "student": student, "damage": damage,
    }  # fmt: skip
    (folder / "plan.json").write_text(json.dumps(plan))
    run_ranks([str(WORKER), str(folder / "plan.json"), str(folder)], world_size)
    return [
        (torch.load(folder / f"rank-{rank}.pt"), json.loads((folder / f"rank-{rank}.json").read_text()))
        for rank in range(world_size)
    ]


def _losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["event"] == "train"]


def _final(folder: Path) -> dict[str, Tensor]:
    checkpoint, _ = newest_valid_checkpoint(folder / "run")
    assert checkpoint is not None
    return {**checkpoint.model, **checkpoint.optimiser, **checkpoint.row_sharded}


def _largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Relative to each tensor's largest value."""
    assert one.keys() == other.keys()
    return max(float((one[k] - other[k]).abs().max() / one[k].abs().max().clamp(min=1e-300)) for k in one)


# 6 steps an epoch: 24 steps at the shipped learning rate; 48 images of 6 identities repeat labels in every batch.
MANY_STEPS: dict[str, Any] = {"precision": "float64", "optim__epochs": 4, "optim__milestones": "[3]", "log__every": 1}


def test_two_and_four_processes_train_as_one_does(data: Path, tmp_path: Path):
    _launch(data, tmp_path / "1", 1, student="plain", **MANY_STEPS)
    for world_size in (2, 4):
        ranks = _launch(data, tmp_path / str(world_size), world_size, student="plain", **MANY_STEPS)
        assert _largest_difference(_final(tmp_path / "1"), _final(tmp_path / str(world_size))) <= 1e-10
        # Metrics are summed in float32.
        assert _losses(tmp_path / str(world_size)) == pytest.approx(_losses(tmp_path / "1"), rel=1e-6)
        for state, _ in ranks[1:]:
            assert all(torch.equal(state[name], ranks[0][0][name]) for name in state)


def test_the_first_step_in_float32_agrees(data: Path, tmp_path: Path):
    first = {"checkpoint__every_steps": 1, "checkpoint__keep": 100, "optim__epochs": 1, "optim__milestones": "[]"}
    after = {}
    for world_size in (1, 2):
        _launch(data, tmp_path / str(world_size), world_size, student="plain", log__every=1, **first)
        checkpoint = load_checkpoint(tmp_path / str(world_size) / "run" / "checkpoints" / "step-00000001")
        after[world_size] = {**checkpoint.model, **checkpoint.row_sharded}
    assert _losses(tmp_path / "2")[0] == pytest.approx(_losses(tmp_path / "1")[0], rel=1e-6)
    assert _largest_difference(after[1], after[2]) <= 1e-6


@pytest.mark.parametrize("teacher", ["stored", "network", "none"])
def test_ranks_agree_in_every_bit_with_batch_norm_and_repeated_labels(data: Path, tmp_path: Path, teacher: str):
    changes: dict[str, Any] = {"optim__epochs": 2, "optim__milestones": "[1]"}
    if teacher != "stored":
        no_teacher = {"teacher": "null", "centres__kind": "trainable", "geometry_margin__mode": "off"}
        changes.update(no_teacher)
    if teacher == "network":
        _launch(data, tmp_path / "teacher", 1, student="recipe", **changes)
        changes = {
            "teacher__embeddings": "null",
            "teacher__checkpoint": str(tmp_path / "teacher" / "run"),
            "teacher__check": "false",
        }
    first, second = _launch(data, tmp_path / "students", 2, student="recipe", **changes)
    assert first[0].keys() == {"class_centres", "norm_mean", "norm_std"}
    for name, tensor in first[0].items():
        assert torch.isfinite(tensor).all()
        assert torch.equal(tensor, second[0][name]), name


def test_a_non_finite_image_on_one_rank_stops_all_before_the_update(data: Path, tmp_path: Path):
    from adadistill.core.seeding import derive_seed
    from adadistill.loaders.pipelines.sample_order import SampleOrder

    ranks = _launch(
        data, tmp_path / "run", 2, student="plain", damage=[1, 1, 2, 3], checkpoint__every_steps=1, checkpoint__keep=99
    )
    # Sample 3 of rank 1 is sample 4 + 3 of the global batch of 8.
    culprit = int(SampleOrder(48, 8, derive_seed(5, "sample_order")).global_ids(1, 2)[7])
    for state, ending in ranks:
        assert ending["error"] == "NonFiniteError"
        assert ending["record_ids"] == [culprit]
        assert f"record ids {culprit}" in ending["text"]
        assert all(torch.isfinite(tensor).all() for tensor in state.values())
    assert all(torch.equal(ranks[0][0][name], ranks[1][0][name]) for name in ranks[0][0])
    last = _final(tmp_path / "run")
    assert all(torch.isfinite(tensor).all() for tensor in last.values())
    assert torch.equal(last["class_centres"], ranks[0][0]["class_centres"]), "the state is that of the last good step"
