"""One rank of the runs in test_distributed_training.py: started with torchrun's variables in its environment.

Arguments: a JSON file with `data`, `run`, `overrides`, `student` (plain or recipe) and optionally `damage`
([rank, epoch, step, sample]) and `profile` ([first, count] steps), and a folder for what this rank ends with.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tests_support

tests_support.make_importable()

import tiny_training
import torch

import adadistill.core.training.run as run
from adadistill.core.distributed import distributed_session
from adadistill.core.profiling import ProfileRequest, StepWindow
from adadistill.core.training.non_finite import NonFiniteError


def main(plan_path: str, out: str) -> None:
    """Train as told and leave `rank-N.pt` (state of this rank) and `rank-N.json` (how it ended)."""
    torch.set_num_threads(1)
    plan = json.loads(Path(plan_path).read_text())
    recipe = tiny_training.tiny_recipe(Path(plan["data"]), **plan["overrides"])
    with distributed_session("cpu") as ranks:
        objectives = []
        original_objective, original_pipeline = run._build_objective, run.build_pipeline
        run._build_objective = lambda *a: objectives.append(original_objective(*a)) or objectives[-1]
        if plan.get("damage") and plan["damage"][0] == ranks.rank:
            run.build_pipeline = lambda *a, **k: tiny_training.NanImages(
                original_pipeline(*a, **k), *plan["damage"][1:]
            )
        student = tiny_training.PlainStudent() if plan["student"] == "plain" else None
        profile = ProfileRequest("torch", StepWindow(*plan["profile"])) if plan.get("profile") else None
        ending: dict[str, object] = {"error": None}
        try:
            run.run_training(recipe, plan["run"], ranks=ranks, student=student, profile=profile)
        except NonFiniteError as error:
            ending = {"error": type(error).__name__, "record_ids": error.record_ids, "text": str(error)}
        (objective,) = objectives
        state = {**objective.row_sharded(), **objective.tensors()}
        torch.save({k: v.clone() for k, v in state.items()}, Path(out) / f"rank-{ranks.rank}.pt")
        (Path(out) / f"rank-{ranks.rank}.json").write_text(json.dumps(ending))


if __name__ == "__main__":
    main(*sys.argv[1:])
