"""One step on each kind of device: eager, compiled and in bfloat16 it minimises the same loss."""

from __future__ import annotations

import math

import pytest
import torch
from sync_watch import HostWaitsError, NoHostWait
from term_cases import regression_terms

from adadistill.bench.step import build_step
from adadistill.core.distributed import Ranks
from adadistill.core.method.class_centres import CentresConfig, TrainableCentres, initial_centres
from adadistill.core.method.classification import ClassificationObjective
from adadistill.core.method.heads import HeadConfig
from adadistill.core.method.norm_statistics import NormStatistics
from adadistill.core.method.terms.sum import NO_TERMS, TermSum
from adadistill.core.training.training_step import TrainingStep
from adadistill.loaders.batch import Batch

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
        ],
    ),
]


def _first_losses(device: str, *, precision: str = "float32", compiled: bool = False, steps: int = 3) -> list[float]:
    step, batch = build_step(
        arch="mobilefacenet", width=0.25, image_size=32, batch_size=16, identities=50, precision=precision,
        device=torch.device(device), compile_student="default" if compiled else "off",
    )  # fmt: skip
    losses = []
    for number in range(steps):
        out = step.run(batch, lr=0.02, fractional_epoch=2.0, global_step=number, stop=False)
        losses.append(out.metrics["loss"].item())
    return losses


@pytest.mark.parametrize("device", DEVICES)
def test_steps_on_one_batch_lower_its_loss(device: str):
    losses = _first_losses(device, steps=6)
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("device", DEVICES)
def test_bfloat16_starts_at_the_loss_of_float32(device: str):
    # The embeddings are off by 2^-8 a layer, margins and softmax by nothing: a few per cent of a loss near 30.
    exact, rounded = _first_losses(device, steps=1)[0], _first_losses(device, precision="bfloat16", steps=1)[0]
    assert rounded == pytest.approx(exact, rel=0.03)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_no_operator_of_a_step_waits_for_the_device(device: str, precision: str):
    step, batch = build_step(
        arch="mobilefacenet", width=0.25, image_size=32, batch_size=16, identities=50, precision=precision,
        device=torch.device(device),
    )  # fmt: skip
    for number in range(2):
        with NoHostWait():
            step.run(batch, lr=0.02, fractional_epoch=2.0, global_step=number, stop=False)


@pytest.mark.parametrize(
    ("head", "options"),
    [
        (HeadConfig(kind="arcface", margin=0.5), {}),
        (HeadConfig(kind="adaface"), {"teacher": True, "terms": regression_terms(5.0)}),
    ],
    ids=["arcface", "adaface and regression"],
)
def test_nor_does_one_with_trained_centres(head: HeadConfig, options: dict):
    step, batch = _classification_step(head, **options)
    with NoHostWait():
        step.run(batch, lr=0.02, fractional_epoch=2.0, global_step=0, stop=False)


@pytest.mark.parametrize("wait", ["item", "mask", "nonzero", "if"])
def test_a_step_that_waits_is_found(wait: str):
    step, batch = _classification_step(HeadConfig(kind="cosface"))
    plain = step.objective.commit_

    def commit_(finite: torch.Tensor) -> None:
        ways = {
            "item": lambda: finite.item(),
            "mask": lambda: batch.labels[batch.labels > 3],
            "nonzero": lambda: batch.labels.nonzero(),
            "if": lambda: 1 if finite else 0,
        }
        ways[wait]()
        plain(finite)

    step.objective.commit_ = commit_
    with pytest.raises(HostWaitsError), NoHostWait():
        step.run(batch, lr=0.02, fractional_epoch=2.0, global_step=0, stop=False)


def _classification_step(
    head: HeadConfig, *, teacher: bool = False, terms: TermSum = NO_TERMS
) -> tuple[TrainingStep, Batch]:
    """As `build_step`, with centres that are trained."""
    step, batch = build_step(
        arch="mobilefacenet", width=0.25, image_size=32, batch_size=16, identities=50, precision="float32",
        device=torch.device("cpu"),
    )  # fmt: skip
    centres = initial_centres(50, 512, generator=torch.Generator().manual_seed(0))
    objective = ClassificationObjective(
        head=head,
        centres=TrainableCentres(CentresConfig(kind="trainable"), centres),
        statistics=NormStatistics.start(),
        ranks=Ranks(),
        teacher=step.objective.teacher if teacher else None,
        terms=terms,
    )
    trained = TrainingStep(
        student=step.student, objective=objective, optim=step.optim, guard=step.guard, precision=step._precision,
        ranks=Ranks(),
    )  # fmt: skip
    return trained, batch


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_compiled_student_takes_the_same_steps(precision: str):
    eager = _first_losses("cuda", precision=precision)
    compiled = _first_losses("cuda", precision=precision, compiled=True)
    assert compiled == pytest.approx(eager, rel=1e-3 if precision == "float32" else 0.03)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_step_does_not_make_the_host_wait():
    step, batch = build_step(
        arch="mobilefacenet", width=0.25, image_size=32, batch_size=16, identities=50, precision="bfloat16",
        device=torch.device("cuda"),
    )  # fmt: skip
    for _ in range(2):
        step.run(batch, lr=0.02, fractional_epoch=2.0, global_step=0, stop=False)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step.run(batch, lr=0.02, fractional_epoch=2.0, global_step=0, stop=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_cpu_and_the_gpu_agree_on_the_first_losses():
    assert _first_losses("cuda") == pytest.approx(_first_losses("cpu"), rel=2e-3)


def test_a_student_without_batch_norm_trains_too():
    from tiny_training import PlainStudent

    step, batch = build_step(
        arch="mobilefacenet", width=0.25, image_size=32, batch_size=16, identities=50, precision="float32",
        device=torch.device("cpu"),
    )  # fmt: skip
    plain = type(step)(
        student=PlainStudent(512), objective=step.objective, optim=step.optim, guard=step.guard,
        precision=step._precision, ranks=step._ranks,
    )  # fmt: skip
    out = plain.run(batch, lr=0.02, fractional_epoch=2.0, global_step=0, stop=False)
    assert math.isfinite(out.metrics["loss"].item())
    assert out.signals.tolist() == [0, -1, 0]
