"""Pixel rules: augmentations that look at one pixel at a time, written once for numpy, torch and Triton.

A rule is one function of a pixel's colour, its place and six numbers of the image: decode threads give it arrays, torch
batches, and the Triton kernel compiles it. All are integers, so all show the same image. Rules come after the
operations of augment_parameters.py and before mirroring, in the order of PIXEL_RULES; docs/extending.md adds one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

NUMBERS = 6
_FIRST_STREAM = 144  # augmentations without a rule draw from those below


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelRule:
    """One augmentation: what is drawn for an image, and what that does to a pixel."""

    stream: int
    """Of its random draws: a multiple of 16 from 144 on that no other rule has. Another one draws other images."""
    draw: Callable[[Callable[[int], npt.NDArray[np.float64]], int], npt.NDArray[np.integer]]
    """(uniform, side S) -> (n, 6) numbers of n images, in int32; uniform(k) is (n,) in [0, 1), k below 15. An image
    whose numbers are all 0 is left as it is."""
    apply: Callable[..., tuple[Any, Any, Any]]
    """(r, g, b, row, column, and the six numbers) -> (r, g, b), which are then clipped to [0, 255]. Triton compiles it:
    int32 by + - * >> << & | ~ and comparisons, whose results count as 0 and 1; no branches, calls or globals."""


PIXEL_RULES: Final[dict[str, PixelRule]] = {}
"""Every rule by the key of `augment` that holds its probability."""


def rules_from(column: int) -> Iterator[tuple[int, PixelRule]]:
    """Each rule with the first of its columns among the parameters, of which the first rule's is given."""
    return ((column + NUMBERS * place, rule) for place, rule in enumerate(PIXEL_RULES.values()))


_STREAMS = [rule.stream for rule in PIXEL_RULES.values()]
if len(set(_STREAMS)) < len(_STREAMS) or any(stream < _FIRST_STREAM or stream % 16 for stream in _STREAMS):
    raise ImportError(f"streams of pixel rules must be multiples of 16 from {_FIRST_STREAM}, no two alike: {_STREAMS}")
