"""Where Triton kernels run: on CUDA tensors, and anywhere in Triton's interpreter; nowhere if told so."""

from __future__ import annotations

import os

from torch import Tensor

SWITCH = "ADADISTILL_KERNELS"
"""Environment variable: `auto` (the default), or `torch` for the plain forms everywhere, to tell a kernel's fault from
another's, or for a machine on which Triton cannot compile (it needs a C compiler)."""


def runs_triton(tensor: Tensor) -> bool:
    """Whether an operation on this tensor may launch Triton kernels.

    Raises:
        ValueError: the switch is neither auto nor torch.
    """
    choice = os.environ.get(SWITCH, "auto")
    if choice not in ("auto", "torch"):
        raise ValueError(f"{SWITCH} must be auto or torch, got {choice!r}")
    return choice == "auto" and (tensor.is_cuda or os.environ.get("TRITON_INTERPRET") == "1")
