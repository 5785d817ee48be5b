"""Which number format each part of a run computes in, decided once from the recipe's word and the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

PrecisionName: TypeAlias = Literal["auto", "float32", "bfloat16", "float64"]


@dataclass(frozen=True, slots=True)
class Precision:
    """Resolved formats. Norms, margins, softmax and moving averages are never below float32, whatever this says."""

    dtype: torch.dtype
    """Of parameters, images, centres and statistics."""
    autocast_dtype: torch.dtype | None
    """Backbones run under autocast to this, or in `dtype` if None."""
    channels_last: bool
    """Memory format of images and backbones: channels last, which convolution kernels of GPUs and of oneDNN prefer."""

    @property
    def image_dtype(self) -> torch.dtype:
        """What pipelines produce: the autocast dtype where there is one, which halves the bytes moved."""
        return self.autocast_dtype or self.dtype


def resolve_precision(name: PrecisionName, device: torch.device) -> Precision:
    """Decide, and hold CUDA to it: convolutions and products that are not under autocast have no TF32 in this process.

    `auto` is bfloat16 autocast on CUDA and float32 on the CPU; float64 is for comparing implementations. torch lets
    float32 convolutions round their operands to TF32's 11 bits unless it is told otherwise.
    """
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        if name != "bfloat16":
            torch.backends.cuda.matmul.allow_tf32 = False
    if name == "float64":
        return Precision(dtype=torch.float64, autocast_dtype=None, channels_last=False)
    autocast_dtype = torch.bfloat16 if name == "bfloat16" else None
    return Precision(dtype=torch.float32, autocast_dtype=autocast_dtype, channels_last=True)
