"""Host memory to a device without making the host wait: the one way that a step takes.

A copy from pageable memory returns only when everything queued before it on the stream is done, so a single one of them
undoes all that was queued ahead. From page-locked memory the copy is queued like a kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor


def copied_to(device: torch.device, host: Tensor) -> Tensor:
    """A contiguous tensor of the same values on `device`; on CUDA through page-locked memory, on the current stream.

    What is on the device already comes back as it is, and so does everything where the device is the CPU. torch keeps
    page-locked blocks for use again, and knows of the copies that still read them.
    """
    if host.device.type != "cpu" or device.type == "cpu":
        return host.contiguous()
    if device.type == "cuda" and not host.is_pinned():
        host = host.contiguous().pin_memory()
    return host.to(device, non_blocking=True)
