"""A teacher network alone: images a second of each way to run it, on a batch that is already on the device.

Leaves out loading, the student and everything else of a step. The reference is what one would write first: the network
as loaded, eager, float32, NCHW (on CUDA with torch's own setting of TF32 for convolutions, which each row records).
Before anything is timed, every form must point where the reference does: the cosines of their embeddings, on noise and
with random weights whose norms have seen such noise, are part of the rows. Rounds of all forms alternate, so that a
busy machine slows all. Rates count the operations of convolutions and linear maps, and are set against a plain matrix
product in the same format, measured in the same run (not where TF32 may stand in for float32 in convolutions).

    python -m adadistill.bench teacher --arch ir50 ir101 --batch-size 1024
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from adadistill.bench.bench_parser import bench_parser
from adadistill.bench.probes import gemm_tflop_per_s, machine_probes
from adadistill.bench.rows import append_row
from adadistill.bench.timing import extra_mib, seconds_of, spread
from adadistill.core.backbones import BackboneConfig, build_backbone
from adadistill.core.teachers.network_teacher import NetworkTeacher

TINY = "--arch ir18 --width 0.125 --image-size 32 --batch-size 2 --rounds 2 --calls 1 --device cpu --forms bfloat16"

_SETTLING_IMAGES = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """One way of running a teacher; fields as `NetworkTeacher` takes them."""

    autocast_dtype: torch.dtype | None = None
    channels_last: bool = True
    fold_batch_norm: bool = True
    compile: bool = False

    @property
    def least_cosine(self) -> float:
        """What all but 1 % of the embeddings must reach to be the same teacher's. TF32 has 10 bits, bfloat16 7."""
        return 0.9999 if self.autocast_dtype is None else 0.999


REFERENCE = "float32"

FORMS = {
    REFERENCE: Form(channels_last=False, fold_batch_norm=False),
    "float32-folded": Form(),
    "float32-compiled": Form(compile=True),
    "bfloat16": Form(autocast_dtype=torch.bfloat16),
    "bfloat16-compiled": Form(autocast_dtype=torch.bfloat16, compile=True),
}


@dataclass(slots=True)
class Runner:
    """A teacher, and images as it takes them."""

    name: str
    teacher: NetworkTeacher
    images: Tensor
    first_call_s: float = 0.0
    """Seconds of the first call, in which it may compile."""

    def embed(self) -> Tensor:
        """(B, D) unit embeddings of the batch."""
        return self.teacher.embed(self.images)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and append rows."""
    parser = bench_parser("teacher", __doc__)
    parser.add_argument("--arch", nargs="+", default=["ir50"])
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), default=list(FORMS), help=f"beside {REFERENCE}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=10, help="batches a round, of each form")
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    machine_probes(device)  # before anything holds the machine's memory
    for arch in arguments.arch:
        torch.compiler.reset()  # every network of a class counts towards the compiler's limit for its code
        network = random_teacher(arch, arguments.width, arguments.image_size, device)
        images = noise(arguments.batch_size, arguments.image_size, device, seed=1)
        gflop = _gflop_per_image(network, images)
        runners = [build_runner(name, network, images) for name in dict.fromkeys([REFERENCE, *arguments.forms])]
        cosines = _agreement(runners)
        measured = _alternating_rates(runners, rounds=arguments.rounds, calls=arguments.calls)
        reference_rate = spread(measured[REFERENCE])["median"]
        for runner in runners:
            form, rate = FORMS[runner.name], spread(measured[runner.name])
            tflop_per_s = rate["median"] * gflop / 1e3
            append_row(
                arguments.rows, bench="teacher", arch=arch, width=arguments.width, image_size=arguments.image_size,
                batch_size=arguments.batch_size, rounds=arguments.rounds, calls=arguments.calls, device=device,
                gflop_per_image=gflop, **_tf32(), form=runner.name, images_per_s=rate,
                against_float32=rate["median"] / reference_rate, tflop_per_s=tflop_per_s,
                share_of_gemm_rate=_share_of_gemm_rate(tflop_per_s, form, device), cosine=cosines[runner.name],
                first_call_s=runner.first_call_s, extra_mib=extra_mib(runner.embed, device),
            )  # fmt: skip
    return 0


def random_teacher(arch: str, width: float, image_size: int, device: torch.device) -> nn.Module:
    """A network with random weights, float32, in evaluation mode, whose norms hold the statistics of some noise."""
    # Without dropout: it would shift what the last norm sees from training to evaluation.
    config = BackboneConfig(arch=arch, width=width, dropout=0.0)
    network = build_backbone(config, image_size, generator=0).to(device).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network(noise(_SETTLING_IMAGES, image_size, device, seed=0))
    return network.eval()


def noise(count: int, image_size: int, device: torch.device, *, seed: int) -> Tensor:
    """(count, 3, image_size, image_size) float32 in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, image_size, image_size, generator=generator).mul_(2).sub_(1).to(device)


