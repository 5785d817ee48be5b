"""Adaptive and trainable centres: momentum, update, the unit copy, undo, state."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

import adadistill.core.method.class_centres as class_centres
from adadistill.core.method.class_centres import (
    AdaptiveCentres,
    CentresConfig,
    TrainableCentres,
    adaptive_centre_bytes,
    centre_confidence,
    centre_momentum,
    initial_centres,
    row_pieces,
    student_teacher_cosine,
    trained_product_dtype,
    trained_unit_rows,
    unit_rows,
    write_unit_rows_,
)

WEIGHTED, UNWEIGHTED = CentresConfig(), CentresConfig(momentum="unweighted")


def units(rows: int, dim: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype))


def test_momentum_of_the_worked_example():
    cosine, confidence = torch.tensor([0.5]), torch.tensor([0.8])
    torch.testing.assert_close(centre_momentum(cosine, confidence, weighted=True), torch.tensor([0.4]))
    torch.testing.assert_close(centre_momentum(cosine, confidence, weighted=False), torch.tensor([0.5]))


def test_momentum_stays_above_a_millionth_and_at_most_one():
    cosine, confidence = torch.tensor([-1.0, 0.0, 1.0]), torch.ones(3)
    torch.testing.assert_close(centre_momentum(cosine, confidence, weighted=True), torch.tensor([1e-6, 1e-6, 1.0]))


def test_a_centre_across_from_its_teacher_embedding_jumps_to_it():
    centres = AdaptiveCentres(WEIGHTED, torch.tensor([[0.6, 0.0]], dtype=torch.float64))
    teacher = torch.tensor([[0.0, 1.0]], dtype=torch.float64)

    step = centres.propose_update(teacher, torch.tensor([0]), torch.tensor([0.5], dtype=torch.float64))

    assert step.confidence.tolist() == [1e-6]
    assert step.momentum.tolist() == [1e-6], "0.5e-6 is clipped"
    torch.testing.assert_close(centres.class_centres[0], torch.tensor([0.6e-6, 1 - 1e-6], dtype=torch.float64))


def test_confidence_is_the_cosine_to_the_stored_row_of_any_length():
    rows = torch.tensor([[0.1, 0.0], [3.0, 4.0], [-1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    teacher = torch.tensor([[1.0, 0.0]] * 4, dtype=torch.float64)
    expected = torch.tensor([1.0, 0.6, 1e-6, 1e-6], dtype=torch.float64)
    torch.testing.assert_close(centre_confidence(rows, teacher), expected)


def test_student_teacher_cosine_is_clipped_wide_and_without_gradient():
    student = units(4, 8, 0).requires_grad_()
    cosine = student_teacher_cosine(student * 1.5, student)
    assert cosine.tolist() == [1.0] * 4
    assert not cosine.requires_grad
    assert student_teacher_cosine(student.bfloat16(), student.half()).dtype == torch.float32
    with pytest.raises(ValueError, match="must both be"):
        student_teacher_cosine(student, student[:2])


@pytest.mark.parametrize("config", [WEIGHTED, UNWEIGHTED])
def test_a_step_follows_the_published_rule_and_reports_the_centre_as_it_was(config):
    before = torch.randn(10, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 0.3
    centres = AdaptiveCentres(config, before.clone())
    labels = torch.tensor([7, 0, 3])
    teacher, cosine = units(3, 6, 2, torch.float64), torch.tensor([0.9, 0.2, -0.3], dtype=torch.float64)
    confidence = torch.cosine_similarity(before[labels], teacher).clamp(1e-6, 1)
    momentum = (cosine * confidence if config is WEIGHTED else cosine).clamp(1e-6, 1)
    expected = before.clone()
    expected[labels] = momentum[:, None] * before[labels] + (1 - momentum)[:, None] * teacher

    step = centres.propose_update(teacher, labels, cosine)

    torch.testing.assert_close(step.confidence, confidence)
    torch.testing.assert_close(step.momentum, momentum)
    torch.testing.assert_close(centres.class_centres, expected)


def test_repeats_take_their_momentum_from_the_centre_before_the_step():
    before = units(3, 4, 3, torch.float64) * 0.5
    centres = AdaptiveCentres(WEIGHTED, before.clone())
    teacher, cosine = units(2, 4, 4, torch.float64), torch.tensor([0.8, 0.6], dtype=torch.float64)
    momentum = (cosine * torch.cosine_similarity(before[[1, 1]], teacher).clamp(1e-6, 1)).clamp(1e-6, 1)

    centres.propose_update(teacher, torch.tensor([1, 1]), cosine)

    once = momentum[0] * before[1] + (1 - momentum[0]) * teacher[0]
    torch.testing.assert_close(centres.class_centres[1], momentum[1] * once + (1 - momentum[1]) * teacher[1])


def test_ignored_samples_report_that_nothing_moved():
    centres = AdaptiveCentres(WEIGHTED, units(3, 4, 5))
    before = centres.class_centres.clone()
    teacher = torch.full((2, 4), torch.nan)
    step = centres.propose_update(teacher, torch.tensor([-1, -1]), torch.full((2,), torch.nan))
    assert step.confidence.tolist() == [0.0, 0.0]
    assert step.momentum.tolist() == [1.0, 1.0]
    assert torch.equal(centres.class_centres, before)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    oks=st.lists(st.booleans(), min_size=1, max_size=5),
    half=st.sampled_from([None, "bfloat16", "float16"]),
    unit_dtype=st.sampled_from([None, torch.bfloat16]),
)
def test_what_is_derived_from_centres_follows_every_step_kept_or_undone_bit_for_bit(seed, oks, half, unit_dtype):
    """A unit copy in either format; of half-precision centres, which have none, inverse lengths."""
    config, dtype = replace(WEIGHTED, half=half), torch.float32 if half is None else getattr(torch, half)
    generator = torch.Generator().manual_seed(seed)
    start = initial_centres(7, 16, generator=generator, dtype=dtype)
    if half is not None:
        start[3], unit_dtype = 0.0, None  # it has no direction, and its scale is finite
    centres = AdaptiveCentres(config, start, unit_dtype=unit_dtype)
    derived = (lambda: centres.unit_centres()) if half is None else (lambda: centres.inverse_lengths)
    for number, ok in enumerate(oks):
        before, derived_before = centres.class_centres.clone(), derived().clone()
        labels = torch.randint(-1, 7, (9,), generator=generator)
        teacher = units(9, 16, seed + number)
        if not ok:
            teacher[number] = torch.nan
        centres.propose_update(teacher, labels, torch.rand(9, generator=generator)).commit_(torch.tensor(ok))
        if not ok:
            assert torch.equal(centres.class_centres, before)
            assert torch.equal(derived(), derived_before)
    again = AdaptiveCentres(config, torch.zeros_like(start), unit_dtype=unit_dtype)
    again.load_state_dict({name: value.clone() for name, value in centres.state_dict().items()})
    if half is None:
        assert torch.equal(centres.unit_centres(), again.unit_centres())
        return
    assert torch.equal(centres.inverse_lengths, again.inverse_lengths)
    scaled = centres.unit_centres().double() * centres.inverse_lengths.double()[:, None]
    assert ((scaled.norm(dim=1) - 1.0).abs() < 1e-6)[centres.class_centres.any(1)].all()


@pytest.mark.parametrize("dim", [3, 64, 512])
def test_a_row_normalises_to_the_same_bits_alone_as_among_all(dim):
    rows = torch.randn(300, dim, generator=torch.Generator().manual_seed(6))
    together = unit_rows(rows)
    for count in (1, 2, 9, 128):
        assert torch.equal(unit_rows(rows[:count]), together[:count])


def test_a_coarser_copy_comes_with_target_rows_from_the_master():
    centres = AdaptiveCentres(WEIGHTED, units(5, 8, 7) * 0.3, unit_dtype=torch.bfloat16)
    assert centres.unit_centres().dtype == torch.bfloat16
    target = centres.target_store().rows_of(torch.tensor([4, -1, 2]))
    torch.testing.assert_close(target[[0, 2]], unit_rows(centres.class_centres[[4, 2]]))
    plain = AdaptiveCentres(WEIGHTED, units(5, 8, 7))
    assert plain.target_store().centres is plain.unit_centres()


def test_state_is_loaded_in_place_with_its_unit_copy():
    source = AdaptiveCentres(WEIGHTED, units(5, 8, 8) * 0.4)
    target = AdaptiveCentres(WEIGHTED, torch.zeros(5, 8))
    storage = target.class_centres.data_ptr()

    target.load_state_dict({name: value.clone() for name, value in source.state_dict().items()})

    assert target.class_centres.data_ptr() == storage
    assert torch.equal(target.class_centres, source.class_centres)
    assert torch.equal(target.unit_centres(), source.unit_centres())


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, r"must hold class_centres alone, got \[\]"),
        (
            {"class_centres": torch.zeros(4, 8)},
            r"stored class_centres are \(4, 8\) torch.float32, this run has \(5, 8\)",
        ),
        ({"class_centres": torch.zeros(5, 8).double()}, "torch.float64"),
    ],
)
def test_state_of_other_centres_is_refused(state, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveCentres(WEIGHTED, torch.zeros(5, 8)).load_state_dict(state)


def test_inputs_that_do_not_fit_are_refused():
    centres = AdaptiveCentres(WEIGHTED, units(5, 8, 9))
    labels, cosine = torch.tensor([0, 1]), torch.tensor([0.5, 0.5])
    with pytest.raises(ValueError, match=r"teacher_embeddings must be \(2, 8\), got \(2, 7\)"):
        centres.propose_update(torch.zeros(2, 7), labels, cosine)
    with pytest.raises(ValueError, match=r"must both be \(G,\)"):
        centres.propose_update(torch.zeros(2, 8), labels, cosine[:, None])
    with pytest.raises(ValueError, match="float32 or float64, got"):
        AdaptiveCentres(WEIGHTED, torch.zeros(5, 8).half())
    with pytest.raises(ValueError, match="bfloat16"):
        AdaptiveCentres(replace(WEIGHTED, half="bfloat16"), units(5, 8, 7))
    with pytest.raises(ValueError, match=r"kind must be adaptive here, got trainable"):
        AdaptiveCentres(CentresConfig(kind="trainable"), torch.zeros(5, 8))
    with pytest.raises(ValueError, match=r"kind must be trainable here, got adaptive"):
        TrainableCentres(WEIGHTED, torch.zeros(5, 8))


def test_initial_centres_are_seeded_small_and_alike_in_every_precision():
    drawn = [initial_centres(200, 64, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert drawn[0].std().item() == pytest.approx(0.01, rel=0.03)
    wide = initial_centres(200, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(wide.float(), drawn[0])
    with pytest.raises(ValueError, match="must be positive, got 0 and 64"):
        initial_centres(0, 64, generator=torch.Generator())
    with pytest.raises(ValueError, match=r"rows must lie in \[0, 5\], got 3 to 6"):
        initial_centres(5, 64, generator=torch.Generator(), rows=(3, 6))


def test_unit_rows_of_a_parameter_have_the_values_and_gradient_of_plain_autograd(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(class_centres, "_PIECE_ROWS", 3)
    start = torch.randn(8, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    start[2] = 0.0
    start[3] *= 1e-14  # below the least norm
    start[4] *= 1e-11
    plain, ours = start.clone().requires_grad_(), start.clone().requires_grad_()
    gradient = torch.randn(8, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    unit_rows(plain).backward(gradient)
    unit = trained_unit_rows(ours)
    unit.backward(gradient)
    assert torch.equal(unit, unit_rows(start))
    assert plain.grad is not None
    assert ours.grad is not None
    assert ((ours.grad - plain.grad).abs().amax(1) <= 1e-14 * plain.grad.abs().amax(1)).all()
    assert torch.autograd.gradcheck(trained_unit_rows, (start[:2].clone().requires_grad_(),))


# Within one piece, one row past it, a last piece of 15 and of 16 rows, several; values that are no multiple of 16.
@pytest.mark.parametrize("shape", [(1, 3), (15, 1), (31, 5), (33, 3), (47, 1), (48, 7), (200, 16), (211, 3)])
def test_rows_drawn_alone_are_those_of_one_draw_of_all(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(class_centres, "_PIECE_ROWS", 32)
    count, dim = shape
    reference = torch.Generator().manual_seed(3)
    whole = torch.randn(count, dim, generator=reference) * 0.01
    for ranks in (1, 2, 3):
        for rank in range(ranks):
            generator = torch.Generator().manual_seed(3)
            rows = (count * rank // ranks, count * (rank + 1) // ranks)
            drawn = initial_centres(count, dim, generator=generator, rows=rows)
            assert torch.equal(drawn, whole[slice(*rows)])
            assert torch.equal(generator.get_state(), reference.get_state())


def test_the_piece_size_in_use_keeps_the_stream():
    drawn = initial_centres(2**16 + 17, 1, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn, torch.randn(2**16 + 17, 1, generator=torch.Generator().manual_seed(0)) * 0.01)


def test_the_first_visit_forgets_the_random_start():
    centres = AdaptiveCentres(WEIGHTED, initial_centres(4, 512, generator=torch.Generator().manual_seed(0)))
    teacher = units(1, 512, 10)
    step = centres.propose_update(teacher, torch.tensor([2]), torch.tensor([0.3]))
    assert step.momentum.item() < 0.05
    assert torch.cosine_similarity(centres.class_centres[2:3], teacher).item() > 0.99


def test_trained_centres_learn_through_their_normalisation():
    centres = TrainableCentres(CentresConfig(kind="trainable"), units(3, 4, 11, torch.float64) * 5)
    assert torch.autograd.gradcheck(unit_rows, (centres.class_centres,))
    unit = centres.unit_centres()
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(3, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(unit.square().sum(), centres.class_centres)
    torch.testing.assert_close(gradient, torch.zeros(3, 4, dtype=torch.float64))
    assert list(centres.state_dict()) == ["class_centres"]


def test_unit_rows_are_written_piece_by_piece_also_onto_themselves(monkeypatch):
    rows = units(7, 4, 12) * 3
    expected = unit_rows(rows)
    monkeypatch.setattr(class_centres, "_PIECE_ROWS", 3)
    half = torch.empty(7, 4, dtype=torch.bfloat16)
    write_unit_rows_(half, rows)
    assert torch.equal(half, expected.bfloat16())
    write_unit_rows_(rows, rows)
    assert torch.equal(rows, expected)
    assert [(piece.start, piece.stop) for piece in row_pieces(7)] == [(0, 3), (3, 6), (6, 7)]


@pytest.mark.parametrize(("half", "drift"), [("bfloat16", 6e-6), ("float16", 1e-6)])
def test_half_precision_centres_stay_beside_float32_ones(half: str, drift: float):
    """A moving average forgets its own rounding: after 400 updates of each centre as after 100."""
    generator = torch.Generator().manual_seed(4)
    start = initial_centres(20, 128, generator=generator)
    wide = AdaptiveCentres(WEIGHTED, start.clone())
    narrow = AdaptiveCentres(replace(WEIGHTED, half=half), start.to(getattr(torch, half)))
    assert narrow.class_centres.dtype == getattr(torch, half)
    assert narrow.unit_centres() is narrow.class_centres, "no copy"
    identities = units(20, 128, 9)
    for step in range(400):
        labels = torch.randint(20, (20,), generator=generator)
        teacher = unit_rows(identities[labels] + torch.randn(20, 128, generator=generator) / 128**0.5)
        cosine = 0.3 + 0.65 * min(1.0, step / 150) + 0.05 * torch.randn(20, generator=generator)
        for centres in (wide, narrow):
            centres.propose_update(teacher, labels, cosine.clamp(-1, 1)).commit_(torch.tensor(True))
        if step in (99, 399):
            off = 1.0 - (unit_rows(narrow.class_centres) * unit_rows(wide.class_centres)).sum(1)
            assert off.max() <= drift
    assert narrow.target_store().rows_of(labels).dtype == torch.float32


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_a_hundred_million_identities_fit_in_half_precision(half: str):
    """All that is kept of each identity, the rows of a step of 8,192 samples, and what they may be undone with."""
    config = replace(WEIGHTED, half=half)
    small = AdaptiveCentres(config, torch.zeros(1000, 64, dtype=getattr(torch, half)))
    kept = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors_of(small)}
    assert sum(kept.values()) == adaptive_centre_bytes(1000, 64, getattr(torch, half), None)

    large = AdaptiveCentres(config, torch.empty(10**7, 512, dtype=getattr(torch, half), device="meta"))
    bytes_kept = 10 * sum(tensor.nbytes for tensor in tensors_of(large))
    assert bytes_kept == adaptive_centre_bytes(10**8, 512, getattr(torch, half), None)
    of_a_step = 8192 * 512 * 4 * 8  # eight (G, D) arrays in float32
    assert bytes_kept + of_a_step <= 125e9


def tensors_of(centres: AdaptiveCentres) -> list[Tensor]:
    found = {id(value): value for value in vars(centres).values() if isinstance(value, Tensor)}
    return list(found.values())


def test_float32_centres_keep_a_unit_copy_as_the_plan_says():
    for unit in (torch.float32, torch.bfloat16):
        centres = AdaptiveCentres(WEIGHTED, torch.zeros(100, 64), unit_dtype=unit)
        assert centres.inverse_lengths is None
        kept = sum(tensor.nbytes for tensor in tensors_of(centres))
        assert kept == adaptive_centre_bytes(100, 64, torch.float32, unit)


def test_trained_centres_are_multiplied_in_bfloat16_under_autocast_on_cuda_alone():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert trained_product_dtype(torch.bfloat16, cuda) == torch.bfloat16
    assert trained_product_dtype(None, cuda) is None, "precision: float32"
    assert trained_product_dtype(torch.bfloat16, cpu) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "fixed"}, "kind must be"),
        ({"momentum": "alpha"}, "momentum must be"),
        ({"half": "float8"}, "half must be bfloat16, float16"),
        ({"kind": "trainable", "half": "bfloat16"}, "half is for kind adaptive"),
        ({"kind": "adaptive", "placement": "sharded"}, "placement sharded is for kind trainable, got kind adaptive"),
        ({"kind": "none", "placement": "sharded"}, "placement sharded is for kind trainable, got kind none"),
        ({"kind": "trainable", "placement": "split"}, "placement must be replicated or sharded, got 'split'"),
        ({"kind": "frozen"}, "path must name the file or run folder that kind frozen takes"),
        ({"kind": "frozen", "path": ""}, "path must name the file or run folder that kind frozen takes"),
        *(({"kind": kind, "path": "c.npy"}, f"path is for kind frozen, got 'c.npy' with kind {kind}")
          for kind in ("adaptive", "trainable", "none")),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused_by_name(fields: dict[str, str], message: str):
    with pytest.raises(ValueError, match=message):
        CentresConfig(**fields)
