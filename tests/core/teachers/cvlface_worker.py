"""One process of the runs in test_cvlface.py: started with torchrun's variables in its environment.

Arguments: a JSON file with a list of jobs, each the keyword arguments of `load_cvlface`, in whose texts `{rank}` stands
for the rank; and a folder for `rank-N.json`: for every job the identity that was loaded, or the error.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import tests_support

tests_support.make_importable()

import torch
from narrow_networks import narrow_networks

from adadistill.core.distributed import distributed_session
from adadistill.core.teachers import TeacherError
from adadistill.core.teachers.cvlface import load_cvlface


def main(jobs_path: str, out: str) -> None:
    """Load what every job says, one after the other."""
    torch.set_num_threads(1)
    endings = []
    with narrow_networks(), distributed_session("cpu") as ranks:
        text = Path(jobs_path).read_text().replace("{rank}", str(ranks.rank))
        for job in json.loads(text):
            paths = {name: Path(job[name]) for name in ("lock", "cache_dir")}
            try:
                loaded = load_cvlface(**{**job, **paths}, ranks=ranks)
                weight_sum = sum(float(tensor.double().sum()) for tensor in loaded.body.state_dict().values())
                endings.append({"identity": loaded.identity.to_json(), "weight_sum": weight_sum})
            except TeacherError as error:
                endings.append({"error": str(error)})
        (Path(out) / f"rank-{ranks.rank}.json").write_text(json.dumps(endings))


if __name__ == "__main__":
    main(*sys.argv[1:])
