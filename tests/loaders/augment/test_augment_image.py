"""Pixels of augmentation beside the libraries that the published recipes use: Pillow, OpenCV and DALI."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from adadistill.kernels.augment_parameters import (
    FACTOR_ONE,
    Column,
    Interpolation,
    identity_parameters,
    resample_tables,
)
from adadistill.loaders.augment.augment_image import augment_image
from adadistill.loaders.augment.augment_policy import Augmentation, AugmentConfig

SIZE = 112


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """Smooth colours with noise on top: what faces and what resampling errors are made of."""
    draws = np.random.RandomState(0)
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    smooth = np.stack([128 + 100 * np.sin(5 * x + 3 * y), 255 * x, 255 * (1 - y)], axis=2)
    return np.clip(smooth + draws.normal(0, 25, smooth.shape), 0, 255).astype(np.uint8)


def _augmented(image: np.ndarray, **columns) -> np.ndarray:
    row = identity_parameters(1, SIZE)[0]
    for name, value in columns.items():
        row[Column[name]] = value
    out = np.empty_like(image)
    augment_image(image, row, resample_tables(SIZE), out)
    return out


def _off(ours: np.ndarray, theirs: np.ndarray) -> int:
    return int(np.abs(ours.astype(np.int64) - theirs.astype(np.int64)).max())


def test_blends_are_pillow_s_within_one_level(image: np.ndarray):
    shown = Image.fromarray(image)
    enhancers = {"BRIGHTNESS": ImageEnhance.Brightness, "CONTRAST": ImageEnhance.Contrast}
    for operation, enhance in {**enhancers, "SATURATION": ImageEnhance.Color}.items():
        for factor in (0.5, 0.81, 1.0, 1.37, 1.5):
            ours = _augmented(image, **{operation: round(factor * FACTOR_ONE)})
            assert _off(ours, np.asarray(enhance(shown).enhance(factor))) <= 1, (operation, factor)
    grey = np.asarray(shown.convert("L"))[:, :, None].repeat(3, axis=2)
    assert _off(_augmented(image, GREY=1), grey) == 0


def test_photometric_operations_in_order_are_pillow_s_in_that_order(image: np.ndarray):
    ours = _augmented(
        image, FIRST=2, SECOND=0, THIRD=1, BRIGHTNESS=round(1.3 * FACTOR_ONE), CONTRAST=round(0.7 * FACTOR_ONE),
        SATURATION=round(1.4 * FACTOR_ONE),
    )  # fmt: skip
    theirs = Image.fromarray(image)
    for enhance, factor in ((ImageEnhance.Color, 1.4), (ImageEnhance.Brightness, 1.3), (ImageEnhance.Contrast, 0.7)):
        theirs = enhance(theirs).enhance(factor)
    assert _off(ours, np.asarray(theirs)) <= 3  # one level an operation, raised by the next


def test_low_resolution_is_two_calls_of_opencv(image: np.ndarray):
    cv2 = pytest.importorskip("cv2")
    flags = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_AREA, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)
    tables = resample_tables(SIZE)
    for side in (22, 97):
        for down in range(5):
            for up in range(5):
                low = cv2.resize(image, (side, side), interpolation=flags[down])
                theirs = cv2.resize(low, (SIZE, SIZE), interpolation=flags[up])
                sides = np.array([side])
                ours = _augmented(
                    image,
                    LOW_SIDE=side,
                    DOWN_TABLE=tables.down(np.array([down]), sides)[0],
                    UP_TABLE=tables.up(np.array([up]), sides)[0],
                )
                assert _off(ours, theirs) <= 3, (side, down, up)  # a level of the small image, sharpened on the way up


@pytest.mark.parametrize("name", ["resize", "blur_3", "blur_5", "hsv"])
def test_insightface_s_operations_are_dali_s(name: str, image: np.ndarray):
    dali = pytest.importorskip("nvidia.dali")
    fn, types = dali.fn, dali.types
    side, hue, saturation = 71, 13.0, 1.15
    tables = resample_tables(SIZE)
    pipeline = dali.Pipeline(batch_size=1, num_threads=1, device_id=None, exec_dynamic=True)
    with pipeline:
        shown = fn.external_source(source=lambda: [image], layout="HWC")
        if name == "resize":
            low = fn.resize(shown, size=(side, side), interp_type=types.INTERP_TRIANGULAR)
            result = fn.resize(low, size=(SIZE, SIZE), interp_type=types.INTERP_TRIANGULAR)
        elif name == "hsv":
            result = fn.hsv(shown, hue=hue, saturation=saturation)

        else:
            result = fn.gaussian_blur(shown, window_size=int(name[-1]))
        pipeline.set_outputs(result)
    pipeline.build()
    theirs = np.asarray(pipeline.run()[0][0])

    if name == "resize":
        kind, sides = np.array([int(Interpolation.TRIANGULAR)]), np.array([side])
        ours = _augmented(
            image, LOW_SIDE=side, DOWN_TABLE=tables.down(kind, sides)[0], UP_TABLE=tables.up(kind, sides)[0]
        )
    elif name == "hsv":
        ours = _augmented_by_policy(image, hue, saturation)

    else:
        ours = _augmented(image, BLUR_TABLE=tables.blur(np.array([int(name[-1])]))[0])
    assert _off(ours, theirs) <= (2 if name == "resize" else 1)


def _augmented_by_policy(image: np.ndarray, hue: float, saturation: float) -> np.ndarray:
    from adadistill.loaders.augment import augment_policy

    class Fixed:
        def __call__(self, stream: int) -> np.ndarray:
            return np.array([hue / 20.0]) if stream % 16 == 1 else np.array([(saturation - 1.0) / 0.2])

    rows = augment_policy._fill_hsv(identity_parameters(1, SIZE), Fixed())
    out = np.empty_like(image)
    augment_image(image, rows[0], resample_tables(SIZE), out)
    return out


def test_crop_keeps_the_rectangle_and_blackens_the_rest(image: np.ndarray):
    ours = _augmented(image, CROP_TOP=10, CROP_LEFT=20, CROP_HEIGHT=40, CROP_WIDTH=60)
    expected = np.zeros_like(image)
    expected[10:50, 20:80] = image[10:50, 20:80]
    assert np.array_equal(ours, expected)
    assert np.array_equal(_augmented(image, MIRROR=1), image[:, ::-1])


def test_nothing_drawn_changes_nothing_and_the_input_is_never_written(image: np.ndarray):
    before = image.copy()
    assert np.array_equal(_augmented(image), image)
    policy = Augmentation(
        AugmentConfig(policy="adaface", crop=1.0, low_resolution=1.0, photometric=1.0, blur=1.0, hsv=1.0, grey=0.5),
        mirror_probability=0.5,
        seed=0,
        image_size=SIZE,
    )
    rows = policy.parameters(0, np.arange(20))
    assert rows is not None
    out = np.empty_like(image)
    for row in rows:
        augment_image(image, row, resample_tables(SIZE), out)
    assert np.array_equal(image, before)
