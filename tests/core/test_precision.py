"""Number formats by name and device, and that float32 is float32 on CUDA too."""

from __future__ import annotations

import pytest
import torch

from adadistill.core.precision import resolve_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _as_torch_starts():
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = True, True
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_an_exact_precision_on_cuda_rounds_nothing_to_tf32(name):
    formats = resolve_precision(name, CUDA)
    assert formats.autocast_dtype is None
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_what_is_scored_in_float32_after_training_in_bfloat16_has_no_tf32_in_its_convolutions():
    assert resolve_precision("auto", CUDA).autocast_dtype == torch.bfloat16
    assert not torch.backends.cudnn.allow_tf32


def test_the_cpu_leaves_the_settings_of_cuda_alone():
    assert resolve_precision("auto", CPU).autocast_dtype is None
    assert torch.backends.cudnn.allow_tf32
    assert torch.backends.cuda.matmul.allow_tf32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_convolution_in_float32_on_cuda_errs_no_more_than_float32_does():
    resolve_precision("float32", CUDA)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 64, 28, 28, generator=generator, dtype=torch.float64)
    weights = torch.randn(64, 64, 3, 3, generator=generator, dtype=torch.float64)
    exact = torch.nn.functional.conv2d(images, weights)
    found = torch.nn.functional.conv2d(images.to(CUDA, torch.float32), weights.to(CUDA, torch.float32)).cpu()
    assert (found - exact).abs().max() < 1e-5 * exact.abs().max()  # TF32 errs by 1e-3
