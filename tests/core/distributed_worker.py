"""One rank of runs that are trained one after the other: started with torchrun's variables in its environment.

Argument: a JSON file with a list of runs, each with `out` (a folder for what this rank ends with), `data`, `run`,
`overrides`, `student` (plain, norm or recipe) and optionally `resume` (a checkpoint) and `damage` ([rank, epoch, step,
sample]). A single run may stand without the list, with `out` as the second argument.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

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


def main(plan_path: str, *out: str) -> None:
    """Train as told. Each run leaves `rank-N.pt`, the state of this rank, and `rank-N.json`: how it ended, the sha256
    of what was restored, and the global batches that were trained on."""
    torch.set_num_threads(1)
    run.describe_environment = lambda **_: {}  # asks git, which takes as long as a run here
    plans = json.loads(Path(plan_path).read_text())
    with distributed_session("cpu") as ranks:
        for plan in [{**plans, "out": out[0]}] if out else plans:
            _train(plan, ranks)


def _train(plan: dict[str, Any], ranks: Ranks) -> None:
    out, objectives = Path(plan["out"]), []
    ending: dict[str, Any] = {"error": None, "batches": [], "restored": {}}
    build_objective, build_pipeline = run._build_objective, run.build_pipeline
    restore, train_step = Trainer.restore, Trainer._train_step

    def pipeline(*args: Any, **more: Any) -> Any:
        built = build_pipeline(*args, **more)
        rank, *where = plan.get("damage") or [-1]
        return tiny_training.NanImages(built, *where) if rank == ranks.rank else built

    def restored(self: Trainer, checkpoint: Any) -> list[str]:
        notes = restore(self, checkpoint)
        ending["restored"] = _sha256(self, ranks)
        return notes

    def trained(self: Trainer, batch: Any, *rest: Any) -> bool:
        ending["batches"].append(gather_rows(batch.record_ids, ranks).tolist())
        return train_step(self, batch, *rest)

    with (
        mock.patch.object(run, "_build_objective", lambda *a: objectives.append(build_objective(*a)) or objectives[-1]),
        mock.patch.object(run, "build_pipeline", pipeline),
        mock.patch.object(Trainer, "restore", restored),
        mock.patch.object(Trainer, "_train_step", trained),
    ):
        recipe = tiny_training.tiny_recipe(Path(plan["data"]), **plan["overrides"])
        try:
            run.run_training(
                recipe, plan["run"], ranks=ranks, student=STUDENTS[plan["student"]](),
                resume=plan.get("resume", "none"),
            )  # fmt: skip
        except NonFiniteError as error:
            ending.update(error=type(error).__name__, record_ids=error.record_ids, text=str(error))
    (objective,) = objectives
    state = {**objective.row_sharded(), **objective.tensors()}
    tensors = {name: array.rows if isinstance(array, OwnRows) else array for name, array in state.items()}
    torch.save({name: tensor.clone() for name, tensor in tensors.items()}, out / f"rank-{ranks.rank}.pt")
    (out / f"rank-{ranks.rank}.json").write_text(json.dumps(ending))


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
    main(*sys.argv[1:])
