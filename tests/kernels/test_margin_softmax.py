"""The chunked margin softmax against its dense reference in float64, and what must hold of both."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from forked_python import forked_python
from hypothesis import given, settings
from hypothesis import strategies as st
from margin_softmax_cases import ADAFACE, ARCFACE, INSIGHTFACE, Case, assert_close, gradients, make_case
from torch import Tensor
from torch.nn.functional import normalize

from adadistill.kernels import class_products
from adadistill.kernels import margin_softmax as module
from adadistill.kernels.margin_softmax import (
    ClassShard,
    default_chunk_classes,
    margin_logits_reference,
    margin_softmax,
    margin_softmax_reference,
)

MEMORY_WORKER = Path(__file__).with_name("margin_softmax_memory_worker.py")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
by_head = pytest.mark.parametrize("options", [ADAFACE, ARCFACE, INSIGHTFACE], ids=["adaface", "arcface", "insightface"])
by_centres = pytest.mark.parametrize("trained", [False, True], ids=["fixed", "trained"])
by_form = pytest.mark.parametrize("softmax", [margin_softmax, margin_softmax_reference])

# One class, one pair, one past a chunk of 16, several chunks with a ragged last one, no samples.
SHAPES = [(3, 1), (1, 2), (7, 17), (24, 85), (0, 5)]


def assert_same(found: tuple[Any, list[Tensor]], wanted: tuple[Any, list[Tensor]], relative: float = 1e-11) -> None:
    """Results and gradients are close, and clamped alike."""
    for name in ("loss", "target_cosine", "target_probability"):
        assert_close(getattr(found[0], name), getattr(wanted[0], name), relative)
    assert torch.equal(found[0].clamped, wanted[0].clamped)
    for one, other in zip(found[1], wanted[1], strict=True):
        assert one.shape == other.shape
        assert_close(one, other, relative)


def assert_equal_bits(found: tuple[Any, list[Tensor]], wanted: tuple[Any, list[Tensor]]) -> None:
    assert torch.equal(found[0].loss, wanted[0].loss)
    assert all(torch.equal(one, other) for one, other in zip(found[1], wanted[1], strict=True))


@by_centres
@by_head
def test_chunked_form_equals_the_dense_reference(options, trained):
    for shape in SHAPES:
        case = make_case(*shape)
        wanted = gradients(margin_softmax_reference, case, trained=trained, **options)
        for chunk in (1, 5, 16, 1000, None):
            assert_same(gradients(margin_softmax, case, trained=trained, chunk_classes=chunk, **options), wanted)


@by_centres
def test_chunked_form_equals_the_reference_on_centres_opposite_and_on_other_centres(trained):
    for seed in range(3):
        case = make_case(12, 20, seed=seed, special=True)
        found = gradients(margin_softmax, case, trained=trained, chunk_classes=7, **ADAFACE)
        assert found[0].clamped[:2].all(), "rows on and opposite to their centre are beyond AdaFace's limit"
        assert_same(found, gradients(margin_softmax_reference, case, trained=trained, **ADAFACE))


@by_form
@by_head
def test_gradients_are_finite_on_and_opposite_to_the_centre(options, softmax):
    for dtype in (torch.float32, torch.float64):
        axes = torch.eye(4, dtype=dtype)
        embeddings = torch.stack([axes[0], -axes[0], axes[2]])  # on its centre, opposite to it, on another's
        margins = torch.full((3,), 0.45, dtype=dtype), torch.zeros(3, dtype=dtype)
        case = Case(embeddings, axes, torch.tensor([0, 0, 1]), *margins)
        for trained in (False, True):
            result, grads = gradients(softmax, case, trained=trained, **options)
            assert torch.isfinite(result.loss).all()
            assert all(torch.isfinite(g).all() for g in grads)


def alone(embedding: list[float], centres: Tensor, angular: float = 0.0, additive: float = 0.0) -> Case:
    """One sample of class 0, in float64."""
    margins = (torch.tensor([margin], dtype=torch.float64) for margin in (angular, additive))
    return Case(torch.tensor([embedding], dtype=torch.float64), centres.double(), torch.tensor([0]), *margins)


@by_form
def test_without_an_angular_margin_the_slope_is_one_even_on_the_centre(softmax):
    case = alone([1.0, 0.0], torch.eye(2), additive=0.35)
    result, (gradient,) = gradients(softmax, case, **{**ARCFACE, "logit_scale": 2.0})

    p = math.exp(2 * 0.65) / (math.exp(2 * 0.65) + 1)
    assert_close(result.loss.detach(), torch.tensor([-math.log(p)], dtype=torch.float64))
    assert_close(gradient, 0.5 * 2.0 * (1 - p) * torch.tensor([[-1.0, 1.0]], dtype=torch.float64))


def test_gradcheck_of_reference_and_chunked_form():
    case = make_case(5, 7, dim=4, seed=3)
    options = {**ADAFACE, "logit_scale": 8.0}

    def loss(softmax: Any, embeddings: Tensor, centres: Tensor, **more: Any) -> Tensor:
        return softmax(embeddings, centres, case.labels, case.angular, case.additive, **options, **more).loss

    embeddings, centres = case.embeddings.requires_grad_(), case.centres.clone().requires_grad_()
    fixed = case.centres.detach()
    assert torch.autograd.gradcheck(lambda e, c: loss(margin_softmax_reference, e, c), (embeddings, centres))
    assert torch.autograd.gradcheck(lambda e, c: loss(margin_softmax, e, c, chunk_classes=3), (embeddings, centres))
    assert torch.autograd.gradcheck(lambda e: loss(margin_softmax, e, fixed, chunk_classes=3), (embeddings,))


@by_form
def test_a_cosine_at_its_limit_passes_a_gradient_and_beyond_it_none(softmax):
    options = {**ARCFACE, "cosine_limit": 0.5, "logit_scale": 4.0}
    for cosine, passes in ((0.5, True), (0.5 + 1e-9, False), (-0.5, True), (-0.5 - 1e-9, False)):
        # Two classes along the same axis, so that both the target's and the other's cosine are at the limit.
        case = alone([cosine, math.sqrt(1 - cosine**2)], torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        result, (gradient,) = gradients(softmax, case, **options)
        assert bool(gradient.abs().sum() > 0) is passes
        assert bool(result.clamped) is not passes


@by_form
def test_a_clipped_angle_passes_no_gradient_unless_straight_through(softmax):
    case = alone([math.cos(0.3), math.sin(0.3)], torch.eye(2), angular=-0.4)
    options = {**ADAFACE, "logit_scale": 4.0}
    clipped, (gradient,) = gradients(softmax, case, **options)
    _, (through,) = gradients(softmax, case, **{**options, "margin_grad": "straight_through"})

    assert bool(clipped.clamped)
    assert gradient[0, 0] == 0.0, "the target's centre lies along axis 0"
    assert gradient[0, 1] > 0.0
    assert through[0, 0] < 0.0


def test_straight_through_changes_gradients_and_not_the_loss():
    case = make_case(9, 11)
    exact, (exact_gradient,) = gradients(margin_softmax, case, **ARCFACE)
    through, (through_gradient,) = gradients(margin_softmax, case, **INSIGHTFACE)
    assert torch.equal(exact.loss, through.loss)
    assert (exact_gradient - through_gradient).abs().max() > 1e-3


@pytest.mark.parametrize(("scaler", "logit"), [(0.0, 6.4), (-1.0, 7.8902), (1.0, -0.1423)])
def test_target_logits_at_sixty_degrees_are_those_worked_out_by_hand(scaler, logit):
    case = alone([0.5, math.sqrt(0.75)], torch.eye(2), -0.4 * scaler, 0.4 * (1 + scaler))
    logits = margin_logits_reference(*case, **ADAFACE)
    other = 64 * math.sqrt(0.75)
    assert logits[0, 0].item() == pytest.approx(logit, abs=5e-5)
    assert logits[0, 1].item() == pytest.approx(other)
    loss = other - logits[0, 0].item() + math.log1p(math.exp(logits[0, 0].item() - other))
    assert margin_softmax(*case, **ADAFACE).loss.item() == pytest.approx(loss)


@by_centres
@by_form
def test_ignored_rows_have_no_loss_and_no_gradient_even_when_they_hold_nan(softmax, trained):
    case = make_case(6, 9)
    ignored = torch.tensor([True, False, True, False, False, True])
    labels = torch.where(ignored, -1, case.labels)
    nan = {name: torch.where(ignored, torch.nan, getattr(case, name)) for name in ("angular", "additive")}
    spoilt = replace(case, embeddings=torch.where(ignored[:, None], torch.nan, case.embeddings), labels=labels, **nan)
    found = gradients(softmax, spoilt, trained=trained, **ADAFACE)

    assert not found[0].loss[ignored].any()
    assert not found[1][0][ignored].any()
    assert not found[0].target_probability[ignored].any()
    assert_equal_bits(found, gradients(softmax, replace(case, labels=labels), trained=trained, **ADAFACE))
    result, (gradient,) = gradients(softmax, replace(case, labels=torch.full((6,), -1)), **ADAFACE)
    assert not any(value.any() for value in (result.loss, result.target_cosine, result.clamped, gradient))


def test_a_single_class_has_no_loss_and_no_gradient():
    for scale in (2.0, 64.0, 400.0):
        result, (gradient,) = gradients(margin_softmax, make_case(3, 1), **{**ADAFACE, "logit_scale": scale})
        assert result.loss.eq(0).all()
        assert result.target_probability.eq(1).all()
        assert gradient.eq(0).all()


def test_a_nan_in_a_live_row_stays_in_that_row():
    case = make_case(4, 9)
    case.embeddings[1, 2] = torch.nan
    result, (gradient,) = gradients(margin_softmax, case, chunk_classes=4, **ADAFACE)
    assert result.loss.isnan().tolist() == [False, True, False, False]
    assert gradient.isnan().any(1).tolist() == [False, True, False, False]


def test_small_losses_keep_their_relative_accuracy_in_float32():
    axis = torch.eye(4)[:1]
    case = Case(axis, torch.cat([axis, -axis]), torch.tensor([0]), torch.zeros(1), torch.zeros(1))
    result, (gradient,) = gradients(margin_softmax, case, **{**ARCFACE, "logit_scale": 30.0})
    assert result.loss.item() == pytest.approx(math.exp(-60.0), rel=1e-5)
    assert gradient[0, 0].item() == pytest.approx(-0.5 * 60 * math.exp(-60.0), rel=1e-5)


@pytest.mark.parametrize("shape", [(7, 129), (16, 1000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_is_no_less_accurate_than_eager(shape, dtype):
    case = make_case(*shape, dim=64).to(dtype)
    truth, (true_gradient,) = gradients(margin_softmax_reference, case.to(torch.float64), **ADAFACE)
    eager, (eager_gradient,) = gradients(margin_softmax_reference, case.to(torch.float32), **ADAFACE)
    actual, (gradient,) = gradients(margin_softmax, case, chunk_classes=100, **ADAFACE)

    assert actual.loss.dtype == torch.float32
    assert gradient.dtype == dtype
    for one, other, exact in (
        (actual.loss, eager.loss, truth.loss), (gradient, eager_gradient.to(dtype), true_gradient),
    ):  # fmt: skip
        eager_error, error = (other - exact).abs().max(), (one - exact).abs().max()
        assert error <= 2 * eager_error + 1e-6, f"{error=:.2e}, {eager_error=:.2e}"


def test_half_precision_centres_meet_float32_embeddings_and_target_rows():
    case = make_case(8, 50, dim=32).to(torch.float32)
    own = case.centres[case.labels]
    rounded = replace(case, centres=case.centres.bfloat16())
    wide = replace(case, centres=rounded.centres.float())
    expected, (expected_gradient,) = gradients(margin_softmax_reference, wide, target_centres=own, **ADAFACE)
    actual, (gradient,) = gradients(margin_softmax, rounded, target_centres=own, chunk_classes=16, **ADAFACE)

    assert_close(actual.loss, expected.loss, 1e-5)
    assert_close(actual.target_cosine, (case.embeddings * own).sum(-1), 1e-6)
    assert_close(gradient, expected_gradient, 1e-5)


@by_centres
def test_the_half_precision_products_of_cuda_get_operands_of_one_dtype(trained, monkeypatch):
    """CPUs have no product with half operands and wide sums; this stands in for it and keeps its demands."""

    def wide_sum_product(left: Tensor, right: Tensor, wide: torch.dtype) -> Tensor:
        assert left.dtype == right.dtype == torch.bfloat16
        return left.to(wide) @ right.to(wide)

    case = make_case(8, 50, dim=32).to(torch.bfloat16)
    expected, expected_gradients = gradients(margin_softmax, case, trained=trained, chunk_classes=16, **ADAFACE)
    monkeypatch.setattr(module, "operand_dtype", lambda centres, accumulate, asked: centres.dtype)
    for where in (module, class_products):
        monkeypatch.setattr(where, "product", wide_sum_product)
    actual, actual_gradients = gradients(margin_softmax, case, trained=trained, chunk_classes=16, **ADAFACE)

    assert torch.equal(actual.loss, expected.loss), "bfloat16 embeddings lose nothing on the way"
    for one, other in zip(actual_gradients, expected_gradients, strict=True):
        assert one.dtype == torch.bfloat16
        assert (one - other).abs().max() <= 0.01 * other.abs().max(), "probabilities are rounded to bfloat16"


def test_target_rows_replace_the_target_column_alone():
    case = make_case(8, 12)
    own = normalize(case.centres[case.labels] + 0.01)
    found = gradients(margin_softmax, case, target_centres=own, chunk_classes=5, **ARCFACE)
    assert_same(found, gradients(margin_softmax_reference, case, target_centres=own, **ARCFACE))
    assert (found[0].loss - margin_softmax(*case, **ARCFACE).loss).abs().max() > 1e-4


@by_centres
def test_autocast_does_not_reach_inside_and_repeated_runs_give_the_same_bits(trained):
    case = make_case(32, 300, special=True).to(torch.float32)
    run = partial(gradients, margin_softmax, case, trained=trained, chunk_classes=64, **ADAFACE)
    first = run()
    assert_equal_bits(run(), first)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_equal_bits(run(), first)


def test_nothing_of_the_size_of_the_logits_is_kept_for_backward(monkeypatch):
    case = make_case(16, 400)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t.numel()), t)[1], lambda t: t):
        gradients(margin_softmax, case, chunk_classes=32, **ADAFACE)
    assert 0 < max(saved) < 16 * 400

    sizes: list[int] = []
    original = module.product

    def watched(left: Tensor, right: Tensor, accumulate: torch.dtype) -> Tensor:
        result = original(left, right, accumulate)
        if right.shape[0] == case.embeddings.shape[1]:
            sizes.append(result.numel())
        return result

    monkeypatch.setattr(module, "product", watched)
    gradients(margin_softmax, case, chunk_classes=32, **ADAFACE)
    assert max(sizes) == 16 * 32
    assert len(sizes) == 13, "one sweep gives loss and gradient"


def test_peak_memory_is_bounded_and_speed_is_no_less_than_dense():
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory is read from /proc")
    command = [forked_python(), str(MEMORY_WORKER)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout)
    assert found["extra_mib"] <= 64.0
    seconds = found["seconds"]
    assert seconds["chunked"] <= seconds["dense"]
    assert 2.0 * seconds["chunked"] <= seconds["origin"]


def test_evaluation_without_gradient_gives_the_same_loss():
    case = make_case(4, 30)
    with torch.no_grad():
        result = margin_softmax(*case, chunk_classes=8, **ADAFACE)
        trained = margin_softmax(case.embeddings, case.centres.requires_grad_(), *list(case)[2:], **ADAFACE)
    assert not result.loss.requires_grad
    assert_close(trained.loss, result.loss)


@by_centres
def test_compiling_sees_through_without_a_break(trained):
    """The torch form in one graph, with trained centres also for any batch size after the first.

    test_registered_ops.py has the Triton forms.
    """

    def mean_loss(*inputs: Tensor) -> Tensor:
        return margin_softmax(*inputs, **ADAFACE).loss.mean()

    torch.compiler.reset()
    compiled = torch.compile(mean_loss, fullgraph=True, backend="aot_eager")
    for batch in (24, 17) if trained else (24,):
        case = make_case(batch, 85).to(torch.float32)
        results = []
        for function in (compiled, mean_loss):
            embeddings, centres = case.embeddings.clone().requires_grad_(), case.centres.clone().requires_grad_(trained)
            loss = function(embeddings, centres, *tuple(case)[2:])
            loss.backward()
            results.append((loss, embeddings.grad, *([centres.grad] if trained else [])))
        assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_unrolled_chunks_are_compiled_for_each_doubling_of_the_batch_and_not_for_each_batch():
    """Their width follows the batch, and each width is another graph: torch.compile gives up after eight."""
    compiled_for = []

    def loss(*inputs: Tensor) -> Tensor:
        return margin_softmax(*inputs, **ADAFACE).loss

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend=lambda graph, _: compiled_for.append(graph) or graph.forward)
    for batch in (200, 210, *range(129, 256, 16)):
        case = make_case(batch, 3000).to(torch.float32)
        torch.testing.assert_close(compiled(*case), loss(*case))
    assert len(compiled_for) == 2, "one for the first size, one for any up to 256"


@by_form
def test_margins_never_get_a_gradient(softmax):
    case = make_case(4, 9)
    angular, additive = case.angular.clone().requires_grad_(), case.additive.clone().requires_grad_()
    embeddings = case.embeddings.clone().requires_grad_()
    loss = softmax(embeddings, case.centres, case.labels, angular, additive, **ADAFACE).loss.sum()
    assert torch.autograd.grad(loss, (angular, additive), allow_unused=True) == (None, None)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), chunk=st.integers(1, 30), more=st.floats(0.0, 0.8))
def test_order_of_samples_and_classes_changes_nothing_and_a_larger_margin_never_lowers_the_loss(seed, chunk, more):
    case = make_case(9, 21, seed=seed, special=True)
    draw = torch.Generator().manual_seed(seed)
    order, classes = torch.randperm(9, generator=draw), torch.randperm(21, generator=draw)

    def run(given_case: Case) -> tuple[Tensor, Tensor]:
        embeddings = given_case.embeddings.clone().requires_grad_()
        loss = margin_softmax(embeddings, *list(given_case)[1:], chunk_classes=chunk, **ADAFACE).loss
        return loss.detach(), torch.autograd.grad(loss.sum(), embeddings)[0]

    loss, gradient = run(case)
    moved = Case(case.embeddings[order], case.centres, case.labels[order], case.angular[order], case.additive[order])
    for found, wanted in zip(run(moved), (loss[order], gradient[order]), strict=True):
        assert_close(found, wanted)
    labels = torch.where(case.labels < 0, -1, torch.argsort(classes)[case.labels])
    assert_close(run(replace(case, centres=case.centres[classes], labels=labels))[0], loss)
    assert (run(replace(case, additive=case.additive + more))[0] >= loss).all()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_a_centre_far_from_everything_changes_nothing_measurable(seed):
    case = make_case(5, 9, seed=seed)
    # All embeddings in a half space; the new centre looks the other way, with a hard-to-notice logit near -64.
    pole = torch.eye(8, dtype=torch.float64)[0]
    case = replace(case, embeddings=normalize(case.embeddings + 40 * pole))
    more = replace(case, centres=torch.cat([case.centres, -pole[None]]))
    assert_same(gradients(margin_softmax, more, **ARCFACE), gradients(margin_softmax, case, **ARCFACE), 1e-9)


class Together:
    """Ranks that are threads: each hands in its tensor and gets all of them combined."""

    def __init__(self, count: int) -> None:
        self._given: list[Tensor | None] = [None] * count
        self._meeting = threading.Barrier(count, timeout=30)

    def all_reduce(self, rank: int, values: Tensor, how: str) -> Tensor:
        self._given[rank] = values.detach()
        self._meeting.wait()
        stacked = torch.stack([given for given in self._given if given is not None])
        self._meeting.wait()
        return stacked.sum(0) if how == "sum" else stacked.amax(0)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 2**20),
    st.lists(st.integers(1, 30), min_size=1, max_size=4),
    st.booleans(),
    st.sampled_from([ADAFACE, ARCFACE, INSIGHTFACE]),
)
def test_classes_in_shards_of_any_size_give_what_all_together_give(seed, sizes, trained, options):
    case = make_case(9, sum(sizes), seed=seed, special=sum(sizes) > 1)
    expected, expected_gradients = gradients(margin_softmax, case, trained=trained, chunk_classes=7, **options)
    together = Together(len(sizes))

    def run(rank: int) -> Any:
        first = sum(sizes[:rank])
        shard = ClassShard(first, sum(sizes), partial(together.all_reduce, rank))
        part = replace(case, centres=case.centres[first : first + sizes[rank]])
        return gradients(margin_softmax, part, trained=trained, shard=shard, chunk_classes=7, **options)

    with ThreadPoolExecutor(len(sizes)) as pool:
        found = list(pool.map(run, range(len(sizes))))
    for result, grads in found:
        assert_same((result, grads[:1]), (expected, expected_gradients[:1]))
    if trained:
        assert_close(torch.cat([centres for _, (_, centres) in found]), expected_gradients[1])


def test_chunks_are_within_the_classes_and_never_narrow():
    assert default_chunk_classes(128, 85742, "cpu") * 128 <= 2**18
    assert default_chunk_classes(4096, 85742, "cuda") == 1024
    assert default_chunk_classes(10**6, 85742, "cpu") == 256
    assert default_chunk_classes(0, 40, "cpu") == 40


# Of MS1MV2 and CASIA; about a chunk, 128 and 8; one and two.
@pytest.mark.parametrize("classes", [85_742, 10_572, 4097, 257, 129, 128, 127, 9, 8, 2, 1])
def test_on_cuda_every_block_has_rows_that_tensor_cores_can_load(classes, monkeypatch):
    """2^22 // 384 = 10,922 columns once made bfloat16 rows of 21,844 bytes, and the last chunk was as it came."""
    monkeypatch.setattr(class_products, "_feeds_tensor_cores", lambda centres: True)
    centres = torch.arange(1.0, classes + 1)[:, None]
    for batch in (1, 48, 384, 1000, 1024, 4096, 70_000):
        width = default_chunk_classes(batch, classes, "cuda")
        chunks = list(class_products.class_chunks(centres, width, torch.bfloat16))
        assert width == classes or width % 128 == 0
        assert max(batch, 1) * width <= max(2**22, 256 * batch)
        assert all(len(chunk.rows) % 8 == 0 and chunk.rows.stride(0) == 1 for chunk in chunks)
        assert [chunk.first for chunk in chunks] == list(range(0, classes, width))
        assert torch.equal(torch.cat([chunk.rows[: chunk.classes] for chunk in chunks]), centres.bfloat16())
        assert all(not chunk.rows[chunk.classes :].any() for chunk in chunks)


