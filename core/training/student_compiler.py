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

# Left to itself Inductor decides for each graph whether convolutions are channels last; for depthwise ones it then asks
# for their inputs in (N, H, C, W) order in backward: 22 transposed copies in a MobileFaceNet, none with this.
_CHANNELS_LAST = {"force_layout_optimization": True}
_WITH_GRAPHS = ("reduce-overhead", "max-autotune")


def compiled_forward(network: nn.Module, mode: CompileMode, *, channels_last: bool) -> Callable[[Tensor], Tensor]:
    """The network's forward pass as training calls it, once a step.

    Args:
        network: the student, or DDP around it.
        mode: `off` returns the network itself.
        channels_last: images and weights are in this memory format, and shall stay in it.
    """
    if mode == "off":
        return network
    from torch._inductor import list_mode_options  # importing it sets variables of the environment

    options = {**list_mode_options(mode), **(_CHANNELS_LAST if channels_last else {})}
    compiled: Any = torch.compile(network, dynamic=False, options=options)
    if mode not in _WITH_GRAPHS:
        return compiled

    def forward(images: Tensor) -> Tensor:
        # Outputs of a CUDA graph live until the next step begins; without the mark it would be guessed.
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(images)

    return forward
