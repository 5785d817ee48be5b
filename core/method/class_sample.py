"""Sampled classes: a step compares with the identities of its images and a random share of all others (Partial FC).

The softmax over a tenth of the classes makes a tenth of the products, and a person under two labels is seldom compared
with herself; what either is worth is not measured here. Which classes a step draws is a function of (seed, epoch,
step), so that a run which goes on draws what it would have drawn. Centres that were not drawn get no gradient in the
step; momentum and decay go on.

Source    Partial FC, arXiv:2203.15565; the softmax is not corrected for the share, as there
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from adadistill.core.seeding import derive_seed


@dataclass(frozen=True, slots=True)
class ClassSample:
    """The classes of one step."""

    classes: Tensor
    """(n,) int64, different classes; every label of the global batch that lies in the range is among them."""
    place: Tensor
    """(C,) int64: where a class stands in `classes`, n for those that were not drawn."""

    def places(self, labels: Tensor) -> Tensor:
        """(B,) places of labels, -1 of ignored ones."""
        return torch.where(labels >= 0, self.place[labels.clamp(min=0)], -1)


class ClassSampler:
    """Draws the classes of a step.

    Args:
        rate: share of the classes; below 1.
        num_classes: C.
        rows: the range [first, end) to draw from; a rank's own rows where centres are sharded.
    """

    def __init__(self, rate: float, seed: int, num_classes: int, rows: tuple[int, int], device: torch.device) -> None:
        self._first, end = rows
        self._seed, self._num_classes, self._rows, self._device = seed, num_classes, end - self._first, device
        self._count = drawn_classes(rate, self._rows)
        self._generator = torch.Generator(device)

    def draw(self, global_labels: Tensor, *, epoch: int, step: int) -> ClassSample:
        """The sample of a step, without waiting for the device.

        Args:
            global_labels: (G,) int64; -1 ignores. There must be no more of them than classes are drawn, see
                `sample_problem`.
        """
        seed = derive_seed(self._seed, f"class_sample/{step}", rank=self._first, epoch=epoch)
        chance = torch.rand(self._rows, generator=self._generator.manual_seed(seed), device=self._device)
        own = global_labels - self._first
        here = (global_labels >= 0) & (own >= 0) & (own < self._rows)
        # One more slot takes the labels that are not here.
        marked = torch.cat([chance, chance.new_zeros(1)]).index_fill_(0, torch.where(here, own, self._rows), 2.0)
        classes = marked[: self._rows].topk(self._count, sorted=False).indices
        place = torch.full((self._num_classes,), self._count, dtype=torch.int64, device=self._device)
        place[self._first + classes] = torch.arange(self._count, device=self._device)
        return ClassSample(classes, place)


def drawn_classes(rate: float, rows: int) -> int:
    """How many of so many classes a step draws."""
    return min(rows, math.ceil(rate * rows))


def sample_problem(rate: float, rows: int, global_batch_size: int) -> str | None:
    """Why a step could draw too few classes for the identities of its images; None where it cannot."""
    drawn, needed = drawn_classes(rate, rows), min(rows, global_batch_size)
    if drawn >= needed:
        return None
    return (
        f"centres.sample_rate {rate:g} draws {drawn} of {rows} identities a step, fewer than the {global_batch_size} "
        f"images of a batch may show; set it to at least {math.ceil(1e4 * needed / rows) / 1e4:g}, or to 1"
    )