@by_centres
def test_rows_of_zeros_below_a_ragged_chunk_have_no_part_in_the_softmax(trained, monkeypatch):
    monkeypatch.setattr(class_products, "_feeds_tensor_cores", lambda centres: True)
    for classes in (1, 2, 7, 8, 85, 85_742 % 1024, 1000):
        case = make_case(9, classes)
        found = gradients(margin_softmax, case, trained=trained, chunk_classes=333, **ADAFACE)
        assert_same(found, gradients(margin_softmax_reference, case, trained=trained, **ADAFACE))


@by_head
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_centres_of_any_length_with_their_inverse_lengths_are_unit_centres(half, options):
    """What is rounded is the centre alone: its unit row is not rounded again."""
    case = make_case(12, 50, dim=32)
    lengths = torch.linspace(0.05, 3.0, 50, dtype=torch.float64)[torch.randperm(50)]
    stored = (case.centres * lengths[:, None]).to(half)
    unit = normalize(stored.double())
    own = unit[case.labels.clamp(min=0)]
    exact, single = replace(case, centres=unit), replace(case.to(torch.float32), centres=stored)
    expected, (expected_gradient,) = gradients(margin_softmax_reference, exact, target_centres=own, **options)
    scale = stored.double().norm(dim=1).reciprocal().float()
    actual, (gradient,) = gradients(
        margin_softmax, single, target_centres=own.float(), inverse_lengths=scale, chunk_classes=16, **options
    )
    assert_close(actual.loss.double(), expected.loss, 1e-5)
    assert_close(gradient.double(), expected_gradient, 1e-5)


