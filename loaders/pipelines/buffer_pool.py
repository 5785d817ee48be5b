"""Large host tensors whose memory is used again once nobody holds them.

A batch of 512 float32 images is 77 MB. Fresh memory of that size comes from the kernel page by page, and the page
faults alone cost 55 us per image on a 2-core virtual machine, where decoding its JPEG costs 80. Handing out one fixed
buffer again and again would be as fast and wrong: a batch that somebody keeps would change under their hands.
"""

from __future__ import annotations

import math
import weakref

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class BufferPool:
    """Hands out uninitialised CPU tensors of one shape; the memory returns when the last view of a tensor is gone.

    Args:
        shape: of each tensor.
        dtype: of each tensor.
        keep: buffers kept for use again; more may be in use.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, *, keep: int) -> None:
        self._shape, self._dtype, self._keep = shape, dtype, keep
        self._free: list[npt.NDArray[np.uint8]] = []

    def take(self) -> Tensor:
        """A tensor of the pool's shape and dtype, contents undefined. Any thread may call this."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(math.prod(self._shape) * self._dtype.itemsize, dtype=np.uint8)
        # torch keeps this view, and nothing else, for as long as any tensor uses the memory.
        view = memory[:]
        weakref.finalize(view, _give_back, self._free, self._keep, memory).atexit = False
        return torch.from_numpy(view).view(self._dtype).view(self._shape)


def _give_back(free: list[npt.NDArray[np.uint8]], keep: int, memory: npt.NDArray[np.uint8]) -> None:
    if len(free) < keep:
        free.append(memory)
