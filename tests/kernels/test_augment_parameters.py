"""The tables of augmentation: what arithmetic may rely on, and OpenCV as the judge of what they resample like."""

from __future__ import annotations

import numpy as np
import pytest

from adadistill.kernels.augment_parameters import (
    BLUR_WINDOWS,
    TAPS,
    WEIGHT_ONE,
    Column,
    Interpolation,
    identity_parameters,
    len_columns,
    resample_tables,
)

SIZES = (16, 17, 37, 112, 128)
EXACT_IN_FLOAT32 = 2**24


def _table_sides(size: int) -> np.ndarray:
    """(T,) target length of every table."""
    tables = resample_tables(size)
    sides = np.arange(tables.least_side, size + 1)
    pairs = np.stack([sides, np.full_like(sides, size)], axis=1).reshape(-1)
    return np.concatenate([np.tile(pairs, len(Interpolation)), np.full(len(BLUR_WINDOWS), size)])


@pytest.mark.parametrize("size", SIZES)
def test_weights_sum_to_one_and_taps_lie_in_the_source(size: int):
    tables, targets = resample_tables(size), _table_sides(size)
    assert tables.index.shape == tables.weight.shape == (len(targets), size, TAPS)
    rows_used = np.arange(size) < targets[:, None]  # (T, S)
    sums = tables.weight.sum(axis=2, dtype=np.int64)
    assert (sums[rows_used] == WEIGHT_ONE).all()
    assert not tables.weight[~rows_used].any()
    assert not tables.index[~rows_used].any()
    assert tables.index.min() >= 0
    sources = np.concatenate(
        [np.stack([np.full_like(targets[:-2:2], size), targets[:-2:2]], 1).reshape(-1), [size] * 2]
    )
    assert (tables.index.max(axis=(1, 2)) < sources).all()


@pytest.mark.parametrize("size", SIZES)
def test_no_sum_leaves_what_float32_holds_exactly(size: int):
    """Also in any order: the sum of magnitudes bounds every partial sum."""
    magnitudes = np.abs(resample_tables(size).weight.astype(np.int64)).sum(axis=2).max()
    columns = magnitudes * 255
    rows = magnitudes * ((columns + (1 << 7)) >> 8)
    assert columns + (1 << 7) < EXACT_IN_FLOAT32
    assert rows + (1 << 13) < EXACT_IN_FLOAT32


@pytest.mark.parametrize("kind", list(Interpolation))
def test_resampling_to_the_same_side_changes_nothing(kind: Interpolation):
    tables = resample_tables(32)
    side = np.array([32])
    for table in (tables.down(np.array([int(kind)]), side), tables.up(np.array([int(kind)]), side)):
        assert (tables.index[table[0], :, 0] == np.arange(32)).all()
        assert (tables.weight[table[0], :, 0] == WEIGHT_ONE).all()


def test_bilinear_keeps_a_ramp_away_from_the_border():
    size, kind = 112, Interpolation.BILINEAR
    tables, ramp = resample_tables(size), np.arange(112) * 16.0
    for side in range(size // 2, size + 1):
        table = int(tables.down(np.array([int(kind)]), np.array([side]))[0])
        index, weight = tables.index[table, :side], tables.weight[table, :side].astype(np.float64) / WEIGHT_ONE
        resampled = (weight * ramp[index]).sum(axis=1)
        expected = ((np.arange(side) + 0.5) * size / side - 0.5) * 16.0
        inner = slice(4, side - 4)
        assert np.abs(resampled - expected)[inner].max() <= 16 / 4096 + 1e-9, side  # a weight is off by 1/4096


@pytest.mark.slow
@pytest.mark.parametrize("kind", [k for k in Interpolation if k != Interpolation.TRIANGULAR])
def test_resolutions_are_opencv_s_within_one_level(kind: Interpolation):
    cv2 = pytest.importorskip("cv2")
    flag = {
        Interpolation.NEAREST: cv2.INTER_NEAREST,
        Interpolation.BILINEAR: cv2.INTER_LINEAR,
        Interpolation.AREA: cv2.INTER_AREA,
        Interpolation.BICUBIC: cv2.INTER_CUBIC,
        Interpolation.LANCZOS4: cv2.INTER_LANCZOS4,
    }[kind]
    for size in (48, 112):
        tables = resample_tables(size)
        image = np.random.RandomState(size).randint(0, 256, (size, size, 3), dtype=np.uint8)
        for side in range(tables.least_side, size + 1, 1 if size == 48 else 7):
            low = cv2.resize(image, (side, side), interpolation=flag)
            back = cv2.resize(low, (size, size), interpolation=flag)
            numbers = np.array([int(kind)]), np.array([side])
            for source, table, found in ((image, tables.down, low), (low, tables.up, back)):
                ours = _resampled(source, tables.index, tables.weight, int(table(*numbers)[0]), len(found))
                off = np.abs(ours - found)
                assert off.max() <= (0 if kind == Interpolation.NEAREST else 1), (size, side)


def _resampled(image: np.ndarray, index: np.ndarray, weight: np.ndarray, table: int, target: int) -> np.ndarray:
    """The definition as a matrix product on both sides."""
    matrix = np.zeros((target, len(image)), dtype=np.int64)
    for tap in range(TAPS):
        np.add.at(matrix, (np.arange(target), index[table, :target, tap]), weight[table, :target, tap])
    columns = (np.einsum("xs,ysc->yxc", matrix, image.astype(np.int64)) + (1 << 7)) >> 8
    return np.clip((np.einsum("ys,sxc->yxc", matrix, columns) + (1 << 13)) >> 14, 0, 255)


def test_the_identity_says_nothing_happens():
    rows = identity_parameters(3, 112)
    assert rows.shape == (3, len_columns())
    assert rows.dtype == np.int32
    assert (rows[:, Column.CROP_HEIGHT] == 112).all()
    assert (rows[:, Column.MATRIX : Column.MATRIX + 9].reshape(3, 3, 3) == np.eye(3) * 65536).all()


@pytest.mark.parametrize("size", [15, 513, 0])
def test_sides_without_tables_are_refused(size: int):
    with pytest.raises(ValueError, match=f"16 to 512 pixels a side, got {size}"):
        resample_tables(size)
