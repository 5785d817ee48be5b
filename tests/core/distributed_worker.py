"""One rank of runs that are trained one after the other: started with torchrun's variables in its environment.

Argument: a JSON file with a list of runs, each with `out` (a folder for what this rank ends with), `data`, `run`,
`overrides`, `student` (plain or recipe) and optionally `damage` ([rank, epoch, step, sample]). A single run may stand
without the list, with `out` as the second argument.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tests_support

tests_support.make_importable()

import tiny_training
import torch

import adadistill.core.training.run as run
from adadistill.core.distributed import Ranks, distributed_session
from adadistill.core.training.non_finite import NonFiniteError


def main(plan_path: str, *out: str) -> None:
    """Train as told and leave `rank-N.pt` (state of this rank) and `rank-N.json` (how it ended) for each run."""
    torch.set_num_threads(1)
    plans = json.loads(Path(plan_path).read_text())
    with distributed_session("cpu") as ranks:
        for plan in [{**plans, "out": out[0]}] if out else plans:
            _train(plan, ranks)


def _train(plan: dict, ranks: Ranks) -> None:
    out, objectives, build_objective, build_pipeline = Path(plan["out"]), [], run._build_objective, run.build_pipeline

    def pipeline(*args, **more):
        built = build_pipeline(*args, **more)
        rank, *where = plan.get("damage") or [-1]
        return tiny_training.NanImages(built, *where) if rank == ranks.rank else built

    recipe = tiny_training.tiny_recipe(Path(plan["data"]), **plan["overrides"])
    student = tiny_training.PlainStudent() if plan["student"] == "plain" else None
    ending: dict[str, object] = {"error": None}
    with (
        mock.patch.object(run, "_build_objective", lambda *a: objectives.append(build_objective(*a)) or objectives[-1]),
        mock.patch.object(run, "build_pipeline", pipeline),
    ):
        try:
            run.run_training(recipe, plan["run"], ranks=ranks, student=student)
        except NonFiniteError as error:
            ending = {"error": type(error).__name__, "record_ids": error.record_ids, "text": str(error)}
    (objective,) = objectives
    state = {**objective.row_sharded(), **objective.tensors()}
    torch.save({k: v.clone() for k, v in state.items()}, out / f"rank-{ranks.rank}.pt")
    (out / f"rank-{ranks.rank}.json").write_text(json.dumps(ending))


if __name__ == "__main__":
    main(*sys.argv[1:])
