"""Cases of margin_softmax, shared by its tests and by the process that runs Triton's interpreter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from adadistill.kernels.margin_softmax import MarginSoftmax

ADAFACE = {
    "logit_scale": 64.0,
    "cosine_limit": 1 - 1e-3,
    "angle_limits": (1e-3, math.pi - 1e-3),
    "margin_grad": "exact",
}
ARCFACE = {"logit_scale": 64.0, "cosine_limit": 1.0, "angle_limits": None, "margin_grad": "exact"}
INSIGHTFACE = {**ARCFACE, "margin_grad": "straight_through"}


@dataclass(frozen=True)
class Case:
    embeddings: Tensor
    centres: Tensor
    labels: Tensor
    angular: Tensor
    additive: Tensor

    def __iter__(self) -> Any:
        return iter((self.embeddings, self.centres, self.labels, self.angular, self.additive))

    def to(self, dtype: torch.dtype, device: str = "cpu") -> Case:
        floats = [t.to(dtype).to(device) for t in (self.embeddings, self.centres, self.angular, self.additive)]
        return Case(floats[0], floats[1], self.labels.to(device), floats[2], floats[3])


def make_case(batch: int, classes: int, dim: int = 8, *, seed: int = 0, special: bool = False) -> Case:
    """Random float64 case; `special` puts rows on their centre, opposite, near it and on another's; ignores one."""
    draw = torch.Generator().manual_seed(seed)
    centres = normalize(torch.randn(classes, dim, generator=draw, dtype=torch.float64))
    labels = torch.randint(0, classes, (batch,), generator=draw)
    embeddings = torch.randn(batch, dim, generator=draw, dtype=torch.float64) * 0.4
    embeddings = normalize(embeddings + centres[labels])
    if special:
        embeddings[0] = centres[labels[0]]
        embeddings[1] = -centres[labels[1]]
        # A hair short: whether a product of unit rows comes out as 1, which passes a limit of 1, or as a unit more,
        # which does not, depends on how many columns the product has.
        embeddings[2] = centres[(labels[2] + 1) % classes] * (1.0 - 1e-12)
        embeddings[3] = normalize(centres[labels[3]] + 1e-4 * embeddings[3], dim=0)
        labels[4] = -1
        labels[6] = labels[5]
    scaler = torch.rand(batch, generator=draw, dtype=torch.float64) * 2 - 1
    return Case(embeddings, centres, labels, -0.4 * scaler, 0.4 * (1 + scaler))


def gradients(softmax: Any, case: Case, *, trained: bool = False, **options: Any) -> tuple[MarginSoftmax, list[Tensor]]:
    """Result, and gradients of an unevenly weighted loss, so that each row's factor is seen."""
    embeddings = case.embeddings.clone().requires_grad_()
    centres = case.centres.clone().requires_grad_(trained)
    result = softmax(embeddings, centres, case.labels, case.angular, case.additive, **options)
    weights = torch.linspace(0.5, 1.5, len(case.labels), dtype=result.loss.dtype, device=result.loss.device)
    wanted = [embeddings, centres] if trained else [embeddings]
    return result, list(torch.autograd.grad((weights * result.loss).sum(), wanted))


def assert_close(actual: Tensor, expected: Tensor, relative: float = 1e-11) -> None:
    bound = relative * max(1.0, expected.abs().max().item() if expected.numel() else 0.0)
    torch.testing.assert_close(actual, expected, rtol=relative, atol=bound)
