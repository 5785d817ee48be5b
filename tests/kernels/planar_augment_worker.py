"""Runs the Triton kernel in Triton's interpreter, which is chosen before Triton is imported: a process of its own.

Prints one line of JSON for each case: whether the kernel gave the bits of the reference.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tests_support

tests_support.make_importable()

import planar_cases
import torch

from adadistill.kernels.planar_augment import planar_augment, planar_augment_reference, planar_augment_u8


def main() -> None:
    # Planes differ where pixels are read. 34 pixels a side end within a block of the kernel. An image is a program.
    small = itertools.product(("rgb",), planar_cases.CASES, (16,))
    others = [("planes", "mirror", 16), ("planes", "everything", 16), ("planes", "everything", 34)]
    for layout, name, size in itertools.chain(small, others):
        count = planar_cases.COUNT if (name, size) == ("everything", 16) else planar_cases.PAIR
        case = planar_cases.make_case(layout, name, size, count=count)
        found = planar_augment_u8(**case)
        print(json.dumps({"case": [layout, name, size], "equal": torch.equal(found, planar_augment_reference(**case))}))
    case = planar_cases.make_case("rgb", "mirror", 16, count=planar_cases.PAIR)
    pixels = planar_augment_reference(**case)
    dtypes = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    for dtype, channels_last in itertools.product(dtypes, (False, True)):
        found = planar_augment(**case, dtype=dtype, channels_last=channels_last)
        wanted = planar_cases.network_input(pixels, dtype, channels_last)
        # The interpreter cuts bfloat16 off where hardware rounds it.
        off = 2**-8 if dtype == torch.bfloat16 else 0.0
        equal = bool((found - wanted).abs().max() <= off) and found.stride() == wanted.stride()
        print(json.dumps({"case": [str(dtype), channels_last, 16], "equal": equal}))


if __name__ == "__main__":
    main()
