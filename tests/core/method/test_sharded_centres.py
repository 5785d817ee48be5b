"""Class centres spread over real processes train as replicated ones on one, and their checkpoints fit any number."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_processes import run_ranks
from sharded_centres_jobs import run_job
from tiny_training import PlainStudent, tiny_recipe, write_tiny_records
from torch import Tensor

from adadistill.core.checkpoints import load_checkpoint, newest_valid_checkpoint
from adadistill.core.distributed import Ranks
from adadistill.core.method.centre_files import read_centres
from adadistill.core.method.class_centres import CentresConfig
from adadistill.core.method.sharded_centres import ShardedCentres
from adadistill.core.training.resume_check import ResumeError
from adadistill.core.training.run import run_training

WORKER = Path(__file__).parent.parent / "sharded_centres_worker.py"

# 7 identities of 8 images: no multiple of 2 or 3 ranks. 6 images a step repeat labels; 9 steps an epoch, 18 in all.
IDENTITIES, BATCH, DIM, STEPS = 7, 6, 16, 18
BASE = {
    "teacher": "null", "centres__kind": "trainable", "geometry_margin__mode": "off", "data__global_batch_size": BATCH,
    "optim__epochs": 2, "optim__milestones": "[1]", "log__every": 1, "checkpoint__keep": 99,
}  # fmt: skip
FLOAT64 = {**BASE, "precision": "float64", "checkpoint__every_steps": 8}
ARCFACE = {"head__kind": "arcface", "head__margin": 0.5}
SHARDED = {"centres__placement": "sharded"}
ONE_EPOCH = {"optim__epochs": 1, "optim__milestones": "[]", "checkpoint__every_steps": 1}
MANY = 100_000  # identities of which the records show 7: what is sized by them stands out


def _job(name: str, overrides: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "overrides": overrides, **more}


@dataclass(frozen=True)
class Runs:
    """Folder of all runs, and what each rank of each job ended with: `ended[ranks][job][rank]`."""

    folder: Path
    data: Path
    ended: dict[int, dict[str, list[dict[str, Any]]]]

    def final(self, name: str) -> dict[str, Tensor]:
        """All tensors of a run's last checkpoint."""
        checkpoint, skipped = newest_valid_checkpoint(self.folder / name)
        assert checkpoint is not None
        assert skipped == []
        return {**checkpoint.model, **checkpoint.optimiser, **checkpoint.row_sharded}

    def losses(self, name: str) -> list[float]:
        rows = [json.loads(line) for line in (self.folder / name / "metrics.jsonl").read_text().splitlines()]
        return [row["loss"] for row in rows if row["event"] == "train"]

    def step(self, name: str, step: int) -> str:
        return str(self.folder / name / "checkpoints" / f"step-{step:08d}")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """All runs, made once: workers of pytest-xdist that share these tests wait for the first of them."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "sharded-centres"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "ended.pt").exists():
            torch.save(_run_all(folder), folder / "ended.pt")
    return Runs(folder, folder / "data", torch.load(folder / "ended.pt"))


def _run_all(folder: Path) -> dict[int, dict[str, list[dict[str, Any]]]]:
    data = folder / "data"
    write_tiny_records(data, identities=IDENTITIES)
    made = Runs(folder, data, {1: {}, 2: {}, 3: {}})
    short = {**BASE, **ONE_EPOCH}
    many = {**short, "data__num_classes": MANY, "checkpoint__every_steps": 3}
    taught = {**FLOAT64, "teacher": f"{{embeddings: {data}/teacher.npy}}", "regression__weight": 2.0}
    plans = [
        (1, [
            _job("adaface", FLOAT64),
            _job("arcface", {**FLOAT64, **ARCFACE}),
            _job("taught", taught),
            _job("adaface-float32", short),
            _job("adaface-sharded-1", {**FLOAT64, **SHARDED}),
            _job("many", many),
        ]),
        (2, [
            _job("adaface-sharded-2", {**FLOAT64, **SHARDED}),
            _job("arcface-sharded-2", {**FLOAT64, **ARCFACE, **SHARDED}),
            _job("taught-sharded-2", {**taught, **SHARDED}),
            _job("adaface-float32-sharded-2", {**short, **SHARDED}),
            _job("replicated-1-to-sharded-2", {**FLOAT64, **SHARDED}, resume=made.step("adaface", 8)),
            _job("nan-image", {**FLOAT64, **SHARDED}, nan_image=[1, 0, 3]),
            _job("nan-row", {**FLOAT64, **SHARDED, "checkpoint__every_steps": 1}, nan_row=[1, 0, 3]),
            _job("many-sharded-2", {**many, **SHARDED}, resume=made.step("many", 3), watch="size"),
            _job("bytes", {**short, **SHARDED}, watch="bytes"),
            _job("overlap", short, watch="overlap"),
        ]),
        (3, [
            _job("adaface-sharded-3", {**FLOAT64, **SHARDED}),
            _job("sharded-2-to-sharded-3", {**FLOAT64, **SHARDED}, resume=made.step("adaface-sharded-2", 16)),
            _job("nan-row", {**FLOAT64, **SHARDED}, resume="auto"),
            _job("too-few", {**FLOAT64, **SHARDED, "data__records": str(folder / "two" / "train.rec")}),
        ]),
        (1, [
            _job("sharded-3-to-replicated-1", FLOAT64, resume=made.step("adaface-sharded-3", 8)),
        ]),
    ]  # fmt: skip
    write_tiny_records(folder / "two", identities=2, images=12)
    for world_size, jobs in plans:
        if world_size == 1:
            made.ended[1].update({job["name"]: [run_job(job, data, folder, Ranks())] for job in jobs})
            continue
        (folder / "plan.json").write_text(json.dumps({"data": str(data), "jobs": jobs}))
        run_ranks([str(WORKER), str(folder / "plan.json"), str(folder)], world_size)
        by_rank = [torch.load(folder / f"rank-{rank}.pt") for rank in range(world_size)]
        made.ended[world_size].update({job["name"]: [ended[job["name"]] for ended in by_rank] for job in jobs})
    return made.ended


def _largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Relative to each tensor's largest value."""
    assert one.keys() == other.keys()
    return max(float((one[k] - other[k]).abs().max() / one[k].abs().max().clamp(min=1e-300)) for k in one)


