"""A rank whose copy of the state has drifted stops the save on all ranks: real processes, real gloo."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from small_cache import end_of_child, start_child

from adadistill.core.checkpoints import CheckpointError
from adadistill.core.distributed import Ranks
from adadistill.core.training.replica_agreement import require_equal_replicas


def _state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "student.weight": torch.randn(3, 5, generator=generator),
        "class_centres": torch.randn(7, 4, generator=generator).bfloat16(),
        "norm_mean": torch.tensor(float("nan")),
        "num_batches_tracked": torch.tensor(3),
        "seen": torch.tensor([True, False]),
    }


def _compare(rank: int, store: Path, changed: str) -> str:
    """What one rank of two says; empty where it goes on."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(store), 2), rank=rank, world_size=2)
    state = _state()
    if rank == 1 and changed:
        flat = state[changed].view(-1)
        flat[-1] = ~flat[-1] if flat.dtype == torch.bool else flat[-1] * 2 + 1  # also from NaN: another number
        if flat.dtype == torch.float32 and torch.isnan(flat[-1]):
            flat[-1] = 0.0
    try:
        require_equal_replicas(state, Ranks(rank=rank, world_size=2))
    except CheckpointError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("changed", ["", *_state()])
def test_one_element_that_differs_on_one_rank_stops_both(tmp_path: Path, changed: str):
    said = [tmp_path / f"said-{rank}" for rank in range(2)]
    children = [
        start_child(lambda rank=rank: said[rank].write_text(_compare(rank, tmp_path / "store", changed)))
        for rank in range(2)
    ]
    assert [end_of_child(child) for child in children] == [0, 0]
    texts = [path.read_text() for path in said]
    assert texts[0] == texts[1]
    if not changed:
        assert texts[0] == ""
    else:
        assert f"{changed} of rank(s) [1] differs from rank 0's (1 of 5 tensors differ)" in texts[0]


def test_one_rank_compares_nothing():
    require_equal_replicas(_state(), Ranks())