@by_centres
def test_products_in_bfloat16_err_no_more_than_eager_ones_and_never_in_the_target(trained, monkeypatch):
    """Float32 masters and gradients; every operand of every product is rounded, no sum is."""
    case = make_case(64, 1000, dim=128).to(torch.float32)
    truth, true_gradients = gradients(margin_softmax_reference, case.to(torch.float64), trained=trained, **ADAFACE)
    seen: list[tuple[torch.dtype, ...]] = []

    def watched(left: Tensor, right: Tensor, accumulate: torch.dtype) -> Tensor:
        seen.append((left.dtype, right.dtype, accumulate))
        return left.to(accumulate) @ right.to(accumulate)

    def eager(*inputs: Tensor, **more: Any) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return margin_softmax_reference(*inputs, **more)

    in_bfloat16, eager_gradients = gradients(eager, case, trained=trained, **ADAFACE)
    for where in (module, class_products):
        monkeypatch.setattr(where, "product", watched)
    options = {"trained": trained, "product_dtype": torch.bfloat16, "chunk_classes": 300, **ADAFACE}
    actual, found = gradients(margin_softmax, case, **options)

    assert set(seen) == {(torch.bfloat16, torch.bfloat16, torch.float32)}
    assert len(seen) == (16 if trained else 8)
    assert {value.dtype for value in (actual.loss, *found)} == {torch.float32}
    assert_close(actual.target_cosine.double(), truth.target_cosine, 1e-6)

    def off(values: list[Tensor]) -> list[float]:
        exact = [truth.loss, *true_gradients]
        return [float((a - b).abs().max() / b.abs().max()) for a, b in zip(values, exact, strict=True)]

    ours, theirs = off([actual.loss, *found]), off([in_bfloat16.loss, *eager_gradients])
    assert all(one <= other for one, other in zip(ours, theirs, strict=True)), (ours, theirs)
    assert max(ours[1:]) <= 0.01


