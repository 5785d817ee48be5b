"""Heads, centres, statistics and gradients against the public implementations, in float64.

Cases are found by listing the folder; the head's configuration follows from the file name as its README says, every
count from the arrays. Both forms of the loss must agree, the chunked one with several chunk sizes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_heads import TRAINED, prepared_steps
from tests_support import golden_files
from torch import Tensor

from adadistill.kernels.margin_softmax import MarginSoftmax, margin_softmax, margin_softmax_reference

RELATIVE = 1e-9

FORMS: dict[str, Callable[..., MarginSoftmax]] = {
    "dense": margin_softmax_reference,
    "chunked": margin_softmax,
    **{f"chunks of {n}": functools.partial(margin_softmax, chunk_classes=n) for n in (1, 7, 16, 1000)},
}
# Their own clamps of 1e-4 differ from the heads we ship.
LOOSER = {"trainable_adaface_repo_arcface": 1e-6, "trainable_adaface_repo_cosface": 1e-6}


def assert_agrees(
    what: str, actual: Tensor, expected: Tensor, relative: float = RELATIVE, floor: Tensor | float = 1e-15
) -> None:
    """Relative to the largest value of each row, so that short rows are held to their own size, down to `floor`."""
    wanted = expected
    assert bool(torch.isfinite(actual).all()), what
    size = wanted.abs()
    size = size.amax(-1, keepdim=True) if wanted.ndim > 1 else size
    excess = ((actual - wanted).abs() / (relative * size + floor)).max().item()
    assert excess <= 1.0, f"{what} is off by {excess:.2e} times what {relative:.0e} relative allows"


def gradient_floor(rows: Tensor, batch: int) -> Tensor:
    """What rounding p_y - 1 in float64 does to the public gradient of each row: s / (B |row|) times a few hundred ulp.

    It shows where a sample is learnt so well that hardly any gradient is left.
    """
    return 64.0 / (batch * torch.linalg.vector_norm(rows.detach(), dim=1, keepdim=True)) * 1e-13


def name_of(path: Path) -> str:
    return path.stem


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("adadistill_*.npz"), ids=name_of)
def test_adaptive_steps_agree_with_the_origin(path):
    steps = 0
    for i, (step, case) in enumerate(prepared_steps(path)):
        assert step.centre_step is not None
        for form, softmax in FORMS.items():
            loss, (student_grad,) = step.gradients(softmax)
            assert_agrees(f"step {i}, {form}: loss", loss, case["loss"])
            floor = gradient_floor(step.student, len(step.labels))
            assert_agrees(f"step {i}, {form}: student_grad", student_grad, case["student_grad"], floor=floor)
        assert_agrees(f"step {i}: logits", step.logits(), case["logits"])
        assert_agrees(f"step {i}: centres", step.centres.class_centres, case["centres"])
        assert_agrees(f"step {i}: confidence", step.centre_step.confidence.mean(), case["confidence_mean"])
        assert_agrees(f"step {i}: cosine", step.cosine.mean(), case["student_teacher_cosine_mean"])
        if step.head.kind == "adaface":
            assert_agrees(f"step {i}: third", step.margin.scaler.mean(), case["third"])
            assert_agrees(f"step {i}: norm_mean", step.statistics.mean, case["norm_mean"])
            assert_agrees(f"step {i}: norm_std", step.statistics.std, case["norm_std"])
        else:
            assert_agrees(f"step {i}: third", step.centre_step.momentum.mean(), case["third"])
        steps += 1
    assert steps == len(np.load(path, allow_pickle=False)["loss"])


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("trainable_*.npz"), ids=name_of)
def test_trained_centres_agree_with_the_public_heads(path):
    assert path.stem in TRAINED, f"no configuration is known for {path.name}"
    ((step, case),) = prepared_steps(path)
    relative = LOOSER.get(path.stem, RELATIVE)
    batch = len(step.labels)
    for form, softmax in FORMS.items():
        loss, (student_grad, centres_grad) = step.gradients(softmax)
        assert_agrees(f"{form}: loss", loss, case["loss"], relative)
        floor = gradient_floor(step.student, batch)
        assert_agrees(f"{form}: student_grad", student_grad, case["student_grad"], relative, floor)
        floor = gradient_floor(case["centres"], batch)
        assert_agrees(f"{form}: centres_grad", centres_grad, case["centres_grad"], relative, floor)
    assert_agrees("logits", step.logits(), case["logits"], relative)
