"""The ordered centre update: published rule, repeats in batch order, untouched rows, undo."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from adadistill.kernels.centre_update import CentreUpdate, centre_update_, centre_update_reference

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

OK, NOT_OK = torch.tensor(True), torch.tensor(False)


def draw(classes: int, batch: int, dim: int = 4, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Centres, teacher embeddings, labels (repeats likely when batch > classes, some -1) and momenta."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=generator, dtype=dtype) * 0.01
    teacher = normalize(torch.randn(batch, dim, generator=generator, dtype=dtype))
    labels = torch.randint(-1, classes, (batch,), generator=generator)
    momentum = torch.rand(batch, generator=generator, dtype=dtype)
    return [centres, teacher, labels, momentum]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unique_labels_give_the_published_rule_bit_for_bit(dtype):
    centres, teacher, _, momentum = draw(40, 24, seed=1, dtype=dtype)
    labels = torch.randperm(40, generator=torch.Generator().manual_seed(1))[:24]
    expected = centres.clone()
    expected[labels] = momentum[:, None] * centres[labels] + (1 - momentum)[:, None] * teacher

    centre_update_(centres, teacher, labels, momentum)

    assert torch.equal(centres, expected)


@settings(max_examples=60, deadline=None)
@given(classes=st.integers(1, 12), batch=st.integers(0, 40), seed=st.integers(0, 10**6))
def test_repeated_labels_are_applied_in_batch_order(classes, batch, seed):
    centres, teacher, labels, momentum = draw(classes, batch, seed=seed)
    expected = centre_update_reference(centres, teacher, labels, momentum)
    before = centres.clone()

    centre_update_(centres, teacher, labels, momentum)

    torch.testing.assert_close(centres, expected, rtol=1e-12, atol=1e-14)
    unseen = torch.ones(classes, dtype=torch.bool)
    unseen[labels[labels >= 0]] = False
    assert torch.equal(centres[unseen], before[unseen]), "rows of unseen identities keep their bits"


def test_repeats_follow_the_closed_form():
    centres, teacher, _, momentum = draw(3, 5, seed=2)
    a, old = momentum, centres[1].clone()

    centre_update_(centres, teacher, torch.ones(5, dtype=torch.int64), momentum)

    expected = a.prod() * old
    for i in range(5):
        expected = expected + (1 - a[i]) * a[i + 1 :].prod() * teacher[i]
    torch.testing.assert_close(centres[1], expected, rtol=1e-13, atol=1e-15)


def test_one_identity_filling_a_large_batch_is_still_sequential():
    centres, teacher, _, momentum = draw(2, 1000, seed=3)
    labels = torch.zeros(1000, dtype=torch.int64)
    momentum = 0.9 + 0.1 * momentum
    expected = centre_update_reference(centres, teacher, labels, momentum)

    centre_update_(centres, teacher, labels, momentum)

    torch.testing.assert_close(centres, expected, rtol=1e-11, atol=1e-13)


def test_order_of_repeats_matters_and_order_of_others_does_not():
    centres, teacher, _, momentum = draw(5, 4, seed=4)
    labels = torch.tensor([2, 0, 2, 4])
    results = []
    for order in ([0, 1, 2, 3], [0, 3, 1, 2], [2, 1, 0, 3]):
        moved = centres.clone()
        centre_update_(moved, teacher[order], labels[order], momentum[order])
        results.append(moved)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0][2], results[2][2])


@pytest.mark.parametrize("live", [[], [0], [2], [0, 2], [2, 2, 0]])
def test_ignored_samples_move_nothing_and_never_race_with_a_real_write(live):
    centres, teacher, _, momentum = draw(3, len(live) + 4, seed=5)
    labels = torch.tensor([-1, -1, *live, -1, -1])
    ignored = labels < 0
    expected = centre_update_reference(centres, teacher, labels, momentum)
    teacher = torch.where(ignored[:, None], torch.nan, teacher)
    momentum = torch.where(ignored, torch.nan, momentum)

    update = centre_update_(centres, teacher, labels, momentum)

    torch.testing.assert_close(centres, expected, rtol=1e-13, atol=1e-15)
    assert_repeated_rows_agree(update)


@settings(max_examples=40, deadline=None)
@given(classes=st.integers(1, 8), batch=st.integers(0, 30), seed=st.integers(0, 10**6))
def test_repeated_writes_always_carry_the_same_bits(classes, batch, seed):
    assert_repeated_rows_agree(centre_update_(*draw(classes, batch, seed=seed, dtype=torch.float32)))


def assert_repeated_rows_agree(update: CentreUpdate) -> None:
    for row in update.rows.unique():
        at = update.rows == row
        assert torch.equal(update.new[at], update.new[at][:1].expand_as(update.new[at]))
        assert torch.equal(update.old[at], update.old[at][:1].expand_as(update.old[at]))


@settings(max_examples=40, deadline=None)
@given(classes=st.integers(1, 8), batch=st.integers(0, 30), seed=st.integers(0, 10**6), broken=st.booleans())
def test_a_step_that_is_not_ok_is_undone_bit_for_bit(classes, batch, seed, broken):
    centres, teacher, labels, momentum = draw(classes, batch, seed=seed, dtype=torch.float32)
    before = centres.clone()
    if broken and batch:
        teacher[seed % batch] = torch.nan
        momentum[seed % batch] = torch.inf

    update = centre_update_(centres, teacher, labels, momentum)
    after = centres.clone()
    update.commit_(OK)
    assert torch.equal(centres.view(torch.int32), after.view(torch.int32)), "kept, NaN included"
    update.commit_(NOT_OK)

    assert torch.equal(centres, before)


def test_momentum_one_keeps_the_centre_and_zero_takes_the_teacher():
    centres, teacher, _, _ = draw(4, 2, seed=6, dtype=torch.float32)
    before = centres.clone()

    centre_update_(centres, teacher, torch.tensor([1, 3]), torch.tensor([1.0, 0.0]))

    assert torch.equal(centres[:3], before[:3])
    assert torch.equal(centres[3], teacher[1])


def test_half_precision_centres_are_computed_wide_and_stored_rounded():
    centres, teacher, labels, momentum = draw(6, 15, seed=7, dtype=torch.float32)
    half = centres.bfloat16()
    expected = centre_update_reference(half.float(), teacher, labels, momentum)
    before = half.clone()

    update = centre_update_(half, teacher, labels, momentum)

    torch.testing.assert_close(half.float(), expected, rtol=2**-8, atol=1e-6)
    update.commit_(NOT_OK)
    assert torch.equal(half, before)


def test_teacher_rows_stored_in_half_precision_are_accepted():
    centres, teacher, labels, momentum = draw(6, 10, seed=8, dtype=torch.float32)
    expected = centre_update_reference(centres, teacher.half().float(), labels, momentum)
    centre_update_(centres, teacher.half(), labels, momentum)
    torch.testing.assert_close(centres, expected)


def test_update_and_commit_compile_to_one_graph_with_the_bits_of_eager():
    def step(centres, teacher, labels, momentum, ok):
        centre_update_(centres, teacher, labels, momentum).commit_(ok)

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    found, expected = (draw(6, 1, dtype=torch.float32)[0] for _ in range(2))
    for number, ok in enumerate((torch.tensor(True), NOT_OK, torch.tensor(True))):
        samples = draw(6, 10 + number, seed=number, dtype=torch.float32)[1:]
        before = expected.clone()
        compiled(found, *samples, ok)
        step(expected, *samples, ok)
        assert torch.equal(found, expected)
        assert torch.equal(expected, before) != bool(ok)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.zeros(6)}, r"class_centres must be \(C, D\)"),
        ({0: torch.zeros(6, 4, dtype=torch.int64)}, "class_centres must be"),
        ({1: torch.zeros(10, 3)}, r"teacher_embeddings must be \(G, 4\), got \(10, 3\)"),
        ({2: torch.zeros(10, 1, dtype=torch.int64)}, r"labels must be \(10,\), got \(10, 1\)"),
        ({2: torch.zeros(10)}, "labels must be int64"),
        ({3: torch.zeros(10, 1)}, r"momentum must be \(10,\)"),
        ({3: torch.zeros(10, dtype=torch.int64)}, "must be floating"),
    ],
)
def test_shapes_and_dtypes_that_disagree_are_refused_by_name(change, message):
    arguments = draw(6, 10, dtype=torch.float32)
    for position, value in change.items():
        arguments[position] = value
    with pytest.raises(ValueError, match=message):
        centre_update_(*arguments)


@pytest.mark.gpu
@needs_gpu
def test_cuda_gives_the_same_bits_every_time_and_never_waits_for_the_device():
    arguments = [a.cuda() for a in draw(50, 500, dim=64, seed=9, dtype=torch.float32)]
    expected = centre_update_reference(*[a.cpu() for a in arguments])
    ok = torch.tensor(False, device="cuda")
    before = arguments[0].clone()
    results = []
    for _ in range(3):
        centres = before.clone()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            update = centre_update_(centres, *arguments[1:])
            after = centres.clone()
            update.commit_(ok)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        results.append(after)
        assert torch.equal(centres, before)
    assert all(torch.equal(r, results[0]) for r in results)
    torch.testing.assert_close(results[0].cpu(), expected, rtol=1e-4, atol=1e-5)
