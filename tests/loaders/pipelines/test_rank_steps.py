"""Ranks share each planned step in contiguous slices, and a plan says what augmentation and order say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adadistill.loaders.augment.augment_policy import Augmentation, AugmentConfig
from adadistill.loaders.pipelines.rank_steps import RankSteps
from adadistill.loaders.pipelines.sample_order import SampleOrder

AUGMENTATION = Augmentation(AugmentConfig(), mirror_probability=0.5, seed=3, image_size=112)


def _steps(order: SampleOrder, rank: int = 0, world: int = 1, augmentation: Augmentation = AUGMENTATION) -> RankSteps:
    return RankSteps(order, rank=rank, world_size=world, augmentation=augmentation)


@settings(max_examples=60, deadline=None)
@given(records=st.integers(1, 200), local=st.integers(1, 17), world=st.integers(1, 5), epoch=st.integers(0, 3))
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
