"""Sampled classes: who is drawn, that the softmax is that of the drawn alone, and that shards draw their own."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from adadistill.core.method.centre_softmax import class_softmax
from adadistill.core.method.class_sample import ClassSampler, drawn_classes, sample_problem
from adadistill.core.method.heads import HeadConfig, margins
from adadistill.kernels.margin_softmax import ClassShard

CPU = torch.device("cpu")
LABELS = torch.tensor([3, 41, 3, -1, 17])


def _sampler(rate: float = 0.2, rows: tuple[int, int] = (0, 50)) -> ClassSampler:
    return ClassSampler(rate, 7, 50, rows, CPU)


def test_every_label_is_drawn_once_the_rest_at_random_and_by_the_step_alone():
    sampler = _sampler()
    drawn = [sampler.draw(LABELS, epoch=1, step=step) for step in (0, 1, 0)]
    for sample in drawn:
        assert sample.classes.unique().numel() == len(sample.classes) == 10
        assert {3, 17, 41} <= set(sample.classes.tolist())
        assert torch.equal(sample.classes[sample.places(LABELS)[[0, 1, 2, 4]]], LABELS[[0, 1, 2, 4]])
        assert sample.places(LABELS)[3] == -1
    assert torch.equal(drawn[0].classes, _sampler().draw(LABELS, epoch=1, step=0).classes)
    assert torch.equal(drawn[0].classes, drawn[2].classes)
    assert set(drawn[0].classes.tolist()) != set(drawn[1].classes.tolist())


def test_over_many_steps_all_others_are_drawn_alike():
    sampler, times = _sampler(), torch.zeros(50)
    for step in range(2000):
        times[sampler.draw(LABELS, epoch=0, step=step).classes] += 1
    others = times[[label for label in range(50) if label not in (3, 17, 41)]] / 2000
    assert times[[3, 17, 41]].tolist() == [2000.0] * 3
    assert float((others - 7 / 47).abs().max()) < 0.035  # four standard deviations


def test_the_softmax_is_that_of_the_drawn_classes_with_its_gradient():
    draw = torch.Generator().manual_seed(0)
    embeddings = normalize(torch.randn(5, 8, generator=draw, dtype=torch.float64)).requires_grad_()
    centres = normalize(torch.randn(50, 8, generator=draw, dtype=torch.float64))
    head, sample = HeadConfig(kind="cosface", margin=0.3, logit_scale=16.0), _sampler().draw(LABELS, epoch=0, step=0)
    margin = margins(head, torch.ones(5, dtype=torch.float64))
    found = class_softmax(head, centres, embeddings, LABELS, margin, sample=sample).loss
    kept = [0, 1, 2, 4]
    logits = embeddings[kept] @ centres[sample.classes].T
    columns = sample.places(LABELS)[kept]
    logits = 16.0 * (logits - 0.3 * torch.nn.functional.one_hot(columns, len(sample.classes)))
    expected = cross_entropy(logits, columns, reduction="none")
    torch.testing.assert_close(found[kept], expected)
    gradients = [torch.autograd.grad(loss.sum(), embeddings, retain_graph=True)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_shards_draw_from_their_own_rows_and_know_no_others():
    samples = [_sampler(rows=rows).draw(LABELS, epoch=0, step=0) for rows in ((0, 25), (25, 50))]
    assert [len(sample.classes) for sample in samples] == [5, 5]
    assert samples[0].places(LABELS)[1] == 5, "a label of the other shard stands behind all drawn classes"
    draw = torch.Generator().manual_seed(1)
    embeddings = normalize(torch.randn(5, 8, generator=draw, dtype=torch.float64))
    centres = normalize(torch.randn(50, 8, generator=draw, dtype=torch.float64))
    head = HeadConfig(kind="cosface", margin=0.3, logit_scale=16.0)
    margin = margins(head, torch.ones(5, dtype=torch.float64))
    # What the two ranks would add up, each with the target where it has it.
    partial = []
    for sample, first in zip(samples, (0, 25), strict=True):
        kept: list[torch.Tensor] = []
        shard = ClassShard(0, 50, lambda tensor, how, kept=kept: kept.append(tensor) or tensor)
        class_softmax(head, centres[first + sample.classes], embeddings, sample.places(LABELS), margin, shard=shard)
        partial.append(kept[0])
    own = (embeddings * centres[LABELS.clamp(min=0)]).sum(1)
    torch.testing.assert_close((partial[0] + partial[1])[[0, 1, 2, 4]], own[[0, 1, 2, 4]])


@pytest.mark.parametrize(
    ("rate", "rows", "batch", "message"),
    [(0.1, 800, 128, "draws 80 of 800 identities a step, fewer than the 128 images of a batch may show; set it to at "
                     "least 0.16"),
     (0.16, 800, 128, None), (1.0, 50, 128, None), (0.5, 100, 1024, "at least 1, or to 1")],
)  # fmt: skip
def test_a_rate_that_could_leave_out_an_identity_of_the_batch_is_named(
    rate: float, rows: int, batch: int, message: str | None
):
    found = sample_problem(rate, rows, batch)
    assert found is None if message is None else message in str(found)
    assert drawn_classes(1e-9, 5) == 1
