"""Pixels become the numbers of `to_network_input`, whatever they travel through."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adadistill.loaders.pipelines.batch_destination import BufferPool, batch_destination
from adadistill.loaders.pipelines.rank_steps import StepPlan
from adadistill.loaders.pixels import to_network_input


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


# One image, and one past two blocks.
@pytest.mark.parametrize("count", [1, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_every_level_becomes_the_number_that_to_network_input_gives(count, dtype, channels_last, device):
    levels = np.random.RandomState(0).permutation(np.arange(count * 16 * 16 * 3) % 256).astype(np.uint8)
    images_u8 = torch.from_numpy(levels.reshape(count, 16, 16, 3))
    assert len(images_u8.unique()) == 256
    destination = batch_destination(
        device, batch_size=count, image_size=16, dtype=dtype, channels_last=channels_last, keep=2
    )
    staged = destination.stage()
    staged.images_u8.copy_(images_u8)
    for first in range(0, count, 5):
        destination.normalise_rows(staged, slice(first, first + 5))
    flips = np.arange(count) % 2 == 0
    plan = StepPlan(epoch=2, step=3, global_record_ids=np.arange(count), global_mirrored=flips, view=5)
    batch = destination.batch(plan, np.arange(count)[::-1].copy(), staged)

    expected = to_network_input(images_u8, device=torch.device("cpu"), dtype=dtype)
    if device.type == "cpu":
        assert torch.equal(batch.images, expected)
    else:  # CUDA divides by multiplying with the reciprocal
        torch.testing.assert_close(batch.images.cpu(), expected, rtol=0, atol=2 * torch.finfo(dtype).eps)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert batch.images.is_contiguous(memory_format=layout)
    assert {tensor.device.type for tensor in (batch.images, batch.labels, batch.record_ids, batch.mirrored)} == {
        device.type
    }
    assert batch.labels.tolist() == list(range(count))[::-1]
    assert batch.record_ids.tolist() == list(range(count))
    assert batch.mirrored.tolist() == [number % 2 == 0 for number in range(count)]
    assert (batch.epoch, batch.step, batch.view) == (2, 3, 5)
    assert batch.global_record_ids.tolist() == batch.record_ids.tolist()
    assert batch.global_mirrored.tolist() == batch.mirrored.tolist()


def test_memory_is_used_again_once_the_tensor_is_gone():
    pool = BufferPool((1000,), torch.float32, keep=2)
    tensor = pool.take()
    place = tensor.data_ptr()
    del tensor
    assert pool.take().data_ptr() == place


# What a consumer may keep instead of the tensor itself.
@pytest.mark.parametrize(
    "view",
    [
        lambda t: t[3],
        lambda t: t.view(torch.int32),
        lambda t: t.detach(),
        lambda t: t.numpy(),
        lambda t: t.permute(1, 0),
    ],
)
def test_a_view_keeps_the_memory_from_being_used_again(view):
    pool = BufferPool((10, 10), torch.float32, keep=2)
    tensor = pool.take().fill_(1.0)
    kept = view(tensor)
    before = kept.tolist()
    del tensor
    pool.take().fill_(2.0)
    assert kept.tolist() == before


def test_tensors_in_use_never_share_memory():
    pool = BufferPool((4,), torch.float32, keep=1)
    tensors = [pool.take().fill_(float(number)) for number in range(5)]
    assert [tensor.tolist() for tensor in tensors] == [[float(number)] * 4 for number in range(5)]
