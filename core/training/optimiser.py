"""The student's optimiser and its learning rate as a function of the position in training.

SGD with momentum and weight decay, on every parameter unless told otherwise (as AdaDistill), by torch's fused
implementation or by NVIDIA apex; others as OPTIMISERS names them. All skip their update on the device where a step was
not finite, so that no host has to look (see `core/training/non_finite.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import torch
from torch import Tensor, nn

from adadistill.core.training.apex_sgd import apex_sgd, step_apex_where_finite

Groups: TypeAlias = list[dict[str, Any]]

_SHARES = (0.25, 0.5, 0.75)  # of a schedule that falls with every step: listed in its table


def step_by_found_inf(optimiser: torch.optim.Optimizer, finite: Tensor) -> None:
    """One update of a fused optimiser of torch where `finite` (0-dim bool) holds, by the protocol that torch's gradient
    scaler has with them: `found_inf` of 1 leaves parameters and state as they are."""
    optimiser.grad_scale = None  # type: ignore[attr-defined]
    optimiser.found_inf = (~finite).to(torch.float32)  # type: ignore[attr-defined]
    optimiser.step()


@torch.no_grad()
def step_or_undo(optimiser: torch.optim.Optimizer, finite: Tensor) -> None:
    """One update of any optimiser, undone where `finite` does not hold. Copies parameters and state every step."""
    held = [tensor for group in optimiser.param_groups for p in group["params"]
            for tensor in (p, *optimiser.state[p].values())]  # fmt: skip
    before = [tensor.clone() for tensor in held]
    optimiser.step()
    for tensor, old in zip(held, before, strict=True):
        tensor.copy_(torch.where(finite, tensor, old))


def _sgd(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    """Momentum of zero from the start equals the lazy start of both backends (the first buffer is the first gradient),
    and is finite even when the very first step is skipped."""
    make = apex_sgd if config.backend == "apex" else partial(torch.optim.SGD, fused=True)
    optimiser: torch.optim.Optimizer = make(
        groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimiser


def _step_sgd(optimiser: torch.optim.Optimizer, finite: Tensor) -> None:
    step = step_by_found_inf if isinstance(optimiser, torch.optim.SGD) else step_apex_where_finite
    step(optimiser, finite)


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimiser:
    """One registered kind of optimiser: how it is made, what it keeps, how a step of it is left out."""

    make: Callable[[Groups, OptimConfig], torch.optim.Optimizer]
    """From groups of parameters, each with its `weight_decay`. All of its state is there when it returns."""
    state: Mapping[str, str]
    """All that it keeps of a parameter, tensors alone: name in checkpoints -> key in `optimiser.state[parameter]`."""
    step: Callable[[torch.optim.Optimizer, Tensor], None] = step_or_undo
    """One update on the device where a 0-dim bool holds, which leaves parameters and state alone elsewhere."""


OPTIMISERS: Final[dict[str, Optimiser]] = {
    "sgd": Optimiser(make=_sgd, state={"momentum": "momentum_buffer"}, step=_step_sgd),
}
"""Every kind by the name that recipes give it; docs/extending.md adds one."""

if TYPE_CHECKING:
    OptimiserName: TypeAlias = str
else:
    OptimiserName = Literal[tuple(OPTIMISERS)]

_CHOICES = {
    "schedule": ("step", "polynomial"),
    "warmup": ("squared", "linear"),
    "decay": ("all", "matrices"),
    "backend": ("torch", "apex"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """Optimiser, learning-rate schedule and length of training."""

    kind: OptimiserName = "sgd"
    """Which optimiser."""
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
        if self.kind not in OPTIMISERS:
            raise ValueError(f"kind must be one of {', '.join(OPTIMISERS)}, got {self.kind!r}")
        if self.backend != "torch" and self.kind != "sgd":
            raise ValueError(f"backend {self.backend} is for kind sgd, got {self.kind}; set backend: torch")
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

    Source: AdaDistill and the origin (scaling per 512 images, squared warm-up per step, drops at the start of epochs),
    insightface (linear warm-up, polynomial decay), whose very first step has its full rate, as it has not here.
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


@dataclass(frozen=True, slots=True)
class RatePoint:
    """The rate of one step."""

    epoch: int
    """From 0."""
    step: int
    """From 0, within the epoch."""
    rate: float
    what: str
    """Why this step is listed."""


def rate_table(config: OptimConfig, *, global_batch_size: int, steps_per_epoch: int) -> list[RatePoint]:
    """The steps at which the rate begins, ends or turns, in their order; of a polynomial schedule a few more."""
    total = config.epochs * steps_per_epoch
    warmup = min(total, math.ceil(config.warmup_epochs * steps_per_epoch))
    named: dict[int, list[str]] = {}

    def name(step: int, what: str) -> None:
        if 0 <= step < total:
            named.setdefault(step, []).append(what)

    name(0, "first step" if warmup == 0 else f"first step of the warm-up ({config.warmup})")
    if warmup:
        name(warmup - 1, "last step of the warm-up")
        name(warmup, "after the warm-up")
    for milestone in config.milestones:
        name(milestone * steps_per_epoch, f"milestone: times {config.gamma:g}")
    if config.schedule == "polynomial":
        for share in _SHARES:
            name(warmup + round(share * (total - warmup)), f"{share:.0%} of the decay (polynomial, {config.power:g})")
    name(total - 1, "last step")
    return [
        RatePoint(
            step // steps_per_epoch,
            step % steps_per_epoch,
            learning_rate(
                config,
                global_batch_size=global_batch_size,
                epoch=step // steps_per_epoch,
                step=step % steps_per_epoch,
                steps_per_epoch=steps_per_epoch,
            ),
            "; ".join(named[step]),
        )
        for step in sorted(named)
    ]


def build_optimiser(parameters: Iterable[nn.Parameter], config: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser of a config over all trainable parameters, its state made, after a trial of its kind.

    Raises:
        LaunchError: the backend is apex, and it is not there, not NVIDIA's, or the parameters are not on CUDA.
        ValueError: the kind keeps other state than it declares, or keeps part of a step that was not finite.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if config.backend == "torch":  # apex has a trial of its own
        _try_kind(config, trained[0].device if trained else torch.device("cpu"))
    return OPTIMISERS[config.kind].make(_decay_groups(trained, config), config)


def _try_kind(config: OptimConfig, device: torch.device) -> None:
    """Train two numbers: what is not declared would be lost in a resume, what is not undone would stay broken."""
    parameter = nn.Parameter(torch.tensor([[1.0], [-2.0]], device=device))
    optimiser = OPTIMISERS[config.kind].make(_decay_groups([parameter], config), config)
    seen: list[list[Tensor]] = []
    settings: list[list[Any]] = []
    for gradient in (None, 1.0, torch.nan):
        if gradient is not None:
            parameter.grad = torch.full_like(parameter, gradient)
            step_where_finite(optimiser, config, lr=config.lr, finite=torch.tensor(gradient == 1.0, device=device))
        held = state_tensors(optimiser, config, {parameter: "trial"})
        seen.append([parameter.detach().clone(), *(by_name["trial"].clone() for by_name in held.values())])
        settings.append([group[key] for group in optimiser.param_groups for key in sorted(group) if key != "params"])
    if not settings[0] == settings[1] == settings[2]:
        raise ValueError(f"optimiser {config.kind} keeps numbers in param_groups, which checkpoints do not hold")
    if torch.equal(seen[0][0], seen[1][0]):
        raise ValueError(f"optimiser {config.kind} leaves a parameter with a gradient as it is")
    if not all(map(torch.equal, seen[1], seen[2])):
        raise ValueError(f"optimiser {config.kind} keeps something of a step that is not finite; see Optimiser.step")


def _decay_groups(parameters: list[nn.Parameter], config: OptimConfig) -> list[dict[str, Any]]:
    """Parameters by how they decay; one group where all do alike."""
    exempt = [p for p in parameters if config.decay == "matrices" and p.ndim < 2]
    kept = set(exempt)
    groups = [([p for p in parameters if p not in kept], config.weight_decay), (exempt, 0.0)]
    return [{"params": members, "weight_decay": decay} for members, decay in groups if members]


def step_where_finite(optimiser: torch.optim.Optimizer, config: OptimConfig, *, lr: float, finite: Tensor) -> None:
    """One update at rate `lr`, done on the device only where `finite` (0-dim bool) holds; no host sync."""
    for group in optimiser.param_groups:
        group["lr"] = lr
    OPTIMISERS[config.kind].step(optimiser, finite)


def state_tensors(
    optimiser: torch.optim.Optimizer, config: OptimConfig, names: dict[nn.Parameter, str]
) -> dict[str, dict[str, Tensor]]:
    """Everything the optimiser keeps, for a checkpoint: by the part's name there, then by parameter name.

    Raises:
        ValueError: it keeps something else than its kind declares.
    """
    parts = OPTIMISERS[config.kind].state
    held: dict[str, dict[str, Tensor]] = {part: {} for part in parts}
    for p in (p for group in optimiser.param_groups for p in group["params"]):
        kept = optimiser.state[p]
        if kept.keys() != set(parts.values()) or not all(isinstance(value, Tensor) for value in kept.values()):
            found = {key: type(value).__name__ for key, value in kept.items()}
            raise ValueError(f"optimiser {config.kind} declares the tensors {sorted(parts.values())}, it keeps {found}")
        for part, key in parts.items():
            held[part][names[p]] = kept[key]
    return held


def parts_like_parameters(config: OptimConfig) -> tuple[str, ...]:
    """Names of those parts of the state that are as large as the parameters."""
    parameter = nn.Parameter(torch.zeros(2, 3))
    config = replace(config, backend="torch")
    held = state_tensors(build_optimiser([parameter], config), config, {parameter: "any"})
    return tuple(part for part, by_name in held.items() if by_name["any"].shape == parameter.shape)


def load_state(
    optimiser: torch.optim.Optimizer,
    config: OptimConfig,
    names: dict[nn.Parameter, str],
    saved: Mapping[str, Mapping[str, Tensor]],
) -> None:
    """Put saved state back, strictly; `saved` as of `state_tensors`.

    Raises:
        ValueError: names or shapes differ from this optimiser's.
    """
    for part, current in state_tensors(optimiser, config, names).items():
        found = saved.get(part, {})
        if current.keys() != found.keys():
            differing = sorted(current.keys() ^ found.keys())
            raise ValueError(f"optimiser state does not fit, {part} of these is on one side only: {differing}")
        for name, tensor in current.items():
            if tensor.shape != found[name].shape:
                raise ValueError(f"{part} of {name} is {tuple(found[name].shape)}, expected {tuple(tensor.shape)}")
            tensor.copy_(found[name])
