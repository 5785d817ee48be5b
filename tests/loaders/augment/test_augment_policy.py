"""Draws of augmentation: from (seed, epoch or view, record id) alone, with the statistics of the published recipes."""

from __future__ import annotations

import hashlib
import json
import math

import numpy as np
import pytest

from adadistill.kernels.augment_parameters import FACTOR_ONE, Column, Interpolation, resample_tables
from adadistill.loaders.augment.augment_policy import (
    OPERATIONS,
    Augmentation,
    AugmentConfig,
    mirror_flags,
    uniform_draws,
)

SIZE = 112
IDS = np.arange(20_000, dtype=np.int64)


def _augmentation(seed: int = 3, size: int = SIZE, **fields) -> Augmentation:
    return Augmentation(AugmentConfig(**fields), mirror_probability=0.5, seed=seed, image_size=size)


def _rows(epoch: int = 0, ids: np.ndarray = IDS, **fields) -> np.ndarray:
    rows = _augmentation(**fields).parameters(epoch, ids)
    assert rows is not None
    return rows


def _happens(rows: np.ndarray) -> dict[str, np.ndarray]:
    """(n,) bool by operation: what the rows do, read off the rows."""
    crop = rows[:, Column.CROP_TOP : Column.CROP_WIDTH + 1]
    identity = (np.eye(3) * FACTOR_ONE).reshape(9)
    return {
        "crop": (crop != (0, 0, SIZE, SIZE)).any(axis=1),
        "low_resolution": rows[:, Column.LOW_SIDE] > 0,
        "photometric": (rows[:, Column.BRIGHTNESS : Column.SATURATION + 1] != FACTOR_ONE).any(axis=1),
        "blur": rows[:, Column.BLUR_TABLE] >= 0,
        "hsv": (rows[:, Column.MATRIX : Column.MATRIX + 9] != identity).any(axis=1),
        "grey": rows[:, Column.GREY] > 0,
    }


def _assert_share(happens: np.ndarray, probability: float) -> None:
    assert abs(happens.mean() - probability) <= 4.5 * math.sqrt(probability * (1 - probability) / len(happens)) + 1e-9