@pytest.mark.parametrize(
    "name", ["adaface-sharded-1", "adaface-sharded-2", "adaface-sharded-3", "arcface-sharded-2", "taught-sharded-2"]
)
def test_sharded_centres_train_as_replicated_ones_on_one_process(runs: Runs, name: str):
    head = name.split("-")[0]
    assert {"class_centres", "class_centres_momentum"} < runs.final(name).keys()
    assert _largest_difference(runs.final(head), runs.final(name)) <= 1e-10
    assert len(runs.losses(name)) == STEPS
    assert runs.losses(name) == pytest.approx(runs.losses(head), rel=1e-6), "metrics are summed in float32"


def test_the_first_step_in_float32_agrees(runs: Runs):
    after = [runs.step(name, 1) for name in ("adaface-float32", "adaface-float32-sharded-2")]
    one, two = ({**c.model, **c.optimiser, **c.row_sharded} for c in map(load_checkpoint, after))
    assert _largest_difference(one, two) <= 1e-5


@pytest.mark.parametrize("world_size", [2, 3])
def test_each_rank_holds_its_rows_alone_and_all_hold_one_student(runs: Runs, world_size: int):
    ranks = [ended["state"] for ended in runs.ended[world_size][f"adaface-sharded-{world_size}"]]
    rows = [state.pop("class_centres") for state in ranks]
    assert [len(own) for own in rows] == {2: [3, 4], 3: [2, 2, 3]}[world_size]
    assert torch.equal(torch.cat(rows), runs.final(f"adaface-sharded-{world_size}")["class_centres"])
    for state in ranks[1:]:
        assert all(torch.equal(state[name], ranks[0][name]) for name in ranks[0])


@pytest.mark.parametrize(
    ("name", "left"),
    [("replicated-1-to-sharded-2", 10), ("sharded-2-to-sharded-3", 2), ("sharded-3-to-replicated-1", 10)],
)
def test_a_run_goes_on_with_the_other_placement_and_on_other_ranks(runs: Runs, name: str, left: int):
    assert runs.losses(name) == pytest.approx(runs.losses("adaface")[-left:], rel=1e-6)
    assert _largest_difference(runs.final("adaface"), runs.final(name)) <= 1e-10


def test_centres_of_a_sharded_run_are_read_as_those_of_any_other(runs: Runs):
    stored = read_centres(runs.folder / "adaface-sharded-3")
    assert torch.equal(stored.rows, runs.final("adaface-sharded-3")["class_centres"])
    frozen = {"teacher": "null", "centres__kind": "frozen", "centres__path": runs.folder / "adaface-sharded-3",
              "geometry_margin__mode": "off", **ONE_EPOCH}  # fmt: skip
    result = run_training(tiny_recipe(runs.data, **frozen), runs.folder / "frozen", ranks=Ranks())
    assert result.metrics["loss"] > 0.0


def test_no_rank_ever_makes_a_tensor_of_the_size_of_all_centres(runs: Runs):
    """Not for initial centres, nor to read a checkpoint of replicated ones, to train, or to save."""
    for ended in runs.ended[2]["many-sharded-2"]:
        assert ended["error"] is None
        assert ended["seen"] == 4 * MANY // 2 * DIM, "its own rows, in float32"
    assert runs.final("many-sharded-2")["class_centres_momentum"].shape == (MANY, DIM)
    assert _largest_difference(runs.final("many"), runs.final("many-sharded-2")) <= 1e-4


