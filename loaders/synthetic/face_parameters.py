"""Random but reproducible parameters of procedural faces: what belongs to a person and what to a single picture.

A synthetic face is a few dozen numbers. Those of the *identity* (bone structure, skin, hair, marks) are drawn from
(seed, identity), those of the *picture* (pose, expression, light, camera) from (seed, identity, image number). Every
number comes from a counter-based hash and not from a generator with state, so that any subset of faces, made in any
order and in batches of any size, is the same to the last bit, and identities can be taken from ranges that never meet.

The tables below are the model: name -> (lowest, highest), uniform. Lengths are in units of the image's half side (face
outline, position), of the half width of the face (horizontal places of features) or of its half height (vertical ones,
downwards, with the chin at 1). Angles are in radians, colours and brightnesses in [0, 1].
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.floating]
"""float32 wherever it is used here; type checkers take a float32 array times a Python number for float64."""

Parameters: TypeAlias = dict[str, FloatArray]
"""Name -> (n, 1), one row per picture."""

Ranges: TypeAlias = dict[str, tuple[float, float]]
"""Name -> (lowest, highest)."""

IDENTITY_RANGES: Ranges = {
    # Outline: half width and half height of the head, how far the jaw narrows, how square the chin is.
    "face_width": (0.60, 0.78),
    "face_height": (0.80, 0.98),
    "jaw_narrowing": (0.02, 0.34),
    "chin_squareness": (-0.10, 0.14),
    # Eyes.
    "eye_spacing": (0.31, 0.50),
    "eye_level": (-0.17, 0.03),
    "eye_width": (0.13, 0.22),
    "eye_height": (0.045, 0.105),
    "eye_tilt": (-0.38, 0.38),
    "iris_radius": (0.055, 0.085),
    "iris_blueness": (0.0, 1.0),
    "iris_lightness": (0.0, 1.0),
    "lid_darkness": (0.15, 0.75),
    # Brows: distance above the eye, thickness, length, arch, tilt, and how much they stand out.
    "brow_distance": (0.13, 0.26),
    "brow_thickness": (0.022, 0.066),
    "brow_width": (0.15, 0.29),
    "brow_arch": (-0.02, 0.09),
    "brow_tilt": (-0.35, 0.25),
    "brow_strength": (0.35, 0.95),
    # Nose: ridge width and relief, where the tip lies, width at the nostrils.
    "nose_ridge": (0.09, 0.20),
    "nose_relief": (0.25, 0.95),
    "nose_tip": (0.20, 0.40),
    "nostril_spacing": (0.08, 0.20),
    "nostril_darkness": (0.2, 0.75),
    # Mouth.
    "mouth_level": (0.48, 0.66),
    "mouth_width": (0.20, 0.42),
    "upper_lip": (0.025, 0.075),
    "lower_lip": (0.030, 0.095),
    "mouth_curve": (-0.05, 0.05),
    "lip_redness": (0.0, 1.0),
    "lip_darkness": (0.0, 1.0),
    # Skin and its tint; cheeks; shadow of a beard (none below zero).
    "skin_lightness": (0.0, 1.0),
    "skin_warmth": (-1.0, 1.0),
    "cheek_colour": (-0.05, 0.16),
    "cheek_level": (0.18, 0.42),
    "eye_hollow": (0.0, 0.45),
    "beard": (-0.9, 0.9),
    "beard_level": (0.40, 0.62),
    # Hair: line on the forehead (level, curve, slope of the parting), volume, length at the sides, colour, waves.
    "hairline": (-0.78, -0.40),
    "hairline_curve": (-0.15, 0.75),
    "hair_parting": (-0.30, 0.30),
    "hair_volume": (1.00, 1.28),
    "hair_length": (0.15, 1.50),
    "hair_lightness": (0.0, 1.0),
    "hair_redness": (0.0, 1.0),
    "hair_waves": (0.0, 0.16),
    "hair_wave_phase": (-math.pi, math.pi),
    # Three dark marks on the skin: place, size, darkness (none below zero).
    **{
        f"mark{i}_{name}": limits
        for i in range(3)
        for name, limits in {
            "across": (-0.70, 0.70),
            "down": (-0.45, 0.85),
            "radius": (0.05, 0.12),
            "darkness": (-0.4, 0.75),
        }.items()
    },
}

PICTURE_RANGES: Ranges = {
    # Pose of the head and place in the frame. The ranges of yaw ... shift are multiplied by the pose knob.
    "yaw": (-0.34, 0.34),
    "pitch": (-0.17, 0.17),
    "roll": (-0.16, 0.16),
    "log_scale": (-0.11, 0.11),
    "shift_across": (-0.10, 0.10),
    "shift_down": (-0.10, 0.10),
    # Expression.
    "eye_openness": (0.45, 1.25),
    "gaze": (-0.06, 0.06),
    "brow_raise": (-0.05, 0.06),
    "smile": (-0.09, 0.11),
    "mouth_opening": (-0.10, 0.10),
    "mouth_stretch": (0.85, 1.20),
    "stubble": (-0.15, 0.25),
    "hair_volume_change": (-0.10, 0.10),
    "hairline_change": (-0.07, 0.07),
    "hair_length_change": (0.75, 1.35),
    # Light: direction, share of ambient light, colour, shine of the skin.
    "light_across": (-1.6, 1.6),
    "light_down": (-1.4, 1.0),
    "ambient": (0.15, 0.65),
    "light_warmth": (-1.0, 1.0),
    "light_tint": (-1.0, 1.0),
    "shine": (0.0, 0.35),
    # Camera.
    "log_exposure": (-0.55, 0.45),
    "log_gamma": (-0.35, 0.35),
    "black_level": (0.0, 0.12),
    "saturation": (0.45, 1.25),
    # Glasses: worn when the draw is under the knob, dark when the second draw is under a quarter.
    "glasses_draw": (0.0, 1.0),
    "glasses_dark_draw": (0.0, 1.0),
    "glasses_width": (0.24, 0.33),
    "glasses_height": (0.13, 0.22),
    "glasses_lightness": (0.0, 0.5),
    # Something in front of the face: an ellipse that may reach out of the frame.
    "occluder_draw": (0.0, 1.0),
    "occluder_angle": (-math.pi, math.pi),
    "occluder_distance": (0.45, 1.00),
    "occluder_width": (0.22, 0.60),
    "occluder_height": (0.18, 0.45),
    "occluder_turn": (-math.pi, math.pi),
    "occluder_red": (0.10, 0.85),
    "occluder_green": (0.10, 0.85),
    "occluder_blue": (0.10, 0.85),
    # Surroundings.
    "background_red": (0.02, 0.98),
    "background_green": (0.02, 0.98),
    "background_blue": (0.02, 0.98),
    "clothes_red": (0.10, 0.85),
    "clothes_green": (0.10, 0.85),
    "clothes_blue": (0.10, 0.85),
    "clothes_level": (0.84, 1.06),
    # Position of the picture's quality within the range that was asked for.
    "quality_draw": (0.0, 1.0),
}

SKIN_WAVES = tuple(
    (down, across) for down in range(5) for across in range(5) if 0 < (down + 1) // 2 + (across + 1) // 2 < 4
)
"""The waves the skin's pattern is made of: products of one of (1, cos a, sin a, cos 2a, sin 2a) down the face and one
across, as pairs of indices; a quarter turn is half a face. Neither the constant nor the finest are among them."""

BACKGROUND_WAVES = 4
"""Cosines of the background in each direction."""

_STREAM_IDENTITY = 0x1D
_STREAM_PICTURE = 0x91C
_STREAM_NOISE = 0x2015E

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mixed_bits(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Turn counters into independent-looking 64-bit words, elementwise (the finaliser of splitmix64)."""
    value = value + _GOLDEN
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _keys(seed: int, stream: int, *numbers: NDArray[np.int64]) -> NDArray[np.uint64]:
    """One 64-bit key for each row of `numbers`, (n,), from a chain of hashes."""
    key = mixed_bits(np.full(numbers[0].shape, seed, np.uint64) ^ mixed_bits(np.array([stream], np.uint64)))
    for number in numbers:
        key = mixed_bits(key ^ mixed_bits(number.astype(np.uint64)))
    return key


