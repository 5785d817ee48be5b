"""The combined margin: its numbers through the softmax by hand, and where a second margin is refused."""

from __future__ import annotations

import math

import pytest
import torch

from adadistill.core.method.heads import HeadConfig, margins
from adadistill.kernels.margin_softmax import margin_logits_reference


def test_the_target_is_the_cosine_of_the_widened_angle_less_the_additive_part():
    head = HeadConfig(kind="combined", margin=0.3, additive_margin=0.2, logit_scale=10.0)
    margin = margins(head, torch.tensor([20.0], dtype=torch.float64))
    student = torch.tensor([[math.cos(1.0), math.sin(1.0)]], dtype=torch.float64)
    logits = margin_logits_reference(
        student, torch.eye(2, dtype=torch.float64), torch.tensor([0]), margin.angular, margin.additive,
        logit_scale=10.0, cosine_limit=1.0, angle_limits=None, margin_grad="exact",
    )  # fmt: skip
    assert logits[0].tolist() == pytest.approx([10 * (math.cos(1.3) - 0.2), 10 * math.sin(1.0)], rel=1e-12)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [({"kind": "arcface", "additive_margin": 0.1}, "for a head with two margins, got it with arcface"),
     ({"kind": "combined", "additive_margin": -0.1}, r"additive_margin must be in \[0, 1\), got -0.1"),
     ({"kind": "combined", "filter_above": 1.5}, r"filter_above must be in \(0, 1\] or left out, got 1.5")],
)  # fmt: skip
def test_numbers_that_fit_no_head_are_refused(numbers: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        HeadConfig(**numbers)
