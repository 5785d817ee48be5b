"""A cached teacher gives the rows of the record and the view, from the file or from the device's memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_cache import build, small_header

from adadistill.core.teachers import CachedTeacher, RecordTeacher
from adadistill.core.teachers.cache_views import needed_views
from adadistill.loaders.augment.augment_policy import Augmentation, AugmentConfig
from adadistill.loaders.block_store.teacher_cache import MIRRORED, PLAIN, CacheView, TeacherCache

CPU = torch.device("cpu")
MIRRORS, NO_MIRRORS = (
    Augmentation(AugmentConfig(), mirror_probability=share, seed=0, image_size=112) for share in (0.5, 0.0)
)


def _cache(folder: Path, rows: np.ndarray, views: tuple[CacheView, ...]) -> TeacherCache:
    header = small_header(num_records=len(rows), embedding_dim=rows.shape[2], views=views, block_records=7)
    return TeacherCache(build(folder, header, rows=rows))


def _unit_rows(records: int, views: int, dim: int = 12) -> np.ndarray:
    rows = np.random.RandomState(0).normal(size=(records, views, dim))
    return rows / np.linalg.norm(rows, axis=2, keepdims=True)


OTHER = CacheView(kind="augmented", seed=1, view=0, policy="{}")


@pytest.mark.parametrize("views", [(PLAIN, MIRRORED), (MIRRORED, OTHER, PLAIN)])
def test_rows_are_those_of_the_record_and_the_view(tmp_path: Path, views: tuple[CacheView, ...]):
    rows = _unit_rows(20, len(views))
    teacher = CachedTeacher(_cache(tmp_path / "cache", rows, views), augmentation=MIRRORS, device=CPU)
    ids, mirrored = np.array([7, 0, 19, 7]), np.array([False, True, True, True])

    found = teacher.rows(ids, mirrored)

    wanted = rows[ids, [views.index(MIRRORED if flag else PLAIN) for flag in mirrored]]
    assert isinstance(teacher, RecordTeacher)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), wanted, atol=2**-11)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(4), rtol=0, atol=1e-6)


def test_memory_and_file_give_the_same_bits(tmp_path: Path):
    cache = _cache(tmp_path / "cache", _unit_rows(33, 2), (PLAIN, MIRRORED))
    ids, mirrored = np.arange(33), np.arange(33) % 3 == 0
    mapped = CachedTeacher(cache, augmentation=MIRRORS, device=CPU, dtype=torch.float64)
    resident = CachedTeacher(cache, augmentation=MIRRORS, device=CPU, dtype=torch.float64, on_device=True)
    assert torch.equal(mapped.rows(ids, mirrored), resident.rows(ids, mirrored))
    assert mapped.rows(ids, mirrored).dtype == torch.float64


def test_plain_rows_are_enough_where_nothing_is_mirrored(tmp_path: Path):
    cache = _cache(tmp_path / "cache", _unit_rows(5, 1), (PLAIN,))
    teacher = CachedTeacher(cache, augmentation=NO_MIRRORS, device=CPU)
    assert teacher.rows(np.array([4]), np.array([False])).shape == (1, 12)
    with pytest.raises(ValueError, match="lacks a view"):
        CachedTeacher(cache, augmentation=MIRRORS, device=CPU)


def test_augmented_views_are_found_by_their_number(tmp_path: Path):
    config = AugmentConfig(policy="adaface", views=3)
    augmentation = Augmentation(config, mirror_probability=0.5, seed=4, image_size=112)
    rows = _unit_rows(9, 4)
    stored = (PLAIN, *reversed(needed_views(augmentation)))  # in any order, beside others
    teacher = CachedTeacher(_cache(tmp_path / "cache", rows, stored), augmentation=augmentation, device=CPU)
    ids, mirrored = np.array([8, 0]), np.array([True, False])
    for view in range(3):
        np.testing.assert_allclose(teacher.rows(ids, mirrored, view).numpy(), rows[ids, 3 - view], atol=2**-11)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_rows_on_a_gpu_are_those_on_the_cpu(tmp_path: Path):
    cache = _cache(tmp_path / "cache", _unit_rows(33, 2), (PLAIN, MIRRORED))
    ids, mirrored = np.arange(33)[::-1].copy(), np.arange(33) % 2 == 0
    expected = CachedTeacher(cache, augmentation=MIRRORS, device=CPU).rows(ids, mirrored)
    for on_device in (False, True):
        there = CachedTeacher(cache, augmentation=MIRRORS, device=torch.device("cuda"), on_device=on_device)
        torch.testing.assert_close(there.rows(ids, mirrored).cpu(), expected, rtol=0, atol=1e-6)
