"""Blocks cover every record once, in batches of one shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_training import write_tiny_records

from adadistill.loaders.pipelines.pipeline import DataConfig, planned_batches
from adadistill.loaders.pixels import ImageDecodeError, decode_image
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.loaders.records.record_blocks import block_plans, record_plans

CPU = torch.device("cpu")


# One record, less than a block, exactly one, one more, several and a short one.
@pytest.mark.parametrize("num_records", [1, 3, 4, 5, 11])
def test_all_blocks_together_hold_every_record_once_and_a_short_one_repeats_its_last(num_records: int):
    blocks = -(-num_records // 4)
    plans = list(block_plans(range(blocks), num_records=num_records, block_records=4))
    assert [plan.step for plan in plans] == list(range(blocks))
    assert all(plan.record_ids.shape == plan.mirrored.shape == (4,) for plan in plans)
    assert not any(plan.mirrored.any() for plan in plans)
    held = np.concatenate([plan.record_ids for plan in plans])
    assert held[:num_records].tolist() == list(range(num_records))
    assert set(held[num_records:].tolist()) <= {num_records - 1}


def test_blocks_are_planned_in_the_order_asked_for_and_alike_whoever_asks():
    some = {plan.step: plan.record_ids.tolist() for plan in block_plans([2, 0], num_records=11, block_records=4)}
    assert some == {2: [8, 9, 10, 10], 0: [0, 1, 2, 3]}
    assert list(some) == [2, 0]


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


def test_images_of_another_size_are_refused(records: ImageRecords):
    plans = block_plans([0], num_records=2, block_records=2)
    with (
        planned_batches(_config(records, image_size=48), records, plans, batch_size=2, device=CPU) as batches,
        pytest.raises(ImageDecodeError, match="32 x 32"),
    ):
        next(batches)
