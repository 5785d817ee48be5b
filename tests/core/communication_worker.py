"""One rank of the runs in test_communication.py: trains tiny recipes and leaves what each step handed to collectives.

Arguments: a JSON file with `data` and `runs` (name, overrides), and a folder for runs and `rank-N.json`.
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

from adadistill.core.communication import CollectiveCounter, by_step
from adadistill.core.distributed import distributed_session
from adadistill.core.training.run import run_training


def main(plan_path: str, out: str) -> None:
    """For each run, by name: a list of steps, each a list of [part, collective, bytes]."""
    torch.set_num_threads(1)
    plan = json.loads(Path(plan_path).read_text())
    found = {}
    with distributed_session("cpu") as ranks, CollectiveCounter() as counter:
        for run in plan["runs"]:
            recipe = tiny_training.tiny_recipe(Path(plan["data"]), **run["overrides"])
            run_training(recipe, Path(out) / run["name"], ranks=ranks)
            steps = by_step(counter.take())
            found[run["name"]] = [[[t.part, t.collective, t.bytes] for t in step] for step in steps]
    (Path(out) / f"rank-{ranks.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
