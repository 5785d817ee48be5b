"""Planar augment alone: random rows of a store in memory to normalised network input, on one device.

Isolates gather, chroma upsampling, colour conversion, augmentation and normalisation; leaves out disks, transfers and
drawing the parameters. Before timing, pixels must equal the definition as decode threads compute it, byte for byte.
`torch` is the reference, a hundred small operations; `triton` is the one launch that training makes on CUDA; `threads`
is what the CPU pipeline does instead, on one thread. Bytes are the stored rows read once and the output written once;
`share_of_copy_rate` sets them against a plain copy of as many bytes on the same device. Forms and that copy alternate,
call by call.

    python -m adadistill.bench kernels.bench_planar_augment --batch 1024 --augment none adaface
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from adadistill.bench.bench_parser import bench_parser
from adadistill.bench.rows import append_row
from adadistill.bench.timing import alternating_ms, spread
from adadistill.kernels.planar_augment import (
    DeviceTables,
    Layout,
    planar_augment,
    planar_augment_reference,
    planar_augment_u8,
)
from adadistill.loaders.augment.augment_image import augment_image
from adadistill.loaders.augment.augment_policy import Augmentation, AugmentConfig
from adadistill.loaders.pixels import to_network_input
from adadistill.loaders.plane_pixels import PlaneConverter

TINY = "--batch 5 --images 9 --image-size 32 --repeats 2 --augment none adaface --device cpu"

_CHECKED = 64


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and append rows."""
    parser = bench_parser("kernels.bench_planar_augment", __doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[1024])
    parser.add_argument(
        "--images", type=int, default=20_000, help="rows of the store: 20,000 faces are 376 MB as planes"
    )
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--layout", nargs="+", choices=("planes", "rgb"), default=["planes", "rgb"])
    parser.add_argument(
        "--augment", nargs="+", choices=("none", "adaface", "insightface"), default=["none", "adaface", "insightface"]
    )
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    for layout in arguments.layout:
        store = _store(layout, arguments.images, arguments.image_size, device)
        for batch in arguments.batch:
            for policy in arguments.augment:
                _measure(store, layout, batch, policy, arguments)
    return 0


def _measure(store: Tensor, layout: Layout, batch: int, policy: str, arguments: argparse.Namespace) -> None:
    size, device = arguments.image_size, store.device
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    augmentation = Augmentation(
        AugmentConfig(policy=policy),  # type: ignore[arg-type]
        mirror_probability=0.5,
        seed=0,
        image_size=size,
    )
    record_ids = np.random.default_rng(0).integers(0, len(store), batch)
    parameters = augmentation.parameters(0, record_ids)
    call = {
        "store": store,
        "rows": torch.from_numpy(record_ids).to(device),
        "layout": layout,
        "image_size": size,
        "mirrored": torch.from_numpy(augmentation.mirrored(0, record_ids)),
        "parameters": None if parameters is None else torch.from_numpy(parameters),
        "tables": None if augmentation.tables is None else DeviceTables.of(augmentation.tables, device),
    }
    threads = partial(_on_a_thread, store.cpu().numpy()[record_ids], layout, size, parameters, call, augmentation)
    _check(planar_augment_u8(**call), threads())
    _check(planar_augment_reference(**call), threads())

    def reference() -> Tensor:
        pixels = planar_augment_reference(**call)
        return to_network_input(pixels, device=device, dtype=dtype, channels_last=True)

    forms: dict[str, Callable[[], object]] = {"torch": reference}
    if device.type == "cuda":
        forms["triton"] = partial(planar_augment, **call, dtype=dtype, channels_last=True)
    else:
        forms["threads"] = threads
    moved = batch * (store.shape[1] + 3 * size * size * dtype.itemsize)
    copied = torch.empty(moved // 2, dtype=torch.uint8, device=device)
    copying: dict[str, Callable[[], object]] = {"copy": copied.clone}
    found = {name: spread(times) for name, times in alternating_ms(forms | copying, device, arguments.repeats).items()}
    copy_ms = found.pop("copy")["median"]
    for name, times in found.items():
        append_row(
            arguments.rows, bench="planar_augment", form=name, layout=layout, augment=policy, batch=batch,
            image_size=size, dtype=str(dtype).removeprefix("torch."), device=device, ms=times,
            images_per_s=1e3 * batch / times["median"], gb_per_s=moved / times["median"] / 1e6,
            share_of_copy_rate=copy_ms / times["median"],
        )  # fmt: skip


def _store(layout: Layout, images: int, size: int, device: torch.device) -> Tensor:
    """(images, bytes) uint8 noise, made where it lies."""
    image_bytes = 3 * size * size // (2 if layout == "planes" else 1)
    generator = torch.Generator(device).manual_seed(0)
    return torch.randint(0, 256, (images, image_bytes), dtype=torch.uint8, device=device, generator=generator)


def _on_a_thread(
    stored: np.ndarray, layout: Layout, size: int, parameters: np.ndarray | None, call: dict, augmentation: Augmentation
) -> np.ndarray:
    """(B, S, S, 3) uint8 as a decode thread makes them."""
    if layout == "planes":
        pixels = np.empty((len(stored), size, size, 3), dtype=np.uint8)
        PlaneConverter(size, len(stored)).convert(stored, pixels)
    else:
        pixels = stored.reshape(len(stored), size, size, 3)
    out = np.empty_like(pixels)
    for row, image in enumerate(pixels):
        if parameters is not None:
            assert augmentation.tables is not None, "parameters point into tables"
            augment_image(image, parameters[row], augmentation.tables, out[row])
        else:
            out[row] = image[:, ::-1] if call["mirrored"][row] else image
    return out


def _check(found: Tensor, wanted: np.ndarray) -> None:
    if not np.array_equal(found[:_CHECKED].cpu().numpy(), wanted[:_CHECKED]):
        raise ValueError("pixels are not those of the definition; nothing was timed")


if __name__ == "__main__":
    sys.exit(main())
