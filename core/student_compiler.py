"""`torch.compile` for the network that is trained: which mode, and what every mode needs.

Shapes are static: a run has one batch size, and a second graph would mean minutes of compiling in the middle of it.
Evaluation runs the plain module, so its last, smaller batch compiles nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

CompileMode: TypeAlias = Literal["off", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]

_WITH_GRAPHS = ("reduce-overhead", "max-autotune")


def compiled_forward(network: nn.Module, mode: CompileMode) -> Callable[[Tensor], Tensor]:
    """The network's forward pass as training calls it, once a step.

    Args:
        network: the student, or DDP around it.
        mode: `off` returns the network itself.
    """
    if mode == "off":
        return network
    compiled: Any = torch.compile(network, mode=None if mode == "default" else mode, dynamic=False)
    if mode not in _WITH_GRAPHS:
        return compiled

    def forward(images: Tensor) -> Tensor:
        # Outputs of a CUDA graph live until the next step begins; without the mark it would be guessed.
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(images)

    return forward
