"""Memory comes back when, and only when, nobody can see it any more."""

from __future__ import annotations

import gc

import pytest
import torch

from adadistill.loaders.pipelines.buffer_pool import BufferPool


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_have_the_shape_and_type_of_the_pool(dtype):
    tensor = BufferPool((2, 3, 5), dtype, keep=1).take()
    assert tensor.shape == (2, 3, 5)
    assert tensor.dtype == dtype
    assert tensor.is_contiguous()
    tensor.fill_(1)
    assert bool((tensor == 1).all())


def test_memory_is_used_again_once_the_tensor_is_gone():
    pool = BufferPool((1000,), torch.float32, keep=2)
    tensor = pool.take()
    place = tensor.data_ptr()
    del tensor
    gc.collect()
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
    gc.collect()
    pool.take().fill_(2.0)
    assert kept.tolist() == before


def test_tensors_in_use_never_share_memory():
    pool = BufferPool((4,), torch.float32, keep=1)
    tensors = [pool.take().fill_(float(number)) for number in range(5)]
    assert [tensor.tolist() for tensor in tensors] == [[float(number)] * 4 for number in range(5)]


def test_no_more_than_asked_for_is_kept():
    pool = BufferPool((4,), torch.float32, keep=2)
    tensors = [pool.take() for _ in range(5)]
    del tensors
    gc.collect()
    assert len(pool._free) == 2
