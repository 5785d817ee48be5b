"""Ranks share each planned step in contiguous slices, and a plan says what augmentation and order say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_training import write_tiny_records

from adadistill.loaders.augment.augment_policy import Augmentation, AugmentConfig
from adadistill.loaders.pipelines.pipeline import DataConfig, planned_batches
from adadistill.loaders.pipelines.rank_steps import RankSteps, block_plans, record_plans
from adadistill.loaders.pipelines.sample_order import SampleOrder
from adadistill.loaders.pixels import decode_image
from adadistill.loaders.records.image_records import ImageRecords

AUGMENTATION = Augmentation(AugmentConfig(), mirror_probability=0.5, seed=3, image_size=112)


def _steps(order: SampleOrder, rank: int = 0, world: int = 1, augmentation: Augmentation = AUGMENTATION) -> RankSteps:
    return RankSteps(order, rank=rank, world_size=world, augmentation=augmentation)


@settings(max_examples=25)
@given(records=st.integers(1, 60), local=st.integers(1, 9), world=st.integers(1, 4), epoch=st.integers(0, 3))
def test_ranks_share_each_global_batch_in_contiguous_slices(records: int, local: int, world: int, epoch: int):
    if records < local * world:
        with pytest.raises(ValueError, match="do not fill one global batch"):
            SampleOrder(records, local * world, seed=0)
        return
    order = SampleOrder(records, local * world, seed=0)
    by_rank = [list(_steps(order, rank, world).plans(epoch)) for rank in range(world)]
    assert {len(plans) for plans in by_rank} == {order.steps_per_epoch}
    for step, plans in enumerate(zip(*by_rank, strict=True)):
        ids = order.global_ids(epoch, step)
        assert all(np.array_equal(plan.global_record_ids, ids) and len(plan.record_ids) == local for plan in plans)
        assert np.array_equal(np.concatenate([plan.record_ids for plan in plans]), ids)
        assert np.array_equal(np.concatenate([p.mirrored for p in plans]), AUGMENTATION.mirrored(epoch, ids))


def test_steps_can_start_anywhere_and_name_their_view():
    views = Augmentation(AugmentConfig(views=3), mirror_probability=0.5, seed=3, image_size=112)
    steps = _steps(SampleOrder(40, 4, seed=0), 1, 2, views)
    whole, rest = list(steps.plans(4)), list(steps.plans(4, first_step=7))
    assert [(plan.step, plan.view) for plan in rest] == [(7, 1), (8, 1), (9, 1)]
    assert all(np.array_equal(plan.record_ids, whole[plan.step].record_ids) for plan in rest)
    assert list(steps.plans(4, first_step=10)) == []


@pytest.mark.parametrize(("epoch", "step"), [(0, 11), (0, -1), (-1, 0)])
def test_positions_outside_the_epoch_are_refused_at_once(epoch: int, step: int):
    with pytest.raises(ValueError, match="no position"):
        _steps(SampleOrder(40, 4, seed=0)).plans(epoch, step)


def test_ranks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="does not divide by 3 ranks"):
        _steps(SampleOrder(100, 8, seed=0), 0, 3)
    with pytest.raises(ValueError, match=r"rank must be in \[0, 2\), got 2"):
        _steps(SampleOrder(100, 8, seed=0), 2, 2)


CPU = torch.device("cpu")


# One record, less than a block, exactly one, one more, several and a short one.
@pytest.mark.parametrize("num_records", [1, 4, 5, 11])
def test_all_blocks_together_hold_every_record_once_and_a_short_one_repeats_its_last(num_records: int):
    blocks = -(-num_records // 4)
    plans = list(block_plans(range(blocks), num_records=num_records, block_records=4))
    assert [plan.step for plan in plans] == list(range(blocks))
    assert all(plan.record_ids.shape == plan.mirrored.shape == (4,) for plan in plans)
    assert not any(plan.mirrored.any() for plan in plans)
    held = np.concatenate([plan.record_ids for plan in plans])
    assert held[:num_records].tolist() == list(range(num_records))
    assert set(held[num_records:].tolist()) <= {num_records - 1}


@pytest.mark.parametrize("block", [-1, 3])
def test_a_block_that_is_not_there_is_refused(block: int):
    with pytest.raises(IndexError, match=rf"block must be in \[0, 3\), got {block}"):
        list(block_plans([block], num_records=11, block_records=4))


def test_chosen_records_are_planned_in_their_order():
    plans = list(record_plans(np.array([9, 2, 5]), batch_size=2))
    assert [plan.record_ids.tolist() for plan in plans] == [[9, 2], [5, 5]]
    assert not list(record_plans(np.array([], dtype=np.int64), batch_size=2))


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> ImageRecords:
    return ImageRecords(write_tiny_records(tmp_path_factory.mktemp("records")))


def _config(records: ImageRecords, *, image_size: int = 32, decoder: str = "cpu") -> DataConfig:
    return DataConfig(records=str(records.path), image_size=image_size, decoder=decoder, workers=1)


@pytest.mark.parametrize("decoder", ["cpu", "dali"])
def test_planned_batches_hold_the_images_of_their_plans(records: ImageRecords, decoder: str):
    if decoder == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    plans = block_plans([11, 0], num_records=46, block_records=4)
    with planned_batches(_config(records, decoder=decoder), records, plans, batch_size=4, device=CPU) as batches:
        found = {batch.step: batch for batch in batches}
    assert list(found) == [11, 0]
    assert found[11].record_ids.tolist() == [44, 45, 45, 45]
    assert found[11].labels.tolist() == [5, 5, 5, 5]
    for step, batch in found.items():
        for row, record_id in enumerate(batch.record_ids.tolist()):
            pixels = decode_image(records.read(record_id).body, where=f"{step}")
            wanted = (torch.from_numpy(pixels).permute(2, 0, 1).float() - 127.5) / 127.5
            assert torch.equal(batch.images[row], wanted)


def test_leaving_planned_batches_early_ends_the_decoding(records: ImageRecords):
    plans = block_plans(range(6), num_records=6, block_records=1)
    with planned_batches(_config(records), records, plans, batch_size=1, device=CPU) as batches:
        assert next(batches).record_ids.tolist() == [0]
    with pytest.raises(StopIteration):
        next(batches)
