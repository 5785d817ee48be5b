"""Other numbers of processes and parts: the same training on any that divide the batch; saved on one, resumed on all.

Real processes with gloo, see `distributed_worker.py`. Global batches of 16, so that four processes or parts have 4
images: batch norm over two would turn rounding into differences.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_processes import run_ranks
from tiny_training import PlainStudent, final_tensors, logged, newest, tiny_recipe
from torch import Tensor

from adadistill.core.checkpoints import load_checkpoint
from adadistill.core.distributed import Ranks
from adadistill.core.training.run import run_training

WORKER = Path(__file__).parent.parent / "distributed_worker.py"
SIZES = (1, 2, 4)
BATCH = {"data__global_batch_size": 16, "log__every": 1, "optim__milestones": "[]", "optim__epochs": 1}
QUARTERS = {**BATCH, "data__micro_batch_size": 4}
"""Four parts in one process, two in each of two, one in each of four."""
EXACT: dict[str, Any] = {"precision": "float64", "optim__epochs": 2, "optim__milestones": "[1]", "log__every": 1}
# Images of 6 identities repeat labels in every batch; in one of all 48 there is one step.
FIRST: dict[str, Any] = {**BATCH, "data__global_batch_size": 48}
TRAINABLE = {"teacher": "null", "centres__kind": "trainable", "geometry_margin__mode": "off"}
SHARDED = {**TRAINABLE, "centres__placement": "sharded"}
# 3 steps an epoch: saved in the middle of the second, two steps before the end.
ELASTIC: dict[str, tuple[str, dict[str, Any]]] = {
    "norms in quarters": ("norm", {**QUARTERS, "geometry_margin__mode": "headroom"}),
    "no norms, sharded": ("plain", {**BATCH, **SHARDED}),
}
SAVING = {"optim__epochs": 2, "checkpoint__every_steps": 4, "checkpoint__keep": 9}
RESUMED_ON = {
    "norms in quarters": {1: (2,), 2: SIZES, 4: (1,)},
    "no norms, sharded": {2: SIZES, 4: (2,)},
}
"""By the number of ranks that saved."""
ALIKE = {"distilled": (4, 1), "sharded": (4, 2), "trainable": (2, 1), "regression": (2, 1)}
"""Numbers of ranks that each objective is trained on, the batch in as many parts."""


def _objectives(teacher: object) -> dict[str, dict[str, Any]]:
    network = {"teacher__embeddings": "null", "teacher__checkpoint": str(teacher), "teacher__check": "false"}
    return {
        "distilled": network,
        "trainable": TRAINABLE,
        "sharded": SHARDED,
        "regression": {"centres__kind": "none", "geometry_margin__mode": "off", "regression__weight": 64.0},
    }


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of every run of this file, each by its name: what its ranks ended with, and `run`."""
    folder = tmp_path_factory.mktemp("runs")
    run_training(tiny_recipe(data, **BATCH, **TRAINABLE), folder / "teacher", ranks=Ranks())
    plans: dict[int, list[dict[str, Any]]] = {size: [] for size in SIZES}

    def add(size: int, name: str, student: str, overrides: dict[str, Any], **more: Any) -> None:
        out = folder / name
        out.mkdir()
        where = {"out": str(out), "run": str(out / "run"), "data": str(data)}
        plans[size].append({**where, "student": student, "overrides": overrides, **more})

    def train() -> None:
        for size, listed in plans.items():
            (folder / "plans.json").write_text(json.dumps(listed))
            run_ranks([str(WORKER), str(folder / "plans.json")], size)
            listed.clear()

    for size in (1, 2):
        add(size, f"exact-{size}", "plain", EXACT)
        add(size, f"first-{size}", "plain", FIRST)
    for name, changes in _objectives(folder / "teacher").items():
        for size in ALIKE[name]:
            add(size, f"{name}-{size}", "norm", {**QUARTERS, "precision": "float64", **changes})
    for name, (student, changes) in ELASTIC.items():
        for size in RESUMED_ON[name]:
            add(size, f"{name}-from-{size}", student, {**changes, **SAVING})
    add(2, "damaged", "norm", {**QUARTERS, "checkpoint__every_steps": 1}, damage=[1, 0, 1, 1])
    train()
    for name, (student, changes) in ELASTIC.items():
        for saved, sizes in RESUMED_ON[name].items():
            start = str(folder / f"{name}-from-{saved}" / "run" / "checkpoints" / "step-00000004")
            for size in sizes:
                add(size, f"{name}-from-{saved}-to-{size}", student, {**changes, **SAVING}, resume=start)
    train()
    return folder


def _states(folder: Path, world_size: int) -> list[dict[str, Tensor]]:
    """What each rank ended with."""
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(world_size)]


def _ending(folder: Path, rank: int = 0) -> dict[str, Any]:
    return json.loads((folder / f"rank-{rank}.json").read_text())


def _losses(folder: Path) -> list[float]:
    return [row["loss"] for row in logged(folder / "run")]


