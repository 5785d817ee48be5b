"""Several gloo processes against one: the same training, and replicas that agree in every bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_processes import run_ranks
from tiny_training import PlainStudent, tiny_recipe, write_tiny_records
from torch import Tensor

from adadistill.core.checkpoints import load_checkpoint, newest_valid_checkpoint
from adadistill.core.distributed import Ranks
from adadistill.core.seeding import derive_seed
from adadistill.core.training.run import run_training
from adadistill.loaders.pipelines.sample_order import SampleOrder

WORKER = Path(__file__).parent.parent / "distributed_worker.py"

# 6 steps an epoch at the shipped learning rate; 48 images of 6 identities repeat labels in every batch.
EXACT: dict[str, Any] = {"precision": "float64", "optim__epochs": 3, "optim__milestones": "[2]", "log__every": 1}
FIRST = {
    "checkpoint__every_steps": 1, "checkpoint__keep": 100, "optim__epochs": 1, "optim__milestones": "[]",
    "log__every": 1,
}  # fmt: skip
TRAINABLE = {"teacher": "null", "centres__kind": "trainable", "geometry_margin__mode": "off"}
TEACHERS = ("stored", "network", "none")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one rank in this process, of two and of four in a group of processes each: `RANKS/NAME`."""
    folder = tmp_path_factory.mktemp("runs")
    write_tiny_records(folder / "data")
    for name, overrides in (("exact", EXACT), ("first", FIRST)):
        recipe = tiny_recipe(folder / "data", **overrides)
        run_training(recipe, folder / "1" / name / "run", ranks=Ranks(), student=PlainStudent())
    run_training(tiny_recipe(folder / "data", **TRAINABLE), folder / "teacher", ranks=Ranks())
    network = {"teacher__embeddings": "null", "teacher__checkpoint": str(folder / "teacher"), "teacher__check": "false"}
    short = {"optim__epochs": 2}
    plans: list[dict[str, Any]] = [
        {"out": "2/exact", "overrides": EXACT, "student": "plain"},
        {"out": "4/exact", "overrides": EXACT, "student": "plain"},
        {"out": "2/first", "overrides": FIRST, "student": "plain"},
        {"out": "2/stored", "overrides": short, "student": "recipe"},
        {"out": "2/network", "overrides": {**short, **network}, "student": "recipe"},
        {"out": "2/none", "overrides": {**short, **TRAINABLE}, "student": "recipe"},
        {"out": "2/damaged", "overrides": {"checkpoint__every_steps": 1, "checkpoint__keep": 99}, "student": "plain",
         "damage": [1, 1, 2, 3]},
    ]  # fmt: skip
    for plan in plans:
        out = folder / plan["out"]
        out.mkdir(parents=True)
        plan |= {"out": str(out), "run": str(out / "run"), "data": str(folder / "data")}
    for world_size in (2, 4):
        own = folder / f"plans-{world_size}.json"
        own.write_text(json.dumps([plan for plan in plans if Path(plan["out"]).parent.name == str(world_size)]))
        run_ranks([str(WORKER), str(own)], world_size)
    return folder


def _states(folder: Path, world_size: int) -> list[dict[str, Tensor]]:
    """What each rank ended with."""
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(world_size)]


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


@pytest.mark.parametrize("world_size", [2, 4])
def test_several_processes_train_as_one_does(runs: Path, world_size: int):
    alone, together = runs / "1" / "exact", runs / str(world_size) / "exact"
    assert _largest_difference(_final(alone), _final(together)) <= 1e-10
    assert len(_losses(alone)) == 18
    assert _losses(together) == pytest.approx(_losses(alone), rel=1e-6), "metrics are summed in float32"
    first, *others = _states(together, world_size)
    assert all(torch.equal(state[name], first[name]) for state in others for name in first)


def test_the_first_step_in_float32_agrees(runs: Path):
    after = {}
    for world_size in (1, 2):
        step = runs / str(world_size) / "first" / "run" / "checkpoints" / "step-00000001"
        checkpoint = load_checkpoint(step)
        after[world_size] = {**checkpoint.model, **checkpoint.row_sharded}
    assert _losses(runs / "2" / "first")[0] == pytest.approx(_losses(runs / "1" / "first")[0], rel=1e-6)
    assert _largest_difference(after[1], after[2]) <= 1e-6


@pytest.mark.parametrize("teacher", TEACHERS)
def test_ranks_agree_in_every_bit_with_batch_norm_and_repeated_labels(runs: Path, teacher: str):
    first, second = _states(runs / "2" / teacher, 2)
    assert first.keys() == {"class_centres", "norm_mean", "norm_std"}
    for name, tensor in first.items():
        assert torch.isfinite(tensor).all()
        assert torch.equal(tensor, second[name]), name


def test_a_non_finite_image_on_one_rank_stops_all_before_the_update(runs: Path):
    # Sample 3 of rank 1 is sample 4 + 3 of the global batch of 8.
    culprit = int(SampleOrder(48, 8, derive_seed(5, "sample_order")).global_ids(1, 2)[7])
    folder = runs / "2" / "damaged"
    states = _states(folder, 2)
    for rank, state in enumerate(states):
        ending = json.loads((folder / f"rank-{rank}.json").read_text())
        assert (ending["error"], ending["record_ids"]) == ("NonFiniteError", [culprit])
        assert f"record ids {culprit}" in ending["text"]
        assert all(torch.isfinite(tensor).all() for tensor in state.values())
        assert all(torch.equal(tensor, states[0][name]) for name, tensor in state.items())
    last = _final(folder)
    assert all(torch.isfinite(tensor).all() for tensor in last.values())
    assert torch.equal(last["class_centres"], states[0]["class_centres"]), "the state is that of the last good step"
