"""One definition, four ways to compute it: plain loops, torch, numpy on decode threads, and one Triton launch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import planar_cases
import pytest
import simplejpeg
import torch
from hopper_code import compiled_without_spill
from interpreter import interpreted

from adadistill.kernels.augment_parameters import Column, resample_tables
from adadistill.kernels.planar_augment import BLOCK, planar_augment, planar_augment_reference, planar_augment_u8
from adadistill.loaders.augment.augment_image import augment_image
from adadistill.loaders.block_store.jpeg_planes import PlaneDecoder, TurboJpegMissingError
from adadistill.loaders.plane_pixels import PlaneConverter

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def _slow(pixels: np.ndarray, row: np.ndarray, size: int) -> np.ndarray:
    """The definition of kernels/augment_parameters.py, pixel by pixel, in Python's own integers."""
    tables = resample_tables(size)
    image = [[[int(v) for v in pixel] for pixel in line] for line in pixels]
    top, left, height, width = (int(row[c]) for c in range(Column.CROP_TOP, Column.CROP_WIDTH + 1))
    for y in range(size):
        for x in range(size):
            if not (top <= y < top + height and left <= x < left + width):
                image[y][x] = [0, 0, 0]

    def resample(image, table, length):
        index, weight = tables.index[table].tolist(), tables.weight[table].tolist()
        wide = [
            [[(sum(weight[x][t] * line[index[x][t]][c] for t in range(8)) + 128) >> 8 for c in range(3)]
             for x in range(length)] for line in image
        ]  # fmt: skip
        return [
            [[min(255, max(0, (sum(weight[y][t] * wide[index[y][t]][x][c] for t in range(8)) + 8192) >> 14))
              for c in range(3)] for x in range(length)] for y in range(length)
        ]  # fmt: skip

    if row[Column.LOW_SIDE]:
        image = resample(image, row[Column.DOWN_TABLE], int(row[Column.LOW_SIDE]))
        image = resample(image, row[Column.UP_TABLE], size)
    if row[Column.BLUR_TABLE] >= 0:
        image = resample(image, row[Column.BLUR_TABLE], size)
    matrix = [int(v) for v in row[Column.MATRIX : Column.MATRIX + 9]]

    def clip(value):
        return min(255, max(0, value))

    def grey(p):
        return (19595 * p[0] + 38470 * p[1] + 7471 * p[2] + 32768) >> 16

    for line in image:
        for x, p in enumerate(line):
            line[x] = [clip((sum(matrix[3 * c + k] * p[k] for k in range(3)) + 32768) >> 16) for c in range(3)]
            if row[Column.GREY]:
                line[x] = [grey(line[x])] * 3
    for place in range(Column.FIRST, Column.THIRD + 1):
        operation = int(row[place])
        factor = int(row[Column.BRIGHTNESS + operation])
        mean = (sum(grey(p) for line in image for p in line) + size * size // 2) // (size * size)
        for line in image:
            for x, p in enumerate(line):
                d = (0, mean, grey(p))[operation]
                line[x] = [clip((65536 * d + factor * (v - d)) >> 16) for v in p]
    if row[Column.MIRROR]:
        image = [line[::-1] for line in image]
    return np.array(image, dtype=np.uint8)


@pytest.mark.parametrize("name", planar_cases.CASES[1:])
def test_torch_and_numpy_do_what_the_definition_says(name: str):
    size = 16
    case = planar_cases.make_case("rgb", name, size)
    found = planar_augment_u8(**case).numpy()
    out = np.empty((size, size, 3), dtype=np.uint8)
    for number, row in enumerate(case["parameters"].numpy()):
        stored = case["store"][case["rows"][number]].numpy().reshape(size, size, 3)
        wanted = _slow(stored, row, size)
        assert np.array_equal(found[number], wanted)
        augment_image(stored, row, resample_tables(size), out)
        assert np.array_equal(out, wanted)


@needs_triton
def test_the_triton_kernel_gives_the_bits_of_the_reference():
    cases = interpreted("planar_augment")
    assert len(cases) == len(planar_cases.CASES) + 3 + 8
    assert [case["case"] for case in cases if not case["equal"]] == []


@needs_triton
@pytest.mark.parametrize("augments", [False, True])
def test_the_triton_kernel_compiles_for_hopper(augments: bool, tmp_path: Path):
    """Without a GPU: down to the machine code of compute capability 9.0, and without a spill."""
    from adadistill.kernels.planar_augment_triton import augment_kernel

    pointers = {
        "out": "*bf16", "store": "*u8", "rows": "*i64", "mirrored": "*u8", "parameters": "*i32", "slots": "*i32",
        "index": "*i16", "weight": "*i16", "pixels_a": "*u8", "pixels_b": "*u8", "middle": "*i32",
    }  # fmt: skip
    constants = {"S": 112, "PLANES": True, "AUGMENTS": augments, "NORMALISES": True, "WIDE": False, "BLOCK": BLOCK,
                 "RULES": None, "RULES_KEY": ""}  # fmt: skip
    compiled_without_spill(augment_kernel, pointers, constants, tmp_path)


@pytest.mark.parametrize("size", [16, 34, 112])
def test_planes_upsample_alike_in_torch_and_on_decode_threads(size: int):
    case = planar_cases.make_case("planes", "mirror", size)
    case["mirrored"] = torch.zeros_like(case["mirrored"])
    out = np.empty((planar_cases.COUNT, size, size, 3), dtype=np.uint8)
    PlaneConverter(size, planar_cases.COUNT + 2).convert(case["store"][case["rows"]].numpy(), out)
    assert np.array_equal(planar_augment_u8(**case).numpy(), out)


@pytest.mark.parametrize("size", [16, 48, 112])
@pytest.mark.parametrize("quality", [40, 75, 98])
def test_planes_of_a_jpeg_give_libjpeg_turbo_s_own_rgb(size: int, quality: int):
    noise = np.random.RandomState(quality).randint(0, 256, (size, size, 3), dtype=np.uint8)
    body = simplejpeg.encode_jpeg(noise, quality=quality, colorsubsampling="420")
    stored = np.empty((1, 3 * size * size // 2), dtype=np.uint8)
    try:
        PlaneDecoder(size).decode(body, stored[0], where="test")
    except TurboJpegMissingError as reason:
        pytest.skip(str(reason))
    none = {"mirrored": torch.zeros(1, dtype=torch.bool), "parameters": None, "tables": None}
    found = planar_augment_u8(
        torch.from_numpy(stored), torch.zeros(1, dtype=torch.int64), layout="planes", image_size=size, **none
    )
    assert np.array_equal(found[0].numpy(), simplejpeg.decode_jpeg(body))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_network_input_is_that_of_every_other_pipeline(dtype: torch.dtype, channels_last: bool):
    case = planar_cases.make_case("rgb", "mirror", 16)
    found = planar_augment(**case, dtype=dtype, channels_last=channels_last)
    wanted = planar_cases.network_input(planar_augment_reference(**case), dtype, channels_last)
    assert torch.equal(found, wanted)
    assert found.stride() == wanted.stride()


def test_an_empty_batch_is_an_empty_batch():
    case = planar_cases.make_case("rgb", "everything", 16)
    case |= {"rows": case["rows"][:0], "mirrored": case["mirrored"][:0], "parameters": case["parameters"][:0]}
    assert planar_augment(**case, dtype=torch.float32, channels_last=True).shape == (0, 3, 16, 16)


@pytest.mark.parametrize("channels_last", [False, True])
def test_augmentation_compiles_to_one_graph_though_it_looks_at_host_parameters(channels_last: bool):
    def both(call: dict) -> tuple[torch.Tensor, torch.Tensor]:
        images = planar_augment(**call, dtype=torch.float32, channels_last=channels_last)
        return images, planar_augment_u8(**call)

    torch.compiler.reset()
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for layout, kind in (("rgb", "everything"), ("planes", "mirror")):
        call = planar_cases.make_case(layout, kind, 16)
        for one, other in zip(compiled(call), both(call), strict=True):
            assert torch.equal(one, other)
            assert one.stride() == other.stride()


@pytest.mark.parametrize("count", [0, 5])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_the_operator_gives_the_strides_that_its_fake_promises(count: int, dtype: torch.dtype):
    case = planar_cases.make_case("rgb", "everything", 16)
    tables = case["tables"].index, case["tables"].weight
    inputs = (case["store"], *(case[name][:count] for name in ("rows", "mirrored", "parameters")), *tables)
    for channels_last in (False, True):
        torch.library.opcheck(torch.ops.adadistill.planar_augment.default, (*inputs, False, 16, dtype, channels_last))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": "yuv"}, "layout must be planes or rgb"),
        ({"image_size": 18}, "store must be contiguous"),
        ({"rows": torch.zeros(5, dtype=torch.int32)}, "rows must be"),
        ({"mirrored": torch.zeros(4, dtype=torch.bool)}, "mirrored must be"),
        ({"parameters": torch.zeros(5, 3, dtype=torch.int32)}, "parameters must be"),
        ({"tables": None}, "point into tables"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        planar_augment_u8(**{**planar_cases.make_case("rgb", "everything", 16), **change})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("layout", ["rgb", "planes"])
@pytest.mark.parametrize("name", planar_cases.CASES)
def test_a_gpu_gives_the_bits_of_the_reference(layout: str, name: str):
    case = planar_cases.make_case(layout, name, 112, device="cuda")
    assert torch.equal(planar_augment_u8(**case), planar_augment_reference(**case))
    found = planar_augment(**case, dtype=torch.bfloat16, channels_last=True).cpu()
    on_host = planar_cases.make_case(layout, name, 112)
    assert torch.equal(found, planar_augment(**on_host, dtype=torch.bfloat16, channels_last=True))
