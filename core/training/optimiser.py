"""The student's optimiser and its learning rate as a function of the position in training.

SGD with momentum and weight decay, on every parameter unless told otherwise (AdaDistill, method 1.4), by torch's fused
implementation or by NVIDIA apex. Both skip their update on the device where a step was not finite, so that no host has
to look (see `core/training/non_finite.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adadistill.core.training.apex_sgd import apex_sgd, step_apex_where_finite

_CHOICES = {
    "schedule": ("step", "polynomial"),
    "warmup": ("squared", "linear"),
    "decay": ("all", "matrices"),
    "backend": ("torch", "apex"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """Optimiser, learning-rate schedule and length of training."""

    epochs: int
    """Passes over the records. Positive."""
    lr: float = 0.1
    """Learning rate at a global batch of `lr_batch_size`; used is lr * global batch / lr_batch_size. Positive."""
    lr_batch_size: int = 512
    """Samples per step that `lr` is meant for. Positive; 512 in AdaDistill."""
    schedule: Literal["step", "polynomial"] = "step"
    """How the rate falls after the warm-up: `step` at `milestones`, as AdaDistill's and AdaFace's; `polynomial` with
    every step, to 0 after the last, as insightface's."""
    milestones: tuple[int, ...] = ()
    """0-based epochs at whose start a `step` schedule multiplies the rate by `gamma`. Ascending, in (0, epochs)."""
    gamma: float = 0.1
    """Factor at each milestone. In (0, 1]."""
    power: float = 1.0
    """Of a `polynomial` schedule: the factor is (1 - share done of the steps after the warm-up)^power. Positive; 1, a
    straight line, is insightface's."""
    warmup_epochs: float = 0.0
    """Length W of the warm-up, stepped every iteration. 0 is off."""
    warmup: Literal["squared", "linear"] = "squared"
    """Shape of the warm-up: `squared` has the factor ((e + 1) / (W + 1))^2 at epoch e (fractional), as in the origin:
    with W = 1 it rises from a quarter of the rate to all of it. `linear` rises evenly from nothing, as insightface's,
    to all of it at the warm-up's last step."""
    momentum: float = 0.9
    """SGD momentum. In [0, 1)."""
    weight_decay: float = 5e-4
    """L2 penalty on the parameters that `decay` names. Not negative."""
    decay: Literal["all", "matrices"] = "all"
    """What decays: `all` parameters, batch norm and PReLU included, as in AdaDistill and insightface; or only the
    `matrices`, of two and more dimensions, and no norms, slopes and biases, as in CVLface."""
    clip_norm: float | None = 5.0
    """L2 norm to which the student's gradient is clipped; null is off. Positive."""
    backend: Literal["torch", "apex"] = "torch"
    """Implementation of the optimiser: torch's fused SGD, or FusedSGD of NVIDIA apex where that is installed (from its
    source; PyPI's apex is another package), on CUDA only. The same update."""

    def __post_init__(self) -> None:
        for name in ("epochs", "lr", "lr_batch_size", "power"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0.0 < self.gamma <= 1.0:
            raise ValueError(f"gamma must be in (0, 1], got {self.gamma}")
        if self.warmup_epochs < 0.0:
            raise ValueError(f"warmup_epochs must not be negative, got {self.warmup_epochs}")
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"momentum must be in [0, 1), got {self.momentum}")
        if self.weight_decay < 0.0:
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay}")
        if self.clip_norm is not None and self.clip_norm <= 0.0:
            raise ValueError(f"clip_norm must be positive or null, got {self.clip_norm}")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be {' or '.join(allowed)}, got {getattr(self, name)!r}")
        if self.schedule == "polynomial" and self.milestones:
            raise ValueError(
                f"milestones {list(self.milestones)} belong to schedule step, this one is polynomial; remove them ([])"
            )
        previous = 0
        for milestone in self.milestones:
            if milestone <= previous or milestone >= self.epochs:
                raise ValueError(f"milestones must ascend inside (0, {self.epochs}), got {list(self.milestones)}")
            previous = milestone