def _final(folder: Path) -> dict[str, Tensor]:
    return final_tensors(folder / "run")


def _assert_close(one: dict[str, Tensor], other: dict[str, Tensor], share: float) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert (other[key] - value).abs().max() <= share * value.abs().max(), key


def test_several_processes_train_as_one_does(runs: Path):
    alone, together = runs / "exact-1", runs / "exact-2"
    _assert_close(_final(alone), _final(together), 1e-10)
    assert len(_losses(alone)) == 12
    assert _losses(together) == pytest.approx(_losses(alone), rel=1e-6), "metrics are summed in float32"


def test_the_first_step_in_float32_agrees(runs: Path):
    first, second = runs / "first-1", runs / "first-2"
    assert _losses(second) == pytest.approx(_losses(first), rel=1e-6)
    ends = [{name: t for name, t in _final(folder).items() if "momentum" not in name} for folder in (first, second)]
    _assert_close(*ends, 1e-6)


@pytest.mark.parametrize("name", list(ALIKE))
def test_parts_in_fewer_processes_train_as_more_processes_of_fewer_parts_do(runs: Path, name: str):
    spread, together = (runs / f"{name}-{size}" for size in ALIKE[name])
    final = _final(spread)
    assert {"layers.1.running_mean", "layers.1.num_batches_tracked", "momentum.student.layers.0.weight"} <= final.keys()
    assert ("class_centres" in final) == ("norm_mean" in final) == (name != "regression")
    _assert_close(final, _final(together), 1e-10)
    assert final["layers.1.num_batches_tracked"] == 3, "a step counts once, in however many parts"
    assert len(_losses(spread)) == 3
    assert _losses(together) == pytest.approx(_losses(spread), rel=1e-6), "metrics are summed in float32"


@pytest.mark.parametrize("run", ["exact-2", "distilled-4", "trainable-2", "damaged"])
def test_ranks_agree_in_every_bit_with_batch_norm_and_repeated_labels(runs: Path, run: str):
    first, *others = _states(runs / run, 4 if run.endswith("4") else 2)
    assert first.keys() >= {"class_centres", "norm_mean", "norm_std"}
    for name, tensor in first.items():
        assert torch.isfinite(tensor).all()
        assert all(torch.equal(tensor, other[name]) for other in others), name


def test_a_non_finite_image_in_one_part_of_one_rank_rejects_the_whole_step_on_all(runs: Path):
    folder = runs / "damaged"
    # Of the second process the first part. Batch norm spreads it over the samples of its part, and no further.
    culprits = sorted(_ending(folder)["batches"][1][8:12])
    for rank in (0, 1):
        found = _ending(folder, rank)
        assert (found["error"], sorted(found["record_ids"])) == ("NonFiniteError", culprits)
        assert "record ids " in found["text"]
    assert newest(folder / "run").step == 1
    final = _final(folder)
    assert all(torch.isfinite(value).all() for value in final.values())
    held = _states(folder, 2)[0]["class_centres"]
    assert torch.equal(final["class_centres"], held), "the state is that of the last good step"


@pytest.mark.parametrize(("name", "saved"), [(name, saved) for name in ELASTIC for saved in RESUMED_ON[name]])
def test_a_run_resumes_on_any_number_of_ranks(runs: Path, name: str, saved: int):
    whole = runs / f"{name}-from-{saved}"
    went_on = _ending(whole)["batches"][4:]
    checkpoint = load_checkpoint(whole / "run" / "checkpoints" / "step-00000004")
    restored = []
    for size in RESUMED_ON[name][saved]:
        folder = runs / f"{name}-from-{saved}-to-{size}"
        restored.append(_ending(folder)["restored"])
        assert _ending(folder)["batches"] == went_on
        assert len(went_on) == 2
        assert _losses(folder)[0] == pytest.approx(_losses(whole)[4], rel=1e-6)
        assert _final(folder).keys() == _final(whole).keys()
    assert "class_centres" in restored[0]
    assert len(restored[0]) > len(checkpoint.row_sharded), "momentum too"
    assert all(other == restored[0] for other in restored)
    if saved == 2:  # as it was, it is the same run; above two ranks gloo's order of sums follows DDP's buckets
        same = _final(runs / f"{name}-from-2-to-2")
        assert all(torch.equal(value, same[key]) for key, value in _final(whole).items())


def test_a_resumed_run_may_take_its_batches_in_other_parts(data: Path, runs: Path, tmp_path: Path):
    whole = runs / "no norms, sharded-from-2"
    recipe = tiny_recipe(data, **{**BATCH, **SHARDED, **SAVING}, data__micro_batch_size=8)
    start = str(whole / "run" / "checkpoints" / "step-00000004")
    run_training(recipe, tmp_path / "run", ranks=Ranks(), student=PlainStudent(), resume=start)
    assert _losses(tmp_path) == pytest.approx(_losses(whole)[4:], rel=1e-5)
