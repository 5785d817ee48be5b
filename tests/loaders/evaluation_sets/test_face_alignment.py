"""Alignment against OpenCV's sampling and Umeyama's solution by singular values."""

from __future__ import annotations

import numpy as np
import pytest

from adadistill.loaders.evaluation_sets.face_alignment import (
    ARCFACE_TEMPLATE,
    AlignmentError,
    aligned,
    similarities_to_template,
)


def _umeyama(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """(2, 3) by the singular value decomposition of the covariance, as in the paper."""
    start_mean, end_mean = start.mean(0), end.mean(0)
    left, values, right = np.linalg.svd((end - end_mean).T @ (start - start_mean) / len(start))
    signs = np.array([1.0, np.sign(np.linalg.det(left) * np.linalg.det(right))])
    scale = (values * signs).sum() / (start - start_mean).var(0).sum()
    rotation = left @ np.diag(signs) @ right * scale
    return np.column_stack([rotation, end_mean - rotation @ start_mean])


@pytest.mark.parametrize("size", [112, 64])
def test_the_similarity_is_umeyamas_also_where_a_reflection_would_fit_better(size: int):
    random = np.random.default_rng(0)
    near = ARCFACE_TEMPLATE * 2.0 + random.normal(0, 6, (20, 5, 2))
    mirrored = ARCFACE_TEMPLATE * [-1.0, 1.0] + random.normal(0, 2, (5, 5, 2))
    landmarks = np.concatenate([near, mirrored, random.uniform(0, 300, (20, 5, 2))])
    found = similarities_to_template(landmarks, size)
    expected = np.stack([_umeyama(points, ARCFACE_TEMPLATE * (size / 112)) for points in landmarks])
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(180, 150), (60, 90), (1, 1)])
def test_sampling_is_opencvs_within_one_level_inside_and_beside_the_picture(shape: tuple[int, int]):
    cv2 = pytest.importorskip("cv2", reason="OpenCV, the judge of resampling (extra dev), is not installed")
    random = np.random.default_rng(1)
    noise = random.integers(0, 256, (*shape, 3), dtype=np.uint8)
    for _ in range(4):
        landmarks = ARCFACE_TEMPLATE * random.uniform(0.5, 3) + random.normal(0, 8, (5, 2)) + random.uniform(-40, 40, 2)
        similarity = similarities_to_template(landmarks[None])[0]
        expected = cv2.warpAffine(noise, similarity, (112, 112), borderValue=0.0)
        difference = np.abs(aligned(noise, similarity).astype(int) - expected.astype(int))
        if int(cv2.__version__.split(".")[0]) >= 5:
            assert difference.max() <= 1
        else:  # places in 1/32 of a pixel: noise is the worst picture for them
            assert difference.mean() <= 2


def test_a_picture_that_is_aligned_already_keeps_its_levels():
    picture = np.random.default_rng(2).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    similarity = similarities_to_template(ARCFACE_TEMPLATE[None])[0]
    assert np.abs(aligned(picture, similarity).astype(int) - picture.astype(int)).max() == 0


@pytest.mark.parametrize("value", [5.0, np.nan, np.inf])
def test_landmarks_that_give_no_similarity_are_named(value: float):
    landmarks = np.stack([ARCFACE_TEMPLATE, np.full((5, 2), value)])
    with pytest.raises(AlignmentError, match="picture 1"):
        similarities_to_template(landmarks)
