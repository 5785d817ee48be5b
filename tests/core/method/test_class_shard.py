"""Classes spread over real processes give the loss and gradients of all classes on one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from margin_softmax_cases import ADAFACE, assert_close, gradients, make_case
from rank_processes import run_ranks

from adadistill.core.distributed import Ranks, class_shard
from adadistill.kernels.margin_softmax import margin_softmax

WORKER = Path(__file__).parent.parent / "class_shard_worker.py"


@pytest.mark.parametrize("world_size", [1, 3])
def test_shards_on_real_processes_equal_the_whole(world_size: int, tmp_path: Path):
    run_ranks([str(WORKER), str(tmp_path)], world_size)
    ranks = [torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in range(world_size)]
    for trained in (False, True):
        whole, grads = gradients(margin_softmax, make_case(24, 85, special=True), trained=trained, **ADAFACE)
        found = [rank[trained] for rank in ranks]
        for loss, cosine, clamped, embeddings_grad, *_ in found:
            assert_close(loss, whole.loss.detach())
            assert_close(cosine, whole.target_cosine)
            assert torch.equal(clamped, whole.clamped)
            assert_close(embeddings_grad, grads[0])
            assert torch.equal(loss, found[0][0]), "equal in every bit on all ranks"
            assert torch.equal(embeddings_grad, found[0][3])
        if trained:
            assert_close(torch.cat([rank[4] for rank in found]), grads[1])


def test_shards_tile_the_classes_and_differ_by_one_at_most():
    for world_size in (1, 2, 3, 7):
        firsts = [class_shard(23, Ranks(rank=rank, world_size=world_size)).first_class for rank in range(world_size)]
        sizes = [stop - first for first, stop in zip(firsts, [*firsts[1:], 23], strict=True)]
        assert firsts[0] == 0
        assert max(sizes) - min(sizes) <= 1
    with pytest.raises(ValueError, match="2 classes cannot be spread over 3 ranks"):
        class_shard(2, Ranks(rank=0, world_size=3))
