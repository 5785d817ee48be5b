"""Which augmentation a record gets: drawn from (seed, epoch or view, record id) alone, as rows of pixel operations.

Whatever decodes (DALI, CPU threads, the packed store) is handed the same rows, so it shows the same images, whatever
the batch, the rank or the resume. With `augment.views: K` the epoch is replaced by epoch mod K: training then cycles
through K fixed views of every record, and a cache can hold the teacher's embedding of each. A draw is a counter-based
hash (SplitMix64's finaliser, applied to the words in turn), evaluated for a whole batch at once.

Sources  `adaface`: AdaFace's training (crop onto a black canvas, low resolution by two random interpolations,
         brightness, contrast and saturation; 0.2 each). `insightface`: arcface_torch's `dali_aug` (half to four-fifths
         resolution 0.1, Gaussian blur 0.2, hue and saturation 0.2, grey 0.1). What the operations do to pixels:
         kernels/augment_parameters.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt

from adadistill.kernels.augment_parameters import (
    FACTOR_ONE,
    MAX_AUGMENTED_SIDE,
    Column,
    Interpolation,
    ResampleTables,
    identity_parameters,
    resample_tables,
)
from adadistill.kernels.pixel_rules import NUMBERS, PIXEL_RULES, PixelRule, rules_from

__all__ = ["MAX_AUGMENTED_SIDE", "OPERATIONS", "AugmentConfig", "Augmentation"]

Ids = npt.NDArray[np.int64]
Draws = npt.NDArray[np.float64]
Parameters = npt.NDArray[np.int32]

DRAWS_VERSION = 1
"""Part of what a cache of augmented views says of itself: raised when the same seed would draw other images."""

_FIRST_OPERATIONS = ("crop", "low_resolution", "photometric", "blur", "hsv", "grey")
OPERATIONS = (*_FIRST_OPERATIONS, *PIXEL_RULES)
_PROBABILITIES: dict[str, dict[str, float]] = {
    "none": {},
    "adaface": {"crop": 0.2, "low_resolution": 0.2, "photometric": 0.2},
    "insightface": {"low_resolution": 0.1, "blur": 0.2, "hsv": 0.2, "grey": 0.1},
}

# Streams of uniform_draws; 1 is the mirror's. Their order is part of DRAWS_VERSION.
_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIRROR_STREAM = 1
_CROP, _LOW, _PHOTOMETRIC, _BLUR, _HSV, _GREY = 16, 64, 80, 96, 112, 128
_CROP_TRIES = 10

_CROP_AREA = (0.2, 1.0)
_CROP_RATIO = (3.0 / 4.0, 4.0 / 3.0)
_ADAFACE_LOW = (0.2, 1.0)
_ADAFACE_KINDS = (
    Interpolation.NEAREST,
    Interpolation.BILINEAR,
    Interpolation.AREA,
    Interpolation.BICUBIC,
    Interpolation.LANCZOS4,
)
_INSIGHTFACE_LOW = (56 / 112, 89 / 112)
_FACTORS = (0.5, 1.5)
_HUE_DEGREES = (0.0, 20.0)
_SATURATION = (1.0, 1.2)
_RGB_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])
_YIQ_TO_RGB = np.array([[1.0, 0.956, 0.621], [1.0, -0.272, -0.647], [1.0, -1.107, 1.705]])
_ORDERS = np.array([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]], dtype=np.int32)


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """Augmentation of training images beyond mirroring (`data.mirror_probability`)."""

    policy: Literal["none", "adaface", "insightface"] = "none"
    """Whose augmentation: `adaface` as AdaFace and CVLface train, `insightface` as arcface_torch's `dali_aug`, or none
    as AdaDistill and ArcFace train. Sets the probabilities below where they are left out, and the resolutions."""
    crop: float | None = None
    """Probability that all but a random rectangle (20 to 100 % of the area) turns black. adaface: 0.2."""
    low_resolution: float | None = None
    """Probability of resizing down and back up. adaface: 0.2, to 20-100 % of the side, each way by a random one of
    nearest, bilinear, area, bicubic and Lanczos interpolation; insightface: 0.1, to 50-79 %, bilinear."""
    photometric: float | None = None
    """Probability of scaling brightness, contrast and saturation, each by 0.5 to 1.5, in random order. adaface: 0.2."""
    blur: float | None = None
    """Probability of a Gaussian blur over 3 or 5 pixels. insightface: 0.2."""
    hsv: float | None = None
    """Probability of turning the hue by 0 to 20 degrees and raising saturation by up to a fifth. insightface: 0.2."""
    grey: float | None = None
    """Probability of taking the colour away. insightface: 0.1."""
    views: int | None = None
    """Number K of fixed views of each image that training cycles through, one an epoch; 1 to 512. Left out: every epoch
    draws anew. A teacher cache of an augmented recipe needs it, and holds K embeddings of each image."""
    seed: int | None = None
    """Of the draws, in [0, 2^63). Left out: derived from the recipe's seed. Set it to train several seeds from one
    cache of views."""

    def __post_init__(self) -> None:
        if self.policy not in _PROBABILITIES:
            raise ValueError(f"policy must be none, adaface or insightface, got {self.policy}")
        for name in OPERATIONS:
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must be in [0, 1] or left out, got {value}")
        if self.views is not None and not 1 <= self.views <= 512:
            raise ValueError(f"views must be in [1, 512] or left out, got {self.views}")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be in [0, 2^63) or left out, got {self.seed}")

    def probability(self, operation: str) -> float:
        """Of one of OPERATIONS, with the policy's where none is set."""
        value = getattr(self, operation)
        return float(_PROBABILITIES[self.policy].get(operation, 0.0) if value is None else value)

    @property
    def alters_pixels(self) -> bool:
        """Whether anything beyond mirroring can happen."""
        return any(self.probability(operation) > 0.0 for operation in OPERATIONS)


