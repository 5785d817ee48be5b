"""One rank of a class-sharded margin softmax: writes its loss and gradients for the test to put together."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tests_support

tests_support.make_importable()

import torch
from margin_softmax_cases import ADAFACE, gradients, make_case

from adadistill.core.distributed import class_shard, distributed_session
from adadistill.kernels.margin_softmax import margin_softmax


def main(folder: str) -> None:
    with distributed_session("cpu") as ranks:
        results = {}
        for trained in (False, True):
            case = make_case(24, 85, special=True)
            shard = class_shard(len(case.centres), ranks)
            last = len(case.centres) * (ranks.rank + 1) // ranks.world_size
            part = type(case)(case.embeddings, case.centres[shard.first_class : last], *tuple(case)[2:])
            found, grads = gradients(margin_softmax, part, trained=trained, shard=shard, **ADAFACE)
            results[trained] = (found.loss.detach(), found.target_cosine, found.clamped, *grads)
        torch.save(results, Path(folder) / f"rank-{ranks.rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
