"""One rank of the runs in test_sharded_centres.py: started with torchrun's variables in its environment.

Arguments: a JSON file with `data` and `jobs` (see sharded_centres_jobs.py), and a folder for what this rank ends with.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tests_support

tests_support.make_importable()

import torch
from sharded_centres_jobs import run_job

from adadistill.core.distributed import distributed_session


def main(plan_path: str, out: str) -> None:
    """Do the jobs and leave `rank-N.pt`: what `run_job` returned, by name."""
    torch.set_num_threads(1)
    plan = json.loads(Path(plan_path).read_text())
    with distributed_session("cpu") as ranks:
        ended = {job["name"]: run_job(job, Path(plan["data"]), Path(out), ranks) for job in plan["jobs"]}
        torch.save(ended, Path(out) / f"rank-{ranks.rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