_KEYLESS = PIXEL_RULES.keys() - {key.name for key in fields(AugmentConfig)}
if _KEYLESS:
    raise ImportError(
        "pixel rules without a key: AugmentConfig of loaders/augment/augment_policy.py needs, "
        f"for each of {sorted(_KEYLESS)}, `NAME: float | None = None`"
    )


class Augmentation:
    """Draws the parameters of every record, mirroring included.

    Args:
        config: operations and their probabilities.
        mirror_probability: share of images flipped left to right, in [0, 1].
        seed: of all augmentation streams, equal on all ranks, in [0, 2^63).
        image_size: side S in pixels.

    Raises:
        ValueError: the seed is negative, or images of this size cannot be augmented as asked.
    """

    def __init__(self, config: AugmentConfig, *, mirror_probability: float, seed: int, image_size: int) -> None:
        if seed < 0:
            raise ValueError(f"the seed of augmentation must not be negative, got {seed}")
        self.config, self.mirror_probability, self.seed, self.image_size = config, mirror_probability, seed, image_size
        self.alters_pixels = config.alters_pixels
        self.tables: ResampleTables | None = resample_tables(image_size) if self.alters_pixels else None
        """What the parameters point into; None where nothing resamples because nothing is altered."""

    @property
    def views(self) -> int | None:
        """K, or None where every epoch draws anew."""
        return self.config.views

    def view(self, epoch: int) -> int | None:
        """Number of the view that an epoch shows, None where every epoch draws anew."""
        return None if self.config.views is None else epoch % self.config.views

    def mirrored(self, epoch: int, record_ids: Ids) -> npt.NDArray[np.bool_]:
        """(n,) which images are flipped left to right."""
        return mirror_flags(self.seed, self._key(epoch), record_ids, self.mirror_probability)

    def parameters(self, epoch: int, record_ids: Ids) -> Parameters | None:
        """(n, P) int32 rows of `kernels.augment_parameters`, or None where nothing but mirroring can happen."""
        if self.tables is None:
            return None
        draw = _Draws(self.seed, self._key(epoch), record_ids)
        rows = identity_parameters(len(record_ids), self.image_size)
        rows[:, Column.MIRROR] = self.mirrored(epoch, record_ids)
        for operation, stream, fill in (
            ("crop", _CROP, self._fill_crop),
            ("low_resolution", _LOW, self._fill_low_resolution),
            ("photometric", _PHOTOMETRIC, _fill_photometric),
            ("blur", _BLUR, self._fill_blur),
            ("hsv", _HSV, _fill_hsv),
            ("grey", _GREY, _fill_grey),
            *self._rule_fills(),
        ):
            probability = self.config.probability(operation)
            if probability > 0.0:
                chosen = np.flatnonzero(draw(stream) < probability)
                if len(chosen):
                    # draw.of(chosen): what is not augmented costs one draw, and nobody's draws depend on another's
                    rows[chosen] = fill(rows[chosen], draw.of(chosen))
        return rows

    def policy_text(self) -> str:
        """Canonical JSON of everything that decides what a view shows, but the seed and the number of the view."""
        values = {
            "draws": DRAWS_VERSION,
            "image_size": self.image_size,
            "mirror": self.mirror_probability,
            "style": self.config.policy if self.config.probability("low_resolution") > 0.0 else None,
            **{operation: self.config.probability(operation) for operation in _FIRST_OPERATIONS},
            **{rule: share for rule in PIXEL_RULES if (share := self.config.probability(rule)) > 0.0},
        }
        return json.dumps(values, sort_keys=True, separators=(",", ":"))

    def _key(self, epoch: int) -> int:
        view = self.view(epoch)
        return epoch if view is None else view

    def _rule_fills(self) -> Iterator[tuple[str, int, Callable[[Parameters, _Draws], Parameters]]]:
        for name, (first, rule) in zip(PIXEL_RULES, rules_from(Column.RULES), strict=True):
            yield name, rule.stream, partial(self._fill_rule, first, rule)

    def _fill_rule(self, first: int, rule: PixelRule, rows: Parameters, draw: _Draws) -> Parameters:
        rows[:, first : first + NUMBERS] = rule.draw(lambda number: draw(rule.stream + 1 + number), self.image_size)
        return rows

    def _fill_crop(self, rows: Parameters, draw: _Draws) -> Parameters:
        """torchvision's RandomResizedCrop: the first of ten tries that fits, else the whole (square) image."""
        size = self.image_size
        open_rows = np.ones(len(rows), dtype=np.bool_)
        for attempt in range(_CROP_TRIES):
            area = size * size * _between(draw(_CROP + 1 + 4 * attempt), _CROP_AREA)
            ratio = np.exp(
                _between(draw(_CROP + 2 + 4 * attempt), (math.log(_CROP_RATIO[0]), math.log(_CROP_RATIO[1])))
            )
            width, height = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
            fits = open_rows & (width >= 1) & (width <= size) & (height >= 1) & (height <= size)
            if fits.any():
                top = np.floor(draw(_CROP + 3 + 4 * attempt) * (size - height + 1))
                left = np.floor(draw(_CROP + 4 + 4 * attempt) * (size - width + 1))
                rectangle = np.stack([top, left, height, width], axis=1).astype(np.int32)
                rows[fits, Column.CROP_TOP : Column.CROP_WIDTH + 1] = rectangle[fits]
            open_rows &= ~fits
            if not open_rows.any():
                break
        return rows

    def _fill_low_resolution(self, rows: Parameters, draw: _Draws) -> Parameters:
        assert self.tables is not None
        if self.config.policy == "insightface":
            share = _between(draw(_LOW + 1), _INSIGHTFACE_LOW)
            down = up = np.full(len(rows), int(Interpolation.TRIANGULAR))
        else:
            share = _between(draw(_LOW + 1), _ADAFACE_LOW)
            kinds = np.array(_ADAFACE_KINDS, dtype=np.int64)
            down, up = (kinds[np.floor(draw(_LOW + n) * len(kinds)).astype(np.int64)] for n in (2, 3))
        sides = np.maximum(np.floor(share * self.image_size).astype(np.int64), self.tables.least_side)
        rows[:, Column.LOW_SIDE] = sides
        rows[:, Column.DOWN_TABLE] = self.tables.down(down, sides)
        rows[:, Column.UP_TABLE] = self.tables.up(up, sides)
        return rows

    def _fill_blur(self, rows: Parameters, draw: _Draws) -> Parameters:
        assert self.tables is not None
        rows[:, Column.BLUR_TABLE] = self.tables.blur(np.where(draw(_BLUR + 1) < 0.5, 3, 5))
        return rows


