"""From a picture and five landmarks to the aligned square that face networks are trained on.

A similarity (rotation, one scale, shift) takes the landmarks as near as it can to ArcFace's template, and the picture
is sampled through it bilinearly, with black around it: what insightface does with scikit-image and OpenCV. In the plane
Umeyama's solution has a closed form: with points as complex numbers p, q about their means, the factor that takes p to
q best in the least squares is sum(conj(p) q) / sum(|p|^2), which is scale times rotation and never a reflection.

Sampling is exact in float32, like OpenCV 5's; OpenCV 4 rounds places to 1/32 pixel, from which levels at sharp edges
can differ by more than one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

TEMPLATE_SIZE = 112
ARCFACE_TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""(5, 2) x, y of eyes, nose and mouth corners in an aligned picture of 112 pixels a side."""


class AlignmentError(ValueError):
    """Landmarks from which no similarity follows."""


def similarities_to_template(landmarks: npt.NDArray[np.float64], size: int = TEMPLATE_SIZE) -> npt.NDArray[np.float64]:
    """The similarity that takes each picture's landmarks to the template, in the least squares.

    Args:
        landmarks: (N, 5, 2) x, y in pixels of the picture.
        size: side of the aligned picture; the template is scaled to it.

    Returns:
        (N, 2, 3) float64: from places in the picture to places in the aligned one.

    Raises:
        AlignmentError: names the first picture whose landmarks are not finite, or all one point.

    Source: Umeyama, 1991, as used by insightface.
    """
    if landmarks.ndim != 3 or landmarks.shape[1:] != (5, 2):
        raise ValueError(f"landmarks must be (N, 5, 2), got {landmarks.shape}")
    finite = np.isfinite(landmarks.reshape(-1, 10)).min(axis=1)
    landmarks = np.where(np.isfinite(landmarks), landmarks, 0.0)
    goal = ARCFACE_TEMPLATE * (size / TEMPLATE_SIZE)
    start = landmarks[:, :, 0] + 1j * landmarks[:, :, 1]  # (N, 5)
    end = goal[:, 0] + 1j * goal[:, 1]  # (5,)
    start_mean, end_mean = start.mean(axis=1), end.mean()
    centred = start - start_mean[:, None]
    spread = (np.abs(centred) ** 2).sum(axis=1)  # (N,)
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = (centred.conj() * (end - end_mean)).sum(axis=1) / spread
    shift = end_mean - factor * start_mean
    bad = np.flatnonzero(~finite | ~np.isfinite(factor) | ~np.isfinite(shift) | (factor == 0))
    if bad.size:
        raise AlignmentError(f"the landmarks of picture {bad[0]} are not finite, or give no similarity")
    rows = [factor.real, -factor.imag, shift.real, factor.imag, factor.real, shift.imag]
    return np.stack(rows, axis=1).reshape(-1, 2, 3)


def aligned(
    picture: npt.NDArray[np.uint8], similarity: npt.NDArray[np.float64], size: int = TEMPLATE_SIZE
) -> npt.NDArray[np.uint8]:
    """Sample a picture bilinearly through a similarity; places outside of it are black.

    Args:
        picture: (H, W, 3) uint8.
        similarity: (2, 3), from places in the picture to places in the aligned one.

    Returns:
        (size, size, 3) uint8, within one level of OpenCV's `warpAffine`.
    """
    height, width = picture.shape[:2]
    inverse = np.linalg.inv(similarity[:, :2])
    origin = -inverse @ similarity[:, 2]
    steps = np.arange(size, dtype=np.float64)
    # From one pixel outside on, all is black: places further away are moved there, so that indices stay within.
    x = np.clip(inverse[0, 0] * steps + (inverse[0, 1] * steps + origin[0])[:, None], -1, width)  # (size, size)
    y = np.clip(inverse[1, 0] * steps + (inverse[1, 1] * steps + origin[1])[:, None], -1, height)
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    right_share = (x - left).astype(np.float32)[:, :, None]
    lower_share = (y - top).astype(np.float32)[:, :, None]
    framed = np.zeros((height + 3, width + 3, 3), dtype=np.uint8)  # one black pixel before, two behind
    framed[1 : height + 1, 1 : width + 1] = picture
    pixels = framed.reshape(-1, 3)
    place = (top + 1) * (width + 3) + left + 1  # (size, size)
    upper = _between(pixels[place], pixels[place + 1], right_share)
    lower = _between(pixels[place + width + 3], pixels[place + width + 4], right_share)
    return np.rint(upper + (lower - upper) * lower_share).astype(np.uint8)


def _between(
    first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8], share: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    start = first.astype(np.float32)
    return start + (second.astype(np.float32) - start) * share