def _assert_same_distribution(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Kolmogorov-Smirnov at 1e-6, with half a step of the coarser values forgiven by ties."""
    points = np.unique(np.concatenate([ours, theirs]))
    by_value = [np.searchsorted(np.sort(values), points, side="right") / len(values) for values in (ours, theirs)]
    scale = math.sqrt((len(ours) + len(theirs)) / (len(ours) * len(theirs)))
    assert np.abs(by_value[0] - by_value[1]).max() <= 2.7 * scale


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("adaface", {"crop": 0.2, "low_resolution": 0.2, "photometric": 0.2}),
        ("insightface", {"low_resolution": 0.1, "blur": 0.2, "hsv": 0.2, "grey": 0.1}),
    ],
)
def test_each_operation_happens_as_often_as_published(policy: str, expected: dict[str, float]):
    happens = _happens(_rows(policy=policy))
    for operation in OPERATIONS:
        _assert_share(happens[operation], expected.get(operation, 0.0))


def test_a_probability_of_the_recipe_takes_the_place_of_the_policy_s():
    happens = _happens(_rows(policy="adaface", crop=0.0, photometric=0.75, grey=0.4))
    assert not happens["crop"].any()
    for operation, share in (("low_resolution", 0.2), ("photometric", 0.75), ("grey", 0.4)):
        _assert_share(happens[operation], share)


def test_operations_of_an_image_are_drawn_independently_of_each_other_and_of_the_mirror():
    rows = _rows(**dict.fromkeys(OPERATIONS, 0.5), policy="adaface")
    happens = [*_happens(rows).values(), rows[:, Column.MIRROR] > 0]
    # crop leaves the whole image now and then; its share is its own
    correlation = np.corrcoef(np.array(happens, dtype=np.float64))
    assert np.abs(correlation - np.eye(len(happens))).max() < 5 / math.sqrt(len(IDS))


def test_crops_are_torchvision_s_random_resized_crop():
    """Simulated from its documentation: area 20 to 100 %, log-uniform ratio, ten tries."""
    draws, theirs = np.random.RandomState(5), []
    while len(theirs) < 6_000:
        for _ in range(10):
            area = SIZE * SIZE * draws.uniform(0.2, 1.0)
            ratio = math.exp(draws.uniform(math.log(3 / 4), math.log(4 / 3)))
            width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < width <= SIZE and 0 < height <= SIZE:
                top, left = draws.randint(0, SIZE - height + 1), draws.randint(0, SIZE - width + 1)
                theirs.append((top, left, height, width))
                break
        else:
            theirs.append((0, 0, SIZE, SIZE))
    expected = np.array(theirs)
    found = _rows(policy="none", crop=1.0)[:, Column.CROP_TOP : Column.CROP_WIDTH + 1]
    assert (found[:, :2] >= 0).all()
    assert (found[:, :2] + found[:, 2:] <= SIZE).all()
    for column in range(4):
        _assert_same_distribution(found[:, column], expected[:, column])
    _assert_same_distribution(found[:, 2] / found[:, 3], expected[:, 2] / expected[:, 3])


def test_low_resolutions_of_adaface_take_any_side_and_any_pair_of_interpolations():
    halved = _rows(policy="insightface", low_resolution=1.0)[:, Column.LOW_SIDE]
    assert (halved.min(), halved.max()) == (56, 88)
    rows = _rows(policy="adaface", low_resolution=1.0)
    tables = resample_tables(SIZE)
    sides = rows[:, Column.LOW_SIDE].astype(np.int64)
    _assert_same_distribution(sides, np.floor(np.random.RandomState(6).uniform(0.2, 1.0, len(IDS)) * SIZE))
    kinds = [k for k in Interpolation if k != Interpolation.TRIANGULAR]
    counts = np.zeros((5, 5))
    for down in kinds:
        of_down = rows[:, Column.DOWN_TABLE] == tables.down(np.full(len(sides), int(down)), sides)
        for up in kinds:
            of_up = rows[:, Column.UP_TABLE] == tables.up(np.full(len(sides), int(up)), sides)
            counts[down, up] = (of_down & of_up).sum()
    assert counts.sum() == len(IDS)
    expected = len(IDS) / 25
    assert ((counts - expected) ** 2 / expected).sum() < 24 + 5 * math.sqrt(48)


def test_photometric_factors_are_uniform_and_come_in_every_order():
    rows = _rows(policy="none", photometric=1.0)
    for column in (Column.BRIGHTNESS, Column.CONTRAST, Column.SATURATION):
        factors = rows[:, column] / FACTOR_ONE
        _assert_same_distribution(factors, np.random.RandomState(column).uniform(0.5, 1.5, len(IDS)))
    orders, counts = np.unique(rows[:, Column.FIRST : Column.THIRD + 1], axis=0, return_counts=True)
    assert len(orders) == 6
    for order in orders:
        assert sorted(order) == [0, 1, 2]
    for count in counts:
        assert abs(count - len(IDS) / 6) < 5 * math.sqrt(len(IDS) / 6)


def test_hue_and_saturation_keep_greys_and_stay_in_range():
    matrices = _rows(policy="none", hsv=1.0)[:, Column.MATRIX : Column.MATRIX + 9].reshape(-1, 3, 3) / FACTOR_ONE
    # the published matrices are rounded to three places, so a grey moves by some thousandths
    assert np.abs(matrices.sum(axis=2) - 1.0).max() < 0.005
    assert np.abs(matrices.sum(axis=2) - 1.0)[:, 0].max() < 0.005
    colour = np.array([[200.0], [120.0], [60.0]])
    turned = matrices @ colour
    spread = turned.max(axis=1) - turned.min(axis=1)
    assert spread.min() > 100
    assert spread.max() < 260


@pytest.mark.parametrize("policy", ["adaface", "insightface"])
def test_a_record_s_augmentation_does_not_depend_on_its_batch(policy: str):
    ids = IDS[:2000]
    together = _rows(policy=policy, ids=ids)
    order = np.random.RandomState(0).permutation(len(ids))
    assert np.array_equal(_rows(policy=policy, ids=ids[order]), together[order])
    for record_id in (0, 17, 1999):
        assert np.array_equal(_rows(policy=policy, ids=ids[record_id : record_id + 1])[0], together[record_id])


def test_views_cycle_through_k_images_of_each_record():
    augmentation = _augmentation(policy="adaface", views=3)
    views = [augmentation.parameters(epoch, IDS[:500]) for epoch in range(7)]
    for epoch in range(3, 7):
        assert np.array_equal(views[epoch], views[epoch % 3])
        assert np.array_equal(augmentation.mirrored(epoch, IDS), augmentation.mirrored(epoch % 3, IDS))
    assert not np.array_equal(views[0], views[1])
    assert [augmentation.view(epoch) for epoch in (0, 2, 3, 7)] == [0, 2, 0, 1]
    anew = _augmentation(policy="adaface")
    assert anew.view(5) is None
    assert np.array_equal(anew.parameters(2, IDS[:500]), views[2])  # a view is that epoch's draw


def test_a_seed_draws_the_same_images_for_ever():
    """Caches of views are bound to these draws. Where this changes on purpose, raise DRAWS_VERSION."""
    digest = hashlib.sha256()
    for policy, epoch in (("adaface", 0), ("adaface", 5), ("insightface", 2)):
        ids = np.array([0, 1, 2, 3, 10_000, 5_822_652, 2**31, 2**40], dtype=np.int64).repeat(64) + np.tile(
            np.arange(64), 8
        )
        rows = _augmentation(seed=1234, policy=policy).parameters(epoch, ids)
        assert rows is not None
        digest.update(rows.astype("<i4").tobytes())
    assert digest.hexdigest()[:16] == "b4cbf7125e8c11b0"
    tables = resample_tables(SIZE)
    assert hashlib.sha256(tables.index.tobytes() + tables.weight.tobytes()).hexdigest()[:16] == "8292f2684a2d1dbf"


def test_what_a_cache_compares_names_everything_that_changes_pixels():
    base = json.loads(_augmentation(policy="adaface").policy_text())
    assert base["image_size"] == SIZE
    assert base["crop"] == 0.2
    texts = {
        _augmentation(policy="adaface").policy_text(),
        _augmentation(policy="adaface", crop=0.3).policy_text(),
        _augmentation(policy="insightface").policy_text(),
        _augmentation(policy="adaface", size=96).policy_text(),
        Augmentation(AugmentConfig(policy="adaface"), mirror_probability=0.0, seed=3, image_size=SIZE).policy_text(),
    }
    assert len(texts) == 5
    spelt_out = _augmentation(policy="adaface", crop=0.2, low_resolution=0.2, photometric=0.2)
    assert spelt_out.policy_text() == _augmentation(policy="adaface").policy_text()


def test_without_operations_nothing_is_drawn():
    augmentation = _augmentation(policy="adaface", crop=0.0, low_resolution=0.0, photometric=0.0)
    assert not augmentation.alters_pixels
    assert augmentation.parameters(0, IDS[:10]) is None
    assert augmentation.tables is None


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"policy": "imagenet"}, "policy must be none, adaface or insightface"),
        ({"blur": -0.1}, "blur must be in"),
        ({"grey": math.nan}, "grey must be in"),
        ({"views": 513}, "views must be in"),
        ({"seed": -1}, "seed must be in"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(fields: dict, named: str):
    with pytest.raises(ValueError, match=named):
        AugmentConfig(**fields)


def test_images_that_have_no_tables_are_refused_only_where_something_resamples():
    with pytest.raises(ValueError, match="16 to 512"):
        _augmentation(size=600, policy="adaface")
    assert _augmentation(size=600).parameters(0, IDS[:2]) is None


# ---- draws


def test_the_share_of_mirrored_images_is_the_probability():
    for probability in (0.0, 0.25, 1.0):
        _assert_share(mirror_flags(1, 0, IDS, probability), probability)


def test_flags_of_epochs_seeds_and_neighbouring_records_are_independent():
    base = mirror_flags(5, 3, IDS, 0.5)
    others = [mirror_flags(5, 4, IDS, 0.5), mirror_flags(6, 3, IDS, 0.5), np.roll(base, 1)]
    for other in others:
        assert abs((base == other).mean() - 0.5) < 5 * 0.5 / np.sqrt(len(IDS))


def test_draws_are_uniform():
    draws = uniform_draws(0, 0, IDS, stream=7)
    counts, _ = np.histogram(draws, bins=64, range=(0.0, 1.0))
    expected = len(IDS) / 64
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 63 + 5 * np.sqrt(2 * 63)
    assert draws.min() >= 0.0
    assert draws.max() < 1.0