class _Draws:
    """Uniform draws in [0, 1) for some records, by stream."""

    def __init__(self, seed: int, key: int, record_ids: Ids) -> None:
        self._seed, self._key, self._record_ids = seed, key, record_ids

    def __call__(self, stream: int) -> Draws:
        return uniform_draws(self._seed, self._key, self._record_ids, stream=stream)

    def of(self, chosen: npt.NDArray[np.intp]) -> _Draws:
        return _Draws(self._seed, self._key, self._record_ids[chosen])


def _fill_photometric(rows: Parameters, draw: _Draws) -> Parameters:
    for number in range(3):
        factors = np.rint(_between(draw(_PHOTOMETRIC + 1 + number), _FACTORS) * FACTOR_ONE)
        rows[:, Column.BRIGHTNESS + number] = factors.astype(np.int32)
    rows[:, Column.FIRST : Column.THIRD + 1] = _ORDERS[np.floor(draw(_PHOTOMETRIC + 4) * len(_ORDERS)).astype(np.int64)]
    return rows


def _fill_hsv(rows: Parameters, draw: _Draws) -> Parameters:
    angle = np.deg2rad(_between(draw(_HSV + 1), _HUE_DEGREES))
    saturation = _between(draw(_HSV + 2), _SATURATION)
    turn = np.zeros((len(rows), 3, 3))
    turn[:, 0, 0] = 1.0
    turn[:, 1, 1] = turn[:, 2, 2] = saturation * np.cos(angle)
    turn[:, 1, 2] = saturation * np.sin(angle)
    turn[:, 2, 1] = -turn[:, 1, 2]
    matrices = _YIQ_TO_RGB @ turn @ _RGB_TO_YIQ  # (n, 3, 3)
    rows[:, Column.MATRIX : Column.MATRIX + 9] = np.rint(matrices * FACTOR_ONE).reshape(-1, 9).astype(np.int32)
    return rows