@pytest.mark.parametrize("name", ["nan-image", "nan-row"])
def test_what_is_not_finite_on_one_rank_stops_all_and_nothing_of_it_is_kept(runs: Runs, name: str):
    """Three steps are finished. The row is damaged in memory; only its own rank can see it."""
    ranks = runs.ended[2][name]
    assert [ended["error"] for ended in ranks] == ["NonFiniteError"] * 2
    assert all("step 3 (epoch 0, step 3) is not finite" in ended["text"] for ended in ranks)
    states = [ended["state"] for ended in ranks]
    rows = torch.cat([state.pop("class_centres") for state in states])
    for key in states[0]:
        assert torch.isfinite(states[0][key]).all(), key
        assert torch.equal(states[0][key], states[1][key]), key
    if name == "nan-image":
        assert torch.isfinite(rows).all()
        return
    assert torch.isnan(rows).sum() == 1
    saved = load_checkpoint(runs.step(name, 3))
    assert torch.equal(torch.where(torch.isnan(rows), saved.row_sharded["class_centres"], rows),
                       saved.row_sharded["class_centres"])  # fmt: skip
    assert all(torch.equal(states[0][f"student.{key}"], tensor) for key, tensor in saved.model.items())


def test_the_stopped_run_goes_on_from_its_newest_checkpoint_on_three_ranks(runs: Runs):
    assert [ended["error"] for ended in runs.ended[3]["nan-row"]] == [None] * 3
    assert runs.losses("nan-row") == pytest.approx(runs.losses("adaface"), rel=1e-6)
    assert _largest_difference(runs.final("adaface"), runs.final("nan-row")) <= 1e-10


def test_fewer_identities_than_ranks_are_refused_at_the_door(runs: Runs):
    for ended in runs.ended[3]["too-few"]:
        assert ended["error"] == "ValueError"
        assert "sharded cannot spread 2 identities over 3 ranks; start fewer processes, or set" in ended["text"]
    assert not (runs.folder / "too-few").exists()


def test_the_bytes_on_the_wire_are_those_that_the_docstring_counts(runs: Runs):
    steps, ranks = 9, 2
    share = (ranks - 1) / ranks  # ring arithmetic: what a rank sends of a gathered tensor, and twice of a reduced one
    for ended in runs.ended[2]["bytes"]:
        of_the_softmax = [(kind, shape) for kind, shape in ended["seen"] if shape in ((BATCH,), (BATCH, DIM))]
        sent = sum(4 * share * torch.Size(shape).numel() * (2 if kind == "reduce" else 1)
                   for kind, shape in of_the_softmax)  # fmt: skip
        assert sent == steps * 4 * share * (3 * BATCH * DIM + 7 * BATCH)
        assert not any(shape == (IDENTITIES, DIM) for _, shape in ended["seen"])


def test_the_average_of_replicated_centres_begins_before_the_student_s_backward_and_is_the_average(runs: Runs):
    for ended in runs.ended[2]["overlap"]:
        assert ended["seen"] == ["average begins", "student", "average"] * 9


def test_centres_of_another_number_of_identities_are_not_gone_on_with(runs: Runs, tmp_path: Path):
    recipe = tiny_recipe(runs.data, **{**BASE, **SHARDED, "data__num_classes": MANY + 1, **ONE_EPOCH})
    with pytest.raises(ResumeError, match=rf"class_centres are \({MANY}, 16\).*, this run has \({MANY + 1}, 16\)"):
        run_training(
            recipe,
            tmp_path,
            ranks=Ranks(),
            resume=runs.step("many-sharded-2", 9),
            resume_allow=["data.num_classes", "checkpoint"],
            student=PlainStudent(),
        )


def test_rows_that_are_not_the_rank_s_own_are_refused():
    config = CentresConfig(kind="trainable", placement="sharded")
    second = Ranks(rank=1, world_size=3)
    assert ShardedCentres(config, 7, torch.zeros(2, 4), second).shard.first_class == 2
    with pytest.raises(ValueError, match=r"rank 1 of 3 holds 2 of 7 centres, got \(3, 4\)"):
        ShardedCentres(config, 7, torch.zeros(3, 4), second)
    with pytest.raises(ValueError, match="2 classes cannot be spread over 3 ranks"):
        ShardedCentres(config, 2, torch.zeros(0, 4), second)
    with pytest.raises(ValueError, match="placement sharded here, got trainable and replicated"):
        ShardedCentres(CentresConfig(kind="trainable"), 7, torch.zeros(2, 4), second)
