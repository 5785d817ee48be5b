"""Where Triton kernels run: on CUDA tensors, and anywhere in Triton's interpreter."""

from __future__ import annotations

import os

from torch import Tensor


def runs_triton(tensor: Tensor) -> bool:
    """Whether an operation on this tensor may launch Triton kernels."""
    return tensor.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"