CASE = make_case(4, 9)
SINGLE = CASE.to(torch.float32)
OWN = SINGLE.centres[SINGLE.labels]


@pytest.mark.parametrize(
    ("case", "options", "message"),
    [
        (replace(CASE, labels=torch.zeros(4, 1, dtype=torch.int64)), {}, r"labels must be \(4,\), got \(4, 1\)"),
        (replace(CASE, labels=torch.zeros(4, dtype=torch.int32)), {}, "labels must be int64"),
        (replace(CASE, angular=torch.zeros(4, 1)), {}, r"angular must be \(4,\), got \(4, 1\)"),
        (replace(CASE, additive=torch.zeros(3)), {}, r"additive must be \(4,\)"),
        (replace(CASE, additive=torch.zeros(4, dtype=torch.int64)), {}, "additive must be float64"),
        (replace(CASE, centres=torch.zeros(9, 7)), {}, r"unit_centres must be \(C, 8\)"),
        (replace(CASE, centres=torch.zeros(0, 8)), {}, "C >= 1"),
        (replace(CASE, embeddings=torch.zeros(8)), {}, r"unit_embeddings must be \(B, D\)"),
        (CASE, {"cosine_limit": 1.5}, "cosine_limit must be in"),
        (CASE, {"angle_limits": (2.0, 1.0)}, "angle_limits must be"),
        (CASE, {"margin_grad": "none"}, "margin_grad must be exact or straight_through"),
        (CASE, {"chunk_classes": 0}, "chunk_classes must be positive"),
        (CASE, {"target_centres": torch.zeros(4, 7)}, r"target_centres must be \(4, 8\)"),
        (replace(CASE, centres=CASE.centres.clone().requires_grad_()), {"target_centres": torch.zeros(4, 8)},
         "target_centres must be None when"),
        (SINGLE, {"inverse_lengths": torch.ones(9)}, "inverse_lengths need target_centres"),
        (SINGLE, {"inverse_lengths": torch.ones(8), "target_centres": OWN},
         r"inverse_lengths must be \(9,\) float32, got \(8,\)"),
        (SINGLE, {"inverse_lengths": torch.ones(9).half(), "target_centres": OWN}, "float32, got"),
        (SINGLE, {"product_dtype": torch.float16}, "product_dtype must be bfloat16 or None"),
        (CASE, {"product_dtype": torch.bfloat16}, "product_dtype is for float32 centres and sums"),
        (replace(SINGLE, centres=OWN.bfloat16()), {"product_dtype": torch.bfloat16}, "is for float32 centres"),
        (CASE, {"shard": ClassShard(-1, 11, lambda values, how: values)}, "does not lie within 11"),
        (CASE, {"shard": ClassShard(5, 11, lambda values, how: values)}, "does not lie within 11"),
        (CASE, {"shard": ClassShard(0, 9, lambda values, how: values), "target_centres": CASE.centres[CASE.labels]},
         "target_centres must be None for a shard"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(case: Case, options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        margin_softmax(*case, **{**ADAFACE, **options})


@pytest.mark.parametrize(
    ("form", "interpreter", "changes", "message"),
    [
        ("flash", True, {}, "form must be one of auto, torch, chunks, fused, got 'flash'"),
        ("fused", False, {}, "form fused runs on CUDA or in Triton's interpreter.*on cpu"),
        ("chunks", True, {"dtype": torch.float64}, "take form torch"),
        ("chunks", True, {"dtype": torch.float16}, "not for torch.float16 centres"),
        ("chunks", True, {"logit_scale": 90.0}, "logits up to 90 over 10 classes; take form torch"),
        ("fused", True, {"dim": 24}, "D a multiple of 16 up to 512, got torch.float32 and D 24; take form chunks"),
        ("fused", True, {"dtype": torch.bfloat16, "shared": 65536},
         "101376 bytes of shared memory.*cpu has 65536; take"),
    ],
)  # fmt: skip
def test_a_form_that_cannot_take_the_inputs_is_refused(form, interpreter, changes, message, monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed")
    # Before the switch is set, or its kernels would be interpreted.
    triton_forms = importlib.import_module("adadistill.kernels.margin_softmax_triton")
    if "shared" in changes:
        monkeypatch.setattr(triton_forms, "shared_memory", lambda device: changes["shared"])
    monkeypatch.setenv("TRITON_INTERPRET", "1" if interpreter else "0")
    case = make_case(4, 10, changes.get("dim", 16)).to(changes.get("dtype", torch.float32))
    with pytest.raises(ValueError, match=message):
        margin_softmax(*case, form=form, **ARCFACE | {"logit_scale": changes.get("logit_scale", 64.0)})


@pytest.mark.gpu
@needs_gpu
@by_centres
def test_cuda_float64_equals_the_cpu_reference(trained):
    case = make_case(33, 1000, dim=64, special=True)
    expected, expected_gradients = gradients(margin_softmax_reference, case, trained=trained, **ADAFACE)
    on_cuda = case.to(torch.float64, "cuda")
    actual, found = gradients(margin_softmax, on_cuda, trained=trained, chunk_classes=300, **ADAFACE)
    for one, other in zip((actual.loss, *found), (expected.loss, *expected_gradients), strict=True):
        assert_close(one.cpu(), other)


@pytest.mark.gpu
@needs_gpu
def test_cuda_bfloat16_centres_keep_float32_sums_and_the_target_row():
    case = make_case(64, 5000, dim=512).to(torch.float32, "cuda")
    target_rows = case.centres[case.labels]
    rounded = replace(case, centres=case.centres.bfloat16())
    # The same rounded operands in float64: what is left is the error of the sums and of the bfloat16 probabilities.
    truth_case = replace(case, embeddings=case.embeddings.bfloat16(), centres=rounded.centres).to(torch.float64)
    truth, (true_gradient,) = gradients(margin_softmax_reference, truth_case, **ADAFACE)
    actual, (gradient,) = gradients(margin_softmax, rounded, target_centres=target_rows, **ADAFACE)

    # A bfloat16 sum would be off by 0.25 in a logit; the target's own rounding moves it by about 64 * 2e-4.
    assert (actual.loss - truth.loss).abs().max() < 0.05
    assert (gradient - true_gradient).abs().max() < 0.02 * true_gradient.abs().max()


@pytest.mark.gpu
@needs_gpu
def test_cuda_never_waits_for_the_device():
    case = make_case(64, 3000, dim=64).to(torch.float32, "cuda")
    gradients(margin_softmax, case, **ADAFACE)
    torch.cuda.set_sync_debug_mode("error")
    try:
        gradients(margin_softmax, case, **ADAFACE)
        gradients(margin_softmax, case, trained=True, **ADAFACE)
    finally:
        torch.cuda.set_sync_debug_mode("default")
