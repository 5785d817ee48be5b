"""Running statistics averaged beside the backward pass: the bits of an average that is waited for, and the guard's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rank_processes import run_ranks
from torch import Tensor, nn

from adadistill.core.distributed import Ranks
from adadistill.core.training.batch_norm_sync import RunningStatistics

WORKER = Path(__file__).parent.parent / "batch_norm_sync_worker.py"


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks([str(WORKER), str(folder)], 2)
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(2)]


def test_the_average_beside_backward_has_the_bits_of_one_that_is_waited_for(two_ranks: list[dict[str, Tensor]]):
    first, second = two_ranks
    assert not torch.equal(first["local"], second["local"])
    assert torch.equal(first["committed"], first["waited_for"])
    assert torch.equal(first["committed"], second["committed"])


def test_a_refused_step_leaves_the_statistics_as_they_were(two_ranks: list[dict[str, Tensor]]):
    for rank in two_ranks:
        assert rank["spoilt"].isnan().any()
        assert torch.equal(rank["refused"], rank["committed"])


def test_a_step_that_was_never_committed_leaves_nothing_behind(two_ranks: list[dict[str, Tensor]]):
    first, second = two_ranks
    assert torch.equal(first["resumed"], second["resumed"])
    assert torch.isfinite(first["resumed"]).all()
    assert not torch.equal(first["resumed"], first["committed"])


def test_one_process_keeps_its_own_statistics():
    network = nn.BatchNorm1d(3)
    statistics = RunningStatistics(network)
    network(torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 5.0]]))
    moved = network.running_mean.clone()
    statistics.start_average(Ranks())
    statistics.commit_(torch.tensor(True))
    assert torch.equal(network.running_mean, moved)
    assert moved.any()


def test_a_network_without_statistics_has_nothing_to_average():
    statistics = RunningStatistics(nn.Linear(2, 2))
    statistics.start_average(Ranks())
    statistics.commit_(torch.tensor(True))
