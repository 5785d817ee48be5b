"""FusedSGD of NVIDIA apex as an optimiser back end: found by probing, and only used if it does what ours must.

The package `apex` on PyPI is another one, so a name proves nothing: what is asked for is `apex.optimizers.FusedSGD`.
Its kernels take a flag that leaves parameters and momentum alone, meant for overflows of scaled gradients
(`_dummy_overflow_buf`); through it a step that is not finite is skipped on the device. The flag is no public promise of
apex, so a trial on two numbers shows, once, that this apex heeds it and that its update is SGD's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adadistill.core.distributed import LaunchError


def apex_sgd(
    groups: Sequence[dict[str, Any]], *, lr: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """apex's FusedSGD over groups of parameters on CUDA, as torch's optimisers take them.

    Raises:
        LaunchError: there is no such optimiser, it fails its trial, or a parameter is not on CUDA.
    """
    for device in {parameter.device for group in groups for parameter in group["params"]}:
        require_apex(device)
    return _find_fused_sgd()(list(groups), lr=lr, momentum=momentum, weight_decay=weight_decay)


def require_apex(device: torch.device) -> None:
    """See that apex can train on a device, before anything is built on it.

    Raises:
        LaunchError: as `apex_sgd`.
    """
    fused_sgd = _find_fused_sgd()
    if device.type != "cuda":
        raise LaunchError(f"optim.backend apex runs on CUDA, this is to run on {device}; set optim.backend=torch")
    require_skipping(fused_sgd, device)


def step_apex_where_finite(optimiser: Any, finite: Tensor) -> None:
    """One update, done on the device only where `finite` (0-dim bool) holds; no host sync."""
    optimiser._dummy_overflow_buf.copy_((~finite).reshape(optimiser._dummy_overflow_buf.shape))
    optimiser.step()


def require_skipping(fused_sgd: Any, device: torch.device) -> None:
    """Try an optimiser class on two numbers: a raised flag must leave all as it was, a lowered one must do SGD.

    Raises:
        LaunchError: it does something else.
    """
    parameter = nn.Parameter(torch.tensor([1.0, -2.0], device=device))
    optimiser = fused_sgd([parameter], lr=0.5, momentum=0.5, weight_decay=0.0)
    flag = getattr(optimiser, "_dummy_overflow_buf", None)
    if not isinstance(flag, Tensor) or flag.numel() != 1:
        raise LaunchError(
            "this apex's FusedSGD has no overflow flag to skip a step by; set optim.backend=torch, or install another "
            "version of NVIDIA apex"
        )
    optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    seen = []
    for finite in (False, True, True):
        parameter.grad = torch.ones_like(parameter)
        step_apex_where_finite(optimiser, torch.tensor(finite, device=device))
        seen.append(parameter.detach().tolist())
    # lr 0.5: skipped; then momentum 1, and 0.5 + 1 = 1.5
    expected = [[1.0, -2.0], [0.5, -2.5], [-0.25, -3.25]]
    if seen != expected:
        raise LaunchError(
            f"this apex's FusedSGD does not skip a step by its overflow flag, or is no SGD: {seen} instead of "
            f"{expected}; set optim.backend=torch, or install another version of NVIDIA apex"
        )


def _find_fused_sgd() -> Any:
    try:
        from apex.optimizers import FusedSGD
    except ImportError as error:
        raise LaunchError(
            "optim.backend apex needs NVIDIA apex with its CUDA extensions, built from github.com/NVIDIA/apex (the "
            f"apex of PyPI is another package): {error}; set optim.backend=torch to do without"
        ) from error
    return FusedSGD
