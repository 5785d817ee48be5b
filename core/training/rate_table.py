"""Where the learning rate changes in a run: the steps worth a line, with the rate that training would use there."""

from __future__ import annotations

import math
from dataclasses import dataclass

from adadistill.core.training.optimiser import OptimConfig, learning_rate

_SHARES = (0.25, 0.5, 0.75)  # of a schedule that falls with every step


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
