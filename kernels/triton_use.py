"""Where Triton kernels run: on CUDA tensors, and anywhere in Triton's interpreter; nowhere if told so."""

from __future__ import annotations

import importlib.util
import os

from torch import Tensor

SWITCH = "ADADISTILL_KERNELS"
"""Environment variable: `auto` (the default), or `torch` for the plain forms everywhere, to tell a kernel's fault from
another's, or for a machine on which Triton cannot compile (it needs a C compiler)."""

# Looked for here and not where it is asked: a number is all that torch.compile, tracing `runs_triton`, can read.
_IS_INSTALLED = importlib.util.find_spec("triton") is not None


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
    if not _IS_INSTALLED:
        raise ImportError(f"Triton is not installed: pip install triton, or set {SWITCH}=torch for slower plain forms")
    return True
