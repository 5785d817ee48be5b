"""PReLU with the fast CPU backward against torch's own."""

import pytest
import torch

import adadistill.kernels.prelu as module
from adadistill.kernels.prelu import prelu, prelu_reference

# One value, no spatial size, one channel, an odd grid, no sample.
SHAPES = [(1, 1), (5, 3), (2, 1, 4, 4), (7, 16, 5, 3), (0, 4, 2, 2), (3, 4, 6)]


def batch(shape, dtype=torch.float64, *, channels_last=False):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(shape, generator=generator, dtype=dtype)
    inputs.flatten()[::5] = 0.0
    grad = torch.randn(shape, generator=generator, dtype=dtype)
    slopes = torch.linspace(-0.3, 1.4, shape[1], dtype=dtype)
    if channels_last:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    return inputs.requires_grad_(), slopes.requires_grad_(), grad


def gradients(function, inputs, slopes, grad):
    outputs = function(inputs, slopes)
    return outputs, *torch.autograd.grad(outputs, (inputs, slopes), grad)


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_torch_forward_and_backward(shape):
    arguments = batch(shape)
    for actual, expected in zip(gradients(prelu, *arguments), gradients(prelu_reference, *arguments), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


# Every slice one sample, several slices with a remainder, one slice.
@pytest.mark.parametrize("slice_bytes", [1, 3 * 16 * 15 * 8, 1 << 30])
@pytest.mark.parametrize("channels_last", [False, True])
def test_slices_and_memory_format_do_not_change_the_gradients(monkeypatch, slice_bytes, channels_last):
    monkeypatch.setattr(module, "_SLICE_BYTES", slice_bytes)
    arguments = batch((7, 16, 5, 3), channels_last=channels_last)
    outputs, inputs_grad, slopes_grad = gradients(prelu, *arguments)
    assert inputs_grad.is_contiguous(memory_format=torch.channels_last) == channels_last
    for actual, expected in zip(
        (outputs, inputs_grad, slopes_grad), gradients(prelu_reference, *arguments), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_float32_input_gradient_is_torchs_bit_for_bit_for_small_slopes():
    inputs, _, grad = batch((4, 8, 9, 9), torch.float32)
    slopes = torch.full((8,), 0.25, requires_grad=True)
    _, actual, _ = gradients(prelu, inputs, slopes, grad)
    _, expected, _ = gradients(prelu_reference, inputs, slopes, grad)
    assert torch.equal(actual, expected)


def test_float32_slope_gradient_is_no_less_accurate_than_torchs():
    inputs, slopes, grad = batch((16, 32, 14, 14), torch.float32)
    truth = gradients(prelu_reference, *(t.detach().double().requires_grad_() for t in (inputs, slopes)), grad.double())
    error = (gradients(prelu, inputs, slopes, grad)[2] - truth[2]).abs().max()
    torch_error = (gradients(prelu_reference, inputs, slopes, grad)[2] - truth[2]).abs().max()
    assert error <= 2 * torch_error + 1e-6, f"{error=:.2e}, {torch_error=:.2e}"


def test_gradients_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(3, 4, 2, 2, generator=generator, dtype=torch.float64).requires_grad_()
    slopes = torch.rand(4, generator=generator, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(prelu, (inputs, slopes))


def test_keeps_to_torch_under_autocast_and_without_gradient():
    inputs, slopes, _ = batch((2, 3, 4, 4), torch.float32)
    with torch.no_grad():
        assert prelu(inputs, slopes).grad_fn is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert prelu(inputs.bfloat16(), slopes).dtype == torch.bfloat16


@pytest.mark.parametrize("slopes", [torch.ones(3), torch.ones(()), torch.ones(2, 1)])
def test_refuses_slopes_that_are_not_one_per_channel(slopes):
    with pytest.raises(ValueError, match="slopes must hold one number per channel"):
        prelu(torch.ones(4, 2, 3, 3), slopes)
