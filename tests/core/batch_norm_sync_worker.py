"""One rank of test_batch_norm_sync.py: averages running statistics while other collectives and a backward pass run.

Argument: a folder, for `rank-N.pt` with what this rank ended with.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tests_support

tests_support.make_importable()

import torch
from torch import nn

from adadistill.core.distributed import average_, distributed_session, gather_rows
from adadistill.core.training.batch_norm_sync import RunningStatistics


def main(out: str) -> None:
    """Two steps: a finite one, and one that is refused after it."""
    torch.set_num_threads(1)
    with distributed_session("cpu") as ranks:
        network = nn.Sequential(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7), nn.Conv2d(7, 5, 3), nn.BatchNorm2d(5))
        statistics = RunningStatistics(network)
        images = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(ranks.rank))
        loss = network(images).square().mean()
        floating = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
        local = torch.cat(floating).clone()
        waited_for = average_(local.clone(), ranks)

        statistics.start_average(ranks)
        loss.backward()
        gather_rows(images[:, 0, 0], ranks)
        average_(torch.ones(3), ranks)
        statistics.commit_(torch.tensor(True))
        committed = torch.cat(floating).clone()

        network(images * float("nan"))
        spoilt = torch.cat(floating).clone()
        statistics.start_average(ranks)
        statistics.commit_(torch.tensor(False))
        refused = torch.cat(floating).clone()

        network(images + 1.0)  # a step that ends before its commit leaves nothing behind
        statistics.start_average(ranks)
        statistics.start_average(ranks)
        statistics.commit_(torch.tensor(True))
        resumed = torch.cat(floating).clone()
        values = {"local": local, "waited_for": waited_for, "committed": committed, "spoilt": spoilt}
        torch.save({**values, "refused": refused, "resumed": resumed}, Path(out) / f"rank-{ranks.rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
