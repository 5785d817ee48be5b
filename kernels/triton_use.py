"""Where Triton kernels run: on CUDA tensors, and anywhere in Triton's interpreter; nowhere if told so."""

from __future__ import annotations

import importlib.util
import os
from functools import cache

from torch import Tensor

SWITCH = "ADADISTILL_KERNELS"
"""Environment variable: `auto` (the default), or `torch` for the plain forms everywhere, to tell a kernel's fault from
another's, or for a machine on which Triton cannot compile (it needs a C compiler)."""


def runs_triton(tensor: Tensor) -> bool:
    """Whether an operation on this tensor may launch Triton kernels.

    Raises:
        ValueError: the switch is neither auto nor torch.
        ImportError: it may, and Triton is not installed.
    """
    choice = os.environ.get(SWITCH, "auto")
    if choice not in ("auto", "torch"):
        raise ValueError(f"{SWITCH} must be auto or torch, got {choice!r}")
    if choice == "torch" or not (tensor.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"):
        return False
    if not _is_installed():
        raise ImportError(f"Triton is not installed: pip install triton, or set {SWITCH}=torch for slower plain forms")
    return True


@cache
def _is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None
