"""Heads, centres, statistics and gradients against the public implementations, in float64.

Cases are found by listing the folder; the head's configuration follows from the file name as its README says, every
count from the arrays. Both forms of the loss must agree, the chunked one with several chunk sizes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from head_step import prepare_step
from tests_support import golden_files
from torch import Tensor

from adadistill.core.class_centres import AdaptiveCentres, CentresConfig, TrainableCentres
from adadistill.core.geometry_margin import GeometryMarginConfig
from adadistill.core.heads import HeadConfig
from adadistill.core.norm_statistics import NormStatistics
from adadistill.kernels.margin_softmax import MarginSoftmax, margin_softmax, margin_softmax_reference

RELATIVE = 1e-9

FORMS: dict[str, Callable[..., MarginSoftmax]] = {
    "dense": margin_softmax_reference,
    "chunked": margin_softmax,
    **{f"chunks of {n}": functools.partial(margin_softmax, chunk_classes=n) for n in (1, 7, 16, 1000)},
}
MARGINS = {"arcface": 0.45, "cosface": 0.35, "adaface": 0.4}
TRAINED = {
    "trainable_adaface": HeadConfig(kind="adaface", margin=0.4),
    "trainable_adaface_repo_arcface": HeadConfig(kind="arcface", margin=0.5),
    "trainable_adaface_repo_cosface": HeadConfig(kind="cosface", margin=0.4),
    "trainable_insightface_arcface_straight_through": HeadConfig(
        kind="arcface", margin=0.5, margin_grad="straight_through"
    ),
    "trainable_insightface_cosface": HeadConfig(kind="cosface", margin=0.4),
}
# Their own clamps of 1e-4 differ from the heads we ship.
LOOSER = {"trainable_adaface_repo_arcface": 1e-6, "trainable_adaface_repo_cosface": 1e-6}

# adadistill_<head>[_unweighted][_geometry[_static | _k<scale>_w<weight>_warm<epochs>]][_warm]
NAME = re.compile(
    r"adadistill_(?P<head>arcface|cosface|adaface)(?P<unweighted>_unweighted)?"
    r"(?P<geometry>_geometry(?:(?P<static>_static)|_k(?P<scale>\d+)_w(?P<weight>\d+)_warm(?P<epochs>\d+))?)?(?:_warm)?"
)


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array))


def assert_agrees(
    what: str, actual: Tensor, expected: np.ndarray, relative: float = RELATIVE, floor: Tensor | float = 1e-15
) -> None:
    """Relative to the largest value of each row, so that short rows are held to their own size, down to `floor`."""
    wanted = tensor(expected)
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


def number(digits: str) -> float:
    """A file name's number: a leading zero stands for `0.`, so `02` is 0.2 and `3` is 3."""
    return float(f"0.{digits[1:]}" if digits.startswith("0") and len(digits) > 1 else digits)


def geometry_of(name: re.Match[str]) -> GeometryMarginConfig:
    if name["static"]:
        return GeometryMarginConfig(mode="static", weight=0.2, scale=1.0, mask=0.8, baseline=0.25, warmup_epochs=1.0)
    if name["scale"]:
        return GeometryMarginConfig(
            mode="adaptive",
            weight=number(name["weight"]),
            scale=number(name["scale"]),
            warmup_epochs=number(name["epochs"]),
        )
    mode = "adaptive" if name["geometry"] else "off"
    return GeometryMarginConfig(mode=mode, weight=1.0, scale=3.0, warmup_epochs=1.0)


def name_of(path: Path) -> str:
    return path.stem


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("adadistill_*.npz"), ids=name_of)
def test_adaptive_steps_agree_with_the_origin(path):
    name = NAME.fullmatch(path.stem)
    assert name, f"no configuration is known for {path.name}"
    case = np.load(path, allow_pickle=False)
    head = HeadConfig(kind=name["head"], margin=MARGINS[name["head"]])
    momentum = "unweighted" if name["unweighted"] else "weighted"
    centres = AdaptiveCentres(CentresConfig(momentum=momentum), tensor(case["centres_before"]))
    statistics = NormStatistics(tensor(case["norm_mean_before"]), tensor(case["norm_std_before"]))
    geometry = geometry_of(name)

    for i in range(len(case["loss"])):
        step = prepare_step(
            head,
            centres,
            statistics,
            tensor(case["student"][i]),
            tensor(case["labels"][i]),
            teacher=tensor(case["teacher"][i]),
            geometry=geometry,
            epoch=float(case["epoch"][i]),
        )
        assert step.centre_step is not None
        for form, softmax in FORMS.items():
            loss, (student_grad,) = step.gradients(softmax)
            assert_agrees(f"step {i}, {form}: loss", loss, case["loss"][i])
            floor = gradient_floor(step.student, len(step.labels))
            assert_agrees(f"step {i}, {form}: student_grad", student_grad, case["student_grad"][i], floor=floor)
        assert_agrees(f"step {i}: logits", step.logits(), case["logits"][i])
        assert_agrees(f"step {i}: centres", centres.class_centres, case["centres"][i])
        assert_agrees(f"step {i}: confidence", step.centre_step.confidence.mean(), case["confidence_mean"][i])
        assert_agrees(f"step {i}: cosine", step.cosine.mean(), case["student_teacher_cosine_mean"][i])
        if head.kind == "adaface":
            assert_agrees(f"step {i}: third", step.margin.scaler.mean(), case["third"][i])
            assert_agrees(f"step {i}: norm_mean", step.statistics.mean, case["norm_mean"][i])
            assert_agrees(f"step {i}: norm_std", step.statistics.std, case["norm_std"][i])
            statistics = step.statistics
        else:
            assert_agrees(f"step {i}: third", step.centre_step.momentum.mean(), case["third"][i])
        step.centre_step.commit_(torch.tensor(True))


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files("trainable_*.npz"), ids=name_of)
def test_trained_centres_agree_with_the_public_heads(path):
    assert path.stem in TRAINED, f"no configuration is known for {path.name}"
    case = np.load(path, allow_pickle=False)
    relative = LOOSER.get(path.stem, RELATIVE)
    step = prepare_step(
        TRAINED[path.stem],
        TrainableCentres(CentresConfig(kind="trainable"), tensor(case["centres"])),
        NormStatistics.start(dtype=torch.float64),
        tensor(case["student"]),
        tensor(case["labels"]),
    )

    batch = len(step.labels)
    for form, softmax in FORMS.items():
        loss, (student_grad, centres_grad) = step.gradients(softmax)
        assert_agrees(f"{form}: loss", loss, case["loss"], relative)
        floor = gradient_floor(step.student, batch)
        assert_agrees(f"{form}: student_grad", student_grad, case["student_grad"], relative, floor)
        floor = gradient_floor(tensor(case["centres"]), batch)
        assert_agrees(f"{form}: centres_grad", centres_grad, case["centres_grad"], relative, floor)
    assert_agrees("logits", step.logits(), case["logits"], relative)
