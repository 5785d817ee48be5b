"""A cache of another teacher, other records or other views is refused, and each mismatch has its own account."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from small_cache import TEACHER, build, small_header

from adadistill.loaders.block_store.errors import StoreError
from adadistill.loaders.block_store.teacher_cache import MIRRORED, PLAIN, CacheView, TeacherCache

RECORDS = {"fingerprint": "cd" * 32, "num_records": 23, "num_classes": 7, "name": "train.rec"}
POLICY = '{"crop":0.2}'


def augmented(view: int, seed: int = 3, policy: str = POLICY) -> CacheView:
    return CacheView(kind="augmented", seed=seed, view=view, policy=policy)


@pytest.fixture
def cache(tmp_path) -> TeacherCache:
    return TeacherCache(build(tmp_path / "cache"))


def _refusal(cache, teacher=TEACHER, records=RECORDS, views=(PLAIN, MIRRORED)) -> str:
    with pytest.raises(StoreError) as refused:
        cache.require(teacher=teacher, records=records, views=views)
    text = str(refused.value)
    assert str(cache.folder) in text
    assert text.endswith("rebuild with: adadistill cache build RECIPE")
    return text


def test_the_cache_of_this_teacher_these_records_and_these_views_is_accepted(cache):
    cache.require(teacher=TEACHER, records=RECORDS, views=(PLAIN, MIRRORED))
    cache.require(teacher=TEACHER, records=RECORDS, views=(MIRRORED,))
    cache.require(teacher=None, records=RECORDS, views=())


def test_names_and_ways_of_loading_do_not_bind(cache):
    teacher = TEACHER | {"name": "other.pth", "kind": "cvlface"}
    cache.require(teacher=teacher, records=RECORDS | {"name": "moved.rec", "num_classes": 8}, views=())


def test_what_the_caller_does_not_state_does_not_bind(cache):
    cache.require(
        teacher={"sha256": TEACHER["sha256"]},
        records={"fingerprint": "cd" * 32, "num_records": 23},
        views=(PLAIN,),
    )


def test_another_teacher_is_named_with_both_hashes_and_nothing_else(cache):
    other = TEACHER | {"sha256": "99" * 32, "name": "ir101.pth", "arch": "ir101"}
    text = _refusal(cache, teacher=other)
    assert "another teacher: it was written by 'ir50.pth' with sha256 abab" in text
    assert f"this run loads 'ir101.pth' with sha256 {'99' * 32}" in text
    assert "another network" not in text


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"image_size": 160}, "image_size: 112 stored, 160 wanted"),
        ({"preprocessing": TEACHER["preprocessing"] | {"color": "bgr"}}, "preprocessing.color: 'rgb' stored, 'bgr'"),
        (
            {"preprocessing": TEACHER["preprocessing"] | {"mean": [0, 0, 0]}},
            "preprocessing.mean: [0.5, 0.5, 0.5] stored",
        ),
        ({"preprocessing": TEACHER["preprocessing"] | {"std": [1.0, 1.0, 1.0]}}, "preprocessing.std: "),
    ],
)
def test_other_preprocessing_has_its_own_account(cache, change, difference):
    text = _refusal(cache, teacher=TEACHER | change)
    assert "other preprocessing: the same weights saw their images another way" in text
    assert difference in text
    assert "another teacher" not in text


def test_the_same_weights_as_another_network_have_their_own_account(cache):
    text = _refusal(cache, teacher=TEACHER | {"arch": "r50"})
    assert "another network: the same weights were read as another network; arch: 'ir50' stored, 'r50' wanted" in text


def test_a_cache_that_does_not_say_how_its_teacher_sees_does_not_fit_a_teacher_that_does(tmp_path):
    cache = TeacherCache(build(tmp_path / "cache", small_header(teacher={"sha256": TEACHER["sha256"]})))
    assert "image_size: None stored, 112 wanted" in _refusal(cache)
    cache.require(teacher=None, records=RECORDS, views=(PLAIN,))


@pytest.mark.parametrize("change", [{"fingerprint": "ee" * 32}, {"num_records": 24}])
def test_other_records_are_named(cache, change):
    text = _refusal(cache, records=RECORDS | change | {"name": "other.rec"})
    assert "other records: it was made of 'train.rec' with 23 image records, fingerprint cdcd" in text
    assert "this run reads 'other.rec'" in text


def test_a_recipe_that_mirrors_needs_the_mirrored_view(tmp_path):
    cache = TeacherCache(build(tmp_path / "cache", small_header(views=(PLAIN,))))
    why = "the recipe mirrors images (data.mirror_probability > 0) and this cache holds plain views only"
    assert f"missing view mirrored: {why}" in _refusal(cache)
    cache.require(teacher=TEACHER, records=RECORDS, views=(PLAIN,))


def test_a_recipe_that_shows_images_as_they_are_needs_the_plain_view(tmp_path):
    cache = TeacherCache(build(tmp_path / "cache", small_header(views=(MIRRORED,))))
    assert "missing view plain: the recipe shows images as they are" in _refusal(cache)


@pytest.mark.parametrize(
    ("stored", "wanted", "account"),
    [
        (
            (PLAIN, MIRRORED),
            [augmented(0), augmented(1)],
            "missing augmented view 0 of seed 3, policy '{\"crop\":0.2}' (and 1 more): the recipe augments images, and "
            "this cache holds plain and mirrored views only",
        ),
        ((augmented(0), augmented(1)), [augmented(2)], "this cache holds 2 views of that seed, 0 to 1"),
        ((augmented(0, seed=4),), [augmented(0)], "this cache's have another seed: 4"),
        (
            (augmented(0, policy='{"crop":0.3}'),),
            [augmented(0)],
            "augmented in another way: augmented view 0 of seed 3",
        ),
    ],
)
def test_an_augmented_view_that_is_missing_is_named_with_what_is_there_instead(tmp_path, stored, wanted, account):
    cache = TeacherCache(build(tmp_path / "cache", small_header(views=stored)))
    assert account in _refusal(cache, views=wanted)


def test_all_mismatches_are_told_at_once(tmp_path):
    header = replace(small_header(), views=(PLAIN,))
    cache = TeacherCache(build(tmp_path / "cache", header))
    text = _refusal(cache, teacher=TEACHER | {"image_size": 96, "arch": "r50"}, records=RECORDS | {"num_records": 9})
    for account in ("other preprocessing", "another network", "other records", "missing view mirrored"):
        assert account in text


@pytest.mark.parametrize(
    ("teacher", "records"),
    [({"name": "x"}, RECORDS), (TEACHER, {"fingerprint": "cd" * 32}), (TEACHER | {"x": float("nan")}, RECORDS)],
)
def test_a_caller_who_does_not_say_what_it_has_is_refused(cache, teacher, records):
    with pytest.raises(ValueError, match=r"must be an object with|nan") as refused:
        cache.require(teacher=teacher, records=records, views=())
    assert not isinstance(refused.value, StoreError)


def test_names_from_strangers_are_shown_without_their_control_characters(tmp_path):
    header = small_header(teacher=TEACHER | {"name": "\x1b[2Jevil\n" + "x" * 10_000})
    cache = TeacherCache(build(tmp_path / "cache", header))
    text = _refusal(cache, teacher=json.loads(json.dumps(TEACHER | {"sha256": "99" * 32})))
    assert "\x1b" not in text
    assert len(text) < 1500