def learning_rate(config: OptimConfig, *, global_batch_size: int, epoch: int, step: int, steps_per_epoch: int) -> float:
    """Learning rate of one step.

    Args:
        epoch: 0-based epoch; `step`: 0-based step within it.

    Source: method 1.4 and 3.4 (scaling per 512 images, squared warm-up per step, drops at the start of epochs) and 9.1
    (linear warm-up, polynomial decay). Differs from insightface in the very first step, which has its full rate there.
    """
    rate = config.lr * global_batch_size / config.lr_batch_size
    done = epoch * steps_per_epoch + step
    if done < config.warmup_epochs * steps_per_epoch:
        rate *= _warm_up(config, done, steps_per_epoch)
    elif config.schedule == "polynomial":
        first = config.warmup_epochs * steps_per_epoch
        rate *= (1.0 - (done - first) / (config.epochs * steps_per_epoch - first)) ** config.power
    return rate * config.gamma ** sum(epoch >= milestone for milestone in config.milestones)


def _warm_up(config: OptimConfig, done: int, steps_per_epoch: int) -> float:
    if config.warmup == "linear":
        return min(1.0, (done + 1) / (config.warmup_epochs * steps_per_epoch))
    return ((done / steps_per_epoch + 1.0) / (config.warmup_epochs + 1.0)) ** 2


def build_optimiser(parameters: Iterable[nn.Parameter], config: OptimConfig) -> torch.optim.Optimizer:
    """SGD over all trainable parameters, momentum starting at zero.

    Zero momentum from the start equals the lazy start of both backends (the first buffer is the first gradient), and is
    finite even when the very first step is skipped.

    Raises:
        ApexError: the backend is apex, and it is not there, not NVIDIA's, or the parameters are not on CUDA.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    make = apex_sgd if config.backend == "apex" else partial(torch.optim.SGD, fused=True)
    optimiser: torch.optim.Optimizer = make(
        _decay_groups(trained, config), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimiser


def _decay_groups(parameters: list[nn.Parameter], config: OptimConfig) -> list[dict[str, Any]]:
    """Parameters by how they decay; one group where all do alike."""
    exempt = [p for p in parameters if config.decay == "matrices" and p.ndim < 2]
    kept = set(exempt)
    groups = [([p for p in parameters if p not in kept], config.weight_decay), (exempt, 0.0)]
    return [{"params": members, "weight_decay": decay} for members, decay in groups if members]


def step_where_finite(optimiser: torch.optim.Optimizer, *, lr: float, finite: Tensor) -> None:
    """One update at rate `lr`, done on the device only where `finite` (0-dim bool) holds; no host sync.

    With torch it uses the protocol between its gradient scaler and its fused optimisers: `found_inf` of 1 leaves
    parameters and momentum as they are.
    """
    for group in optimiser.param_groups:
        group["lr"] = lr
    if not isinstance(optimiser, torch.optim.SGD):
        step_apex_where_finite(optimiser, finite)
        return
    optimiser.grad_scale = None  # type: ignore[attr-defined]
    optimiser.found_inf = (~finite).to(torch.float32)  # type: ignore[attr-defined]
    optimiser.step()


def momentum_tensors(optimiser: torch.optim.Optimizer, names: dict[nn.Parameter, str]) -> dict[str, Tensor]:
    """Momentum buffers by parameter name, for a checkpoint."""
    return {
        names[p]: optimiser.state[p]["momentum_buffer"] for group in optimiser.param_groups for p in group["params"]
    }


def load_momentum(optimiser: torch.optim.Optimizer, names: dict[nn.Parameter, str], saved: dict[str, Tensor]) -> None:
    """Put saved momentum buffers back, strictly.

    Raises:
        ValueError: names or shapes differ from this optimiser's.
    """
    current = momentum_tensors(optimiser, names)
    if current.keys() != saved.keys():
        differing = sorted(current.keys() ^ saved.keys())
        raise ValueError(f"optimiser state does not fit, these momentum buffers are on one side only: {differing}")
    for name, buffer in current.items():
        if buffer.shape != saved[name].shape:
            raise ValueError(f"momentum of {name} is {tuple(saved[name].shape)}, expected {tuple(buffer.shape)}")
        buffer.copy_(saved[name])
