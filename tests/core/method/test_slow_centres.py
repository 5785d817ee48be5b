"""Slow centres: their moving average, what is read of it, undo, state, and the gate that they keep open."""

from __future__ import annotations

import pytest
import torch
from head_step import geometry_term
from torch import Tensor

from adadistill.core.method.class_centres import AdaptiveCentres, CentresConfig, initial_centres, unit_rows
from adadistill.core.method.geometry_margin import GeometryMarginConfig
from adadistill.core.method.slow_centres import SlowCentres, slow_centres_dtype

YES, NO = torch.tensor(True), torch.tensor(False)
CPU = torch.device("cpu")


def units(rows: int, dim: int, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
    return unit_rows(torch.randn(rows, dim, generator=generator, dtype=dtype))


def slow(classes: int, dim: int, *, momentum: float = 0.99, dtype: torch.dtype = torch.float64) -> SlowCentres:
    return SlowCentres(classes, dim, momentum=momentum, dtype=dtype, device=CPU)


def test_centres_and_confidence_are_those_of_a_loop_over_the_images():
    """Repeated, ignored and never seen identities, in float64, over eight batches."""
    generator = torch.Generator().manual_seed(0)
    centres = slow(6, 16, momentum=0.9)
    rows = [torch.zeros(16, dtype=torch.float64) for _ in range(6)]
    for _ in range(8):
        teacher, labels = units(9, 16, generator), torch.randint(-1, 5, (9,), generator=generator)
        before = [row.clone() for row in rows]
        expected = []
        for embedding, label in zip(teacher, labels.tolist(), strict=True):
            length = float(before[label].norm())
            cosine = float(before[label] @ embedding) / length if length > 0 else 0.0
            expected.append(0.0 if label < 0 else min(1.0, max(1e-6, cosine)))
            if label >= 0:
                rows[label] = 0.9 * rows[label] + 0.1 * embedding

        step = centres.propose_update(teacher, labels)
        step.commit_(YES)

        assert step.confidence.tolist() == pytest.approx(expected, rel=1e-12)
        torch.testing.assert_close(centres.slow_centres, torch.stack(rows), rtol=1e-12, atol=1e-15)
    assert not centres.slow_centres[5].any(), "an identity without images stays at zero"


def test_the_zero_start_leaves_no_trace_in_the_direction():
    """After n images the direction is that of the weighted sum of these alone, whatever n."""
    generator = torch.Generator().manual_seed(1)
    centres, teacher = slow(1, 8), units(5, 8, generator)
    for seen in range(1, 6):
        centres.propose_update(teacher[seen - 1 : seen], torch.tensor([0])).commit_(YES)
        weights = 0.99 ** torch.arange(seen - 1, -1, -1, dtype=torch.float64)
        torch.testing.assert_close(unit_rows(centres.slow_centres)[0], unit_rows((weights @ teacher[:seen])[None])[0])


def test_an_identity_not_seen_yet_shuts_the_gate():
    centres = slow(2, 8)
    step = centres.propose_update(units(1, 8, torch.Generator().manual_seed(2)), torch.tensor([1]))
    assert step.confidence.tolist() == [1e-6]
    term = geometry_term(GeometryMarginConfig(mode="headroom"), step.confidence, torch.tensor([-1.0]), 5.0)
    assert 0.0 <= term.item() < 1e-5


def test_images_of_one_batch_are_compared_with_the_centre_before_it():
    centres, teacher = slow(1, 8), units(3, 8, torch.Generator().manual_seed(3))
    step = centres.propose_update(teacher, torch.tensor([0, 0, 0]))
    assert step.confidence.tolist() == [1e-6] * 3, "none of them knows the others yet"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_an_undone_step_leaves_every_bit(dtype: torch.dtype):
    generator = torch.Generator().manual_seed(4)
    centres, labels = slow(4, 8, dtype=dtype), torch.tensor([0, 2, 2, -1])
    centres.propose_update(units(4, 8, generator), labels).commit_(YES)
    before = centres.slow_centres.clone()
    broken = units(4, 8, generator)
    broken[1] = torch.nan
    centres.propose_update(broken, labels).commit_(NO)
    assert torch.equal(centres.slow_centres, before)
    centres.propose_update(units(4, 8, generator), labels).commit_(YES)
    assert not torch.equal(centres.slow_centres, before)


def _teacher_images(identities: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Unit embeddings around their identity, as far from it as gives adaptive centres a confidence near 0.69."""
    noise = torch.randn(len(labels), identities.shape[1], generator=generator, dtype=identities.dtype)
    return unit_rows(identities[labels] + 0.85 * noise / identities.shape[1] ** 0.5)


def test_the_gate_stays_open_where_adaptive_centres_shut_it():
    """The student is at 0.725 of the teacher: past the 0.69 of noisy centres, short of the true cosine of 0.76."""
    generator = torch.Generator().manual_seed(5)
    identities = units(30, 512, generator)
    adaptive = AdaptiveCentres(CentresConfig(), initial_centres(30, 512, generator=generator, dtype=torch.float64))
    headroom = slow(30, 512)
    lag = torch.full((30,), 0.725, dtype=torch.float64)
    for _ in range(300):
        labels = torch.randperm(30, generator=generator)
        teacher = _teacher_images(identities, labels, generator)
        fast_step = adaptive.propose_update(teacher, labels, lag)
        slow_step = headroom.propose_update(teacher, labels)
    fast, long_run = fast_step.confidence, slow_step.confidence

    assert fast.mean() == pytest.approx(0.69, abs=0.02), "adaptive centres are capped by their own noise"
    true = (identities[labels] * teacher).sum(1)
    assert long_run.mean() == pytest.approx(float(true.mean()), abs=0.01), "the slow centre sees the identity itself"
    assert long_run.mean() > fast.mean() + 0.05
    shut = geometry_term(GeometryMarginConfig(mode="adaptive"), fast, lag, 9.0)
    opened = geometry_term(GeometryMarginConfig(mode="headroom"), long_run, lag, 9.0)
    assert (shut > 0).double().mean() < 0.1
    assert (opened > 0).double().mean() > 0.9


def test_half_precision_stores_float16_whose_average_does_not_stray():
    """bfloat16 would round off steps of one hundredth: that is why it is not taken even where centres.half says so."""
    assert slow_centres_dtype("bfloat16", torch.float32) == torch.float16
    assert slow_centres_dtype("float16", torch.float32) == torch.float16
    assert slow_centres_dtype(None, torch.float64) == torch.float64
    generator = torch.Generator().manual_seed(6)
    identities = units(20, 128, generator)
    kept = {dtype: slow(20, 128, dtype=dtype) for dtype in (torch.float64, torch.float16, torch.bfloat16)}
    for _ in range(400):
        labels = torch.randperm(20, generator=generator)
        teacher = _teacher_images(identities, labels, generator)
        for centres in kept.values():
            centres.propose_update(teacher, labels)
    exact = unit_rows(kept[torch.float64].slow_centres)
    off = {dtype: float(1 - (unit_rows(c.slow_centres) * exact).sum(1).min()) for dtype, c in kept.items()}
    assert off[torch.float16] < 3e-6
    assert off[torch.bfloat16] > 2e-5


def test_state_is_loaded_in_place_and_other_state_is_refused():
    source, target = slow(3, 4), slow(3, 4)
    source.propose_update(units(2, 4, torch.Generator().manual_seed(7)), torch.tensor([0, 2])).commit_(YES)
    storage = target.slow_centres.data_ptr()
    target.load_state_dict({name: rows.clone() for name, rows in source.state_dict().items()})
    assert torch.equal(target.slow_centres, source.slow_centres)
    assert target.slow_centres.data_ptr() == storage
    with pytest.raises(ValueError, match=r"must hold slow_centres alone, got \['class_centres'\]"):
        target.load_state_dict({"class_centres": torch.zeros(3, 4)})
    with pytest.raises(ValueError, match=r"\(2, 4\) torch\.float64, this run has \(3, 4\) torch\.float64"):
        target.load_state_dict({"slow_centres": torch.zeros(2, 4, dtype=torch.float64)})


def test_inputs_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\), got 1\.0"):
        slow(3, 4, momentum=1.0)
    with pytest.raises(ValueError, match=r"teacher_embeddings must be \(2, 4\), got \(2, 5\)"):
        slow(3, 4).propose_update(torch.zeros(2, 5), torch.tensor([0, 1]))
