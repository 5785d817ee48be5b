"""What the ranks in test_sharded_centres.py do: small runs, watched and damaged, within one process group.

A job has a `name` (its run folder, which all ranks share), `overrides` of the tiny recipe, and optionally `resume` (a
checkpoint), `nan_image` and `nan_row` ([rank, epoch, step]: what of that rank is damaged before that step) and `watch`
(size, bytes or overlap).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tiny_training
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

import adadistill.core.training.run as run
from adadistill.core.checkpoints import OwnRows
from adadistill.core.distributed import Ranks, gather_rows
from adadistill.core.training.non_finite import NonFiniteError

if TYPE_CHECKING:
    from adadistill.core.method.classification import ClassificationObjective
    from adadistill.loaders.batch import Batch
    from adadistill.loaders.pipelines.pipeline import ImagePipeline


class IgnoredLabels:
    """Wraps a pipeline: samples 1 and 4 of every global batch carry the label -1, however the batch is divided."""

    def __init__(self, pipeline: ImagePipeline, ranks: Ranks) -> None:
        self._pipeline, self._ranks = pipeline, ranks
        self.steps_per_epoch, self.damaged = pipeline.steps_per_epoch, pipeline.damaged

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        for batch in self._pipeline.epoch(epoch, first_step):
            places = self._ranks.rank * len(batch.labels) + torch.arange(len(batch.labels))
            batch.labels[(places == 1) | (places == 4)] = -1
            self.before(batch)
            yield batch

    def before(self, batch: Batch) -> None:
        """Called before each step."""

    def close(self) -> None:
        self._pipeline.close()


class LargestTensor(TorchDispatchMode):
    """Remembers how many bytes the largest tensor had that any operation gave."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, torch.Tensor):
                self.size = max(self.size, tensor.nbytes)
        return made


def run_job(job: dict[str, Any], data: Path, folder: Path, ranks: Ranks) -> dict[str, Any]:
    """Train as told; the state of this rank, how it ended and what was watched."""
    recipe = tiny_training.tiny_recipe(data, **job["overrides"])
    student = tiny_training.PlainStudent()
    objectives: list[ClassificationObjective] = []
    ending: dict[str, Any] = {"error": None, "text": ""}

    class Damaged(IgnoredLabels):
        def before(self, batch: Batch) -> None:
            here = [ranks.rank, batch.epoch, batch.step]
            if job.get("nan_image") == here:
                batch.images[0, 0, 0, 0] = torch.nan
            if job.get("nan_row") == here:
                objectives[0].centres.class_centres.data[0, 0] = torch.nan

    build_objective, build_pipeline = run._build_objective, run.build_pipeline
    run._build_objective = lambda *a: objectives.append(build_objective(*a)) or objectives[-1]
    run.build_pipeline = lambda *a, **k: Damaged(build_pipeline(*a, **k), ranks)
    watched = {"size": LargestTensor(), "bytes": counted_collectives(), "overlap": logged_backward(student)}
    try:
        with watched.get(job.get("watch"), nullcontext()) as seen:
            run.run_training(
                recipe, folder / job["name"], ranks=ranks, student=student, resume=job.get("resume", "none")
            )
    except (NonFiniteError, ValueError) as error:
        ending = {"error": type(error).__name__, "text": str(error)}
    finally:
        run._build_objective, run.build_pipeline = build_objective, build_pipeline
    state = {f"student.{name}": tensor.clone() for name, tensor in student.state_dict().items()}
    for objective in objectives:
        state.update(objective.tensors())
        for name, array in objective.row_sharded().items():
            state[name] = (array.rows if isinstance(array, OwnRows) else array).clone()
    if isinstance(seen, LargestTensor):
        seen = seen.size
    return {"state": state, **ending, "seen": seen}


@contextmanager
def counted_collectives() -> Iterator[list[tuple[str, tuple[int, ...]]]]:
    """Kind and shape of every collective of ours; those of DDP are not called from Python."""
    seen: list[tuple[str, tuple[int, ...]]] = []
    reduce, gather = dist.all_reduce, dist.all_gather_into_tensor

    def all_reduce(tensor: torch.Tensor, *a: Any, **k: Any) -> Any:
        seen.append(("reduce", tuple(tensor.shape)))
        return reduce(tensor, *a, **k)

    def all_gather(out: torch.Tensor, *a: Any, **k: Any) -> Any:
        seen.append(("gather", tuple(out.shape)))
        return gather(out, *a, **k)

    dist.all_reduce, dist.all_gather_into_tensor = all_reduce, all_gather
    try:
        yield seen
    finally:
        dist.all_reduce, dist.all_gather_into_tensor = reduce, gather


@contextmanager
def logged_backward(student: torch.nn.Module) -> Iterator[list[str]]:
    """What happens in which order in each step: the centres' average begins, the student's backward, the average."""
    seen: list[str] = []
    begin = run.ClassificationObjective._begin_average
    reduce = run.ClassificationObjective.reduce_gradients_
    own: list[torch.Tensor] = []

    def begin_average(self: ClassificationObjective, parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        own.append(parameter.grad.clone())
        begin(self, parameter)
        seen.append("average begins")

    def reduce_gradients(self: ClassificationObjective, ranks: Ranks) -> None:
        reduce(self, ranks)
        expected = gather_rows(own.pop()[None], ranks).sum(0) / ranks.world_size
        equal = torch.equal(self.parameters()["class_centres"].grad, expected)
        seen.append("average" if equal else "something else")

    student.linear.bias.register_hook(lambda _: seen.append("student"))
    run.ClassificationObjective._begin_average = begin_average
    run.ClassificationObjective.reduce_gradients_ = reduce_gradients
    try:
        yield seen
    finally:
        run.ClassificationObjective._begin_average = begin
        run.ClassificationObjective.reduce_gradients_ = reduce