def build_runner(name: str, network: nn.Module, images: Tensor) -> Runner:
    """A form of the network, with the images in its formats, as a loader would deliver them."""
    form = FORMS[name]
    teacher = NetworkTeacher(
        network,
        embedding_dim=512,
        device=images.device,
        autocast_dtype=form.autocast_dtype,
        channels_last=form.channels_last,
        fold_batch_norm=form.fold_batch_norm,
        compile=form.compile,
        batch_size=len(images),
    )
    memory_format = torch.channels_last if form.channels_last else torch.contiguous_format
    runner = Runner(
        name, teacher, images.to(form.autocast_dtype or images.dtype).contiguous(memory_format=memory_format)
    )
    runner.first_call_s = seconds_of(runner.embed, images.device)
    return runner


def _agreement(runners: Sequence[Runner]) -> dict[str, dict[str, float]]:
    """Cosines of each form's embeddings to the reference's, by name of the form.

    Raises:
        ValueError: a form is another teacher.
    """
    truth = next(runner for runner in runners if runner.name == REFERENCE).embed().double()
    found = {}
    for runner in runners:
        cosine = F.cosine_similarity(runner.embed().double(), truth)  # (B,)
        p1 = torch.quantile(cosine, 0.01).item()
        found[runner.name] = {"mean": cosine.mean().item(), "p1": p1, "min": cosine.min().item()}
        if not p1 >= FORMS[runner.name].least_cosine:
            raise ValueError(
                f"{runner.name}: 1 % of the embeddings have a cosine to {REFERENCE} of {p1:.6f} or less, "
                f"{FORMS[runner.name].least_cosine} is wanted; nothing was timed"
            )
    return found


def _alternating_rates(runners: Sequence[Runner], *, rounds: int, calls: int) -> dict[str, list[float]]:
    """Images a second of every round, by name of the form."""
    rates: dict[str, list[float]] = {runner.name: [] for runner in runners}
    for _ in range(rounds):
        for runner in runners:
            seconds = seconds_of(runner.embed, runner.images.device, calls)
            rates[runner.name].append(calls * len(runner.images) / seconds)
    return rates


def _gflop_per_image(network: nn.Module, images: Tensor) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(images[:1])
    return counter.get_total_flops() / 1e9


def _share_of_gemm_rate(tflop_per_s: float, form: Form, device: torch.device) -> float | None:
    if form.autocast_dtype is None and device.type == "cuda" and torch.backends.cudnn.allow_tf32:
        return None
    return tflop_per_s / gemm_tflop_per_s(device, form.autocast_dtype or torch.float32)


def _tf32() -> dict[str, bool]:
    """Whether float32 convolutions and matrix products may use TF32 on CUDA."""
    return {"tf32_conv": torch.backends.cudnn.allow_tf32, "tf32_matmul": torch.backends.cuda.matmul.allow_tf32}


if __name__ == "__main__":
    sys.exit(main())
