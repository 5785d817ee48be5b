"""Tells an error of memory from all others: torch raises three kinds, one of them a plain RuntimeError."""

from __future__ import annotations

import torch

_CPU_ALLOCATOR = ("can't allocate memory", "not enough memory")
"""What torch's allocator says on the CPU, on Linux and elsewhere; it has no type of its own there."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of the host or of a device, is used up."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _CPU_ALLOCATOR)
