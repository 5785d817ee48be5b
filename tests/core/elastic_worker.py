"""Runs of test_elastic.py on 1, 2 and 4 ranks, one after the other, in processes that share one import of torch.

Arguments: a JSON file and a folder. The file lists phases, each with a `world_size` and `jobs`; a job has a `name` (its
run folder, below the given folder), `data`, `overrides` of the tiny recipe, `student` (plain, norm or recipe) and
optionally `resume` (a checkpoint) and `damage` ([rank, epoch, step, sample]). Rank 0 leaves `NAME.json`: how the run
ended, the sha256 of what was restored, and the global batches that were trained on.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tests_support

tests_support.make_importable()

import tiny_training
import torch
import torch.distributed as dist

import adadistill.core.training.run as run
from adadistill.core.checkpoints import OwnRows
from adadistill.core.distributed import Ranks, distributed_session, gather_rows
from adadistill.core.training.non_finite import NonFiniteError
from adadistill.core.training.trainer import Trainer


class NormStudent(torch.nn.Module):
    """A small convolutional network with batch norm of both kinds."""

    def __init__(self, embedding_dim: int = 16) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = torch.nn.Sequential(
                torch.nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
                torch.nn.BatchNorm2d(8),
                torch.nn.PReLU(8),
                torch.nn.AdaptiveAvgPool2d(2),
                torch.nn.Flatten(),
                torch.nn.Linear(32, embedding_dim),
                torch.nn.BatchNorm1d(embedding_dim),
            )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


STUDENTS = {"plain": tiny_training.PlainStudent, "norm": NormStudent, "recipe": lambda: None}


def main(plan_path: str, out: str) -> int:
    """Every phase in turn; the number of processes that failed."""
    torch.set_num_threads(1)
    run.describe_environment = lambda **_: {}  # asks git, which takes as long as a run here
    plan = json.loads(Path(plan_path).read_text())
    return sum(_phase(phase["world_size"], phase["jobs"], Path(out)) for phase in plan)


def _phase(world_size: int, jobs: list[dict[str, Any]], out: Path) -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world_size)})
    # Nothing has been computed yet, so there are no threads that a fork would lose.
    children = [pid for rank in range(world_size) if (pid := os.fork()) or _rank(rank, jobs, out)]
    return sum(os.waitpid(child, 0)[1] != 0 for child in children)


def _rank(rank: int, jobs: list[dict[str, Any]], out: Path) -> None:
    """A forked process: does its work and never returns."""
    code = 1
    try:
        os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank)})
        with distributed_session("cpu") as ranks:
            for job in jobs:
                found = _run_job(job, out, ranks)
                if ranks.is_main:
                    (out / f"{job['name']}.json").write_text(json.dumps(found))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _run_job(job: dict[str, Any], out: Path, ranks: Ranks) -> dict[str, Any]:
    recipe = tiny_training.tiny_recipe(Path(job["data"]), **job["overrides"])
    found: dict[str, Any] = {"error": None, "batches": [], "restored": {}}
    restore, train_step, build_pipeline = Trainer.restore, Trainer._train_step, run.build_pipeline

    def restored(self: Trainer, checkpoint: Any) -> list[str]:
        notes = restore(self, checkpoint)
        found["restored"] = _sha256(self, ranks)
        return notes

    def trained(self: Trainer, batch: Any, *rest: Any) -> bool:
        found["batches"].append(gather_rows(batch.record_ids, ranks).tolist())
        return train_step(self, batch, *rest)

    Trainer.restore, Trainer._train_step = restored, trained
    if job.get("damage") and job["damage"][0] == ranks.rank:
        run.build_pipeline = lambda *a, **k: tiny_training.NanImages(build_pipeline(*a, **k), *job["damage"][1:])
    try:
        run.run_training(
            recipe, out / job["name"], ranks=ranks, student=STUDENTS[job["student"]](),
            resume=job.get("resume", "none"),
        )  # fmt: skip
    except NonFiniteError as error:
        found.update(error=type(error).__name__, record_ids=error.record_ids)
    finally:
        Trainer.restore, Trainer._train_step, run.build_pipeline = restore, train_step, build_pipeline
    return found


def _sha256(trainer: Trainer, ranks: Ranks) -> dict[str, str]:
    """Of what the optimiser and the objective hold, as whole arrays: equal for any number of ranks."""
    step = trainer.step
    arrays = step.objective.row_sharded()
    tensors = {name: array.rows if isinstance(array, OwnRows) else array for name, array in arrays.items()}
    names = step.parameter_names()
    for parameter, state in step.optimiser.state.items():
        tensors[f"momentum.{names[parameter]}"] = state["momentum_buffer"]
    sharded = {name for name, array in arrays.items() if isinstance(array, OwnRows)}
    sharded |= {f"momentum.{name}" for name in sharded}
    return {name: _digest(tensor, name in sharded, ranks) for name, tensor in tensors.items()}


def _digest(tensor: torch.Tensor, is_share: bool, ranks: Ranks) -> str:
    pieces = [tensor.detach()]
    if is_share and ranks.world_size > 1:
        pieces = [None] * ranks.world_size  # type: ignore[list-item]
        dist.all_gather_object(pieces, tensor.detach())
    return hashlib.sha256(torch.cat(pieces).numpy().tobytes() if pieces[0].ndim else pieces[0].numpy()).hexdigest()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
