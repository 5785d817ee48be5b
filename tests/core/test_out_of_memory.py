"""Errors of memory are told from errors of another kind, whichever allocator raised them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adadistill.core.out_of_memory import is_out_of_memory


def test_what_the_cpu_allocator_raises_is_an_error_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 58, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    with pytest.raises(MemoryError) as of_numpy:
        np.empty(1 << 58, np.uint8)
    assert is_out_of_memory(of_numpy.value)


def test_other_errors_are_none():
    with pytest.raises(RuntimeError) as caught:
        torch.ones(2) @ torch.ones(3)
    assert not is_out_of_memory(caught.value)
    assert not is_out_of_memory(ValueError("can't allocate memory"))
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