def _uniform(keys: NDArray[np.uint64], count: int, first: int = 0) -> NDArray[np.float64]:
    """(n, count) numbers in [0, 1), the draws first .. first + count of each key."""
    counters = np.arange(first, first + count, dtype=np.uint64) * _GOLDEN
    bits = mixed_bits(keys[:, None] + counters[None, :])  # (n, count)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _draw(keys: NDArray[np.uint64], ranges: Ranges) -> Parameters:
    """One (n, 1) float32 array for each name of the table.

    Each is contiguous: numpy's functions take another path through strided numbers, with other roundings, and a picture
    must not depend on how many are drawn with it.
    """
    low = np.array([limits[0] for limits in ranges.values()])
    high = np.array([limits[1] for limits in ranges.values()])
    values = (low + (high - low) * _uniform(keys, len(ranges))).astype(np.float32)  # (n, len(ranges))
    columns = np.ascontiguousarray(values.T)
    return {name: columns[i][:, None] for i, name in enumerate(ranges)}


def draw_identity(seed: int, identities: NDArray[np.int64]) -> tuple[Parameters, FloatArray]:
    """What belongs to a person.

    Args:
        seed: non-negative, below 2**63.
        identities: (n,) int64, non-negative; repeats give equal rows.

    Returns:
        the parameters of IDENTITY_RANGES, each (n, 1) float32, and (n, 3, K) float32 amplitudes of the K skin waves in
        red, green and blue, of standard deviation about 1/3 for the lowest and falling with frequency.
    """
    keys = _keys(seed, _STREAM_IDENTITY, identities)
    face = _draw(keys, IDENTITY_RANGES)
    uniform = _uniform(keys, 2 * len(SKIN_WAVES), first=1000).reshape(len(keys), 2, -1) * 2.0 - 1.0
    bright, ruddy = math.sqrt(3.0) * uniform[:, 0], math.sqrt(0.4) * uniform[:, 1]  # (n, K)
    amplitudes = np.stack([bright + ruddy, bright, bright - 0.4 * ruddy], axis=1)  # (n, 3, K)
    frequency = np.array([(down + 1) // 2 + (across + 1) // 2 for down, across in SKIN_WAVES])
    odd_across = np.array([across in (2, 4) for _, across in SKIN_WAVES])
    strength = np.where(odd_across, 0.6, 1.0) / (2.0 + frequency)  # faces are nearly symmetric
    return face, (amplitudes * strength).astype(np.float32)


def draw_picture(
    seed: int, identities: NDArray[np.int64], image_numbers: NDArray[np.int64]
) -> tuple[Parameters, FloatArray]:
    """What belongs to a single picture.

    Args:
        seed: non-negative, below 2**63.
        identities: (n,) int64, non-negative.
        image_numbers: (n,) int64, non-negative.

    Returns:
        the parameters of PICTURE_RANGES, each (n, 1) float32, and (n, 3, BACKGROUND_WAVES**2) float32 amplitudes of the
        background's pattern.
    """
    keys = _keys(seed, _STREAM_PICTURE, identities, image_numbers)
    picture = _draw(keys, PICTURE_RANGES)
    count = BACKGROUND_WAVES * BACKGROUND_WAVES
    uniform = _uniform(keys, 3 * count, first=1000).reshape(len(keys), 3, count) - 0.5  # (n, 3, count)
    step = np.arange(BACKGROUND_WAVES)
    falling = 1.35 / (1.0 + step[:, None] + step[None, :])
    falling[0, 0] = 0.0
    uniform = 0.7 * uniform[:, :1] + 0.5 * uniform  # shared between the colours for the most part
    return picture, (uniform * falling.reshape(-1)).astype(np.float32)


def pixel_noise(seed: int, identities: NDArray[np.int64], image_numbers: NDArray[np.int64], values: int) -> FloatArray:
    """Bell-shaped noise of mean 0 and variance 1 for every value of a picture, within about +-3.4.

    Args:
        seed, identities, image_numbers: as for `draw_picture`.
        values: numbers per picture.

    Returns:
        (n, values) float32. A sum of four hashed bytes: several times faster than a normal deviate, and for sensor
        noise that is rounded to 8 bits as good.
    """
    keys = _keys(seed, _STREAM_NOISE, identities, image_numbers)
    words = np.arange(values, dtype=np.uint32)[None, :] ^ (keys & np.uint64(0xFFFFFFFF)).astype(np.uint32)[:, None]
    words += (keys >> np.uint64(32)).astype(np.uint32)[:, None]
    words ^= words >> np.uint32(16)
    words *= np.uint32(0x7FEB352D)
    words ^= words >> np.uint32(15)
    words *= np.uint32(0x846CA68B)
    words ^= words >> np.uint32(16)
    pairs = (words & np.uint32(0x00FF00FF)) + ((words >> np.uint32(8)) & np.uint32(0x00FF00FF))
    total = (pairs & np.uint32(0xFFFF)) + (pairs >> np.uint32(16))  # 0 .. 1020
    deviation = math.sqrt(4 * (256**2 - 1) / 12)
    noise = total.astype(np.float32)
    noise -= np.float32(510.0)
    noise *= np.float32(1.0 / deviation)
    return noise