def _fill_grey(rows: Parameters, draw: _Draws) -> Parameters:
    rows[:, Column.GREY] = 1
    return rows


def _between(draws: Draws, bounds: tuple[float, float]) -> Draws:
    return bounds[0] + draws * (bounds[1] - bounds[0])


def mirror_flags(seed: int, epoch: int, record_ids: npt.NDArray[np.int64], probability: float) -> npt.NDArray[np.bool_]:
    """Which images are flipped left to right.

    Args:
        seed: of the augmentation stream, in [0, 2^63).
        epoch: 0-based.
        record_ids: (n,) int64.
        probability: share flipped; 0 and 1 are exact.

    Returns:
        (n,) bool.
    """
    return uniform_draws(seed, epoch, record_ids, stream=_MIRROR_STREAM) < probability


def uniform_draws(seed: int, epoch: int, record_ids: npt.NDArray[np.int64], *, stream: int) -> npt.NDArray[np.float64]:
    """(n,) float64 in [0, 1), independent over seeds, epochs, records and streams (one stream per parameter)."""
    state = np.zeros(len(record_ids), dtype=np.uint64)
    for word in (np.uint64(seed), np.uint64(stream), np.uint64(epoch), record_ids.astype(np.uint64)):
        state = _mix((state ^ word) + _GOLDEN_GAMMA)
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
