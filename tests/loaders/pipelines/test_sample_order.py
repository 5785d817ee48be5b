"""The order is a function: equal for everybody, each record at most once per epoch, equal steps on all ranks."""

from __future__ import annotations

import numpy as np
import pytest

from adadistill.loaders.pipelines.sample_order import SampleOrder


def test_an_epoch_visits_each_record_at_most_once_and_drops_only_the_remainder():
    order = SampleOrder(103, 10, seed=7)

    seen = np.concatenate([order.global_ids(2, step) for step in range(order.steps_per_epoch)])

    assert order.steps_per_epoch == 10
    assert len(seen) == len(set(seen.tolist())) == 100
    assert seen.min() >= 0
    assert seen.max() < 103


def test_epochs_and_seeds_have_different_orders():
    first = SampleOrder(1000, 100, seed=1)
    assert not np.array_equal(first.permutation(0), first.permutation(1))
    assert not np.array_equal(first.permutation(0), SampleOrder(1000, 100, seed=2).permutation(0))


def test_the_order_does_not_depend_on_what_was_asked_before():
    one, other = SampleOrder(50, 5, seed=3), SampleOrder(50, 5, seed=3)
    for epoch in (4, 0, 2):
        one.permutation(epoch)
    assert np.array_equal(one.global_ids(1, 3), other.global_ids(1, 3))


@pytest.mark.parametrize(("epoch", "step"), [(0, 10), (0, -1), (-1, 0)])
def test_positions_outside_the_order_are_refused(epoch: int, step: int):
    with pytest.raises(ValueError, match="no step"):
        SampleOrder(100, 10, seed=0).global_ids(epoch, step)
