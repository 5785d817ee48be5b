"""PReLU forward and backward alone, on feature maps of a MobileFaceNet: torch's own against ours.

Isolates one activation; leaves out the convolutions and norms around it. Before timing, gradients must agree. Bytes are
those of the 5 passes over the feature map that any PReLU with a backward must make; `share_of_copy_rate` sets them
against a copy in the same process, and passes 1 where the map stays in a cache. Forms alternate, call by call.

    python -m adadistill.bench kernels.bench_prelu --batch 128
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from adadistill.bench.bench_parser import bench_parser
from adadistill.bench.kernels.forms import measure_forms
from adadistill.kernels.prelu import prelu, prelu_reference

TINY = "--batch 2 --repeats 2 --device cpu"

LAYERS = ((64, 56), (128, 28), (256, 14), (512, 7))
"""(channels, side) of feature maps in a MobileFaceNet at 112 x 112."""

FORMS = {"torch": prelu_reference, "ours": prelu}

PASSES = 5  # forward reads and writes; backward reads gradient and input and writes a gradient


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and append rows."""
    parser = bench_parser("kernels.bench_prelu", __doc__)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    for channels, side in LAYERS:
        inputs = torch.randn(arguments.batch, channels, side, side, generator=torch.Generator().manual_seed(0))
        inputs = inputs.to(device).contiguous(memory_format=torch.channels_last).requires_grad_()
        slopes = torch.full((channels,), 0.25, device=device, requires_grad=True)
        _check(inputs, slopes)
        steps = {name: partial(_step, function, inputs, slopes) for name, function in FORMS.items()}
        measure_forms(
            steps, device, moved_bytes=PASSES * inputs.numel() * inputs.element_size(), repeats=arguments.repeats,
            rows=arguments.rows, bench="prelu", batch=arguments.batch, channels=channels, side=side,
        )  # fmt: skip
    return 0


def _check(inputs: Tensor, slopes: Tensor) -> None:
    ours, reference = (
        torch.autograd.grad(function(inputs, slopes).square().sum(), (inputs, slopes))
        for function in (prelu, prelu_reference)
    )
    for one, other in zip(ours, reference, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def _step(function: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, slopes: Tensor) -> None:
    outputs = function(inputs, slopes)
    torch.autograd.grad(outputs, (inputs, slopes), grad_outputs=outputs.detach())


if __name__ == "__main__":
    sys.exit(main())
